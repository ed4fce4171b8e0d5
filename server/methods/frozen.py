"""What methods on the features of a frozen embedding have in common: when it freezes, which sums count, and the check.

For the first `base_rounds` rounds the model is trained by federated averaging. After them nothing moves it: the step is
dropped last, after the server optimiser, whose momentum would move it still, and what clients train is lost (without
base rounds `client.method: frozen` saves the work). Then the clients' sums of features are asked for, once each. Sums
whose fingerprint is not that of the server's embedding are refused. With `base_rounds: null` the embedding never
freezes: whenever it has changed, what came in counts for nothing and is asked for again. No prediction is made with
sums of another embedding than the model's: the logits predict until there are some.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedcl.answers import LAYOUTS, Answer, Layout, Tensors
from fedcl.embedding import fingerprint
from fedcl.forms import Form
from fedcl.settings import setting
from server.methods.fedavg import FedAvg

MARK = "fingerprint"


@dataclass(frozen=True, kw_only=True)
class Frozen(FedAvg):
    """Sums of features of one embedding, and a classifier made of them."""

    statistic: ClassVar[str]
    participants: ClassVar[Literal["round", "all"]] = "all"
    shares: ClassVar[Literal["", "body", "model"]] = "body"

    base_rounds: int | None = setting(
        0, "rounds of averaging before the embedding is frozen; null: it never is, all sums are sent anew", low=0
    )

    @property
    def task_answers(self) -> tuple[str, ...]:
        """The sums of a task's data, from everyone who has some."""
        return (self.statistic,)

    def begin(self, weights: Tensors) -> Tensors:
        """Return empty sums of no embedding."""
        return {"rounds": torch.zeros((), dtype=torch.int64), **self._empty(weights)}

    def _empty(self, weights: Tensors) -> Tensors:
        layout = LAYOUTS[self.statistic](Layout.of(weights), self)
        sums = Answer(layout, torch.zeros(layout.size, dtype=torch.float64)).under(self.statistic)
        return {name: each.clone() for name, each in sums.items()}

    def end_round(self, state: Tensors, weights: Tensors, total: Answer) -> tuple[Tensors, Tensors]:
        """Count the round; return the mean update as the step."""
        state, step = FedAvg.end_round(self, state, weights, total)
        return {**state, "rounds": state["rounds"] + 1}, step

    def project(self, state: Tensors, step: Tensors) -> Tensors:
        """Drop the step once the embedding is frozen."""
        if self.base_rounds is None or int(state["rounds"]) <= self.base_rounds:
            return step
        return {name: torch.zeros_like(each) for name, each in step.items()}

    def asks(self, state: Tensors, weights: Tensors) -> Literal["nothing", "due", "everything"]:
        """Wait until the embedding is frozen; ask for everything again if it has changed since."""
        if self.base_rounds is not None and int(state["rounds"]) < self.base_rounds:
            return "nothing"
        return "due" if self._fits(state, weights) or not state["count"].any() else "everything"

    def _fits(self, state: Tensors, weights: Tensors) -> bool:
        return torch.equal(state[MARK], fingerprint(weights))

    def task_problem(self, weights: Tensors, answer: Answer) -> str | None:
        """Refuse sums of another embedding, and counts that cannot be."""
        sums = answer.under(self.statistic)
        if (sums["count"] < 0).any() or (sums["count"] != sums["count"].round()).any():
            return "numbers of samples that cannot be"
        if not torch.equal(sums[MARK], sums["count"].sum() * fingerprint(weights)):
            return "the sums are of another embedding than the server's (their fingerprint differs)"
        return None

    def end_task(
        self, state: Tensors, weights: Tensors, total: Answer | None, ended: Sequence[int]
    ) -> tuple[Tensors, Tensors]:
        """Add the sums to those of the same embedding; sums of an earlier one are dropped."""
        if total is None:
            return state, weights
        old = state if self._fits(state, weights) else self._empty(weights)
        sums = {name: old[name] + each for name, each in total.under(self.statistic).items() if name != MARK}
        return {**state, **sums, MARK: fingerprint(weights), **self.learnt(sums)}, weights

    def classifier(self, state: Tensors, weights: Tensors) -> Tensors:
        """Return what has been learnt about the features of these very weights; nothing: the logits predict."""
        return self.made(state) if state["count"].any() and self._fits(state, weights) else {}

    def learnt(self, sums: Tensors) -> Tensors:
        """Return what is kept beside the sums because it is costly to make."""
        return {}

    @abstractmethod
    def made(self, state: Tensors) -> Tensors:
        """Return the classifier (see `fedcl.classifiers`) of sums that hold some sample."""


def seen(state: Tensors) -> Tensor:
    """Return (classes,) bool: some sample of the class has been counted."""
    return state["count"] > 0


def seen_form(parameters: Layout) -> Form:
    """Return the form of that for a model with these parameters."""
    classes, _ = dict(parameters.shapes)["head.weight"]
    return Form(shape=(classes,), dtype="bool")
