"""ACIL, AFL (Zhuang et al., NeurIPS 2022, arXiv:2205.14922; He et al., CVPR 2025, arXiv:2405.16240).

Ridge regression on the features of a frozen embedding, alone and federated:

    W = (sum_k Phi_k^T Phi_k + gamma I)^-1 sum_k Phi_k^T Y_k,     Phi = f(x), or relu(f(x) R) with a fixed random R

gamma is added once, here. So W is that of all data at once, whoever had it and whenever it came: ACIL's recursion and
AFL's aggregation give the same W. A new class is a new column, whose samples change the columns of the others through
Phi^T Phi alone.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedcl.answers import Layout, Tensors
from fedcl.errors import FederationError
from fedcl.forms import Form, Forms
from fedcl.settings import setting
from server.methods.frozen import Frozen, seen, seen_form


def symmetric(upper: Tensor, d: int) -> Tensor:
    """Return the symmetric (d, d) matrix of its upper triangle (d (d + 1) / 2,), row by row."""
    rows, columns = torch.triu_indices(d, d)
    whole = upper.new_zeros(d, d)
    whole[rows, columns] = whole[columns, rows] = upper
    return whole


def solve(gram: Tensor, cross: Tensor, gamma: float) -> Tensor:
    """Return (G + gamma I)^-1 C for G (d, d) and C (d, classes).

    Raises:
        FederationError: gamma is too small beside the rounding of G.
    """
    factor, failed = torch.linalg.cholesky_ex(gram + gamma * torch.eye(len(gram), dtype=gram.dtype))
    pivots = factor.diagonal().square()
    if failed or pivots.min() < torch.finfo(gram.dtype).eps * pivots.max():
        raise FederationError(f"server.method.gamma = {gamma}: too small for these features; choose a larger one")
    return torch.cholesky_solve(cross, factor)


@dataclass(frozen=True, kw_only=True)
class Analytic(Frozen):
    """ACIL, AFL: ridge regression on the features of a frozen embedding."""

    statistic: ClassVar[str] = "ridge"

    gamma: float = setting(1.0, "ridge, added once at the server", above=0)
    width: int = setting(0, "random features relu(f R); 0: the features themselves", low=0, high=100_000)
    draw: int = setting(0, "number of the random matrix R", low=0, high=2**62)

    def learnt(self, sums: Tensors) -> Tensors:
        """Return W (d, classes)."""
        cross = sums["cross"]
        return {"head": solve(symmetric(sums["gram"], len(cross)), cross, self.gamma)}

    def made(self, state: Tensors) -> Tensors:
        """Return W, the classes that have a column, and how to make the random features."""
        random = torch.tensor([self.draw, self.width])
        return {"ridge": state["head"], "seen": seen(state), "random": random}

    def classifier_forms(self, parameters: Layout, tasks: int) -> Forms:
        """Return that W has a column a class, and that the random features are those of the scenario."""
        classes, features = dict(parameters.shapes)["head.weight"]
        head = Form(shape=(self.width or features, classes), dtype="float64")
        random = Form(shape=(2,), dtype="int64", equal=(self.draw, self.width))
        return {"ridge": head, "seen": seen_form(parameters), "random": random}
