"""A local step, recorded once and played again: the same operations without autograd and vmap around them; or compiled.

What PyTorch's eager `vmap` and autograd cost a stack of small models is not the arithmetic but their bookkeeping in
Python, anew in every step. So a step that comes by again and again in one form (names, shapes, number of clients) is
traced into the list of plain tensor operations that it is made of (`make_fx`), and that list is played from then on.
It is played only if it gives the same bits as the step itself on the batch on which it was recorded. So it never
matters, to any result, when or in which process a step was recorded; only how fast it is.

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
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree

from clients.graphs import tidied
from clients.lift import Lift
from clients.losses import Anchors, Batch
from clients.step import Moving, Step, Told

# Steps of one form before it is recorded: to record takes as long as some fifty steps. FEDCL_EAGER=1: never, so that
# what a loss prints, or a debugger stops at, comes by in every step.
PLAYED_AFTER = sys.maxsize if os.environ.get("FEDCL_EAGER", "0") not in ("", "0") else 48
Flat = Callable[..., list[Tensor]]
Take = Callable[[Tensor, Batch], Told]  # count (k,), batch
Form = tuple[Any, ...]


@dataclass
class Programs:
    """What this process has recorded, by form; None: cannot be recorded, or gives other bits."""

    compile: int = 0  # stacks of so many clients are compiled; 0: none
    known: dict[Form, Flat | None] = field(default_factory=dict)
    seen: dict[Form, int] = field(default_factory=dict)

    def segment(self, step: Step, lifted: Lift, moving: Moving, anchors: Anchors) -> Take:
        """Return how to take the steps of a segment, in which the same clients train."""
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
        """Take a step that is not recorded yet, and record it if its time has come."""
        known, seen = self._programs.known, self._programs.seen
        if self._form is None:
            held = {
                name: each for name, each in self._anchors.shared.items() if name != "global"
            }  # that is as the weights
            self._form = (self._step, *_form((self._moving, batch, held, self._anchors.own)))
            self._play = known.get(self._form)
            if self._play is not None:
                return self(count, batch)
        compiled = self._programs.compile == len(self._moving.weights)
        if self._form not in known:
            seen[self._form] = seen.get(self._form, 0) + 1
            if compiled or seen[self._form] >= PLAYED_AFTER:
                return self._recorded(self._form, count, batch, compiled)
        return self._step(self._lifted, self._moving, count, batch, self._anchors)

    def _named(self, found: list[Tensor]) -> Told:
        names = self._step.terms
        return Told(dict(zip(names, found, strict=False)), found[len(names)], found[len(names) + 1])

    def _recorded(self, form: Form, count: Tensor, batch: Batch, compiled: bool) -> Told:
        """Take a step, record it, and play it from now on if what is played comes to the same.

        Raises:
            RuntimeError: a step that must be compiled cannot be, or differs by more than roundings.
        """
        inputs, tree = _pytree.tree_flatten((self._moving, count, batch, self._anchors))
        before, trial, lifted = _copies(inputs), _copies(inputs), self._lifted.pure

        def flat(*given: Tensor) -> list[Tensor]:
            return list(_leaves(self._step(lifted, *_pytree.tree_unflatten(list(given), tree))))

        told = self._step(self._lifted, self._moving, count, batch, self._anchors)
        expected = [*_leaves(told), *inputs]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of PyTorch about its own tracing
                traced = tidied(make_fx(flat)(*trial), turn=compiled)
                play: Flat = torch.compile(traced, dynamic=False) if compiled else traced.forward
                with torch.no_grad():
                    found = [*play(*before), *before]
        except Exception as error:  # a loss that looks at numbers cannot be recorded: it is run as it is, as before
            if compiled:
                raise RuntimeError(f"engine.compile = true: the step cannot be compiled: {error}") from error
            self._programs.known[form] = None
            return told
        same = all(map(_close if compiled else _same_bits, found, expected))
        if compiled and not same:
            raise RuntimeError("engine.compile = true: the compiled step differs from the step by more than roundings")
        self._programs.known[form] = self._play = play if same else None
        if not compiled:
            return told
        for own, other in zip(self._before, before, strict=False):  # a compiled step is never taken in any other way
            own.detach().copy_(other)
        return self._named(found)


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


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal, NaN to NaN too."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-5, equal_nan=True)
