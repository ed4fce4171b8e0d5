"""`flwr run .`: Flower's own simulation, offline, trains split-digits to the weights of `fedcl run`."""

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


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An offline Flower of its own: its home, its port; whatever it starts is stopped afterwards."""
    home = tmp_path / "flwr-home"
    home.mkdir()
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


@pytest.mark.slow
def test_flwr_run_reaches_the_weights_of_fedcl_run(environment: dict[str, str], tmp_path: Path) -> None:
    """Five nodes with one client each, two rounds: every weight within 1e-5 of the simulation's, same clients."""
    ours = api.run(config.load("split-digits", [ROUNDS, "engine.kind=inline"]), out=tmp_path / "ours")
    assert ours.code == 0
    out = tmp_path / "theirs"
    done = subprocess.run(
        ["flwr", "run", ".", "--stream", "-c", f'overrides="{ROUNDS}" out="{out}"',
         "--federation-config", "num-supernodes=5 client-resources-num-cpus=1"],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=420,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "model.safetensors").exists(), done.stdout + done.stderr
    found, expected = (load_file(folder / "model.safetensors") for folder in (out, ours.directory))
    assert found.keys() == expected.keys()
    assert max(float(np.abs(found[name] - expected[name]).max()) for name in expected) <= 1e-5
    theirs = [event for event in journal(out) if event["event"] == "round"]
    assert [sorted(event["clients"]) for event in theirs] == [[0, 1, 2, 3, 4]] * 2
    results = api.load(out).results
    assert results["status"] == "finished"
    assert results["cost"]["failed"] == 0
    assert results["clients_sha256"] is None
    assert results["absent"]["clients_sha256"] == "the nodes keep their clients' records"
