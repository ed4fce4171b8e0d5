"""`fedcl predict`: the classes that a run's model gives to pictures, tables and arrays, read as training reads them."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedcl.answers import Tensors
from fedcl.classifiers import predictor
from fedcl.config import Scenario
from fedcl.errors import ConfigError, nearest
from fedcl.files import Unfit, opened
from fedcl.source import source
from fedcl.streams import Dataset, Stream
from fedcl.streams.dataset import Array
from fedcl.streams.folder import Reading
from fedcl.streams.formats import (
    ENDINGS,
    MOST_HINTS,
    MOST_LINE,
    PICTURES,
    TABLES,
    Content,
    Unreadable,
    Wanted,
    read_csv,
    read_npy,
    read_picture,
)
from fedcl.streams.walk import Fault, fault, printable, walk

BATCH = 1024  # inputs that go through the model at once
SHOWN = 5  # faults that are named


@dataclass(frozen=True)
class Prediction:
    """The likeliest class of one input, the model's probability of it, and those of all classes."""

    row: int
    label: int
    probability: float
    probabilities: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Given:
    """Inputs from files: which file and row each comes from, and what the user must be told of the reading."""

    x: Array  # (n, *shape)
    files: tuple[tuple[str, int], ...]  # of each file its name, printable, and how many inputs it has
    notes: tuple[str, ...]

    def places(self) -> Iterator[tuple[str, int]]:
        """Yield file and row of each input."""
        return ((name, row) for name, n in self.files for row in range(n))


def read_given(paths: Iterable[Path], scenario: Scenario, data: Dataset) -> Given:
    """Read the inputs of files and of the files below folders.

    Args:
        paths: pictures, .csv, .parquet, .npz (array x), .npy, and folders of them, whatever folders lie in them.
        scenario: of the run: it says how its own files were read.
        data: the run's data set, with or without its items.

    Returns:
        The inputs in the units and, of tables, with the columns in the order of the training.

    Raises:
        ConfigError: a file that is named cannot be taken, or a folder has none that can; of a folder's other files
            those that cannot are in the notes.
    """
    reading = scenario.stream.dataset if isinstance(scenario.stream.dataset, Reading) else Reading()
    parts, files, notes, index = list[Array](), list[tuple[str, int]](), list[str](), dict[str, None]()
    for path in paths:
        good, faults = 0, list[Fault]()
        for real, name in _files(path, faults):
            try:
                content = _read(real, reading, data)
            except Unreadable as error:
                faults.append(fault(name, str(error)))
                continue
            good += 1
            parts.append(content.x)
            files.append((printable(name), len(content.x)))
            index |= dict.fromkeys(content.index)
        if not good:
            raise ConfigError(f"cannot predict {faults[0] if faults else f'{path}: it holds no file to read'}")
        if faults:
            notes.append(f"{printable(str(path))}: {len(faults):,} files left out, the first here")
            notes += map(str, faults[:SHOWN])
    if index:
        notes.append(
            f"left out of the inputs as the index that pandas writes: {printable(', '.join(map(repr, index)))}"
        )
    return Given(np.concatenate(parts), tuple(files), tuple(notes))


def _files(path: Path, faults: list[Fault]) -> Iterator[tuple[str, str]]:
    """Yield where each file lies, and its name; what is none goes to `faults`."""
    if path.is_dir():
        for each in walk(str(path), ENDINGS):
            if isinstance(each, Fault):
                faults.append(each)
            else:
                yield each.real, f"{path}/{each.path}"
    else:
        yield str(path), str(path)


def _read(path: str, reading: Reading, data: Dataset) -> Content:
    """Read one file as training would, but for labels.

    Raises:
        Unreadable: it holds no inputs of the model.
    """
    ending, most, wanted = Path(path).suffix.lower(), reading.max_bytes, Wanted(reading.label, data.columns, False)
    try:
        opened(path, most).close()
    except Unfit as error:
        raise Unreadable(str(error)) from error
    if ending in PICTURES:
        if data.x.dtype != np.uint8:
            raise Unreadable(f"is a picture (uint8), but the model was trained on {data.x.dtype}")
        content = read_picture(path, "0", reading.size, most)
    elif ending == ".npy":
        content = read_npy(path, most)
    elif ending == ".csv" and not data.columns:
        content = _table(path, wanted, most)
    elif ending in TABLES:
        content = _ordered(TABLES[ending](path, wanted, most), data.columns)
    else:
        raise Unreadable(f"is of a kind that is not read; must be {', '.join(('.npy', *ENDINGS))}")
    bad = ~np.isfinite(content.x).reshape(len(content.x), -1).all(1) if content.x.ndim else ~np.isfinite(content.x)
    if bad.any():
        raise Unreadable(f"must hold finite numbers, but row {int(bad.argmax())} has NaN or infinity")
    return replace(content, x=fit(content.x, data.x.shape[1:]))


