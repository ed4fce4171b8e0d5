"""Checkpoints: one safetensors file each, whose rename commits the round and every client's state with it.

The packs that a checkpoint points into reach the disk first, then the file under a temporary name, then its rename.
The header's metadata holds the facts (JSON) and one sha256 over tensors, facts and round. To free space, in this order:
`prune` the old checkpoints, then let the store collect the packs that no kept checkpoint names.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedcl import kept as kept_files
from fedcl.digest import digest
from fedcl.journal import TEMPORARIES, replace_file, sync_path, to_json
from fedcl.packs import BrokenState

NAME = re.compile(r"r(\d{6,})\.safetensors", re.ASCII)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All that a run needs to go on after `round`: named tensors, and facts that JSON can say."""

    round: int
    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]


def path_of(folder: Path, round: int) -> Path:
    """Return the file of the checkpoint of `round`."""
    return folder / f"r{round:06d}.safetensors"


def round_of(path: Path) -> int | None:
    """Return the round of a checkpoint's file, None if it is called otherwise."""
    match = NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def kept(folder: Path) -> list[Path]:
    """Return the committed checkpoints, oldest first; unchecked."""
    found = [(round_of(path), path) for path in folder.iterdir()] if folder.is_dir() else []
    return [path for _, path in sorted((round, path) for round, path in found if round is not None)]


def _checksum(round: int, tensors: dict[str, torch.Tensor], facts: str) -> str:
    return hashlib.sha256(f"{round}\n{digest(tensors)}\n{facts}".encode()).hexdigest()


def _sync_packs(packs: Iterable[Path]) -> None:
    folders = set()
    for pack in packs:
        try:
            sync_path(pack)
        except FileNotFoundError as error:
            raise BrokenState(f"{pack} is missing: the checkpoint would point to nothing") from error
        folders.add(pack.parent)
    for each in sorted(folders):
        sync_path(each)
        sync_path(each.parent)


def save(folder: Path, snapshot: Snapshot, packs: Iterable[Path] = ()) -> int:
    """Commit a snapshot together with the packs written since the last one.

    Args:
        folder: where checkpoints are kept, created if absent.
        snapshot: tensors on any device; views are copied.
        packs: files that its index newly points into.

    Returns:
        Size of the checkpoint in bytes, packs not counted.

    Raises:
        BrokenState: one of the packs is missing; nothing is committed.
        ValueError: a number in the facts is not finite.
    """
    import safetensors.torch

    if not folder.is_dir():
        folder.mkdir(parents=True)
        sync_path(folder.parent)
    facts = to_json(snapshot.facts)
    # A copy each: weights are views of one flat vector, which safetensors refuses as shared memory.
    tensors = {
        name: each.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, each in snapshot.tensors.items()
    }
    metadata = {
        "round": str(snapshot.round),
        "facts": facts,
        "sha256": _checksum(snapshot.round, tensors, facts),
    }
    data = safetensors.torch.save(tensors, metadata)
    _sync_packs(packs)
    replace_file(path_of(folder, snapshot.round), [data], sync=True)
    return len(data)


def _contents(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            # Copies, so that nothing depends on the mapped file once it is pruned.
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, *kept_files.WRONG) as error:
        raise BrokenState(f"{path} is not a readable checkpoint: {error}") from error


def read(path: Path) -> Snapshot:
    """Read one checkpoint and check it against its checksum.

    Raises:
        BrokenState: the file is damaged, or is not the checkpoint that its name says.
    """
    tensors, metadata = _contents(path)
    round, facts = round_of(path), metadata.get("facts", "")
    if round is None or metadata.get("round") != str(round):
        raise BrokenState(f"{path} holds the checkpoint of round {metadata.get('round')}")
    if metadata.get("sha256") != _checksum(round, tensors, facts):
        raise BrokenState(f"{path} does not match its checksum")
    return Snapshot(round, tensors, json.loads(facts))


def newest(
    folder: Path, usable: Callable[[Snapshot], None], warn: Callable[[str], object] = warnings.warn
) -> Snapshot | None:
    """Return the newest checkpoint that is whole; a damaged one is renamed aside and the one before is used.

    Args:
        folder: where checkpoints are kept.
        usable: raises BrokenState if something that the snapshot points to (its packs) is damaged.
        warn: told of every refused checkpoint in one sentence.
    """
    for path in reversed(kept(folder)):
        try:
            snapshot = read(path)
            usable(snapshot)
        except BrokenState as error:
            aside = put_aside(path, "broken")
            warn(f"checkpoint {path.name} refused and kept as {aside.name}: {error}")
        else:
            return snapshot
    return None


def put_aside(path: Path, why: str) -> Path:
    """Rename a checkpoint so that nobody goes on from it; return its new path."""
    aside = path.with_name(f"{path.name}.{why}")
    os.replace(path, aside)
    sync_path(path.parent)
    return aside


def prune(folder: Path, keep: int) -> list[Path]:
    """Delete all but the newest `keep` checkpoints, and temporaries of a writer that was killed; return what went.

    It is gone for good: what a deleted checkpoint names is deleted next, by the store and by the nodes, and a power cut
    must not bring back a checkpoint without it. Call it between saves only: there is one writer.
    """
    if keep < 1:
        raise ValueError(f"keep = {keep}: must be at least 1")
    gone = [*kept(folder)[:-keep], *folder.glob(TEMPORARIES)]
    for path in gone:
        path.unlink(missing_ok=True)
    if gone:
        sync_path(folder)
    return gone
