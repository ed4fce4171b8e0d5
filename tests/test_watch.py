"""Watching: what is shown of a run and of a sweep from their folders alone, when that ends, and with which code."""

import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedcl import api
from fedcl.chart import bar, curve
from fedcl.cli import main
from fedcl.errors import ConfigError
from fedcl.journal import EVENTS, Journal, write_json
from fedcl.lock import Lock, holder, machine
from fedcl.real.tail import Tail
from fedcl.sweeps.folder import write_plan
from fedcl.watch import pulse, watch
from fedcl.watch.view import RunView
from tests.federations import tiny

ROOT = Path(__file__).parent.parent
START = {"event": "start", "name": "small", "seed": 3, "clients": 4, "tasks": 3, "rounds": 10, "device": "cpu"}
ROUND = {
    "event": "round", "round": 4, "seconds": 0.5, "clients": [0, 2], "tasks": [1, 0], "updates": 2, "steps": 9,
    "loss": {"ce": 0.25, "dark": 0.5}, "bytes_up": 10, "bytes_down": 10, "failed": 0, "evicted": 0,
}  # fmt: skip
EVALUATION = {
    "event": "evaluation", "round": 4, "accuracy": [0.75, 0.25, 0.0], "started": [True, True, False], "loss": 1.0,
    "seconds": 1.5,
}  # fmt: skip
ERROR = {"event": "client_error", "round": 4, "client": 2, "error": "ValueError: no", "traceback": "File a\nb"}


def viewed() -> tuple[RunView, io.StringIO, io.StringIO]:
    said, errors = io.StringIO(), io.StringIO()
    return RunView(*(Console(file=file, width=120, highlight=False) for file in (said, errors))), said, errors


def printed(capsys: pytest.CaptureFixture[str], *words: str, code: int) -> str:
    assert main(["watch", *words]) == code
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


