"""What a client keeps of its tasks when the files of one have gone before it took leave of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from clients.site import Site
from tests.federations import Clients, tiny

FLOAT64 = ("model.dtype=float64", "client.epochs=2", "stream.clients=2", "engine.cohort=2")


def without(site: Site, client: int, task: int) -> Site:
    """Return the site of a client whose files of a task have gone."""
    count = site.stream.train.count.copy()
    count[client, task] = 0
    return replace(site, stream=replace(site.stream, train=replace(site.stream.train, count=count)))


def way(own: Clients, client: int, task: int, round: int) -> tuple[np.ndarray, np.ndarray]:
    """Train with SGD in plain torch; return the sum of -g * step = lr g^2 over the steps, and the sum of the steps."""
    module = own.model()
    parameters = list(module.parameters())
    path, moved = 0.0, 0.0
    for epoch in range(2):
        for items in np.array_split(own.shuffled(client, task, round, epoch), range(5, 100, 5)):
            if not len(items):
                continue
            x, y = own.shown(items)
            g = torch.cat([each.flatten() for each in torch.autograd.grad(cross_entropy(module(x), y), parameters)])
            path, moved = path + 0.1 * g.square(), moved - 0.1 * g
            after = torch.nn.utils.parameters_to_vector(parameters).detach() - 0.1 * g
            torch.nn.utils.vector_to_parameters(after, parameters)
    return np.asarray(path), np.asarray(moved)


@pytest.mark.parametrize("vanishes", [False, True])
def test_the_next_task_has_a_path_of_its_own(vanishes: bool) -> None:
    """Whatever has become of the first task's files, the path of the second is that of its own steps, within 1e-12.

    Nothing can be said of a task whose files have gone: without them its end leaves no importance behind.
    """
    own = Clients.of(tiny(*FLOAT64, "client.method={name: si, c: 0.0}"))
    own.visit(own.initial, [0, 1], round=1, task=0, clock=0)
    if vanishes:
        own.site = without(own.site, 0, 0)
    own.visit(own.initial, [0, 1], round=3, task=1, clock=2)
    for client in (0, 1):
        record = own.record(client)
        path, moved = way(own, client, 1, 3)
        assert np.abs(record["path"] - path).max() < 1e-12
        assert np.abs(record["moved"] - moved).max() < 1e-12
        assert record["si.omega"].any() == (not vanishes or client == 1)
