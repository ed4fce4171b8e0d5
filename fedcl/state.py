"""Where clients' records lie between visits: immutable packs on disk, and an index of the newest record of each client.

A record is one element of a numpy structured dtype. A worker writes one pack per cohort; nothing is ever changed in
place, so an index from before a round still finds that round's beginning, and a checkpoint that holds an index commits
every client's state at once. A pack is: magic, header length, sha256 of the header; the header (JSON: fields, bytes a
record, clients, crc32 a row); the records, packed, little-endian, row after row. All of it is checked when read.
"""

import hashlib
import json
import os
import re
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedcl.digest import PLAIN, digest
from fedcl.errors import FederationError
from fedcl.journal import TEMPORARIES, replace_file

if TYPE_CHECKING:
    import torch

Ints = NDArray[np.int64]
Records = NDArray[np.void]
Bytes = NDArray[np.uint8]

PREAMBLE = struct.Struct("<8sQ32s")
MAGIC = b"fedclpk1"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,120}\.pack", re.ASCII)
STALE = 3600.0  # seconds after which a temporary's writer is surely gone; writing takes milliseconds
BLOCK = 4096  # records hashed at a time


class BrokenState(FederationError):
    """A file of the run's state is missing, damaged or not what it should be; the sentence names it."""


@dataclass(frozen=True)
class Header:
    """What a pack says of its records."""

    fields: list[Any]  # [name, numpy's dtype string, shape] each
    size: int  # bytes a record
    clients: list[int]
    crc32: list[int]
    start: int  # byte at which the records begin
    checksum: str


def packed(dtype: np.dtype[Any]) -> np.dtype[np.void]:
    """Return a record's dtype as it lies in a pack: the same fields without padding, little-endian.

    Raises:
        TypeError: not a record, or a field holds anything but plain numbers.
    """
    if dtype.names is None:
        raise TypeError(f"a record needs named fields, not {dtype}")
    for name in dtype.names:
        if dtype[name].base.kind not in PLAIN:
            raise TypeError(f"field {name!r} of a record has dtype {dtype[name]}: must be plain numbers")
    parts = [(name, dtype[name].base.newbyteorder("<"), dtype[name].shape) for name in dtype.names]
    return np.dtype(parts)


def _spelled(dtype: np.dtype[np.void]) -> list[Any]:
    return [[name, dtype[name].base.str, list(dtype[name].shape)] for name in dtype.names or ()]


def write_pack(path: Path, records: Records, clients: Ints) -> str:
    """Write the records of a cohort as one file, whole or not at all; a checkpoint forces it onto the disk later.

    Args:
        path: file to create or replace; its folder must exist.
        records: (k,) of one structured dtype.
        clients: (k,) whose records they are.

    Returns:
        The header's sha256 in hexadecimal; the header covers the rows by their crc32.
    """
    if records.shape != clients.shape or records.ndim != 1:
        raise ValueError(f"{len(clients)} clients but records of shape {records.shape}")
    data = np.ascontiguousarray(records, dtype=packed(records.dtype))
    rows: Bytes = np.ndarray((len(data), data.dtype.itemsize), np.uint8, data)
    crc32 = [zlib.crc32(row) for row in rows]
    facts = {"fields": _spelled(data.dtype), "size": rows.shape[1], "clients": clients.tolist(), "crc32": crc32}
    header = json.dumps(facts).encode()
    checksum = hashlib.sha256(header)
    replace_file(path, [PREAMBLE.pack(MAGIC, len(header), checksum.digest()), header, rows], sync=False)
    return checksum.hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise BrokenState(f"{path} is missing") from error
    try:
        yield file
    finally:
        os.close(file)


def _parse(text: bytes, start: int, checksum: str) -> Header:
    facts = json.loads(text)
    header = Header(start=start, checksum=checksum, **facts)
    numbers = [header.size, *header.clients, *header.crc32]
    if not all(type(each) is int and each >= 0 for each in numbers) or len(header.clients) != len(header.crc32):
        raise ValueError("numbers that cannot be")
    return header


def _header(file: int, path: Path) -> Header:
    """Read and check a pack's header; nothing is allocated that is larger than the file."""
    length_of_file = os.fstat(file).st_size
    preamble = os.pread(file, PREAMBLE.size, 0)
    if len(preamble) < PREAMBLE.size:
        raise BrokenState(f"{path} is cut short: {len(preamble)} bytes")
    magic, length, checksum = PREAMBLE.unpack(preamble)
    if magic != MAGIC or length > length_of_file - PREAMBLE.size:
        raise BrokenState(f"{path} is not a whole pack: {length_of_file} bytes")
    text = os.pread(file, length, PREAMBLE.size)
    if hashlib.sha256(text).digest() != checksum:
        raise BrokenState(f"{path}: the header does not match its checksum")
    try:
        header = _parse(text, PREAMBLE.size + length, checksum.hex())
    except (ValueError, TypeError, RecursionError) as error:
        raise BrokenState(f"{path}: the header is not that of a pack ({error})") from error
    if length_of_file != header.start + header.size * len(header.clients):
        raise BrokenState(f"{path} has {length_of_file} bytes, not what its header says")
    return header


