"""Packs: immutable files of clients' records, one a cohort and round.

A record is one element of a numpy structured dtype. A pack is: magic, header length, sha256 of the header; the header
(JSON: fields, bytes a record, clients, crc32 a row); the records, packed, little-endian, row after row. All of it is
checked when read.
"""

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcl.digest import PLAIN
from fedcl.errors import FederationError
from fedcl.journal import replace_file

Ints = NDArray[np.int64]
Records = NDArray[np.void]
Bytes = NDArray[np.uint8]

PREAMBLE = struct.Struct("<8sQ32s")
MAGIC = b"fedclpk1"
KNOWN = 1024  # headers that a process remembers, a few kB each


class BrokenState(FederationError):
    """A file of the run's state is missing, damaged or not what it should be; the sentence names it."""


@dataclass(frozen=True)
class Header:
    """What a pack says of its records."""

    fields: list[Any]  # [name, numpy's dtype string, shape] each
    size: int  # bytes a record
    clients: Ints
    crc32: Ints
    start: int  # byte at which the records begin
    checksum: str
    cold: dict[str, Any] | None = None  # what of the records lies elsewhere (`fedcl.cold`)


_HEADERS: "dict[tuple[str, int, int, int, int], Header]" = {}


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


def spelled(dtype: np.dtype[np.void]) -> list[Any]:
    """Return a record's fields as a header names them: name, dtype and shape."""
    return [[name, dtype[name].base.str, list(dtype[name].shape)] for name in dtype.names or ()]


def write_pack(path: Path, records: Records, clients: Ints, cold: dict[str, Any] | None = None) -> str:
    """Write the records of a cohort as one file, whole or not at all; a checkpoint forces it onto the disk later.

    Args:
        path: file to create or replace; its folder must exist.
        records: (k,) of one structured dtype.
        clients: (k,) whose records they are.
        cold: what the header says of the rest of the records.

    Returns:
        The header's sha256 in hexadecimal; the header covers the rows by their crc32.
    """
    if records.shape != clients.shape or records.ndim != 1:
        raise ValueError(f"{len(clients)} clients but records of shape {records.shape}")
    data = np.ascontiguousarray(records, dtype=packed(records.dtype))
    rows: Bytes = np.ndarray((len(data), data.dtype.itemsize), np.uint8, data)
    crc32 = [zlib.crc32(row) for row in rows]
    facts = {"fields": spelled(data.dtype), "size": rows.shape[1], "clients": clients.tolist(), "crc32": crc32}
    facts |= {"cold": cold} if cold else {}
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
    numbers = [facts["size"], *facts["clients"], *facts["crc32"]]
    if not all(type(each) is int and 0 <= each < 2**63 for each in numbers) or len(facts["clients"]) != len(
        facts["crc32"]
    ):
        raise ValueError("numbers that cannot be")
    clients, crc32 = (np.array(facts.pop(name), np.int64) for name in ("clients", "crc32"))
    return Header(start=start, checksum=checksum, clients=clients, crc32=crc32, **facts)


def _header(file: int, path: Path) -> Header:
    """Return a pack's header, checked; those used last are remembered, for a record may be all that is wanted of it."""
    facts = os.fstat(file)
    key = (str(path), facts.st_dev, facts.st_ino, facts.st_mtime_ns, facts.st_size)
    header = _HEADERS.pop(key, None) or _read_header(file, path)
    _HEADERS[key] = header
    if len(_HEADERS) > KNOWN:
        _HEADERS.pop(next(iter(_HEADERS)))
    return header


@contextmanager
def pack(path: Path) -> Iterator[tuple[int, Header]]:
    """Open a pack: its file and its header; BrokenState: it is missing or damaged."""
    with _opened(path) as file:
        yield file, _header(file, path)


def header_of(path: Path) -> Header:
    """Return a pack's header; BrokenState: the pack is missing or damaged."""
    with pack(path) as (_, header):
        return header


def _read_header(file: int, path: Path) -> Header:
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
    except (ValueError, TypeError, KeyError, RecursionError) as error:
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
    with pack(path) as (file, header):
        return rows_of(file, header, path, rows, dtype, clients)


def rows_of(file: int, header: Header, path: Path, rows: Ints, dtype: np.dtype[Any], clients: Ints | None) -> Records:
    """Read some rows of an open pack (see `read_rows`)."""
    layout, fields = _layout(dtype)
    if header.fields != fields or header.size != layout.itemsize:
        raise BrokenState(f"{path} holds records with other fields than {layout}")
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(header.clients):
        wrong = rows[(rows < 0) | (rows >= len(header.clients))]
        raise BrokenState(f"{path} has no row {wrong[0]}")
    if clients is not None and not np.array_equal(header.clients[rows], clients):
        raise BrokenState(f"{path} does not hold the records of clients {clients.tolist()[:8]} where they should be")
    out = np.empty((len(rows), header.size), np.uint8)
    _fill(file, header, rows, out, path)
    return np.ndarray(len(rows), layout, out).astype(dtype, copy=False)


@lru_cache(maxsize=32)
def _layout(dtype: np.dtype[Any]) -> tuple[np.dtype[np.void], list[Any]]:
    """Return how a record lies in a pack, and how its header spells that."""
    layout = packed(dtype)
    return layout, spelled(layout)


def verify(path: Path, checksum: str) -> None:
    """Check a whole pack: its header against `checksum`, every row against the header; one row in memory at a time.

    Raises:
        BrokenState: the pack is missing or damaged, or another pack of that name.
    """
    with _opened(path) as file:
        header = _read_header(file, path)
        if header.checksum != checksum:
            raise BrokenState(f"{path} is not the pack that was committed under that name")
        out = np.empty((1, header.size), np.uint8)
        for row in range(len(header.clients)):
            _fill(file, header, np.array([row]), out, path)


def dtype_of(path: Path) -> np.dtype[np.void]:
    """Return the dtype of a pack's records."""
    return dtype_in(header_of(path), path)


def dtype_in(header: Header, path: Path, besides: Iterable[Any] = ()) -> np.dtype[np.void]:
    """Return the dtype that a pack's header names, with fields besides: name, dtype and shape each.

    Raises:
        BrokenState: they are not those of a record.
    """
    try:
        return packed(np.dtype([(name, kind, tuple(shape)) for name, kind, shape in [*header.fields, *besides]]))
    except (ValueError, TypeError) as error:
        raise BrokenState(f"{path}: the header's fields are not those of a record ({error})") from error


def read_pack(path: Path) -> tuple[Ints, Records]:
    """Read a whole pack: whose records it holds (k,), and the records (k,)."""
    clients = header_of(path).clients
    return clients, read_rows(path, np.arange(len(clients)), dtype_of(path))
