"""The single-task oracle: FedAvg that starts afresh when a task begins, as a run of that task alone would.

What it reaches on each task right after training on it (`plasticity`) is what a model of that task alone can reach.
Server optimiser and selection begin anew, and a client that comes to another task is one that was never asked before:
no momentum, memory or personal parameter is left of it. A start is everybody's, so it means what it says only where
all clients are at the same task.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedcl.answers import Tensors
from server.methods.fedavg import FedAvg


@dataclass(frozen=True, kw_only=True)
class SingleTask(FedAvg):
    """FedAvg on one task at a time, each from the initial weights."""

    afresh: ClassVar[bool] = True

    def begin(self, weights: Tensors) -> Tensors:
        """Keep the initial weights."""
        return {name: each.clone() for name, each in weights.items()}

    def begin_task(self, state: Tensors, weights: Tensors, began: Sequence[int]) -> tuple[Tensors, Tensors]:
        """Return the initial weights."""
        return state, {name: each.clone() for name, each in state.items()}
