"""How a client's own accuracy goes on the way through a visit: every so many steps, on its own test items.

The stability gap (De Lange et al., ICLR 2023, arXiv:2205.13452) is a drop on old tasks in the first steps on a new one;
an evaluation between rounds does not see it. A visit is a pure function of its order and the client's record, so it is
trained once more here, alone and for nothing but the measurements, and what the federation learns stays as it is to
the bit. (A client that is trained alone differs from one in a stack in the order of sums, within rounding.) Measured
are the model that the client starts from, every `evaluate.trace` steps, and its end; by the logits, on the tasks that
the client has met by its own clock.
"""

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from torch import Tensor
from torch.func import functional_call

from clients import records
from clients.block import lay, train_block
from clients.evaluation import without_few
from clients.memories import Ints, Records
from clients.programs import Programs
from clients.site import Site
from clients.trainer import Trainer, Watch
from clients.work import Store
from fedcl.orders import ClientError, TraceOrder, TraceReply, TrainOrder, pick
from fedcl.source import measure, sample
from fedcl.streams.schedule import NO_TASK


@dataclass(frozen=True)
class Watched(Site):
    """A site whose trainer tells how training goes; what takes long to make is that of the plain site."""

    plain: Site = field(kw_only=True)
    watch: Watch = field(kw_only=True)

    @cached_property
    def trainer(self) -> Trainer:
        """The plain site's, watched."""
        return replace(self.plain.trainer, watch=self.watch, programs=Programs())


@dataclass(frozen=True, kw_only=True)
class Tracer:
    """Counts right predictions of one client at the steps that it is told of."""

    count: Callable[[Tensor], Ints]  # parameters (P,) -> right predictions (tasks,)
    every: int
    last: int  # steps of the visit
    steps: list[int] = field(default_factory=list)
    right: list[Ints] = field(default_factory=list)

    def __call__(self, step: int, weights: Tensor) -> None:
        """Measure the only client of weights (1, P) if its turn has come."""
        if step % self.every == 0 or step == self.last:
            self.steps.append(step)
            self.right.append(self.count(weights[0]))


def trace(site: Site, order: TraceOrder, store: Store) -> TraceReply:
    """Carry out a tracing order, client by client; who fails is named. No record is saved."""
    old = store.load(order.clients, order.packs, order.rows, records.fresh(site.record))
    tasks = len(site.stream.tasks)
    answered, items, tracers, errors = [], [np.zeros((0, tasks), np.int64)], list[Tracer](), []
    for row, client in enumerate(order.clients.tolist()):
        try:
            cells = met_cells(site, client, int(order.clocks[row]))
            tracers.append(_traced(site, pick(order, np.array([row])), old[[row]].copy(), cells))
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            errors.append(ClientError(client=client, error=what, traceback=traceback.format_exc()))
        else:
            answered.append(client)
            items.append(np.array([[len(cell) for cell in cells]]))
    right = [np.zeros((0, tasks), np.int64), *(np.stack(each.right) for each in tracers)]
    points, shown = np.array([len(each.steps) for each in tracers], np.int64), np.concatenate(items)
    shown, withheld = without_few(site, answered, shown)
    return TraceReply(
        round=order.round, cohort=order.cohort, clients=np.array(answered, np.int64), table={}, errors=errors,
        points=points, items=shown, steps=np.array([step for each in tracers for step in each.steps], np.int64),
        right=np.where(np.repeat(shown, points, axis=0) > 0, np.concatenate(right), 0), withheld=withheld,
    )  # fmt: skip


def met_cells(site: Site, client: int, clock: int) -> list[Ints]:
    """Return the client's own test items of each task, the keyed sample of every evaluation; none of a task not met."""
    timeline, settings, seed = site.stream.timeline, site.scenario.evaluate, site.scenario.seed
    position = int((timeline.begin[client, 1:] <= clock).sum())
    met = set(timeline.order[client, : position + 1].tolist()) - {NO_TASK}
    cells = enumerate(site.stream.test.cell(client, task) for task in range(len(site.stream.tasks)))
    return [sample(cell, settings.samples, seed, client, task) if task in met else cell[:0] for task, cell in cells]


def _traced(site: Site, order: TrainOrder, old: Records, cells: list[Ints]) -> Tracer:
    """Train the one client of an order and return what was measured on the way."""
    laid = lay(site, order, old)
    items = np.concatenate(cells)
    shown = np.repeat(np.arange(len(cells)), [len(cell) for cell in cells])

    def count(weights: Tensor) -> Ints:
        module, views = site.trainer.module, site.parameters.views(weights)
        right, _ = measure(lambda x: functional_call(module, views, (x,)), site.test, items, shown)
        return np.bincount(shown[right.numpy()], minlength=len(cells))

    tracer = Tracer(count=count, every=site.scenario.evaluate.trace, last=int(laid.counts[0]))
    train_block(
        Watched(site.scenario, site.stream, site.secret, site.least, plain=site, watch=tracer),
        order,
        old,
        laid,
        slice(0, 1),
    )
    return tracer
