"""FedEWC: elastic weight consolidation (Kirkpatrick et al., PNAS 2017, arXiv:1612.00796) of the global model.

When everyone has finished a task, under the global model w* of that moment, over all clients' data of the task:

    F <- gamma F + sum_k sum_x (d log p(y | x) / d w)^2 / sum_k n_k

w* and F go to the clients with the weights, for the penalty of `client.method: fedewc`. A client that was out of reach
answers later, under the global model of then; its sums and its n join those of the task that ended last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from fedcl.answers import Answer, Layout, Tensors, prefixed, under
from fedcl.forms import Forms, like
from fedcl.settings import setting
from server.methods.fedavg import FedAvg


@dataclass(frozen=True, kw_only=True)
class FedEWC(FedAvg):
    """FedAvg that tells clients how much each parameter of the global model matters to past tasks."""

    participants: ClassVar[Literal["round", "all"]] = "all"
    when: ClassVar[Literal["client", "task"]] = "task"
    offers: ClassVar[tuple[str, ...]] = ("ewc.theta", "ewc.fisher")
    shares: ClassVar[Literal["", "body", "model"]] = "model"

    gamma: float = setting(1.0, "what is left of the Fisher information when a task ends", low=0, high=1)

    @property
    def task_answers(self) -> tuple[str, ...]:
        """The squared gradients of a task's data, from everyone who has some."""
        return ("fisher",)

    def begin(self, weights: Tensors) -> Tensors:
        """Return the state in which nothing matters yet."""
        zeros = {name: torch.zeros(each.shape, dtype=torch.float64) for name, each in weights.items()}
        parts = {"past": zeros, "sum": zeros, "theta": {name: each.clone() for name, each in weights.items()}}
        named = {name: each for part, tensors in parts.items() for name, each in prefixed(part, tensors).items()}
        return {**named, "samples": torch.zeros((), dtype=torch.float64)}

    def shared(self, state: Tensors) -> Tensors:
        """Return the anchor and the Fisher information, once there is some."""
        theta, matters = under("theta", state), fisher(state)
        if not any(each.any() for each in matters.values()):
            return {}
        found = {name: matters[name].to(each.dtype) for name, each in theta.items()}
        return {**prefixed("ewc.theta", theta), **prefixed("ewc.fisher", found)}

    def shared_forms(self, parameters: Layout, tasks: int) -> Forms:
        """Return that both are as the parameters are; no information is negative."""
        return {**like("ewc.theta", parameters), **like("ewc.fisher", parameters, low=0)}

    def task_problem(self, weights: Tensors, answer: Answer) -> str | None:
        """Refuse squares and numbers of samples that cannot be."""
        return "squared gradients or numbers of samples that are negative" if (answer.flat < 0).any() else None

    def end_task(
        self, state: Tensors, weights: Tensors, total: Answer | None, ended: Sequence[int]
    ) -> tuple[Tensors, Tensors]:
        """Close the account of the task before if another has ended, then add what came in."""
        if ended:
            past = {name: self.gamma * each for name, each in fisher(state).items()}
            state = {**self.begin(weights), **prefixed("past", past)}
        if total is not None:
            sums = {name: each + total[f"fisher/{name}"] for name, each in under("sum", state).items()}
            state = {**state, **prefixed("sum", sums), "samples": state["samples"] + total["samples"]}
        return state, weights


def fisher(state: Tensors) -> Tensors:
    """Return F of all tasks that have ended, by parameter name."""
    samples, past = state["samples"].clamp(min=1), under("past", state)
    return {name: past[name] + each / samples for name, each in under("sum", state).items()}
