"""`fedcl doctor`: what this machine has, what is missing, and what to do about it."""

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedcl import machine
from fedcl.distribution import DISTRIBUTION, install, installed

if TYPE_CHECKING:
    from packaging.requirements import Requirement

GIB = 2**30
TESTED = (3, 11)
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
WORKER = GIB / 2  # bytes that a worker takes with a small model: torch alone takes a good part of it
RAY_FULL = 0.95  # Ray takes no more objects where its folder's disk is fuller
DRIVERS = {11: 450, 12: 525, 13: 580}  # CUDA's major version -> the oldest driver that runs it
INDEX = "https://download.pytorch.org/whl"


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


# Packages: what fedcl's own metadata asks for, and what its extras would add.


def _requirement(wanted: "Requirement") -> Finding:
    """Compare one requirement of fedcl with what is installed."""
    remedy, version = install(), installed(wanted.name)
    if version is None:
        return Finding("broken", f"{wanted.name} is not installed, {wanted.specifier} is needed", remedy)
    if not wanted.specifier.contains(version, prereleases=True):
        return Finding("broken", f"{wanted.name} {version} is outside {wanted.specifier}", remedy)
    return Finding("ok", f"{wanted.name} {version} (supported: {wanted.specifier})")


def _extra(name: str, wanted: Sequence["Requirement"]) -> Finding:
    """Say whether an extra is there."""
    versions = {each: installed(each.name) for each in wanted}
    command = install(name)
    if None in versions.values():
        return Finding("ok", f"extra {name} is not installed ({command})")
    told = ", ".join(f"{each.name} {version}" for each, version in versions.items())
    if all(each.specifier.contains(str(version), prereleases=True) for each, version in versions.items()):
        return Finding("ok", f"extra {name}: {told}")
    return Finding("warn", f"extra {name}: {told} is outside what it supports", command)


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
        extras = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        yield Finding("warn", "fedcl is not installed, it runs from its source folder", "make setup")
        return
    plain = [each for each in requirements if not each.marker or each.marker.evaluate({"extra": ""})]
    yield from map(_requirement, plain)
    for extra in extras:
        added = [
            each
            for each in requirements
            if each not in plain and each.marker and each.marker.evaluate({"extra": extra})
        ]
        if added and extra != "test":
            yield _extra(extra, added)


# What computes: the build of torch against the GPUs and their driver.


def _cuda_build(driver: str) -> str:
    """Return the command that installs the newest build of torch for a driver."""
    newest = max((cuda for cuda, oldest in DRIVERS.items() if _major(driver) >= oldest), default=None)
    build = {12: "cu126", 13: "cu130"}.get(newest or 0)
    if build is None:
        return "update the NVIDIA driver"
    return f"make setup TORCH='torch --index-url {INDEX}/{build}' in a new environment"


def _major(version: str) -> int:
    head = version.split(".")[0]
    return int(head) if head.isdecimal() else 0


def _unseen(torch: Any, gpu: machine.Gpu) -> Finding:
    """Say why torch does not see a GPU that the driver has."""
    hidden, build = os.environ.get("CUDA_VISIBLE_DEVICES"), torch.version.cuda
    if build is None:
        what = f"torch {torch.__version__} is a build without CUDA, but {gpu.name} is here"
        return Finding("warn", what, _cuda_build(gpu.driver))
    oldest = DRIVERS.get(_major(build), 0)
    if _major(gpu.driver) < oldest:
        what = f"torch {torch.__version__} is built for CUDA {build}, which needs driver {oldest}; {gpu.driver} is here"
        return Finding("warn", what, f"update the driver, or {_cuda_build(gpu.driver)}")
    if hidden is not None:
        what = f"CUDA_VISIBLE_DEVICES={hidden!r} hides {gpu.name}"
        return Finding("warn", what, "unset it if the clients are to compute on the GPU")
    what = f"torch {torch.__version__} sees no GPU although nvidia-smi shows {gpu.name}"
    return Finding("warn", what, "python -c 'import torch; torch.zeros(1).cuda()' says why")


def _has_kernels(capability: tuple[int, int], built_for: Sequence[str]) -> bool:
    """Return whether a build of torch computes on a GPU.

    Args:
        capability: of the GPU: (9, 0).
        built_for: as torch names it: sm_90 runs on 9.0 and later 9.x, compute_90 on all that is newer.
    """
    for each in built_for:
        kind, _, digits = each.partition("_")
        digits = digits.rstrip("af")
        known = (int(digits[:-1]), int(digits[-1])) if digits.isdecimal() else (99, 0)
        if known <= capability and (kind == "compute" or known[0] == capability[0]):
            return True
    return False


def _compute() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            name, capability = torch.cuda.get_device_name(number), torch.cuda.get_device_capability(number)
            if _has_kernels(capability, torch.cuda.get_arch_list()):
                yield Finding("ok", f"torch {torch.__version__}, CUDA {torch.version.cuda}: {name}")
            else:
                what = f"torch {torch.__version__} has no kernels for {name} (sm_{capability[0]}{capability[1]})"
                yield Finding("warn", what, f"engine.device=cpu, or another build: {INDEX}")
        return
    try:
        found = machine.gpus()
    except OSError as error:
        yield Finding("warn", f"nvidia-smi is here but finds no GPU: {error}", "load the NVIDIA driver")
        return
    if found:
        yield _unseen(torch, found[0])
    else:
        yield Finding("ok", f"torch {torch.__version__}, no GPU: the clients compute on the CPU")


# Cores, threads and memory of the workers.


