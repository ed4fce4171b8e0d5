"""Where a round's time goes: phases without what lies within them, in this process and in workers."""

import json
from pathlib import Path

import pytest

from fedcl import api, timing
from fedcl.cli import main
from fedcl.timing import SERVER, WORKER, Mark, alone, doing, summary
from tests.federations import hashes, run, tiny


def test_a_phase_counts_without_the_phases_within_it():
    """10 s of selection, in which 4 s of waiting, in which 1 s of training; a worker's marks lie beside."""
    marks = [
        Mark("training", 3, 4, 1), Mark("waiting", 2, 6, 1), Mark("selection", 0, 10, 1), Mark("update", 10, 11, 1),
        Mark("training", 2, 5, 2), Mark("training", 5, 6.5, 2),
    ]  # fmt: skip
    own = {(mark.phase, mark.begin, mark.process): seconds for mark, seconds in alone(marks)}
    assert own["selection", 0, 1] == 6
    assert own["waiting", 2, 1] == 3
    assert own["training", 3, 1] == 1
    found = summary(marks)
    assert (found["rounds"], found["processes"]) == (1, 2)
    assert found["phases"]["training"] == {"seconds": 5.5, "milliseconds_a_round": 5500.0}
    assert sum(each["seconds"] for each in found["phases"].values()) == 11 + 4.5


def test_nobody_is_told_what_nobody_asked_for():
    with doing("training"):
        pass
    assert timing.taken() == timing.stop() == []


def checked(folder: Path, workers: int) -> None:
    """Check a profile: every phase of four rounds was marked, the trace has all marks, processes are named."""
    found = json.loads((folder / "profile.json").read_text())
    assert (found["rounds"], found["processes"]) == (4, 1 + workers)
    spent = {phase for phase, each in found["phases"].items() if each["seconds"] > 0}
    assert spent == {*SERVER, *WORKER}
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    names = [event["args"]["name"] for event in events if event["ph"] == "M"]
    assert sorted(names) == ["server", *["worker"] * workers]
    marks = [event for event in events if event["ph"] == "X"]
    assert {event["name"] for event in marks} == spent
    assert min(event["ts"] for event in marks) == 0
    assert all(event["dur"] >= 0 for event in marks)


def test_a_profiled_run_is_the_same_run(tmp_path: Path):
    outcome = api.run(tiny(), out=tmp_path / "run", profile=True)
    checked(tmp_path / "run", 0)
    assert hashes(outcome.results) == hashes(run(tiny(), tmp_path / "plain"))
    assert not (tmp_path / "plain" / "profile.json").exists()


@pytest.mark.usefixtures("ray_cluster")
def test_workers_send_their_marks_along(tmp_path: Path):
    api.run(tiny("engine.kind=ray", "engine.workers=1"), out=tmp_path / "run", profile=True)
    checked(tmp_path / "run", 1)


def test_the_command_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["run", "scale-synthetic", "stream.clients=8", "server.clients_per_round=4", "--profile",
                 "stream.schedule.rounds_per_task=2", "--out", str(tmp_path / "run")]) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "of 2 rounds, 1 processes" in said
    assert [line.split("  ")[0] for line in said.splitlines() if line.split("  ")[0] in (*SERVER, *WORKER)] == [
        *SERVER,
        *WORKER,
    ]
