"""Clients in their own time: a plan written by hand gives exactly the events and matrices worked out by hand."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedcl import api
from fedcl.config import Plain, Scenario, load
from fedcl.digest import digest
from fedcl.packs import read_pack
from tests.federations import Clients, journal, run, tiny

# Client: start, then (task, rounds) one after another.
STREAMS = {0: (0, [(0, 2), (1, 2)]), 1: (1, [(2, 1), (0, 2)]), 2: (0, [(1, 3)])}
# Worked out by hand from STREAMS. Round: client -> task.
AT_WORK = {1: {0: 0, 2: 1}, 2: {0: 0, 1: 2, 2: 1}, 3: {0: 1, 1: 0, 2: 1}, 4: {0: 1, 1: 0}}
# Round: clients that leave a task with it, and tasks that nobody will meet again.
LEFT = {2: {0: 0, 1: 2}, 3: {2: 1}, 4: {0: 1, 1: 0}}
ENDED = {2: [2], 4: [0, 1]}
# Client: its tasks in its own order, and the rounds after which it was measured.
OWN = {0: ([0, 1], [2, 4]), 1: ([2, 0], [2, 4]), 2: ([1], [3])}
PLAN = ", ".join(
    f"{{start: {start}, tasks: {[task for task, _ in stream]}, rounds: {[rounds for _, rounds in stream]}}}"
    for start, stream in STREAMS.values()
)
COMMON = (
    "stream.dataset={name: synthetic, classes: 6, features: 5, samples: 180, test_samples: 90}",
    "stream.tasks=3",
    "stream.clients=3",
    f"stream.schedule={{kind: explicit, clients: [{PLAN}]}}",
    "client.method=er",
    "engine.cohort=4",
)


def planned(*overrides: str) -> Scenario:
    return tiny(*COMMON, *overrides)


def accuracy(clients: Clients, weights: NDArray[np.float32], client: int, task: int) -> float:
    """Return a client's accuracy on its own test items of a task, in plain torch, with the weights it would use."""
    stream, flat = clients.site.stream, torch.from_numpy(weights.copy())
    personal = clients.site.personal
    if personal.any():
        flat[personal] = torch.from_numpy(clients.record(client)["personal"].copy())
    model = clients.model()
    torch.nn.utils.vector_to_parameters(flat, model.parameters())
    items = stream.test.cell(client, task)
    with torch.no_grad():
        predicted = model(torch.from_numpy(stream.dataset.test_x[items])).argmax(1)
    return int((predicted.numpy() == stream.dataset.test_y[items]).sum()) / len(items)


class Replayed:
    """The run done by hand: AT_WORK's clients are trained in one cohort a round and averaged."""

    def __init__(self, scenario: Scenario) -> None:
        clients = Clients.of(scenario)
        self.weights = clients.initial
        self.own: dict[tuple[int, int], list[float]] = {}
        for round, at in AT_WORK.items():
            count, batch = clients.site.stream.train.count, scenario.client.batch
            steps = {client: math.ceil(count[client, at[client]] / batch) for client in at}
            order = sorted(at, key=lambda client: (-steps[client], client))
            clocks = [round - 1 - STREAMS[client][0] for client in order]
            reply = clients.carry_out(
                self.weights, round, np.array(order), np.array([at[k] for k in order]), np.array(clocks)
            )
            self.weights = self.weights + reply.total[:-1] / reply.total[-1]
            for client in LEFT.get(round, ()):
                self.own[client, round] = [accuracy(clients, self.weights, client, task) for task in range(3)]
        self.tensors = clients.site.parameters.views(torch.from_numpy(self.weights))


def expected_events(personal: bool) -> list[tuple[str, int]]:
    """Return kind and round of every event, worked out from LEFT and ENDED."""
    events = [("evaluation", 0)]
    for round in AT_WORK:
        events.append(("round", round))
        events += [("evaluation", round), ("task_end", round)] if round in ENDED else []
        events += [("client_task_end", round)] if round in LEFT else []
    kept = [event for event in events if not (personal and event[0] == "evaluation")]
    return [("start", 0), *kept, ("end", 4)]