def stopping(event: Mapping[str, Any]) -> None:
    if event["event"] == "round" and event["round"] == 2:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures that are not there are not awaited."""
    monkeypatch.setattr("fedcl.watch.run.PATIENCE", 0.0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outcome = api.run(tiny("evaluate.every=1"), out=tmp_path_factory.mktemp("watched") / "run")
    assert outcome.code == 0
    return outcome.directory


@pytest.fixture
def half(finished: Path, tmp_path: Path) -> Path:
    """A run directory in the middle of its third round; no process works in it."""
    folder = tmp_path / "half"
    folder.mkdir()
    shutil.copy(finished / "config.yaml", folder)
    lines = (finished / EVENTS).read_bytes().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if json.loads(line).get("round") == 3)
    (folder / EVENTS).write_bytes(b"".join(lines[:cut]))
    return folder


# What is drawn.


def test_bars() -> None:
    assert [bar(share, 4) for share in (0.0, 0.5, 1.0, -1.0, 2.0)] == ["····", "██··", "████", "····", "████"]


def test_curves() -> None:
    """From the least to the greatest; between ends that are given; neighbours in one; one value is in the middle."""
    assert curve([0.0, 1.0, 2.0, 7.0]) == "▁▂▃█"
    assert curve([0.0, 0.5, 1.0, 2.0], low=0.0, high=1.0) == "▁▅██"
    assert curve([0.0, 0.0, 4.0, 10.0], width=2) == "▁█"
    assert (curve([3.0]), curve([])) == ("▅", "")


def test_a_run_is_its_line_bars_curves_and_errors() -> None:
    view, _, _ = viewed()
    view.replay([START, {**EVALUATION, "round": 0, "accuracy": [0.0, 0.0, 0.0]}])
    view.replay([{**ROUND, "round": 3, "loss": {"ce": 1.5}}, ROUND, ERROR, EVALUATION])
    assert (
        view.line().plain == "round 4/10 · task 0, 1 · loss 0.7500 · accuracy 0.500 · 4.00 client updates/s · ETA 3 s"
    )
    assert view.details() == [
        "task 0    ██████████████████······ 0.750",
        "task 1    ██████·················· 0.250",
        "accuracy  ▁▅ 0.500",
        "loss      █▁ 0.7500",
        "1 client error, the last: client 2 in round 4: ValueError: no",
    ]


def test_many_tasks_are_one_line() -> None:
    view, _, _ = viewed()
    view.replay([START, ROUND, {**EVALUATION, "accuracy": [0.0, 1.0] * 10, "started": [True] * 20}])
    assert view.details() == [f"tasks     {'▁█' * 10} 0..19"]


def test_time_left_is_by_what_the_events_say_not_by_when_they_are_read() -> None:
    """A second for each of two rounds, then 0.5 behind an evaluation of 1.5: 0.8 * 1 + 0.2 * 2 = 1.2, 4.8 for four."""
    view, _, _ = viewed()
    view.replay([START, {**ROUND, "round": 3, "seconds": 1.0}, {**ROUND, "seconds": 1.0}, EVALUATION])
    view({**ROUND, "round": 6})
    assert view.line().plain.endswith("ETA 5 s")


def test_what_has_happened_before_is_not_said_again() -> None:
    view, said, errors = viewed()
    bases = {"event": "bases", "round": 4, "share": {"a": 0.5}, "notes": ["full"], "rank": {}}
    view.replay([{**START, "notes": ["two files left out"]}, ROUND, EVALUATION, ERROR, bases])
    assert said.getvalue() == "small: 4 clients, 3 tasks, 10 rounds, seed 3, cpu\n"
    assert errors.getvalue() == "note: two files left out\n"
    view(ERROR)
    view(EVALUATION)
    assert errors.getvalue().endswith("client 2 failed in round 4: ValueError: no\n  | File a\n  | b\n")
    assert said.getvalue().splitlines()[1].startswith("round 4/10 · task 0, 1 · loss 0.7500 · accuracy 0.500")


def test_silence_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    view, _, _ = viewed()
    view.replay([START, ROUND])
    now = time.monotonic()
    monkeypatch.setattr("fedcl.watch.view.time.monotonic", lambda: now + 61)
    assert view.details()[-1].startswith("nothing new for 1:0")
    view({"event": "end", "status": "finished"})
    assert "nothing new" not in str(view.details())


# What is read.


def test_a_file_is_read_from_its_beginning_and_what_is_cut_off_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / EVENTS
    tail = Tail(path, whole=True)
    assert (list(tail.fresh()), tail.cut) == ([], False)
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert list(tail.fresh()) == [{"a": 1}, {"a": 2}]
    assert not tail.cut
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": 3}\n')
    assert list(tail.fresh()) == [{"a": 3}]
    path.write_text('{"a": 1}\n{"b": 2}\n{"b": 3}\n{"b": 4}\n')
    assert tail.cut
    path.write_text('{"a": 1}\n')
    assert tail.cut
    path.unlink()
    assert tail.cut


def test_a_line_that_is_half_written_is_awaited(half: Path) -> None:
    """As a run that writes has it at any moment."""
    with Lock(half):
        seen = watch(half)
        assert seen.look() == ""
        with open(half / EVENTS, "ab") as file:
            file.write(json.dumps({**ROUND, "round": 3}).encode()[:40])
            file.flush()
            assert seen.look() == ""
            assert "round 2/" in str(seen.view.shown().renderables[0])
            file.write(json.dumps({**ROUND, "round": 3}).encode()[40:] + b"\n")
        assert seen.look() == ""
        assert "round 3/" in str(seen.view.shown().renderables[0])


def test_a_line_that_is_no_event_is_one_sentence(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(half / EVENTS, "ab") as file:
        file.write(b'{"event": "rou\n')
    assert main(["watch", "--once", str(half)]) == 1
    assert capsys.readouterr().err.startswith(f"fedcl: {half / EVENTS} is damaged (")


def test_a_run_that_goes_on_from_a_checkpoint_is_shown_anew(half: Path) -> None:
    with Lock(half):
        seen = watch(half)
        seen.look()
        lines = (half / EVENTS).read_bytes().splitlines(keepends=True)
        cut = next(i for i, line in enumerate(lines) if json.loads(line).get("round") == 2)
        (half / EVENTS).write_bytes(b"".join(lines[:cut]))
        assert seen.look() == ""
        assert "round 1/" in str(seen.view.shown().renderables[0])


# Whether its process lives.


def test_a_lock_that_is_free_for_a_while_says_that_the_process_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "GRACE", 0.05)
    found = pulse.Pulse([tmp_path])
    with Lock(tmp_path):
        assert machine(tmp_path) == platform.node()
        assert not found.gone(moved=True)
    assert not found.gone(moved=True)
    time.sleep(0.06)
    assert found.gone(moved=False)


def test_nothing_is_concluded_where_locks_do_not_reach(tmp_path: Path) -> None:
    """From another machine than the one that had it last, and where events come although nobody has it."""
    for name, moved in (("elsewhere", False), (platform.node(), True)):
        (tmp_path / "lock").write_text(f"123 {name}\n")
        found = pulse.Pulse([tmp_path], patient=False)
        looks = [found.gone(moved=each) for each in (False, moved, False)]
        assert looks == ([False] * 3 if name == "elsewhere" else [True, False, False])


def test_a_lock_that_may_not_be_read_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pulse, "holder", denied)
    assert not pulse.Pulse([tmp_path], patient=False).gone(moved=False)


def test_to_look_never_keeps_a_run_from_starting(tmp_path: Path) -> None:
    """A look has the lock for no time, but it has it: who wants it tries again. Here others look all the time."""
    code = f"from fedcl.lock import holder; from pathlib import Path\nwhile True: holder(Path({str(tmp_path)!r}))"
    (tmp_path / "lock").touch()
    with subprocess.Popen([sys.executable, "-c", code]) as other:
        try:
            time.sleep(0.3)
            for _ in range(100):
                with Lock(tmp_path):
                    assert holder(tmp_path) == os.getpid()
        finally:
            other.kill()


# How it ends.


def test_a_run_that_has_finished_is_told_with_its_figures(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, str(finished), code=0)
    lines = text.splitlines()
    assert lines[0].startswith("tiny: 4 clients, 2 tasks, 4 rounds, seed 0")
    assert lines[1].startswith("round 4/4 · task 1 · loss ")
    acc = api.load(finished).results["metrics"]["acc"]
    assert any(line.split()[:2] == ["ACC", f"{acc:.3f}"] for line in lines)
    assert lines[-1] == f"finished: {finished}"
    assert printed(capsys, "--once", str(finished), code=0).splitlines()[-1] == lines[-1]


def test_a_run_that_was_stopped_is_75(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = api.run(tiny(), out=tmp_path / "run", listeners=[stopping], check=False)
    assert outcome.code == 75
    last = printed(capsys, str(outcome.directory), code=75).splitlines()[-1]
    assert last == f"stopped; fedcl run --resume {outcome.directory} goes on"


def test_a_run_that_has_failed_is_1_with_the_reason(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(half) as journal:
        journal.write({"event": "end", "round": 2, "status": "failed"})
        journal.error("the run failed: round 3: 0 clients answered, 1 needed")
    last = printed(capsys, "--once", str(half), code=1).splitlines()[-1]
    assert last.startswith("failed: round 3: 0 clients answered, 1 needed; fedcl run --resume ")


def test_a_run_whose_process_is_gone_has_died(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "--once", str(half), code=1).splitlines()
    assert lines[1].startswith("round 2/4 · ")
    assert lines[-1].startswith(f"died: no process works in {half}; fedcl run --resume {half} goes on")


def test_a_run_that_is_running_is_0_when_looked_at_once(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Lock(half):
        lines = printed(capsys, "--once", str(half), code=0).splitlines()
    assert lines[1].startswith("round 2/4 · ")
    assert lines[-1].startswith("loss ")


def test_a_run_that_has_not_begun_is_awaited(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While Ray starts there is a configuration, no event, and no lock yet."""
    (half / EVENTS).unlink()
    assert printed(capsys, "--once", str(half), code=0) == "starting ...\n"


