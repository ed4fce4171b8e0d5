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
from server.exchange import exchange, silence
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
    total, answered = torch.zeros(layout.size, dtype=torch.float64), 0
    for clients, tasks in _waves(pending & federation.roster.reachable[:, None]):
        parts = federation.cohorts(clients)
        messages = [_message(federation, state, round, n, clients[p], tasks[p]) for n, p in enumerate(parts)]
        replies = exchange(federation.grid, messages, federation.scenario.server.deadline, federation.stop)
        for part, message in zip(parts, replies, strict=True):
            reply = _accepted(federation, state, layout, round, clients[part], message)
            if reply is not None:
                total += torch.from_numpy(reply.total.copy())
                answered += len(reply.clients)
                came = reply.clients, tasks[part][np.searchsorted(clients[part], reply.clients)]
                pending[came], counted[came] = False, True
    if answered:
        size = layout.size * total.element_size() * answered
        event = {"event": "consolidation", "round": round, "clients": answered, "pending": int(pending.sum())}
        federation.journal.write({**event, "bytes_up": size})
    return (Answer(layout, total) if answered else None), replace(state, pending=pending, counted=counted)


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
    federation: Federation, state: State, layout: Layout, round: int, clients: Ints, message: Message | None
) -> ConsolidateReply | None:
    """Return the reply if it can be added up; else log an error for each of its clients."""
    problem, traceback = "", ""
    if message is None or message.has_error():
        problem, traceback = silence(message)
    else:
        try:
            reply: ConsolidateReply = wire.decode(message.content)
            fits = isinstance(reply, ConsolidateReply) and bool(np.isin(reply.clients, clients).all())
            distinct = fits and len(np.unique(reply.clients)) == len(reply.clients)
            refused = _refused(federation, state, layout, reply) if distinct else "it does not fit the order"
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


def _refused(federation: Federation, state: State, layout: Layout, reply: ConsolidateReply) -> str | None:
    """Return why the sum of a reply cannot be taken, None if it can."""
    total = torch.from_numpy(reply.total.copy())
    method: ServerMethod = federation.scenario.server.method
    return refusal(layout, total) or method.task_problem(state.weights, Answer(layout, total))
