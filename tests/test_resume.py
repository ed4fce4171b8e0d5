"""A round happens exactly once: a run that is killed, stopped or damaged and resumed ends like one left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedcl import api, config
from fedcl.cli import main
from fedcl.config import Plain, Scenario
from fedcl.journal import EVENTS
from server.checkpoint import kept
from tests.draws import seeded
from tests.federations import hashes, journal, run, tiny

ROOT = Path(__file__).parent.parent
# Memories of 5 that evict, kept momentum, server momentum, a sample of the clients, a checkpoint every round.
SCENARIO = tiny(
    "stream.clients=6",
    "stream.schedule.rounds_per_task=20",
    "client.method=derpp",
    "client.optimizer={name: sgd, lr: 0.05, momentum: 0.5, keep: true}",
    "server.optimizer={name: fedavgm, lr: 0.5, momentum: 0.5}",
    "server.clients_per_round=5",
    "evaluate.every=3",
    "checkpoint.seconds=0",
)
ROUNDS = 40


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of the undisturbed run."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    results = run(SCENARIO, folder)
    assert results["cost"]["rounds"] == ROUNDS
    assert results["cost"]["evicted"] > 0
    return folder


def assert_ends_like(folder: Path, straight: Path) -> None:
    """The three hashes, all figures and the journal (times and checkpoints apart) are those of the undisturbed run."""
    found, expected = api.load(folder).results, api.load(straight).results
    assert hashes(found) == hashes(expected)
    for figures in ("metrics", "accuracy_matrix", "task_end_rounds", "clients", "absent"):
        assert found[figures] == expected[figures]
    assert found["cost"]["client_updates"] == expected["cost"]["client_updates"] == 5 * ROUNDS
    assert journal(folder) == journal(straight)
    assert (folder / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()


def start(folder: Path, scenario: Path) -> subprocess.Popen[str]:
    """Start the run of a scenario file, or go on with it, as a process of its own."""
    what = ["--resume", str(folder)] if (folder / "config.yaml").exists() else [str(scenario), "--out", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "fedcl", "run", *what, "--quiet"], env=environment, cwd=folder.parent, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def scenario_file(folder: Path, scenario: Scenario = SCENARIO) -> Path:
    path = folder / "scenario.yaml"
    path.write_text(yaml.safe_dump(config.as_dict(scenario)))
    return path


def wait_for_rounds(process: subprocess.Popen[str], folder: Path, rounds: int) -> None:
    """Wait until the journal tells of so many rounds, or the process has ended."""
    events, end = folder / EVENTS, time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        if (events.read_bytes().count(b'"event": "round"') if events.exists() else 0) >= rounds:
            return
        time.sleep(0.001)


def killed_and_resumed(folder: Path, scenario: Path, moments: list[float]) -> None:
    """Kill the run at each moment (rounds, with a fraction), then let it end."""
    for moment in moments:
        process = start(folder, scenario)
        wait_for_rounds(process, folder, int(moment))
        time.sleep(moment % 1 * 0.05)
        process.kill()
        _, said = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"it ended by itself before moment {moment}: {said}"
    process = start(folder, scenario)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_like_one_left_alone(kills: int, straight: Path, tmp_path: Path) -> None:
    """SIGKILL at sorted random moments, each time resumed by the command line; the seed is printed."""
    draws = seeded()
    moments = sorted(draws.uniform(0, ROUNDS - 3) for _ in range(kills))
    killed_and_resumed(tmp_path / "run", scenario_file(tmp_path), moments)
    assert_ends_like(tmp_path / "run", straight)


@pytest.mark.slow
def test_a_run_on_ray_killed_and_resumed_ends_like_one_left_alone(straight: Path, tmp_path: Path) -> None:
    """The same with two Ray workers, which die with the run: the workers' packs of a lost round do no harm."""
    plain = config.as_dict(SCENARIO)
    plain["engine"] |= {"kind": "ray", "workers": 2}
    killed_and_resumed(tmp_path / "run", scenario_file(tmp_path, config.load(plain)), [7.3, 21.6])
    assert_ends_like(tmp_path / "run", straight)


def test_a_run_told_to_stop_exits_75_and_goes_on(straight: Path, tmp_path: Path) -> None:
    """SIGTERM: exit code 75, a sentence that says how to go on, results that say `stopped`; then as if undisturbed."""
    folder = tmp_path / "run"
    process = start(folder, scenario_file(tmp_path))
    wait_for_rounds(process, folder, 4)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert f"stopped; fedcl run --resume {folder} goes on" in said
    results = api.load(folder).results
    assert results["status"] == "stopped"
    assert 4 <= results["cost"]["rounds"] < ROUNDS
    assert results["metrics"]["acc"] is None
    assert f"stopped after round {results['cost']['rounds']} of {ROUNDS}" in results["absent"]["acc"]
    assert api.resume(folder).code == 0
    assert_ends_like(folder, straight)


class StopAt:
    """A listener that sends this process SIGTERM when an event of a round is written."""

    def __init__(self, event: str, round: int) -> None:
        self.wanted = (event, round)

    def __call__(self, event: Plain) -> None:
        if (event["event"], event.get("round", 0)) == self.wanted:
            os.kill(os.getpid(), signal.SIGTERM)


