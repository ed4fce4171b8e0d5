"""What a run says: the live line, the lines that stay, the table at the end."""

import io
from typing import Any

import pytest
from rich.console import Console

from fedcl import console
from fedcl.console import Progress, duration, fraction, rate, size, table
from fedcl.log import seen_accuracy

START = {
    "event": "start", "name": "small", "seed": 3, "clients": 4, "tasks": 2, "rounds": 10, "device": "cpu",
}  # fmt: skip
ROUND = {
    "event": "round", "round": 4, "seconds": 0.5, "clients": [0, 2], "tasks": [1, 0], "updates": 2, "steps": 9,
    "loss": {"ce": 0.25, "dark": 0.5}, "bytes_up": 10, "bytes_down": 10, "failed": 0, "evicted": 0,
}  # fmt: skip
EVALUATION = {
    "event": "evaluation",
    "round": 4,
    "accuracy": [0.5, 0.25, 0.0],
    "started": [True, True, False],
    "loss": 1.0,
}


def recorded(*, terminal: bool = False, quiet: bool = False) -> tuple[Progress, io.StringIO, io.StringIO]:
    said, errors = io.StringIO(), io.StringIO()
    consoles = [Console(file=file, force_terminal=terminal, width=120, highlight=False) for file in (said, errors)]
    return Progress(*consoles, quiet=quiet), said, errors


def results(**changes: Any) -> dict[str, Any]:
    whole = {
        "name": "small", "seed": 3, "status": "finished", "absent": {},
        "metrics": {"acc": 0.8125, "aia": 0.9, "forgetting": 0.125, "bwt": -0.125, "plasticity": 0.95},
        "clients": {"acc": {"mean": 0.75, "std": 0.1, "worst": 0.5, "worst10": 0.5}},
        "cost": {
            "client_updates": 1500, "bytes_up": 4_100_000, "bytes_down": 900, "seconds": 61.2,
            "updates_per_second": 24.5, "memory": {"process": 366_000_000, "below": [81_000_000, 9]},
        },
    }  # fmt: skip
    return whole | changes


def shown(found: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=120, highlight=False)
    console.print(table(found))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(name))


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "0 s"), (0.2, "1 s"), (59, "59 s"), (59.5, "1:00"), (185, "3:05"), (7385, "2:03:05"), (-1, "0 s")],
)
def test_durations(seconds, written):
    assert duration(seconds) == written


@pytest.mark.parametrize(
    ("n", "written"),
    [(0, "0 B"), (999, "999 B"), (4100, "4.1 kB"), (12e6, "12.0 MB"), (3.5e9, "3.5 GB"), (2e12, "2.0 TB")],
)
def test_sizes(n, written):
    assert size(n) == written


def test_unknown_numbers_are_dashes():
    assert (fraction(None), rate(None), fraction(0.0), rate(1234.5), rate(0.25)) == ("-", "-", "0.000", "1,234", "0.25")


def test_the_accuracy_is_that_of_the_tasks_begun():
    assert seen_accuracy(EVALUATION) == 0.375
    assert seen_accuracy({**EVALUATION, "started": [False] * 3}) == 0.25
    assert seen_accuracy({**EVALUATION, "accuracy": [0.5, None, 0.0]}) == 0.5
    assert seen_accuracy({**EVALUATION, "accuracy": None}) is None
    assert seen_accuracy({**EVALUATION, "accuracy": [None, None, None]}) is None


def test_the_line_holds_round_tasks_loss_accuracy_rate_and_time_left():
    progress, _, _ = recorded()
    assert progress.line().plain == "starting ..."
    for event in (START, ROUND, EVALUATION):
        progress(event)
    begun = "round 4/10 · task 0, 1 · loss 0.7500 · accuracy 0.375 · 4.00 client updates/s · ETA "
    assert progress.line().plain == begun + "-"  # the first round warms up: it says nothing of the others


def test_the_first_time_left_is_that_of_the_second_round(monkeypatch):
    progress, _, _ = recorded()
    clock = iter([100.0, 100.5])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    for event in (START, {**ROUND, "round": 1, "seconds": 30.0}, {**ROUND, "round": 2, "seconds": 0.5}):
        progress(event)
    assert progress.line().plain.endswith("ETA 4 s")  # 8 rounds of half a second


@pytest.mark.parametrize("width", [24, 40, 60, 79, 80, 100])
def test_the_line_fits_its_terminal_and_keeps_the_time_left(width):
    progress = Progress(Console(file=io.StringIO(), width=width))
    for event in ({**START, "rounds": 1500}, {**ROUND, "round": 998, "tasks": [10, 11, 12, 13]},
                  {**ROUND, "round": 999, "tasks": [10, 11, 12, 13]}, EVALUATION):  # fmt: skip
        progress(event)
    line = progress.line().plain
    assert len(line) <= width
    assert " · ETA " in line
    assert ("loss" in line) == (width >= 60)


def test_many_tasks_at_once_are_a_range():
    progress, _, _ = recorded()
    progress({**ROUND, "tasks": [7, 3, 5, 4, 3, 9]})
    assert progress.line().plain.startswith("round 4/? · tasks 3..9 · ")


