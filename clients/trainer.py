"""The one local training loop: lifted losses, ordered transforms, an optimiser step, for one client or a stack.

The clients of a block are in descending order of steps, so those still training are always the first k: nothing is
computed for, and nothing moves in, a client that has finished. Needs torch alone (neither flwr nor ray).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from clients.gradients import Transform
from clients.lift import Lift, Total, lift
from clients.losses import Anchors, Batch, Forward, Items, Keeper, Regulariser, Term
from clients.optimizers import Optimizer
from fedcl.answers import Layout, Tensors
from fedcl.models import dropout
from fedcl.source import Source

# watch(steps, weights): called before the first step (0) and after every one with the weights (k, P) of those training
Watch = Callable[[int, Tensor], None]


@dataclass(frozen=True, kw_only=True)
class Stepwise:
    """What one draw, or the stream itself, shows at each step: (k, s, b) each."""

    items: Tensor
    tasks: Tensor
    labels: Tensor
    weight: Tensor  # rows of a step sum to 1, or to 0 where there is nothing
    slots: Tensor | None = None  # memory slots, where remembered logits are wanted
    logits: Tensor | None = None  # (k, slots, classes)

    def at(self, step: int, k: int, data: Source) -> Items:
        """Gather the batch of one step for the first k clients."""
        items, tasks, weight = self.items[:k, step], self.tasks[:k, step], self.weight[:k, step]
        mask = data.mask(tasks)
        if data.masks is not None:  # a padded row shows an arbitrary item: its loss must be finite to vanish
            mask = mask.masked_fill((weight == 0)[..., None], 0.0)
        return Items(data.inputs(items, tasks), self.labels[:k, step], mask, weight, self._remembered(step, k))

    def rows(self, rows: slice) -> "Stepwise":
        """Return the same for some of the clients."""
        slots = None if self.slots is None else self.slots[rows]
        logits = None if self.logits is None else self.logits[rows]
        columns = (self.items[rows], self.tasks[rows], self.labels[rows], self.weight[rows])
        return Stepwise(
            **dict(zip(("items", "tasks", "labels", "weight"), columns, strict=True)), slots=slots, logits=logits
        )

    def _remembered(self, step: int, k: int) -> Tensor:
        if self.slots is None or self.logits is None:
            return self.weight.new_zeros(*self.items[:k, step].shape, 0)
        slots = self.slots[:k, step]
        return self.logits[torch.arange(k, device=slots.device)[:, None], slots]


@dataclass(frozen=True, kw_only=True)
class Capture:
    """Whose logits are to be remembered: rows, steps (ascending) and columns, (a,) each."""

    rows: Tensor
    columns: Tensor
    first: list[int]  # first[s] .. first[s + 1] are the entries of step s


@dataclass(frozen=True, kw_only=True)
class Block:
    """Everything that the training of K clients reads; nothing here is changed."""

    counts: list[int]  # steps of each client, descending
    start: Tensor  # (K, P) parameters that each client starts from
    shared: Tensor  # (P,) the global model
    now: Stepwise
    draws: dict[str, Stepwise]
    capture: Capture | None
    noise: Tensor  # (K, steps) int64 keys of what dropout drops; (K, steps, 0): nothing
    buffers: dict[str, Tensor]  # optimiser buffers (K, P)
    steps_before: Tensor  # (K,) float64 optimiser steps of earlier visits (0 unless kept)
    own: dict[str, Tensors] = field(default_factory=dict)  # (K, ...) what is kept of each client
    anchors: dict[str, Tensors] = field(default_factory=dict)  # what the server sends for regularisers and transforms


@dataclass(frozen=True, kw_only=True)
class Result:
    """What training leaves behind."""

    after: Tensor  # (K, P)
    losses: Tensors  # mean over steps of each term, (K,)
    logits: Tensor  # (a, classes) of the captured entries
    buffers: dict[str, Tensor]
    path: Tensor | None = None  # (K, P) sum over the steps of -g * step, g the gradient without regularisers


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """How a client trains: model, loss terms, transforms, optimiser."""

    module: nn.Module
    layout: Layout
    terms: Mapping[str, Term]
    transforms: tuple[Transform, ...]
    optimizer: Optimizer
    data: Source
    classes: int
    personal: tuple[str, ...] = ()  # parameters that stay on the client: nothing holds them to the global model
    path: bool = False  # whether the path of the training is wanted
    watch: Watch | None = None  # told how training goes

    def train(self, block: Block) -> Result:
        """Run all steps of a block of clients and return their parameters.

        Raises:
            ValueError: the clients are not in descending order of steps.
        """
        if block.counts != sorted(block.counts, reverse=True):
            raise ValueError("clients must come in descending order of steps")
        weights = block.start.clone()
        if not self.terms:  # nothing to learn from: not even weight decay moves anything
            return Result(after=weights, losses={}, logits=weights.new_zeros(0, self.classes), buffers=block.buffers)
        buffers = {name: buffer.clone() for name, buffer in block.buffers.items()}
        lifted = lift(self.module, self.layout, weights)
        views = self.layout.views(block.shared)
        shared = {"global": {name: view for name, view in views.items() if name not in self.personal}, **block.anchors}
        sums = {name: weights.new_zeros(len(weights)) for name in self.terms}
        captured = weights.new_zeros(block.capture.first[-1] if block.capture else 0, self.classes)
        path = torch.zeros_like(weights) if self.path else None
        if self.watch:
            self.watch(0, weights)
        for k, steps in _segments(block.counts):
            live = self.layout.views(weights[:k])
            moments = {name: self.layout.views(buffer[:k]) for name, buffer in buffers.items()}
            own = {name: {each: held[:k] for each, held in kept.items()} for name, kept in block.own.items()}
            anchors = Anchors(shared, own)
            for step in steps:
                drawn = {name: draw.at(step, k, self.data) for name, draw in block.draws.items()}
                batch = Batch(block.now.at(step, k, self.data), drawn, block.noise[:k, step])
                parameters = lifted.parameters(k)
                losses, (terms, logits) = lifted.losses(
                    self._total(self.terms, logits=block.capture is not None), parameters, batch, anchors
                )
                gradients, slope = self._gradients(lifted, losses, terms, parameters)
                references = self._references(lifted, parameters, batch, anchors)
                for name, term in terms.items():
                    sums[name][:k] += term.detach()
                if block.capture:
                    _capture(block.capture, step, logits.detach(), captured)
                with torch.no_grad():
                    gradients = self._transformed("gradient", lifted, gradients, references)
                    change = self.optimizer.step(gradients, live, moments, block.steps_before[:k] + step + 1)
                    change = self._transformed("step", lifted, change, references)
                    if path is not None:
                        path[:k] -= self.layout.flatten({name: slope[name] * each for name, each in change.items()})
                    torch._foreach_add_([live[name] for name in change], list(change.values()))
                if self.watch:
                    self.watch(step + 1, weights[:k])
        steps_done = torch.tensor(block.counts, dtype=weights.dtype, device=weights.device).clamp(min=1)
        means = {name: total / steps_done for name, total in sums.items()}
        return Result(after=weights, losses=means, logits=captured, buffers=buffers, path=path)

    def _gradients(self, lifted: Lift, losses: Tensor, terms: Tensors, parameters: Tensors) -> tuple[Tensors, Tensors]:
        """Return the gradient of the loss and, where the path is wanted, that of the loss without regularisers."""
        if not self.path:
            return _gradient(lifted, losses, parameters), {}
        holding = [each for name, each in terms.items() if isinstance(self.terms[name], Regulariser)]
        data = [each for name, each in terms.items() if not isinstance(self.terms[name], Regulariser)]
        slope = _gradient(lifted, torch.stack(data), parameters, keep=True)
        held = _gradient(lifted, torch.stack(holding), parameters)  # next to nothing beside the model's own passes
        return {name: each + held[name] for name, each in slope.items()}, slope

    def _references(
        self, lifted: Lift, parameters: Tensors, batch: Batch, anchors: Anchors
    ) -> list[dict[str, Tensors]]:
        """Return what each transform asks for: gradients of reference losses, one more backward pass each; its own."""

        def gradient(name: str, term: Term) -> Tensors:
            noise = dropout.stir(batch.noise, dropout.REFERENCE)  # not what the loss itself drops
            losses, _ = lifted.losses(self._total({name: term}), parameters, batch._replace(noise=noise), anchors)
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

    def _total(self, terms: Mapping[str, Term], *, logits: bool = False) -> Total:
        def total(model: Forward, batch: Batch, anchors: Anchors) -> tuple[Tensor, tuple[Tensors, Tensor]]:
            values = {name: term(model, batch, anchors) for name, term in terms.items()}
            wanted = model(batch.now.x) if logits else batch.now.weight[:0]
            return torch.stack(list(values.values())).sum(), (values, wanted)

        return total

    def _transformed(self, on: str, lifted: Lift, tensors: Tensors, references: list[dict[str, Tensors]]) -> Tensors:
        for transform, wanted in zip(self.transforms, references, strict=True):
            if transform.on == on:
                whole = transform.level == "stack"
                tensors = transform(tensors, wanted) if whole else lifted.transform(transform, tensors, wanted)
        return tensors


def _segments(counts: list[int]) -> Iterator[tuple[int, range]]:
    """Yield (k, steps): the first k clients train in these steps."""
    begin = 0
    for k in range(len(counts), 0, -1):
        if counts[k - 1] > begin:
            yield k, range(begin, counts[k - 1])
            begin = counts[k - 1]


def _gradient(lifted: Lift, losses: Tensor, parameters: Tensors, *, keep: bool = False) -> Tensors:
    leaves = list(parameters.values())
    found = torch.autograd.grad(losses.sum(), leaves, allow_unused=True, materialize_grads=True, retain_graph=keep)
    return lifted.stacked(dict(zip(parameters, found, strict=True)))


def _everyones(tensors: Tensors, k: int) -> Tensors:
    """Return what is shared (*shape) as if each of k clients had its own (k, *shape); no memory of its own."""
    return {name: each.expand(k, *each.shape) for name, each in tensors.items()}


def _capture(capture: Capture, step: int, logits: Tensor, captured: Tensor) -> None:
    begin, end = capture.first[step], capture.first[step + 1]
    if begin < end:
        captured[begin:end] = logits[capture.rows[begin:end], capture.columns[begin:end]]