@pytest.mark.parametrize("personal", [False, True])
def test_a_plan_by_hand_gives_the_events_and_matrices_worked_out_by_hand(personal: bool, tmp_path: Path) -> None:
    """Who is at which task in which round, when tasks end for a client and for all, every accuracy, and the weights."""
    scenario = planned(*(["model.personal=[head]"] if personal else []))
    results = run(scenario, tmp_path / "run")
    events, replayed = journal(tmp_path / "run"), Replayed(scenario)
    assert [(event["event"], event.get("round", 0)) for event in events] == expected_events(personal)
    by_kind: dict[str, list[Plain]] = {event["event"]: [] for event in events}
    for event in events:
        by_kind[event["event"]].append(event)
    found = {event["round"]: dict(zip(event["clients"], event["tasks"], strict=True)) for event in by_kind["round"]}
    assert found == AT_WORK
    assert {event["round"]: event["tasks"] for event in by_kind["task_end"]} == ENDED
    ends = by_kind["client_task_end"]
    assert {event["round"]: dict(zip(event["clients"], event["tasks"], strict=True)) for event in ends} == LEFT
    accuracies = {
        (client, event["round"]): row
        for event in ends
        for client, row in zip(event["clients"], event["accuracy"], strict=True)
    }
    assert accuracies == replayed.own
    assert results["weights_sha256"] == digest(replayed.tensors)
    assert results["clients"]["matrices"] == {
        str(client): {
            "tasks": tasks,
            "ended": tasks,
            "matrix": [[replayed.own[client, round][task] for task in tasks] for round in rounds],
        }
        for client, (tasks, rounds) in OWN.items()
    }
    last = [
        np.mean([replayed.own[client, rounds[-1]][task] for task in tasks]) for client, (tasks, rounds) in OWN.items()
    ]
    assert results["clients"]["acc"]["mean"] == pytest.approx(np.mean(last), abs=1e-12)
    assert (results["task_order"], results["task_end_rounds"]) == (([], []) if personal else ([2, 0, 1], [2, 4, 4]))


def test_the_global_matrix_has_a_row_for_every_task_that_ended(tmp_path: Path) -> None:
    """Rows are the ends of tasks 2, 0, 1 (after rounds 2, 4, 4), columns the same tasks; the last two are one model."""
    results = run(planned(), tmp_path / "run")
    evaluations = {
        event["round"]: event["accuracy"] for event in journal(tmp_path / "run") if event["event"] == "evaluation"
    }
    assert sorted(evaluations) == [0, 2, 4]
    assert results["accuracy_matrix"] == [[evaluations[round][task] for task in (2, 0, 1)] for round in (2, 4, 4)]
    started = [event["started"] for event in journal(tmp_path / "run") if event["event"] == "evaluation"]
    assert started == [[False] * 3, [True] * 3, [True] * 3]


def test_clients_are_at_different_tasks_in_one_round(tmp_path: Path) -> None:
    """The shipped asynchronous scenario: events.jsonl shows rounds whose clients train on several tasks."""
    small = ("stream.schedule.rounds_per_task=3", "stream.schedule.start=2", "client.epochs=1", "engine.kind=inline")
    run(load("split-digits-async", small), tmp_path / "run")
    several = [len(set(event["tasks"])) for event in journal(tmp_path / "run") if event["event"] == "round"]
    assert max(several) >= 3


def position(client: int, visits: int) -> int:
    """Return how many of a client's tasks are over after so many visits."""
    ends = np.cumsum([rounds for _, rounds in STREAMS[client][1]])
    return int((ends <= visits).sum())


