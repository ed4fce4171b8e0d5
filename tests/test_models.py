"""Models: sizes in closed form, weights from the seed alone, and what cannot be averaged is refused."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from fedcl.errors import ConfigError
from fedcl.models import Classifier, ModelSettings, make, personal_names
from fedcl.models.conv import CNN, ChannelsFirst, ResNet18, group_norm
from fedcl.models.dense import MLP, Linear

ALL = [Linear(), MLP(), CNN(), ResNet18(width=4)]


def n_parameters(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize(
    ("settings", "shape", "classes", "expected"),
    [
        (Linear(), (8, 8), 10, 64 * 10 + 10),
        (MLP(width=100), (8, 8), 10, 64 * 100 + 100 + 100 * 10 + 10),
        (MLP(width=5, depth=3), (4,), 2, 4 * 5 + 5 + 2 * (5 * 5 + 5) + 5 * 2 + 2),
        (CNN(), (8, 8), 10, 9 * 16 + 32 + 9 * 16 * 32 + 64 + (32 * 4) * 64 + 64 + 64 * 10 + 10),
        # What ResNet-18 for CIFAR-10 is known to have; group norm has as many parameters as batch norm.
        (ResNet18(), (32, 32, 3), 10, 11_173_962),
    ],
    ids=repr,
)
def test_number_of_parameters(settings: ModelSettings, shape, classes, expected):
    assert n_parameters(make(settings, shape, classes, seed=0)) == expected


@pytest.mark.parametrize("settings", ALL, ids=repr)
@pytest.mark.parametrize("shape", [(8, 8), (9, 7, 3)])
def test_forward_is_head_of_features(settings: ModelSettings, shape):
    model = make(settings, shape, 5, seed=0)
    x = torch.rand(2, *shape)
    logits = model(x)
    assert logits.shape == (2, 5)
    assert torch.equal(logits, model.head(model.features(x)))
    assert torch.allclose(logits[:1], model(x[:1]), atol=1e-5)


@pytest.mark.parametrize("settings", ALL, ids=repr)
def test_weights_belong_to_the_seed_and_leave_the_global_generator_alone(settings: ModelSettings):
    before = torch.get_rng_state()
    first, again, other = (make(settings, (8, 8), 3, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_channels_come_last():
    model = make(CNN(width=2), (6, 5, 3), 2, seed=0)
    convolution = model.get_parameter("body.1.0.weight")
    assert convolution.shape == (2, 3, 3, 3)
    with torch.no_grad():
        convolution[:, 1] = 0  # the second channel is then blind
    x = torch.rand(1, 6, 5, 3)
    changed = x.clone()
    changed[..., 1] += 1
    assert torch.equal(model(x), model(changed))
    changed[..., 2] += 1
    assert not torch.equal(model(x), model(changed))


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3)])
def test_convolutions_are_given_contiguous_images(shape: tuple[int, ...]):
    """Channels that lie last have corrupted memory in PyTorch's backward pass, and lack operators under vmap."""
    x = torch.rand(7, *shape)
    assert ChannelsFirst()(x).is_contiguous()
    assert torch.equal(ChannelsFirst()(x), x.unsqueeze(1) if len(shape) == 2 else x.movedim(-1, 1))
    stacked = torch.vmap(ChannelsFirst())(x[None].expand(3, *x.shape))
    assert torch.equal(stacked[2], ChannelsFirst()(x))


def test_a_narrow_residual_net_trains_in_colour_at_every_size_of_batch():
    """In float32, where PyTorch ended the process with "double free or corruption"."""
    model = make(ResNet18(width=4), (16, 16, 3), 4, seed=0)
    for batch in (16, 1, 2, 3, 5, 7, 16):
        loss = model(torch.rand(batch, 16, 16, 3)).square().sum()
        assert all(each.isfinite().all() for each in torch.autograd.grad(loss, list(model.parameters())))


def test_float64_weights_are_the_float32_ones_converted():
    single, double = (make(MLP(dtype=dtype), (8, 8), 10, seed=4) for dtype in ("float32", "float64"))
    assert {each.dtype for each in double.parameters()} == {torch.float64}
    pairs = zip(single.parameters(), double.parameters(), strict=True)
    assert all(torch.equal(a.double(), b) for a, b in pairs)


@pytest.mark.parametrize("settings", ALL, ids=repr)
def test_stacked_gradients_are_those_of_each_client(settings: ModelSettings):
    models = [make(settings, (8, 8), 3, seed).double() for seed in (0, 1)]
    parameters = [dict(model.named_parameters()) for model in models]
    stacked = {name: torch.stack([each[name].detach() for each in parameters]) for name in parameters[0]}
    x = torch.rand(2, 4, 8, 8, dtype=torch.float64)

    def loss(own: dict[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        return functional_call(models[0], own, (inputs,)).square().sum()

    gradients = vmap(grad(loss))(stacked, x)
    for row, model in enumerate(models):
        alone = torch.autograd.grad(model(x[row]).square().sum(), list(model.parameters()))
        pairs = zip(gradients.values(), alone, strict=True)
        assert all(torch.allclose(together[row], single, atol=1e-9) for together, single in pairs)


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (2, 1), (3, 1), (4, 2), (8, 4), (16, 8), (64, 8), (24, 4), (512, 8)]
)
def test_groups_have_at_least_two_channels(channels: int, groups: int):
    assert group_norm(channels).num_groups == groups


@pytest.mark.parametrize(("settings", "shape"), [(CNN(), (64,)), (CNN(), (3, 8)), (ResNet18(), (2, 2, 2, 2))])
def test_inputs_that_are_no_images_are_refused(settings: ModelSettings, shape):
    with pytest.raises(ConfigError, match=r"model\.name = '\w+': needs images .* use 'mlp'"):
        make(settings, shape, 2, seed=0)


@dataclass(frozen=True, kw_only=True)
class Normed(ModelSettings):
    """An outside model with batch norm."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return Classifier(nn.BatchNorm1d(*shape), *shape, classes)


@dataclass(frozen=True, kw_only=True)
class Headless(ModelSettings):
    """An outside model that does not name its head."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Linear(*shape, classes)


def test_outside_models_are_checked():
    with pytest.raises(ConfigError, match=r"Normed: has the buffer 'body\.running_mean'.* use nn\.GroupNorm"):
        make(Normed(), (4,), 2, seed=0)
    with pytest.raises(ConfigError, match=r"Headless: needs a method features\(x\) and a linear layer head"):
        make(Headless(), (4,), 2, seed=0)


def test_personal_parameters():
    names = ("body.1.weight", "body.1.bias", "head.weight", "head.bias")
    assert personal_names(MLP(), names) == ()
    assert personal_names(MLP(personal=["head"]), names) == names[2:]
    assert personal_names(MLP(personal=["*"]), names) == names
    with pytest.raises(ConfigError, match=r"no parameter begins with 'haed'"):
        make(MLP(personal=["haed"]), (4,), 2, seed=0)
