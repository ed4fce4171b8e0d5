"""Images in the IDX format of MNIST (LeCun, Cortes, Burges): big-endian magic 0, 0, type, dimensions; sizes; bytes.

A header is only believed as far as the file's own length supports it, so a damaged one costs no memory.
"""

import gzip
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fedcl import files, keys
from fedcl.errors import ConfigError
from fedcl.keys import Purpose
from fedcl.settings import setting
from fedcl.streams.dataset import Dataset, DatasetSettings, Ints

FILES = {"train": "train", "test": "t10k"}
UNSIGNED_BYTE = 0x08
# Deflate cannot pack tighter than this, so no .gz holds more than its own length times this.
GZIP_RATIO = 1032
CHUNK = 1 << 20


class _Damaged(Exception):
    """Why a file cannot be taken."""


def _read_exactly(file: BinaryIO, size: int) -> bytearray:
    """Read `size` bytes piece by piece, so that memory grows with what is there and not with what was announced."""
    content = bytearray()
    while len(content) < size:
        piece = file.read(min(CHUNK, size - len(content)))
        if not piece:
            raise _Damaged(f"ends after {len(content):,} of {size:,} bytes that its header announces")
        content += piece
    return content


def _sizes(file: BinaryIO, dimensions: int, most: int) -> tuple[int, ...]:
    """Read and check the header; `most` is what the file can hold at all, in bytes."""
    magic = bytes(_read_exactly(file, 4))
    if magic != bytes((0, 0, UNSIGNED_BYTE, dimensions)):
        expected = bytes((0, 0, UNSIGNED_BYTE, dimensions)).hex()
        raise _Damaged(f"begins with {magic.hex()} instead of {expected} (unsigned bytes, {dimensions} dimensions)")
    sizes = tuple(np.frombuffer(_read_exactly(file, 4 * dimensions), ">u4").tolist())
    if min(sizes) < 1 or math.prod(sizes) > most:
        raise _Damaged(f"announces sizes {sizes}, which a file of its length cannot hold")
    if math.prod(sizes) > files.ARRAYS:
        raise _Damaged(f"unpacks to {math.prod(sizes):,} bytes, more than the {files.ARRAYS:,} that are read")
    return sizes


def _read(path: Path, dimensions: int) -> NDArray[np.uint8]:
    packed = path.suffix == ".gz"
    with files.opened(path, files.ARRAYS) as plain, gzip.open(plain) if packed else plain as opened:
        most = os.fstat(plain.fileno()).st_size * (GZIP_RATIO if packed else 1)
        file: BinaryIO = opened  # type: ignore[assignment]  # GzipFile reads like any binary file
        sizes = _sizes(file, dimensions, most)
        content = _read_exactly(file, math.prod(sizes))
        # Reading to the end also makes gzip compare its checksum.
        if file.read(1):
            raise _Damaged(f"goes on behind the {len(content):,} bytes that its header announces")
    return np.frombuffer(content, np.uint8).reshape(sizes)


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes, plain or .gz.

    Args:
        path: the file; a name that ends in .gz is unpacked.
        dimensions: 3 for images (n, h, w), 1 for labels (n,).

    Raises:
        ConfigError: it cannot be read, is damaged, or holds something else.
    """
    try:
        return _read(path, dimensions)
    except (_Damaged, files.Unfit, OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: {error}; fetch the file again, or set data.root or FEDCL_DATA") from error


def find_file(folder: Path, name: str) -> Path:
    """Return the plain file, else the packed one.

    Raises:
        ConfigError: there is neither.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if os.path.lexists(path):
            return path
    raise ConfigError(
        f"{folder / name}: neither it nor its .gz is there; set data.root or FEDCL_DATA to the data folder"
    )


def balanced(labels: Ints, limit: int) -> Ints:
    """Return `limit` items, ascending: as many of each class as far as there are; a smaller limit's are among them."""
    shuffled = keys.generator(0, Purpose.DATA).permutation(len(labels))
    by_class = np.argsort(labels[shuffled], kind="stable")
    ordered = labels[shuffled][by_class]
    rank = np.empty(len(labels), np.int64)
    rank[by_class] = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    return np.sort(shuffled[np.argsort(rank, kind="stable")[:limit]])


@dataclass(frozen=True, kw_only=True)
class IDX(DatasetSettings):
    """Grey images in four files with MNIST's names: {train,t10k}-{images-idx3,labels-idx1}-ubyte, plain or .gz."""

    folder: str = setting("", "folder with the four files, below data.root")
    limit: int | None = setting(None, "training images taken, classes balanced; default: all", low=1)
    standardize: bool = setting(False, "inputs with mean 0 and deviation 1 over all training pixels; else in [0, 1]")

    def load(self, root: str | None) -> Dataset:
        """Read the four files; there are as many classes as the largest training label says.

        Raises:
            ConfigError: no root, or a file is missing, damaged or does not fit its partner.
        """
        if not root:
            raise ConfigError(
                f"data.root = {root!r}: folder {self.folder!r} lies below it; set data.root or FEDCL_DATA"
            )
        folder = Path(root).expanduser() / self.folder
        (x, y), (test_x, test_y) = (self._split(folder, split) for split in FILES)
        classes, mean, deviation = int(y.max()) + 1, 0.0, 255.0
        if self.standardize:
            mean, deviation = float(x.mean(dtype=np.float64)), max(float(x.std(dtype=np.float64)), 1e-6)
        if self.limit is not None:
            chosen = balanced(y, self.limit)
            x, y = x[chosen], y[chosen]
        scale, shift = 1 / deviation, -mean / deviation
        return Dataset(x=x, y=y, test_x=test_x, test_y=test_y, classes=classes, scale=scale, shift=shift)

    def _split(self, folder: Path, split: str) -> tuple[NDArray[np.uint8], Ints]:
        images = find_file(folder, f"{FILES[split]}-images-idx3-ubyte")
        labels = find_file(folder, f"{FILES[split]}-labels-idx1-ubyte")
        x, y = read_idx(images, 3), read_idx(labels, 1)
        if len(x) != len(y):
            raise ConfigError(f"{labels}: {len(y):,} labels for {len(x):,} images in {images.name}; fetch both again")
        return x, y.astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class MNIST(IDX):
    """MNIST: 60,000 + 10,000 handwritten digits of 28 x 28 pixels (LeCun, Bottou, Bengio, Haffner, 1998)."""

    folder: str = setting("mnist", "folder with the four files, below data.root")


@dataclass(frozen=True, kw_only=True)
class FashionMNIST(IDX):
    """Fashion-MNIST: 60,000 + 10,000 images of clothes, 28 x 28 pixels (Xiao, Rasul, Vollgraf, arXiv:1708.07747)."""

    folder: str = setting("fashion_mnist", "folder with the four files, below data.root")