def test_a_server_is_shown_by_its_folder_and_survives_its_app(half: Path, tmp_path: Path) -> None:
    """DIR/run is the run directory; while the supervisor lives, an app that died is started again."""
    state = tmp_path / "state"
    state.mkdir()
    shutil.copytree(half, state / "run")
    write_json(state / "server.json", {})
    for named in (state, state / "run"):
        with Lock(state):
            assert watch(named, once=True).look() == ""
        assert watch(named, once=True).look() == "died"
    with Journal(state / "run") as journal:
        journal.write({"event": "end", "round": 2, "status": "failed"})
    with Lock(state):
        assert watch(state, once=True).look() == ""
    seen = watch(state, once=True)
    assert seen.look() == "failed"
    console = Console(file=io.StringIO(), width=200, highlight=False)
    seen.tell("failed", console)
    assert isinstance(console.file, io.StringIO)
    assert f"fedcl server --state {state} --resume goes on" in console.file.getvalue()


@pytest.mark.parametrize("there", [False, True])
def test_no_run_is_one_sentence_that_names_the_newest(
    there: bool, half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    named = tmp_path if there else tmp_path / "gone"
    if not there:
        shutil.copytree(half, tmp_path / "runs" / "small" / "1")
    assert main(["watch", str(named)]) == 2
    said = capsys.readouterr().err
    why = "it has no config.yaml, no sweep.json and no run/" if there else "nothing is there"
    newest = f"{tmp_path} is {half}" if there else "runs is runs/small/1"
    assert said == f"fedcl: {str(named)!r} is no run directory and no sweep: {why}; the newest below {newest}\n"


def test_nothing_at_all_is_one_sentence_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"is no run directory and no sweep: nothing is there$"):
        watch(tmp_path / "x")


