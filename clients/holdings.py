"""How many samples the figures rest on that an order asks for, from the node's own data and before any work.

For training it is the visit's samples (and, where statistics of the task ride on the answer, those too); for class sums
and ridge sums the samples of each class, for other statistics of a task its items; for an evaluation or a trace the
client's test items of each task, for a score the items of the visit.
"""

import numpy as np

from clients.answers import STATISTICS
from clients.memories import Ints
from clients.site import Site
from clients.trace import met_cells
from fedcl.orders import OWN_PARTS, ConsolidateOrder, EvaluateOrder, Order, ScoreOrder, TraceOrder, TrainOrder
from fedcl.source import sample

BY_CLASS = ("class_sums", "ridge")


def fewest(site: Site, order: Order) -> Ints:
    """Return for each client of an order (k,) the fewest samples of a figure that rests on some; 0: none does."""
    return np.array([_least(_figures(site, order, row)) for row in range(len(order.clients))], np.int64)


def _least(counts: Ints) -> int:
    return int(counts[counts > 0].min(initial=np.iinfo(np.int64).max)) if (counts > 0).any() else 0


def _figures(site: Site, order: Order, row: int) -> Ints:
    """Return the samples of each figure of one client."""
    stream, client = site.stream, int(order.clients[row])
    if isinstance(order, EvaluateOrder):
        limit, seed = site.scenario.evaluate.samples, site.scenario.seed
        cells = [sample(stream.test.cell(client, t), limit, seed, client, t) for t in range(len(stream.tasks))]
        return np.array([len(cell) for cell in cells])
    if isinstance(order, TraceOrder):
        return np.array([len(cell) for cell in met_cells(site, client, int(order.clocks[row]))])
    if isinstance(order, ConsolidateOrder):
        task = int(order.tasks[row])
        return np.concatenate([_of_task(site, client, task, order.statistics), _own_parts(site, client, task)])
    if not isinstance(order, TrainOrder | ScoreOrder):
        raise TypeError(f"what a {type(order).__name__} rests on is not known")
    visit = stream.sizes(order.clients[[row]], order.tasks[[row]], order.clocks[[row]])
    if isinstance(order, ScoreOrder) or not order.leaving.any() or not order.leaving[row]:
        return visit
    riding = [name for name in order.statistics if name not in STATISTICS]
    return np.concatenate([visit, _of_task(site, client, int(order.tasks[row]), riding)])


def _of_task(site: Site, client: int, task: int, statistics: list[str]) -> Ints:
    """Return the client's items of a task, by class where a statistic tells them apart."""
    items, _ = site.stream.items(client, task, 0, int(site.stream.train.count[client, task]))
    by_class = any(name in BY_CLASS for name in statistics)
    labels = site.stream.dataset.y[items]
    return np.bincount(labels, minlength=1) if by_class else np.array([len(items)])


def _own_parts(site: Site, client: int, task: int) -> Ints:
    """Return the test items of the parts on which a client is measured after its own update, if it is."""
    if not getattr(site.scenario.server.method, "missions", False):
        return np.zeros(0, np.int64)
    own = site.stream.timeline.order[client].tolist()
    before = own[1 : own.index(task)] if task in own else []
    parts = dict(zip(OWN_PARTS, (own[:1], before, [task]), strict=True))
    return np.array([sum(len(site.stream.test.cell(client, each)) for each in tasks) for tasks in parts.values()])
