"""What is measured and when: the global model on central test items, leavers of a task on their own ones."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Message

from fedcl import wire
from fedcl.orders import ClientError, EvaluateOrder, EvaluateReply, Ints
from fedcl.source import sample
from server.exchange import exchange, silence
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
    accuracy, loss = federation.judge.accuracy(state.weights, federation.classifier(state))
    seconds = round_to(time.monotonic() - began)
    return {
        "event": "evaluation", "round": round, "accuracy": accuracy, "loss": loss, "started": state.begun.tolist(),
        "seconds": seconds,
    }  # fmt: skip


def _evaluate_leavers(federation: Federation, state: State, round: int, leavers: tuple[Ints, Ints]) -> None:
    """Ask the clients that left a task for the accuracy on their own test items of every task."""
    settings = federation.scenario.evaluate
    everyone = np.arange(federation.scenario.stream.clients)
    watched = sample(everyone, settings.clients, federation.scenario.seed)
    kept = np.isin(leavers[0], watched) & federation.roster.reachable[leavers[0]]
    clients, tasks = leavers[0][kept], leavers[1][kept]
    if not len(clients):
        return
    parts = [clients[rows] for rows in federation.cohorts(clients)]
    messages = _messages(federation, state, round, parts)
    found: dict[int, list[float | None]] = {}
    replies = exchange(federation.grid, messages, federation.scenario.server.deadline, federation.stop)
    for part, message in zip(parts, replies, strict=True):
        reply = _reply(federation, round, part, message)
        if reply is not None:
            for client, correct, items in zip(reply.clients, reply.correct.tolist(), reply.items.tolist(), strict=True):
                found[int(client)] = [c / n if n else None for c, n in zip(correct, items, strict=True)]
    rows = [row for row, client in enumerate(clients.tolist()) if client in found]
    federation.journal.write({
        "event": "client_task_end", "round": round, "clients": clients[rows].tolist(), "tasks": tasks[rows].tolist(),
        "accuracy": [found[int(client)] for client in clients[rows]],
    })  # fmt: skip


def _messages(federation: Federation, state: State, round: int, parts: Sequence[Ints]) -> list[Message]:
    weights, messages = federation.pack_weights(state), []
    classifier = {name: each.numpy() for name, each in federation.classifier(state).items()}
    for number, clients in enumerate(parts):
        packs, rows, folder = federation.records(state, clients)
        order = EvaluateOrder(
            round=round, cohort=number, clients=clients, packs=packs, rows=rows, folder=folder,
            weights=np.zeros(0, np.float32), classifier=classifier,
        )  # fmt: skip
        node = federation.roster.ids[federation.roster.nodes[clients[0]]]
        messages.append(Message(wire.encode(order, weights, config=federation.text), node, "evaluate"))
    return messages


def _reply(federation: Federation, round: int, clients: Ints, message: Message | None) -> EvaluateReply | None:
    """Return the reply if it fits what was asked; else log an error for each client."""
    problem, traceback = "", ""
    if message is None or message.has_error():
        problem, traceback = silence(message)
    else:
        try:
            reply: EvaluateReply = wire.decode(message.content)
            shape = (len(clients), len(federation.stream.tasks))
            fits = isinstance(reply, EvaluateReply) and reply.correct.shape == shape and reply.items.shape == shape
            if fits and (reply.clients == clients).all() and (reply.correct <= reply.items).all():
                return reply
            problem = "the answer does not fit what was asked"
        except wire.BadMessage as error:
            problem = str(error)
    for client in clients.tolist():
        federation.client_error(round, ClientError(client=client, error=problem, traceback=traceback))
    return None
