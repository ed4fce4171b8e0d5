"""Records whose parts change at different times: what is hot is written at every visit, what is cold when it changes.

A pack of hot fields points at rows of cold files, which are packs too, of this visit or of an earlier one. Its header
names them with their checksums, so that the checksum of the pack covers all that its clients have.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.lib.recfunctions import repack_fields
from numpy.typing import NDArray

from fedcl.packs import (
    BrokenState,
    Header,
    Ints,
    Records,
    dtype_in,
    header_of,
    pack,
    packed,
    read_rows,
    rows_of,
    spelled,
    write_pack,
)  # fmt: skip

POINTER = "@cold"  # (2,): which of the header's cold files, and which row of it; -1: none, the fields are zeros
SUFFIX = ".cold"


@dataclass(frozen=True)
class Place:
    """Where the cold part of a record lies."""

    file: str
    checksum: str
    row: int


def write(
    path: Path, records: Records, clients: Ints, seldom: Sequence[str], fresh: NDArray[np.bool_],
    known: Mapping[int, Place],
) -> str:  # fmt: skip
    """Write records as a pack without the cold fields and, where these are fresh, a cold file; return its checksum.

    Args:
        seldom: names of the cold fields.
        fresh: (k,) whose cold fields have changed.
        known: client -> where the cold fields of the others lie; of those who are not in it, they are zeros.
    """
    own, checksum = path.with_suffix(SUFFIX), ""
    if fresh.any():
        checksum = write_pack(own, repack_fields(records[list(seldom)])[fresh], clients[fresh])
    places = list(_places(clients, fresh, Place(own.name, checksum, 0), known))
    named = {place.file: place.checksum for place in places if place}
    number = {file: n for n, file in enumerate(named)}
    lean = np.empty(len(records), _lean(records.dtype, seldom))
    for name in _hot(records.dtype, seldom):
        lean[name] = records[name]
    lean[POINTER] = [(number[place.file], place.row) if place else (-1, 0) for place in places]
    fields = spelled(packed(np.dtype([(name, records.dtype[name]) for name in seldom])))
    return write_pack(path, lean, clients, {"fields": fields, "files": named})


def _hot(dtype: np.dtype[np.void], seldom: Container[str]) -> list[str]:
    return [name for name in dtype.names or () if name not in seldom]


def _lean(dtype: np.dtype[np.void], seldom: Container[str]) -> np.dtype[np.void]:
    """Return the dtype of records without their cold fields, and with a pointer to them."""
    return np.dtype([*((name, dtype[name]) for name in _hot(dtype, seldom)), (POINTER, "<i4", (2,))])


def _places(
    clients: Ints, fresh: NDArray[np.bool_], first: Place, known: Mapping[int, Place]
) -> Iterator[Place | None]:
    row = 0
    for client, new in zip(clients.tolist(), fresh.tolist(), strict=True):
        yield Place(first.file, first.checksum, row) if new else known.get(client)
        row += new


def files(path: Path) -> dict[str, str]:
    """Return name and checksum of the cold files that a pack points at.

    Raises:
        BrokenState: the pack is missing or damaged, or a name could lead out of its folder.
    """
    return _files(header_of(path), path)


def _files(header: Header, path: Path) -> dict[str, str]:
    found: dict[str, str] = (header.cold or {}).get("files", {})
    for name in found:
        if Path(name).name != name or not name.endswith(SUFFIX):
            raise BrokenState(f"{path}: {name!r} is no name of a cold file")
    return found


def layout(path: Path) -> tuple[np.dtype[np.void], list[str]]:
    """Return the dtype of a pack's records with their cold fields, and the names of these."""
    header = header_of(path)
    if not header.cold:
        return dtype_in(header, path), []
    fields = header.cold["fields"]
    hot = replace(header, fields=[each for each in header.fields if each[0] != POINTER])
    return dtype_in(hot, path, fields), [each[0] for each in fields]


def read(path: Path, rows: Ints, dtype: np.dtype[np.void], clients: Ints) -> tuple[Records, dict[int, Place]]:
    """Read some rows of a pack with their cold fields: records (k,) of dtype, and where the cold ones lie by client.

    Raises:
        BrokenState: as `read_rows`, of the pack or of a cold file.
    """
    with pack(path) as (opened, header):
        if not header.cold:
            return rows_of(opened, header, path, rows, dtype, clients), {}
        seldom = [each[0] for each in header.cold["fields"] if each[0] in (dtype.names or ())]
        lean = rows_of(opened, header, path, rows, _lean(dtype, seldom), clients)
    records, places = np.zeros(len(rows), dtype), dict[int, Place]()
    for name in _hot(dtype, seldom):
        records[name] = lean[name]
    part, (number, row) = np.dtype([(name, dtype[name]) for name in seldom]), lean[POINTER].T
    for n, (file, checksum) in enumerate(_files(header, path).items()):
        mine = np.flatnonzero(number == n)
        found = read_rows(path.with_name(file), row[mine].astype(np.int64), part, clients[mine])
        for name in seldom:
            records[name][mine] = found[name]
        places |= {int(clients[i]): Place(file, checksum, int(row[i])) for i in mine}
    return records, places
