"""Traces inside local training: a visit against plain torch, figures by hand, runs that they leave as they are."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from torch.nn.functional import cross_entropy

from clients.trace import met_cells, trace
from fedcl import testing, wire
from fedcl.config import Plain
from fedcl.engine.inline import InlineGrid
from fedcl.orders import Ints, TraceOrder, TraceReply
from fedcl.results import summarise
from tests.federations import Clients, hashes, journal, run, tiny
from tests.test_failures import DATA

PRECISE = ("model.dtype=float64", "client.epochs=2")


def order_for(own: Clients, clients: list[int], task: int, clock: int) -> TraceOrder:
    k = len(clients)
    return TraceOrder(
        round=clock + 1, cohort=0, clients=np.array(clients), tasks=np.full(k, task), clocks=np.full(k, clock),
        packs=[""] * k, rows=np.zeros(k, np.int64), folder="", weights=own.initial,
    )  # fmt: skip


def plain_visit(own: Clients, client: int, task: int, round: int, cells: list[Ints]) -> list[list[int]]:
    """Train with SGD in plain torch; return the right predictions of each task before, and after every step."""
    module, data = own.model(), own.site.stream.dataset
    parameters = list(module.parameters())

    def count() -> list[int]:
        with torch.no_grad():
            found = [module(torch.from_numpy(data.test_x[cell]).double()).argmax(1).numpy() for cell in cells]
        return [int((each == data.test_y[cell]).sum()) for each, cell in zip(found, cells, strict=True)]

    points = [count()]
    for epoch in range(2):
        for items in np.split(own.shuffled(client, task, round, epoch), [5, 10]):
            x, y = own.shown(items)
            gradients = torch.autograd.grad(cross_entropy(module(x), y), parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter -= 0.1 * gradient
            points.append(count())
    return points


# Visits


@pytest.mark.parametrize(("every", "steps"), [(1, [0, 1, 2, 3, 4, 5, 6]), (4, [0, 4, 6]), (3, [0, 3, 6]), (9, [0, 6])])
def test_a_visit_is_measured_on_its_way(every: int, steps: list[int]):
    """Two clients, six steps of plain SGD on the second task: every count at the start, each N-th step and the end."""
    own = Clients.of(tiny(*PRECISE, f"evaluate.trace={every}"))
    reply = trace(own.site, order_for(own, [3, 1], 1, 2), own)
    assert (reply.clients.tolist(), reply.points.tolist(), reply.errors) == ([3, 1], [len(steps)] * 2, [])
    assert reply.steps.tolist() == steps * 2
    for row, client in enumerate((3, 1)):
        cells = [own.site.stream.test.cell(client, task) for task in (0, 1)]
        assert reply.items[row].tolist() == [len(cell) for cell in cells]
        points = plain_visit(own, client, 1, 3, cells)
        assert reply.right[row * len(steps) :][: len(steps)].tolist() == [points[step] for step in steps]


def test_nothing_is_kept_and_the_visit_that_follows_is_the_same():
    """Memory, personal head, optimiser: records and answers after a trace are those without one, to the bit."""
    settings = (*PRECISE, "client.method=derpp", "model.personal=[head]", "client.optimizer={name: adam, keep: true}")
    traced, plain = (Clients.of(tiny(*settings, f"evaluate.trace={every}")) for every in (2, 0))
    for round, task in enumerate((0, 0, 1), start=1):
        held = {client: record.copy() for client, record in traced.held.items()}
        trace(traced.site, order_for(traced, [0, 2], task, round - 1), traced)
        assert held.keys() == traced.held.keys()
        assert all((held[client] == traced.held[client]).all() for client in held)
        totals = [
            own.visit(own.initial, [0, 2], round=round, task=task, clock=round - 1).total for own in (traced, plain)
        ]
        assert (totals[0] == totals[1]).all()
    assert all((traced.held[client] == plain.held[client]).all() for client in (0, 2))


def test_only_tasks_that_the_client_has_met_are_measured():
    """By its own clock: the first task alone in rounds 1 and 2, both from round 3 on; at most `samples` items each."""
    site = Clients.of(tiny("evaluate.samples=3")).site
    sizes = [[len(cell) for cell in met_cells(site, 2, clock)] for clock in range(4)]
    assert sizes == [[3, 0], [3, 0], [3, 3], [3, 3]]


def test_a_client_that_cannot_be_traced_is_named():
    scenario = tiny(DATA % "label", "evaluate.trace=1")
    own = Clients.of(scenario)
    (bad,) = (client for client in range(4) if 3 in own.site.stream.train.cell(client, 1))
    others = [client for client in range(4) if client != bad]
    reply = trace(own.site, order_for(own, [0, 1, 2, 3], 1, 2), own)
    assert (reply.clients.tolist(), [each.client for each in reply.errors]) == (others, [bad])
    assert "_traced" in reply.errors[0].traceback


# Figures


def traced(round: int, task: int, *accuracy: list[float | None], client: int = 0) -> Plain:
    steps = list(range(len(accuracy)))
    event = {"event": "client_trace", "round": round, "client": client, "task": task}
    return {**event, "steps": steps, "accuracy": list(accuracy)}


def figures(*events: Plain, trace: int = 7, **start: Any) -> Plain:
    found = summarise({"evaluate": {"trace": trace}}, [{"event": "start", "clients": 1, **start}, *events])
    return {**found["clients"]["trace"], "absent": {k: v for k, v in found["absent"].items() if "trace" in k}}


def test_figures_by_hand():
    """Task 0 is learnt at .8; on task 1 it falls to .2 and is .6 at the end, where task 1 is .9."""
    found = figures(
        traced(1, 0, [0.1, None], [0.5, None]), traced(2, 0, [0.4, None], [0.8, None]),
        traced(3, 1, [0.7, 0.0], [0.2, 0.6], [0.6, 0.9]),
    )  # fmt: skip
    assert found["absent"] == {}
    assert (found["every_steps"], found["window"], found["clients"]) == (7, 10, 1)
    assert found["min_acc"] == pytest.approx(0.2)
    assert found["wc_acc"] == pytest.approx(0.5 * 0.9 + 0.5 * 0.2)
    assert found["wf"] == pytest.approx((0.6 - 0.3) / 2)  # .8 -> .2, and at least a rise of .3 on the other
    assert found["wp"] == pytest.approx((0.7 + 0.9) / 2)


def test_figures_are_means_over_clients_and_tasks_come_back():
    """Client 1 meets 0, 1, 0: task 0 is learnt at the end of its first stretch, task 1 is the current one."""
    events = [
        traced(1, 0, [0.4, None], [0.6, None], client=1), traced(2, 1, [0.6, 0.0], [0.3, 0.8], client=1),
        traced(3, 0, [0.5, 0.7], [0.9, 0.4], client=1), traced(1, 0, [0.0, None], [1.0, None], client=5),
    ]  # fmt: skip
    found = figures(*events)
    assert found["clients"] == 2
    assert found["min_acc"] == pytest.approx(0.3)  # client 5 has no old task
    assert found["wc_acc"] == pytest.approx(((0.5 * 0.4 + 0.5 * 0.3) + 1.0) / 2)


def test_figures_that_cannot_be_are_absent_with_a_reason():
    found = figures(traced(1, 0, [0.1, None], [0.5, None]))
    assert (found["min_acc"], found["wc_acc"]) == (None, 0.5)
    assert found["absent"] == {"clients.trace.min_acc": "no traced client left a task"}
    assert set(figures()["absent"]) == {f"clients.trace.{name}" for name in ("min_acc", "wc_acc", "wf", "wp")}
    assert set(figures(joint=True)["absent"].values()) == {"joint training has no task ends"}
    nothing = figures(traced(1, 0, [None, None], [None, None]))
    assert (nothing["wc_acc"], nothing["wf"]) == (None, None)
    assert "trace" not in summarise({"evaluate": {"trace": 0}}, [{"event": "start", "clients": 1}])["clients"]


# Runs


def traces(folder: Path) -> list[Plain]:
    return [event for event in journal(folder) if event["event"] == "client_trace"]


@pytest.mark.parametrize("stack", [1, 2])
def test_a_run_is_the_same_with_and_without(stack: int, tmp_path: Path):
    """Two of four clients are watched, four rounds: eight traces, and the three hashes of a run without them."""
    settings = ("client.method=er", f"engine.stack={stack}", "evaluate.clients=2")
    found = [run(tiny(*settings, f"evaluate.trace={n}"), tmp_path / str(n)) for n in (0, 2)]
    assert hashes(found[0]) == hashes(found[1])
    assert traces(tmp_path / "0") == []
    events = traces(tmp_path / "2")
    assert len({event["client"] for event in events}) == 2
    assert [(event["round"], event["task"]) for event in events] == [
        (r, (r - 1) // 2) for r in (1, 1, 2, 2, 3, 3, 4, 4)
    ]
    assert {tuple(event["steps"]) for event in events} == {(0, 2, 3)}
    assert all(point[1] is None for event in events if event["task"] == 0 for point in event["accuracy"])
    assert found[1]["clients"]["trace"]["clients"] == 2
    assert all(0 <= found[1]["clients"]["trace"][name] <= 1 for name in ("min_acc", "wc_acc"))
    assert "trace" not in found[0]["clients"]
    names = ("min_acc", "wc_acc", "wf10", "wp10", "a_auc")
    assert found[1]["evaluation_every"] == 0
    assert set(names) <= set(found[1]["metrics"])


def test_figures_of_the_global_model_stand_beside_how_often_it_was_measured(tmp_path: Path):
    results = run(tiny("evaluate.every=1"), tmp_path)
    assert results["evaluation_every"] == 1
    assert all(results["metrics"][name] is not None for name in ("min_acc", "wc_acc", "wf10", "wp10", "a_auc"))


FAULTS: dict[str, tuple[Callable[[TraceReply], TraceReply], str]] = {
    "another cohort": (lambda r: replace(r, cohort=9), "it is not the answer of cohort 0 in round 2"),
    "too many": (lambda r: replace(r, right=r.right + 100), "right predictions that cannot be"),
    "one task": (lambda r: replace(r, right=r.right[:, :1]), "it does not have 2 tasks"),
    "no points": (
        lambda r: replace(r, points=r.points * 0, steps=r.steps[:0], right=r.right[:0]),
        "a client without a point, or with a step below 0",
    ),
    "short": (lambda r: replace(r, steps=r.steps[1:]), "'steps' and 'right' have 5 and 6 entries"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_trace_that_cannot_be_is_refused_and_the_run_goes_on(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Cohort 0 of round 2: its two clients are named; the other six of rounds 1 and 2, and those after, are there."""
    honest, (tamper, said) = InlineGrid._carry_out, FAULTS[fault]

    def carry_out(grid: InlineGrid, message: Message) -> Message:
        answer = honest(grid, message)
        if message.metadata.message_type == "query.trace":
            reply = wire.decode(answer.content)
            if (reply.round, reply.cohort) == (2, 0):
                answer.content = wire.encode(tamper(reply))
        return answer

    monkeypatch.setattr(InlineGrid, "_carry_out", carry_out)
    run(tiny("evaluate.trace=2"), tmp_path)
    errors = [event for event in journal(tmp_path) if event["event"] == "client_error"]
    assert [(event["round"], event["error"]) for event in errors] == [(2, f"answer refused: {said}")] * 2
    assert [event["round"] for event in traces(tmp_path)] == [1] * 4 + [2] * 2 + [3] * 4 + [4] * 4
    assert {event["failed"] for event in journal(tmp_path) if event["event"] == "round"} == {0}


def test_joint_training_is_not_traced(tmp_path: Path):
    results = run(tiny("evaluate.trace=1", "stream.joint=true"), tmp_path)
    assert traces(tmp_path) == []
    assert results["clients"]["trace"]["min_acc"] is None


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_workers_make_no_difference(tmp_path: Path):
    """Neither to the run nor to what is measured."""
    scenario = tiny("client.method=er", "evaluate.trace=1")
    testing.workers_make_no_difference(scenario, tmp_path)
    found = [sorted(map(str, traces(tmp_path / name))) for name in ("inline", "ray-1", "ray-2")]
    assert len(found[0]) == 16
    assert found[0] == found[1] == found[2]
