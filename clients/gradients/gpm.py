"""Gradient projection memory (Saha et al., ICLR 2021, arXiv:2103.09762), on each client for itself.

Every step at a layer with orthonormal basis U (d, k) of the inputs of tasks that the client has left:

    dW <- dW - dW U U^T

When a task is left, with A (d, n) the layer's inputs of the task's data under the client's own last model of it and
R = A - U U^T A:  U <- [U, fewest leading left singular vectors of R] that holds a share epsilon of ||A||^2 (eqs. 8, 9).

Departures: the step is projected and not the gradient, because Adam and weight decay leave the span; A is all of the
client's data of the task and not a sample of it. Biases and affine parameters of norms are not projected. Local steps
alone keep what they should: between visits the client's model becomes the global one, to which other clients have added
steps that know nothing of its U (`server.method: fot` has one U for all).

A client's record grows by the sum over layers of d^2 numbers, whatever the rank; a step multiplies with the directions
that are in use.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from clients.answers.case import Case
from clients.answers.subspace import gram
from clients.losses import Keeper, Kept, Left, Term
from fedcl.answers import LAYOUTS, Answer, Layout, Tensors, prefixed
from fedcl.errors import ConfigError
from fedcl.subspace import Protection, directions_of_gram, grown, project_out

BASES, TASKS = "gpm.bases", "gpm.tasks"
LARGEST = 2**27  # numbers of a client's bases: 512 MiB in float32


def trimmed(matrix: Tensor) -> Tensor:
    """Return the columns (d, k) of a kept matrix (d, d) that are in use."""
    return matrix[:, matrix.any(dim=0)]


def padded(basis: Tensor) -> Tensor:
    """Return a basis (d, k) as a matrix (d, d), zeros behind it."""
    matrix = basis.new_zeros(len(basis), len(basis))
    matrix[:, : basis.shape[1]] = basis
    return matrix


def measured(case: Case, protection: Protection, bases: Tensors) -> Answer:
    """Return A A^T and ||R||^2, ||A||^2 of every protected layer (`clients.answers.subspace`)."""
    flat = gram(replace(case, method=protection, shared=prefixed("basis", bases)))
    return Answer(LAYOUTS["gram"](case.parameters, protection), flat)


@dataclass(frozen=True, kw_only=True)
class GPM(Keeper):
    """Take out of a client's steps what would change its layers' outputs on the inputs of tasks it has left."""

    protection: Protection = field(default_factory=Protection)
    on: str = "step"
    level: str = "client"
    references: Mapping[str, Term] = field(default_factory=dict)
    keeps = (Kept(name=BASES, of="bases"), Kept(name=TASKS, of="number"))

    def __call__(self, gradients: Tensors, references: Mapping[str, Tensors]) -> Tensors:
        """Return the projected step; at the first task, when there are no bases, the step as it is."""
        bases = references[BASES]
        return {name: project_out(each, bases[name]) if name in bases else each for name, each in gradients.items()}

    def bases(self, parameters: Layout) -> Layout:
        """Return a matrix (d, d) for every protected layer.

        Raises:
            ConfigError: they are too large, or `epsilons` names no protected layer.
        """
        self.protection.check_layers(parameters, "client.method")
        inputs = self.protection.inputs(parameters)
        layout = Layout(tuple((name, (d, d)) for name, d in inputs.items()))
        if layout.size > LARGEST:
            widest = max(inputs, key=inputs.__getitem__)
            raise ConfigError(
                f"client.method = 'gpm': every client keeps {layout.size:,} numbers, at most {LARGEST:,} are possible: "
                f"d * d a layer, and {widest} has d = {inputs[widest]:,} inputs; choose a narrower model, or "
                f"server.method = 'fot', which keeps one set of bases for all clients"
            )
        return layout

    def leave(self, kept: Tensors, left: Left) -> Tensors:
        """Return the bases, grown by the directions that each layer's share of the energy still needs."""
        layout, tasks = self.bases(left.case.parameters), int(kept[TASKS])
        old = {name: trimmed(matrix) for name, matrix in layout.views(kept[BASES]).items()}
        found = measured(left.case, self.protection, old)
        new = {name: padded(self._grown(basis, found, name, tasks)) for name, basis in old.items()}
        return {BASES: layout.flatten(new), TASKS: kept[TASKS] + 1}

    def _grown(self, old: Tensor, found: Answer, name: str, tasks: int) -> Tensor:
        _, outside, whole = (float(each) for each in found[f"energy/{name}"])
        floor = torch.finfo(found.flat.dtype).eps * whole
        values, vectors = directions_of_gram(found[f"gram/{name}"], old.double(), floor)
        left, epsilon = outside / max(whole, 1e-300), self.protection.share(name, tasks)
        return grown(old.double(), values, vectors, left=left, epsilon=epsilon, at_least=0).to(old.dtype)
