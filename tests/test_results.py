"""results.json from events: hand-computed figures, absent figures with reasons, runs that were killed or resumed."""

import json
import math
from typing import Any

import pytest

from fedcl.log import collect
from fedcl.results import FIGURES, client_figures, summarise

Event = dict[str, Any]
# Three tasks of two rounds each. Rounds 0..6: accuracy on tasks 0, 1, 2 (None would be unknown).
ACCURACY = {
    0: [0.1, 0.2, 0.0],
    1: [0.6, 0.1, 0.0],
    2: [0.9, 0.2, 0.1],
    3: [0.4, 0.5, 0.1],
    4: [0.8, 0.7, 0.2],
    5: [0.3, 0.6, 0.4],
    6: [0.5, 0.6, 0.7],
}
START: Event = {
    **{"event": "start", "name": "three", "seed": 7, "config_hash": "ab12", "command": "fedcl run three", "clients": 2},
    **{"tasks": 3, "rounds": 6, "joint": False, "personal": False, "evaluation_every": 1, "device": "cpu", "stack": 1},
    **{"cohort": 32, "versions": {"fedcl": "0.1.0"}, "task_classes": [[0, 1], [2, 3], [4, 5]]},
}
END: Event = {
    **{"event": "end", "round": 6, "status": "finished", "seconds": 3.5, "weights_sha256": "w", "state_sha256": "s"},
    **{"memory": {"process": 9, "below": []}},
    **{"clients_sha256": None, "clients_sha256_absent": "clients keep no state"},
}


def evaluation(round: int) -> Event:
    started = [round >= 1, round >= 3, round >= 5]
    return {
        **{"event": "evaluation", "round": round, "accuracy": ACCURACY[round], "loss": 1.0, "started": started},
        **{"seconds": 0.25},
    }


