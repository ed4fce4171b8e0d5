"""Episodes of few-shot learning (Vinyals et al., NeurIPS 2016, arXiv:1606.04080): a few classes, a few items of each.

Every pass is one episode: `ways` of the visit's classes, drawn at random, and `examples` items of each; with
`client.batch` at least ways * examples it is one step. Which of a class's items are support and which are queries is
the loss's to say (`clients.losses.prototypical`). Steps are counted as vanilla counts them: epochs * ceil(N / B).
"""

from dataclasses import dataclass

import numpy as np

from clients.curricula import Bools, Curriculum, Ints, Pools, Visit
from fedcl import keys
from fedcl.keys import Bits
from fedcl.settings import setting


def drawn(own: Bits, labels: Ints, inside: Bools, *, ways: int, examples: int) -> Bools:
    """Return the items (k, w) of one episode of each client.

    Args:
        own: (k,) keys.
        labels: (k, w) class of each item.
        inside: (k, w) False on padding.
        ways: classes; all of a client that has fewer.
        examples: items of each; all of a class that has fewer.
    """
    chosen, places = np.zeros(inside.shape, np.bool_), keys.bits(own, inside.shape[1])
    for row, (there, of) in enumerate(zip(inside, labels, strict=True)):
        classes = np.unique(of[there])
        lot = keys.at(own[row], -1 - classes)  # positions below 0: never those of items
        kept = there & np.isin(of, classes[np.argsort(lot, kind="stable")[:ways]])
        items = np.flatnonzero(kept)
        items = items[np.lexsort((places[row, items], of[items]))]
        rank = np.arange(len(items)) - np.searchsorted(of[items], of[items])
        chosen[row, items[rank < examples]] = True
    return chosen


@dataclass(frozen=True, kw_only=True)
class Episodes(Curriculum):
    """Episodes of a few classes and a few items of each (Vinyals et al., NeurIPS 2016, arXiv:1606.04080)."""

    ways: int = setting(20, "classes of an episode", low=2, high=10_000)
    examples: int = setting(10, "items of each class, support and queries together", low=2, high=10_000)

    def pools(self, visit: Visit) -> Pools:
        """Return a new episode in each pass."""

        def pool(number: int, done: Ints) -> Bools:
            own = keys.at(visit.keys, np.array(number))
            return drawn(own, visit.labels, visit.inside, ways=self.ways, examples=self.examples)

        return pool

    def problem(self, batch: int) -> str | None:
        """Return why these settings do not go with a batch size; None: they do."""
        size = self.ways * self.examples
        if batch >= size:
            return None
        episode = f"an episode of {self.ways} classes with {self.examples} items each is one step"
        return f"client.batch = {batch}: {episode}; set client.batch = {size}"
