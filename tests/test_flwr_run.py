"""`flwr run .`: Flower's own simulation, offline, comes to the weights of `fedcl run`, by every method."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedcl import api, config
from tests.federations import journal

ROOT = Path(__file__).parent.parent
ROUNDS = "stream.schedule.rounds=2"
# What a task's end brings, in the second of two rounds; of every kind of message and of kept state one or two.
ENDING = (ROUNDS, "stream.schedule.rounds_per_task=1", "client.epochs=1")
METHODS = {
    "agem": ("client.method=agem",),
    "gpm": ("client.method=gpm",),
    "ewc": ("client.method=ewc", "client.curriculum=curr"),
    "si": ("client.method=si", "client.curriculum=cyclical"),
    "lwf": ("client.method=lwf", "model.dropout=[0.5]"),
    "fedewc": ("client.method=fedewc", "server.method=fedewc"),
    "fedlwf": ("client.method=fedlwf", "server.method=fedlwf"),
    "scaffold": ("client.method=scaffold", "server.method=scaffold", "server.weights=uniform"),
    "fot": ("server.method=fot", "server.method.statistic=gram"),  # a sketch has its node's own secret in it
    "prototypes": ("client.method=frozen", "server.method=prototypes", "server.method.missions=true"),
    "analytic": ("client.method=frozen", "server.method=analytic"),
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def stop_all(marker: str) -> None:
    """Stop every process whose environment holds `marker`: what `flwr run` leaves running, and its children."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if marker.encode() in (folder / "environ").read_bytes():
                    os.kill(int(folder.name), number)
            except (OSError, ProcessLookupError):
                continue
        time.sleep(2)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An offline Flower of its own: its home, its port; whatever it starts is stopped afterwards."""
    home = tmp_path_factory.mktemp("flwr-home")
    (home / "config.toml").write_text('[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = ":local:"\n')
    yield {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    stop_all(f"FLWR_HOME={home}")


def flwr_run(environment: dict[str, str], out: Path, *overrides: str) -> None:
    """Run split-digits with these overrides in Flower's simulation, a node for each of five clients."""
    done = subprocess.run(
        ["flwr", "run", ".", "--stream", "-c", f'overrides="{" ".join(overrides)}" out="{out}"',
         "--federation-config", "num-supernodes=5 client-resources-num-cpus=1"],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=420,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "model.safetensors").exists(), done.stdout + done.stderr


def distance(one: Path, other: Path) -> float:
    """Return the largest difference of any weight of two files."""
    found, expected = load_file(one), load_file(other)
    assert found.keys() == expected.keys()
    return max(float(np.abs(found[name].astype(float) - expected[name].astype(float)).max()) for name in expected)


@pytest.mark.slow
def test_flwr_run_reaches_the_weights_of_fedcl_run(environment: dict[str, str], tmp_path: Path) -> None:
    """Five nodes with one client each, two rounds: every weight within 1e-5 of the simulation's, same clients."""
    ours = api.run(config.load("split-digits", [ROUNDS, "engine.kind=inline"]), out=tmp_path / "ours")
    assert ours.code == 0
    out = tmp_path / "theirs"
    flwr_run(environment, out, ROUNDS)
    assert distance(out / "model.safetensors", ours.directory / "model.safetensors") <= 1e-5
    theirs = [event for event in journal(out) if event["event"] == "round"]
    assert [sorted(event["clients"]) for event in theirs] == [[0, 1, 2, 3, 4]] * 2
    results = api.load(out).results
    assert results["status"] == "finished"
    assert results["cost"]["failed"] == 0
    assert results["clients_sha256"] is None
    assert results["absent"]["clients_sha256"] == "the nodes keep their clients' records"


# Two for every change: one that rides on answers with a kept state, one that consolidates; the others for the night.
BY_DAY = ("scaffold", "prototypes")


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [pytest.param(each, marks=() if each in BY_DAY else pytest.mark.nightly) for each in METHODS]
)
def test_flwr_run_carries_every_method_over_a_tasks_end(
    method: str, environment: dict[str, str], tmp_path: Path
) -> None:
    """Kept state in Flower's own contexts, riding statistics and consolidation as messages of Flower: within 1e-5."""
    overrides = (*ENDING, *METHODS[method])
    ours = api.run(config.load("split-digits", [*overrides, "engine.kind=inline"]), out=tmp_path / "ours")
    assert ours.code == 0, ours.error
    flwr_run(environment, tmp_path / "theirs", *overrides)
    files = sorted(path.name for path in ours.directory.glob("*.safetensors"))
    assert ("classifier.safetensors" in files) == (method in ("prototypes", "analytic"))
    for name in files:
        assert distance(tmp_path / "theirs" / name, ours.directory / name) <= 1e-5
    results = api.load(tmp_path / "theirs").results
    assert results["cost"]["failed"] == 0
    assert results["metrics"] == pytest.approx(ours.results["metrics"], abs=0.01)
