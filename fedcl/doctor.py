"""`fedcl doctor`: what this machine has, what is missing, and what to do about it."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

GIB = 2**30
TESTED = (3, 11)
DATA_FOLDERS = ("mnist", "fashion_mnist")


@dataclass(frozen=True)
class Finding:
    """One line of the examination: how it stands, what was seen, what to do (empty where all is well)."""

    level: Literal["ok", "warn", "broken"]
    what: str
    remedy: str = ""


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    tested = "" if sys.version_info[:2] == TESTED else f" (tested: {'.'.join(map(str, TESTED))})"
    yield Finding("ok", f"Python {version} at {sys.executable}{tested}")


def _requirement(text: str) -> Finding | None:
    """Compare one requirement of fedcl with what is installed; None if it belongs to an extra."""
    from packaging.requirements import Requirement

    wanted = Requirement(text)
    if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
        return None
    remedy = "pip install -c constraints.txt -e ."
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return Finding("broken", f"{wanted.name} is not installed, {wanted.specifier} is needed", remedy)
    if not wanted.specifier.contains(version, prereleases=True):
        return Finding("broken", f"{wanted.name} {version} is outside {wanted.specifier}", remedy)
    return Finding("ok", f"{wanted.name} {version} (supported: {wanted.specifier})")


def _packages() -> Iterator[Finding]:
    try:
        requirements = metadata.requires("fedcl") or []
    except metadata.PackageNotFoundError:
        yield Finding("warn", "fedcl is not installed, it runs from its source folder", "make setup")
        return
    yield from filter(None, map(_requirement, requirements))


def _compute() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield Finding("ok", f"CUDA {torch.version.cuda}: {names}")
    elif shutil.which("nvidia-smi"):
        remedy = "install a CUDA build: make setup TORCH='torch --index-url https://download.pytorch.org/whl/cu130'"
        yield Finding("warn", f"torch {torch.__version__} sees no GPU although nvidia-smi is here", remedy)
    else:
        yield Finding("ok", "no GPU: the clients compute on the CPU")


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads() -> Iterator[Finding]:
    threads, available = os.environ.get("OMP_NUM_THREADS"), cores()
    told = f"OMP_NUM_THREADS={threads}" if threads else "OMP_NUM_THREADS not set"
    if threads and threads.isdigit() and int(threads) > available:
        yield Finding("warn", f"{available} cores but {told}", "unset OMP_NUM_THREADS: each worker uses one thread")
    else:
        yield Finding("ok", f"{available} cores, {told} (each worker uses one thread)")


def _nearest_folder(path: Path) -> Path:
    """Return the path itself, or the nearest folder above it that exists."""
    return next(each for each in (path, *path.parents) if each.is_dir())


def _space(name: str, folder: Path, wanted: float, remedy: str) -> Finding:
    free = shutil.disk_usage(folder).free
    told = f"{name}: {free / GIB:.1f} GiB free at {folder}"
    return Finding("ok", told) if free >= wanted else Finding("warn", told, remedy)


def _disk(runs: Path) -> Iterator[Finding]:
    yield _space("disk", _nearest_folder(runs), 2 * GIB, "free some space: checkpoints and client states grow")
    shared = Path("/dev/shm")
    if shared.is_dir():
        yield _space(
            "shared memory", shared, GIB, "give it more (docker run --shm-size=2g): Ray keeps the weights there"
        )


def _writable(runs: Path) -> Iterator[Finding]:
    folder = _nearest_folder(runs)
    try:
        with tempfile.TemporaryFile(dir=folder):
            yield Finding("ok", f"runs are written to {runs}")
    except OSError as error:
        yield Finding(
            "broken", f"cannot write to {folder}: {error.strerror}", "choose another folder: fedcl run ... --out DIR"
        )


def _data() -> Iterator[Finding]:
    root = os.environ.get("FEDCL_DATA")
    if not root:
        yield Finding("ok", "FEDCL_DATA not set (digits and synthetic need no files)")
    elif not Path(root).is_dir():
        yield Finding(
            "warn", f"FEDCL_DATA={root} is no folder", "set it to the folder that holds mnist/, fashion_mnist/"
        )
    else:
        found = [name for name in DATA_FOLDERS if (Path(root) / name).is_dir()]
        yield Finding("ok", f"FEDCL_DATA={root}: {', '.join(found) or 'no known data set'}")


def _scenarios() -> Iterator[Finding]:
    from fedcl.config import load
    from fedcl.errors import ConfigError
    from fedcl.shipped import scenario_names

    for name in scenario_names():
        try:
            load(name)
        except ConfigError as error:
            yield Finding("broken", f"scenario {name} does not load: {error}", "install fedcl again: make setup")
    yield Finding("ok", f"{len(scenario_names())} scenarios shipped")


def examine(runs: Path) -> Iterator[Finding]:
    """Examine this machine for runs that are written under the folder `runs`."""
    yield from _python()
    yield from _packages()
    yield from _compute()
    yield from _threads()
    yield from _disk(runs)
    yield from _writable(runs)
    yield from _data()
    yield from _scenarios()
