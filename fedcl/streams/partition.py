"""Who has what: an owner for every item, and the cells (client, task) that follow from it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from fedcl import keys
from fedcl.errors import ConfigError
from fedcl.keys import Bits
from fedcl.settings import Settings, setting
from fedcl.streams.dataset import Ints

NOBODY = -1


@dataclass(frozen=True, eq=False)
class Cells:
    """Ragged (client, task) -> indices into a data set's split. Tasks on the same items share their storage."""

    items: Ints  # (n,)
    start: Ints  # (clients, tasks)
    count: Ints  # (clients, tasks)

    def cell(self, client: int, task: int) -> Ints:
        """Return the items (count,) of one client's task: a view."""
        start = self.start[client, task]
        return self.items[start : start + self.count[client, task]]

    def take(self, clients: Ints, tasks: Ints, places: Ints) -> Ints:
        """Return the items (k, w) at places (k, w) of the cells of clients (k,) and tasks (k,)."""
        found: Ints = self.items[self.start[clients, tasks][:, None] + places]
        return found

    @staticmethod
    def counted(count: Ints) -> "Cells":
        """Return cells (clients, tasks) of which only the sizes are known here."""
        return Cells(np.empty(0, np.int64), np.zeros_like(count), count)

    def shared(self, tasks: int) -> "Cells":
        """Return these cells of one task for all of `tasks` tasks."""
        shape = (len(self.start), tasks)
        return Cells(self.items, np.broadcast_to(self.start, shape), np.broadcast_to(self.count, shape))


@dataclass(frozen=True, eq=False)
class DrawnCells(Cells):
    """Cells whose items are drawn when they are asked for, so that a registered client costs a few bytes.

    `items` are all items of all tasks, task by task; `start` (1, tasks) is where a task's begin.
    """

    sizes: Ints  # (tasks,) items of each task
    keys: Bits  # (tasks,) key of the draws of each task

    def cell(self, client: int, task: int) -> Ints:
        """Return the items (count,) of one client's task."""
        found: Ints = self.take(np.array([client]), np.array([task]), np.arange(self.count[client, task])[None])[0]
        return found

    def take(self, clients: Ints, tasks: Ints, places: Ints) -> Ints:
        """Return the items (k, w) at places (k, w) of the cells of clients (k,) and tasks (k,)."""
        own = keys.at(self.keys[tasks], clients)
        drawn = keys.below(keys.at(own[:, None], places), self.sizes[tasks][:, None])
        found: Ints = self.items[self.start[0, tasks][:, None] + drawn]
        return found

    def shared(self, tasks: int) -> "DrawnCells":
        """Return these cells of one task for all of `tasks` tasks."""
        count = np.broadcast_to(self.count, (len(self.count), tasks))
        start, sizes = np.repeat(self.start, tasks, axis=1), np.repeat(self.sizes, tasks)
        return DrawnCells(self.items, start, count, sizes, np.repeat(self.keys, tasks))


def draw_cells(task: Ints, clients: int, tasks: int, each: int, key: Bits) -> DrawnCells:
    """Let every client draw `each` items of every task (none of a task without items).

    Args:
        task: (n,) task of each item.
        key: () of the split.
    """
    sizes = np.bincount(task, minlength=tasks)
    count = np.broadcast_to(np.where(sizes > 0, each, 0), (clients, tasks))
    start = (np.cumsum(sizes) - sizes)[None]
    return DrawnCells(np.argsort(task, kind="stable"), start, count, sizes, keys.bits(key, tasks))


def group(owner: Ints, task: Ints, clients: int, tasks: int, rng: np.random.Generator) -> Cells:
    """Gather the items of each (client, task), in random order so that a slice of a cell is a fair sample of it.

    Args:
        owner: (n,) client of each item, -1 = nobody's.
        task: (n,) task of each item.
        clients: number of clients.
        tasks: number of tasks.
        rng: order within the cells.
    """
    owned = rng.permutation(np.flatnonzero(owner != NOBODY))
    cell = owner[owned] * tasks + task[owned]
    count = np.bincount(cell, minlength=clients * tasks)
    start = np.cumsum(count) - count
    items = owned[np.argsort(cell, kind="stable")]
    return Cells(items, start.reshape(clients, tasks), count.reshape(clients, tasks))


def deal(n: int, counts: Ints, rng: np.random.Generator) -> Ints:
    """Deal n items by largest remainder: who holds counts[i] of sum(counts) gets n * counts[i] / sum(counts), rounded.

    Returns:
        (n,) for each item the index into counts, at random; empty counts leave the items to nobody (-1).
    """
    if not len(counts):
        return np.full(n, NOBODY)
    dealt, remainder = np.divmod(counts * n, counts.sum())
    ties = rng.permutation(len(counts))
    first = np.lexsort((ties, -remainder))[: n - dealt.sum()]
    dealt[first] += 1
    return rng.permutation(np.repeat(np.arange(len(counts)), dealt))


