"""What lies in a sweep's folder: `sweep.json`, the journal, and a run directory for each configuration."""

import json
import os
from pathlib import Path
from typing import Any

from fedcl.errors import ConfigError
from fedcl.journal import EVENTS, write_json

PLAN = "sweep.json"


def default_folder(name: str) -> Path:
    """Return runs/sweeps/NAME, under the current folder."""
    return Path("runs") / "sweeps" / name


def is_sweep(directory: Path) -> bool:
    """Return whether a folder holds a sweep."""
    return (directory / PLAN).is_file()


def run_folder(out: Path, key: str) -> Path:
    """Return the run directory of a configuration."""
    return out / "runs" / key


def write_plan(
    out: Path, name: str, command: str, points: list[dict[str, Any]], search: dict[str, Any] | None = None
) -> None:
    """Write what the sweep is; of each point its key, labels, seed and overrides; of a search what it has found."""
    found = {"search": search} if search else {}
    write_json(out / PLAN, {"schema": 1, "name": name, "command": command, "points": points, **found})


def read_plan(out: Path) -> dict[str, Any]:
    """Return what `write_plan` has written.

    Raises:
        ConfigError: the folder holds no sweep.
    """
    try:
        plan: dict[str, Any] = json.loads((out / PLAN).read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{str(out)!r} holds no sweep: it has no {PLAN}") from error
    return plan


def planned_folders(out: Path) -> dict[str, Path]:
    """Return the run directories that a sweep's plan asks for, by key, in its order.

    Raises:
        ConfigError: the folder holds no sweep.
    """
    return {key: run_folder(out, key) for key in (str(point["key"]) for point in read_plan(out)["points"])}


def below(folder: Path) -> list[Path]:
    """Return the runs and sweeps below a folder by path; the folder itself where it is one, or has none."""
    if is_sweep(folder) or (folder / EVENTS).is_file():
        return [folder]
    found = []
    for where, inner, names in os.walk(folder):
        inner.sort()
        if PLAN in names or EVENTS in names:
            found.append(Path(where))
            inner.clear()
    return found or [folder]


def run_folders(directory: Path) -> list[Path]:
    """Return the runs of a sweep that have begun; of a folder that holds no sweep, the folder itself.

    Raises:
        ConfigError: no run of the sweep has begun.
    """
    if not is_sweep(directory):
        return [directory]
    found = [folder for folder in planned_folders(directory).values() if (folder / EVENTS).is_file()]
    if not found:
        raise ConfigError(f"{str(directory)!r}: no run of this sweep has begun; fedcl sweep begins them")
    return found
