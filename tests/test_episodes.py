"""Episodic training: who is in an episode, the prototypical loss by hand, and an embedding that gets better by it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from clients.curricula.episodes import drawn
from clients.losses import Anchors, Batch, Forward, Items
from clients.losses.prototypical import Prototypical, split
from fedcl import keys
from fedcl.errors import ConfigError
from fedcl.keys import Purpose
from fedcl.testing import killed_run_resumes, stacked_equals_one_by_one, workers_make_no_difference
from tests.federations import run, tiny

EPISODIC = (
    "client.method={name: prototypical, shots: 2}", "client.curriculum={order: episodes, ways: 2, examples: 4}",
    "client.batch=8", "client.epochs=2", "model.dtype=float64",
)  # fmt: skip


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.integers(2, 5), st.integers(2, 4), st.integers(0, 2**32))
def test_an_episode_has_some_classes_and_some_items_of_each(n: int, ways: int, examples: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, inside = rng.integers(0, 6, (2, n)), np.ones((2, n), np.bool_)
    inside[1, n // 2 :] = False
    own = keys.key(seed, Purpose.CURRICULUM, np.arange(2), 1)
    found = drawn(own, labels, inside, ways=ways, examples=examples)
    assert not (found & ~inside).any()
    for row in range(2):
        there, counts = np.unique(labels[row, inside[row]], return_counts=True)
        taken, sizes = np.unique(labels[row, found[row]], return_counts=True)
        assert len(taken) == min(ways, len(there))
        assert (sizes == np.minimum(counts[np.isin(there, taken)], examples)).all()
    alone = drawn(own[1:], labels[1:, : max(1, n // 2)], inside[1:, : max(1, n // 2)], ways=ways, examples=examples)
    assert (alone[0] == found[1, : max(1, n // 2)]).all()  # the padding plays no part


def test_episodes_draw_classes_and_items_evenly() -> None:
    """2,000 episodes of 2 of 5 classes and 2 of 4 items: every item in a fifth of them, within four deviations."""
    labels, inside = np.repeat(np.arange(5), 4)[None], np.ones((1, 20), np.bool_)
    own = keys.key(0, Purpose.CURRICULUM, np.arange(2000)[:, None], 1)
    hits = sum(drawn(each, labels, inside, ways=2, examples=2)[0].astype(int) for each in own)
    assert (abs(hits - 400) < 4 * (2000 * 0.2 * 0.8) ** 0.5).all()


def by_hand(features: Tensor, labels: list[int], shots: int) -> Tensor:
    """The definition, item by item."""
    members = {c: [i for i, y in enumerate(labels) if y == c] for c in dict.fromkeys(labels)}
    means = torch.stack([features[own[:shots]].mean(0) for own in members.values()])
    losses = []
    for number, own in enumerate(members.values()):
        for i in own[shots:]:
            distances = (features[i] - means).square().sum(1)
            losses.append(cross_entropy(-distances[None], torch.tensor([number])))
    return torch.stack(losses).mean() if losses else features.sum() * 0


def loss_of(w: Tensor, x: Tensor, labels: list[int], real: list[bool], shots: int) -> Tensor:
    weight = torch.tensor(real, dtype=x.dtype) / sum(real)
    now = Items(x, torch.tensor(labels), x.new_zeros(len(x), 1), weight, x.new_zeros(len(x), 0))
    model = Forward(lambda x: x, {}, embed=lambda x: x @ w)
    return Prototypical(shots=shots)(model, Batch(now, {}), Anchors({}, {}))


@pytest.mark.parametrize("shots", [1, 2, 3])
def test_the_loss_and_its_gradient_are_those_of_the_definition(shots: int) -> None:
    torch.manual_seed(shots)
    labels = [3, 1, 3, 3, 1, 0, 1, 3, 1, 0]
    x, w = torch.randn(12, 4, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    ours, theirs = w.clone().requires_grad_(), w.clone().requires_grad_()
    loss = loss_of(ours, x, [*labels, 3, 7], [True] * 10 + [False] * 2, shots)  # two padded rows count for nothing
    wanted = by_hand(x[:10] @ theirs, labels, shots)
    assert abs(loss.item() - wanted.item()) < 1e-12
    found, right = torch.autograd.grad(loss, ours)[0], torch.autograd.grad(wanted, theirs)[0]
    assert (found - right).abs().max() < 1e-12


def test_without_queries_nothing_is_lost() -> None:
    w = torch.eye(2, dtype=torch.float64).requires_grad_()
    loss = loss_of(w, torch.randn(4, 2, dtype=torch.float64), [0, 0, 1, 1], [True] * 4, 2)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, w)[0].abs().max() == 0


def test_support_comes_first_and_padding_is_neither() -> None:
    support, query = split(torch.tensor([0, 0, 1, 0, 1, 0]), torch.tensor([True, True, True, True, True, False]), 1)
    assert support.tolist() == [True, False, True, False, False, False]
    assert query.tolist() == [False, True, False, True, True, False]


def test_an_episode_must_fit_into_a_step() -> None:
    with pytest.raises(ConfigError, match=r"client\.batch = 7: .* set client\.batch = 8"):
        tiny(*EPISODIC, "client.batch=7")


def test_a_model_without_hidden_layers_has_no_embedding_to_train(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"client\.method = 'prototypical': .* set model to one with hidden layers"):
        run(tiny(*EPISODIC, "model=linear"), tmp_path / "run")


def test_training_makes_class_means_better(tmp_path: Path) -> None:
    """Class means of an embedding trained episodically on two of four classes, against those of the drawn one."""
    common = (
        "stream.dataset={name: synthetic, classes: 4, features: 50, separation: 2, samples: 400, test_samples: 400}",
        "stream.schedule.rounds_per_task=6", "model.width=4", "server.method={name: prototypes, base_rounds: 6}",
        "client.optimizer.lr=0.03",
    )  # fmt: skip
    trained = run(tiny(*EPISODIC, *common, "client.epochs=8"), tmp_path / "trained")["metrics"]["acc"]
    as_drawn = run(tiny(*EPISODIC, *common, "client.method=frozen"), tmp_path / "drawn")["metrics"]["acc"]
    assert trained > as_drawn + 0.05


def test_conformance_of_episodes(tmp_path: Path) -> None:
    scenario = tiny(*EPISODIC, "engine.cohort=4")
    stacked_equals_one_by_one(scenario, tmp_path / "stack")
    killed_run_resumes(scenario, tmp_path / "kill")


@pytest.mark.slow
def test_workers_make_no_difference_to_episodes(tmp_path: Path, ray_cluster: None) -> None:
    workers_make_no_difference(tiny(*EPISODIC), tmp_path)
