"""Messages out, replies in, in the order of the cohorts, one at a time, so that sums are formed while others train."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from fedcl import wire
from fedcl.fingerprint import fingerprint
from fedcl.interrupt import StopRequest
from fedcl.orders import ClientError, Ints, Order, Reply

R = TypeVar("R", bound=Reply)
POLL = 0.1  # seconds between looks at a grid that does not wait by itself


@dataclass(frozen=True)
class Roster:
    """Which node hosts each client. Nodes are numbered by their lowest client: Flower's ids are random."""

    ids: tuple[int, ...]  # Flower's node ids, by number
    nodes: Ints  # (clients,) number of the node, -1: no node hosts the client now

    @property
    def reachable(self) -> np.ndarray:
        """(clients,) bool: hosted by a node."""
        return self.nodes >= 0


def exchange(grid: Grid, messages: Sequence[Message], deadline: float, stop: StopRequest) -> Iterator[Message | None]:
    """Send messages and yield their replies in the order of the messages; None for one that did not come in time.

    Args:
        deadline: seconds that all replies together may take.
    """
    ids = list(grid.push_messages(messages))
    place = {message_id: number for number, message_id in enumerate(ids)}
    end, here, following = time.monotonic() + deadline, dict[int, Message](), 0
    while following < len(ids):
        stop.check()
        if following in here:
            yield here.pop(following)
            following += 1
            continue
        waiting = [message_id for message_id, number in place.items() if number >= following and number not in here]
        fresh = list(grid.pull_messages(waiting))
        here |= {place[reply.metadata.reply_to_message_id]: reply for reply in fresh}
        if not fresh and time.monotonic() > end:
            yield None
            following += 1
        elif not fresh:
            time.sleep(POLL)


def silence(message: Message | None) -> tuple[str, str]:
    """Return why a message brings no reply (did not come, or is an error) and its traceback, if any."""
    if message is None:
        return "no answer within server.deadline", ""
    reason = message.error.reason or ""
    return (reason.strip().splitlines() or ["no reason given"])[-1], reason


def post(kind: str, order: Order, node: int, weights: ArrayRecord, config: str) -> Message:
    """Return an order as the message of a kind to a node, by Flower's id; messages of an exchange share the weights."""
    return Message(wire.encode(order, weights, config=config), node, kind)


def taken(
    message: Message | None, order: Order, kind: type[R], problem: Callable[[R], str | None]
) -> tuple[R | None, list[ClientError]]:
    """Return the reply to an order if it can be taken, and an error for each client that has no part in it.

    Args:
        message: None: it did not come in time.
        kind: what the reply must be.
        problem: why it cannot be taken although it is of that kind and fits the order; None: it can.
    """
    refused, traceback = "", ""
    if message is None or message.has_error():
        refused, traceback = silence(message)
    else:
        try:
            reply = wire.decode(message.content)
            refused = _misfit(reply, order, kind) or problem(reply) or ""
            if not refused:
                return reply, reply.errors
        except wire.BadMessage as error:
            refused = str(error)
        refused = f"answer refused: {refused}"
    return None, [ClientError(client=each, error=refused, traceback=traceback) for each in order.clients.tolist()]


def _misfit(reply: Any, order: Order, kind: type[Reply]) -> str | None:
    """Return why a reply is none to this order, None if it is one; it may leave clients out."""
    if not isinstance(reply, kind) or (reply.round, reply.cohort) != (order.round, order.cohort):
        return f"it is not the answer of cohort {order.cohort} in round {order.round}"
    if not np.isin(reply.clients, order.clients).all() or len(np.unique(reply.clients)) != len(reply.clients):
        return "it covers clients that were not asked, or one twice"
    return None


def call_the_roll(
    grid: Grid, config: str, clients: int, stop: StopRequest, refused: Callable[[str], None], patience: float = 60.0
) -> Roster:
    """Ask every node which clients it hosts; wait up to `patience` seconds until all clients have a node.

    Args:
        refused: is told in a sentence of each node that is not asked to work.
    """
    hosts: dict[int, Ints] = {}
    end = time.monotonic() + patience
    while True:
        fresh = [node for node in grid.get_node_ids() if node not in hosts]
        messages = [Message(wire.config_of(config), node, "query.hello") for node in fresh]
        for node, reply in zip(fresh, exchange(grid, messages, patience, stop), strict=True):
            if reply is not None and not reply.has_error():
                hosts[node], why = introduced(reply, config)
                if why:
                    refused(why)
        if sum(len(each) for each in hosts.values()) >= clients or time.monotonic() > end:
            return _roster(hosts, clients)
        stop.check()
        time.sleep(POLL)


def introduced(hello: Message, config: str) -> tuple[Ints, str]:
    """Return the clients that a node may work for, by its answer to `query.hello`, and why there are none, if so."""
    none = np.zeros(0, np.int64)
    try:
        clients, theirs, own = wire.hosted(hello.content), wire.text(hello.content, "fingerprint"), fingerprint(config)
    except wire.BadMessage as error:
        return none, f"node {hello.metadata.src_node_id} is left out: {error}"
    if theirs == own:
        return clients, ""
    who = f"the node of clients {', '.join(map(str, clients[:20].tolist()))}{', ...' * (len(clients) > 20)}"
    what = f"its fingerprint {theirs[:12]!r} is not the server's {own[:12]!r}"
    return none, f"{who} is left out: {what}; install the same fedcl, and the same packages of one's own, on both"


def _roster(hosts: dict[int, Ints], clients: int) -> Roster:
    ids = sorted((node for node, own in hosts.items() if len(own)), key=lambda node: int(hosts[node].min()))
    nodes = np.full(clients, -1, np.int64)
    for number, node in enumerate(ids):
        own = hosts[node]
        nodes[own[(own >= 0) & (own < clients)]] = number
    return Roster(tuple(ids), nodes)
