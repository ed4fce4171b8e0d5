"""Which number each client's name has in a run: the lowest that is free, for good, on the disk before it is used.

Numbers index everything (shares of data, keys, records); names come from the nodes (`fedcl.names`). The run directory's
file `clients.json` holds the table, and with it the numbers that came without a name, so that a name that comes while
their node is away does not take them.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fedcl import names
from fedcl.journal import Event
from fedcl.names import WARDS
from fedcl.orders import Ints
from fedcl.real import numbers
from fedcl.real.numbers import FILE, Numbers


def with_lowest(given: Mapping[str, int], fresh: Iterable[str], taken: Collection[int], clients: int) -> dict[str, int]:
    """Return the table with each fresh name at the lowest number that is free; those for which none is are left out."""
    free = sorted(set(range(clients)) - set(given.values()) - set(taken))
    return {**given, **dict(zip((name for name in fresh if name not in given), free, strict=False))}


@dataclass(kw_only=True)
class Table:
    """The clients of a run as they have come, by name or by a number of their own."""

    clients: int
    folder: Path | None = None  # None: nothing is kept (simulation)
    wards: int = WARDS
    held: Numbers = field(default_factory=Numbers)

    @staticmethod
    def of(folder: Path | None, clients: int, wards: int = WARDS) -> "Table":
        """Return the table of a run directory, an empty one if there is none yet; `folder` None: of a simulation.

        Raises:
            FederationError: the file is damaged.
        """
        held = numbers.read(folder, clients) if folder else Numbers()
        return Table(clients=clients, folder=folder, wards=wards, held=held)

    @property
    def given(self) -> Mapping[str, int]:
        """The number of each name."""
        return self.held.names

    def name(self, number: int) -> str:
        """Return the name of a number, "" where it has none."""
        return next((name for name, given in self.given.items() if given == number), "")

    def names(self, numbers: Ints) -> list[str]:
        """Return the names of clients for an order: nothing where nobody has one."""
        if not self.given:
            return []
        own = {number: name for name, number in self.given.items()}
        found = [own.get(number, "") for number in numbers.tolist()]
        return found if any(found) else []

    def admit_numbers(self, asked: Ints, key: str = "") -> tuple[Ints, list[str]]:
        """Take in clients that come by their numbers; return those that may, and why the others may not.

        Args:
            key: the name of their node by the key that it has proved to have, "" where nodes prove nothing: a number
                belongs to the key that came with it first.
        """
        own, fixed, why = [each for each in asked.tolist() if 0 <= each < self.clients], dict(self.held.fixed), []
        named = [each for each in own if self.name(each)]
        others = [each for each in own if fixed.get(each, "") not in ("", key)]
        if named:
            whose = f"client {named[0]} has come by the name {self.name(named[0])!r}"
            why.append(f"clients {named[:10]} of a node that knows them by number are left out: {whose} ({FILE})")
        if others:
            whose = f"client {others[0]} is that of the node with the key {fixed[others[0]]}"
            why.append(f"clients {others[:10]} of {_who(key)} are left out: {whose} ({FILE})")
        own = [each for each in own if each not in named and each not in others]
        free = self._free(key) if key else self.clients
        fresh = [each for each in own if not key or fixed.get(each) != key]
        over = fresh[free:]
        if over:
            why.append(f"clients {over[:10]} of {_who(key)} are left out: {self._most()}")
        own = [each for each in own if each not in over]
        self._keep(replace(self.held, fixed=fixed | dict.fromkeys(own, key)))
        return np.array(own, np.int64), why

    def admit_names(self, told: Sequence[str]) -> tuple[Ints, list[str]]:
        """Take in clients that come by their names; return the numbers of those that may, and why others may not."""
        why, fresh = [], [name for name in told if name not in self.given and name not in self.held.freed]
        freed = [name for name in told if name in self.held.freed]
        if freed:
            why.append(f"{_listed(freed)} left out: the operator has freed its number; another ward's name gets one")
        free = self._free(names.node_of(told[0])) if told else 0
        if fresh[free:]:
            why.append(f"{_listed(fresh[free:])} left out: {self._most()}")
        fresh = fresh[:free]
        given = with_lowest(self.given, fresh, self.held.fixed, self.clients)
        self._keep(replace(self.held, names=given))
        own = np.array([self.given[name] for name in told if name in self.given], np.int64)
        out = [name for name in fresh if name not in self.given]
        if out:
            many = f"stream.clients = {self.clients}, and every number has its client already ({FILE} says which)"
            why.append(f"{_listed(out)} left out: {many}")
        return own, why

    def _free(self, node: str) -> int:
        """Return how many more numbers a node may have."""
        had = Counter([*map(names.node_of, self.given), *self.held.fixed.values()])
        return max(0, self.wards - had[node])

    def _most(self) -> str:
        way = "fedcl server --wards sets more, nodes free takes one back"
        return f"{self.wards} clients are the most that one node may have ({way})"

    def _keep(self, held: Numbers) -> None:
        """Write the table if it has changed, before anybody goes by it."""
        if held != self.held and self.folder:
            numbers.write(self.folder, held)
        self.held = held


def _who(key: str) -> str:
    return f"the node with the key {key}" if key else "a node without a key"


def _listed(told: Sequence[str]) -> str:
    return f"{', '.join(told[:10])}{', ...' * (len(told) > 10)}"


def joined(round: int, client: int, name: str, member: str) -> Event:
    """Return the event that tells whose a number is; `member`: under which name its node is registered, "" = none."""
    return {"event": "joined", "round": round, "client": client, "name": name, "node": member}


def impostor(told: Sequence[str], own: str) -> bool:
    """Say whether names are those of another node than the one whose key stands behind the connection."""
    return any(names.node_of(name) != own for name in told)
