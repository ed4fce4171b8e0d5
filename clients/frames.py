"""A message's content and a few facts as bytes on a local socket. No pickle; nothing is believed that is not checked.

    magic (8 bytes) | length of the header (8) | length of the payload (8) | header (JSON) | payload

The header holds the facts and, for each record, its kind and values; for an array its dtype, shape and encoding. The
payload is the arrays' bytes one after another, in the header's order. Arrays are those of `fedcl.wire`. Config and
metric records are JSON, so bytes in a config record are refused.
"""

import json
import math
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedcl.errors import FederationError
from fedcl.wire import DTYPES, RAW

MAGIC = b"fedcl\0\0\1"
PREFIX = struct.Struct("<8sQQ")
HEADER = 16 << 20  # bytes, at most
PAYLOAD = 4 << 30  # bytes, at most: a billion parameters in single precision
VALUES: dict[str, type[ConfigRecord] | type[MetricRecord]] = {"config": ConfigRecord, "metrics": MetricRecord}
Facts = dict[str, Any]
Frame = Sequence[bytes]


class BadFrame(FederationError):
    """A frame that is not what it should be; says why."""


def encode(facts: Facts, content: RecordDict) -> Frame:
    """Return facts and content as the parts of a frame, the arrays' bytes as they are.

    Raises:
        BadFrame: they are too large, or hold what no frame can.
    """
    arrays = [array for record in content.array_records.values() for array in record.values()]
    described = {name: _described(record) for name, record in content.items()}
    try:
        header = json.dumps({"facts": facts, "records": described}, separators=(",", ":")).encode()
    except TypeError as error:
        raise BadFrame(f"a record that JSON cannot hold: {error}") from error
    payload = sum(_length(name, *entry) for name, entry in _listed(described))
    prefix = PREFIX.pack(MAGIC, len(header), payload)
    _bounded(prefix)
    for (name, entry), array in zip(_listed(described), arrays, strict=True):
        if _length(name, *entry) != len(array.data):
            raise BadFrame(f"array {name!r} claims shape {array.shape} but brings {len(array.data)} bytes")
    return [prefix + header, *(array.data for array in arrays)]


def send(connection: socket.socket, frame: Frame) -> None:
    """Send a frame."""
    for part in frame:
        connection.sendall(part)


def receive(connection: socket.socket) -> tuple[Facts, RecordDict]:
    """Return the facts and content of the next frame.

    Raises:
        BadFrame: it is not what it should be; what is left of it is still in the connection.
        ConnectionResetError: it ends before its time.
    """
    header, payload = _bounded(_exactly(connection, PREFIX.size))
    facts, described = _parsed(_exactly(connection, header))
    entries = list(_listed(described))
    lengths = [_length(name, *entry) for name, entry in entries]
    if sum(lengths) != payload:
        raise BadFrame(f"a payload of {payload:,} bytes for arrays of {sum(lengths):,}")
    raw = iter([_exactly(connection, length) for length in lengths])
    try:
        return facts, RecordDict({name: _record(each, raw) for name, each in described.items()})
    except TypeError as error:
        raise BadFrame(f"a record with a value of the wrong type: {error}") from error


def _described(record: ArrayRecord | ConfigRecord | MetricRecord) -> list[Any]:
    """Return a record as its kind and values; of an array: dtype, shape, encoding."""
    if isinstance(record, ArrayRecord):
        return ["arrays", {name: [each.dtype, list(each.shape), each.stype] for name, each in record.items()}]
    return ["config" if isinstance(record, ConfigRecord) else "metrics", dict(record)]


def _record(described: list[Any], raw: Iterator[bytes]) -> ArrayRecord | ConfigRecord | MetricRecord:
    """Return the record of a description, with the next arrays' bytes."""
    kind, values = described
    if kind != "arrays":
        return VALUES[kind](values)
    made = {
        name: Array(dtype=dtype, shape=tuple(shape), stype=stype, data=next(raw))
        for name, (dtype, shape, stype) in values.items()
    }
    return ArrayRecord(made)


def _parsed(header: bytes) -> tuple[Facts, dict[str, list[Any]]]:
    try:
        parsed = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise BadFrame("a header that is not JSON") from error
    facts, described = (parsed.get(name) for name in ("facts", "records")) if isinstance(parsed, dict) else (None, None)
    if not isinstance(facts, dict) or not isinstance(described, dict):
        raise BadFrame("a header without facts and records")
    for name, each in described.items():
        if not isinstance(each, list) or len(each) != 2 or not isinstance(each[1], dict):
            raise BadFrame(f"record {name!r} is not described by its kind and values")
        if each[0] not in ("arrays", *VALUES):
            raise BadFrame(f"record {name!r} is of unknown kind {each[0]!r}")
    return facts, described


def _listed(described: dict[str, list[Any]]) -> Iterator[tuple[str, list[Any]]]:
    """Yield every array's name and description, in the order of the payload."""
    for kind, values in described.values():
        for name, entry in values.items() if kind == "arrays" else ():
            if not isinstance(entry, list) or len(entry) != 3:
                raise BadFrame(f"array {name!r} is not described by dtype, shape and encoding")
            yield name, entry


def _length(name: str, dtype: Any, shape: Any, stype: Any) -> int:
    """Return the bytes of an array."""
    if dtype not in DTYPES or stype != RAW:
        raise BadFrame(f"array {name!r} has encoding {stype!r} and dtype {dtype!r}: not known here")
    if not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in shape):
        raise BadFrame(f"array {name!r} has shape {shape!r}")
    length: int = math.prod(shape) * np.dtype(dtype).itemsize
    return length


def _bounded(prefix: bytes) -> tuple[int, int]:
    """Return the lengths of header and payload."""
    magic, header, payload = PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise BadFrame("what came does not begin like a frame")
    for what, length, most in (("header", header, HEADER), ("payload", payload, PAYLOAD)):
        if length > most:
            raise BadFrame(f"a {what} of {length:,} bytes: at most {most:,} are taken")
    return header, payload


def _exactly(connection: socket.socket, length: int) -> bytes:
    """Return the next bytes, without a copy where they come in one go; memory is filled only as they come."""
    parts = []
    while length:
        part = connection.recv(length, socket.MSG_WAITALL)
        if not part:
            raise ConnectionResetError(f"the connection ended {length:,} bytes before its time")
        parts.append(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
