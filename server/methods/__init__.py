"""Server methods: how a sum of answers becomes new weights. State in, state out; state is named tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedcl.answers import Answer, Tensors
from fedcl.settings import Settings


@dataclass(frozen=True, kw_only=True)
class ServerMethod(Settings):
    """What the round loop asks of a method; the defaults do nothing.

    `answers` names the statistics that clients add up (see `clients.answers`).
    """

    answers: ClassVar[tuple[str, ...]] = ("delta",)

    def begin(self, weights: Tensors) -> Tensors:
        """Return the state before the first round."""
        return {}

    def begin_task(self, state: Tensors, weights: Tensors, began: Sequence[int]) -> tuple[Tensors, Tensors]:
        """Return state and weights before the round in which the first client meets the global tasks `began`."""
        return state, weights

    def shared(self, state: Tensors) -> Tensors:
        """Return what clients are sent beside the weights."""
        return {}

    def end_round(self, state: Tensors, weights: Tensors, total: Answer) -> tuple[Tensors, Tensors]:
        """Return the new state and the step to add to the weights."""
        raise NotImplementedError

    def project(self, state: Tensors, step: Tensors) -> Tensors:
        """Bend the step after the server optimiser, last."""
        return step

    def end_task(
        self, state: Tensors, weights: Tensors, total: Answer | None, ended: Sequence[int]
    ) -> tuple[Tensors, Tensors]:
        """Return state and weights after the global tasks `ended` were finished by all who have them."""
        return state, weights
