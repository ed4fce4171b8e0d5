"""Where clients' records lie between visits: packs on disk, and an index of the newest record of each client.

A worker writes one pack (`fedcl.packs`) per cohort; nothing is ever changed in place, so an index from before a round
still finds that round's beginning, and a checkpoint that holds an index commits every client's state at once.
"""

import hashlib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedcl import cold
from fedcl.cold import Place
from fedcl.digest import digest
from fedcl.journal import TEMPORARIES
from fedcl.packs import BrokenState, Ints, Records, verify, write_pack

if TYPE_CHECKING:
    import torch

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,120}\.pack", re.ASCII)
STALE = 3600.0  # seconds after which a temporary's writer is surely gone; writing takes milliseconds
BLOCK = 4096  # records hashed at a time


def safe(name: str) -> str:
    """Return a pack's name if it is a plain file name that ends in .pack.

    Raises:
        BrokenState: it could lead out of the folder.
    """
    if not NAME.fullmatch(name):
        raise BrokenState(f"pack name {name!r}: must be letters, digits, '.', '_', '-' and end in .pack")
    return name


@dataclass(frozen=True, eq=False)
class Index:
    """Which row of which pack is each client's newest record. Never changed in place: a round can be undone."""

    packs: list[str]
    checksums: list[str]  # one a pack, as `write_pack` returned it
    sizes: list[int]  # rows of each pack, live or not
    pack: NDArray[np.int32]  # (clients,) position in `packs`, -1 = never visited
    row: NDArray[np.int32]  # (clients,)

    @staticmethod
    def empty(clients: int) -> "Index":
        """Return the index of a federation in which nobody was visited yet."""
        return Index([], [], [], np.full(clients, -1, np.int32), np.zeros(clients, np.int32))

    def place(self, name: str, checksum: str, clients: Ints) -> "Index":
        """Return the index after a new pack whose row i is the newest record of clients[i].

        Raises:
            BrokenState: the name is not plain, is placed already, or a client does not exist.
        """
        if safe(name) in self.packs:
            raise BrokenState(f"pack {name} is placed already")
        if len(clients) and not 0 <= clients.min() <= clients.max() < len(self.pack):
            raise BrokenState(f"pack {name} holds a client that is none of the {len(self.pack)} of this federation")
        pack, row = self.pack.copy(), self.row.copy()
        pack[clients] = len(self.packs)
        row[clients] = np.arange(len(clients))
        return Index([*self.packs, name], [*self.checksums, checksum], [*self.sizes, len(clients)], pack, row)

    def locate(self, clients: Ints) -> tuple[list[str], Ints]:
        """Return the pack ("" = never visited) and the row of each client's newest record."""
        names = [*self.packs, ""]  # -1 finds the last
        return [names[i] for i in self.pack[clients].tolist()], self.row[clients].astype(np.int64)

    def visited(self) -> Ints:
        """Return the clients that have a record, in order."""
        return np.flatnonzero(self.pack >= 0).astype(np.int64)

    def live(self) -> Ints:
        """Return for each pack how many of its rows are somebody's newest record."""
        return np.bincount(self.pack[self.pack >= 0], minlength=len(self.packs)).astype(np.int64)

    def trimmed(self) -> "Index":
        """Return the index without the packs that nobody points at, the others renumbered; for every checkpoint."""
        used = np.flatnonzero(self.live()).tolist()
        number = np.full(len(self.packs) + 1, -1, np.int32)
        number[used] = np.arange(len(used))
        packs, checksums = ([column[i] for i in used] for column in (self.packs, self.checksums))
        return Index(packs, checksums, [self.sizes[i] for i in used], number[self.pack], self.row)

    def tensors(self) -> "dict[str, torch.Tensor]":
        """Return the part of the index that a checkpoint keeps as tensors."""
        import torch

        return {"index.pack": torch.tensor(self.pack), "index.row": torch.tensor(self.row)}

    def facts(self) -> dict[str, Any]:
        """Return the part of the index that a checkpoint keeps as JSON."""
        return {"packs": self.packs, "checksums": self.checksums, "sizes": self.sizes}

    @staticmethod
    def restore(tensors: "Mapping[str, torch.Tensor]", facts: Mapping[str, Any]) -> "Index":
        """Return the index that gave these `tensors()` and `facts()`; BrokenState if they are not those of an index."""
        try:
            packs, checksums, sizes = (list(facts[name]) for name in ("packs", "checksums", "sizes"))
            pack, row = (tensors[name].numpy() for name in ("index.pack", "index.row"))
        except (KeyError, TypeError) as error:
            raise BrokenState(f"the checkpoint holds no index of client records ({error})") from error
        sound = len(packs) == len(checksums) == len(sizes) and pack.shape == row.shape and pack.ndim == 1
        sound = sound and pack.dtype == row.dtype == np.int32 and bool(np.all((pack >= -1) & (pack < len(packs))))
        if not sound:
            raise BrokenState("the checkpoint's index of client records contradicts itself")
        return Index([safe(name) for name in packs], checksums, sizes, pack.copy(), row.copy())


def _stale(temporary: Path) -> bool:
    try:
        return time.time() - temporary.stat().st_mtime > STALE
    except FileNotFoundError:  # its writer has just renamed it
        return False


def _differ(one: Records, other: Records, names: Sequence[str]) -> NDArray[np.bool_]:
    """Return whose records (k,) differ in a byte of some fields: 0.0 and -0.0 do, a NaN and itself do not."""
    found: NDArray[np.bool_] = np.zeros(len(one), np.bool_)
    for name in names:
        mine, others = (np.ascontiguousarray(each[name]).reshape(len(one), -1).view(np.uint8) for each in (one, other))
        found |= (mine != others).any(axis=1)
    return found