# Processes.


def started(*words: str, cwd: Path, **more: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "fedcl", *words], cwd=cwd, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, **more,
    )  # fmt: skip


LONG = [
    "run", "split-digits", "engine.kind=inline", "stream.tasks=2", "evaluate.every=2", "client.epochs=1", "--quiet",
]  # fmt: skip


@pytest.mark.slow
def test_a_watcher_ends_with_the_run(tmp_path: Path) -> None:
    """Started before anything is written but the folder; plain lines; the run knows nothing of it."""
    out = tmp_path / "run"
    with started(*LONG, "stream.schedule.rounds_per_task=20", "--out", str(out), cwd=tmp_path) as run:
        while not (out / "config.yaml").exists():
            assert run.poll() is None
            time.sleep(0.05)
        with started("watch", str(out), cwd=tmp_path) as watcher:
            said, errors = watcher.communicate(timeout=120)
        assert (watcher.returncode, errors) == (0, "")
        assert run.wait(timeout=60) == 0
    lines = said.splitlines()
    assert lines[0].startswith("split-digits: 5 clients, 2 tasks, 40 rounds")
    assert any(line.startswith("round 40: task 1 ended; accuracy per task: ") for line in lines)
    assert lines[-1] == f"finished: {out}"
    assert "\x1b" not in said


