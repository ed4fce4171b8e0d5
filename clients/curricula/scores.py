"""How hard a visit's items are: their cross-entropy under G, L, LG or E (arXiv:2212.12712).

G   the global model that the order brings, with the client's own personal parameters, if the model has some
L   the client's own model as its last visit left it; before its first visit, G
LG  the sum of the two
E   an expert: the initial model trained 10 epochs, with the clients' optimiser and batch, on the training data of the
    task that all clients have together. Only a simulation can pool it; each process trains an expert once a task.

Each client's items pass through the model apart from everybody else's, in chunks of fixed size, so a score is the same
for a client alone, in a stack and on any worker.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fedcl.models
from clients import visits
from clients.answers.case import load_weights
from clients.curricula import HARDEST
from clients.losses.cross_entropy import CrossEntropy
from clients.memories import Ints, Records
from clients.programs import Programs
from clients.site import Site
from clients.trainer import Block
from clients.visits import Local
from fedcl import keys
from fedcl.keys import Purpose
from fedcl.orders import TrainOrder
from fedcl.source import measure
from fedcl.streams.stream import ALL_TASKS

EXPERT_EPOCHS = 10


def losses(site: Site, order: TrainOrder, old: Records, local: Local) -> NDArray[np.float64]:
    """Return the difficulty (k, w) of each client's items, 0 on padding; a loss that is no number is HARDEST."""
    found = np.zeros(local.items.shape)
    for row, length in enumerate(local.lengths.tolist()):
        items, tasks = local.items[row, :length], local.tasks[row, :length]
        for weights in _models(site, order, old, row):
            found[row, :length] += cross_entropies(site, weights, items, tasks)
    return np.nan_to_num(found, nan=HARDEST, posinf=HARDEST)


def cross_entropies(site: Site, weights: Tensor, items: Ints, tasks: Ints) -> NDArray[np.float64]:
    """Return the cross-entropy (n,) of training items under a model (P,)."""
    load_weights(site.trainer.module, site.parameters, weights)
    _, found = measure(site.trainer.module, site.trainer.data, items, tasks)
    return found.numpy().astype(np.float64)


def _models(site: Site, order: TrainOrder, old: Records, row: int) -> list[Tensor]:
    """Return the models (P,) that one client's items are scored with; losses under several add up."""
    needs, visited = site.curriculum.needs, bool(old["visits"][row])
    if needs == "E":
        return [expert(site, int(order.tasks[row]))]

    def own(field: str) -> Tensor:
        return torch.from_numpy(old[field][row].copy()).to(site.device)

    global_model = torch.from_numpy(order.weights.copy()).to(site.device)
    if visited and site.personal.any():
        global_model[site.personal] = own("personal")
    if needs == "G":
        return [global_model]
    local_model = own("local") if visited else global_model
    return [local_model] if needs == "L" else [local_model, global_model]


def expert(site: Site, task: int) -> Tensor:
    """Return the parameters (P,) of the expert of a task (-1: of all tasks)."""
    if task not in site.experts:
        site.experts[task] = _trained(site, task)
    return site.experts[task]


def _trained(site: Site, task: int) -> Tensor:
    seed, client = site.scenario.seed, site.scenario.client
    local, key = _pooled(site, task), np.array([task])
    everything = local.inside
    walked = visits.walk(
        local, lambda number: keys.key(seed, Purpose.CURRICULUM, key, 0, number), lambda number, done: everything,
        epochs=EXPERT_EPOCHS, batch=client.batch,
    )  # fmt: skip
    steps = visits.batches(local, walked, width=min(client.batch, int(local.lengths.max())))
    shape, classes = site.stream.dataset.x.shape[1:], site.stream.dataset.classes
    module = fedcl.models.make(site.scenario.model, tuple(shape), classes, seed).to(site.device)
    start = site.parameters.flatten({name: each.detach() for name, each in fedcl.models.trained(module).items()})
    block = Block(
        counts=steps.count.tolist(),
        start=start[None],
        shared=start,
        now=site.stepwise(steps),
        draws={},
        capture=None,
        noise=site.noise(key, 0, int(steps.count.max())),  # round 0: no visit has it
        buffers={name: torch.zeros_like(start[None]) for name in client.optimizer.buffers},
        steps_before=torch.zeros(1, dtype=torch.float64, device=site.device),
    )
    # Plain training: nothing of the method, of which a path along its regularisers would be left over.
    trainer = replace(site.trainer, terms={"ce": CrossEntropy()}, transforms=(), path=False, programs=Programs())
    return trainer.train(block).after[0]


def _pooled(site: Site, task: int) -> Local:
    """Return all clients' training data of a task as if one client had it, by item."""
    stream, ids = site.stream, range(len(site.stream.tasks)) if task == ALL_TASKS else [task]
    clients = range(len(stream.train.count))
    cells = [np.sort(np.concatenate([stream.train.cell(client, each) for client in clients])) for each in ids]
    items, lengths = np.concatenate(cells), np.array([len(cell) for cell in cells])
    zero = np.zeros(1, np.int64)
    return Local(
        items=items[None], tasks=np.repeat(ids, lengths)[None], lengths=np.array([len(items)]), offsets=zero, bases=zero
    )
