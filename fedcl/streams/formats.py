"""What one file holds: a picture, arrays (.npz), or a table (.csv, .parquet); no header is believed unseen.

Nothing is unpickled. Pillow and pyarrow are imported where a file needs them, and named where they are missing.
"""

import csv
import importlib
import json
import math
import os
import re
import warnings
import zipfile
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any, TextIO

import numpy as np

from fedcl.distribution import install
from fedcl.errors import nearest
from fedcl.streams.dataset import Array, Ints
from fedcl.streams.labels import MOST_LABEL, BadLabel, class_name, label_of, tidy

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
DECODERS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")  # Pillow tries no others, whatever a file begins with
MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}  # what a picture may be -> what it is read as, without loss
MOST_LINE, MOST_COLUMNS = 1 << 24, 1_000_000  # characters, columns
MOST_HINTS = 50  # names that a misspelt one is compared with
NO_LABEL = -1
# An index that pandas has written: without a name it is "" in a CSV file, "Unnamed: 0" once that has been read and
# written again (twice: "Unnamed: 0.1"), and this in a Parquet file.
UNNAMED = re.compile(r"|Unnamed: 0(\.\d+)*", re.ASCII)
LEVEL = re.compile(r"__index_level_\d+__", re.ASCII)


class Unreadable(Exception):
    """Why a file gives no items: a clause that follows its name."""


@dataclass(frozen=True, eq=False)
class Content:
    """The items of one file, before anybody has looked whether they fit."""

    x: Array  # (n, *shape) uint8 or float32
    names: tuple[str, ...]  # labels that occur
    y: Ints  # (n,) which of them, -1 = none
    columns: tuple[str, ...] | None = None  # of a table: the name of each column of x
    index: tuple[str, ...] = ()  # of a table: columns that are no inputs, as pandas' index is none


@dataclass(frozen=True)
class Wanted:
    """What a table must have."""

    label: str  # the name of its column of labels
    inputs: Collection[str] = ()  # names of columns that are inputs, whatever they look like
    labelled: bool = True  # False: the labels are not looked at and may not be there


@contextmanager
def _decoding(path: str, kind: str) -> Iterator[None]:
    """Turn whatever a decoder raises into the reason why the file is left out."""
    try:
        yield
    except Unreadable:
        raise
    except Exception as error:  # four libraries, each with errors of its own for damaged bytes
        said = error.strerror if isinstance(error, OSError) else str(error)
        said = " ".join((said or str(error) or type(error).__name__).split()).replace(path, os.path.basename(path))
        raise Unreadable(f"cannot be read as {kind} ({said})") from error


