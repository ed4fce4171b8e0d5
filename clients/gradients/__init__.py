"""Transforms of a client's gradient or step, applied in one explicit order.

A transform is a frozen dataclass with `on` ("gradient": before the optimiser; "step": on what is added to the weights,
for guarantees that Adam or weight decay would break), `references` (named loss terms whose gradients it wants: the
trainer makes one more backward pass for each), `level` ("client", or "stack" where it cannot be lifted) and
`__call__(gradients, references) -> gradients`. One that is a `clients.losses.Keeper` finds what it `keeps`, and what it
`reads` of the server's, among the references, under its name.
"""

from collections.abc import Mapping
from typing import Protocol

from clients.losses import Term
from fedcl.answers import Tensors


class Transform(Protocol):
    """Plain algebra over one client's named gradients, which the trainer lifts over the stack."""

    @property
    def on(self) -> str:
        """Where it acts: "gradient" or "step"."""

    @property
    def level(self) -> str:
        """What it is given: "client": tensors (*shape) of one client; "stack": tensors (k, *shape) of all at once."""

    @property
    def references(self) -> Mapping[str, Term]:
        """The reference losses whose gradients it needs."""

    def __call__(self, gradients: Tensors, references: Mapping[str, Tensors]) -> Tensors:
        """Return the transformed gradients (or step).

        Args:
            gradients: by parameter.
            references: by name: the gradients of its reference losses, what it keeps, and what it reads.
        """
