"""Frames: content and facts come back as they went in; a frame that lies is refused."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from clients import frames
from clients.frames import MAGIC, PREFIX, BadFrame
from fedcl import wire

ENTRY = ["float32", [2, 3], wire.RAW]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=5), each, max_size=3), max_leaves=8,
)  # fmt: skip
FACTS = st.dictionaries(st.text(max_size=8), JSON, max_size=4)


@st.composite
def records(draw: Any) -> Any:
    """Draw a record as `fedcl.wire` makes them, any bits in its arrays; or of metrics."""
    kind = draw(st.sampled_from(["arrays", "config", "metrics"]))
    if kind == "config":
        return ConfigRecord({"json": json.dumps(draw(FACTS))})
    if kind == "metrics":
        values = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.lists(st.floats(0, 1), max_size=3)
        return MetricRecord(draw(st.dictionaries(st.text(max_size=8), values, max_size=3)))
    arrays = {}
    for name in draw(st.lists(st.text(max_size=8), max_size=3, unique=True)):
        dtype, shape = (
            np.dtype(draw(st.sampled_from(wire.DTYPES))),
            tuple(draw(st.lists(st.integers(0, 3), max_size=3))),
        )
        size = int(np.prod(shape, dtype=int)) * dtype.itemsize
        raw = draw(st.binary(min_size=size, max_size=size))
        arrays[name] = np.frombuffer(raw, dtype).reshape(shape)
    return wire.pack(arrays)


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def received(*parts: bytes) -> Any:
    """Return what is received of these bytes and the connection's end."""
    with pair() as (here, there):
        frames.send(here, parts)
        here.close()
        return frames.receive(there)


@given(FACTS, st.dictionaries(st.text(max_size=8), records(), max_size=4))
@settings(max_examples=200)
def test_what_goes_in_comes_back(facts: dict[str, Any], content: dict[str, Any]) -> None:
    """To the bit, NaN and negative zero included, in the same order."""
    back_facts, back = received(*frames.encode(facts, RecordDict(content)))
    assert json.dumps(back_facts) == json.dumps(facts)
    assert list(back) == list(content)
    for name, record in content.items():
        assert type(back[name]) is type(record)
        assert list(back[name].items()) == list(record.items())


def test_two_frames_follow_each_other() -> None:
    contents = [RecordDict({"a": wire.pack({"x": np.arange(n)})}) for n in (3, 0, 5)]
    with pair() as (here, there):
        for n, content in enumerate(contents):
            frames.send(here, frames.encode({"n": n}, content))
        assert [frames.receive(there) for _ in contents] == [({"n": n}, each) for n, each in enumerate(contents)]


def frame(described: Any, payload: bytes = b"", header: bytes | None = None, lengths: Any = None) -> bytes:
    """Return a frame with any description of its records."""
    header = json.dumps({"facts": {}, "records": described}).encode() if header is None else header
    return PREFIX.pack(MAGIC, *(lengths or (len(header), len(payload)))) + header + payload


LIES = {
    "no frame": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "does not begin like a frame"),
    "no JSON": (frame({}, header=b"\x80\x04N."), "not JSON"),
    "deep JSON": (frame({}, header=b"[" * 100_000), "not JSON"),
    "a list": (frame({}, header=b"[]"), "without facts and records"),
    "no facts": (frame({}, header=b'{"records": {}}'), "without facts and records"),
    "no description": (frame({"a": None}), "'a' is not described"),
    "unknown kind": (frame({"a": ["pickle", {}]}), "unknown kind 'pickle'"),
    "a kind that is no name": (frame({"a": [["arrays"], {}]}), "unknown kind"),
    "short description": (frame({"a": ["arrays", {"x": ["float32", [1]]}]}), "'x' is not described"),
    "object array": (frame({"a": ["arrays", {"x": ["object", [1], wire.RAW]}]}, bytes(8)), "dtype 'object'"),
    "dtype that is none": (frame({"a": ["arrays", {"x": [["float32"], [1], wire.RAW]}]}, bytes(4)), "not known here"),
    "encoding": (frame({"a": ["arrays", {"x": ["float32", [1], "numpy.ndarray"]}]}, bytes(4)), "numpy.ndarray"),
    "negative shape": (frame({"a": ["arrays", {"x": ["float32", [-1], wire.RAW]}]}), "has shape"),
    "shape of truths": (frame({"a": ["arrays", {"x": ["float32", [True], wire.RAW]}]}, bytes(4)), "has shape"),
    "too little": (frame({"a": ["arrays", {"x": ENTRY}]}, bytes(23)), "23 bytes for arrays of 24"),
    "too much": (frame({"a": ["arrays", {"x": ENTRY}]}, bytes(25)), "25 bytes for arrays of 24"),
    "wrong value": (frame({"a": ["metrics", {"x": "text"}]}), "wrong type"),
    "10 GB": (frame({}, lengths=(2, 10_000_000_000)), "payload of 10,000,000,000 bytes: at most"),
    "a header of 17 MB": (frame({}, lengths=(17 << 20, 0)), "header of 17,825,792 bytes: at most 16,777,216"),
    "10 GB in the header": (
        frame({"a": ["arrays", {"x": ["float32", [50_000, 50_000], wire.RAW]}]}, bytes(4)), "4 bytes for arrays of 10,",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_frame_that_lies_is_refused(lie: str) -> None:
    data, said = LIES[lie]
    with pytest.raises(BadFrame, match=said):
        received(data)


def test_a_frame_that_ends_early_is_a_lost_connection() -> None:
    """Wherever it ends."""
    whole = b"".join(frames.encode({"a": 1}, RecordDict({"a": wire.pack({"x": np.arange(4)})})))
    for n in range(len(whole)):
        with pytest.raises(ConnectionResetError, match="before its time"):
            received(whole[:n])


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (ConfigRecord({"a": b"bytes"}), "JSON cannot hold"),
        (ArrayRecord({"x": Array(dtype="float16", shape=(1,), stype=wire.RAW, data=bytes(2))}), "float16"),
        (ArrayRecord({"x": Array(np.zeros(3))}), "numpy.ndarray"),
        (ArrayRecord({"x": Array(dtype="float32", shape=(2,), stype=wire.RAW, data=bytes(4))}), "brings 4 bytes"),
        (ConfigRecord({"json": "x" * (17 << 20)}), "header of 17,8"),
    ],
)
def test_what_no_frame_can_hold_is_not_sent(record: Any, said: str) -> None:
    with pytest.raises(BadFrame, match=said):
        frames.encode({}, RecordDict({"a": record}))
