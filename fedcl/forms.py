"""What a tensor that a server sends may be: shape, dtype and values, declared by the method that sends it.

A server method has three hooks that send tensors: `shared`, `task_shared` and `classifier`. Beside each stands one that
says in which forms, `shared_forms` and so on, from nothing but the model's parameters and the number of tasks. A node
holds the same method by its own installation, so it can tell what it is sent from what the method would send. A class
that sends something else must say so anew: forms that are declared further up than the hook count for nothing, and
such tensors (of an outside package that knows nothing of forms) are bounded in size and finite, and no more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedcl.answers import Layout
from fedcl.orders import Array

MODEL = "that of the model"
SLACK = 1e-3  # of products of columns of unit length, far above what rounding in float32 comes to


@dataclass(frozen=True, kw_only=True)
class Form:
    """What one named tensor may be."""

    shape: tuple[int | None, ...]  # None: any length
    dtype: str = MODEL
    low: float | None = None
    high: float | None = None
    whole: bool = False  # whole numbers, in whatever dtype
    distinct: bool = False  # no value comes twice
    orthonormal: bool = False  # the columns of a matrix
    equal: tuple[int, ...] | None = None  # exactly these values
    optional: bool = False  # may be missing where others of its hook are there

    def problem(self, array: Array, model: str) -> str | None:
        """Return why an array does not have this form, None if it has.

        Args:
            model: dtype of the model's parameters.
        """
        dtype = model if self.dtype == MODEL else self.dtype
        fits = len(array.shape) == len(self.shape) and all(
            wanted in (None, found) for wanted, found in zip(self.shape, array.shape, strict=True)
        )
        if str(array.dtype) != dtype or not fits:
            shape = f"({', '.join('any' if n is None else str(n) for n in self.shape)})"
            return f"{array.dtype} of shape {array.shape} where {dtype} of shape {shape} belongs"
        return self._values(array)

    def _values(self, array: Array) -> str | None:
        if self.low is not None and (array < self.low).any():
            return f"holds numbers below {self.low:g}"
        if self.high is not None and (array > self.high).any():
            return f"holds numbers above {self.high:g}"
        if self.whole and (array != np.round(array)).any():
            return "holds numbers that are not whole"
        if self.distinct and len(np.unique(array)) != array.size:
            return "holds a number twice"
        if self.equal is not None and array.tolist() != list(self.equal):
            return f"is {array.tolist()}, not {list(self.equal)} as the scenario says"
        return "its columns are not orthonormal" if self.orthonormal and not is_orthonormal(array) else None


Forms = dict[str, Form]


def is_orthonormal(matrix: Array) -> bool:
    """Return whether the columns of a matrix (d, k) have length 1 and are at right angles."""
    d, k = matrix.shape
    if k > d or (np.abs(matrix) > 1 + SLACK).any():  # nor can a product overflow
        return False
    return bool((np.abs(matrix.T @ matrix - np.eye(k, dtype=matrix.dtype)) <= SLACK).all())


def like(prefix: str, parameters: Layout, *, low: float | None = None) -> Forms:
    """Return the forms of one tensor a parameter, `prefix/NAME`, of its shape and dtype."""
    return {f"{prefix}/{name}": Form(shape=shape, low=low) for name, shape in parameters.shapes}


def declared(method: object, hook: str) -> bool:
    """Return whether what a method's hook sends is said by forms of the same class or one that derives from it."""
    line = type(method).__mro__
    places = [
        next((place for place, each in enumerate(line) if name in vars(each)), len(line))
        for name in (f"{hook}_forms", hook)
    ]
    return places[0] <= places[1] < len(line)


def misnamed(tensors: Mapping[str, Array], hooks: Sequence[Forms]) -> str | None:
    """Return a name that should not be there, or one that is missing beside others of its hook; None: all are right.

    Args:
        hooks: the forms of each hook. A hook sends nothing, or all that it has to send but for what is optional.
    """
    known = [name for forms in hooks for name in forms]
    for name in tensors:
        if name not in known:
            return f"{name[:80]}: this server method sends {', '.join(known)[:200] or 'nothing'}"
    for forms in hooks:
        missing = [name for name, form in forms.items() if name not in tensors and not form.optional]
        if missing and any(name in tensors for name in forms):
            return f"{missing[0]}: is missing beside the others that this server method sends"
    return None