def trained(round: int) -> Event:
    return {
        **{"event": "round", "round": round, "seconds": 0.5, "clients": [0, 1], "tasks": [(round - 1) // 2] * 2},
        **{"updates": 2, "steps": 20, "loss": {"ce": 1.0 / round}, "bytes_up": 100, "bytes_down": 200},
        **{"failed": 0, "evicted": 0},
    }


def client_end(round: int, task: int, rows: list[list[float | None]]) -> Event:
    return {
        **{"event": "client_task_end", "round": round, "clients": [0, 1], "tasks": [task, task]},
        **{"accuracy": rows},
    }


CLIENT_ENDS = {
    2: client_end(2, 0, [[1.0, 0.0, None], [0.8, 0.0, 0.0]]),
    4: client_end(4, 1, [[0.5, 0.9, None], [0.6, 0.5, 0.1]]),
    6: client_end(6, 2, [[0.6, 0.4, None], [0.4, 0.3, 0.8]]),
}


def events() -> list[Event]:
    result = [START, evaluation(0)]
    for round in range(1, 7):
        result += [trained(round), evaluation(round)]
        if round % 2 == 0:
            result += [{"event": "task_end", "round": round, "tasks": [round // 2 - 1], "accuracy": ACCURACY[round]}]
            result += [CLIENT_ENDS[round]]
        result += [{"event": "checkpoint", "round": round, "seconds": 0.01, "bytes": 1000}]
    return [*result, END]


def without(kind: str, stream: list[Event]) -> list[Event]:
    return [event for event in stream if event["event"] != kind]


def test_every_global_figure_by_hand() -> None:
    result = summarise({}, events())
    expected = {
        "acc": 0.6,
        "aia": (0.9 + 0.75 + 0.6) / 3,
        "forgetting": ((0.9 - 0.5) + (0.7 - 0.6)) / 2,
        "bwt": ((0.5 - 0.9) + (0.6 - 0.7)) / 2,
        "fwt": ((0.2 - 0.2) + (0.2 - 0.0)) / 2,
        "plasticity": (0.9 + 0.7 + 0.7) / 3,
        "first_minus_last": 0.25,
        "pm": (((0.8 - 0.9) + (0.5 - 0.9)) / 2 + (0.6 - 0.7)) / 2,
        "a_auc": (0.6 + 0.9 + 0.45 + 0.75 + (0.3 + 0.6 + 0.4) / 3 + 0.6) / 6,
        "min_acc": (0.3 + 0.6) / 2,
        "wc_acc": 0.7 / 3 + 0.45 * 2 / 3,
        "wf10": ((0.9 - 0.3) + (0.2 - 0.1) + 0.0) / 3,
        "wp10": ((0.9 - 0.1) + (0.7 - 0.1) + (0.7 - 0.0)) / 3,
    }
    assert {name: result["metrics"][name] for name in expected} == pytest.approx(expected)
    assert set(result["metrics"]) == set(FIGURES)
    assert result["accuracy_matrix"] == [ACCURACY[2], ACCURACY[4], ACCURACY[6]]
    assert (result["task_order"], result["task_end_rounds"]) == ([0, 1, 2], [2, 4, 6])
    assert set(result["absent"]) == {"intransigence", "clients_sha256"}
    assert result["absent"]["clients_sha256"] == "clients keep no state"


def test_facts_and_cost() -> None:
    result = summarise({}, events())
    facts = ("schema", "status", "name", "seed", "command", "config_hash", "evaluation_every", "weights_sha256")
    assert [result[name] for name in facts] == [1, "finished", "three", 7, "fedcl run three", "ab12", 1, "w"]
    assert [result[name] for name in ("device", "stack", "cohort")] == ["cpu", 1, 32]
    cost = result["cost"]
    assert cost == {
        **{"rounds": 6, "client_updates": 12, "steps": 120, "bytes_up": 600, "bytes_down": 1200, "seconds": 3.0},
        **{"updates_per_second": 4.0, "evaluation_seconds": 1.75, "checkpoint_seconds": pytest.approx(0.06)},
        **{"failed": 0, "evicted": 0, "memory": {"process": 9, "below": []}},
    }
    json.dumps(result, allow_nan=False)


def test_clients_are_measured_on_their_own_streams() -> None:
    """Client 0 has no test items of task 2: its figures are over tasks 0 and 1, at its own last end."""
    clients = summarise({}, events())["clients"]
    own = client_figures(collect(events()))
    assert own["acc"] == pytest.approx({0: 0.5, 1: 0.5})
    # Both tasks of client 0 are old at its last row: (1.0 - .6), (.9 - .4); of client 1 tasks 0 and 1.
    assert own["forgetting"] == pytest.approx({0: 0.45, 1: (0.4 + 0.2) / 2})
    assert clients["acc"] == pytest.approx({"mean": 0.5, "std": 0.0, "worst": 0.5, "worst10": 0.5, "n": 2})
    assert clients["forgetting"]["worst"] == pytest.approx(0.45)
    assert clients["matrices"]["0"]["matrix"] == [[1.0, 0.0, None], [0.5, 0.9, None], [0.6, 0.4, None]]
    assert clients["matrices"]["1"]["tasks"] == [0, 1, 2]


def test_a_client_keeps_a_row_for_every_end_of_a_repeated_task() -> None:
    rows = [(1, 1, [0.2, 0.9]), (2, 0, [0.8, 0.4]), (3, 1, [0.5, 0.7])]
    ends = [
        {"event": "client_task_end", "round": r, "clients": [3], "tasks": [t], "accuracy": [row]} for r, t, row in rows
    ]
    finished = [{**START, "clients": 4}, trained(1), *ends, END]
    own = summarise({}, finished)["clients"]["matrices"]["3"]
    assert own == {"tasks": [1, 0], "ended": [1, 0, 1], "matrix": [[0.9, 0.2], [0.4, 0.8], [0.7, 0.5]]}
    assert client_figures(collect(finished))["forgetting"][3] == pytest.approx(((0.9 - 0.7) + (0.8 - 0.5)) / 2)


def test_matrices_of_many_clients_are_left_out() -> None:
    assert "matrices" in summarise({}, [{**START, "clients": 100}])["clients"]
    assert "matrices" not in summarise({}, [{**START, "clients": 101}])["clients"]


def test_rows_in_order_of_round_then_task() -> None:
    """Task 2 ends first, 1 and 0 together: only task 2 is old, whatever the order of the other two."""
    stream = [START, evaluation(0), *(trained(round) for round in range(1, 7))]
    stream += [{"event": "task_end", "round": 3, "tasks": [2], "accuracy": [0.1, 0.2, 0.9]}]
    stream += [{"event": "task_end", "round": 6, "tasks": [1, 0], "accuracy": [0.7, 0.5, 0.6]}, END]
    result = summarise({}, stream)
    assert (result["task_order"], result["task_end_rounds"]) == ([2, 0, 1], [3, 6, 6])
    assert result["accuracy_matrix"] == [[0.9, 0.1, 0.2], [0.6, 0.7, 0.5], [0.6, 0.7, 0.5]]
    assert result["metrics"]["forgetting"] == pytest.approx(0.3)
    assert result["metrics"]["aia"] == pytest.approx((0.9 + 0.6) / 2)
    assert result["metrics"]["wc_acc"] == pytest.approx((2 / 3) * 0.6 + (1 / 3) * 0.6)


def test_tasks_that_all_end_together_leave_forgetting_absent() -> None:
    stream = [START, evaluation(0), trained(1), {**trained(5), "tasks": [1, 2]}]
    stream += [{"event": "task_end", "round": 5, "tasks": [0, 1, 2], "accuracy": ACCURACY[5]}, END]
    result = summarise({}, stream)
    assert result["metrics"]["acc"] == pytest.approx((0.3 + 0.6 + 0.4) / 3)
    for name in ("forgetting", "bwt", "first_minus_last", "pm", "min_acc"):
        assert result["metrics"][name] is None
        assert result["absent"][name] == "needs tasks that end in at least two different rounds"
    assert result["metrics"]["fwt"] is None
    assert "before a trained model was evaluated" in result["absent"]["fwt"]


def test_one_task() -> None:
    stream = [START, trained(1), {"event": "task_end", "round": 1, "tasks": [0], "accuracy": [0.9, None, None]}, END]
    result = summarise({}, stream)
    assert result["metrics"]["acc"] == result["metrics"]["aia"] == result["metrics"]["plasticity"] == 0.9
    assert result["metrics"]["wc_acc"] == 0.9
    assert "two different rounds" in result["absent"]["forgetting"]
    assert "evaluate.every" in result["absent"]["a_auc"]
    assert "two evaluations" in result["absent"]["wf10"]


def test_a_fresh_model_that_was_not_evaluated_leaves_only_forward_transfer_absent() -> None:
    result = summarise({}, [e for e in events() if e.get("round") != 0])
    assert result["absent"]["fwt"] == "needs an evaluation of the fresh model (round 0)"
    assert result["metrics"]["forgetting"] == pytest.approx(0.25)


def test_a_task_without_test_items_is_absent_never_zero() -> None:
    blind = [{**e, "accuracy": [*e["accuracy"][:2], None]} if e["event"] == "task_end" else e for e in events()]
    blind = [{**e, "accuracy": [*e["accuracy"][:2], None]} if e["event"] == "evaluation" else e for e in blind]
    result = summarise({}, blind)
    assert result["metrics"]["acc"] is None
    assert "no test items" in result["absent"]["acc"]
    assert result["metrics"]["forgetting"] == pytest.approx(0.25)  # tasks 0 and 1 alone
    json.dumps(result, allow_nan=False)


def test_joint_training_has_an_accuracy_only() -> None:
    joint = [{**e, "tasks": [-1, -1]} if e["event"] == "round" else e for e in events()]
    joint = without("client_task_end", without("task_end", joint))
    result = summarise({}, [{**START, "joint": True}, *joint[1:]])
    assert result["metrics"]["acc"] == pytest.approx(0.6)
    assert {v for k, v in result["metrics"].items() if k != "acc"} == {None}
    others = [k for k in FIGURES if k != "acc"] + ["accuracy_matrix", "clients.acc", "clients.forgetting"]
    assert {result["absent"][name] for name in others} == {"joint training has no task ends"}
    assert result["accuracy_matrix"] is None
    assert result["clients"]["acc"] is None


def test_joint_training_whose_last_round_was_not_evaluated() -> None:
    joint = [{**START, "joint": True}, evaluation(4), {**trained(6), "tasks": [-1]}, END]
    result = summarise({}, joint)
    assert result["metrics"]["acc"] is None
    assert "last round was not evaluated" in result["absent"]["acc"]


def test_personal_parameters_have_client_figures_only() -> None:
    personal = [{**e, "accuracy": None} if e["event"] in ("evaluation", "task_end") else e for e in events()]
    result = summarise({}, [{**START, "personal": True}, *personal[1:]])
    assert set(result["metrics"].values()) == {None}
    assert {result["absent"][name] for name in FIGURES} == {"parameters are personal: see clients"}
    assert result["clients"]["acc"]["mean"] == pytest.approx(0.5)


def test_a_run_that_was_killed_says_so_everywhere() -> None:
    killed = events()[: events().index(trained(5)) + 1]
    result = summarise({}, killed)
    assert result["status"] == "running"
    assert set(result["metrics"].values()) == {None}
    reason = "the run has not finished: running after round 5 of 6"
    assert {result["absent"][name] for name in (*FIGURES, "clients.acc", "weights_sha256")} == {reason}
    assert result["accuracy_matrix"] == [[0.9, 0.2], [0.8, 0.7]]
    assert result["cost"]["client_updates"] == 10
    assert result["clients"]["matrices"]["1"]["matrix"] == [[0.8, 0.0], [0.6, 0.5]]


def test_every_prefix_of_a_run_has_results() -> None:
    stream = events()
    for length in range(len(stream)):
        result = summarise({"name": "three", "seed": 7}, stream[:length])
        assert (result["name"], result["seed"], result["status"]) == ("three", 7, "running")
        assert set(result["metrics"].values()) == {None}
        json.dumps(result, allow_nan=False)


def test_a_resumed_run_equals_a_straight_one_and_counts_no_round_twice() -> None:
    straight = events()
    cut = straight.index(evaluation(4)) + 1
    again = straight.index(trained(3))
    stopped: Event = {"event": "end", "round": 4, "status": "stopped", "seconds": 1.0}
    assert summarise({}, [*straight[:cut], stopped])["status"] == "stopped"
    assert summarise({}, [*straight[:cut], stopped, *straight[again:-1]])["status"] == "running"
    assert summarise({}, [*straight[:cut], stopped, START, *straight[again:]]) == summarise({}, straight)


def test_tasks_that_nobody_finished_leave_the_matrix_figures_absent() -> None:
    """Under a clock of participations a finished run may end before every client is through."""
    short = [e for e in events() if not (e["event"] == "task_end" and e["round"] == 6)]
    result = summarise({}, short)
    assert result["metrics"]["acc"] == pytest.approx(0.6)
    assert result["metrics"]["wp10"] == pytest.approx(0.7)
    assert result["absent"]["forgetting"] == "not every client has finished its task 2"


def test_a_task_of_no_client_is_no_part_of_the_stream() -> None:
    two = [e for e in events() if e.get("round", 0) <= 4 and e["event"] != "end"]
    result = summarise({}, [*two, {**END, "round": 4}])
    assert result["task_order"] == [0, 1]
    assert result["metrics"]["acc"] == pytest.approx(0.75)


def test_infinite_numbers_never_reach_the_file() -> None:
    odd = [{**e, "accuracy": [math.nan, 0.5, 0.5]} if e["event"] == "task_end" else e for e in events()]
    json.dumps(summarise({}, odd), allow_nan=False)
