"""What a client answers: named tensors in one flat vector, so that adding, checking and hashing are one-liners.

A `Layout` is the name -> slice table. The model's parameters use the same table, so weights, updates and answers are
all flat vectors whose views are the named tensors.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fedcl.errors import ConfigError, nearest

Tensors = dict[str, Tensor]


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors with `prefix/` before every name."""
    return {f"{prefix}/{name}": each for name, each in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors named `prefix/...`, without the prefix."""
    return {name[len(prefix) + 1 :]: each for name, each in tensors.items() if name.startswith(f"{prefix}/")}


def _flat(tensor: Tensor, dims: int) -> Tensor:
    return tensor.flatten(tensor.dim() - dims) if dims else tensor[..., None]


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the tensors in a flat vector, in order."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> "Layout":
        """Return the layout of named tensors."""
        return Layout(tuple((name, tuple(each.shape)) for name, each in tensors.items()))

    @cached_property
    def slices(self) -> dict[str, tuple[slice, tuple[int, ...]]]:
        """Slice of the flat vector and shape of each name."""
        table, start = {}, 0
        for name, shape in self.shapes:
            table[name] = (slice(start, start + math.prod(shape)), shape)
            start += math.prod(shape)
        return table

    @cached_property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    def views(self, flat: Tensor) -> Tensors:
        """Return the named views of flat (..., size): each (..., *shape), sharing memory."""
        lead = flat.shape[:-1]
        return {name: flat[..., where].view((*lead, *shape)) for name, (where, shape) in self.slices.items()}

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return named tensors (..., *shape) as one vector (..., size).

        Raises:
            KeyError: a name of the layout is missing.
        """
        return torch.cat([_flat(tensors[name], len(shape)) for name, shape in self.shapes], -1)

    def prefixed(self, prefix: str) -> "Layout":
        """Return the same layout with `prefix/` before every name."""
        return Layout(tuple((f"{prefix}/{name}", shape) for name, shape in self.shapes))

    def __add__(self, other: "Layout") -> "Layout":
        """Return the layout of this vector followed by the other."""
        return Layout(self.shapes + other.shapes)


@dataclass(frozen=True)
class Answer:
    """A sum of client answers (or one of them): named tensors that add."""

    layout: Layout
    flat: Tensor

    def __getitem__(self, name: str) -> Tensor:
        """Return the named tensor, a view of the flat vector."""
        where, shape = self.layout.slices[name]
        return self.flat[where].view(shape)

    def under(self, prefix: str) -> Tensors:
        """Return the tensors named `prefix/...`, without the prefix."""
        names = (name for name, _ in self.layout.shapes if name.startswith(f"{prefix}/"))
        return {name[len(prefix) + 1 :]: self[name] for name in names}


def _delta(parameters: Layout, method: Any) -> Layout:
    return parameters.prefixed("delta") + Layout((("weight", ()),))


def _control(parameters: Layout, method: Any) -> Layout:
    return parameters.prefixed("control")


def _energies(parameters: Layout, method: Any) -> Layout:
    """Per protected layer: n * r, ||R||^2, ||A||^2; then n."""
    return Layout((*((f"energy/{name}", (3,)) for name in method.protected(parameters)), ("items", ())))


def _sketch(parameters: Layout, method: Any) -> Layout:
    shapes, inputs = dict(parameters.shapes), method.inputs(parameters)
    sketches = [(f"sketch/{name}", (d, method.width(shapes[name]))) for name, d in inputs.items()]
    return Layout(tuple(sketches)) + _energies(parameters, method)


def _gram(parameters: Layout, method: Any) -> Layout:
    inputs = method.inputs(parameters).items()
    return Layout(tuple((f"gram/{name}", (d, d)) for name, d in inputs)) + _energies(parameters, method)


def _head(parameters: Layout) -> tuple[int, ...]:
    """Return the head's shape (classes, features)."""
    shapes = dict(parameters.shapes)
    if "head.weight" not in shapes:
        raise ConfigError("server.method: sums of features are for a head that trains, and this model's does not")
    return shapes["head.weight"]


def _class_sums(parameters: Layout, method: Any) -> Layout:
    """Per class the sum of the features; what every statistic of features carries."""
    shape = _head(parameters)
    return Layout((("class_sums/sum", shape), *_marked("class_sums", shape[0])))


def _ridge(parameters: Layout, method: Any) -> Layout:
    """Upper triangle of Phi^T Phi, row by row; Phi^T Y; what every statistic of features carries."""
    classes, features = _head(parameters)
    d = method.width or features
    return Layout((("ridge/gram", (d * (d + 1) // 2,)), ("ridge/cross", (d, classes)), *_marked("ridge", classes)))


def _fisher(parameters: Layout, method: Any) -> Layout:
    """Per parameter the sum of the squared gradients; then n."""
    return parameters.prefixed("fisher") + Layout((("samples", ()),))


def _marked(name: str, classes: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Samples per class, and that many times the fingerprint of the embedding (`fedcl.embedding`)."""
    return (f"{name}/count", (classes,)), (f"{name}/fingerprint", (2,))


# Names and shapes of each statistic that clients can add up, for a model with given parameters and a server method.
LAYOUTS: dict[str, Callable[[Layout, Any], Layout]] = {
    "delta": _delta,
    "control": _control,
    "sketch": _sketch,
    "gram": _gram,
    "class_sums": _class_sums,
    "ridge": _ridge,
    "fisher": _fisher,
}


def answer_layout(statistics: Sequence[str], parameters: Layout, method: Any = None) -> Layout:
    """Return the layout of an answer that holds the named statistics in order, as a server method asks for them.

    Raises:
        ConfigError: there is no such statistic, or the model has not what it is of.
    """
    for name in statistics:
        if name not in LAYOUTS:
            raise ConfigError(f"server.method asks clients for an unknown statistic {name!r}{nearest(name, LAYOUTS)}")
    return Layout(tuple(shape for name in statistics for shape in LAYOUTS[name](parameters, method).shapes))


def borrowed(array: NDArray[Any]) -> Tensor:
    """Return a tensor of an array's memory, not to be written to: what has come over the wire is read-only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch that it cannot be written to
        return torch.from_numpy(array)


def refusal(layout: Layout, flat: Tensor) -> str | None:
    """Return why an answer cannot be taken: wrong length, or numbers that are not finite. None: it can."""
    if flat.shape != (layout.size,):
        return f"the answer has shape {tuple(flat.shape)} instead of ({layout.size},)"
    if not math.isfinite(flat.sum()) and not torch.isfinite(flat).all():  # a sum is not finite where an addend is not
        bad = [name for name, view in layout.views(flat).items() if not torch.isfinite(view).all()]
        return f"numbers that are not finite in {', '.join(bad[:3])}"
    return None


def clip_rows(rows: Tensor, limit: float | None) -> Tensor:
    """Scale each row of (k, P) down to norm `limit` (None: as they are)."""
    if limit is None:
        return rows
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows * (limit / norms.clamp(min=1e-30)).clamp(max=1.0)
