"""How much a model computes for a sample: what decides whether clients gain from being trained as a stack."""

from typing import Any

import torch
from torch import Tensor, nn


def multiplications(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the multiplications of one input's way through the linear and convolutional layers.

    Args:
        shape: of one input.
    """
    total = 0

    def count(layer: Any, _: Any, output: Tensor) -> None:
        nonlocal total
        total += output.numel() * layer.weight[0].numel()

    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    hooks = [each.register_forward_hook(count) for each in module.modules() if isinstance(each, layers)]
    kind = next(module.parameters()).dtype
    with torch.no_grad():
        module(torch.zeros(1, *shape, dtype=kind))
    for hook in hooks:
        hook.remove()
    return total
