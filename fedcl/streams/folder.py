"""A folder of one's own data: pictures in class folders, arrays (.npz), tables (.csv, .parquet).

    CLASS/a.png, more.npz, more.csv, more.parquet            at the top,
    task-001/CLASS/a.png, task-001/more.npz, ...             below the folders of tasks, or
    test/CLASS/a.png, test/more.npz, ...                     below a folder of test items.

What cannot be taken is named with its reason and left out: a whole file that is damaged or does not fit the others,
single rows whose inputs are not finite or whose label is unknown. Nothing is left out silently but hidden files and
those still being written (`.name`, `name.tmp`, `name.part`).
"""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedcl import files
from fedcl.errors import ConfigError, nearest
from fedcl.settings import Settings, setting
from fedcl.streams.dataset import Dataset, DatasetSettings, Ints
from fedcl.streams.datasets import held_out
from fedcl.streams.formats import ENDINGS, NO_LABEL, PICTURES, TABLES, Content, Unreadable, Wanted, read_picture
from fedcl.streams.idx import balanced
from fedcl.streams.labels import in_order
from fedcl.streams.standard import standard_of
from fedcl.streams.walk import Fault, File, fault, printable, walk, why

MANIFEST = "tasks.yaml"
TASK, TEST = re.compile(r"task-(\d+)", re.ASCII), "test"
SHOWN = 5  # faults that a run names
MOST_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Reading(Settings):
    """How files are read, whoever reads them."""

    label: str = setting("label", "name of a table's column of labels")
    size: int | None = setting(None, "pixels of a side that pictures are shrunk or stretched to", low=1, high=10_000)
    max_bytes: int = setting(MOST_BYTES, "bytes that a file may have, packed and unpacked", low=1)


@dataclass(frozen=True, kw_only=True)
class Expected(Reading):
    """What the files of a folder must have in common; None: as the first good file has it, or all classes."""

    classes: tuple[str, ...] | None = setting(None, "names of the classes, in the order of their numbers")
    shape: tuple[int, ...] | None = setting(None, "shape of an input")
    dtype: Literal["uint8", "float32"] | None = setting(None, "type of the inputs")
    columns: tuple[str, ...] | None = setting(None, "names of a table's columns of inputs, in their order")


@dataclass(frozen=True, eq=False)
class Found:
    """The good items of a folder, in the order of their files' names, and what was left out."""

    x: NDArray[np.uint8] | NDArray[np.float32]  # (n, *shape)
    y: Ints  # (n,) numbers of classes
    file: Ints  # (n,) which of `files` an item comes from
    row: Ints  # (n,) and its place in it, from 0
    files: tuple[str, ...]  # paths below the folder, with slashes; each has an item
    expected: Expected  # what the files have in common: the next reading of a growing folder expects it
    faults: tuple[Fault, ...]
    index: tuple[str, ...] = ()  # columns of tables that were left out as pandas' index

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.expected.classes or ()


@dataclass(frozen=True, eq=False)
class _Part:
    """The good rows of one file."""

    path: str
    content: Content
    rows: Ints


def group(path: str) -> str:
    """Return the folder of a task, or of test items, that a path lies below; "" where there is none."""
    first, slash, _ = path.partition("/")
    return first if slash and (first == TEST or TASK.fullmatch(first)) else ""


def apart(path: str) -> tuple[bool, str, str]:
    """Return whether a path lies below test/, the folder of a task that it lies below ("": none), and its rest."""
    test = group(path) == TEST
    inner = path.removeprefix(f"{TEST}/") if test else path
    task = group(inner) if TASK.fullmatch(group(inner)) else ""
    return test, task, inner.removeprefix(f"{task}/")


def _class(path: str) -> str:
    """Return the class folder of a picture.

    Raises:
        Unreadable: it lies in none, or deeper.
    """
    inner = apart(path)[2].split("/")
    if len(inner) != 2:
        raise Unreadable("is a picture outside of class folders; must be CLASS/NAME or task-001/CLASS/NAME")
    return inner[0]


def _read(file: File, expected: Expected) -> Content:
    """Read one file by the ending of its name.

    Raises:
        Unreadable: it gives no items.
    """
    ending, most = os.path.splitext(file.path)[1].lower(), expected.max_bytes
    if ending not in ENDINGS:
        raise Unreadable(f"is of a kind that is not read; must be {', '.join(ENDINGS)}")
    try:
        with files.opened(file.real, sys.maxsize) as opened:
            length = os.fstat(opened.fileno()).st_size
    except files.Unfit as error:
        raise Unreadable(str(error)) from error
    if not length:
        raise Unreadable("is empty")
    if length > most:
        raise Unreadable(f"has {length:,} bytes, more than max_bytes = {most:,}")
    if ending in PICTURES:
        return read_picture(file.real, _class(file.path), expected.size, most)
    return TABLES[ending](file.real, Wanted(expected.label, expected.columns or ()), most)


