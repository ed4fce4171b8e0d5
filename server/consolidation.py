"""Task statistics from everyone who has data of a task, under the new global model, in an exchange of their own.

Who cannot be reached, or whose answer is refused, stays in `state.pending` and is asked again after the next round: a
statistic is counted exactly once for every client and task.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from fedcl import withholding
from fedcl.answers import Answer, Layout, borrowed
from fedcl.metrics import shares
from fedcl.orders import OWN_PARTS, ConsolidateOrder, ConsolidateReply, Ints
from server import withheld
from server.acceptance import Known, Rule, counts_problem, samples_problem, sum_problem
from server.exchange import Size
from server.federation import Federation
from server.methods import ServerMethod
from server.state import State


def consolidate(
    federation: Federation, state: State, round: int, ended: Sequence[int], leavers: tuple[Ints, Ints]
) -> tuple[Answer | None, State]:
    """Ask for what is due, if the method asks everyone.

    Returns:
        The sum of the accepted statistics in float64 (None: nothing came in), and the state with what is still pending.
    """
    method: ServerMethod = federation.scenario.server.method
    if not method.task_answers or method.participants != "all" or federation.scenario.stream.joint:
        return None, state
    wanted = method.asks(state.method, state.weights)
    state = _with_due(federation, state, wanted == "everything", ended, leavers)
    if wanted == "nothing":
        return None, state
    layout, pending, counted = federation.answer(method.task_answers), state.pending.copy(), state.counted.copy()
    total, answered, measured = torch.zeros(layout.size, dtype=torch.float64), 0, []
    for clients, tasks in _waves(pending & federation.roster.reachable[:, None]):
        orders = _orders(federation, state, round, clients, tasks)
        refused = partial(_refused, federation, state, layout, clients, tasks)
        for order, reply in federation.ask(
            "query.consolidate", orders, state, ConsolidateReply, refused, Size(layout.size)
        ):
            withheld.tell(federation, round, reply)
            total += borrowed(reply.total)
            answered += len(reply.clients)
            came = reply.clients, order.tasks[np.searchsorted(order.clients, reply.clients)]
            measured.append((*came, reply.table))
            pending[came], counted[came] = False, True
    if answered:
        size = layout.size * total.element_size() * answered
        event = {"event": "consolidation", "round": round, "clients": answered, "pending": int(pending.sum())}
        federation.journal.write({**event, "bytes_up": size})
        _report_clients(federation, round, measured)
    return (Answer(layout, total) if answered else None), replace(state, pending=pending, counted=counted)


def _report_clients(federation: Federation, round: int, measured: Sequence[tuple[Ints, Ints, dict[str, Any]]]) -> None:
    """Write down what clients could do after their own update, if they were measured."""
    parts = [(clients, tasks, table) for clients, tasks, table in measured if "correct/mission" in table]
    if not parts:
        return
    accuracy = {}
    for name in OWN_PARTS:
        right, items = (np.concatenate([t[f"{what}/{name}"] for _, _, t in parts]) for what in ("correct", "items"))
        accuracy[name] = shares(right, items)
    clients, tasks = (np.concatenate([part[at] for part in parts]).tolist() for at in (0, 1))
    federation.journal.write(
        {"event": "local", "round": round, "clients": clients, "tasks": tasks, "accuracy": accuracy}
    )


def _with_due(
    federation: Federation, state: State, again: bool, ended: Sequence[int], leavers: tuple[Ints, Ints]
) -> State:
    """Return the state in which everything that is due is pending; `again`: what has come in counts for nothing."""
    pending, stream = state.pending.copy(), federation.stream
    if federation.scenario.server.method.when == "client":
        pending[leavers] = True
    else:
        pending[:, list(ended)] |= stream.own[:, list(ended)]
    counted = np.zeros_like(state.counted) if again else state.counted
    pending |= state.counted & ~counted
    pending &= (stream.train.count > 0) & ~counted  # a task that is met again brings nothing new
    return replace(state, pending=pending, counted=counted)


def _waves(pending: np.ndarray) -> list[tuple[Ints, Ints]]:
    """Cut the pending pairs into lists in which every client comes once: (clients, tasks) each, ascending."""
    clients, tasks = np.nonzero(pending)
    nth = np.arange(len(clients)) - np.searchsorted(clients, clients)
    return [(clients[nth == n], tasks[nth == n]) for n in range(int(nth.max(initial=-1)) + 1)]


def _orders(federation: Federation, state: State, round: int, clients: Ints, tasks: Ints) -> list[ConsolidateOrder]:
    """Return one order a cohort."""
    method = federation.scenario.server.method
    shared = {name: each.numpy() for name, each in method.task_shared(state.method).items()}
    return [
        ConsolidateOrder(
            round=round, cohort=number, clients=clients[rows], tasks=tasks[rows],
            **federation.records(state, clients[rows]), weights=np.zeros(0, np.float32),
            statistics=list(method.task_answers), shared=shared,
        )
        for number, rows in enumerate(federation.cohorts(clients))
    ]  # fmt: skip


def _refused(
    federation: Federation, state: State, layout: Layout, clients: Ints, tasks: Ints, reply: ConsolidateReply
) -> str | None:
    """Return why the sum of a reply to who was asked cannot be taken, None if it can."""
    wrong = sum_problem(layout, reply.total, "float64") or counts_problem(reply.clients, reply.table, ("n",), {"n": 0})
    known, why = Known.of_cells(federation.stream, clients, tasks).less(
        "n", reply.withheld, _rule(federation, clients, tasks)
    )
    wrong = wrong or why or known.problem(reply.clients, reply.table)
    if wrong:
        return wrong
    total = borrowed(reply.total)
    if not len(reply.clients):
        return "a sum of no client's statistics that is not 0" if total.any() else None
    method: ServerMethod = federation.scenario.server.method
    answer = Answer(layout, total)
    problem = method.task_problem(state.weights, answer) or samples_problem(answer, reply.table["n"])
    return problem or _miscounted(reply.table)


def _rule(federation: Federation, clients: Ints, tasks: Ints) -> Rule:
    """Return what is to be expected of a client that withholds what rests on too few samples."""
    task = dict(zip(clients.tolist(), tasks.tolist(), strict=True))
    by_class = any(name in withholding.BY_CLASS for name in federation.scenario.server.method.task_answers)

    def rule(client: int, least: int) -> tuple[int, list[str]]:
        found = withholding.of_task(federation.stream, client, task[client], least, by_class=by_class)
        return len(found.items), found.withheld

    return rule


def _miscounted(table: dict[str, Any]) -> str | None:
    """Return why what clients say of their own accuracy cannot be; None: it can, or they say nothing."""
    names = [(f"correct/{part}", f"items/{part}") for part in OWN_PARTS]
    known = [name for pair in names for name in pair if name in table]
    if not known:
        return None
    if len(known) < 2 * len(names) or any(table[name].dtype != np.int64 for name in known):
        return "what the clients say of their own accuracy is not complete"
    wrong = any(((table[right] < 0) | (table[right] > table[items])).any() for right, items in names)
    return "right predictions that cannot be" if wrong else None
