"""What a data set is: two splits of inputs and labels, held once and only ever indexed."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcl.errors import ConfigError
from fedcl.settings import Settings

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Standard:
    """By what inputs are standardised: the model sees (x - mean) / deviation, by channel or column.

    Raises:
        ConfigError: the two do not fit each other, or are no numbers that can be.
    """

    mean: Floats  # (c,)
    deviation: Floats  # (c,) above 0
    n: int  # training inputs that they come from

    def __post_init__(self) -> None:
        """Check lengths and values."""
        if self.mean.ndim != 1 or self.mean.shape != self.deviation.shape:
            raise ConfigError(f"standardised by means of shape {self.mean.shape}, deviations {self.deviation.shape}")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.deviation).all() and (self.deviation > 0).all()):
            raise ConfigError("standardised by means or deviations that are no finite numbers, or by a deviation of 0")


def channels(shape: tuple[int, ...]) -> int:
    """Return how many channels or columns inputs of a shape have: the last axis of (columns,) or (h, w, channels)."""
    return 1 if len(shape) == 2 else shape[-1]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Inputs and labels; the model sees x * scale + shift, or what `standard` says.

    Raises:
        ConfigError: the arrays contradict each other (data sets of one's own come through here too).
    """

    x: Array  # (n, *shape) uint8 or float32
    y: Ints  # (n,) in [0, classes)
    test_x: Array  # (m, *shape)
    test_y: Ints  # (m,)
    classes: int
    scale: float = 1.0
    shift: float = 0.0
    notes: tuple[str, ...] = ()  # what its user must be told, a line each: the start of a run has them
    elsewhere: bool = False  # the items lie with their owners: the server has none, a node those of its clients
    names: tuple[str, ...] = ()  # of the classes, in the order of their numbers; (): the numbers are the names
    columns: tuple[str, ...] = ()  # of tables: names of the inputs' columns
    standard: Standard | None = None

    def __post_init__(self) -> None:
        """Check lengths, shapes, types and labels."""
        for problem in self._problems():
            raise ConfigError(f"stream.dataset: {problem}")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class."""
        return self.names or tuple(map(str, range(self.classes)))

    def _problems(self) -> Iterator[str]:
        shape = self.x.shape[1:]
        if self.names and len(self.names) != self.classes:
            yield f"{len(self.names)} names of {self.classes} classes"
        if self.columns and (len(self.columns),) != shape:
            yield f"{len(self.columns)} names of columns for inputs of shape {shape}"
        if self.standard and len(self.standard.mean) != channels(shape):
            yield f"{len(self.standard.mean)} means for inputs of shape {shape}"
        if not len(self.x) and not self.elsewhere:
            yield "its training split is empty"
        if self.x.shape[1:] != self.test_x.shape[1:]:
            yield f"training inputs of shape {self.x.shape[1:]} but test inputs of shape {self.test_x.shape[1:]}"
        for split, x, y in (("training", self.x, self.y), ("test", self.test_x, self.test_y)):
            if x.dtype not in (np.uint8, np.float32, np.float64) or y.dtype != np.int64:
                yield f"{split} inputs are {x.dtype} and labels {y.dtype}; must be uint8 or float32, and int64"
            if y.shape != (len(x),):
                yield f"{len(x)} {split} inputs but labels of shape {y.shape}"
            if y.size and not 0 <= y.min() <= y.max() < self.classes:
                yield f"{split} labels reach from {y.min()} to {y.max()}; must be in [0, {self.classes})"


@dataclass(frozen=True, kw_only=True)
class DatasetSettings(Settings, ABC):
    """Settings of a data set that can be loaded."""

    elsewhere: ClassVar[bool] = False  # whether the items lie with their owners (`Dataset.elsewhere`)

    @abstractmethod
    def load(self, root: str | None) -> Dataset:
        """Load the data.

        Args:
            root: folder with files of real data; None where the user named none.

        Raises:
            ConfigError: a file is missing or damaged.
        """