def _ordered(content: Content, columns: tuple[str, ...]) -> Content:
    """Return a table's items with its columns in the order of the training.

    Raises:
        Unreadable: it has others.
    """
    own = content.columns
    if own is None or not columns or own == columns:
        return content
    for name in columns:
        if name not in own:
            raise Unreadable(f"lacks the column {name!r}, which the model takes{nearest(name, own[:MOST_HINTS])}")
    for name in own:
        if name not in columns:
            raise Unreadable(f"has the column {name!r}, which the model does not know; leave it out")
    place = {name: number for number, name in enumerate(own)}
    return replace(content, x=content.x[:, [place[name] for name in columns]], columns=columns)


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _first_line(path: str) -> list[str]:
    """Return the cells of a table's first line.

    Raises:
        Unreadable: there are none to read.
    """
    try:
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
            return next(csv.reader([file.readline(MOST_LINE)]), [])
    except (OSError, csv.Error) as error:
        raise Unreadable(f"cannot be read as .csv ({error})") from error


def _table(path: str, wanted: Wanted, most: int) -> Content:
    """Read a table for a model that knows no names of columns: it may have a line of names or none."""
    first = _first_line(path)
    bare = [str(number) for number in range(len(first))] if all(map(_number, first)) else []
    return read_csv(path, wanted, most, names=bare)


def fit(x: NDArray[np.generic], shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Return inputs as (n, *shape), from (n, *shape), from one input (*shape) or from flattened rows (n, prod(shape)).

    Raises:
        Unreadable: the array has another shape.
    """
    if x.shape == shape:
        return x[None]
    if x.shape[1:] == shape:
        return x
    if x.ndim == 2 and x.shape[1] == int(np.prod(shape)):
        return x.reshape(-1, *shape)
    raise Unreadable(f"has shape {x.shape}: the model takes (n, {', '.join(map(str, shape))})")


@torch.no_grad()
def predict(
    model: torch.nn.Module,
    stream: Stream,
    x: NDArray[np.generic],
    task: int | None = None,
    classifier: Tensors | None = None,
) -> Iterator[Prediction]:
    """Yield a prediction for each of the inputs.

    Args:
        model: a trained model in evaluation mode.
        stream: the stream it was trained on, or its outline: the inputs' scale, the tasks' permutations and masks.
        x: (n, *shape) inputs in the data set's own units, as its files hold them (digits: 0 to 16).
        task: the task that the inputs come from, if that is known: its permutation is applied, only its classes count.
        classifier: what predicts instead of the model's logits, if something does.
    """
    like = next(model.parameters())
    classify = predictor(model, classifier or {})
    flat = torch.from_numpy(np.ascontiguousarray(x.reshape(len(x), -1)))
    given = replace(source(stream, "test", like.dtype, like.device), x=flat.to(like.device))
    for items in torch.split(torch.arange(len(x), device=like.device), BATCH):
        tasks = torch.full_like(items, task or 0)  # the permutation of task 0 changes nothing
        logits = classify(given.inputs(items, tasks))
        chances = (logits if task is None else logits + given.mask(tasks)).softmax(1)
        for row, label, each in zip(items.tolist(), chances.argmax(1).tolist(), chances.tolist(), strict=True):
            yield Prediction(row, label, each[label], tuple(each))


def known_task(task: int | None, stream: Stream) -> int | None:
    """Return `task` if the stream has it.

    Raises:
        ConfigError: it does not.
    """
    if task is not None and not 0 <= task < len(stream.tasks):
        raise ConfigError(f"--task {task}: the run has the tasks 0 to {len(stream.tasks) - 1}")
    return task
