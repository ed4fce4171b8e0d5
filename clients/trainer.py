"""The one local training loop: lifted losses, ordered transforms, an optimiser step, for one client or a stack.

The clients of a block are in descending order of steps, so those still training are always the first k: nothing is
computed for, and nothing moves in, a client that has finished. Needs torch alone (neither flwr nor ray).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from clients.gradients import Transform
from clients.lift import Alone, Lift, Stacked
from clients.losses import Anchors, Batch, Items, Term
from clients.optimizers import Optimizer
from clients.programs import Programs
from clients.step import Moving, Step
from fedcl.answers import Layout, Tensors
from fedcl.source import Source

AT_ONCE = 2**21  # numbers of inputs that are looked up at once: 8 MiB in float32

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

    def feed(self, k: int, steps: range, data: Source) -> list[Items]:
        """Gather the batches of some steps for the first k clients: one look-up, then slices."""
        when = slice(steps.start, steps.stop)
        items, tasks, labels, weight = (
            each[:k, when].transpose(0, 1) for each in (self.items, self.tasks, self.labels, self.weight)
        )
        mask = data.mask(tasks)
        if data.masks is not None:  # a padded row shows an arbitrary item: its loss must be finite to vanish
            mask = mask.masked_fill((weight == 0)[..., None], 0.0)
        columns = (data.inputs(items, tasks), labels.contiguous(), mask, weight.contiguous(), self._remembered(k, when))
        return [Items(*step) for step in zip(*(each.unbind(0) for each in columns), strict=True)]

    def rows(self, rows: slice) -> "Stepwise":
        """Return the same for some of the clients."""
        slots = None if self.slots is None else self.slots[rows]
        logits = None if self.logits is None else self.logits[rows]
        columns = (self.items[rows], self.tasks[rows], self.labels[rows], self.weight[rows])
        return Stepwise(
            **dict(zip(("items", "tasks", "labels", "weight"), columns, strict=True)), slots=slots, logits=logits
        )

    def _remembered(self, k: int, when: slice) -> Tensor:
        if self.slots is None or self.logits is None:
            return self.weight.new_zeros(*self.items[:k, when].transpose(0, 1).shape, 0)
        slots = self.slots[:k, when].transpose(0, 1)
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
    programs: Programs = field(default_factory=Programs)  # what has been recorded of its steps: of this trainer's alone

    @cached_property
    def steps(self) -> dict[bool, Step]:
        """A step without (False) and with (True) the logits of the stream's batch."""
        return {
            logits: Step(
                layout=self.layout, terms=self.terms, transforms=self.transforms, optimizer=self.optimizer,
                path=self.path, logits=logits,
            )
            for logits in (False, True)
        }  # fmt: skip

    def train(self, block: Block) -> Result:
        """Run all steps of a block of clients and return their parameters.

        Raises:
            ValueError: the clients are not in descending order of steps.
        """
        if block.counts != sorted(block.counts, reverse=True):
            raise ValueError("clients must come in descending order of steps")
        weights = block.start.clone(memory_format=torch.contiguous_format)
        if not self.terms:  # nothing to learn from: not even weight decay moves anything
            self._stand(weights, block.counts)
            return Result(after=weights, losses={}, logits=weights.new_zeros(0, self.classes), buffers=block.buffers)
        buffers = {name: each.clone(memory_format=torch.contiguous_format) for name, each in block.buffers.items()}
        step = self.steps[block.capture is not None]
        sums = {name: weights.new_zeros(len(weights)) for name in self.terms}
        captured = weights.new_zeros(block.capture.first[-1] if block.capture else 0, self.classes)
        path = torch.zeros_like(weights) if self.path else None
        if self.watch:
            self.watch(0, weights)
        for k, numbers in _segments(block.counts):
            moving = Moving(weights[:k], {name: buffer[:k] for name, buffer in buffers.items()})
            take = self.programs.segment(step, self._lift(moving.weights), moving, self._anchors(block, k))
            for number, batch in self._batches(block, k, numbers):
                told = take(block.steps_before[:k] + (number + 1), batch)
                for name, term in told.terms.items():
                    sums[name][:k] += term
                if block.capture:
                    _capture(block.capture, number, told.logits, captured)
                if path is not None:
                    path[:k] -= told.path
                if self.watch:
                    self.watch(number + 1, weights[:k])
        steps_done = torch.tensor(block.counts, dtype=weights.dtype, device=weights.device).clamp(min=1)
        means = {name: total / steps_done for name, total in sums.items()}
        return Result(after=weights, losses=means, logits=captured, buffers=buffers, path=path)

    def _stand(self, weights: Tensor, counts: list[int]) -> None:
        """Tell who watches of all steps of a visit that moves nothing."""
        if self.watch:
            self.watch(0, weights)
            for k, numbers in _segments(counts):
                for number in numbers:
                    self.watch(number + 1, weights[:k])

    @cached_property
    def _stacked(self) -> Stacked:
        return Stacked(self.module, self.layout)

    def _lift(self, weights: Tensor) -> Lift:
        """Return the lift for weights (k, P): vmap, but for one client, also the last of a stack, the identity."""
        return Alone(self.module, self.layout, weights) if len(weights) == 1 else self._stacked

    def _anchors(self, block: Block, k: int) -> Anchors:
        """Return what the losses of the first k clients measure distances to."""
        views = self.layout.views(block.shared)
        shared = {"global": {name: view for name, view in views.items() if name not in self.personal}, **block.anchors}
        own = {name: {each: held[:k] for each, held in kept.items()} for name, kept in block.own.items()}
        return Anchors(shared, own)

    def _batches(self, block: Block, k: int, steps: range) -> Iterator[tuple[int, Batch]]:
        """Yield the steps of a segment with their batches, looked up for as many steps at once as AT_ONCE allows."""
        drawn, noise = {"": block.now, **block.draws}, block.noise
        width = sum(each.items.shape[2] for each in drawn.values()) * k * self.data.width
        length = max(1, AT_ONCE // max(1, width))
        for begin in range(steps.start, steps.stop, length):
            part = range(begin, min(begin + length, steps.stop))
            fed = {name: each.feed(k, part, self.data) for name, each in drawn.items()}
            now = fed.pop("")
            for place, step in enumerate(part):
                yield step, Batch(now[place], {name: each[place] for name, each in fed.items()}, noise[:k, step])


def _segments(counts: list[int]) -> Iterator[tuple[int, range]]:
    """Yield (k, steps): the first k clients train in these steps."""
    begin = 0
    for k in range(len(counts), 0, -1):
        if counts[k - 1] > begin:
            yield k, range(begin, counts[k - 1])
            begin = counts[k - 1]


def _capture(capture: Capture, step: int, logits: Tensor, captured: Tensor) -> None:
    begin, end = capture.first[step], capture.first[step + 1]
    if begin < end:
        captured[begin:end] = logits[capture.rows[begin:end], capture.columns[begin:end]]
