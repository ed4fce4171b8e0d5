"""A-GEM (Chaudhry et al., ICLR 2019, arXiv:1812.00420).

With g_ref the gradient of the cross-entropy of a batch drawn from the memory:

    g <- g - (g . g_ref / ||g_ref||^2) g_ref    where g . g_ref < 0,    g otherwise

The product is taken over all parameters of one client at once. While the memory is empty, g_ref = 0 and g is kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clients.losses import Term
from clients.losses.cross_entropy import Replay
from fedcl.answers import Tensors


def dot(left: Tensors, right: Tensors) -> Tensor:
    """Return the inner product of two sets of named tensors, ()."""
    return torch.stack([(left[name] * right[name]).sum() for name in left]).sum()


def without_conflict(gradient: Tensors, reference: Tensors) -> Tensors:
    """Return the gradient nearest to `gradient` that does not point against `reference`."""
    product, square = dot(gradient, reference), dot(reference, reference)
    conflict = (product < 0) & (square > 0)
    factor = torch.where(conflict, product / torch.where(conflict, square, 1.0), 0.0)
    return {name: g - factor * reference[name] for name, g in gradient.items()}


@dataclass(frozen=True, kw_only=True)
class AGEM:
    """Project the gradient so that, to first order, the loss on the memory does not rise."""

    on: str = "gradient"
    level: str = "client"
    references: Mapping[str, Term] = field(default_factory=lambda: {"memory": Replay()})

    def __call__(self, gradients: Tensors, references: Mapping[str, Tensors]) -> Tensors:
        """Return the projected gradient."""
        return without_conflict(gradients, references["memory"])
