"""Models: features and a linear head, built from a seed. Group norm instead of batch norm, dropout by hash.

Batch norm keeps running means in integer and float buffers that neither add up over clients nor stack, so modules with
buffers are refused. torch's dropout draws from a global generator: ours takes its place (`fedcl.models.dropout`). What
a model does is tried out, whatever it is made of (`fedcl.models.behaviour`). Parameters with `requires_grad = False`
are part of the model as it is built: they do not train, and never travel.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fedcl import files, kept, keys
from fedcl.answers import Tensors
from fedcl.errors import ConfigError, nearest
from fedcl.keys import Purpose
from fedcl.models.behaviour import shortcoming
from fedcl.models.dropout import Dropout, ours
from fedcl.settings import Settings, setting

EVERYTHING = "*"
_SOUND: set[tuple[type, str, tuple[int, ...], int]] = set()  # models that this process has tried


class Classifier(nn.Module):
    """A body that makes features (b, f) of inputs (b, *shape), and a linear head."""

    def __init__(self, body: nn.Module, features: int, classes: int) -> None:
        """Put a head for `classes` classes on a body with `features` outputs."""
        super().__init__()
        self.body = body
        self.head = nn.Linear(features, classes)

    def features(self, x: Tensor) -> Tensor:
        """Return features (b, f) of inputs (b, *shape)."""
        features: Tensor = self.body(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (b, classes) of inputs (b, *shape)."""
        logits: Tensor = self.head(self.features(x))
        return logits


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings, ABC):
    """What all architectures have in common."""

    personal: list[str] = setting([], "name prefixes of parameters kept on the client; '*' keeps all")
    dtype: Literal["float32", "float64"] = setting("float32", "floating point numbers of weights and arithmetic")
    weights: str | None = setting(
        None, "model.safetensors to start from (but for a head of another shape); default: drawn from the seed"
    )

    @abstractmethod
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Return a module with `features(x)`, a linear `head`, and forward = head(features(x)).

        Args:
            shape: of one input; inputs arrive as (b, *shape).
            classes: number of logits.

        Raises:
            ConfigError: the architecture cannot take such inputs.
        """


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that train, by name: what clients and the server have of a model between them."""
    return {name: each for name, each in module.named_parameters() if each.requires_grad}


def fixed(module: nn.Module) -> Tensors:
    """Return the parameters that do not train, by name: everybody builds them with the model."""
    return {name: each.detach() for name, each in module.named_parameters() if not each.requires_grad}


def personal_names(settings: ModelSettings, names: Iterable[str]) -> tuple[str, ...]:
    """Return the parameters, among `names` and in their order, that stay on the client.

    Raises:
        ConfigError: a prefix that no parameter has.
    """
    names = tuple(names)
    for prefix in settings.personal:
        if prefix != EVERYTHING and not any(name.startswith(prefix) for name in names):
            raise ConfigError(f"model.personal: no parameter begins with {prefix!r}{nearest(prefix, names)}")
    prefixes = tuple("" if prefix == EVERYTHING else prefix for prefix in settings.personal)
    return tuple(name for name in names if name.startswith(prefixes))


def given(settings: ModelSettings, drawn: Tensors, built: Tensors | None = None) -> Tensors:
    """Return the weights that a run starts from: those of the file `weights`, if there is one, else the drawn ones.

    A head of another shape (other classes) stays as drawn; everything else must fit by name and shape. Only the server
    reads the file, and only at a run's start.

    Args:
        drawn: the parameters that train.
        built: those that do not: the file must not have them otherwise, for everybody builds them with the model.

    Raises:
        ConfigError: the file cannot be read, or is of another model.
    """
    if settings.weights is None:
        return drawn
    key = f"model.weights = {settings.weights!r}"
    try:
        found = kept.tensors(files.named(settings.weights, "model.weights =", files.ARRAYS))
    except ValueError as error:
        raise ConfigError(f"{key}: cannot be read as safetensors ({error})") from error
    for name, each in drawn.items():
        body = not name.startswith("head.")
        if name not in found and body:
            raise ConfigError(f"{key}: has no parameter {name!r}{nearest(name, found)}")
        if body and found[name].shape != each.shape:
            shapes = f"shape {tuple(found[name].shape)} where the model has {tuple(each.shape)}"
            raise ConfigError(f"{key}: parameter {name!r} has {shapes}")
        if name in found and not torch.isfinite(found[name]).all():
            raise ConfigError(f"{key}: parameter {name!r} has numbers that are not finite")
    for name, each in (built or {}).items():
        if name in found and not torch.equal(found[name].to(each), each):
            raise ConfigError(
                f"{key}: parameter {name!r} does not train (requires_grad = False), and the file has other numbers for "
                "it than the model is built with; let the model's build read them"
            )
    fits = {name: name in found and found[name].shape == each.shape for name, each in drawn.items()}
    return {name: found[name].to(each) if fits[name] else each for name, each in drawn.items()}


def make(settings: ModelSettings, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    """Build a model with the weights that belong to a seed.

    Args:
        settings: architecture and number format; float64 weights are the float32 ones, converted.
        shape: of one input.
        classes: number of logits.
        seed: the run's seed.

    Raises:
        ConfigError: inputs that the architecture cannot take, a module with buffers or without a linear head, one
            whose samples see each other, or a personal prefix that no parameter has.
    """
    with keys.seeded(seed, Purpose.MODEL):
        module = settings.build(shape, classes)
    name = type(settings).__name__
    for buffer, _ in module.named_buffers():
        raise ConfigError(
            f"model {name}: has the buffer {buffer!r}, which cannot be averaged; use nn.GroupNorm for batch norm"
        )
    if not (isinstance(getattr(module, "head", None), nn.Linear) and callable(getattr(module, "features", None))):
        raise ConfigError(
            f"model {name}: needs a method features(x) and a linear layer head (see fedcl.models.Classifier)"
        )
    if not trained(module):
        raise ConfigError(f"model {name}: no parameter trains: all have requires_grad = False")
    ours(module, f"model {name}")
    for number, layer in enumerate(each for each in module.modules() if isinstance(each, Dropout)):
        layer.number = number
    personal_names(settings, trained(module))
    module = module.to(getattr(torch, settings.dtype))
    kind = (type(settings), repr(settings), shape, classes)
    if kind not in _SOUND and (problem := shortcoming(module, shape, classes, seed)):
        raise ConfigError(f"model {name}: {problem}")
    _SOUND.add(kind)
    return module
