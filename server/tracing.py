"""How the watched clients of a round go through their visits, in an exchange of its own, if `evaluate.trace` is set.

The figures are the clients' own: the global model changes between rounds only. Nothing that the run learns depends on
them; a trace that does not come, or cannot be, is named in the journal.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from fedcl.metrics import shares
from fedcl.orders import TraceOrder, TraceReply
from fedcl.plan import Cohort
from server import withheld
from server.exchange import Size
from server.federation import Federation
from server.state import State


def trace(federation: Federation, state: State, round: int, cohorts: Sequence[Cohort]) -> None:
    """Ask the watched clients of a round how their training will go, and write it down."""
    scenario, tasks = federation.scenario, len(federation.stream.tasks)
    if not scenario.evaluate.trace or scenario.stream.joint:
        return
    orders = list(_orders(federation, state, round, cohorts))
    problem, size = partial(_problem, tasks=tasks), Size(each=1 + tasks + _points(federation, orders) * (1 + tasks))
    for order, reply in federation.ask("query.trace", orders, state, TraceReply, problem, size):
        withheld.tell(federation, round, reply)
        _write(federation, order, reply)


def _points(federation: Federation, orders: Sequence[TraceOrder]) -> int:
    """Return the most measurements of a client: the first, every so many steps, the last."""
    client, every = federation.scenario.client, federation.scenario.evaluate.trace
    sizes = [federation.stream.sizes(each.clients, each.tasks, each.clocks).max() for each in orders]
    return 3 + (int(max(sizes, default=0)) // client.batch + 1) * client.epochs // every


def _orders(federation: Federation, state: State, round: int, cohorts: Sequence[Cohort]) -> Iterator[TraceOrder]:
    """Yield the training orders of a round, for its watched clients alone."""
    method = federation.scenario.server.method
    shared = {name: each.numpy() for name, each in method.shared(state.method).items()}
    for cohort in cohorts:
        own = np.isin(cohort.clients, federation.watched)
        if not own.any():
            continue
        clients = cohort.clients[own]
        yield TraceOrder(
            round=round, cohort=cohort.number, clients=clients, tasks=cohort.tasks[own], clocks=cohort.clocks[own],
            **federation.records(state, clients), weights=np.zeros(0, np.float32), shared=shared,
        )  # fmt: skip


def _problem(reply: TraceReply, tasks: int) -> str | None:
    """Return why a trace cannot be, None if it can."""
    if reply.items.shape[1] != tasks or reply.right.shape[1] != tasks:
        return f"it does not have {tasks} tasks"
    if (reply.points < 1).any() or (reply.steps < 0).any():
        return "a client without a point, or with a step below 0"
    wrong = (reply.right < 0).any() or (reply.right > np.repeat(reply.items, reply.points, axis=0)).any()
    return "right predictions that cannot be" if wrong else None


def _write(federation: Federation, order: TraceOrder, reply: TraceReply) -> None:
    """Write one event a client: an accuracy for each point and task, None for a task not met or without test items."""
    task, ends = dict(zip(order.clients.tolist(), order.tasks.tolist(), strict=True)), reply.points.cumsum()
    for row, client in enumerate(reply.clients.tolist()):
        part = slice(ends[row] - reply.points[row], ends[row])
        federation.journal.write({
            "event": "client_trace", "round": order.round, "client": client, "task": task[client],
            "steps": reply.steps[part].tolist(),
            "accuracy": [shares(right, reply.items[row]) for right in reply.right[part]],
        })  # fmt: skip
