"""The records of clients on a node of their own: one version for each round, kept until no server can ask for it.

The server names what it knows in every order: `accepted`, the last round of a client whose answer counted, and
`oldest`, the same in the oldest state that it may fall back to. The client goes on from exactly the version `accepted`,
and what it makes of it is the version of the order's round, which counts for nothing until an order names it. So an
answer that is lost, refused or late, an order that comes twice, and a server that falls back all end alike: the client
starts from the record that belongs to the weights it is sent.

A version between `accepted` and the order's round was not accepted and is dropped. One of the order's own round is
overwritten, and one of a later round stays until the federation has come that far again: an order that arrives after
its time must not take away what a newer one has made. Below, everything goes that is older than the newest version
<= `oldest`. An order of a server that has died, which arrives once the server goes on, is known by its `sitting`: the
node remembers the highest that it has seen of a federation and refuses a lower one. (It may arrive before any order of
the new sitting; then it changes nothing that the new one could ask for.)

A version is a line of JSON (format, client, round, digests of scenario, fields and bytes) and the record's bytes, all
of it checked when read. Two runs at once need a folder each.
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from clients.memories import Ints, Records
from clients.work import Store
from fedcl import writing
from fedcl.journal import TEMPORARIES, replace_file, sync_path
from fedcl.orders import ClientError, Order, Reply, pick
from fedcl.packs import packed

FORMAT = 1
SECRET = 32  # bytes
FEDERATIONS = 64  # whose sittings, names and ledgers are remembered
SITTINGS, NUMBERS, FAULTS = "sittings.json", "names.json", "faults.txt"
NAME = re.compile(r"r(\d{6,})\.state", re.ASCII)
Asked = TypeVar("Asked", bound=Order)
Answered = TypeVar("Answered", bound=Reply)
Value = TypeVar("Value")


class BadVersion(ValueError):
    """A version that cannot be used; says why."""


class LostRecords(ValueError):
    """Clients whose records an order names but that are not here, or damaged, with one sentence each."""

    def __init__(self, why: dict[int, str]) -> None:
        super().__init__("; ".join(why.values()))
        self.why = why


class OldSitting(ValueError):
    """An order of a server that has died."""


class Place(Protocol):
    """Where the versions of a node's clients lie, as bytes, with the node's secret and what it remembers of servers."""

    def __str__(self) -> str:
        """Return the place in words."""

    def rounds(self, client: int) -> list[int]:
        """Return the rounds of which a client has a version."""

    def read(self, client: int, round: int) -> bytes:
        """Return a version; OSError if it cannot be read."""

    def write(self, client: int, round: int, data: bytes) -> None:
        """Keep a version for good, whole or not at all."""

    def drop(self, client: int, round: int) -> None:
        """Forget a version."""

    def secret(self) -> bytes:
        """Return the secret that this node has made for itself."""

    def sittings(self) -> dict[str, int]:
        """Return the highest sitting seen of each federation, in the order in which they came up."""

    def remember(self, sittings: dict[str, int]) -> None:
        """Keep the sittings for good."""

    def ledger(self, client: int, federation: str) -> bytes:
        """Return what a federation knows of a client's folder (`clients.arrivals`), nothing if it knows nothing."""

    def keep_ledger(self, client: int, federation: str, data: bytes) -> None:
        """Keep that for good, whole or not at all; the ledgers of federations of long ago may go."""

    def told(self, client: int, text: str) -> bool:
        """Keep what is wrong in a client's folder and return whether it is something else than before."""

    def numbers(self) -> dict[str, dict[str, int]]:
        """Return the number of each client's name in each federation, in the order in which they came up."""

    def keep_numbers(self, numbers: dict[str, dict[str, int]]) -> None:
        """Keep the numbers for good."""


def ledger_name(federation: str) -> str:
    """Return the name of a federation's ledger, whatever its server calls it; "*": a pattern of all such names."""
    digest = federation if federation == "*" else hashlib.sha256(federation.encode("utf-8", "replace")).hexdigest()[:16]
    return f"arrivals-{digest}.json"


def outdated(there: Iterable[int], round: int, accepted: int, oldest: int) -> list[int]:
    """Return which of the rounds that are there nobody will ask for again, as an order of `round` tells."""
    there = sorted(there)
    floor = max((each for each in there if each <= oldest), default=0)
    return [each for each in there if each < floor or accepted < each < round]


def _digest(value: Any) -> str:
    return hashlib.sha256(value if isinstance(value, bytes) else json.dumps(value).encode()).hexdigest()


def _header(payload: bytes, dtype: np.dtype[np.void], client: int, round: int, scenario: str) -> dict[str, Any]:
    return {
        "format": FORMAT, "client": client, "round": round, "scenario": scenario, "dtype": _digest(packed(dtype).descr),
        "sha256": _digest(payload),
    }  # fmt: skip


def sealed(record: Records, client: int, round: int, scenario: str) -> bytes:
    """Return a client's record (1,) as a version of a round; `scenario`: the configuration's hash."""
    payload = np.ascontiguousarray(record, dtype=packed(record.dtype)).tobytes()
    header = _header(payload, record.dtype, client, round, scenario)
    return json.dumps(header, separators=(",", ":")).encode() + b"\n" + payload


