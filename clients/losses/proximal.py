"""FedProx (Li et al., MLSys 2020, arXiv:1812.06127): mu / 2 * ||w_k - w||^2 to the global model of the round.

Parameters that stay on the client (`model.personal`) are not held: no other client shares them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clients.losses import Anchors, Batch, Forward


@dataclass(frozen=True, kw_only=True)
class Proximal:
    """Hold a client near the weights that it was sent."""

    mu: float = 0.01
    draws = ()

    def __call__(self, model: Forward, batch: Batch, anchors: Anchors) -> Tensor:
        """Return mu / 2 times the squared distance to the global model."""
        gaps = [(model.parameters[name] - w).square().sum() for name, w in anchors.shared["global"].items()]
        zero = torch.zeros((), dtype=batch.now.weight.dtype, device=batch.now.weight.device)
        return self.mu / 2 * torch.stack([zero, *gaps]).sum()