def stopped(folder: Path, event: str = "round", round: int = 7) -> Path:
    """Return the directory of a run that was told to stop; two checkpoints are kept."""
    outcome = api.run(SCENARIO, out=folder, listeners=[StopAt(event, round)], check=False)
    assert (outcome.code, outcome.results["status"]) == (75, "stopped")
    return folder


@pytest.mark.parametrize(
    ("event", "round"),
    [("start", 0), ("evaluation", 0), ("round", 1), ("checkpoint", 2), ("task_end", 20), ("client_task_end", 20)],
)
def test_a_run_may_be_stopped_at_any_event(event: str, round: int, straight: Path, tmp_path: Path) -> None:
    """Before the first round, in the middle of one, at a checkpoint, at the end of a task: nothing is lost or twice."""
    folder = stopped(tmp_path / "run", event, round)
    assert api.resume(folder).code == 0
    assert_ends_like(folder, straight)


def test_a_run_stopped_again_and_again_ends_like_one_left_alone(straight: Path, tmp_path: Path) -> None:
    """Stopped in every tenth round, each time after the one before."""
    folder = stopped(tmp_path / "run", round=10)
    for round in (20, 30):
        assert api.resume(folder, listeners=[StopAt("round", round)], check=False).code == 75
    assert api.resume(folder).code == 0
    assert_ends_like(folder, straight)


def flip(path: Path, where: float) -> None:
    """Change one bit of a file, `where` between its first byte (0) and its last (1)."""
    data = bytearray(path.read_bytes())
    data[round(where * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)


def assert_falls_back(folder: Path, straight: Path, newest: Path, reason: str) -> None:
    """The newest checkpoint is renamed aside with a sentence in error.log; the run ends like one left alone."""
    data = newest.read_bytes()
    assert api.resume(folder).code == 0
    aside = newest.with_name(newest.name + ".broken")
    assert aside.read_bytes() == data
    said = (folder / "error.log").read_text()
    assert f"checkpoint {newest.name} refused and kept as {aside.name}: " in said
    assert reason in said
    assert_ends_like(folder, straight)


@pytest.mark.parametrize("where", [0.0, 0.05, 0.5, 1.0])
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_is_used(
    where: float, straight: Path, tmp_path: Path
) -> None:
    """One flipped bit in its length, its header, its middle or its last byte is found."""
    folder = stopped(tmp_path / "run")
    before, newest = kept(folder / "checkpoints")
    flip(newest, where)
    assert_falls_back(folder, straight, newest, str(newest))
    assert before.name == "r000006.safetensors"


@pytest.mark.parametrize("where", [0.0, 0.03, 0.9, 1.0, None])
def test_a_damaged_pack_puts_its_checkpoint_aside(where: float | None, straight: Path, tmp_path: Path) -> None:
    """A flipped bit in a pack that only the newest checkpoint names, or its absence: the one before is used."""
    folder = stopped(tmp_path / "run")
    newest = kept(folder / "checkpoints")[-1]
    pack = max((folder / "state").glob("r*-c*.pack"))
    assert pack.name.startswith("r000007-c")
    if where is None:
        pack.unlink()
    else:
        flip(pack, where)
    assert_falls_back(folder, straight, newest, str(pack))


def test_without_a_whole_checkpoint_the_run_starts_over(straight: Path, tmp_path: Path) -> None:
    """Both kept checkpoints are damaged: both are put aside and the run begins anew."""
    folder = stopped(tmp_path / "run")
    for path in kept(folder / "checkpoints"):
        flip(path, 0.5)
    assert api.resume(folder).code == 0
    assert len(list((folder / "checkpoints").glob("*.broken"))) == 2
    assert_ends_like(folder, straight)


def test_a_torn_last_event_is_forgotten(straight: Path, tmp_path: Path) -> None:
    """Half a line at the end of the journal, as a power cut leaves it, is cut off."""
    folder = stopped(tmp_path / "run")
    with open(folder / EVENTS, "ab") as events:
        events.write(b'{"event": "round", "rou')
    assert api.resume(folder).code == 0
    assert_ends_like(folder, straight)


def test_a_run_killed_between_its_last_event_and_its_results_is_completed(straight: Path, tmp_path: Path) -> None:
    """The journal says `finished`, but model and results are not there yet: --resume writes them."""
    folder = tmp_path / "run"
    run(SCENARIO, folder)
    (folder / "model.safetensors").unlink()
    (folder / "results.json").unlink()
    assert api.resume(folder).code == 0
    assert (folder / "results.json").exists()
    assert_ends_like(folder, straight)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return bytes and time of the last change of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_resuming_a_finished_run_changes_nothing(straight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 and the table of figures; no file is written."""
    before = contents(straight)
    assert main(["run", "--resume", str(straight)]) == 0
    assert str(straight) in capsys.readouterr().out
    assert contents(straight) == before


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who edits config.yaml of a stopped run is told, and no checkpoint is put aside for it."""
    folder = stopped(tmp_path / "run")
    plain: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**plain, "seed": 1}))
    assert main(["run", "--resume", str(folder), "--quiet"]) == 1
    assert "another configuration than config.yaml" in capsys.readouterr().err
    assert len(kept(folder / "checkpoints")) == 2
