"""What clients answer: named tensors that add up over clients, one function a statistic.

Statistics of the training (`STATISTICS`) give one row a client of a stack, so that the sum over clients is
`rows.sum(0)` and a method that needs every client apart can have the rows. Statistics of a task's data under a model
(`TASK_STATISTICS`) are measured for one client at a time. Names and shapes stand in `fedcl.answers.LAYOUTS`: the
server checks against them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clients.answers.case import Case
from clients.answers.fisher import fisher_sums
from clients.answers.prototypes import class_sums
from clients.answers.ridge import ridge
from clients.answers.subspace import gram, sketch
from fedcl.answers import Tensors, clip_rows

CONTROL = "scaffold.own"  # a client's control variate in its record


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What local training of k clients leaves behind for the statistics."""

    update: Tensor  # (k, P) the clients' models less the global one; 0 where a parameter is personal
    weights: Tensor  # (k,) weight of each answer: samples or 1
    max_norm: float | None
    added: Tensors = field(default_factory=dict)  # (k, n) what the visit has added to what clients keep, by name


def delta(trained: Trained) -> Tensor:
    """Return n_k * (w_k - w) and n_k (FedAvg: McMahan et al., AISTATS 2017, arXiv:1602.05629), (k, P + 1).

    Personal parameters are left at 0; an update longer than `max_norm` is scaled down to it.
    """
    update, weights = clip_rows(trained.update, trained.max_norm), trained.weights[:, None]
    rows = update.new_empty(len(update), update.shape[1] + 1)
    torch.mul(update, weights, out=rows[:, :-1])
    rows[:, -1:] = weights
    return rows


def control(trained: Trained) -> Tensor:
    """Return what the clients' control variates have grown by (`clients.gradients.scaffold`), (k, P)."""
    return trained.added[CONTROL]


STATISTICS: dict[str, Callable[[Trained], Tensor]] = {"delta": delta, "control": control}
TASK_STATISTICS: dict[str, Callable[[Case], Tensor]] = {
    "sketch": sketch,
    "gram": gram,
    "class_sums": class_sums,
    "ridge": ridge,
    "fisher": fisher_sums,
}


def answer_rows(names: Sequence[str], trained: Trained) -> Tensor:
    """Return (k, A): the named statistics of the training of each client, in order."""
    rows = [STATISTICS[name](trained) for name in names]
    return torch.cat(rows, dim=1) if len(rows) > 1 else rows[0]


def task_answer(names: Sequence[str], case: Case) -> Tensor:
    """Return (A,): the named statistics of one client's data of a task, in order."""
    return torch.cat([TASK_STATISTICS[name](case) for name in names])
