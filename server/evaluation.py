"""What is measured and when: the global model on central test items, leavers of a task on their own ones."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fedcl import withholding
from fedcl.metrics import shares
from fedcl.orders import EvaluateOrder, EvaluateReply, Ints
from server import withheld
from server.acceptance import Known
from server.exchange import Size
from server.federation import Federation, round_to
from server.state import State


def evaluate(
    federation: Federation, state: State, round: int, ended: Sequence[int], leavers: tuple[Ints, Ints]
) -> State:
    """Measure what is due after a round, write it down, and return the state with the round closed."""
    every, last = federation.scenario.evaluate.every, round == federation.stream.timeline.rounds
    accuracy: list[float | None] | None = None
    if not federation.personal and (ended or last or (every and round % every == 0)):
        event = measured(federation, state, round)
        federation.journal.write(event)
        accuracy = event["accuracy"]
    over = state.ended.copy()
    if ended:
        over[list(ended)] = True
        federation.journal.write({"event": "task_end", "round": round, "tasks": list(ended), "accuracy": accuracy})
    _evaluate_leavers(federation, state, round, leavers)
    return replace(
        state, round=round, ended=over, offset=federation.journal.offset, seconds=federation.seconds_so_far()
    )


def measured(federation: Federation, state: State, round: int) -> dict[str, Any]:
    """Return the evaluation event of the global model."""
    began = time.monotonic()
    if federation.stream.dataset.elsewhere:
        accuracy, loss = _pooled(federation, state, round), None
    else:
        accuracy, loss = federation.judge.accuracy(state.weights, federation.classifier(state))
    seconds = round_to(time.monotonic() - began)
    return {
        "event": "evaluation", "round": round, "accuracy": accuracy, "loss": loss, "started": state.begun.tolist(),
        "seconds": seconds,
    }  # fmt: skip


def _pooled(federation: Federation, state: State, round: int) -> list[float | None]:
    """Return the accuracy on each task's test items of all watched clients that are there, taken together."""
    clients = federation.watched[federation.roster.reachable[federation.watched]]
    counts = np.zeros((2, len(federation.stream.tasks)), np.int64)
    for right, items in _own(federation, state, max(1, round), clients).values():
        counts += right, items
    return shares(*counts)


def _evaluate_leavers(federation: Federation, state: State, round: int, leavers: tuple[Ints, Ints]) -> None:
    """Ask the clients that left a task for the accuracy on their own test items of every task."""
    kept = np.isin(leavers[0], federation.watched) & federation.roster.reachable[leavers[0]]
    clients, tasks = leavers[0][kept], leavers[1][kept]
    if not len(clients):
        return
    found = {client: shares(*counts) for client, counts in _own(federation, state, round, clients).items()}
    rows = [row for row, client in enumerate(clients.tolist()) if client in found]
    federation.journal.write({
        "event": "client_task_end", "round": round, "clients": clients[rows].tolist(), "tasks": tasks[rows].tolist(),
        "accuracy": [found[int(client)] for client in clients[rows]],
    })  # fmt: skip


def _own(federation: Federation, state: State, round: int, clients: Ints) -> dict[int, tuple[Ints, Ints]]:
    """Return right predictions and test items, (tasks,) each, by client; who does not answer is left out."""
    found, width = dict[int, tuple[Ints, Ints]](), len(federation.stream.tasks)
    orders = _orders(federation, state, round, clients)
    known = Known.of_tests(federation.stream, clients, federation.scenario.evaluate.samples)
    problem, size = partial(_problem, tasks=width, known=known), Size(each=2 * width)
    for _, reply in federation.ask("evaluate", orders, state, EvaluateReply, problem, size):
        withheld.tell(federation, round, reply)
        found |= zip(reply.clients.tolist(), zip(reply.correct, reply.items, strict=True), strict=True)
    return found


def _orders(federation: Federation, state: State, round: int, clients: Ints) -> list[EvaluateOrder]:
    """Return one order a cohort."""
    classifier = {name: each.numpy() for name, each in federation.classifier(state).items()}
    return [
        EvaluateOrder(
            round=round, cohort=number, clients=clients[rows], **federation.records(state, clients[rows]),
            weights=np.zeros(0, np.float32), classifier=classifier,
        )
        for number, rows in enumerate(federation.cohorts(clients))
    ]  # fmt: skip


def _problem(reply: EvaluateReply, tasks: int, known: Known) -> str | None:
    """Return why counts cannot be, None if they can."""
    if reply.correct.shape[1] != tasks or reply.items.shape[1] != tasks:
        return f"it does not have {tasks} tasks"
    wrong = ((reply.correct < 0) | (reply.correct > reply.items)).any()
    if wrong:
        return "right predictions that cannot be"
    whole = dict(zip(known.clients.tolist(), known.columns.get("items", ()), strict=True))
    known, why = known.less("items", reply.withheld, lambda client, least: withholding.of_tests(whole[client], least))
    return why or known.problem(reply.clients, {"items": reply.items})
