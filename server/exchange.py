"""Messages out, replies in, in the order of the cohorts, one at a time, so that sums are formed while others train."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from fedcl import wire
from fedcl.interrupt import StopRequest
from fedcl.orders import Ints

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


def call_the_roll(grid: Grid, config: str, clients: int, stop: StopRequest, patience: float = 60.0) -> Roster:
    """Ask every node which clients it hosts; wait up to `patience` seconds until all clients have a node."""
    hosts: dict[int, Ints] = {}
    end = time.monotonic() + patience
    while True:
        fresh = [node for node in grid.get_node_ids() if node not in hosts]
        messages = [Message(wire.config_of(config), node, "query.hello") for node in fresh]
        for node, reply in zip(fresh, exchange(grid, messages, patience, stop), strict=True):
            if reply is not None and not reply.has_error():
                hosts[node] = wire.hosted(reply.content)
        if sum(len(each) for each in hosts.values()) >= clients or time.monotonic() > end:
            return _roster(hosts, clients)
        stop.check()
        time.sleep(POLL)


def _roster(hosts: dict[int, Ints], clients: int) -> Roster:
    ids = sorted((node for node, own in hosts.items() if len(own)), key=lambda node: int(hosts[node].min()))
    nodes = np.full(clients, -1, np.int64)
    for number, node in enumerate(ids):
        own = hosts[node]
        nodes[own[(own >= 0) & (own < clients)]] = number
    return Roster(tuple(ids), nodes)
