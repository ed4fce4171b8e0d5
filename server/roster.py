"""Who is there: nodes are greeted when they come, and struck off when they have gone."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedcl import wire
from fedcl.fingerprint import fingerprint
from fedcl.interrupt import StopRequest
from fedcl.orders import Ints

POLL = 0.1  # seconds between looks at a grid that does not wait by itself
AGAIN = 10.0  # seconds until a node that failed to introduce itself is greeted again


@dataclass(frozen=True)
class Roster:
    """Which node hosts each client. Nodes are numbered by their lowest client: Flower's ids are random."""

    ids: tuple[int, ...]  # Flower's node ids, by number
    nodes: Ints  # (clients,) number of the node, -1: no node hosts the client now

    @property
    def reachable(self) -> NDArray[np.bool_]:
        """(clients,) bool: hosted by a node."""
        return self.nodes >= 0


def nobody(clients: int) -> Roster:
    """Return the roster before anybody has come."""
    return Roster((), np.full(clients, -1, np.int64))


@dataclass(kw_only=True)
class Roll:
    """The nodes of a grid, as they have introduced themselves."""

    grid: Grid
    config: str
    clients: int
    refused: Callable[[str], None]  # is told in a sentence, once, of each node that is not asked to work
    _hosts: dict[int, Ints] = field(default_factory=dict)  # node -> its clients; the one that came last stands last
    _asked: dict[str, int] = field(default_factory=dict)  # greeting -> node
    _later: dict[int, float] = field(default_factory=dict)  # node -> when it is greeted again
    _told: set[str] = field(default_factory=set)

    def look(self) -> Roster:
        """Greet who is new, hear who has answered, strike off who has gone."""
        there, now = set(self.grid.get_node_ids()), time.monotonic()
        self._hosts = {node: own for node, own in self._hosts.items() if node in there}
        self._asked = {greeting: node for greeting, node in self._asked.items() if node in there}
        known = {*self._hosts, *self._asked.values(), *(node for node, then in self._later.items() if then > now)}
        fresh = sorted(there - known)
        greetings = [Message(wire.config_of(self.config), node, "query.hello") for node in fresh]
        sent = zip(self.grid.push_messages(greetings) if greetings else [], fresh, strict=False)
        self._asked |= {greeting: node for greeting, node in sent if greeting is not None}
        while self._asked and (replies := list(self.grid.pull_messages(list(self._asked)))):
            for reply in replies:
                self._hear(self._asked.pop(reply.metadata.reply_to_message_id), reply)
        return roster(self._hosts, self.clients)

    def _hear(self, node: int, reply: Message) -> None:
        if reply.has_error():
            self._later[node] = time.monotonic() + AGAIN
            reason = (reply.error.reason or "no reason given").strip().splitlines()[-1]
            self._refuse(f"node {node} could not introduce itself: {reason}")
            return
        self._hosts[node], why = introduced(reply, self.config)
        if why:
            self._refuse(why)

    def _refuse(self, why: str) -> None:
        if why not in self._told:
            self._told.add(why)
            self.refused(why)

    def meet(
        self,
        wanted: Ints,
        least: int,
        stop: StopRequest,
        patience: float = 0.0,
        waiting: Callable[[int], None] = lambda here: None,
    ) -> Roster:
        """Wait until all `wanted` clients have a node; when `patience` (seconds) is over, until `least` of them have.

        Args:
            waiting: is told once how many have one, if it takes longer.

        Raises:
            Stopped: somebody asked for it.
        """
        end, told = time.monotonic() + patience, False
        while True:
            found = self.look()
            here = int(found.reachable[wanted].sum())
            over = time.monotonic() >= end
            if here == len(wanted) or (over and here >= least):
                return found
            if over and not told:
                told = True
                waiting(here)
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


def roster(hosts: dict[int, Ints], clients: int) -> Roster:
    """Number nodes by their lowest client. A client that two nodes host is the last one's: the other was restarted."""
    owner: dict[int, int] = {}
    for node, own in hosts.items():
        owner |= dict.fromkeys(own[(own >= 0) & (own < clients)].tolist(), node)
    ids = tuple(dict.fromkeys(owner[client] for client in sorted(owner)))
    number, nodes = {node: place for place, node in enumerate(ids)}, np.full(clients, -1, np.int64)
    nodes[list(owner)] = [number[node] for node in owner.values()]
    return Roster(ids, nodes)
