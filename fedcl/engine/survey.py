"""Whether all nodes of a cluster see one folder under the same path, and have the same code.

The driver writes a token into a new folder in there; every node reads it, writes it under its own name, and tells its
versions. A node that does not see the folder would otherwise keep checkpoints that nobody else finds.
"""

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import rmtree
from typing import Any

import fedcl
from fedcl import rundir, writing
from fedcl.engine.cluster import Node, nodes, worker_environment
from fedcl.errors import ConfigError

ANSWER = 120.0  # seconds that a node has to say what it sees: it may have to start Python first
LAG = 10.0  # seconds after which a file that one machine has written is seen by the others
LOOK = 0.2  # seconds between two looks
NAMED = 3  # nodes that a sentence tells of
DRIVER = "driver"
PACKAGES = ("fedcl", "clients", "server")
SAME = ("fedcl", "torch", "numpy", "flwr")  # versions; Ray itself compares Python's and its own


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What a node says of itself."""

    reads: bool  # it has found what the driver has written
    refused: str  # why it cannot write beside it; "": it can
    versions: Mapping[str, str]


def versions() -> dict[str, str]:
    """Return what has to be the same on all nodes."""
    known = rundir.versions()
    return {**{name: known[name] for name in SAME}, "fedcl's source": source()}


@cache
def source() -> str:
    """Return a hash of fedcl's own code: a clone that was not brought up to date has the same version."""
    root, found = Path(fedcl.__file__).parent.parent, hashlib.sha256()
    for path in sorted(each for package in PACKAGES for each in (root / package).rglob("*.py")):
        found.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return found.hexdigest()[:12]


def look(folder: str, key: str, token: str) -> Sight:
    """Read the driver's token in a folder and write it as node `key`; what a node is asked to do."""
    here, refused = Path(folder), ""
    reads = holds(here / DRIVER, token)
    try:
        writing.write(here / key, token)
    except OSError as error:
        refused = str(error)
    return Sight(reads=reads, refused=refused, versions=versions())


def holds(path: Path, token: str) -> bool:
    """Return whether a file holds a token, or comes to hold it while a network file system catches up."""
    end = time.monotonic() + LAG
    while path.parent.parent.is_dir() and time.monotonic() < end:
        try:
            if path.read_text() == token:
                return True
        except OSError:
            pass  # not there yet
        time.sleep(LOOK)
    return False


def survey(folder: Path, key: str, check: Callable[[], None]) -> list[Node]:
    """Have every node read and write in a folder and tell its versions; return the nodes.

    Args:
        folder: exists here.
        key: what the user has set it by.
        check: raises if a stop was asked for.

    Raises:
        ConfigError: a node does not see the folder, or has other versions; says which and what to do.
    """
    there, token = nodes(), secrets.token_hex(8)
    with _meeting(folder, token) as place:
        sights = _asked(there, place, token, check)
        wrong = [said for each in there if (said := trouble(each.name, sights[each.key], place / each.key, token, key))]
    if wrong:
        more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise ConfigError(f"{len(wrong)} of {len(there)} nodes cannot take part: {'; '.join(wrong[:NAMED])}{more}")
    return there


@contextmanager
def _meeting(folder: Path, token: str) -> Iterator[Path]:
    """Make a folder in which the nodes leave their tokens beside the driver's, for as long as they are asked."""
    place = folder / f".nodes-{token}"
    place.mkdir()
    try:
        writing.write(place / DRIVER, token)
        yield place
    finally:
        rmtree(place, ignore_errors=True)  # a late node may still write there


def _asked(there: Sequence[Node], place: Path, token: str, check: Callable[[], None]) -> dict[str, Sight | str]:
    """Return each node's answer by its key, or why there is none."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task, asked = ray.remote(look), dict[str, Any]()
    for each in there:
        here = task.options(
            num_cpus=0, max_retries=0, runtime_env=worker_environment(),
            scheduling_strategy=NodeAffinitySchedulingStrategy(each.key, soft=False),
        )  # fmt: skip
        asked[each.key] = here.remote(str(place), each.key, token)
    end, late = time.monotonic() + ANSWER, list(asked.values())
    while late and time.monotonic() < end:
        check()
        _, late = ray.wait(late, num_returns=len(late), timeout=LOOK)
    return {key: _late(each) if each in late else _answer(each) for key, each in asked.items()}


def _late(reference: Any) -> str:
    import ray

    ray.cancel(reference, force=True)
    return f"has not answered in {ANSWER:.0f} s"


def _answer(reference: Any) -> Sight | str:
    import ray

    try:
        sight: Sight = ray.get(reference)
    except ray.exceptions.RayError as error:
        return f"cannot be asked ({(str(error).strip().splitlines() or [type(error).__name__])[-1]})"
    return sight


def trouble(name: str, sight: Sight | str, written: Path, token: str, key: str) -> str:
    """Return in a sentence why a node cannot take part; "" if it can.

    Args:
        name: of the node.
        sight: what it has answered, or why it has not.
        written: the file that it had to write.
        token: that it had to write.
        key: what the user has set the folder by.
    """
    if isinstance(sight, str):
        return f"{name} {sight}; has it fedcl under the same path as this machine?"
    folder = f"{key} {str(written.parent.parent)!r}"
    if sight.reads and sight.refused:
        return f"{name} cannot write to {folder} ({sight.refused}); let its user write there"
    if not sight.reads or not holds(written, token):
        return f"{name} does not see {folder}; choose a folder that all machines share under one path (NFS, Lustre)"
    other = [
        f"{each} {sight.versions.get(each)} instead of {mine}"
        for each, mine in versions().items()
        if sight.versions.get(each) != mine
    ]
    return f"{name} has {', '.join(other)}; install the same on all machines" if other else ""
