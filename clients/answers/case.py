"""What a statistic of a task's data sees: one client's data of the task, a model, and what the method asks with it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedcl.answers import Layout, Tensors
from fedcl.source import Source

CHUNK = 256  # samples that pass through the model at a time


@dataclass(frozen=True, kw_only=True)
class Case:
    """One client, one task, one model."""

    module: nn.Module  # with the weights that the method asks about
    parameters: Layout
    method: Any  # the server method's settings
    shared: Tensors  # what the method sends with the question
    data: Source
    items: Tensor  # (n,) training items of the task
    tasks: Tensor  # (n,) how they are shown
    client: int
    round: int
    secret: bytes  # of the node, for draws that nobody else may know (`fedcl.hidden`)

    def inputs(self) -> Iterator[Tensor]:
        """Yield the model's inputs (b, *shape), a chunk at a time."""
        for begin in range(0, len(self.items), CHUNK):
            part = slice(begin, begin + CHUNK)
            yield self.data.inputs(self.items[part], self.tasks[part])

    def labelled(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs (b, *shape) and labels (b,), a chunk at a time."""
        return zip(self.inputs(), torch.split(self.data.y[self.items], CHUNK), strict=True)


def features_of(module: nn.Module, x: Tensor) -> Tensor:
    """Return the features (b, f) of inputs (b, *shape) in float64."""
    features: Tensor = module.features(x)  # type: ignore[operator]
    return features.detach().double()


def load_weights(module: nn.Module, layout: Layout, flat: Tensor) -> None:
    """Make the module's parameters views of a flat vector (P,)."""
    parameters = dict(module.named_parameters())
    for name, view in layout.views(flat).items():
        parameters[name].data = view


@torch.no_grad()
def layer_inputs(module: nn.Module, names: tuple[str, ...], x: Tensor) -> Tensors:
    """Return what enters the named layers when x passes through the model.

    Args:
        module: made of nn.Linear and nn.Conv2d layers (without groups) among others.
        names: names of weights, `body.1.weight`.
        x: inputs (b, *shape).

    Returns:
        Weight name -> columns (d, n): d = inputs of a linear layer, or channels * kernel height * kernel width of a
        convolution (im2col), which has one column a sample and output position.
    """
    found: Tensors = {}
    hooks = []
    for name in names:
        layer = module.get_submodule(name.removesuffix(".weight"))

        def keep(layer: nn.Module, arguments: tuple[Tensor, ...], name: str = name) -> None:
            found[name] = columns(layer, arguments[0])

        hooks.append(layer.register_forward_pre_hook(keep))
    try:
        module(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def columns(layer: nn.Module, x: Tensor) -> Tensor:
    """Return a layer's input as columns (d, n).

    Raises:
        TypeError: the layer is neither linear nor a convolution without groups.
    """
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2).T
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1 or layer.padding_mode != "zeros":
        raise TypeError(f"the inputs of {layer} are not known to layer statistics: it must be linear or a plain Conv2d")
    patches = nn.functional.unfold(x, layer.kernel_size, layer.dilation, _pair(layer.padding), layer.stride)
    return patches.transpose(0, 1).flatten(1)


def _pair(padding: Any) -> Any:
    if isinstance(padding, str):
        raise TypeError("convolutions with padding given as a text are not supported by layer statistics")
    return padding
