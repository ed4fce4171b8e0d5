"""Where tasks begin in a folder of data: its folders task-NNN, or a manifest tasks.yaml beside them.

    - name: first ward
      files: ["2023-*.csv", "scans/*"]
    - name: second ward
      files: ["2024-*.csv"]

A pattern is matched against the path below the folder; `*` stands for slashes too. Dates of files are no way to cut
tasks: a copy does not keep them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedcl import files
from fedcl.errors import ConfigError
from fedcl.streams.dataset import Ints
from fedcl.streams.folder import MANIFEST, TASK, TEST, Found, apart, group
from fedcl.streams.walk import Fault, fault, printable
from fedcl.yamltext import read_yaml

MOST_MANIFEST = 1 << 20  # bytes
EVERYTHING = "all"  # the one task where nothing says otherwise


@dataclass(frozen=True, eq=False)
class FolderTask:
    """A task: its name, and which items of the folder belong to it, ascending."""

    name: str
    items: Ints  # (n,) positions in `Found`


def tasks_of(folder: str | Path, found: Found) -> tuple[tuple[FolderTask, ...], tuple[Fault, ...]]:
    """Return the tasks of a folder in their order, and a fault for each file or pattern that belongs to none or to two.

    A manifest decides if there is one; else the folders task-NNN in the order of their numbers (those with the same
    number are one task); else everything is one task. Items below test/ belong to no task and are no fault. A file of
    two tasks belongs to the first.

    Args:
        folder: the folder that `found` was read from.
        found: its items.

    Raises:
        ConfigError: the manifest cannot be read, or is no list of names with files.
    """
    files = [path for path in found.files if group(path) != TEST]
    manifest = Path(folder) / MANIFEST
    faults: list[Fault] = []
    if manifest.exists() or manifest.is_symlink():
        named = _from_manifest(read_manifest(manifest), files, faults)
    else:
        named = _from_folders(files)
    taken = {path for paths in named.values() for path in paths}
    faults += [fault(path, "belongs to no task") for path in files if path not in taken]
    place = {path: number for number, path in enumerate(found.files)}
    return tuple(
        FolderTask(name, np.flatnonzero(np.isin(found.file, [place[path] for path in paths])))
        for name, paths in named.items()
    ), tuple(faults)


def numbers_of(folder: str | Path, files: list[str]) -> tuple[dict[str, int], list[Fault]]:
    """Return the number of the task that each file says it belongs to, and faults; a file may say nothing.

    A manifest numbers its tasks by their places in it; a folder task-NNN is number NNN, whatever folders are there.
    Items below test/ are of tasks too: test/task-001/..., or what a pattern of the manifest says.

    Raises:
        ConfigError: the manifest cannot be read, or is no list of names with files.
    """
    faults: list[Fault] = []
    manifest = Path(folder) / MANIFEST
    there = manifest.exists() or manifest.is_symlink()
    if there:
        named = _from_manifest(read_manifest(manifest), files, faults)
        found = {path: number for number, paths in enumerate(named.values()) for path in paths}
    else:
        tasks = {path: apart(path)[1] for path in files}
        found = {path: int(task.removeprefix("task-")) for path, task in tasks.items() if task}
    if found or there:
        faults += [fault(path, "belongs to no task") for path in files if path not in found]
    return found, faults


def _from_folders(files: list[str]) -> dict[str, list[str]]:
    """Return files by task: those of the folders task-NNN by number; without such folders all in one."""
    numbered: dict[int, list[str]] = {}
    for path in files:
        if number := TASK.fullmatch(group(path)):
            numbered.setdefault(int(number[1]), []).append(path)
    if not numbered:
        return {EVERYTHING: files} if files else {}
    return {group(numbered[number][0]): numbered[number] for number in sorted(numbered)}


def _from_manifest(tasks: dict[str, list[str]], files: list[str], faults: list[Fault]) -> dict[str, list[str]]:
    """Return files by task as the manifest's patterns name them; what is odd goes to `faults`."""
    owner: dict[str, str] = {}
    for name, patterns in tasks.items():
        for pattern in patterns:
            matched = [path for path in files if fnmatchcase(path, pattern)]
            if not matched:
                faults.append(fault(MANIFEST, f"task {name!r}: {pattern!r} matches no file that could be read"))
            for path in matched:
                if owner.setdefault(path, name) != name:
                    faults.append(fault(path, f"belongs to task {owner[path]!r} and to {name!r}; the first keeps it"))
    return {name: [path for path in files if owner.get(path) == name] for name in tasks}


def read_manifest(path: Path) -> dict[str, list[str]]:
    """Return the patterns of each task, in the order of the file.

    Raises:
        ConfigError: it is no plain file of a size to be believed, no YAML, or no list of names with files.
    """
    try:
        if path.is_symlink():
            raise files.Unfit("is a link; must be a plain file")
        plain = read_yaml(files.content(path, MOST_MANIFEST).decode("utf-8"))
    except files.Unfit as error:
        raise ConfigError(f"{MANIFEST}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{MANIFEST}: is no YAML ({printable(' '.join(str(error).split()))[:120]})") from error
    if not isinstance(plain, list) or not plain:
        raise ConfigError(f"{MANIFEST}: must be a list of tasks, each with name and files")
    tasks: dict[str, list[str]] = {}
    for number, entry in enumerate(plain, 1):
        for problem in _problems(entry, tasks):
            raise ConfigError(f"{MANIFEST}: task {number} {problem}")
        tasks[entry["name"]] = entry["files"]
    return tasks


def _problems(entry: Any, tasks: dict[str, list[str]]) -> Iterator[str]:
    if not isinstance(entry, dict) or set(entry) != {"name", "files"}:
        given = sorted(map(str, entry))[:5] if isinstance(entry, dict) else type(entry).__name__
        yield f"has {given}; must have exactly name and files"
    elif not isinstance(entry["name"], str) or not entry["name"]:
        yield "must have a name that is text; put quotes around a number"
    elif entry["name"] in tasks:
        yield f"has the name {entry['name'][:40]!r} of one before it"
    elif not (isinstance(entry["files"], list) and entry["files"] and all(isinstance(f, str) for f in entry["files"])):
        yield "must have files: a list of patterns such as ['2023-*.csv']"
