"""What a client's figures rest on, from the node's own data and before any work: visits and statistics of a task."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from clients.answers.case import Case
from clients.memories import Ints
from clients.site import Site
from fedcl import withholding
from fedcl.orders import ScoreOrder, TrainOrder, Withheld
from fedcl.withholding import BY_CLASS


def visits(site: Site, order: TrainOrder | ScoreOrder) -> Ints:
    """Return how many samples the visit of each client of an order (k,) would show."""
    return site.stream.sizes(order.clients, order.tasks, order.clocks)


def leaving(site: Site, case: Case, task: int, statistics: Sequence[str]) -> tuple[Case, list[str]]:
    """Return the case of those of a client's samples that the statistics may rest on, and what is withheld."""
    if site.least <= 1:
        return case, []
    by_class = any(name in BY_CLASS for name in statistics)
    found = withholding.of_task(site.stream, case.client, task, site.least, by_class=by_class)
    items, tasks = (torch.from_numpy(each.copy()).to(case.items) for each in (found.items, found.tasks))
    return replace(case, items=items, tasks=tasks), found.withheld


def named(site: Site, figures: dict[int, list[str]], others: Sequence[int] = ()) -> list[Withheld]:
    """Return what is withheld of which client, as a reply says it.

    Args:
        others: clients whose sums hold samples that had waited, so that the server expects other numbers of them.
    """
    told = {client: each for client, each in figures.items() if each or client in others}
    return [Withheld(client=client, least=site.least, figures=each) for client, each in told.items()]