class PackStore:
    """The folder of packs of a run; workers and server open it anew.

    It remembers where the cold fields lie of the records that it has loaded, so that they need not be written again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[int, Place] = {}

    def path(self, name: str) -> Path:
        """Return the file of a pack; BrokenState if the name is not a plain file name."""
        return self.folder / safe(name)

    def load(self, clients: Ints, packs: Sequence[str | None], rows: Ints, fresh: Records) -> Records:
        """Read clients' newest records (k,), pack by pack; they are copies of fresh's dtype.

        Args:
            clients: (k,) whose records.
            packs: pack of each, "" or None = never visited: gets a fresh record.
            rows: (k,) row within the pack.
            fresh: one fresh record, or one for each client (k,).

        Raises:
            BrokenState: a pack is missing or damaged, or holds another client there.
        """
        start = np.broadcast_to(np.asarray(fresh), len(clients))
        records: Records = np.empty(len(clients), start.dtype)
        positions: dict[str, list[int]] = {}
        for i, name in enumerate(packs):
            positions.setdefault(name or "", []).append(i)
        for client in clients.tolist():  # what an earlier load knew of them
            self._places.pop(client, None)
        for name, at in positions.items():
            if name:
                records[at], places = cold.read(self.path(name), rows[at], records.dtype, clients[at])
                self._places |= places
            else:
                records[at] = start[at]
        return records

    def save(
        self, name: str, clients: Ints, records: Records, old: Records | None = None, seldom: Sequence[str] = ()
    ) -> str:
        """Write a cohort's new records as the pack `name` and return its checksum (see `write_pack`).

        Args:
            old: (k,) the records as this store has loaded them.
            seldom: fields that are written only of the clients of whom they have changed.
        """
        path = self.path(name)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not seldom or old is None:
            return write_pack(path, records, clients)
        fresh, nowhere = _differ(records, old, seldom), [client not in self._places for client in clients.tolist()]
        if any(nowhere):  # who has no cold part on disk has zeros there
            fresh[nowhere] = _differ(records[nowhere], np.zeros_like(records[nowhere]), seldom)
        return cold.write(path, records, clients, seldom, fresh, self._places)

    def check(self, index: Index) -> None:
        """Check every pack that an index points into, reading all of it; BrokenState names the one that is damaged."""
        trimmed = index.trimmed()
        files = dict(zip(trimmed.packs, trimmed.checksums, strict=True))
        for name, checksum in files.items():
            verify(self.path(name), checksum)
        for name, checksum in self._cold(files).items():
            verify(self.folder / name, checksum)

    def _cold(self, packs: Iterable[str]) -> dict[str, str]:
        """Return name and checksum of the cold files that packs point at."""
        if next(self.folder.glob(f"*{cold.SUFFIX}"), None) is None:
            return {}
        return {name: checksum for pack in packs for name, checksum in cold.files(self.path(pack)).items()}

    def files(self, index: Index) -> list[str]:
        """Return the names of all files that hold records of an index."""
        return [*index.packs, *self._cold(index.packs)]

    def collect(self, keep: Iterable[Index]) -> int:
        """Delete the packs that no index in `keep` names, and temporaries of writers long gone; return how many.

        Args:
            keep: the indices of all kept checkpoints and the one in use.
        """
        named = {name for index in keep for name in index.packs}
        named |= self._cold(named).keys()
        gone = [path for kind in ("*.pack", f"*{cold.SUFFIX}") for path in self.folder.glob(kind)]
        gone = [path for path in gone if path.name not in named]
        gone += [path for path in self.folder.glob(TEMPORARIES) if _stale(path)]
        for path in gone:
            path.unlink(missing_ok=True)
        return len(gone)

    def compact(self, index: Index, name: str, threshold: float = 0.3) -> Index:
        """Copy the live rows of sparse packs (less than `threshold` of them live) into one new pack `name`.

        Returns the trimmed index; the old packs stay until they are collected. BrokenState: a sparse pack is damaged,
        or the name is in use.
        """
        index = index.trimmed()
        sparse = np.flatnonzero(index.live() < threshold * np.array(index.sizes))
        clients = np.flatnonzero(np.isin(index.pack, sparse)).astype(np.int64)
        if not len(clients):
            return index
        placed = index.place(name, "", clients)  # refuses a name in use before anything is written
        packs, rows = index.locate(clients)
        dtype, seldom = cold.layout(self.path(packs[0]))
        records = self.load(clients, packs, rows, np.zeros((), dtype))
        checksum = self.save(name, clients, records, records, seldom)
        return replace(placed, checksums=[*index.checksums, checksum]).trimmed()


def records_digest(store: PackStore, index: Index) -> str:
    """Hash the newest records of all visited clients: the same wherever they lie and whichever packs hold them.

    sha256 over the digests of blocks of 4096 clients in client order, each of the ids and every field (b, *shape).
    """
    visited, total = index.visited(), hashlib.sha256()
    if not len(visited):
        return total.hexdigest()
    dtype, _ = cold.layout(store.path(index.locate(visited[:1])[0][0]))
    fresh = np.zeros((), dtype)
    for begin in range(0, len(visited), BLOCK):
        clients = visited[begin : begin + BLOCK]
        records = store.load(clients, *index.locate(clients), fresh)
        columns = {f"record/{name}": records[name] for name in records.dtype.names or ()}
        total.update(digest({"clients": clients, **columns}).encode())
    return total.hexdigest()
