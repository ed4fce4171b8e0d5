"""Elastic weight consolidation (Kirkpatrick et al., PNAS 2017, arXiv:1612.00796), online (arXiv:1805.06370).

    L + lam / 2 * sum_i F_i (w_i - w*_i)^2;     at the end of a task: F <- gamma F + F_t,  w* <- w

F_t is the mean over the task's data of the squared gradient of each sample's log-likelihood (`clients.answers.fisher`).
EWC: w is the client's model as its last visit to the task left it, F_t that of its own data. FedEWC: w is the global
model at the task's end, F_t that of all clients' data together; nothing is kept on the client. Departure: where
lr * lam * F_i is above 2, so that plain SGD must diverge (2 (1 + momentum) with momentum), a visit takes 1 / (lr * lam)
for F_i, from which one step of the penalty leads to w*_i (`clients.anchors.bounded`). What is kept of F is not changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from clients.answers.fisher import squared_gradients
from clients.losses import Anchors, Batch, Forward, Kept, Left, Regulariser
from fedcl.answers import Tensors

THETA, FISHER = "ewc.theta", "ewc.fisher"


def penalty(parameters: Tensors, anchors: Mapping[str, Tensors]) -> Tensor:
    """Return sum_i F_i (w_i - w*_i)^2 over the parameters that F has."""
    theta, fisher = anchors[THETA], anchors[FISHER]
    return torch.stack([(f * (parameters[name] - theta[name]).square()).sum() for name, f in fisher.items()]).sum()


@dataclass(frozen=True, kw_only=True)
class EWC(Regulariser):
    """Hold a client near its own models at the ends of its tasks."""

    lam: float = 10.0
    gamma: float = 1.0
    keeps = (Kept(name=THETA), Kept(name=FISHER))

    @property
    def curvature(self) -> dict[str, float]:
        """Lam * F."""
        return {FISHER: self.lam}

    def __call__(self, model: Forward, batch: Batch, anchors: Anchors) -> Tensor:
        """Return lam / 2 times the penalty; 0 at the first task."""
        return self.lam / 2 * penalty(model.parameters, anchors.own)

    def leave(self, kept: Tensors, left: Left) -> Tensors:
        """Return the model, and the Fisher information of all tasks so far."""
        new = squared_gradients(left.case) / len(left.case.items)
        return {THETA: left.model, FISHER: self.gamma * kept[FISHER] + new}


@dataclass(frozen=True, kw_only=True)
class FedEWC(Regulariser):
    """Hold a client near the global models at the ends of tasks."""

    lam: float = 10.0
    reads = (THETA, FISHER)

    @property
    def curvature(self) -> dict[str, float]:
        """Lam * F."""
        return {FISHER: self.lam}

    def __call__(self, model: Forward, batch: Batch, anchors: Anchors) -> Tensor:
        """Return lam / 2 times the penalty; 0 until a task has ended."""
        if FISHER not in anchors.shared:
            return torch.zeros_like(batch.now.weight).sum()
        return self.lam / 2 * penalty(model.parameters, anchors.shared)