def test_a_round_without_answers_has_no_loss():
    progress, _, _ = recorded()
    progress(START)
    progress({**ROUND, "tasks": [], "loss": {}, "updates": 0})
    assert progress.line().plain.startswith("round 4/10 · task - · loss - · accuracy - · 0.00 client updates/s")


def test_without_a_terminal_there_are_plain_lines_at_evaluations_and_task_ends():
    progress, said, _ = recorded()
    with progress:
        for event in (START, ROUND, EVALUATION, {"event": "checkpoint"}, {"event": "unheard of"}):
            progress(event)
        progress({"event": "task_end", "round": 4, "tasks": [0], "accuracy": [0.5, 0.25]})
    lines = said.getvalue().splitlines()
    assert lines[0] == "small: 4 clients, 2 tasks, 10 rounds, seed 3, cpu"
    assert lines[1].startswith("round 4/10 · task 0, 1 · loss 0.7500")
    assert lines[2] == "round 4: task 0 ended; accuracy per task: 0.500 0.250"
    assert len(lines) == 3
    assert "\x1b" not in said.getvalue()


def test_on_a_terminal_the_live_line_is_drawn_and_taken_away():
    progress, said, _ = recorded(terminal=True)
    with progress:
        progress(START)
        progress(ROUND)
    assert "round 4/10" in said.getvalue()
    assert said.getvalue().endswith("\x1b[2K")


def test_personal_parameters_are_said_to_be_the_reason():
    progress, said, _ = recorded()
    progress({"event": "task_end", "round": 4, "tasks": [0], "accuracy": None})
    assert said.getvalue() == "round 4: task 0 ended; accuracy per task: absent, parameters are personal\n"


def test_personal_models_are_told_by_their_own_task_ends():
    progress, said, _ = recorded()
    ends = {"event": "client_task_end", "round": 4, "clients": [0, 2], "tasks": [1, 0]}
    accuracy = [[0.5, 1.0], [0.5, 0.25]]
    progress({**START, "personal": True})
    progress({**ends, "accuracy": accuracy})
    progress({**ends, "accuracy": [None, [None, 1.0]]})
    progress({**START, "personal": False})
    progress({**ends, "accuracy": accuracy})
    lines = [line for line in said.getvalue().splitlines() if "finished" in line]
    assert lines == [
        "round 4: 2 clients finished a task; their own models' mean accuracy on it: 0.750",
        "round 4: 2 clients finished a task; their own models' mean accuracy on it: -",
    ]


def test_a_failed_client_is_told_at_once_by_name_and_round_even_when_quiet():
    progress, said, errors = recorded(quiet=True)
    with progress:
        progress(START)
        progress(
            {"event": "client_error", "round": 7, "client": 3, "error": "ValueError: [bold]", "traceback": "File a\nb"}
        )
    assert said.getvalue() == ""
    assert errors.getvalue() == "client 3 failed in round 7: ValueError: [bold]\n  | File a\n  | b\n"


def test_a_run_that_goes_on_knows_its_rounds_and_last_accuracy():
    progress, said, _ = recorded()
    progress.catch_up([START, ROUND, EVALUATION])
    progress({**ROUND, "round": 5})
    assert said.getvalue().count("\n") == 1
    assert progress.line().plain.startswith("round 5/10")
    assert "accuracy 0.375" in progress.line().plain


def test_the_table_shows_every_figure():
    text = shown(results())
    assert "small, seed 3: finished" in text
    values = {
        "ACC": "0.812", "AIA": "0.900", "forgetting": "0.125", "BWT": "-0.125", "plasticity": "0.950",
        "clients' mean": "0.750", "clients' worst": "0.500", "client updates": "1,500", "sent up": "4.1 MB",
        "sent down": "900 B", "time": "1:02", "memory": "366.0 MB",
    }  # fmt: skip
    for name, value in values.items():
        assert f" {value} " in row(text, name)
    assert "24 a second" in row(text, "client updates")


def test_what_is_unknown_is_a_dash_with_its_reason():
    absent = {"acc": "parameters are personal: see clients", "clients.acc": "no client finished a task"}
    text = shown(results(metrics={"acc": None, "aia": 0.0}, clients={"acc": None}, absent=absent))
    assert row(text, "ACC").split()[1:] == ["-", *absent["acc"].split()]
    assert row(text, "clients' worst").split()[2:] == ["-", *absent["clients.acc"].split()]
    assert " 0.000 " in row(text, "AIA")
    assert row(text, "BWT").split() == ["BWT", "-", "not", "recorded"]


def test_names_with_markup_are_shown_as_they_are():
    assert "[red]x[/red]" in shown(results(name="[red]x[/red]"))


def test_whose_a_number_is_is_said_in_a_line() -> None:
    """By name and registered node, as far as both are known."""
    progress, said, _ = recorded()
    for name, node in (("a1/w", "hospital-a"), ("a1", ""), ("", "hospital-b")):
        progress({"event": "joined", "round": 2, "client": 3, "name": name, "node": node})
    lines = said.getvalue().splitlines()
    assert lines == [f"round 2: client 3 is {whose}" for whose in ("a1/w of hospital-a", "a1", "hospital-b")]
