"""A data set as torch tensors on the device: index arrays in, model inputs out.

Both sides use it: clients gather training batches and their own test items, the server the central test items.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedcl import keys
from fedcl.answers import borrowed
from fedcl.streams import Stream
from fedcl.streams.dataset import Floats

READY = 2**23  # numbers of inputs that are kept as the model sees them: 32 MiB in float32


@dataclass(frozen=True)
class Source:
    """One split of the data: inputs, labels, and what tasks do to them."""

    x: Tensor  # (n, d) as stored: uint8 or float
    y: Tensor  # (n,) int64
    shape: tuple[int, ...]
    scale: float
    shift: float
    permutations: Tensor | None  # (tasks, d)
    masks: Tensor | None  # (tasks, classes) 0 or -inf; None: every class can always be predicted
    dtype: torch.dtype
    standard: tuple[Tensor, Tensor] | None = None  # mean and deviation (d,), instead of scale and shift

    @property
    def width(self) -> int:
        """Numbers of an input."""
        return self.x.shape[1]

    def inputs(self, items: Tensor, tasks: Tensor) -> Tensor:
        """Return model inputs (..., *shape) of items (...) as the tasks (...) show them."""
        flat = self.x.index_select(0, items.reshape(-1))  # a copy already
        if self.standard:  # each number by its own channel, before a task moves it
            flat = _standardised(flat.to(self.dtype), *self.standard)
        if self.permutations is not None:
            flat = flat.gather(-1, self.permutations[tasks.reshape(-1)])
        flat = _scaled(flat.to(self.dtype), self.scale, self.shift)
        return flat.view(*items.shape, *self.shape)

    def ready(self) -> "Source":
        """Return the same with the model inputs made once, if they are few enough to be kept."""
        if self.x.numel() > READY:
            return self
        made = self.x.to(self.dtype, copy=True)
        made = _standardised(made, *self.standard) if self.standard else _scaled(made, self.scale, self.shift)
        return replace(self, x=made, scale=1.0, shift=0.0, standard=None)

    def mask(self, tasks: Tensor) -> Tensor:
        """Return what is added to the logits: (..., classes), or (..., 1) zeros where nothing is masked."""
        if self.masks is None:
            return torch.zeros(*tasks.shape, 1, dtype=self.dtype, device=self.x.device)
        return self.masks[tasks]


def _scaled(x: Tensor, scale: float, shift: float) -> Tensor:
    """Scale and shift in place."""
    if scale != 1:
        x.mul_(scale)
    return x.add_(shift) if shift else x


def _standardised(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Standardise (n, d) in place: the mean goes first, so that a large common offset costs no digits."""
    return x.sub_(mean).div_(deviation)


def source(stream: Stream, split: str, dtype: torch.dtype, device: torch.device) -> Source:
    """Put one split ("train" or "test") of the stream's data on a device; the arrays are shared where they can be."""
    data = stream.dataset
    x, y = (data.x, data.y) if split == "train" else (data.test_x, data.test_y)
    masks = None if stream.masks.all() else torch.zeros(stream.masks.shape, dtype=dtype)
    if masks is not None:
        masks[~borrowed(stream.masks)] = -torch.inf
    flat = borrowed(x.reshape(len(x), math.prod(x.shape[1:])))
    if flat.dtype != torch.uint8:
        flat = flat.to(dtype)
    shape, norm = tuple(x.shape[1:]), data.standard

    def wide(values: Floats) -> Tensor:
        """Return numbers of channels (c,), the last axis, as those of a flat input (d,)."""
        return torch.from_numpy(np.resize(values, math.prod(shape))).to(device, dtype)

    return Source(
        x=flat.to(device),
        y=borrowed(y).to(device),
        shape=shape,
        scale=1.0 if norm else data.scale,
        shift=0.0 if norm else data.shift,
        permutations=None if stream.permutations is None else borrowed(stream.permutations).to(device),
        masks=None if masks is None else masks.to(device),
        dtype=dtype,
        standard=(wide(norm.mean), wide(norm.deviation)) if norm else None,
    )


def sample(items: NDArray[np.int64], limit: int | None, seed: int, *parts: int) -> NDArray[np.int64]:
    """Return a keyed sample of at most `limit` items, the same in every evaluation of a run."""
    if limit is None or len(items) <= limit:
        return items
    draws = keys.bits(keys.key(seed, keys.Purpose.EVALUATE, *parts), len(items))
    return items[np.sort(np.argsort(draws)[:limit])]


@torch.no_grad()
def measure(
    predict: Callable[[Tensor], Tensor], data: Source, items: NDArray[np.int64], tasks: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """Return which items are predicted right (n,) bool and their cross-entropies (n,), 1,024 at a time.

    Args:
        predict: inputs (b, *shape) -> logits (b, classes).
    """
    right, losses = [], []
    for start in range(0, len(items), 1024):
        part = torch.from_numpy(items[start : start + 1024]).to(data.x.device)
        task = torch.from_numpy(tasks[start : start + 1024]).to(data.x.device)
        logits = predict(data.inputs(part, task)) + data.mask(task)
        right.append(logits.argmax(1) == data.y[part])
        losses.append(cross_entropy(logits, data.y[part], reduction="none"))
    if not right:
        return torch.zeros(0, dtype=torch.bool), torch.zeros(0)
    return torch.cat(right).cpu(), torch.cat(losses).cpu()