@pytest.mark.slow
def test_a_watcher_tells_of_a_kill_and_leaves_quietly_by_ctrl_c(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with started(*LONG, "stream.schedule.rounds_per_task=2000", "--out", str(out), cwd=tmp_path) as run:
        while not (out / EVENTS).exists() or b'"round": 4' not in (out / EVENTS).read_bytes():
            assert run.poll() is None
            time.sleep(0.05)
        with started("watch", str(out), cwd=tmp_path) as first, started("watch", str(out), cwd=tmp_path) as second:
            assert first.stdout is not None
            assert first.stdout.readline().startswith("split-digits: ")
            first.send_signal(signal.SIGINT)
            assert first.communicate(timeout=30)[1] == ""
            assert first.returncode == 130
            assert second.stdout is not None
            assert second.stdout.readline().startswith("split-digits: ")
            run.kill()
            said, errors = second.communicate(timeout=30)
        assert (second.returncode, errors) == (1, "")
        assert said.splitlines()[-1].startswith(f"died: no process works in {out}")


# Sweeps.


def point(number: int) -> dict[str, Any]:
    return {"key": f"key{number}", "labels": {"scenario": "small", "lr": str(number)}, "seed": 0, "overrides": []}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep of four runs: one done, one failed, one running in round 7, one waiting."""
    out = tmp_path / "sweep"
    out.mkdir()
    write_plan(out, "tiny", "fedcl sweep tiny", [point(number) for number in range(4)])
    with Journal(out) as journal:
        journal.write({"event": "sweep", "name": "tiny", "runs": 4, "todo": 4, "command": ""})
        for number in range(3):
            journal.write({"event": "run_start", "key": f"key{number}", "title": ""})
        journal.write(ended(0, "done"))
        journal.write(ended(1, "failed", "ValueError: no"))
    with Journal(out / "runs" / "key2") as journal:
        journal.write({**ROUND, "round": 7})
    return out


def ended(number: int, status: str, error: str | None = None) -> dict[str, Any]:
    return {"event": "run_end", "key": f"key{number}", "title": "", "status": status, "seconds": 3.0, "error": error}


def test_a_sweep_is_its_counts_and_its_running_runs(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three ran at once, a run takes three seconds, two are not done: two seconds are left."""
    with Lock(sweep):
        lines = printed(capsys, "--once", str(sweep), code=0).splitlines()
    assert lines[0].startswith("1 done · 1 running · 1 waiting · 1 failed · ")
    assert lines[0].endswith(" so far · ETA 2 s")
    assert lines[1:] == ["  small lr=2 seed=0: round 7", "failed: small lr=1 seed=0: ValueError: no"]


@pytest.mark.parametrize(
    ("events", "code", "last"),
    [
        ([], 1, "died: no process works in {out}; the same fedcl sweep goes on"),
        ([ended(2, "stopped")], 75, "stopped; the same fedcl sweep goes on"),
        ([ended(2, "done"), ended(3, "done")], 1, "1 runs failed; fedcl sweep --retry-failed runs them again"),
        ([ended(2, "done"), ended(3, "done"), ended(1, "done")], 0, "finished: {out}"),
    ],
)
def test_how_a_sweep_has_ended(
    events: list[dict[str, Any]], code: int, last: str, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Journal(sweep) as journal:
        for event in events:
            journal.write(event)
    assert printed(capsys, "--once", str(sweep), code=code).splitlines()[-1] == last.format(out=sweep)


def test_a_search_has_not_ended_while_it_may_choose_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its plan has no run before the best settings are known; those that it tries come by in the journal."""
    write_plan(tmp_path, "tiny", "", [], {"studies": [{"best": None}]})
    with Journal(tmp_path) as journal:
        journal.write({"event": "sweep", "name": "tiny", "studies": 1, "command": ""})
        journal.write({"event": "run_start", "key": "key0", "title": "small trial=0 seed=7"})
    with Lock(tmp_path):
        assert "  small trial=0 seed=7: round 0" in printed(capsys, "--once", str(tmp_path), code=0).splitlines()
    with Journal(tmp_path) as journal:
        journal.write(ended(0, "pruned"))
    with Lock(tmp_path):
        assert watch(tmp_path).look() == ""
    assert printed(capsys, "--once", str(tmp_path), code=1).splitlines()[-1].startswith("died: ")
    write_plan(tmp_path, "tiny", "", [point(1)], {"studies": [{"best": {"trial": 0}}]})
    assert printed(capsys, "--once", str(tmp_path), code=1).splitlines()[-1].startswith("died: ")
    with Journal(tmp_path) as journal:
        journal.write({"event": "run_start", "key": "key1", "title": ""})
        journal.write(ended(1, "done"))
    assert printed(capsys, "--once", str(tmp_path), code=0).splitlines()[-1] == f"finished: {tmp_path}"


def test_a_sweep_that_has_ended_took_as_long_as_it_wrote(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(sweep) as journal:
        for number in (1, 2, 3):
            journal.write(ended(number, "done"))
    now = time.time()
    for name, age in (("sweep.json", 5000), (EVENTS, 5000 - 184)):
        os.utime(sweep / name, (now - age, now - age))
    assert printed(capsys, "--once", str(sweep), code=0).splitlines()[0] == "4 done · 3:05 so far · ETA 0 s"


def test_a_sweep_that_goes_on_is_counted_anew(sweep: Path) -> None:
    """What ran when it was killed waits; what was stopped waits; what had finished unnoticed is done."""
    write_json(sweep / "runs" / "key2" / "results.json", {"schema": 1, "status": "finished", "weights_sha256": "ab"})
    with Journal(sweep / "runs" / "key2") as journal:
        journal.write({"event": "end", "status": "finished", "weights_sha256": "ab"})
    with Lock(sweep):
        seen = watch(sweep)
        assert seen.look() == ""
        with Journal(sweep) as journal:
            journal.write({"event": "sweep", "name": "tiny", "runs": 4, "todo": 1, "command": ""})
            journal.write({"event": "run_start", "key": "key3", "title": ""})
        assert seen.look() == ""
        text = seen.view.shown().renderables[0].plain
    assert text.startswith("2 done · 1 running · 1 failed · ")


def test_a_sweep_is_followed_to_its_end(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What ended before is not said; what ends is."""
    with Lock(sweep):
        seen = watch(sweep)
        assert seen.look() == ""
        assert capsys.readouterr().out == ""
        with Journal(sweep) as journal:
            journal.write(ended(2, "done"))
            journal.write({"event": "run_start", "key": "key3", "title": ""})
        assert seen.look() == ""
        assert capsys.readouterr().out == "done: small lr=2 seed=0\n"
        with Journal(sweep) as journal:
            journal.write(ended(3, "failed", "OSError: full"))
        assert seen.look() == "failed"
        assert capsys.readouterr().out == "failed: small lr=3 seed=0: OSError: full\n"


def test_watching_a_run_needs_no_torch() -> None:
    heavy = "{'torch', 'flwr', 'ray', 'scipy'} & set(sys.modules)"
    code = f"import sys; from fedcl.watch import watch; assert not {heavy}, {heavy}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
