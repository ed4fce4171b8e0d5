"""`fedcl predict`: the classes that a run's final model gives to inputs from files."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedcl.answers import Tensors
from fedcl.classifiers import predictor
from fedcl.errors import ConfigError
from fedcl.source import source
from fedcl.streams import Stream

BATCH = 1024  # inputs that go through the model at once


@dataclass(frozen=True)
class Prediction:
    """The likeliest class of one input and the model's probability of it."""

    row: int
    label: int
    probability: float


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _csv(path: Path) -> NDArray[np.float64]:
    """Read rows of numbers; one line of column names at the top is left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    heading = bool(lines) and not _number(lines[0].split(",")[0])
    if not lines[heading:]:
        raise ValueError("it holds no row")
    return np.loadtxt(lines[heading:], delimiter=",", ndmin=2)


def read_inputs(path: Path) -> NDArray[np.generic]:
    """Read an array of numbers from .npy, from .npz (its array `x`) or from a .csv file.

    Raises:
        ConfigError: the file cannot be read, is none of these, or holds something else than finite numbers.
    """
    if path.suffix not in (".npy", ".npz", ".csv"):
        raise ConfigError(f"cannot predict {str(path)!r}: inputs come as .npy, .npz (array x) or .csv")
    try:
        loaded: Any = _csv(path) if path.suffix == ".csv" else np.load(path)
        x = np.asarray(loaded["x"] if path.suffix == ".npz" else loaded)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ConfigError(f"cannot read inputs from {str(path)!r}: {str(error).splitlines()[0]}") from error
    if x.dtype.kind not in "buif" or not np.isfinite(x).all():
        raise ConfigError(f"inputs in {str(path)!r} must be finite numbers, found {x.dtype}")
    return x


def fit(x: NDArray[np.generic], shape: tuple[int, ...], source: str) -> NDArray[np.generic]:
    """Return inputs as (n, *shape), from (n, *shape), from one input (*shape) or from flattened rows (n, prod(shape)).

    Raises:
        ConfigError: the array has another shape.
    """
    if x.shape == shape:
        return x[None]
    if x.shape[1:] == shape:
        return x
    if x.ndim == 2 and x.shape[1] == int(np.prod(shape)):
        return x.reshape(-1, *shape)
    raise ConfigError(f"inputs in {source!r} have shape {x.shape}: the model takes (n, {', '.join(map(str, shape))})")


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
        stream: the stream it was trained on: the inputs' scale and shift, the tasks' permutations and masks.
        x: (n, *shape) inputs in the data set's own units, as its files hold them (digits: 0 to 16).
        task: the task that the inputs come from, if that is known: its permutation is applied, only its classes count.
        classifier: what predicts instead of the model's logits, if something does.
    """
    like = next(model.parameters())
    classify = predictor(model, classifier or {})
    flat = torch.from_numpy(x.reshape(len(x), -1).astype(np.float64))
    given = replace(source(stream, "test", like.dtype, like.device), x=flat.to(like))
    for items in torch.split(torch.arange(len(x), device=like.device), BATCH):
        tasks = torch.full_like(items, task or 0)  # the permutation of task 0 changes nothing
        logits = classify(given.inputs(items, tasks))
        best = (logits if task is None else logits + given.mask(tasks)).softmax(1).max(1)
        for row, label, chance in zip(items.tolist(), best.indices.tolist(), best.values.tolist(), strict=True):
            yield Prediction(row, label, chance)


def known_task(task: int | None, stream: Stream) -> int | None:
    """Return `task` if the stream has it.

    Raises:
        ConfigError: it does not.
    """
    if task is not None and not 0 <= task < len(stream.tasks):
        raise ConfigError(f"--task {task}: the run has the tasks 0 to {len(stream.tasks) - 1}")
    return task
