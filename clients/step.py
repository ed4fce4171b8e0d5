"""One local step of k clients: losses, gradient, transforms, optimiser, new weights.

A function of its arguments alone, so that it can be recorded once and played again without autograd and vmap, or
compiled (`clients.programs`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from clients.gradients import Transform
from clients.lift import Lift, Total
from clients.losses import Anchors, Batch, Forward, Keeper, Regulariser, Term
from clients.optimizers import Optimizer
from fedcl.answers import Layout, Tensors
from fedcl.models import dropout

References = list[dict[str, Tensors]]  # of each transform, by name


class Moving(NamedTuple):
    """What a step changes in place."""

    weights: Tensor  # (k, P)
    moments: Tensors  # optimiser buffers, (k, P) each


class Told(NamedTuple):
    """What a step tells of itself."""

    terms: Tensors  # (k,) each
    logits: Tensor  # (k, b, classes) of the stream's batch where they are to be remembered, else (k, 0)
    path: Tensor  # (k, P) the step times the gradient without regularisers, (k, 0) where nobody wants it


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """The axes of a step: what is added up, how the gradient is bent, and what is done with it."""

    layout: Layout
    terms: Mapping[str, Term]
    transforms: tuple[Transform, ...]
    optimizer: Optimizer
    path: bool = False
    logits: bool = False

    def __call__(self, lifted: Lift, moving: Moving, count: Tensor, batch: Batch, anchors: Anchors) -> Told:
        """Take the step.

        Args:
            count: (k,) float64 number of this step for each client's optimiser, from 1.
        """
        with torch.enable_grad():
            parameters = lifted.parameters(moving.weights)
            losses, (terms, logits) = lifted.losses(_total(self.terms, logits=self.logits), parameters, batch, anchors)
            gradients, slope = self._gradients(lifted, losses, terms, parameters)
            references = self._references(lifted, parameters, batch, anchors)
        with torch.no_grad():
            gradients = self._bent("gradient", lifted, gradients, references)
            live = self.layout.views(moving.weights)
            moments = {name: self.layout.views(each) for name, each in moving.moments.items()}
            change = self._bent("step", lifted, self.optimizer.step(gradients, live, moments, count), references)
            nothing = moving.weights.new_zeros(len(moving.weights), 0)
            path = (
                self.layout.flatten({name: slope[name] * each for name, each in change.items()}) if slope else nothing
            )
            torch._foreach_add_([live[name] for name in change], list(change.values()))
            told = {name: term.detach() for name, term in terms.items()}
            return Told(told, logits.detach() if self.logits else nothing, path)

    def _bent(self, on: str, lifted: Lift, tensors: Tensors, references: References) -> Tensors:
        """Return gradients or a step (k, *shape) as the transforms on it leave them."""
        for transform, wanted in zip(self.transforms, references, strict=True):
            if transform.on == on:
                whole = transform.level == "stack"
                tensors = transform(tensors, wanted) if whole else lifted.transform(transform, tensors, wanted)
        return tensors

    def _gradients(self, lifted: Lift, losses: Tensor, terms: Tensors, parameters: Tensors) -> tuple[Tensors, Tensors]:
        """Return the gradient of the loss and, where the path is wanted, that of the loss without regularisers."""
        if not self.path:
            return _gradient(lifted, losses, parameters), {}
        holding = [each for name, each in terms.items() if isinstance(self.terms[name], Regulariser)]
        data = [each for name, each in terms.items() if not isinstance(self.terms[name], Regulariser)]
        slope = _gradient(lifted, torch.stack(data), parameters, keep=True)
        held = _gradient(lifted, torch.stack(holding), parameters)  # next to nothing beside the model's own passes
        return {name: each + held[name] for name, each in slope.items()}, slope

    def _references(self, lifted: Lift, parameters: Tensors, batch: Batch, anchors: Anchors) -> References:
        """Return what each transform asks for: gradients of reference losses, one more backward pass each; its own."""

        def gradient(name: str, term: Term) -> Tensors:
            noise = dropout.stir(batch.noise, dropout.REFERENCE)  # not what the loss itself drops
            losses, _ = lifted.losses(_total({name: term}), parameters, batch._replace(noise=noise), anchors)
            return _gradient(lifted, losses, parameters)

        def known(each: Transform) -> dict[str, Tensors]:
            if not isinstance(each, Keeper):
                return {}
            own = {one.name: anchors.own[one.name] for one in each.keeps}
            return {**own, **{name: _everyones(anchors.shared[name], len(batch.noise)) for name in each.reads}}

        return [
            {**{name: gradient(name, term) for name, term in each.references.items()}, **known(each)}
            for each in self.transforms
        ]


def _total(terms: Mapping[str, Term], *, logits: bool = False) -> Total:
    def total(model: Forward, batch: Batch, anchors: Anchors) -> tuple[Tensor, tuple[Tensors, Tensor]]:
        values = {name: term(model, batch, anchors) for name, term in terms.items()}
        wanted = model(batch.now.x) if logits else batch.now.weight[:0]
        loss, *others = values.values()
        return torch.stack([loss, *others]).sum() if others else loss, (values, wanted)

    return total


def _gradient(lifted: Lift, losses: Tensor, parameters: Tensors, *, keep: bool = False) -> Tensors:
    leaves = list(parameters.values())
    found = torch.autograd.grad(losses.sum(), leaves, allow_unused=True, materialize_grads=True, retain_graph=keep)
    return lifted.stacked(dict(zip(parameters, found, strict=True)))


def _everyones(tensors: Tensors, k: int) -> Tensors:
    """Return what is shared (*shape) as if each of k clients had its own (k, *shape); no memory of its own."""
    return {name: each.expand(k, *each.shape) for name, each in tensors.items()}
