"""Synaptic intelligence (Zenke et al., ICML 2017, arXiv:1703.04200).

    L + c * sum_i omega_i (w_i - w*_i)^2;     at a task's end: omega <- max(0, omega + path / (moved^2 + xi)),  w* <- w

path_i is the sum over the local steps at the task of -g_i * (step of w_i), g being the gradient of the loss without
regularisers; moved_i is the sum of those steps. Neither counts the jumps to the global model between visits: they are
not the client's learning. w* is the client's model as its last visit to the task left it. The maximum with 0 is that of
the authors' code, not of the paper: a negative omega would reward going away.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clients.losses import Anchors, Batch, Forward, Kept, Left, Regulariser
from fedcl.answers import Tensors

THETA, OMEGA = "si.theta", "si.omega"


def importance(path: Tensor, moved: Tensor, xi: float) -> Tensor:
    """Return the decrease of the loss that each parameter brought, per squared distance: path / (moved^2 + xi)."""
    return path / (moved.square() + xi)


@dataclass(frozen=True, kw_only=True)
class SI(Regulariser):
    """Hold a client's parameters the more firmly the more they have done for its loss."""

    c: float = 0.5
    xi: float = 1.0
    keeps = (Kept(name=THETA), Kept(name=OMEGA))
    path = True

    def __call__(self, model: Forward, batch: Batch, anchors: Anchors) -> Tensor:
        """Return c times the weighted squared distance; 0 at the first task."""
        theta, omega = anchors.own[THETA], anchors.own[OMEGA]
        gaps = [(omega[name] * (w - theta[name]).square()).sum() for name, w in model.parameters.items()]
        return self.c * torch.stack(gaps).sum()

    def leave(self, kept: Tensors, left: Left) -> Tensors:
        """Return the model, and the importance of each parameter for all tasks so far."""
        omega = kept[OMEGA] + importance(left.path, left.moved, self.xi)
        return {THETA: left.model, OMEGA: omega.clamp(min=0)}
