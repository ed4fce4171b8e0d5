"""What clients keep of tasks they have left, and of visits, for regularisers and transforms (`clients.losses.Keeper`).

A task ends for a client when a visit finds it at another position of its stream than the visit before: which visit to a
task is the last is known only then, because a client is not asked in every round. So the model that each visit leaves
is kept too (`local`), and the task's data must still be there at the next visit.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from clients.answers.case import CHUNK, load_weights
from clients.losses import Left, Visited
from clients.losses.lwf import CLASSES, KNOWN
from clients.memories import Ints, Records
from clients.records import fresh
from clients.site import Site
from clients.trainer import Result
from clients.visits import Local
from fedcl.answers import Tensors, under
from fedcl.orders import ScoreOrder, TrainOrder
from fedcl.streams.stream import ALL_TASKS
from fedcl.subspace import in_use


def forget(site: Site, order: TrainOrder | ScoreOrder, old: Records) -> None:
    """Make clients that come to another position of their stream as good as new, where every task starts afresh.

    Which items have been shown is kept where they come from folders: that is their place in time, not a memory.
    """
    if not site.afresh or (order.tasks == ALL_TASKS).any():
        return
    new, kept = fresh(site.record)[0], ("cursor", "shown") if site.stream.dataset.elsewhere else ()
    now = _positions(site, order)
    others = (old["visits"] > 0) & (old["position"] != now)
    for name in site.record.names or ():
        if name not in kept:
            old[name][others] = new[name]
    old["position"] = now


def _positions(site: Site, order: TrainOrder | ScoreOrder) -> Ints:
    """Return the position (k,) of each client in its own stream."""
    found: Ints = (site.stream.timeline.begin[order.clients, 1:] <= order.clocks[:, None]).sum(axis=1)
    return found


def leave(site: Site, order: TrainOrder, old: Records) -> None:
    """Let clients that come to another position of their stream take leave of the task before."""
    if not site.leavers or (order.tasks == ALL_TASKS).any():
        return
    timeline, now = site.stream.timeline, _positions(site, order)
    for row in np.flatnonzero((old["visits"] > 0) & (old["position"] != now)).tolist():
        tasks = order.tasks.copy()
        tasks[row] = timeline.order[order.clients[row], old["position"][row]]
        if site.stream.train.count[order.clients[row], tasks[row]]:  # else its files have gone: nothing can be kept
            _take(site, replace(order, tasks=tasks), old, row)
        if site.path:  # the next task has a path of its own
            old["path"][row] = old["moved"][row] = 0
    old["position"] = now


def _take(site: Site, order: TrainOrder, old: Records, row: int) -> None:
    """Write what every keeper keeps of the task that the order names."""

    def held(name: str) -> Tensor:
        return torch.from_numpy(old[name][row].copy()).to(site.device)

    model = held("local")
    paths = {name: held(name) if site.path else torch.zeros_like(model) for name in ("path", "moved")}
    left = Left(case=site.case(order, row, model.clone()), model=model, **paths)
    for each in site.leavers:
        kept = each.leave({one.name: held(one.name) for one in each.keeps}, left)
        for one in each.keeps:
            old[one.name][row] = kept[one.name].numpy(force=True)


def own(site: Site, records: Records) -> dict[str, Tensors]:
    """Return what k clients keep, (k, ...) by name and tensor: parameter, layer, `classes` or `number`.

    Of bases as many columns (k, d, r) as they have, and no layer that has none.
    """
    found = {}
    for one in (one for each in site.keepers for one in each.keeps):
        held, layout = records[one.name], site.kept[one.name]
        if one.of == "bases":
            parts = ((name, held[:, where].reshape(-1, *shape)) for name, (where, shape) in layout.slices.items())
            bases = {name: in_use(part) for name, part in parts}
            found[one.name] = {name: each.to(site.device) for name, each in bases.items() if each.shape[2]}
        else:
            found[one.name] = layout.views(torch.from_numpy(held.copy()).to(site.device))
    return found


def shared(site: Site, order: TrainOrder) -> dict[str, Tensors]:
    """Return what the server sends for keepers, by name and parameter; the joint oracle heeds nothing about tasks."""
    joint = bool((order.tasks == ALL_TASKS).any())
    sent = {name: torch.from_numpy(each.copy()).to(site.device) for name, each in order.shared.items()}
    heeding = [each for each in site.keepers if each.of == "visits" or not joint]
    found = {name: under(name, sent) for each in heeding for name in each.reads}
    if KNOWN in found and KNOWN in sent:
        known = [one for task in sent[KNOWN].tolist() for one in site.stream.tasks[task].classes]
        classes = torch.zeros(site.stream.dataset.classes, dtype=site.dtype, device=site.device)
        classes[known] = 1
        found[CLASSES] = {"classes": classes}
    return {name: tensors for name, tensors in found.items() if tensors}


def bounded(site: Site, own: dict[str, Tensors], shared: dict[str, Tensors]) -> Tensor | None:
    """Hold, in place, what makes a penalty steeper than the client's optimiser can follow down to 1 / lr.

    Where a second derivative is above `Optimizer.steepest`, every step leads further away than the last. At 1 / lr one
    step leads to the penalty's minimum.

    Args:
        own, shared: as `own` and `shared` return them.

    Returns:
        Of how many parameters that has been so, (k,); None: no penalty of this method could be too steep.
    """
    optimizer = site.scenario.client.optimizer
    if not (site.curvature and optimizer.steepest < math.inf):
        return None
    capped = torch.zeros(len(next(iter(next(iter(own.values())).values()))) if own else 1, dtype=torch.int64)
    for name, factor in site.curvature.items():
        for tensor in own.get(name, shared.get(name, {})).values():
            steep = tensor * factor > optimizer.steepest
            if steep.any():
                tensor.masked_fill_(steep, 1 / (optimizer.lr * factor))
                capped += steep.flatten(1).sum(1).cpu() if name in own else steep.sum().cpu()
    return capped


def taught(site: Site, order: TrainOrder, old: Records, local: Local) -> Tensor | None:
    """Return a teacher's logits (k, w, classes) of each client's items, zeros without a teacher; None: none is wanted.

    Each client's items pass through the teacher apart from everybody else's, in chunks of fixed size, so that they are
    the same for a client alone, in a stack and on any worker.
    """
    name, sent = next((each.teacher for each in site.regularisers if each.teacher), None), shared(site, order)
    held = name in (old.dtype.names or ())
    if name is None or not (held or name in sent):
        return None
    shape = (*local.items.shape, site.stream.dataset.classes)
    found = torch.zeros(shape, dtype=site.dtype, device=site.device)
    for row, length in enumerate(local.lengths.tolist()):
        teacher = torch.from_numpy(old[name][row].copy()) if held else site.parameters.flatten(sent[name])
        if teacher.any():
            items, tasks = local.items[row, :length], local.tasks[row, :length]
            found[row, :length] = _logits(site, teacher.to(site.device), items, tasks)
    return found


@torch.no_grad()
def _logits(site: Site, weights: Tensor, items: Ints, tasks: Ints) -> Tensor:
    """Return the logits (n, classes) of training items under a model (P,)."""
    load_weights(site.trainer.module, site.parameters, weights)
    parts = (torch.split(torch.from_numpy(each).to(site.device), CHUNK) for each in (items, tasks))
    return torch.cat([site.trainer.module(site.trainer.data.inputs(*part)) for part in zip(*parts, strict=True)])


def visited(site: Site, order: TrainOrder, records: Records, moved: Tensor, steps: Tensor) -> Tensors:
    """Add to the records what a visit adds to what is kept of visits; return that, (k, n) by name.

    Args:
        moved: (k, P) what it has added to the parameters.
        steps: (k,) local steps.
    """
    found: Tensors = {}
    for each in site.visitors:
        sent = {name: site.parameters.flatten(tensors) for name, tensors in shared(site, order).items()}
        lr = site.scenario.client.optimizer.lr
        found |= each.visited(Visited(moved=moved * site.shared, steps=steps, lr=lr, sent=sent))
    for name, added in found.items():
        records[name] += added.numpy(force=True)
    return found


def walked(site: Site, records: Records, start: Tensor, result: Result) -> None:
    """Add a visit's local steps, from start (k, P), to what the records hold of the task's path."""
    if site.path and result.path is not None:
        records["path"] += result.path.numpy(force=True)
        records["moved"] += (result.after - start).numpy(force=True)
