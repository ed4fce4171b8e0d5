"""Gradient clipping by the norm of one client's whole gradient (Pascanu et al., ICML 2013, arXiv:1211.5063)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from clients.losses import Term
from fedcl.answers import Tensors


@dataclass(frozen=True, kw_only=True)
class ClipNorm:
    """Scale the gradient down to `limit` where its norm is larger."""

    limit: float
    on: str = "gradient"
    level: str = "client"
    references: Mapping[str, Term] = field(default_factory=dict)

    def __call__(self, gradients: Tensors, references: Mapping[str, Tensors]) -> Tensors:
        """Return g * min(1, limit / ||g||)."""
        norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
        factor = (self.limit / norm.clamp(min=1e-30)).clamp(max=1.0)
        return {name: g * factor for name, g in gradients.items()}
