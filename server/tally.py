"""What has come in of a round so far: tables, and one sum, which can be formed anew without some of its cohorts."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from fedcl.answers import borrowed
from fedcl.orders import Array, ClientError, Ints, TrainOrder, TrainReply
from server.waiting import Sums

Came = tuple[TrainOrder, TrainReply]


@dataclass(kw_only=True)
class Tally:
    """The answers of a round, added in the order of its cohorts."""

    total: Tensor
    sums: Sums  # the addends, by cohort
    came: dict[int, Came] = field(default_factory=dict)  # by cohort: order and answer, without its sum
    errors: list[ClientError] = field(default_factory=list)
    lacking: list[int] = field(default_factory=list)  # clients whose visits their nodes withhold

    @property
    def clients(self) -> Ints:
        """The clients whose answers count, in the order of the sum."""
        return np.concatenate([np.zeros(0, np.int64), *(reply.clients for _, reply in self.came.values())])

    @property
    def tasks(self) -> Ints:
        """The task of each."""
        parts = [order.tasks[_places(order.clients, reply.clients)] for order, reply in self.came.values()]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    @property
    def columns(self) -> dict[str, Array]:
        """What their tables say, one under another; a column that is not in all of them is as long as those."""
        found: dict[str, list[Array]] = {}
        for _, reply in self.came.values():
            for name, column in reply.table.items():
                found.setdefault(name, []).append(column)
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def add(self, order: TrainOrder, reply: TrainReply) -> None:
        """Add an answer that can be taken."""
        self.total += borrowed(reply.total)
        self._keep(order, reply)

    def put_right(self, gone: Iterable[int], again: Iterable[Came]) -> None:
        """Form the sum anew without some cohorts, and with what these have answered when they were asked again."""
        for cohort in gone:
            del self.came[cohort]
            self.sums.drop(cohort)
        for order, reply in again:
            self._keep(order, reply)
        self.came = dict(sorted(self.came.items()))
        self.total.zero_()
        for cohort in self.came:
            self.total += borrowed(self.sums.get(cohort))

    def _keep(self, order: TrainOrder, reply: TrainReply) -> None:
        self.sums.put(reply.cohort, reply.total)
        self.came[reply.cohort] = order, replace(reply, total=reply.total[:0].copy())


def _places(among: Ints, wanted: Ints) -> Ints:
    """Return where each wanted number lies among others, each of which comes once."""
    order = np.argsort(among)
    found: Ints = order[np.searchsorted(among, wanted, sorter=order)]
    return found