def deal_class(n: int, owner: Ints, rng: np.random.Generator) -> Ints:
    """Return owners (n,) of a class's test items, given the owners of its training items."""
    holders, counts = np.unique(owner, return_counts=True)
    dealt = deal(n, counts, rng)
    return holders[dealt] if len(holders) else dealt


def top_up(owner: Ints, clients: int, least: int, rng: np.random.Generator) -> Ints:
    """Move random items from the richest clients to those with fewer than `least`; needs clients * least <= n."""
    owner, shuffled = owner.copy(), rng.permutation(len(owner))
    by_owner = shuffled[np.argsort(owner[shuffled], kind="stable")]
    count = np.bincount(owner, minlength=clients)
    height = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    missing = np.maximum(least - count, 0)
    # An item at height h is its owner's h-th: taking the highest first takes from the richest, never below `least`.
    highest = np.argsort(-height, kind="stable")[: missing.sum()]
    owner[by_owner[highest]] = np.repeat(np.arange(clients), missing)
    return owner


@dataclass(frozen=True, kw_only=True)
class Partition(Settings, ABC):
    """How the items of a task (domain-incremental: of the whole data set) are shared out."""

    @abstractmethod
    def assign(self, labels: Ints, clients: int, rng: np.random.Generator) -> Ints:
        """Return the one owner (n,) in [0, clients) of each item.

        Args:
            labels: (n,) class of each item.
            clients: number of clients.
            rng: the only source of randomness.

        Raises:
            ConfigError: the settings cannot be met with these items.
        """


@dataclass(frozen=True, kw_only=True)
class IID(Partition):
    """Everyone a random sample of the same size, give or take one item."""

    def assign(self, labels: Ints, clients: int, rng: np.random.Generator) -> Ints:
        """Deal the items out in turn; who gets the odd ones is random too."""
        turn = rng.permutation(clients)
        return rng.permutation(turn[np.arange(len(labels)) % clients])


@dataclass(frozen=True, kw_only=True)
class Drawn(Partition):
    """Everyone draws items of each task with replacement: clients may share items, and a million cost no memory."""

    samples: int = setting(50, "training items of a client's task", low=1, high=1_000_000)
    test_samples: int = setting(10, "test items of a client's task", low=0, high=1_000_000)

    def assign(self, labels: Ints, clients: int, rng: np.random.Generator) -> Ints:
        """Nobody owns an item (`draw_cells`)."""
        return np.full(len(labels), NOBODY)


@dataclass(frozen=True, kw_only=True)
class Dirichlet(Partition):
    """Label skew: each class goes to clients in proportions p ~ Dir(alpha) (Hsu et al., arXiv:1909.06335)."""

    alpha: float = setting(
        0.5, "concentration: small = each class at few clients, large = equal shares", above=0, high=1e6
    )
    min_samples: int = setting(0, "every client gets this many items of a task, moved from the richest", low=0)

    def assign(self, labels: Ints, clients: int, rng: np.random.Generator) -> Ints:
        """Draw the proportions of every class and cut its items accordingly.

        Raises:
            ConfigError: there are fewer items than min_samples for everybody.
        """
        if self.min_samples * clients > len(labels):
            raise ConfigError(
                f"stream.partition.min_samples = {self.min_samples}: {clients} clients share {len(labels)} items, "
                f"so at most {len(labels) // clients}"
            )
        owner = np.empty(len(labels), np.int64)
        for label in np.unique(labels):
            items = rng.permutation(np.flatnonzero(labels == label))
            owner[items] = self._cut(len(items), clients, rng)
        return top_up(owner, clients, self.min_samples, rng) if self.min_samples else owner

    def _cut(self, n: int, clients: int, rng: np.random.Generator) -> Ints:
        """Return owners (n,), ascending: a comb of n teeth over the cumulated proportions, counts within one of n p."""
        edges = np.cumsum(rng.dirichlet(np.full(clients, self.alpha)))
        comb = (np.arange(n) + rng.random()) / n
        return np.minimum(np.searchsorted(edges, comb, side="right"), clients - 1)


@dataclass(frozen=True, kw_only=True)
class Shards(Partition):
    """Label skew: items sorted by label, cut into equal shards, a few for each (McMahan et al., arXiv:1602.05629)."""

    per_client: int = setting(2, "shards of each client", low=1, high=100_000)

    def assign(self, labels: Ints, clients: int, rng: np.random.Generator) -> Ints:
        """Give every client `per_client` random shards; with more shards than items some are empty."""
        n, shards = len(labels), clients * self.per_client
        shuffled = rng.permutation(n)
        by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
        owner_of_shard = rng.permutation(shards) % clients
        owner = np.empty(n, np.int64)
        owner[by_label] = owner_of_shard[np.arange(n) * shards // n]
        return owner