def fitted(content: Content, expected: Expected) -> Content:
    """Return a file's items with the columns in the order of the other files.

    Raises:
        Unreadable: columns, shape or type are not theirs.
    """
    theirs, own = expected.columns, content.columns
    if own is not None and theirs == ():
        raise Unreadable("is a table, but no columns are agreed on; name them in stream.dataset.columns")
    if own is not None and theirs is not None and own != theirs:
        strange = sorted(set(own) ^ set(theirs))
        if strange:
            missing = "lacks the" if strange[0] in theirs else "has a strange"
            raise Unreadable(f"{missing} column {strange[0]!r}; all tables must have the same")
        place = {name: number for number, name in enumerate(own)}
        content = replace(content, x=content.x[:, [place[name] for name in theirs]], columns=theirs)
    shape, dtype = content.x.shape[1:], content.x.dtype.name
    if shape != (expected.shape or shape):
        raise Unreadable(f"has inputs of shape {shape} where {expected.shape} is expected")
    if dtype != (expected.dtype or dtype):
        raise Unreadable(f"has inputs of type {dtype} where {expected.dtype} is expected")
    return content


def _good_rows(path: str, content: Content, expected: Expected) -> tuple[Ints, list[Fault]]:
    """Return which rows can be taken, and a fault for each reason why others cannot."""
    known = set(content.names if expected.classes is None else expected.classes)
    strange = np.array([*(name not in known for name in content.names), False], np.bool_)  # the last for no label
    finite: NDArray[np.bool_] = np.all(np.isfinite(content.x), axis=tuple(range(1, content.x.ndim)))
    unlabelled, unknown = content.y == NO_LABEL, strange[content.y]
    hint = ""
    if unknown.any():
        first = content.names[content.y[unknown][0]]
        hint = f"the unknown label {first!r}{nearest(first, known)}"
    reasons = ((~finite, "NaN or infinity"), (unlabelled, "no label"), (unknown, hint))
    faults = [_rows_fault(path, bad, what) for bad, what in reasons if bad.any()]
    return np.flatnonzero(finite & ~unlabelled & ~unknown), faults


def _rows_fault(path: str, bad: NDArray[np.bool_], what: str) -> Fault:
    if len(bad) == 1:
        return fault(path, f"has {what}")
    rows = f"{bad.sum():,} of {len(bad):,} rows left out, the first is row {int(bad.argmax())}"
    return fault(path, f"{rows}: it has {what}")


def read_folder(folder: str | Path, expected: Expected | None = None) -> Found:
    """Read every file below a folder, in the order of their names.

    Args:
        folder: where the files lie; nothing outside of it is read.
        expected: what they must have in common. Where it says nothing, the first good file decides.

    Returns:
        Every good item, and a fault for all that was left out.

    Raises:
        ConfigError: the folder is not there or cannot be listed.
    """
    expected, parts, faults = expected or Expected(), list[_Part](), list[Fault]()
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise ConfigError(f"{str(folder)!r} is no folder that can be read ({why(error)})") from error
    for entry in walk(str(folder), ENDINGS):
        if isinstance(entry, Fault):
            faults.append(entry)
            continue
        if entry.path == MANIFEST:
            continue
        try:
            content = fitted(_read(entry, expected), expected)
        except Unreadable as error:
            faults.append(fault(entry.path, str(error)))
            continue
        rows, bad = _good_rows(entry.path, content, expected)
        faults += bad
        if len(rows):
            parts.append(_Part(entry.path, content, rows))
            expected = _learnt(expected, content)
    return _together(parts, expected, tuple(faults))


def _learnt(expected: Expected, content: Content) -> Expected:
    """Return what later files must have, after a good one."""
    return replace(
        expected,
        shape=content.x.shape[1:],
        dtype="uint8" if content.x.dtype == np.uint8 else "float32",
        columns=expected.columns or content.columns,
    )