def test_participations_move_a_client_on(tmp_path: Path) -> None:
    """Two of three clients a round: a task lasts as many visits as the plan says, however many rounds that takes."""
    overrides = ("stream.schedule.clock=participations", "server.clients_per_round=2", "stream.schedule.rounds=12")
    results = run(planned(*overrides), tmp_path / "run")
    visits = dict.fromkeys(STREAMS, 0)
    waited = 0
    left: dict[int, dict[int, int]] = {}
    for event in (each for each in journal(tmp_path / "run") if each["event"] == "round"):
        round, asked = event["round"], dict(zip(event["clients"], event["tasks"], strict=True))
        there = [k for k, (start, stream) in STREAMS.items() if round > start and position(k, visits[k]) < len(stream)]
        assert set(asked) <= set(there)
        assert len(asked) == min(2, len(there))
        waited += len(there) > 2
        for client, task in asked.items():
            before = position(client, visits[client])
            assert task == STREAMS[client][1][before][0]
            visits[client] += 1
            if position(client, visits[client]) > before:
                left.setdefault(round, {})[client] = task
    assert waited >= 2, "nobody ever had to wait: the clock made no difference"
    assert visits == {client: sum(rounds for _, rounds in stream) for client, (_, stream) in STREAMS.items()}
    ends = [event for event in journal(tmp_path / "run") if event["event"] == "client_task_end"]
    assert {event["round"]: dict(zip(event["clients"], event["tasks"], strict=True)) for event in ends} == left
    assert results["cost"]["client_updates"] == 4 + 3 + 3
    assert sorted(results["task_order"]) == [0, 1, 2]


def test_an_online_stream_shows_every_item_once(tmp_path: Path) -> None:
    """Each visit trains on its own slice: steps of every round by hand, and each client has seen its items once."""
    run(planned("stream.schedule.online=true"), tmp_path / "run")
    count = api.load(tmp_path / "run").stream().train.count
    expected = []
    for round, at in AT_WORK.items():
        steps = 0
        for client, task in at.items():
            start, stream = STREAMS[client]
            begins = np.cumsum([0, *(rounds for _, rounds in stream)])
            place = [each for each, _ in stream].index(task)
            n, length, slot = count[client, task], stream[place][1], round - 1 - start - begins[place]
            steps += -(-(n * (slot + 1) // length - n * slot // length) // 5)
        expected.append(steps)
    assert [event["steps"] for event in journal(tmp_path / "run") if event["event"] == "round"] == expected
    seen: dict[int, int] = {}
    for path in sorted((tmp_path / "run" / "state").glob("*.pack")):
        clients, records = read_pack(path)
        seen |= dict(zip(clients.tolist(), records["seen"].tolist(), strict=True))
    assert seen == {k: sum(int(count[k, task]) for task, _ in stream) for k, (_, stream) in STREAMS.items()}


@pytest.mark.parametrize("clock", ["rounds", "participations"])
def test_an_online_stream_slower_than_its_items_leaves_rounds_out(clock: str, tmp_path: Path) -> None:
    """12 items of a task in 20 rounds: twelve visits with one item each, in the other rounds nobody is asked."""
    schedule = f"stream.schedule={{kind: synchronous, rounds_per_task: 20, online: true, clock: {clock}}}"
    results = run(tiny(schedule), tmp_path / "run")
    assert api.load(tmp_path / "run").stream().train.count.tolist() == [[12, 12]] * 4
    assert (results["cost"]["client_updates"], results["cost"]["steps"]) == (4 * 24, 4 * 24)
    idle = [event["round"] for event in journal(tmp_path / "run") if event["event"] == "round" and not event["updates"]]
    assert len(idle) == 40 - 24
    assert results["task_order"] == [0, 1]
    gaps = [later - earlier for earlier, later in pairwise(idle)]
    assert (max(gaps) > 1) is (clock == "rounds"), "rounds: idle now and then; participations: only at the end"
