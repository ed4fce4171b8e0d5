"""Exponential smoothing of the mean update: D' = decay * D'_before + (1 - decay) * D."""

from dataclasses import dataclass

import torch

from fedcl.answers import Answer, Tensors
from fedcl.settings import setting
from server.methods import ServerMethod
from server.methods.fedavg import average


@dataclass(frozen=True, kw_only=True)
class Smoothed(ServerMethod):
    """FedAvg whose step remembers the steps before."""

    decay: float = setting(0.3, "share of the earlier steps", low=0, below=1)

    def begin(self, weights: Tensors) -> Tensors:
        """Return zero steps."""
        return {name: torch.zeros_like(each) for name, each in weights.items()}

    def end_round(self, state: Tensors, weights: Tensors, total: Answer) -> tuple[Tensors, Tensors]:
        """Return the smoothed update, as state and as step."""
        mean = average(total)
        step = {name: self.decay * state[name] + (1 - self.decay) * each for name, each in mean.items()}
        return step, step
