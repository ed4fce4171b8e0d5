"""Who is there: nodes are greeted when they come, and struck off when they have gone."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedcl import foreign, wire
from fedcl.errors import FederationError
from fedcl.fingerprint import fingerprint
from fedcl.interrupt import StopRequest
from fedcl.journal import Journal
from fedcl.names import WARDS
from fedcl.orders import Ints, empty
from fedcl.real.nodes import Member
from server.exchange import silence
from server.names import Table, impostor, joined

POLL = 0.1  # seconds between looks at a grid that does not wait by itself
AGAIN = 10.0  # seconds until a node that failed to introduce itself is greeted again
Who = Callable[[int], Member | None]  # id of Flower's -> the node that has it


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


@dataclass(frozen=True, kw_only=True)
class Hello:
    """Which clients a node says it hosts: by their numbers, or by their names."""

    numbers: Ints = field(default_factory=empty)
    names: Sequence[str] = ()

    def __str__(self) -> str:
        """Return them, the first of many."""
        told = list(self.names) or self.numbers.tolist()
        return f"{', '.join(map(str, told[:20]))}{', ...' * (len(told) > 20)}"


@dataclass(kw_only=True)
class Roll:
    """The nodes of a grid, as they have introduced themselves."""

    grid: Grid
    config: str
    clients: int
    refused: Callable[[str], None]  # is told in a sentence, once, of each node that is not asked to work
    table: Table
    member: Who | None = None  # who has an id of Flower's; None: anybody may take part
    _hosts: dict[int, Ints] = field(default_factory=dict)  # node -> its clients; the one that came last stands last
    _asked: dict[str, int] = field(default_factory=dict)  # greeting -> node
    _later: dict[int, float] = field(default_factory=dict)  # node -> when it is greeted again
    _told: set[str] = field(default_factory=set)
    _joined: set[tuple[int, str]] | None = None  # clients, with their names, whose coming the journal tells of

    def look(self) -> Roster:
        """Greet who is new, hear who has answered, strike off who has gone."""
        there, now = set(self.grid.get_node_ids()), time.monotonic()
        self._hosts = {node: own for node, own in self._hosts.items() if node in there}
        self._asked = {greeting: node for greeting, node in self._asked.items() if node in there}
        known = {*self._hosts, *self._asked.values(), *(node for node, then in self._later.items() if then > now)}
        fresh = [node for node in sorted(there - known) if self._listed(node)]
        greetings = [Message(wire.config_of(self.config), node, "query.hello") for node in fresh]
        sent = zip(self.grid.push_messages(greetings) if greetings else [], fresh, strict=False)
        self._asked |= {greeting: node for greeting, node in sent if greeting is not None}
        heard: list[tuple[int, Hello]] = []
        while self._asked and (replies := list(self.grid.pull_messages(list(self._asked)))):
            for reply in replies:
                node = self._asked.pop(reply.metadata.reply_to_message_id)
                heard += [(node, hello) for hello in self._hear(node, reply)]
        for node, hello in sorted(heard, key=lambda each: bool(each[1].names)):  # numbers first: names avoid them
            proved = self.member(node) if self.member else None
            key = proved.key if proved else ""
            admit = self.table.admit_names(hello.names) if hello.names else self.table.admit_numbers(hello.numbers, key)
            self._hosts[node], why = admit
            for each in why:
                self._refuse(each)
        return roster(self._hosts, self.clients)

    def _listed(self, node: int) -> bool:
        """Say whether a node may take part, whatever it would name; a stranger is not even told what is run."""
        if self.member is None or self.member(node):
            return True
        # It may be registered at this moment: it is looked up again after a while.
        self._put_off(node, f"node {node} is left out: it is none of fedcl server nodes list")
        return False

    def _hear(self, node: int, reply: Message) -> list[Hello]:
        """Return what a node says, nothing if it may not take part."""
        if reply.has_error():
            reason, _, _ = silence(reply)
            return self._put_off(node, f"node {node} could not introduce itself: {reason}")
        hello, why = introduced(reply, self.config)
        if self.member:
            known = self.member(node)
            if known is None:  # it was taken out meanwhile
                return []
            if impostor(hello.names, known.key):
                why = f"node {known.name!r} is left out: it says that it has {hello.names[0]!r}, but its key's name is "
                why += repr(known.key)
        self._refuse(why)
        self._hosts[node] = empty()
        return [] if why else [hello]

    def _put_off(self, node: int, why: str) -> list[Hello]:
        self._later[node] = time.monotonic() + AGAIN
        self._refuse(why)
        return []

    def _refuse(self, why: str) -> None:
        if why and why not in self._told:
            self._told.add(why)
            self.refused(foreign.line(why))

    def announce(self, journal: Journal, round: int, found: Roster) -> None:
        """Write into the journal whose number is whose, once a client, where there is more to tell than the number.

        What a resumed run's journal has forgotten is written again, as the journal itself says.
        """
        if not self.table.given and not self.member:
            return
        if self._joined is None:
            told = [each for each in journal.events() if each["event"] == "joined"]
            self._joined = {(each["client"], each["name"]) for each in told}
        here = [(number, self.table.name(number)) for number in np.flatnonzero(found.reachable).tolist()]
        for number, name in [each for each in here if each not in self._joined]:
            member = self.member(found.ids[found.nodes[number]]) if self.member else None
            if name or member:
                journal.write(joined(round, number, name, member.name if member else ""))
                self._joined.add((number, name))

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


def roll_of(
    grid: Grid, config: str, clients: int, journal: Journal | None, member: Who | None, wards: int = WARDS
) -> Roll:
    """Return the roll of a run.

    Args:
        journal: where the nodes keep their clients' records; None: a simulation.
        member: tells who has an id of Flower's; None: anybody may take part.
        wards: how many clients one node may have at most.
    """
    table, refused = Table.of(journal.folder if journal else None, clients, wards), journal.error if journal else _fail
    return Roll(grid=grid, config=config, clients=clients, refused=refused, table=table, member=member)


def _fail(why: str) -> None:
    """In simulation there is no other node to wait for.

    Raises:
        FederationError: always.
    """
    raise FederationError(why)


def introduced(hello: Message, config: str) -> tuple[Hello, str]:
    """Return the clients that a node may work for, by its answer to `query.hello`, and why there are none, if so."""
    try:
        said = Hello(numbers=wire.hosted(hello.content), names=wire.introduced(hello.content))
        theirs, own = wire.text(hello.content, "fingerprint"), fingerprint(config)
    except wire.BadMessage as error:
        return Hello(), f"node {hello.metadata.src_node_id} is left out: {error}"
    if theirs == own:
        return said, ""
    what = f"its fingerprint {theirs[:12]!r} is not the server's {own[:12]!r}"
    how = "install the same fedcl, and the same packages of one's own, on both"
    return Hello(), f"the node of clients {said} is left out: {what}; {how}"


def roster(hosts: dict[int, Ints], clients: int) -> Roster:
    """Number nodes by their lowest client. A client that two nodes host is the last one's: the other was restarted."""
    owner = np.full(clients, -1, np.int64)
    for place, own in enumerate(hosts.values()):
        owner[own[(own >= 0) & (own < clients)]] = place
    places, lowest = np.unique(owner, return_index=True)
    places = places[np.argsort(lowest)]
    places = places[places >= 0]
    number, listed = np.full(len(hosts) + 1, -1, np.int64), list(hosts)  # -1 finds the last: nobody
    number[places] = np.arange(len(places))
    return Roster(tuple(listed[place] for place in places.tolist()), number[owner])