def _extra(module: str, package: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unreadable(f"needs {package}: {install(extra)}") from error


def _bounded(size: int, most: int, what: str) -> None:
    if size > most:
        raise Unreadable(f"{what} {size:,} bytes, more than max_bytes = {most:,}")


def _coded(names: dict[str, int], value: object) -> int:
    """Return the number of a label, a new one for a new class; -1 where there is none (`fedcl.streams.labels`)."""
    try:
        name = label_of(value)
    except BadLabel as error:
        raise Unreadable(f"has {error}") from error
    return NO_LABEL if name is None else names.setdefault(name, len(names))


def _inputs(x: Array) -> Array:
    """Return x (n, *shape) as uint8 where it is that, else as float32; what float32 cannot hold becomes infinite."""
    if x.dtype == np.uint8:
        return np.ascontiguousarray(x)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(x, np.float32)


def read_picture(path: str, name: str, size: int | None, most: int) -> Content:
    """Read one picture, grey (h, w) or colour (h, w, 3), 8 bit; its pixels as they are stored, whatever EXIF says.

    Args:
        path: the file.
        name: its label, the name of its folder.
        size: pixels of a side that it is shrunk or stretched to; None: as it is.
        most: bytes that it may unpack to.

    Raises:
        Unreadable: damaged, of another kind, moving, transparent, or too large.
    """
    image: Any = _extra("PIL.Image", "pillow", "images")
    with _decoding(path, "a picture"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", image.DecompressionBombWarning)
        try:
            with image.open(path, formats=DECODERS) as picture:
                x = _pixels(image, picture, size, most)
        except image.UnidentifiedImageError as error:
            raise Unreadable(f"is no picture that can be read ({', '.join(DECODERS)}), or damaged") from error
    try:
        return Content(x[None], (class_name(name),), np.zeros(1, np.int64))
    except BadLabel as error:
        raise Unreadable(f"has {error}") from error


def _pixels(image: Any, picture: Any, size: int | None, most: int) -> Array:
    if picture.mode not in MODES or "transparency" in picture.info:
        mode = "transparent" if "transparency" in picture.info else picture.mode
        raise Unreadable(f"is {mode}; save it as 8 bit grey or RGB")
    if getattr(picture, "n_frames", 1) != 1:
        raise Unreadable(f"has {picture.n_frames} frames; save each as a picture")
    mode = MODES[picture.mode]
    _bounded(picture.width * picture.height * len(mode), most, "unpacks to")
    read = picture.convert(mode)
    if size is not None:
        read = read.resize((size, size), image.Resampling.BILINEAR)
    return np.array(read, np.uint8)


def read_npz(path: str, most: int, *, labelled: bool = True) -> Content:
    """Read the arrays x (n, *shape) of numbers and, if `labelled`, y (n,) of labels.

    Raises:
        Unreadable: damaged, an array is missing, holds something else, or would unpack to more than `most` bytes.
    """
    with _decoding(path, ".npz"), zipfile.ZipFile(path) as file:
        x = _member(file, "x", "buif", most)
        if not labelled:
            return Content(_inputs(x), (), np.full(len(x) if x.ndim else 1, NO_LABEL))
        y = _member(file, "y", "buifU", most)
        if x.ndim < 2 or y.shape != (len(x),):
            raise Unreadable(f"has x of shape {x.shape} and y of shape {y.shape}; must be (n, ...) and (n,)")
        values, which = np.unique(y, return_inverse=True)
        names: dict[str, int] = {}
        codes = np.array([_coded(names, value) for value in values.tolist()], np.int64)
        return Content(_inputs(x), tuple(names), codes[which])


def read_npy(path: str, most: int) -> Content:
    """Read inputs without labels, one array of numbers.

    Raises:
        Unreadable: damaged, it holds something else, or has more than `most` bytes.
    """
    with _decoding(path, ".npy"):
        length = os.stat(path).st_size
        _bounded(length, most, "has")
        x = _array(partial(open, path, "rb"), length, "its array", "buif")
        return Content(_inputs(x), (), np.full(len(x) if x.ndim else 1, NO_LABEL))


def _member(file: zipfile.ZipFile, name: str, kinds: str, most: int) -> Array:
    """Read one array of an .npz file, after its length has been compared with `most`."""
    if f"{name}.npy" not in file.namelist():
        there = [each.removesuffix(".npy") for each in file.namelist()]
        raise Unreadable(f"has no array {name!r}{nearest(name, there[:MOST_HINTS])}")
    length = file.getinfo(f"{name}.npy").file_size
    _bounded(length, most, f"its array {name!r} unpacks to")
    return _array(partial(file.open, f"{name}.npy"), length, f"its array {name!r}", kinds)


def _array(opened: Callable[[], Any], length: int, what: str, kinds: str) -> Array:
    """Read one array, after its header has been compared with its length."""
    header = np.lib.format
    with opened() as member:
        version = header.read_magic(member)
        if version not in ((1, 0), (2, 0)):
            raise Unreadable(f"{what} is of version {version}; must be (1, 0) or (2, 0)")
        read = header.read_array_header_1_0 if version == (1, 0) else header.read_array_header_2_0
        shape, _, dtype = read(member)
    if dtype.kind not in kinds or dtype.itemsize > 4 * MOST_LABEL:
        raise Unreadable(f"{what} holds {dtype}; must be numbers{' or short text' * ('U' in kinds)}")
    if math.prod(shape) * max(dtype.itemsize, 1) > length:
        raise Unreadable(f"{what} announces shape {shape}, which {length:,} bytes cannot hold")
    if 0 in shape:
        raise Unreadable("holds no item")
    with opened() as member:
        loaded: Array = header.read_array(member, allow_pickle=False)
        if member.read(1):
            raise Unreadable(f"{what} goes on behind what it announces")
        return loaded


@dataclass(frozen=True)
class _Columns:
    """What the columns of a table are: the place of the label, those of the inputs, and the names of both."""

    label: int  # -1: nobody asks for it
    places: tuple[int, ...]
    inputs: tuple[str, ...]
    index: tuple[str, ...]  # what is neither


def _split(columns: Sequence[str], wanted: Wanted, index: Collection[str] = ()) -> _Columns:
    """Tell the columns of a table apart.

    Args:
        columns: their names.
        wanted: which are to be there.
        index: names of those that the file itself calls its index.

    Raises:
        Unreadable: none is the label, it stands alone, or two columns have one name.
    """
    names, label = [tidy(name) for name in columns], tidy(wanted.label)
    if wanted.labelled and label not in names:
        raise Unreadable(f"has no column {wanted.label!r}{nearest(label, names[:MOST_HINTS])}")
    unnamed = takewhile(lambda number: UNNAMED.fullmatch(names[number]), range(len(names)))
    beside = {*unnamed, *(number for number, name in enumerate(names) if name in index or LEVEL.fullmatch(name))}
    beside = {number for number in beside if names[number] not in (label, *wanted.inputs)}
    labels = [number for number, name in enumerate(names) if name == label and name not in wanted.inputs]
    places = [number for number in range(len(names)) if number not in (*labels, *beside)]
    inputs = [names[number] for number in places]
    for name, times in Counter([label] * len(labels) + inputs).most_common(1):
        if times > 1:
            raise Unreadable(f"has {times} columns {name!r}")
    if not 1 <= len(inputs) < MOST_COLUMNS:
        raise Unreadable(f"has {len(inputs):,} columns of inputs beside the label's; must be 1 to {MOST_COLUMNS:,}")
    return _Columns(
        labels[0] if wanted.labelled else NO_LABEL, tuple(places), tuple(inputs),
        tuple(names[number] for number in sorted(beside)),
    )  # fmt: skip


def _lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(MOST_LINE + 1):
        if len(line) > MOST_LINE:
            raise Unreadable(f"has a line of more than {MOST_LINE:,} characters")
        yield line


def _numbers(row: int, cells: list[str]) -> list[float]:
    """Return the numbers of a row; an empty cell is unknown (NaN)."""
    try:
        return list(map(float, cells))
    except ValueError:
        return [_number(row, cell) for cell in cells]


def _number(row: int, cell: str) -> float:
    try:
        return float(cell) if cell.strip() else math.nan
    except ValueError as error:
        raise Unreadable(f"has {cell[:40]!r} in row {row}, where a number must be") from error


def read_csv(path: str, wanted: Wanted, most: int, names: Sequence[str] = ()) -> Content:
    """Read a table with commas and a line of column names: one column of labels, numbers in the others.

    A file cut off within its last number cannot be told from a whole one; any other cut is seen. The index that pandas
    writes as a first column without a name is left out.

    Args:
        path, wanted, most: the file, what it must have, and to how many bytes it may unpack.
        names: of the columns, where the file has no line of them.

    Raises:
        Unreadable: no such column, text where a number must be, rows of different lengths, not UTF-8.
    """
    values, codes, labels, known = array("f"), array("q"), dict[str, int](), dict[str, int]()
    with _decoding(path, ".csv"), open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(_lines(file), strict=True)
        heading = names or next(rows, [])
        columns = _split(heading, wanted)
        for number, row in enumerate(row for row in rows if row):
            if len(row) != len(heading):
                raise Unreadable(f"has {len(row)} cells in row {number}, but {len(heading)} columns")
            text = row[columns.label] if wanted.labelled else ""
            if text not in known:
                known[text] = _coded(labels, text)
            codes.append(known[text])
            values.extend(_numbers(number, [row[place] for place in columns.places]))
            _bounded(4 * len(values), most, "unpacks to")
    if not codes:
        raise Unreadable("holds no item")
    x = np.frombuffer(values, np.float32).reshape(len(codes), len(columns.inputs))
    return Content(x, tuple(labels), np.frombuffer(codes, np.int64), columns.inputs, columns.index)


def read_parquet(path: str, wanted: Wanted, most: int) -> Content:
    """Read a Parquet table: one column of labels, numbers in the others; an unknown number is NaN.

    What pandas has written as the table's index is left out.

    Raises:
        Unreadable: damaged, no such column, text where numbers must be, or it would unpack to more than `most` bytes.
    """
    parquet: Any = _extra("pyarrow.parquet", "pyarrow", "parquet")
    kinds: Any = importlib.import_module("pyarrow").types
    with _decoding(path, ".parquet"), parquet.ParquetFile(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
        columns = _split(schema.names, wanted, _pandas_index(schema.metadata or {}))
        for place, name in zip(columns.places, columns.inputs, strict=True):
            kind = schema.field(place).type
            if not (kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_boolean(kind)):
                raise Unreadable(f"has {kind} in column {name!r}, where numbers must be")
        if not rows:
            raise Unreadable("holds no item")
        _bounded(8 * rows * len(schema.names), most, "unpacks to")
    # Labels stay numbers of a few texts: a small file may hold millions of them.
    labels = [schema.names[columns.label]] if wanted.labelled else []
    with _decoding(path, ".parquet"), parquet.ParquetFile(path, read_dictionary=labels) as file:
        table = file.read(labels + [schema.names[place] for place in columns.places], use_threads=False)
        x = np.empty((table.num_rows, len(columns.inputs)), np.float32)
        with np.errstate(over="ignore"):
            for number, place in enumerate(columns.places):
                x[:, number] = np.asarray(table.column(schema.names[place]).to_numpy(), np.float64)
        names, y = _labels(table.column(labels[0])) if labels else ((), np.full(len(x), NO_LABEL))
    return Content(x, names, y, columns.inputs, columns.index)


def _pandas_index(metadata: Mapping[bytes, bytes]) -> tuple[str, ...]:
    """Return the names of the columns that a table's metadata calls its index; those of no sense are passed over."""
    try:
        named = json.loads(metadata[b"pandas"])["index_columns"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    return tuple(tidy(each) for each in named if isinstance(each, str)) if isinstance(named, list) else ()


def _labels(column: Any) -> tuple[tuple[str, ...], Ints]:
    """Return the labels that occur in a column of pyarrow, and which of them each row has."""
    names: dict[str, int] = {}
    parts = []
    for chunk in column.dictionary_encode().chunks:
        codes = [_coded(names, value) for value in chunk.dictionary.to_pylist()]
        parts.append(np.array([*codes, NO_LABEL], np.int64)[chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False)])
    return tuple(names), np.concatenate(parts)


TABLES: dict[str, Callable[[str, Wanted, int], Content]] = {
    ".npz": lambda path, wanted, most: read_npz(path, most, labelled=wanted.labelled),
    ".csv": read_csv,
    ".parquet": read_parquet,
}
ENDINGS = (*PICTURES, *TABLES)
