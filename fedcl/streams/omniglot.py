"""Omniglot (Lake et al., Science 350, 2015): 1,623 characters of 50 alphabets, each drawn by twenty people.

Read from two packed files, omniglot_background.npz and omniglot_evaluation.npz: `n`, `bits_xz` (lzma: n pictures of 105
rows of 105 bits, ink = 1, each row padded to 14 bytes) and `names_xz` (lzma: n lines ALPHABET/CHARACTER/ID_DRAWER).
"""

import lzma
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedcl import files, keys
from fedcl.errors import ConfigError
from fedcl.keys import Purpose
from fedcl.settings import setting
from fedcl.streams.dataset import Dataset, DatasetSettings, Ints
from fedcl.streams.datasets import SPLIT_SEED, held_out

SIDE, ROW_BYTES = 105, 14
# What NumPy, zipfile and lzma raise for bytes that are not what they announce.
FAULTS = (files.Unfit, OSError, ValueError, KeyError, EOFError, MemoryError, zlib.error, lzma.LZMAError)
MOST_PICTURES, MOST_NAME_BYTES = 100_000, 10_000_000  # no file is believed beyond this
PARTS = ("omniglot_background.npz", "omniglot_evaluation.npz")
TEST_SHARE = 0.25  # 5 of a character's 20 drawings


def shrunk(pictures: NDArray[np.bool_], size: int) -> NDArray[np.uint8]:
    """Return pictures (n, 105, 105) as (n, size, size): 255 times the share of ink on the area of each pixel."""
    edges = np.arange(size + 1) * SIDE / size
    cells = np.arange(SIDE)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    weights = np.maximum(overlap, 0).astype(np.float32) * np.float32(size / SIDE)
    parts = [
        weights @ part.astype(np.float32) @ weights.T for part in np.array_split(pictures, len(pictures) // 512 + 1)
    ]
    small: NDArray[np.uint8] = np.rint(255 * np.concatenate(parts)).clip(0, 255).astype(np.uint8)
    return small


def _unpacked(packed: NDArray[np.uint8], size: int) -> bytes:
    """Return what lzma bytes unpack to, at most `size` bytes of it.

    Raises:
        ValueError: there is more, or less for a fixed size, than expected.
    """
    decompressor = lzma.LZMADecompressor()
    content = decompressor.decompress(packed.tobytes(), size)
    if not decompressor.eof:
        raise ValueError(f"it holds more than the {size:,} bytes that it should")
    return content


def read_pictures(path: Path) -> tuple[NDArray[np.bool_], list[str]]:
    """Return pictures (n, 105, 105), True = ink, and the character of each.

    Raises:
        ConfigError: the file is missing or damaged, or holds something else.
    """
    try:
        with files.opened(path, files.ARRAYS) as plain:
            file = np.load(files.unpacking(plain, files.ARRAYS), allow_pickle=False)
            n = int(file["n"])
            if not 0 < n <= MOST_PICTURES:
                raise ValueError(f"it announces {n} pictures")
            bits = _unpacked(file["bits_xz"], n * SIDE * ROW_BYTES)
            names = _unpacked(file["names_xz"], MOST_NAME_BYTES).decode().split("\n")
        packed = np.frombuffer(bits, np.uint8).reshape(n, SIDE, ROW_BYTES)
        if len(names) != n:
            raise ValueError(f"{len(names)} names for {n} pictures")
    except FAULTS as error:
        raise ConfigError(
            f"{path}: cannot be read as packed Omniglot ({' '.join(str(error).split())[:120]}); "
            "set data.root or FEDCL_DATA to the data folder"
        ) from error
    return np.unpackbits(packed, axis=2)[:, :, :SIDE].astype(bool), [name.rsplit("/", 1)[0] for name in names]


@dataclass(frozen=True)
class _Part:
    """Small pictures (n, size, size), their characters, numbered in the order of the names, and which are for tests."""

    x: NDArray[np.uint8]
    y: Ints
    test: NDArray[np.bool_]

    @property
    def characters(self) -> int:
        """How many there are."""
        return int(self.y.max()) + 1

    def some(self, characters: int) -> "_Part":
        """Return so many of the characters, drawn and numbered anew; the same drawings are for tests."""
        chosen = np.sort(keys.generator(SPLIT_SEED, Purpose.DATA).permutation(self.characters)[:characters])
        kept = np.isin(self.y, chosen)
        return _Part(self.x[kept], np.searchsorted(chosen, self.y[kept]), self.test[kept])


@lru_cache(maxsize=4)
def _read(path: Path, size: int) -> _Part:
    """Read a file once a process."""
    pictures, names = read_pictures(path)
    labels = np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)
    return _Part(shrunk(pictures, size), labels, held_out(labels, TEST_SHARE))


@dataclass(frozen=True, kw_only=True)
class Omniglot(DatasetSettings):
    """Omniglot (Lake, Salakhutdinov, Tenenbaum, Science 2015): characters, 15 drawings to train and 5 to test each.

    With `part: both` the background's characters come first (`stream.base_classes: 964`), then those to be met later.
    """

    part: Literal["background", "evaluation", "both"] = setting("both", "which of the two sets of alphabets")
    field: int | None = setting(
        None, "characters taken of the evaluation set, the same in every run; default: all", low=1
    )
    size: int = setting(28, "pixels of a side", low=1, high=SIDE)
    folder: str = setting("omniglot", "folder with the two files, below data.root")

    def load(self, root: str | None) -> Dataset:
        """Read the files, shrink the pictures and hold 5 of every character's 20 drawings out for testing.

        Raises:
            ConfigError: no root, a file is missing or damaged, or there are fewer characters than `field`.
        """
        if not root:
            raise ConfigError(
                f"data.root = {root!r}: folder {self.folder!r} lies below it; set data.root or FEDCL_DATA"
            )
        folder, parts = Path(root).expanduser() / self.folder, []
        if self.part != "evaluation":
            parts.append(_read(folder / PARTS[0], self.size))
        if self.part != "background":
            parts.append(self._taken(_read(folder / PARTS[1], self.size)))
        classes, labels = 0, []
        for part in parts:
            labels.append(part.y + classes)
            classes += part.characters
        x, y = np.concatenate([part.x for part in parts]), np.concatenate(labels)
        test = np.concatenate([part.test for part in parts])
        return Dataset(x=x[~test], y=y[~test], test_x=x[test], test_y=y[test], classes=classes, scale=1 / 255)

    def _taken(self, evaluation: _Part) -> _Part:
        if self.field is None:
            return evaluation
        if self.field > evaluation.characters:
            there = f"the evaluation set has {evaluation.characters} characters"
            raise ConfigError(f"stream.dataset.field = {self.field}: {there}")
        return evaluation.some(self.field)
