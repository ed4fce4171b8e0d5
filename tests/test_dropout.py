"""Dropout by hash: what is dropped, how much, and that it is the same alone, in a stack and anywhere."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from fedcl import keys, models
from fedcl.api import load
from fedcl.errors import ConfigError
from fedcl.keys import Purpose
from fedcl.models import dense, dropout
from tests.federations import run, tiny

KEY = torch.tensor(7)


def test_torch_and_numpy_draw_the_same_bits() -> None:
    own = keys.key(3, Purpose.DROPOUT, np.arange(4), 9)
    drawn = keys.bits(own, 5).view(np.int64)
    signed = torch.from_numpy(own.view(np.int64))
    assert (dropout.stir(signed[:, None], torch.arange(5)).numpy() == drawn).all()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_share_is_dropped_and_the_mean_stays(share: float) -> None:
    layer, x = dropout.Dropout(share), torch.ones(400, 500)
    with dropout.dropping(KEY):
        y = layer(x)
    kept = 1 - round(share * 65536) / 65536
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / kept).item()}
    deviation = (share * kept / x.numel()) ** 0.5  # of the share that is dropped
    assert abs((y == 0).double().mean().item() - share) < 4 * deviation
    rows = (y == 0).double().mean(0)  # no unit is favoured: chi-square over the columns
    assert abs((400 * (rows - share).square() / (share * kept)).sum().item() - 500) < 4 * (2 * 500) ** 0.5


def test_outside_training_nothing_is_dropped_and_names_stay() -> None:
    wet = models.make(dense.MLP(width=8, dropout=[0.5], input_dropout=0.2), (4,), 3, seed=1)
    dry = models.make(dense.MLP(width=8), (4,), 3, seed=1)
    x = torch.randn(6, 4)
    assert torch.equal(wet(x), dry(x))
    assert list(dict(wet.named_parameters())) == list(dict(dry.named_parameters()))
    with dropout.dropping(KEY):
        assert not torch.equal(wet(x), dry(x))
    assert torch.equal(wet(x), dry(x))


def test_layers_passes_and_keys_drop_differently() -> None:
    module = models.make(dense.MLP(width=4, depth=2, dropout=[0.5], input_dropout=0.5), (4,), 3, seed=1)
    layers = [each for each in module.modules() if isinstance(each, dropout.Dropout)]
    assert [each.number for each in layers] == [0, 1, 2]
    x = torch.ones(64, 4)
    seen = set()
    for key in (KEY, dropout.stir(KEY, 1), KEY + 1):
        for layer in layers:
            with dropout.dropping(key):
                seen.add(tuple(layer(x).flatten().tolist()))
    assert len(seen) == 9


def test_a_stack_drops_what_each_client_drops_alone() -> None:
    module = models.make(dense.MLP(width=8, dropout=[0.5], input_dropout=0.2, dtype="float64"), (4,), 3, seed=1)
    weights = {name: each.detach() for name, each in module.named_parameters()}
    x, own = torch.randn(3, 6, 4, dtype=torch.float64), torch.tensor([5, -(2**62), 11])

    def call(key: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        with dropout.dropping(key):
            return functional_call(module, weights, (x,))

    stacked = torch.vmap(call)(own, x)
    alone = torch.stack([call(key, each) for key, each in zip(own, x, strict=True)])
    assert (stacked - alone).abs().max() < 1e-14


@dataclass(frozen=True, kw_only=True)
class Torchs(dense.MLP):
    """An MLP with dropout of torch's."""

    layer: str = "Dropout"
    share: float = 0.5

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        drops = getattr(nn, self.layer)(self.share)
        body = nn.Sequential(nn.Flatten(), nn.Linear(shape[0], 8), nn.Sequential(nn.ReLU(), drops))
        return models.Classifier(body, 8, classes)


def test_torchs_dropout_is_replaced_by_ours() -> None:
    """The same numbers as the shipped mlp with the same share, in training and outside."""
    theirs, own = (
        models.make(Torchs(), (4,), 3, seed=1),
        models.make(dense.MLP(width=8, dropout=[0.5]), (4,), 3, seed=1),
    )
    x = torch.randn(6, 4)
    assert torch.equal(theirs(x), own(x))
    with dropout.dropping(KEY):
        assert torch.equal(theirs(x), own(x))
        assert (theirs.features(x) == 0).double().mean() > 0.4


@pytest.mark.parametrize("other", [Torchs(layer="AlphaDropout"), Torchs(layer="Dropout1d"), Torchs(share=1.0)])
def test_dropout_of_other_kinds_is_refused(other: Torchs) -> None:
    with pytest.raises(ConfigError, match=r"cannot be repeated; use nn\.Dropout"):
        models.make(other, (4,), 3, seed=0)


@pytest.mark.parametrize("method", ["er", "agem", "derpp"])
def test_clients_trained_together_end_where_they_end_alone(tmp_path: Path, method: str) -> None:
    wet = ("model.dtype=float64", "model.dropout=[.5]", "model.input_dropout=.2", f"client.method={method}")

    def trained(name: str, *overrides: str) -> dict[str, torch.Tensor]:
        run(tiny(*wet, *overrides), tmp_path / name)
        return dict(load(tmp_path / name).model().state_dict())

    alone, together = trained("alone", "engine.stack=1"), trained("together", "engine.stack=2")
    assert max((alone[name] - each).abs().max().item() for name, each in together.items()) < 1e-12
    dry = trained("dry", "model.dropout=[]", "model.input_dropout=0")
    assert max((alone[name] - each).abs().max().item() for name, each in dry.items()) > 1e-3
