"""Task statistics from everyone who has data of a task, under the new global model, in an exchange of their own.

Who cannot be reached, or whose answer is refused, stays in `state.pending` and is asked again after the next round: a
statistic is counted exactly once for every client and task.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from flwr.app import Message

from fedcl import wire
from fedcl.answers import Answer, Layout, refusal
from fedcl.orders import ClientError, ConsolidateOrder, ConsolidateReply, Ints
from server.exchange import exchange
from server.federation import Federation
from server.state import State


def consolidate(
    federation: Federation, state: State, round: int, ended: Sequence[int], leavers: tuple[Ints, Ints]
) -> tuple[Answer | None, State]:
    """Ask for what is due, if the method asks everyone.

    Returns:
        The sum of the accepted statistics in float64 (None: nothing came in), and the state with what is still pending.
    """
    method, stream = federation.scenario.server.method, federation.stream
    if not method.task_answers or method.participants != "all" or federation.scenario.stream.joint:
        return None, state
    pending, layout = state.pending.copy(), federation.answer(method.task_answers)
    if method.when == "client":
        pending[leavers] = True
    else:
        pending[:, list(ended)] |= stream.own[:, list(ended)]
    pending &= stream.train.count > 0
    total, answered = torch.zeros(layout.size, dtype=torch.float64), 0
    for clients, tasks in _waves(pending & federation.roster.reachable[:, None]):
        parts = federation.cohorts(clients)
        messages = [_message(federation, state, round, n, clients[p], tasks[p]) for n, p in enumerate(parts)]
        replies = exchange(federation.grid, messages, federation.scenario.server.deadline, federation.stop)
        for part, message in zip(parts, replies, strict=True):
            reply = _accepted(federation, layout, round, clients[part], message)
            if reply is not None:
                total += torch.from_numpy(reply.total.copy())
                answered += len(reply.clients)
                pending[reply.clients, tasks[part][np.searchsorted(clients[part], reply.clients)]] = False
    state = replace(state, pending=pending)
    if answered:
        size = layout.size * total.element_size() * answered
        federation.journal.write({"event": "consolidation", "round": round, "clients": answered, "bytes_up": size})
    return (Answer(layout, total) if answered else None), state


def _waves(pending: np.ndarray) -> list[tuple[Ints, Ints]]:
    """Cut the pending pairs into lists in which every client comes once: (clients, tasks) each, ascending."""
    clients, tasks = np.nonzero(pending)
    nth = np.arange(len(clients)) - np.searchsorted(clients, clients)
    return [(clients[nth == n], tasks[nth == n]) for n in range(int(nth.max(initial=-1)) + 1)]


def _message(federation: Federation, state: State, round: int, number: int, clients: Ints, tasks: Ints) -> Message:
    method = federation.scenario.server.method
    packs, rows, folder = federation.records(state, clients)
    order = ConsolidateOrder(
        round=round, cohort=number, clients=clients, tasks=tasks, packs=packs, rows=rows, folder=folder,
        weights=np.zeros(0, np.float32), statistics=list(method.task_answers),
        shared={name: each.numpy() for name, each in method.task_shared(state.method).items()},
    )  # fmt: skip
    node = federation.roster.ids[federation.roster.nodes[clients[0]]]
    content = wire.encode(order, federation.pack_weights(state), config=federation.text)
    return Message(content, node, "query.consolidate")


def _accepted(
    federation: Federation, layout: Layout, round: int, clients: Ints, message: Message | None
) -> ConsolidateReply | None:
    """Return the reply if it can be added up; else log an error for each of its clients."""
    problem, traceback = "no answer within server.deadline", ""
    if message is not None and message.has_error():
        traceback = message.error.reason or ""
        problem = (traceback.strip().splitlines() or ["no reason given"])[-1]
    elif message is not None:
        try:
            reply: ConsolidateReply = wire.decode(message.content)
            fits = isinstance(reply, ConsolidateReply) and bool(np.isin(reply.clients, clients).all())
            distinct = fits and len(np.unique(reply.clients)) == len(reply.clients)
            refused = refusal(layout, torch.from_numpy(reply.total.copy())) if distinct else "it does not fit the order"
            if refused is None:
                for error in reply.errors:
                    federation.client_error(round, error)
                return reply
            problem = f"statistics refused: {refused}"
        except wire.BadMessage as error:
            problem = str(error)
    for client in clients.tolist():
        federation.client_error(round, ClientError(client=client, error=problem, traceback=traceback))
    return None