def opened(data: bytes, dtype: np.dtype[np.void], client: int, round: int, scenario: str) -> Records:
    """Return the record (1,) of a version.

    Raises:
        BadVersion: it is damaged, or the version of something else.
    """
    line, _, payload = data.partition(b"\n")
    expected = _header(payload, dtype, client, round, scenario)
    try:
        header = dict(json.loads(line))
    except (ValueError, TypeError, RecursionError) as error:
        raise BadVersion("is damaged: its first line cannot be read") from error
    if header.get("format") != FORMAT:
        raise BadVersion(f"has format {header.get('format')!r}, not {FORMAT}")
    if header.get("sha256") != expected["sha256"]:
        raise BadVersion(f"is damaged: its {len(payload)} bytes do not match their checksum")
    if any(header.get(name) != expected[name] for name in ("scenario", "dtype")):
        raise BadVersion("was written for another scenario")
    if line != json.dumps(expected, separators=(",", ":")).encode() or len(payload) != packed(dtype).itemsize:
        raise BadVersion(f"is that of client {header.get('client')!r} and round {header.get('round')!r}")
    return np.frombuffer(payload, packed(dtype)).astype(dtype, copy=False)


class Versions:
    """The records of an order's clients, as a `Store`."""

    def __init__(self, order: Order, place: Place, scenario: str) -> None:
        """Take an order's word for which versions are meant.

        Raises:
            ValueError: it does not say.
        """
        if len(order.accepted) != len(order.clients):
            raise ValueError("an order without a folder must say which round of each client was accepted last")
        self._round, self._place, self._scenario = order.round, place, scenario
        pairs = zip(order.accepted.tolist(), order.oldest.tolist(), strict=True)
        self._named = dict(zip(order.clients.tolist(), pairs, strict=True))

    def load(self, clients: Ints, packs: list[str], rows: Ints, fresh: Records) -> Records:
        """Return the records that the order names, a fresh one where none was accepted yet; drop what is outdated.

        Raises:
            LostRecords: some cannot be used; nothing is dropped.
        """
        found, why = np.repeat(fresh, len(clients)), {}
        for row, client in enumerate(clients.tolist()):
            accepted, _ = self._named[client]
            try:
                found[row] = self._record(client, accepted, fresh)[0]
            except BadVersion as error:
                why[client] = f"client {client}: its record of round {accepted}, which the server names, {error}"
        if why:
            raise LostRecords({client: f"{each} ({self._there(client)})" for client, each in why.items()})
        for client in clients.tolist():
            for round in outdated(self._place.rounds(client), self._round, *self._named[client]):
                self._place.drop(client, round)
        return found

    def _record(self, client: int, accepted: int, fresh: Records) -> Records:
        if not accepted:
            return fresh
        if accepted not in self._place.rounds(client):
            raise BadVersion("is not here")
        try:
            data = self._place.read(client, accepted)
        except OSError as error:
            raise BadVersion(f"cannot be read: {error}") from error
        return opened(data, fresh.dtype, client, accepted, self._scenario)

    def _there(self, client: int) -> str:
        rounds = ", ".join(map(str, sorted(self._place.rounds(client)))) or "none"
        return f"rounds here: {rounds}; kept in {self._place}"

    def save(
        self, name: str, clients: Ints, records: Records, old: Records | None = None, seldom: Sequence[str] = ()
    ) -> str:
        """Keep new records as the versions of the order's round."""
        for row, client in enumerate(clients.tolist()):
            data = sealed(records[[row]], client, self._round, self._scenario)
            self._place.write(client, self._round, data)
        return ""


def check_sitting(order: Order, place: Place) -> None:
    """Remember the server's sitting if it is a new one.

    Raises:
        OldSitting: the node has seen a higher one.
    """
    seen = place.sittings()
    newest = seen.get(order.federation, 0)
    if order.sitting < newest:
        which = f"sitting = {order.sitting} of {order.federation!r}, but {newest} has been seen here"
        raise OldSitting(f"an order of a server that has died: {which} (its run directory's file 'sittings' counts)")
    if order.sitting > newest:
        place.remember(remembered(seen, order.federation, order.sitting))


def remembered(kept: Mapping[str, Value], federation: str, value: Value) -> dict[str, Value]:
    """Return what is kept of federations with a new value of one, which is the newest; the oldest are forgotten."""
    others = [(name, each) for name, each in kept.items() if name != federation]
    return dict([*others, (federation, value)][-FEDERATIONS:])


def carry_out(order: Asked, place: Place, scenario: str, work: Callable[[Asked, Store], Answered]) -> Answered:
    """Carry out an order for those of its clients whose records are here; the others are named as failed.

    Raises:
        LostRecords: nobody's is.
        OldSitting: a server asks that has died.
    """
    check_sitting(order, place)
    try:
        return work(order, Versions(order, place, scenario))
    except LostRecords as lost:
        fine = np.flatnonzero(~np.isin(order.clients, list(lost.why)))
        if not len(fine):
            raise
        reply = carry_out(pick(order, fine), place, scenario, work)
        errors = [ClientError(client=client, error=why, traceback="") for client, why in lost.why.items()]
        return replace(reply, errors=[*errors, *reply.errors])


