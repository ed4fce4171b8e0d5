"""Federated Orthogonal Training (Bakman et al., ICLR 2024, arXiv:2309.01289).

Every round, for a protected layer with orthonormal basis U of old inputs:  dW <- dW - dW U U^T
At a task's end, from the summed sketches Y = sum_k (I - U U^T) A_k S_k:     U <- orth([U, leading directions of Y])

Protected are the weights of linear and convolutional layers, with `heads: shared` the head too; biases and affine
parameters of norms are not projected (nor are they in the paper). The step is projected last, after the server
optimiser. `energy` as published ("reference": the released code's unsquared ratios, weighted by n, at least one
direction) or "squared" (pooled squared norms; a layer may need no direction: with `statistic: gram` that is GPM on the
pooled inputs). Departures: S is Gaussian for every model; directions that hold rounding alone are left out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fedcl.answers import Answer, Layout, Tensors
from fedcl.errors import ConfigError, nearest
from fedcl.settings import OutOfRange, setting
from server.methods.fedavg import FedAvg

HEAD = "head."
SATURATED = 0.9  # share of a layer's input directions above which it can hardly learn any more


def project_out(delta: Tensor, basis: Tensor) -> Tensor:
    """Remove from delta (out, *in) the part of its rows in span(basis (d, k)), d = prod(in)."""
    flat = delta.flatten(1)
    return (flat - (flat @ basis) @ basis.T).view_as(delta)


def leading(values: Tensor, vectors: Tensor, wanted: float, *, at_least: int) -> Tensor:
    """Return the fewest leading directions (d, k) that hold more than `wanted` of the energy.

    Args:
        values: (r,) energies of the directions, descending, none negative; one that holds nothing is never returned.
        vectors: (d, r).
        wanted: share of the energy; at or below 0 nothing is needed.
        at_least: smallest k, where there is any energy.
    """
    some = int((values > 0).sum())
    if not some:
        return vectors[:, :0]
    held = torch.cumsum(values, 0) / values.sum()
    needed = int((held <= wanted).sum()) + 1 if wanted > 0 else 0
    return vectors[:, : min(max(needed, at_least), some)]


def grow(basis: Tensor, new: Tensor) -> Tensor:
    """Return an orthonormal basis (d, k + n) of [basis, new]; columns of `new` inside span(basis) add nothing."""
    new = new - basis @ (basis.T @ new)
    new = new[:, new.norm(dim=0) > 1e-3][:, : basis.shape[0] - basis.shape[1]]
    for _ in range(2):  # twice is enough (Parlett)
        new = torch.linalg.qr(new - basis @ (basis.T @ new))[0] if new.shape[1] else new
    return torch.cat([basis, new], dim=1)


def energy_left(energy: Tensor, items: float, *, squared: bool) -> float:
    """Return the share of the inputs' energy outside the basis.

    Args:
        energy: (3,) sums over clients of n ||R|| / ||A||, ||R||^2 and ||A||^2.
        items: sum of n.
        squared: the pooled sum ||R||^2 / sum ||A||^2, else the weighted mean of ||R|| / ||A||.
    """
    weighted, left, whole = (float(each) for each in energy)
    return left / max(whole, 1e-300) if squared else weighted / items


def spectrum(total: Answer, name: str, basis: Tensor, *, gram: bool) -> tuple[Tensor, Tensor]:
    """Return energies (r,), descending, and directions (d, r) of a layer's inputs outside the basis (d, k), in float64.

    Energies that the rounding of the statistic alone can make are 0.
    """
    whole = float(total[f"energy/{name}"][2])
    rounding = torch.finfo(total.flat.dtype).eps
    if gram:
        matrix = total[f"gram/{name}"].double()
        rest = matrix - basis @ (basis.T @ matrix)
        values, vectors = torch.linalg.eigh(rest - (rest @ basis) @ basis.T)
        values, vectors, floor = values.flip(0), vectors.flip(1), rounding * whole
    else:
        sketch = total[f"sketch/{name}"].double()
        vectors, singular, _ = torch.linalg.svd(sketch, full_matrices=False)
        values, floor = singular.square(), 4 * rounding**2 * sketch.shape[1] * whole
    return torch.where(values > floor, values, 0.0), vectors


@dataclass(frozen=True, kw_only=True)
class FOT(FedAvg):
    """FedAvg whose steps leave the outputs on old tasks' inputs as they are."""

    epsilon: float = setting(0.95, "share of a layer's input energy that is protected", above=0, high=1)
    epsilons: dict[str, float] = setting({}, "the same by layer: name prefix -> share, {head: 0.99}")
    epsilon_step: float = setting(0.0, "added to these shares at every growth of the bases", low=0, below=1)
    energy: Literal["reference", "squared"] = setting("reference", "how much energy is left: as released, or pooled")
    statistic: Literal["sketch", "gram"] = setting("sketch", "what clients send: R S with their own S, or A A^T")
    sketch_width: float | None = setting(
        None, "columns of S per input; default: 1 for convolutions, 5 for linear", above=0
    )
    heads: Literal["shared", "per-task"] = setting("shared", "a head shared by all tasks is protected too")
    consolidate_every: int = setting(0, "rounds between growths of the bases; 0: when a task ends for everyone", low=0)

    def __post_init__(self) -> None:
        """Check the shares of single layers too.

        Raises:
            OutOfRange: a share is not in (0, 1].
        """
        super().__post_init__()
        for prefix, share in self.epsilons.items():
            if not 0 < share <= 1:
                raise OutOfRange("epsilons", {prefix: share}, "must be above 0 and at most 1")

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

    def share(self, name: str, growths: int) -> float:
        """Return the share of a layer's energy that is protected after so many growths (the longest prefix counts)."""
        own = max((prefix for prefix in self.epsilons if name.startswith(prefix)), key=len, default=None)
        return min(1.0, (self.epsilon if own is None else self.epsilons[own]) + self.epsilon_step * growths)

    def begin(self, weights: Tensors) -> Tensors:
        """Return empty bases.

        Raises:
            ConfigError: `epsilons` names no protected layer.
        """
        names = self.protected(Layout.of(weights))
        for prefix in self.epsilons:
            if not any(name.startswith(prefix) for name in names):
                raise ConfigError(
                    f"server.method.epsilons: no protected weight begins with {prefix!r}{nearest(prefix, names)}"
                )
        bases = {f"basis/{name}": weights[name].new_zeros(weights[name][0].numel(), 0) for name in names}
        return {**bases, "tasks": torch.zeros((), dtype=torch.int64)}

    def task_shared(self, state: Tensors) -> Tensors:
        """Return the bases, which clients need to measure what is new to them."""
        return {name: basis for name, basis in state.items() if name.startswith("basis/") and basis.shape[1]}

    def project(self, state: Tensors, step: Tensors) -> Tensors:
        """Remove from the step what would change the outputs on old inputs."""
        bases = self.task_shared(state)
        return {
            name: project_out(each, bases[f"basis/{name}"]) if f"basis/{name}" in bases else each
            for name, each in step.items()
        }

    def end_task(
        self, state: Tensors, weights: Tensors, total: Answer | None, ended: Sequence[int]
    ) -> tuple[Tensors, Tensors]:
        """Grow every layer's basis by the directions that its share of the energy still needs."""
        if total is None or float(total["items"]) == 0:
            return state, weights
        growths = int(state["tasks"])
        grown = {
            f"basis/{name}": self._grown(state[f"basis/{name}"], total, name, self.share(name, growths))
            for name in total.under("energy")
        }
        return {**state, **grown, "tasks": state["tasks"] + 1}, weights

    def _grown(self, old: Tensor, total: Answer, name: str, epsilon: float) -> Tensor:
        basis, squared = old.double(), self.energy == "squared"
        left = energy_left(total[f"energy/{name}"], float(total["items"]), squared=squared)
        wanted = (left - (1 - epsilon)) / left if left > 0 else 0.0
        values, vectors = spectrum(total, name, basis, gram=self.statistic == "gram")
        return grow(basis, leading(values, vectors, wanted, at_least=0 if squared else 1)).to(old.dtype)

    def report(self, state: Tensors, total: Answer | None, ended: Sequence[int]) -> Mapping[str, Any]:
        """Tell how much of every layer is protected, and what a reader should know about it."""
        bases = {name.removeprefix("basis/"): each for name, each in state.items() if name.startswith("basis/")}
        share = {name: round(each.shape[1] / each.shape[0], 4) for name, each in bases.items()}
        notes = [
            f"{name}: {each:.0%} of the input directions are protected, the layer can hardly learn any more"
            for name, each in share.items()
            if each > SATURATED
        ]
        if total is None or float(total["items"]) == 0:
            if self.every:
                return {}
            notes = [f"no client of the round was at task {', '.join(map(str, ended))}: nothing of it is protected"]
        return {"event": "bases", "rank": {name: each.shape[1] for name, each in bases.items()}, "share": share,
                "notes": notes}  # fmt: skip
