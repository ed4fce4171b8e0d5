"""inputs.json of a run directory: what its model takes and tells apart, so that nobody needs the data to use it.

Shape and type of an input, how it is scaled, names of a table's columns in the model's order, names of the classes in
the order of their numbers. Written with the model; it reads back as the data set without its items.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedcl.errors import ConfigError, shown
from fedcl.journal import write_json
from fedcl.streams.dataset import Dataset, Standard

INPUTS, VERSION = "inputs.json", 1
LARGEST = 1 << 32  # numbers of an input that a file may speak of


def describe(dataset: Dataset) -> dict[str, Any]:
    """Return what a data set's items are, in plain values."""
    norm = dataset.standard
    return {
        "version": VERSION,
        "shape": list(dataset.x.shape[1:]),
        "dtype": dataset.x.dtype.name,
        "scale": dataset.scale,
        "shift": dataset.shift,
        "standard": norm and {"mean": norm.mean.tolist(), "deviation": norm.deviation.tolist(), "n": norm.n},
        "columns": list(dataset.columns),
        "classes": list(dataset.class_names),
    }


def described(plain: Any) -> Dataset:
    """Return the data set without its items that plain values describe.

    Raises:
        ConfigError: they are no description; a clause that says why.
    """
    if not isinstance(plain, Mapping) or plain.get("version") != VERSION:
        found = plain.get("version") if isinstance(plain, Mapping) else plain
        raise ConfigError(f"has version {shown(found)}; this fedcl reads version {VERSION}")
    shape: Any = plain.get("shape")
    dtype, norm = plain.get("dtype"), plain.get("standard")
    if not (_all(int, shape) and all(each > 0 for each in shape) and math.prod(shape) <= LARGEST):
        raise ConfigError(f"has shape {shown(shape)}")
    if dtype not in ("uint8", "float32", "float64"):
        raise ConfigError(f"has dtype {shown(dtype)}; must be uint8, float32 or float64")
    for name in ("columns", "classes"):
        if not _all(str, plain.get(name)):
            raise ConfigError(f"has {name} {shown(plain.get(name))}; must be a list of names")
    for name in ("scale", "shift"):
        if not _all(float, [plain.get(name)]):
            raise ConfigError(f"has {name} {shown(plain.get(name))}; must be a finite number")
    x, y, names = np.empty((0, *plain["shape"]), dtype), np.empty(0, np.int64), tuple(plain["classes"])
    return Dataset(
        x=x, y=y, test_x=x, test_y=y, classes=len(names), scale=plain["scale"], shift=plain["shift"], elsewhere=True,
        names=names, columns=tuple(plain["columns"]), standard=norm and _standard(norm),
    )  # fmt: skip


def _standard(norm: Any) -> Standard:
    values = [norm.get(name) for name in ("mean", "deviation")] if isinstance(norm, Mapping) else [None]
    if not all(_all(float, each) for each in values) or not _all(int, [norm.get("n")]):
        raise ConfigError(f"has standard {shown(norm)}; must hold lists of numbers mean and deviation, and n")
    mean, deviation = (np.array(each, np.float64) for each in values)
    return Standard(mean, deviation, norm["n"])


def _all(kind: type, values: Any) -> bool:
    """Return whether values are a list of one kind; a finite whole number is a float too, True is no number."""
    if not isinstance(values, list):
        return False
    if kind is float:
        numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in values)
        return numbers and all(map(math.isfinite, values))
    return all(type(each) is kind for each in values)


def write_inputs(folder: Path, dataset: Dataset) -> None:
    """Write the file into a run directory, whole or not at all."""
    write_json(folder / INPUTS, describe(dataset))


def read_inputs(folder: Path) -> Dataset | None:
    """Return the data set without its items that a run's model was trained on; None: the run is older than this file.

    Raises:
        ConfigError: the file is damaged or of another version.
    """
    path = folder / INPUTS
    try:
        return described(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except ConfigError as error:
        raise ConfigError(f"{str(path)!r} {error}") from error
    except (OSError, ValueError, RecursionError, OverflowError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read ({' '.join(str(error).split())[:120]})") from error
