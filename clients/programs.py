"""A local step, recorded once and played again: the same operations without autograd and vmap around them; or compiled.

What PyTorch's eager `vmap` and autograd cost a stack of small models is not the arithmetic but their bookkeeping in
Python, anew in every step. So a step that comes by again and again in one form (names, shapes, number of clients) is
recorded as the plain tensor operations that it is made of (`clients.recorder`), and these are played from then on.
They are played only if they give the same bits as the step itself, on the batch on which it was recorded and on the
next two: numbers of a batch that a loss has read behind PyTorch's back would show there. FEDCL_RECORD=0 turns it off.

`engine.compile` lets PyTorch's compiler fuse the operations of a full stack as well. That gives other roundings, so it
is part of the configuration, and such a step is never taken in any other way.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from clients.graphs import tidied
from clients.lift import Lift
from clients.losses import Anchors, Batch
from clients.recorder import recorded
from clients.step import Moving, Step, Told

# Steps of one form before it is recorded: to record and to compare takes as long as some twenty steps.
PLAYED_AFTER = 16 if os.environ.get("FEDCL_RECORD", "1") not in ("", "0") else sys.maxsize
COMPARED = 3  # steps that are taken both ways before what is played is trusted
MOST = 256  # forms that a process records
Flat = Callable[..., list[Tensor]]
Take = Callable[[Tensor, Batch], Told]  # count (k,), batch
Form = tuple[Any, ...]


@dataclass
class Programs:
    """What this process has recorded, by form; None: cannot be recorded, or gives other bits."""

    compile: int = 0  # stacks of so many clients are compiled; 0: none
    known: dict[Form, Flat | None] = field(default_factory=dict)
    seen: dict[Form, int] = field(default_factory=dict)  # steps of each form
    trials: dict[Form, tuple[Flat, int]] = field(default_factory=dict)  # recorded, and how often compared

    def segment(self, step: Step, lifted: Lift, moving: Moving, anchors: Anchors) -> Take:
        """Return how to take the steps of a segment, in which the same clients train."""
        never = sys.maxsize <= PLAYED_AFTER and self.compile != len(moving.weights)
        if never:  # then nothing need be counted either
            return lambda count, batch: step(lifted, moving, count, batch, anchors)
        return Segment(self, step, lifted, moving, anchors)


class Segment:
    """Steps of one form: taken as they are, or from the record."""

    def __init__(self, programs: Programs, step: Step, lifted: Lift, moving: Moving, anchors: Anchors) -> None:
        self._programs, self._step, self._lifted = programs, step, lifted
        self._moving, self._anchors = moving, anchors
        self._before, self._behind = list(_leaves(moving)), list(_leaves(anchors))
        self._form: Form | None = None
        self._play: Flat | None = None

    def __call__(self, count: Tensor, batch: Batch) -> Told:
        """Take the next step."""
        if self._play is None or self._form is None:
            return self._first(count, batch)
        try:
            with torch.no_grad():
                return self._named(self._play(*self._before, count, *_leaves(batch), *self._behind))
        except Exception:  # who repeats the visit is to see where a loss fails, not where its record does
            del self._programs.known[self._form]
            self._programs.seen[self._form] = 0
            raise

    def _first(self, count: Tensor, batch: Batch) -> Told:
        """Take a step that is not played yet, and record it if its time has come."""
        programs = self._programs
        if self._form is None:
            held = dict(self._anchors.shared)
            held.pop("global", None)  # it lies as the weights do
            self._form = (self._step, *_form((self._moving, batch, held, self._anchors.own)))
            self._play = programs.known.get(self._form)
            if self._play is not None:
                return self(count, batch)
        if self._form in programs.trials:
            return self._compared(self._form, count, batch)
        compiled = programs.compile == len(self._moving.weights)
        if self._form not in programs.known:
            seen = programs.seen[self._form] = programs.seen.get(self._form, 0) + 1
            if compiled or (seen >= PLAYED_AFTER and len(programs.known) + len(programs.trials) < MOST):
                self._record(self._form, count, batch, compiled)
                return self._compiled(self._form, count, batch) if compiled else self._first(count, batch)
        return self._step(self._lifted, self._moving, count, batch, self._anchors)

    def _named(self, found: list[Tensor]) -> Told:
        names = self._step.terms
        return Told(dict(zip(names, found, strict=False)), found[len(names)], found[len(names) + 1])

    def _record(self, form: Form, count: Tensor, batch: Batch, compiled: bool) -> None:
        """Record the step, which is not taken; what cannot be recorded is not tried again.

        Raises:
            RuntimeError: a step that must be compiled cannot be.
        """
        inputs, tree = _pytree.tree_flatten((self._moving, count, batch, self._anchors))
        lifted = self._lifted.pure

        def flat(*given: Tensor) -> list[Tensor]:
            return list(_leaves(self._step(lifted, *_pytree.tree_unflatten(list(given), tree))))

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of PyTorch about its own tracing
                traced = tidied(*recorded(flat, _copies(inputs)), turn=compiled)
                play: Flat = torch.compile(traced, dynamic=False) if compiled else traced.forward
        except Exception as error:  # a loss that looks at numbers cannot be recorded: it is run as it is, as before
            if compiled:
                raise RuntimeError(f"engine.compile = true: the step cannot be compiled: {error}") from error
            self._programs.known[form] = None
            return
        self._programs.trials[form] = (play, 0)

    def _compared(self, form: Form, count: Tensor, batch: Batch) -> Told:
        """Take a step, and play it on copies; play it from now on if both have come to the same often enough."""
        play, times = self._programs.trials.pop(form)
        told, found, expected = self._both(play, count, batch)
        if not _alike(_same_bits, found, expected):
            self._programs.known[form] = None
        elif times + 1 < COMPARED:
            self._programs.trials[form] = (play, times + 1)
        else:
            self._programs.known[form] = self._play = play
        return told

    def _compiled(self, form: Form, count: Tensor, batch: Batch) -> Told:
        """Take the first step of a form that is compiled, and is never taken in any other way.

        Raises:
            RuntimeError: it cannot be compiled, or differs from the step itself by more than roundings.
        """
        play, _ = self._programs.trials.pop(form)
        _, found, expected = self._both(play, count, batch)
        if not _alike(_close, found, expected):
            raise RuntimeError("engine.compile = true: the compiled step fails, or differs by more than roundings")
        self._programs.known[form] = self._play = play
        told = len(self._step.terms) + 2
        for own, other in zip(self._before, found[told:], strict=False):
            own.detach().copy_(other)
        return self._named(found)

    def _both(self, play: Flat, count: Tensor, batch: Batch) -> tuple[Told, list[Tensor], list[Tensor]]:
        """Take a step and play it on copies; return what it tells, and all that playing and stepping have come to."""
        inputs = [*self._before, count, *_leaves(batch), *self._behind]
        copies = _copies(inputs)
        told = self._step(self._lifted, self._moving, count, batch, self._anchors)
        expected = [*_leaves(told), *inputs]
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler's own
                return told, [*play(*copies), *copies], expected
        except Exception:  # whatever a record cannot do, the step itself has done
            return told, [], expected


ALIGNED = 64  # bytes: where a tensor of its own begins; some kernels round otherwise elsewhere


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    """Return copies that lie as the tensors do, strides and alignment, so that a trial changes nothing."""
    return [_copy(each.detach()) for each in tensors]


def _copy(tensor: Tensor) -> Tensor:
    if 0 in tensor.stride() or not tensor.numel():  # one number for many: nothing is written into such a tensor
        return tensor
    span = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    before = tensor.data_ptr() % ALIGNED // tensor.element_size()
    room = torch.empty(before + span, dtype=tensor.dtype, device=tensor.device)
    return room.as_strided(tensor.shape, tensor.stride(), before).copy_(tensor)


def _leaves(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested dicts and tuples in the order of `_pytree`, in a fraction of its time."""
    if isinstance(tree, Tensor):
        yield tree
    else:
        for each in tree.values() if isinstance(tree, dict) else tree:
            yield from _leaves(each)


def _form(tree: Any) -> Form:
    """Return names, shapes and strides of the tensors in a tree: what steps of one record have in common."""
    if isinstance(tree, Tensor):
        return (tree.shape, tree.stride())
    if isinstance(tree, dict):
        return tuple((name, _form(each)) for name, each in tree.items())
    return tuple(_form(each) for each in tree)


def _alike(judge: Callable[[Tensor, Tensor], bool], found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(map(judge, found, expected))


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal, NaN to NaN too."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-5, equal_nan=True)
