"""Numbers that float32 cannot tell apart: features with a large common offset, large counts, losses that are none."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clients.answers.fisher import fisher_sums
from clients.curricula import HARDEST, Visit, scores
from clients.losses import Anchors, Batch, Forward, Items
from clients.losses.prototypical import Prototypical
from clients.site import Site
from clients.visits import local_data
from fedcl import keys
from fedcl.classifiers import nearest
from fedcl.keys import Purpose
from fedcl.orders import TrainOrder
from fedcl.streams import build_stream
from tests.federations import Clients, tiny
from tests.frozen import case

OFFSETS = [0.0, 100.0, 300.0, 1000.0, 8000.0]


def exact(rows: int, width: int, seed: int, offset: float) -> Tensor:
    """Return numbers in [-1, 1) that float32 holds exactly even with the offset: multiples of 2^-10."""
    drawn = np.random.default_rng(seed).integers(-1024, 1024, (rows, width)) / 1024
    return torch.from_numpy((drawn + offset).astype(np.float32))


def apart(features: Tensor, prototypes: Tensor) -> Tensor:
    """Return squared distances (b, classes) pair by pair, in float64."""
    return (features.double()[:, None] - prototypes.double()[None]).square().sum(2)


@pytest.mark.parametrize("offset", OFFSETS)
def test_the_nearest_prototype_is_the_nearest_whatever_all_features_have_in_common(offset: float) -> None:
    """200 features, 40 prototypes, 64 numbers each: distances within 1e-9, and nobody changes its class."""
    features, prototypes = exact(200, 64, 0, offset), exact(40, 64, 1, offset)
    seen = torch.arange(40) != 7
    found, expected = nearest(features, prototypes.double(), seen), apart(features, prototypes)
    assert (found[:, 7] == -torch.inf).all()
    assert (found[:, seen] + expected[:, seen]).abs().max() < 1e-9
    assert (found.argmax(1) == expected.masked_fill(~seen, torch.inf).argmin(1)).all()


def prototypical_loss(features: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of one shot for features (b, f), of which two padded rows behind count for nothing."""
    weight = torch.full((len(labels),), 1 / len(labels))
    padding = torch.full((2, features.shape[1]), 5.0)
    x, weight = torch.cat([features, padding]), torch.cat([weight, torch.zeros(2)])
    now = Items(x, torch.cat([labels, labels[:2]]), x.new_zeros(len(x), 1), weight, x.new_zeros(len(x), 0))
    return Prototypical(shots=1)(Forward(lambda x: x, {}), Batch(now, {}), Anchors({}, {}))


@pytest.mark.parametrize("offset", OFFSETS)
def test_the_prototypical_loss_does_not_see_a_common_offset(offset: float) -> None:
    """Loss and gradient in float32 are those of the definition in float64, within 1e-4 of their size."""
    labels = torch.arange(4).repeat(3)
    features = exact(12, 6, 2, offset).requires_grad_()
    wanted = features.detach().double().requires_grad_()
    definition = cross_entropy(-apart_with_gradient(wanted[4:], wanted[:4]), labels[4:])
    loss = prototypical_loss(features, labels)
    assert loss.item() == pytest.approx(definition.item(), rel=1e-4)
    found, right = torch.autograd.grad(loss, features)[0], torch.autograd.grad(definition, wanted)[0]
    assert (found - right).abs().max() < 1e-4 * right.abs().max()


def apart_with_gradient(queries: Tensor, means: Tensor) -> Tensor:
    return (queries[:, None] - means[None]).square().sum(2)


def test_numbers_of_samples_are_counted_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than float32 can count: 2^24 + 1."""
    site = Clients.of(tiny()).site
    many = replace(
        case(site, (0, 0), torch.zeros(site.parameters.size), 1), items=torch.zeros(2**24 + 1, dtype=torch.uint8)
    )
    zeros = torch.zeros(site.parameters.size, dtype=torch.float64)
    monkeypatch.setattr("clients.answers.fisher.squared_gradients", lambda case: zeros)
    assert fisher_sums(many)[-1].item() == 2**24 + 1


# Losses that are no number


@pytest.mark.parametrize("order", ["curr, min_pool: 1", "anti, min_pool: 1", "cyclical"])
@pytest.mark.parametrize("score", ["G", "LG"])
def test_a_loss_that_is_no_number_is_the_hardest_in_every_order(order: str, score: str) -> None:
    """An item that the model answers with no number: the hardest first show it at first, the others do not."""
    scenario = tiny(f"client.curriculum={{order: {order}, score: {score}}}", "stream.tasks=1")
    stream, client = build_stream(scenario), np.array([1])
    stream.dataset.x[stream.train.cell(1, 0)[3]] = np.nan
    own = Clients(Site(scenario, stream, b""))
    site = own.site
    order_to_1 = TrainOrder(
        round=1, cohort=0, clients=client, tasks=np.array([0]), clocks=np.array([0]), packs=[""], rows=np.array([0]),
        folder="", weights=own.initial,
    )  # fmt: skip
    local = local_data(site.stream, order_to_1)
    losses = scores.losses(site, order_to_1, np.zeros(1, site.record), local)
    assert losses[0, 3] == HARDEST
    assert (np.delete(losses, 3, axis=1) < 100).all()
    one = np.ones(1, np.int64)
    visit = Visit(
        inside=local.inside, labels=np.zeros_like(local.items), losses=losses, steps=5 * one, number=0 * one,
        visits=one, keys=keys.key(0, Purpose.CURRICULUM, client, 1),
    )  # fmt: skip
    first = site.curriculum.pools(visit)(0, 0 * one)[0]
    assert 1 < first.sum() < len(first)
    assert first[3] == order.startswith("anti")
