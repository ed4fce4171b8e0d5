"""The single-task oracle: FedAvg that starts afresh when a task begins.

What it reaches on each task right after training on it (`plasticity`) is what a model of that task alone can reach.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fedcl.answers import Tensors
from server.methods.fedavg import FedAvg


@dataclass(frozen=True, kw_only=True)
class SingleTask(FedAvg):
    """FedAvg on one task at a time, each from the initial weights."""

    def begin(self, weights: Tensors) -> Tensors:
        """Keep the initial weights."""
        return {name: each.clone() for name, each in weights.items()}

    def begin_task(self, state: Tensors, weights: Tensors, began: Sequence[int]) -> tuple[Tensors, Tensors]:
        """Return the initial weights."""
        return state, {name: each.clone() for name, each in state.items()}
