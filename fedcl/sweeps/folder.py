"""What lies in a sweep's folder: `sweep.json`, the journal, and a run directory for each configuration."""

import os
import re
from pathlib import Path
from typing import Any

from fedcl import kept
from fedcl.errors import ConfigError
from fedcl.journal import EVENTS, write_json
from fedcl.sweeps.axes import AXIS

PLAN = "sweep.json"
SCHEMA = 1
KEY = re.compile(r"\w[\w-]*")
AGAIN = "the same fedcl sweep writes it anew"


def default_folder(name: str) -> Path:
    """Return runs/sweeps/NAME, under the current folder."""
    return Path("runs") / "sweeps" / name


def is_sweep(directory: Path) -> bool:
    """Return whether a folder holds a sweep."""
    return os.path.lexists(directory / PLAN)


def run_folder(out: Path, key: str) -> Path:
    """Return the run directory of a configuration."""
    return out / "runs" / key


def write_plan(
    out: Path, name: str, command: str, points: list[dict[str, Any]], search: dict[str, Any] | None = None
) -> None:
    """Write what the sweep is; of each point its key, labels, seed and overrides; of a search what it has found."""
    found = {"search": search} if search else {}
    write_json(out / PLAN, {"schema": SCHEMA, "name": name, "command": command, "points": points, **found})


def read_plan(out: Path) -> dict[str, Any]:
    """Return what `write_plan` has written.

    Raises:
        ConfigError: the folder holds no sweep.
        kept.Damaged: its plan is not what was written.
    """
    path = out / PLAN
    if not os.path.lexists(path):
        raise ConfigError(f"{str(out)!r} holds no sweep: it has no {PLAN}")
    plan = kept.read_json(path, SCHEMA, AGAIN)
    for number, point in enumerate(plan.get("points") or [], 1):
        if not _sound(point):
            raise kept.damaged(path, f"run {number} of it lacks key, labels, seed or overrides", AGAIN)
    if not isinstance(plan.get("points"), list) or not isinstance(plan.get("name"), str):
        raise kept.damaged(path, "it has no name, or no list of runs", AGAIN)
    return plan


def _sound(point: Any) -> bool:
    """Return whether a run of a plan has what `write_plan` writes of it; its key is the name of a folder."""
    if not isinstance(point, dict):
        return False
    key, labels, overrides = point.get("key"), point.get("labels"), point.get("overrides")
    if not (isinstance(key, str) and isinstance(labels, dict) and isinstance(overrides, list)):
        return False
    texts = all(isinstance(each, str) for each in (*labels.values(), *overrides))
    return texts and AXIS in labels and type(point.get("seed")) is int and KEY.fullmatch(key) is not None


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
