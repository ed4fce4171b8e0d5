"""Federated Orthogonal Training (Bakman et al., ICLR 2024, arXiv:2309.01289).

Every round, for a protected layer with orthonormal basis U of old inputs:  dW <- dW - dW U U^T
At a task's end, from the summed sketches Y = sum_k (I - U U^T) A_k S_k:     U <- orth([U, leading directions of Y])

Protected are the weights of linear and convolutional layers, with `heads: shared` the head too; biases and affine
parameters of norms are not projected (nor are they in the paper). The step is projected last, after the server
optimiser. `energy` as published ("reference": the released code's unsquared ratios, weighted by n, at least one
direction) or "squared" (pooled squared norms; a layer may need no direction).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedcl.answers import Answer, Layout, Tensors
from fedcl.settings import setting
from server.methods.fedavg import FedAvg

HEAD = "head."


def project_out(delta: Tensor, basis: Tensor) -> Tensor:
    """Remove from delta (out, *in) the part of its rows in span(basis (d, k)), d = prod(in)."""
    flat = delta.flatten(1)
    return (flat - (flat @ basis) @ basis.T).view_as(delta)


def leading(values: Tensor, vectors: Tensor, wanted: float, *, at_least: int) -> Tensor:
    """Return the fewest leading directions (d, k) that hold more than `wanted` of the energy.

    Args:
        values: (r,) energies of the directions, descending, none negative.
        vectors: (d, r).
        wanted: share of the energy; at or below 0 nothing is needed.
        at_least: smallest k, where there is any energy.
    """
    if float(values.sum()) <= 0:
        return vectors[:, :0]
    held = torch.cumsum(values, 0) / values.sum()
    needed = int((held <= wanted).sum()) + 1 if wanted > 0 else 0
    return vectors[:, : min(max(needed, at_least), vectors.shape[1])]


def grow(basis: Tensor, new: Tensor) -> Tensor:
    """Return an orthonormal basis (d, k + n) of [basis, new]; twice is enough (Parlett)."""
    for _ in range(2):
        new = torch.linalg.qr(new - basis @ (basis.T @ new))[0] if new.shape[1] else new
    room = basis.shape[0] - basis.shape[1]
    return torch.cat([basis, new[:, :room]], dim=1)


@dataclass(frozen=True, kw_only=True)
class FOT(FedAvg):
    """FedAvg whose steps leave the outputs on old tasks' inputs as they are."""

    epsilon: float = setting(0.95, "share of a layer's input energy that is protected", above=0, high=1)
    epsilon_step: float = setting(0.0, "added to epsilon with every task", low=0, below=1)
    energy: Literal["reference", "squared"] = setting("reference", "how much energy is left: as released, or pooled")
    statistic: Literal["sketch", "gram"] = setting("sketch", "what clients send: R S with their own S, or A A^T")
    sketch_width: float | None = setting(
        None, "columns of S per input; default: 1 for convolutions, 5 for linear", above=0
    )
    heads: Literal["shared", "per-task"] = setting("shared", "a head shared by all tasks is protected too")
    consolidate_every: int = setting(0, "rounds between growths of the bases; 0: when a task ends for everyone", low=0)

    @property
    def task_answers(self) -> tuple[str, ...]:
        """Sketches or Gram matrices, riding on the answers of the round in which a task ends."""
        return (self.statistic,)

    @property
    def every(self) -> int:
        """Rounds between growths, 0: at task ends."""
        return self.consolidate_every

    def protected(self, parameters: Layout) -> list[str]:
        """Return the weights whose layers' inputs are measured and whose steps are projected."""
        weights = [name for name, shape in parameters.shapes if name.endswith(".weight") and len(shape) >= 2]
        return [name for name in weights if self.heads == "shared" or not name.startswith(HEAD)]

    def width(self, shape: tuple[int, ...]) -> int:
        """Return the columns of a layer's sketch, for a weight of this shape."""
        per_input = self.sketch_width or (1 if len(shape) > 2 else 5)
        return max(1, round(per_input * math.prod(shape[1:])))

    def begin(self, weights: Tensors) -> Tensors:
        """Return empty bases."""
        names = self.protected(Layout.of(weights))
        bases = {f"basis/{name}": weights[name].new_zeros(weights[name][0].numel(), 0) for name in names}
        return {**bases, "tasks": torch.zeros((), dtype=torch.int64)}

    def task_shared(self, state: Tensors) -> Tensors:
        """Return the bases, which clients need to measure what is new to them."""
        return {name: basis for name, basis in state.items() if name.startswith("basis/") and basis.shape[1]}

    def project(self, state: Tensors, step: Tensors) -> Tensors:
        """Remove from the step what would change the outputs on old inputs."""
        return {
            name: project_out(each, state[f"basis/{name}"]) if state.get(f"basis/{name}", each[:0]).numel() else each
            for name, each in step.items()
        }

    def end_task(
        self, state: Tensors, weights: Tensors, total: Answer | None, ended: Sequence[int]
    ) -> tuple[Tensors, Tensors]:
        """Grow every layer's basis by the directions that its share of the energy still needs."""
        if total is None or float(total["items"]) == 0:
            return state, weights
        epsilon = min(1.0, self.epsilon + self.epsilon_step * int(state["tasks"]))
        grown = {f"basis/{name}": self._grown(state, total, name, epsilon) for name in total.under("energy")}
        return {**state, **grown, "tasks": state["tasks"] + 1}, weights

    def _grown(self, state: Tensors, total: Answer, name: str, epsilon: float) -> Tensor:
        basis = state[f"basis/{name}"].double()
        weighted, left, whole = (float(each) for each in total[f"energy/{name}"])
        if self.statistic == "gram":
            gram = total[f"gram/{name}"].double()
            rest = gram - basis @ (basis.T @ gram)
            values, vectors = torch.linalg.eigh(rest - (rest @ basis) @ basis.T)
            values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        else:
            vectors, singular, _ = torch.linalg.svd(total[f"sketch/{name}"].double(), full_matrices=False)
            values = singular.square()
        squared = self.energy == "squared"
        ratio = left / max(whole, 1e-300) if squared else weighted / float(total["items"])
        wanted = (ratio - (1 - epsilon)) / ratio if ratio > 0 else 0.0
        new = leading(values, vectors, wanted, at_least=0 if squared else 1)
        return grow(basis, new).to(state[f"basis/{name}"].dtype)