def _threads() -> Iterator[Finding]:
    cores, seen, quota = machine.cores(), machine.affinity(), machine.quota()
    told = f"{cores} core{'s' * (cores > 1)}"
    if quota is not None and quota < seen:
        told += f" ({seen} are visible, the container's quota is worth {quota:.1f})"
    yield Finding("ok", f"{told}: engine.workers=auto starts {cores} worker{'s' * (cores > 1)} of one thread")
    for name in THREADS:
        value = os.environ.get(name)
        if value is None:
            continue
        if not value.isdecimal() or value == "0":
            yield Finding("warn", f"{name}={value} is no number of threads", f"unset {name}: fedcl sets what it needs")
        elif int(value) > cores:
            what = f"{told} but {name}={value}"
            yield Finding("warn", what, f"unset {name}, or set it to 1: each worker uses one thread")
        else:
            yield Finding("ok", f"{name}={value}")


def _memory() -> Iterator[Finding]:
    free, cores = machine.free_memory(), machine.cores()
    if free is None:
        return
    enough = int(free // WORKER)
    told = f"memory: {free / GIB:.1f} GiB free"
    if enough >= cores:
        yield Finding("ok", told)
    else:
        remedy = f"engine.workers={max(1, enough)}, or free some: what takes the rest is killed by Ray or the system"
        yield Finding("warn", f"{told}, little for {cores} workers", remedy)


# Disks and folders.


def _nearest_folder(path: Path) -> Path:
    """Return the path itself, or the nearest folder above it that exists."""
    return next(each for each in (path, *path.parents) if each.is_dir())


def _space(name: str, folder: Path, wanted: float, remedy: str) -> Finding:
    free, _ = machine.free_disk(folder)
    told = f"{name}: {free / GIB:.1f} GiB free at {folder}"
    return Finding("ok", told) if free >= wanted else Finding("warn", told, remedy)


def _disk(runs: Path) -> Iterator[Finding]:
    yield _space("disk", _nearest_folder(runs), 2 * GIB, "free some space: checkpoints and client states grow")
    shared = Path("/dev/shm")
    if shared.is_dir():
        yield _space(
            "shared memory", shared, GIB, "give it more (docker run --shm-size=2g): Ray keeps the weights there"
        )
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    free, whole = machine.free_disk(_nearest_folder(folder))
    if whole and 1 - free / whole > RAY_FULL:
        what = f"the disk of Ray's folder {folder} is {1 - free / whole:.0%} full: Ray keeps nothing more there"
        yield Finding("warn", what, "free some space, or set RAY_TMPDIR to a folder on another disk")


def _writable(runs: Path) -> Iterator[Finding]:
    folder = _nearest_folder(runs)
    try:
        with tempfile.TemporaryFile(dir=folder):
            yield Finding("ok", f"runs are written to {runs}")
    except OSError as error:
        yield Finding(
            "broken", f"cannot write to {folder}: {error.strerror}", "choose another folder: fedcl run ... --out DIR"
        )


# Data and scenarios.


def _files() -> dict[str, tuple[str, ...]]:
    """Return the files of the data sets that have any, each a plain name below FEDCL_DATA."""
    from fedcl.streams.idx import FILES, MNIST, FashionMNIST
    from fedcl.streams.omniglot import PARTS, Omniglot

    parts = ("images-idx3-ubyte", "labels-idx1-ubyte")
    images = [f"{split}-{part}" for split in FILES.values() for part in parts]
    idx = {"mnist": MNIST().folder, "fashion-mnist": FashionMNIST().folder}
    found = {name: tuple(f"{folder}/{each}" for each in images) for name, folder in idx.items()}
    return found | {"omniglot": tuple(f"{Omniglot().folder}/{each}" for each in PARTS)}


@cache
def _scenarios_of(dataset: str) -> tuple[str, ...]:
    """Return the shipped scenarios that need a data set."""
    from fedcl.config import read
    from fedcl.shipped import scenario_names

    def name(scenario: str) -> str:
        plain = read(scenario).get("stream", {}).get("dataset", "")
        return str(plain.get("name", "") if isinstance(plain, dict) else plain)

    return tuple(each for each in scenario_names() if name(each) == dataset)


def _dataset(root: Path, name: str, files: Sequence[str]) -> Finding:
    """Say whether the files of a data set are there, plain or packed."""
    missing = [each for each in files if not any((root / f"{each}{end}").is_file() for end in ("", ".gz"))]
    if not missing:
        return Finding("ok", f"data {name}: {root / files[0].split('/')[0]}")
    users = ", ".join(_scenarios_of(name))
    if len(missing) == len(files):
        return Finding("ok", f"data {name}: not there (scenarios {users} need it)" if users else f"no data {name}")
    what = f"data {name}: {', '.join(missing)} missing at {root}"
    return Finding("warn", what, f"fetch them again: scenarios {users} need them")


def _data() -> Iterator[Finding]:
    root, files = os.environ.get("FEDCL_DATA"), _files()
    if not root:
        users = sorted({each for name in files for each in _scenarios_of(name)})
        yield Finding("ok", f"FEDCL_DATA not set: all scenarios but {', '.join(users)} run without files")
    elif not Path(root).expanduser().is_dir():
        folders = ", ".join(sorted({each[0].split("/")[0] + "/" for each in files.values()}))
        yield Finding("warn", f"FEDCL_DATA={root} is no folder", f"set it to the folder that holds {folders}")
    else:
        yield from (_dataset(Path(root).expanduser(), name, each) for name, each in files.items())


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
    yield from _memory()
    yield from _disk(runs)
    yield from _writable(runs)
    yield from _data()
    yield from _scenarios()