def _together(parts: list[_Part], expected: Expected, faults: tuple[Fault, ...]) -> Found:
    """Put the good rows of all files one behind another and number their classes."""
    if expected.classes is None and parts:
        used = {part.content.names[code] for part in parts for code in np.unique(part.content.y[part.rows]).tolist()}
        expected = replace(expected, classes=in_order(used))
    number = {name: place for place, name in enumerate(expected.classes or ())}
    x = [np.empty((0, *(expected.shape or ())), expected.dtype or "float32")]
    y, file, row = ([np.empty(0, np.int64)] for _ in range(3))
    for place, part in enumerate(parts):
        codes = np.array([number.get(name, NO_LABEL) for name in part.content.names], np.int64)
        x.append(part.content.x[part.rows])
        y.append(codes[part.content.y[part.rows]])
        file.append(np.full(len(part.rows), place, np.int64))
        row.append(part.rows)
    return Found(
        x=np.concatenate(x),
        y=np.concatenate(y),
        file=np.concatenate(file),
        row=np.concatenate(row),
        files=tuple(part.path for part in parts),
        expected=expected,
        faults=faults,
        index=tuple(dict.fromkeys(name for part in parts for name in part.content.index)),
    )


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'s' * (n != 1)}"


def notes(found: Found) -> Iterator[str]:
    """Yield what a run says of what was left out: an index, how many faults, and the first of them."""
    if found.index:
        named = ", ".join(map(repr, found.index[:SHOWN]))
        yield f"data folder: left out of the inputs as the index that pandas writes: {printable(named)}"
    if not found.faults:
        return
    n, first = len(found.faults), f", the first {SHOWN} of them here" if len(found.faults) > SHOWN else ""
    taken = f"{_counted(len(found.y), 'item')} of {_counted(len(found.files), 'file')}"
    yield f"data folder: {_counted(n, 'fault')}{first}; taken: {taken}"
    yield from map(str, found.faults[:SHOWN])


@dataclass(frozen=True, kw_only=True)
class Folder(Reading, DatasetSettings):
    """Data of one's own: a folder with pictures in class folders, .npz, .csv or .parquet; what is bad is named."""

    path: str = setting("", "the folder, below data.root or absolute")
    test: float = setting(0.2, "share of every class held out, unless there is a folder test/", above=0, below=1)
    limit: int | None = setting(None, "training items taken, classes balanced; default: all", low=1)
    standardize: bool = setting(
        False, "inputs with mean 0 and deviation 1 over all training items, by channel or column"
    )

    def load(self, root: str | None) -> Dataset:
        """Read the folder; classes are numbered in the order of their names. What was left out is in the notes.

        Raises:
            ConfigError: no such folder, no good item, or none for testing.
        """
        folder = self._folder(root)
        found = read_folder(folder, Expected(label=self.label, size=self.size, max_bytes=self.max_bytes))
        if not len(found.y):
            said = f"; the first fault of {len(found.faults):,}: {found.faults[0]}" if found.faults else "; it is empty"
            raise ConfigError(f"stream.dataset.path = {self.path!r}: no item can be read{said}")
        test = self._test(found, folder)
        x, y = found.x[~test], found.y[~test]
        if self.standardize and not len(y):
            raise ConfigError(f"stream.dataset.path = {self.path!r}: there is no training item to standardize by")
        standard = standard_of(x) if self.standardize else None
        if self.limit is not None:
            taken = balanced(y, self.limit)
            x, y = x[taken], y[taken]
        return Dataset(
            x=x,
            y=y,
            test_x=found.x[test],
            test_y=found.y[test],
            standard=standard,
            classes=len(found.classes),
            scale=1 / 255 if x.dtype == np.uint8 else 1.0,
            notes=tuple(notes(found)),
            names=found.classes,
            columns=found.expected.columns or (),
        )

    def _folder(self, root: str | None) -> Path:
        path = Path(self.path).expanduser()
        if not (root or path.is_absolute()):
            lies = "it lies below data.root; set data.root or FEDCL_DATA, or an absolute path"
            raise ConfigError(f"stream.dataset.path = {self.path!r}: {lies}")
        return Path(root or "").expanduser() / path

    def _test(self, found: Found, folder: Path) -> NDArray[np.bool_]:
        """Return which items (n,) are for testing: those below test/ if it is there, else a share of every class."""
        apart = (folder / TEST).is_dir()
        below = np.array([group(path) == TEST for path in found.files], np.bool_)
        test = below[found.file] if apart else held_out(found.y, self.test)
        if not test.any():
            said = "folder test/ has no good item" if apart else f"test = {self.test} of every class rounds to no item"
            first = f"; the first fault: {found.faults[0]}" if found.faults else ""
            raise ConfigError(f"stream.dataset.path = {self.path!r}: {said}{first}")
        return test
