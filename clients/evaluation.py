"""Accuracy on each client's own test items, with the weights that the client would use."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clients import records
from clients.answers.case import load_weights
from clients.holdings import named
from clients.memories import Ints, Records
from clients.site import Site
from clients.work import Store
from fedcl import withholding
from fedcl.classifiers import predictor
from fedcl.orders import EvaluateOrder, EvaluateReply, Order, Withheld
from fedcl.source import measure, sample


def evaluate(site: Site, order: EvaluateOrder, store: Store) -> EvaluateReply:
    """Count right predictions of every client on its own test items of every task."""
    if site.personal.any():
        old = store.load(order.clients, order.packs, order.rows, records.fresh(site.record))
        counts = [_evaluate(site, order, order.clients[[row]], old[[row]]) for row in range(len(old))]
        correct, items = (np.concatenate(each) for each in zip(*counts, strict=True))
    else:
        correct, items = _evaluate(site, order, order.clients, None)
    items, withheld = without_few(site, order.clients.tolist(), items)
    return EvaluateReply(
        round=order.round, cohort=order.cohort, clients=order.clients, table={}, withheld=withheld, items=items,
        correct=np.where(items > 0, correct, 0),
    )  # fmt: skip


def without_few(site: Site, clients: Sequence[int], items: Ints) -> tuple[Ints, list[Withheld]]:
    """Return the test items of clients (k, tasks) without those of tasks that have too few, and what is withheld."""
    rows = [withholding.of_tests(row, site.least) for row in items]
    figures = {client: each for client, (_, each) in zip(clients, rows, strict=True)}
    return np.array([row for row, _ in rows], np.int64).reshape(items.shape), named(site, figures)


def _evaluate(site: Site, order: EvaluateOrder, clients: Ints, own: Records | None) -> tuple[Ints, Ints]:
    """Return right predictions and items, (clients, tasks) each, of clients that use the same weights."""
    load_weights(site.trainer.module, site.parameters, weights_of(site, order, own))
    tasks, seed, limit = len(site.stream.tasks), site.scenario.seed, site.scenario.evaluate.samples
    cells = [
        sample(site.stream.test.cell(int(client), task), limit, seed, int(client), task)
        for client in clients
        for task in range(tasks)
    ]
    sizes = np.array([len(cell) for cell in cells])
    shown = np.repeat(np.tile(np.arange(tasks), len(clients)), sizes)
    classifier = {name: torch.from_numpy(each.copy()).to(site.device) for name, each in order.classifier.items()}
    right, _ = measure(predictor(site.trainer.module, classifier), site.test, np.concatenate(cells), shown)
    correct = np.bincount(np.repeat(np.arange(len(cells)), sizes), weights=right.numpy(), minlength=len(cells))
    return correct.astype(np.int64).reshape(-1, tasks), sizes.reshape(-1, tasks)


def weights_of(site: Site, order: Order, own: Records | None) -> Tensor:
    """Return the order's weights (P,), with a client's personal parameters if `own` (1,) is a record that has some."""
    flat = torch.from_numpy(order.weights.copy()).to(site.device)
    if own is not None and own["visits"][0] > 0:
        flat[site.personal] = torch.from_numpy(own["personal"][0].copy()).to(site.device)
    return flat