def _fill(file: int, header: Header, rows: Ints, out: Bytes, path: Path) -> None:
    """Read rows (k,) into out (k, size), runs of neighbours at once, and check each row."""
    begins = np.flatnonzero(np.diff(rows, prepend=-2) != 1).tolist()
    for begin, end in pairwise([*begins, len(rows)]):
        target = out[begin:end].reshape(-1).data
        offset = header.start + int(rows[begin]) * header.size
        while len(target):
            n = os.preadv(file, [target], offset)
            if n == 0:
                raise BrokenState(f"{path} is cut short")
            target, offset = target[n:], offset + n
    for row, data in zip(rows.tolist(), out, strict=True):
        if zlib.crc32(data) != header.crc32[row]:
            raise BrokenState(f"{path}: row {row} (client {header.clients[row]}) does not match its checksum")


def read_rows(path: Path, rows: Ints, dtype: np.dtype[Any], clients: Ints | None = None) -> Records:
    """Read some rows of a pack, and only those: (k,) records of `dtype`.

    Args:
        path: the pack.
        rows: (k,) row numbers, in any order.
        dtype: what the records must be.
        clients: (k,) whose records the rows must be; None: anyone's.

    Raises:
        BrokenState: the pack is missing, damaged, of other fields, or holds no such row of that client.
    """
    layout = packed(dtype)
    with _opened(path) as file:
        header = _header(file, path)
        if header.fields != _spelled(layout) or header.size != layout.itemsize:
            raise BrokenState(f"{path} holds records with other fields than {layout}")
        for row in rows[(rows < 0) | (rows >= len(header.clients))].tolist():
            raise BrokenState(f"{path} has no row {row}")
        if clients is not None and [header.clients[row] for row in rows.tolist()] != clients.tolist():
            raise BrokenState(
                f"{path} does not hold the records of clients {clients.tolist()[:8]} where they should be"
            )
        out = np.empty((len(rows), header.size), np.uint8)
        _fill(file, header, rows, out, path)
    return np.ndarray(len(rows), layout, out).astype(dtype, copy=False)


def verify(path: Path, checksum: str) -> None:
    """Check a whole pack: its header against `checksum`, every row against the header; one row in memory at a time.

    Raises:
        BrokenState: the pack is missing or damaged, or another pack of that name.
    """
    with _opened(path) as file:
        header = _header(file, path)
        if header.checksum != checksum:
            raise BrokenState(f"{path} is not the pack that was committed under that name")
        out = np.empty((1, header.size), np.uint8)
        for row in range(len(header.clients)):
            _fill(file, header, np.array([row]), out, path)


def _dtype_of(path: Path) -> np.dtype[np.void]:
    with _opened(path) as file:
        header = _header(file, path)
    try:
        return packed(np.dtype([(name, kind, tuple(shape)) for name, kind, shape in header.fields]))
    except (ValueError, TypeError) as error:
        raise BrokenState(f"{path}: the header's fields are not those of a record ({error})") from error


def read_pack(path: Path) -> tuple[Ints, Records]:
    """Read a whole pack: whose records it holds (k,), and the records (k,)."""
    with _opened(path) as file:
        clients = np.array(_header(file, path).clients, np.int64)
    return clients, read_rows(path, np.arange(len(clients)), _dtype_of(path))


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


class PackStore:
    """The folder of packs of a run. Holds no state of its own: workers and server open it anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

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
        for name, at in positions.items():
            if name:
                records[at] = read_rows(self.path(name), rows[at], records.dtype, clients[at])
            else:
                records[at] = start[at]
        return records

    def save(self, name: str, clients: Ints, records: Records) -> str:
        """Write a cohort's new records as the pack `name` and return its checksum (see `write_pack`)."""
        path = self.path(name)
        self.folder.mkdir(parents=True, exist_ok=True)
        return write_pack(path, records, clients)

    def check(self, index: Index) -> None:
        """Check every pack that an index points into, reading all of it; BrokenState names the one that is damaged."""
        trimmed = index.trimmed()
        for name, checksum in zip(trimmed.packs, trimmed.checksums, strict=True):
            verify(self.path(name), checksum)

    def collect(self, keep: Iterable[Index]) -> int:
        """Delete the packs that no index in `keep` names, and temporaries of writers long gone; return how many.

        Args:
            keep: the indices of all kept checkpoints and the one in use.
        """
        named = {name for index in keep for name in index.packs}
        gone = [path for path in self.folder.glob("*.pack") if path.name not in named]
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
        fresh = np.zeros((), _dtype_of(self.path(packs[0])))
        checksum = self.save(name, clients, self.load(clients, packs, rows, fresh))
        return replace(placed, checksums=[*index.checksums, checksum]).trimmed()


def records_digest(store: PackStore, index: Index) -> str:
    """Hash the newest records of all visited clients: the same wherever they lie and whichever packs hold them.

    sha256 over the digests of blocks of 4096 clients in client order, each of the ids and every field (b, *shape).
    """
    visited, total = index.visited(), hashlib.sha256()
    if not len(visited):
        return total.hexdigest()
    fresh = np.zeros((), _dtype_of(store.path(index.locate(visited[:1])[0][0])))
    for begin in range(0, len(visited), BLOCK):
        clients = visited[begin : begin + BLOCK]
        records = store.load(clients, *index.locate(clients), fresh)
        columns = {f"record/{name}": records[name] for name in records.dtype.names or ()}
        total.update(digest({"clients": clients, **columns}).encode())
    return total.hexdigest()
