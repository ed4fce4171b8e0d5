"""FedProx (Li et al., MLSys 2020, arXiv:1812.06127): mu / 2 * ||w_k - w||^2 to the global model of the round."""

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
        gaps = [(w - anchors.shared["global"][name]).square().sum() for name, w in model.parameters.items()]
        return self.mu / 2 * torch.stack(gaps).sum()
