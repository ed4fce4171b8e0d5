"""Which number each client's name has in a run: the lowest that is free, for good, on the disk before it is used.

Numbers index everything (shares of data, keys, records); names come from the nodes (`fedcl.names`). The run directory's
file `clients.json` holds the table, and with it the numbers that came without a name, so that a name that comes while
their node is away does not take them.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedcl import names
from fedcl.errors import FederationError
from fedcl.journal import Event, write_json
from fedcl.orders import Ints

FILE = "clients.json"


def with_lowest(given: Mapping[str, int], fresh: Iterable[str], taken: Collection[int], clients: int) -> dict[str, int]:
    """Return the table with each fresh name at the lowest number that is free; those for which none is are left out."""
    free = sorted(set(range(clients)) - set(given.values()) - set(taken))
    return {**given, **dict(zip((name for name in fresh if name not in given), free, strict=False))}


@dataclass(kw_only=True)
class Table:
    """The clients of a run as they have come: `given` by name, `fixed` by a number of their own."""

    clients: int
    path: Path | None = None  # None: nothing is kept (simulation)
    given: dict[str, int] = field(default_factory=dict)
    fixed: set[int] = field(default_factory=set)

    @staticmethod
    def of(folder: Path | None, clients: int) -> "Table":
        """Return the table of a run directory, an empty one if there is none yet; `folder` None: of a simulation.

        Raises:
            FederationError: the file is damaged.
        """
        if folder is None or not (folder / FILE).exists():
            return Table(clients=clients, path=folder and folder / FILE)
        path = folder / FILE
        try:
            found = json.loads(path.read_text())
            given = {str(name): int(number) for name, number in found["names"].items()}
            fixed = {int(number) for number in found["numbers"]}
            if len({*given.values(), *fixed} & set(range(clients))) != len(given) + len(fixed):
                raise ValueError(f"a number stands there twice, or is none of the {clients} clients'")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = "put back its last copy: nodes refuse a client under another number than before"
            raise FederationError(f"{path} is damaged ({error}); {what}") from error
        return Table(clients=clients, path=path, given=given, fixed=fixed)

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

    def admit_numbers(self, numbers: Ints) -> tuple[Ints, str]:
        """Take in clients that come by their numbers; return those that may, and why the others may not."""
        own = numbers[(numbers >= 0) & (numbers < self.clients)]
        taken = own[np.isin(own, list(self.given.values()))]
        own = own[~np.isin(own, taken)]
        fixed = self.fixed | set(own.tolist())
        self._keep(self.given, fixed)
        if not len(taken):
            return own, ""
        whose = f"client {taken[0]} has come by the name {self.name(int(taken[0]))!r}"
        return own, f"clients {taken[:10].tolist()} of a node that knows them by number are left out: {whose} ({FILE})"

    def admit_names(self, fresh: Sequence[str]) -> tuple[Ints, str]:
        """Take in clients that come by their names; return the numbers of those that may, and why others may not."""
        self._keep(with_lowest(self.given, fresh, self.fixed, self.clients), self.fixed)
        own = np.array([self.given[name] for name in fresh if name in self.given], np.int64)
        out = [name for name in fresh if name not in self.given]
        if not out:
            return own, ""
        many = f"stream.clients = {self.clients}, and every number has its client already ({FILE} says which)"
        return own, f"{', '.join(out[:10])}{', ...' * (len(out) > 10)} left out: {many}"

    def _keep(self, given: dict[str, int], fixed: set[int]) -> None:
        """Write the table if it has changed, before anybody goes by it."""
        if (given, fixed) == (self.given, self.fixed):
            return
        if self.path:
            write_json(self.path, {"names": given, "numbers": sorted(fixed)})
        self.given, self.fixed = given, fixed


def joined(round: int, client: int, name: str, member: str) -> Event:
    """Return the event that tells whose a number is; `member`: under which name its node is registered, "" = none."""
    return {"event": "joined", "round": round, "client": client, "name": name, "node": member}


def impostor(told: Sequence[str], own: str) -> bool:
    """Say whether names are those of another node than the one whose key stands behind the connection."""
    return any(names.node_of(name) != own for name in told)
