"""Data sets that need no files: scikit-learn's digits, and Gaussian clusters of any size."""

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedcl import keys
from fedcl.keys import Purpose
from fedcl.settings import setting
from fedcl.streams.dataset import Dataset, DatasetSettings, Ints

# Never the scenario's seed: runs with different seeds are measured on the same test items.
SPLIT_SEED = 0


def held_out(labels: Ints, fraction: float) -> NDArray[np.bool_]:
    """Return which items (n,) are for testing: a fixed `fraction` of every class, rounded."""
    chosen = np.zeros(len(labels), np.bool_)
    for label in np.unique(labels).tolist():
        own = keys.generator(SPLIT_SEED, Purpose.DATA, label).permutation(np.flatnonzero(labels == label))
        chosen[own[: round(fraction * len(own))]] = True
    return chosen


def _digits() -> NDArray[np.float64]:
    """Return scikit-learn's table of digits, (1797, 65): 64 pixels and the label.

    Its file is read where it lies: to import scikit-learn takes every process, of every node, a second or two.
    """
    path = Path(str(metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")))
    if path.is_file():
        return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])


@dataclass(frozen=True, kw_only=True)
class Digits(DatasetSettings):
    """1,797 handwritten digits, 8 x 8 pixels of 17 grey levels (Alpaydin, Kaynak, 1998), shipped by scikit-learn."""

    def load(self, root: str | None) -> Dataset:
        """Load the images and hold a fifth of every class out for testing."""
        table = _digits()
        x, y = table[:, :-1].reshape(-1, 8, 8).astype(np.uint8), table[:, -1].astype(np.int64)
        test = held_out(y, 0.2)
        return Dataset(x=x[~test], y=y[~test], test_x=x[test], test_y=y[test], classes=10, scale=1 / 16)


@dataclass(frozen=True, kw_only=True)
class Synthetic(DatasetSettings):
    """Gaussian clusters: x = separation * u(class) + noise, u a random unit vector, noise of unit variance."""

    classes: int = setting(10, "classes, one cluster each", low=2, high=100_000)
    features: int = setting(16, "length of an input vector", low=1, high=1_000_000)
    samples: int = setting(2000, "training items, the same number of each class (give or take one)", low=1, high=10**9)
    test_samples: int = setting(500, "test items", low=1, high=10**9)
    separation: float = setting(
        3.0, "distance of a cluster's centre from the origin, in standard deviations", low=0, high=1e6
    )
    seed: int = setting(0, "seed of the data, apart from the seed of the run", low=0, high=2**62)

    def load(self, root: str | None) -> Dataset:
        """Draw the data; the clusters do not depend on how many items are drawn."""
        directions = self._normal(0, self.classes)
        centres = self.separation * directions / np.linalg.norm(directions, axis=1, keepdims=True)
        y, test_y = np.arange(self.samples) % self.classes, np.arange(self.test_samples) % self.classes
        x = centres[y] + self._normal(1, self.samples)
        test_x = centres[test_y] + self._normal(2, self.test_samples)
        return Dataset(x=x, y=y, test_x=test_x, test_y=test_y, classes=self.classes)

    def _normal(self, part: int, rows: int) -> NDArray[np.float32]:
        rng = keys.generator(self.seed, Purpose.DATA, part)
        return rng.standard_normal((rows, self.features), dtype=np.float32)
