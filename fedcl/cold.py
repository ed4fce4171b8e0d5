"""Records whose parts change at different times: what is hot is written at every visit, what is cold when it changes.

A pack of hot fields points at rows of cold files, which are packs too, of this visit or of an earlier one. Its header
names them with their checksums, so that the checksum of the pack covers all that its clients have.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.recfunctions import repack_fields
from numpy.typing import NDArray

from fedcl.packs import BrokenState, Ints, Records, dtype_of, header_of, pack, packed, read_rows, rows_of, write_pack

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
    kinds = records.dtype
    hot = [name for name in kinds.names or () if name not in seldom]
    lean = np.empty(len(records), [*((name, kinds[name]) for name in hot), (POINTER, "<i4", (2,))])
    for name in hot:
        lean[name] = records[name]
    own, checksum = path.stem + SUFFIX, ""
    if fresh.any():
        checksum = write_pack(path.with_suffix(SUFFIX), repack_fields(records[list(seldom)])[fresh], clients[fresh])
    places = list(_places(clients, fresh, Place(own, checksum, 0), known))
    files = {place.file: place.checksum for place in places if place}
    number = {file: n for n, file in enumerate(files)}
    lean[POINTER] = [(number[place.file], place.row) if place else (-1, 0) for place in places]
    fields = {name: [kinds[name].base.newbyteorder("<").str, list(kinds[name].shape)] for name in seldom}
    return write_pack(path, lean, clients, {"fields": fields, "files": files})


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
    found: dict[str, str] = (header_of(path).cold or {}).get("files", {})
    for name in found:
        if Path(name).name != name or not name.endswith(SUFFIX):
            raise BrokenState(f"{path}: {name!r} is no name of a cold file")
    return found


def names(path: Path) -> list[str]:
    """Return the cold fields of a pack's records."""
    return list((header_of(path).cold or {}).get("fields", ()))


def whole(path: Path) -> np.dtype[np.void]:
    """Return the dtype of a pack's records with their cold fields."""
    plain, cold = dtype_of(path), header_of(path).cold
    if not cold:
        return plain
    try:
        parts = [(name, kind, tuple(shape)) for name, (kind, shape) in cold["fields"].items()]
        return packed(np.dtype([*((name, plain[name]) for name in plain.names or () if name != POINTER), *parts]))
    except (KeyError, ValueError, TypeError) as error:
        raise BrokenState(f"{path}: the header's fields are not those of a record ({error})") from error


def read(path: Path, rows: Ints, dtype: np.dtype[np.void], clients: Ints) -> tuple[Records, dict[int, Place]]:
    """Read some rows of a pack with their cold fields: records (k,) of dtype, and where the cold ones lie by client.

    Raises:
        BrokenState: as `read_rows`, of the pack or of a cold file.
    """
    with pack(path) as (opened, header):
        cold = header.cold
        if not cold:
            return rows_of(opened, header, path, rows, dtype, clients), {}
    seldom = [name for name in dtype.names or () if name in cold["fields"]]
    hot = [(name, dtype[name]) for name in dtype.names or () if name not in seldom]
    lean = read_rows(path, rows, np.dtype([*hot, (POINTER, "<i4", (2,))]), clients)
    records = np.zeros(len(rows), dtype)
    for name, _ in hot:
        records[name] = lean[name]
    part, places = np.dtype([(name, dtype[name]) for name in seldom]), dict[int, Place]()
    number, row = lean[POINTER].T
    for n, (file, checksum) in enumerate(files(path).items()):
        mine = np.flatnonzero(number == n)
        found = read_rows(path.with_name(file), row[mine].astype(np.int64), part, clients[mine])
        for name in seldom:
            records[name][mine] = found[name]
        places |= {int(clients[i]): Place(file, checksum, int(row[i])) for i in mine}
    return records, places
