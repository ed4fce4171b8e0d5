"""Federated Orthogonal Training (Bakman et al., ICLR 2024, arXiv:2309.01289).

Every round, for a protected layer with orthonormal basis U of old inputs:  dW <- dW - dW U U^T
At a task's end, from the summed sketches Y = sum_k (I - U U^T) A_k S_k:     U <- orth([U, leading directions of Y])

Protected are the weights of linear and convolutional layers, with `heads: shared` the head too; biases and affine
parameters of norms are not projected (nor are they in the paper). The step is projected last, after the server
optimiser. `energy` as published ("reference": the released code's unsquared ratios, weighted by n, at least one
direction) or "squared" (pooled squared norms; a layer may need no direction: with `statistic: gram` that is GPM on the
pooled inputs). `project_bias` counts a layer's bias as the weight of one more input that is always 1. Departure:
directions that hold rounding alone are left out.
"""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fedcl.answers import Answer, Layout, Tensors, under
from fedcl.forms import Form, Forms
from fedcl.settings import setting
from fedcl.subspace import Protection, directions_of_gram, directions_of_sketch, grown, project_out, wanted_share
from server.methods.fedavg import FedAvg

SATURATED = 0.9  # share of a layer's input directions above which it can hardly learn any more


def energy_left(energy: Tensor, items: float, *, squared: bool) -> float:
    """Return the share of the inputs' energy outside the basis.

    Args:
        energy: (3,) sums over clients of n ||R|| / ||A||, ||R||^2 and ||A||^2.
        items: sum of n.
        squared: the pooled sum ||R||^2 / sum ||A||^2, else the weighted mean of ||R|| / ||A||.
    """
    weighted, left, whole = (float(each) for each in energy)
    return left / max(whole, 1e-300) if squared else weighted / items


@dataclass(frozen=True, kw_only=True)
class FOT(Protection, FedAvg):
    """FedAvg whose steps leave the outputs on old tasks' inputs as they are."""

    energy: Literal["reference", "squared"] = setting("reference", "how much energy is left: as released, or pooled")
    statistic: Literal["sketch", "gram"] = setting("sketch", "what clients send: R S with their own S, or A A^T")
    sketch_width: float | None = setting(
        None, "columns of S per input; default: 1 for convolutions, 5 for linear", above=0
    )
    sketch_draws: Literal["normal", "uniform"] = setting("normal", "entries of S: N(0, 1), or uniform in [-1, 1]")
    project_bias: bool = setting(False, "protect biases too, as weights of one more input that is always 1")
    consolidate_every: int = setting(0, "rounds between growths of the bases; 0: when a task ends for everyone", low=0)

    @property
    def task_answers(self) -> tuple[str, ...]:
        """Sketches or Gram matrices, riding on the answers of the round in which a task ends."""
        return (self.statistic,)

    @property
    def every(self) -> int:
        """Rounds between growths, 0: at task ends."""
        return self.consolidate_every

    def inputs(self, parameters: Layout) -> dict[str, int]:
        """Return the inputs d of every protected layer, by the name of its weight; a protected bias is one more."""
        known = dict(parameters.shapes)
        return {name: d + (self._bias(name, known) is not None) for name, d in super().inputs(parameters).items()}

    def width(self, shape: tuple[int, ...]) -> int:
        """Return the columns of a layer's sketch, for a weight of this shape."""
        per_input = self.sketch_width or (1 if len(shape) > 2 else 5)
        return max(1, round(per_input * math.prod(shape[1:])))

    def _bias(self, name: str, known: Container[str]) -> str | None:
        """Return the bias that is protected together with a weight, if there is one."""
        bias = name.removesuffix("weight") + "bias"
        return bias if self.project_bias and bias in known else None

    def begin(self, weights: Tensors) -> Tensors:
        """Return empty bases.

        Raises:
            ConfigError: `epsilons` names no protected layer.
        """
        self.check_layers(Layout.of(weights), "server.method")
        inputs = self.inputs(Layout.of(weights))
        bases = {f"basis/{name}": weights[name].new_zeros(d, 0) for name, d in inputs.items()}
        return {**bases, "tasks": torch.zeros((), dtype=torch.int64)}

    def task_shared(self, state: Tensors) -> Tensors:
        """Return the bases, which clients need to measure what is new to them."""
        return {name: basis for name, basis in state.items() if name.startswith("basis/") and basis.shape[1]}

    def task_shared_forms(self, parameters: Layout, tasks: int) -> Forms:
        """Return that a layer has an orthonormal basis of its inputs, or none yet."""
        inputs = self.inputs(parameters).items()
        return {f"basis/{name}": Form(shape=(d, None), orthonormal=True, optional=True) for name, d in inputs}

    def project(self, state: Tensors, step: Tensors) -> Tensors:
        """Remove from the step what would change the outputs on old inputs."""
        bent, bases = dict(step), under("basis", self.task_shared(state))
        for name in [name for name in step if name in bases]:
            basis = bases[name]
            bias = self._bias(name, step)
            if bias is None:
                bent[name] = project_out(step[name], basis)
            else:
                rows = project_out(torch.cat([step[name].flatten(1), step[bias][:, None]], dim=1), basis)
                bent[name], bent[bias] = rows[:, :-1].view_as(step[name]), rows[:, -1]
        return bent

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
        matrix, rounding = total[f"{self.statistic}/{name}"], torch.finfo(total.flat.dtype).eps
        whole = float(total[f"energy/{name}"][2])
        if self.statistic == "gram":
            values, vectors = directions_of_gram(matrix, basis, rounding * whole)
        else:
            floor, wanted = 4 * rounding**2 * matrix.shape[1] * whole, wanted_share(left, epsilon)
            values, vectors = directions_of_sketch(matrix, floor, wanted)
        new = grown(basis, values, vectors, left=left, epsilon=epsilon, at_least=0 if squared else 1)
        return new.to(old.dtype)

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
                "cost": self.cost(state, total), "notes": notes}  # fmt: skip

    def cost(self, state: Tensors, total: Answer | None) -> dict[str, int]:
        """Return what the last growth cost a client, in bytes, beside an `update` that it sends every round.

        `statistics` go up from every client of the round; `bases` go down to them the next time, as they are now.
        """
        bases = {name: each for name, each in state.items() if name.startswith("basis/")}
        found = {"bases": sum(each.numel() * each.element_size() for each in bases.values())}
        if total is None:
            return found
        parts = {"statistics": (f"{self.statistic}/", "energy/"), "update": ("delta/",)}
        for part, prefixes in parts.items():
            sizes = (
                where.stop - where.start
                for name, (where, _) in total.layout.slices.items()
                if name.startswith(prefixes)
            )
            found[part] = sum(sizes) * total.flat.element_size()
        return found
