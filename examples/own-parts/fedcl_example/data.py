"""Rings: class c lies on a circle of radius c + 1, with noise. Made from its own seed, so it is the same everywhere."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedcl.keys import Purpose, generator
from fedcl.settings import setting
from fedcl.streams import Dataset, DatasetSettings


@dataclass(frozen=True, kw_only=True)
class Rings(DatasetSettings):
    """Two-dimensional points on concentric circles."""

    classes: int = setting(6, "circles", low=2, high=100)
    samples: int = setting(600, "training points", low=1)
    noise: float = setting(0.1, "standard deviation of the radius", low=0)

    def load(self, root: str | None) -> Dataset:
        """Return training points and a quarter as many test points."""
        x, y = self.points(self.samples, 0)
        test_x, test_y = self.points(self.samples // 4, 1)
        return Dataset(x=x, y=y, test_x=test_x, test_y=test_y, classes=self.classes)

    def points(self, n: int, split: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return n points (n, 2) and their classes (n,)."""
        rng = generator(0, Purpose.DATA, split)
        y = np.arange(n, dtype=np.int64) % self.classes
        angle, radius = rng.uniform(0, 2 * np.pi, n), y + 1 + rng.normal(0, self.noise, n)
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype(np.float32), y
