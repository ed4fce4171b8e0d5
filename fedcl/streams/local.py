"""Data that stays with its owners: each client's own folder on its own machine, which may grow and lose files.

Server and nodes agree on what an item is (classes, shape, type: below) before anybody has looked at a file. Which items
a client has, and of which task, only its node knows (`clients.ward`); the server learns how many there are.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedcl.errors import ConfigError
from fedcl.settings import setting
from fedcl.streams.dataset import Dataset, DatasetSettings
from fedcl.streams.folder import Expected, Reading
from fedcl.streams.labels import BadLabel, class_name, label_of, tidy

LARGEST = 1 << 24  # numbers of an input


@dataclass(frozen=True, kw_only=True)
class Local(Reading, DatasetSettings):
    """Each client's own folder of pictures, .npz, .csv or .parquet on its own machine (fedcl client --data)."""

    elsewhere: ClassVar[bool] = True

    classes: list[str] = setting([], "names of the classes as the files have them, in the order of their numbers")
    shape: list[int] = setting([], "shape of an input: [28, 28] grey, [28, 28, 3] colour, [30] a table's 30 columns")
    dtype: Literal["uint8", "float32"] = setting("float32", "type of the inputs; pictures are uint8")
    columns: list[str] = setting([], "a table's columns of inputs, in the order in which the model sees them")
    test: float = setting(0.2, "share of a client's items held out, unless it has a folder test/", above=0, below=1)

    def load(self, root: str | None) -> Dataset:
        """Return the data set as the server knows it: what an item is, and none of them.

        Raises:
            ConfigError: the scenario does not say what an item is.
        """
        for problem in self._problems():
            raise ConfigError(f"stream.dataset.{problem}")
        x, y = np.empty((0, *self.shape), self.dtype), np.empty(0, np.int64)
        scale, names = 1 / 255 if self.dtype == "uint8" else 1.0, self.expected.classes or ()
        return Dataset(
            x=x, y=y, test_x=x, test_y=y, classes=len(names), scale=scale, elsewhere=True, names=names,
            columns=self.expected.columns or (),
        )  # fmt: skip

    def _problems(self) -> Iterator[str]:
        if len(self.classes) < 2:
            yield f"classes = {self.classes}: must name the classes, two at least, as the files have them: [cat, dog]"
        for each in self.classes:
            try:
                if label_of(each) is None:
                    yield f"classes: {each!r} is what tables write where a label is missing; choose another name"
            except BadLabel as error:
                yield f"classes: {error}"
        name, times = Counter(map(class_name, self.classes)).most_common(1)[0]
        if times > 1:
            yield f"classes: {name!r} stands there {times} times; numbers are one class however they are written"
        if not self.shape or min(self.shape) < 1 or int(np.prod(self.shape, dtype=float)) > LARGEST:
            yield f"shape = {self.shape}: must be the shape of an input: [28, 28], or [30] for a table of 30 columns"
        if self.columns and [len(self.columns)] != self.shape:
            yield f"columns: {len(self.columns)} names, but shape = {self.shape}"

    @property
    def expected(self) -> Expected:
        """What every client's files must have in common."""
        return Expected(
            classes=tuple(map(class_name, self.classes)), shape=tuple(self.shape), dtype=self.dtype, label=self.label,
            size=self.size, columns=tuple(map(tidy, self.columns)), max_bytes=self.max_bytes,
        )  # fmt: skip
