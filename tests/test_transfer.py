"""Forward transfer and any-time accuracy of clients in their own time, by hand from the events of a run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcl.log import collect
from fedcl.results import any_time, summarise
from fedcl.sweeps.pruning import behind, floors
from tests.federations import journal, run, tiny

Event = dict[str, Any]
# Round: what the global model can do on tasks 0, 1, 2 after it. Task 2 begins in round 2, task 1 in round 4.
ACCURACY = {0: [0.1, 0.2, 0.0], 1: [0.6, 0.25, 0.1], 2: [0.7, 0.2, 0.8], 3: [0.7, 0.5, 0.9], 4: [0.6, 0.8, 0.9]}
TASKS = {1: [0, 0], 2: [0, 2], 3: [0, 2], 4: [1, 2]}
ENDS = {3: [0], 4: [1, 2]}


def events(accuracy: dict[int, Any] = ACCURACY, tasks: dict[int, list[int]] = TASKS, every: int = 1) -> list[Event]:
    """Return the events of a run; a round without an accuracy was not evaluated."""
    found: list[Event] = [{"event": "start", "clients": 2, "tasks": 3, "rounds": 4, "evaluation_every": every}]
    begun = [False] * 3
    for round in range(5):
        if round:
            begun = [each or task in tasks[round] for task, each in enumerate(begun)]
            found.append({"event": "round", "round": round, "clients": [0, 1], "tasks": tasks[round]})
        if round in accuracy:
            found.append({"event": "evaluation", "round": round, "accuracy": accuracy[round], "started": begun})
        if round in ENDS:
            found.append({"event": "task_end", "round": round, "tasks": ENDS[round], "accuracy": accuracy[round]})
    return [*found, {"event": "end", "round": 4, "status": "finished"}]


def figure(name: str, stream: list[Event]) -> tuple[float | None, str | None]:
    """Return a figure and, where it is absent, why."""
    result = summarise({}, stream)
    return result["metrics"][name], result["absent"].get(name)


def test_forward_transfer_is_read_before_anybody_trains_on_a_task() -> None:
    """Task 2 at the end of round 1, task 1 at that of round 3; the end of task 0 would say .9 of task 2."""
    assert figure("fwt", events())[0] == pytest.approx(((0.1 - 0.0) + (0.5 - 0.2)) / 2)


def test_of_rare_evaluations_the_last_before_the_task_counts() -> None:
    """Without the evaluation after round 3, task 1 is read after round 2."""
    rare = {round: each for round, each in ACCURACY.items() if round != 1}
    ended = events(rare)
    assert figure("fwt", ended)[0] == pytest.approx(0.5 - 0.2)  # of task 2 only the fresh model is known
    late = [each for each in ended if not (each["event"] == "evaluation" and each["round"] == 3)]
    late = [each for each in late if not (each["event"] == "task_end" and each["round"] == 3)]
    late = [{**each, "tasks": [0, 1, 2]} if each["event"] == "task_end" else each for each in late]
    assert figure("fwt", late)[0] == pytest.approx(0.2 - 0.2)


def test_where_nothing_was_measured_in_time_transfer_is_absent_with_a_reason() -> None:
    """All tasks begin in round 1, as in most federations of clients in their own time: no model came before them."""
    together = {1: [1, 2], 2: [0, 1], 3: [0, 2], 4: [1, 2]}
    value, reason = figure("fwt", events({0: ACCURACY[0], 3: ACCURACY[3], 4: ACCURACY[4]}, together))
    assert value is None
    assert reason == "needs a task that nobody trained on before a trained model was evaluated (evaluate.every)"
    fresh = [each for each in events() if not (each["event"] == "evaluation" and each["round"] == 0)]
    assert figure("fwt", fresh) == (None, "needs an evaluation of the fresh model (round 0)")


@pytest.mark.parametrize(
    "schedule", ["synchronous, rounds_per_task: 3", "own, rounds_per_task: 4, order: same, start: 4"]
)
def test_forward_transfer_of_runs_is_the_definition(schedule: str, tmp_path: Path) -> None:
    """Round by round from the journal: the accuracy just before a task's first visit less that of the fresh model."""
    found = run(tiny(f"stream.schedule={{kind: {schedule}}}", "stream.clients=3", "evaluate.every=1"), tmp_path)
    wrote = journal(tmp_path)
    accuracy = {each["round"]: each["accuracy"] for each in wrote if each["event"] == "evaluation"}
    gains, met, began = [], set[int](), 0
    for each in wrote:
        if each["event"] != "round":
            continue
        for task in sorted(set(each["tasks"]) - met):
            if began and each["round"] > began:
                gains.append(accuracy[each["round"] - 1][task] - accuracy[0][task])
        met |= set(each["tasks"])
        began = began or (each["round"] if each["tasks"] else 0)
    assert gains
    assert found["metrics"]["fwt"] == pytest.approx(np.mean(gains))


# Any-time accuracy


def test_an_evaluation_before_the_first_task_does_not_count() -> None:
    """Clients that start late: rounds 1 and 2 are evaluated and nobody has met a task."""
    idle = {1: [], 2: [], 3: [0, 2], 4: [1, 2]}
    stream = events(tasks=idle)
    expected = {3: (0.7 + 0.9) / 2, 4: ((0.7 + 0.9) / 2 + (0.6 + 0.8 + 0.9) / 3) / 2}
    assert any_time(collect(stream)) == pytest.approx(expected)
    assert figure("a_auc", stream)[0] == pytest.approx(expected[4])


def test_a_run_that_is_behind_is_pruned_whatever_came_before_its_first_task() -> None:
    curves = [any_time(collect(events(tasks={1: [], 2: [], 3: [0, 2], 4: [1, 2]}))) for _ in range(4)]
    assert behind({3: 0.1}, floors(curves)) == 3
    assert behind({3: 0.9}, floors(curves)) is None


def test_a_task_without_test_items_is_the_reason_and_does_not_stop_pruning() -> None:
    blind = {round: [*each[:2], None] for round, each in ACCURACY.items()}
    value, reason = figure("a_auc", events(blind))
    assert value is None
    assert reason is not None
    assert "a task has no test items" in reason
    expected = [0.6, (0.6 + 0.7) / 2, (0.6 + 0.7 + 0.7) / 3, (0.6 + 0.7 + 0.7 + (0.6 + 0.8) / 2) / 4]
    assert any_time(collect(events(blind))) == pytest.approx(dict(zip(range(1, 5), expected, strict=True)))


def test_without_evaluations_between_task_ends_that_is_the_reason() -> None:
    assert figure("a_auc", events(every=0)) == (None, "needs evaluations between task ends (evaluate.every)")