class Folder:
    """A folder of this node alone: `client-000003/r000012.state`, and the node's `secret`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        """Return its path."""
        return str(self.folder)

    def _of(self, client: int) -> Path:
        return self.folder / f"client-{client:06d}"

    def _file(self, client: int, round: int) -> Path:
        return self._of(client) / f"r{round:06d}.state"

    def rounds(self, client: int) -> list[int]:
        """Return the rounds of which a client has a file; temporaries of a writer that was killed are none."""
        own = self._of(client)
        matches = [NAME.fullmatch(path.name) for path in own.iterdir()] if own.is_dir() else []
        return [int(match[1]) for match in matches if match]

    def read(self, client: int, round: int) -> bytes:
        """Return a file's bytes."""
        return self._file(client, round).read_bytes()

    def write(self, client: int, round: int, data: bytes) -> None:
        """Write a file whole or not at all and force it, its name and its folder onto the disk."""
        self._replace(self._file(client, round), data)

    def _replace(self, path: Path, data: bytes) -> None:
        _make(self.folder)
        _make(path.parent)
        for left in path.parent.glob(TEMPORARIES):  # a client has one writer at a time
            left.unlink(missing_ok=True)
        replace_file(path, [data], sync=True)

    def ledger(self, client: int, federation: str) -> bytes:
        """Return the bytes of the file `arrivals-....json` of a federation, none where there is no such file."""
        path = self._of(client) / ledger_name(federation)
        return path.read_bytes() if path.exists() else b""

    def keep_ledger(self, client: int, federation: str, data: bytes) -> None:
        """Write the file whole or not at all and force it onto the disk; the oldest of too many go."""
        own = self._of(client)
        self._replace(own / ledger_name(federation), data)
        for old in sorted(own.glob(ledger_name("*")), key=lambda each: each.stat().st_mtime_ns)[:-FEDERATIONS]:
            old.unlink(missing_ok=True)

    def told(self, client: int, text: str) -> bool:
        """Write the file `faults.txt`, if it says something else."""
        path = self._of(client) / FAULTS
        before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        if text != before:
            self._replace(path, text.encode("utf-8", "replace"))
        return text != before

    def drop(self, client: int, round: int) -> None:
        """Delete a file."""
        self._file(client, round).unlink(missing_ok=True)

    def secret(self) -> bytes:
        """Return the secret in the folder, made by whoever asks first.

        Raises:
            ValueError: the file is damaged; a new secret would not fit what was answered with the old one.
        """
        path = self.folder / "secret"
        if not path.exists():
            _make(self.folder)
            _make_secret(path)
        found = path.read_bytes()
        if len(found) != SECRET:
            raise ValueError(f"{path} holds {len(found)} bytes, not the {SECRET} of a node's secret: it is damaged")
        return found

    def sittings(self) -> dict[str, int]:
        """Return what stands in the file `sittings.json`, nothing if there is none.

        Raises:
            ValueError: the file is damaged.
        """
        way_out = "delete it once no server that has died is left"
        return self._table(SITTINGS, int, way_out)

    def remember(self, sittings: dict[str, int]) -> None:
        """Write the file whole or not at all and force it onto the disk."""
        self._keep_table(SITTINGS, sittings)

    def numbers(self) -> dict[str, dict[str, int]]:
        """Return what stands in the file `names.json`, nothing if there is none.

        Raises:
            ValueError: the file is damaged.
        """

        def of_run(found: Any) -> dict[str, int]:
            return {str(name): int(number) for name, number in found.items()}

        return self._table(NUMBERS, of_run, "put back a copy, or delete it")

    def keep_numbers(self, numbers: dict[str, dict[str, int]]) -> None:
        """Write the file whole or not at all and force it onto the disk."""
        self._keep_table(NUMBERS, numbers)

    def _table(self, file: str, read: Callable[[Any], Value], way_out: str) -> dict[str, Value]:
        """Return a table by federation, each value as `read` takes it; nothing if there is no file."""
        path = self.folder / file
        if not path.exists():
            return {}
        try:
            return {str(name): read(value) for name, value in json.loads(path.read_bytes()).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error}): {way_out}") from error

    def _keep_table(self, file: str, table: Mapping[str, Any]) -> None:
        _make(self.folder)
        replace_file(self.folder / file, [json.dumps(table).encode()], sync=True)


def _make(folder: Path) -> None:
    """Create a folder for this user alone, for good; does nothing where it is there."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_path(folder.parent)


def _make_secret(path: Path) -> None:
    """Create the file of a secret, readable by this user alone, whole, and only if there is none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with open(writing.descriptor(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, writing.OWN), "wb") as file:
        file.write(secrets.token_bytes(SECRET))
        file.flush()
        os.fsync(file.fileno())
    with suppress(FileExistsError):  # somebody was faster: theirs counts
        os.link(temporary, path)
    temporary.unlink()
    sync_path(path.parent)
