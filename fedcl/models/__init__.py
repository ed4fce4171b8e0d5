"""Models: features and a linear head, built from a seed. Group norm instead of batch norm, dropout by hash.

Batch norm keeps running means in integer and float buffers that neither add up over clients nor stack, so modules with
buffers are refused; torch's dropout draws from a global generator and is refused too (`fedcl.models.dropout`).
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
from fedcl.models.dropout import Dropout
from fedcl.settings import Settings, setting

EVERYTHING = "*"


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


def given(settings: ModelSettings, drawn: Tensors) -> Tensors:
    """Return the weights that a run starts from: those of the file `weights`, if there is one, else the drawn ones.

    A head of another shape (other classes) stays as drawn; everything else must fit by name and shape. Only the server
    reads the file, and only at a run's start.

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
        ConfigError: inputs that the architecture cannot take, a module with buffers or without a linear head, or a
            personal prefix that no parameter has.
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
    for each in module.modules():
        if isinstance(each, nn.modules.dropout._DropoutNd):
            raise ConfigError(
                f"model {name}: has {each}, whose draws cannot be repeated; use fedcl.models.dropout.Dropout"
            )
    for number, layer in enumerate(each for each in module.modules() if isinstance(each, Dropout)):
        layer.number = number
    personal_names(settings, (parameter for parameter, _ in module.named_parameters()))
    return module.to(getattr(torch, settings.dtype))
