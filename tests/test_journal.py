"""The journal: complete lines only, listeners, resuming at an offset, files written whole."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from fedcl.errors import FederationError
from fedcl.journal import EVENTS, Journal, read_events, replace_file, to_json, write_json

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
events = st.builds(
    lambda block, kind: {**block, "event": kind}, st.dictionaries(st.text(), values, max_size=4), st.text()
)


@examples(max_examples=50, deadline=None)
@given(written=st.lists(events, max_size=6), cut=st.integers(0, 10_000))
def test_events_come_back_and_a_torn_line_is_passed_over(
    tmp_path_factory: pytest.TempPathFactory, written: list[dict[str, Any]], cut: int
) -> None:
    folder, ends = tmp_path_factory.mktemp("run"), [0]
    with Journal(folder) as journal:
        for event in written:
            journal.write(event)
            ends.append(journal.offset)
        assert list(journal.events()) == written
    whole = (folder / EVENTS).read_bytes()
    assert whole.isascii()
    assert whole.count(b"\n") == len(written)
    cut = min(cut, len(whole))
    (folder / EVENTS).write_bytes(whole[:cut])
    complete = sum(end <= cut for end in ends) - 1
    assert list(read_events(folder)) == written[:complete]
    with Journal(folder) as journal:  # the next writer does not glue its line to the torn one
        assert journal.offset == ends[complete]
        journal.write({"event": "after"})
    assert list(read_events(folder)) == [*written[:complete], {"event": "after"}]


def test_a_resumed_run_continues_where_the_checkpoint_was(tmp_path: Path) -> None:
    with Journal(tmp_path / "new" / "run") as journal:
        offsets = []
        for round in range(5):
            offsets.append(journal.offset)
            journal.write({"event": "round", "round": round, "loss": {"ce": 0.1 * round}})
        journal.sync()
    with Journal(tmp_path / "new" / "run") as journal:
        journal.truncate(offsets[3])
        journal.write({"event": "round", "round": 30})
        assert [event["round"] for event in journal.events()] == [0, 1, 2, 30]
        journal.truncate(offsets[3])
        journal.truncate(offsets[3])
        assert journal.offset == os.path.getsize(journal.path) == offsets[3]
        with pytest.raises(FederationError, match="the checkpoint knows of"):
            journal.truncate(offsets[4])
        with pytest.raises(FederationError, match="no event that ends at byte 5"):
            journal.truncate(5)
        journal.truncate(0)
        assert list(journal.events()) == []


def test_a_torn_line_longer_than_one_block_is_cut_off(tmp_path: Path) -> None:
    (tmp_path / EVENTS).write_bytes(b'{"event":"a"}\n' + b'{"b":"' + b"x" * 200_000)
    with Journal(tmp_path) as journal:
        assert journal.offset == 14
        assert list(journal.events()) == [{"event": "a"}]


def test_listeners_hear_every_event_in_order_once_it_is_readable(tmp_path: Path) -> None:
    heard: list[tuple[str, dict[str, Any], int]] = []

    def listener(name: str) -> Callable[[dict[str, Any]], None]:
        return lambda event: heard.append((name, event, len(list(read_events(tmp_path)))))

    with Journal(tmp_path, [listener("a"), listener("b")]) as journal:
        journal.write({"event": "n1"})
        journal.write({"event": "n2"})
    assert heard == [
        ("a", {"event": "n1"}, 1),
        ("b", {"event": "n1"}, 1),
        ("a", {"event": "n2"}, 2),
        ("b", {"event": "n2"}, 2),
    ]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_a_number_that_is_not_finite_is_refused_by_its_key(tmp_path: Path, number: float) -> None:
    heard: list[dict[str, Any]] = []
    with Journal(tmp_path, [heard.append]) as journal:
        with pytest.raises(ValueError, match=r"event 'round': loss\.ce = -?(nan|inf): must be finite"):
            journal.write({"event": "round", "loss": {"ce": number}})
        with pytest.raises(ValueError, match=r"accuracy\[1\]\[0\]"):
            journal.write({"event": "round", "accuracy": [[0.5], [number]]})
        assert journal.offset == 0
    assert heard == []
    assert to_json({"a": [1.5, None]}) == '{"a": [1.5, null]}'


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / EVENTS).write_bytes(b'{"event":"a"}\n{"b":\n{"c":3}\n')
    with pytest.raises(FederationError, match=r"events\.jsonl is damaged \(line 2: "):
        list(read_events(tmp_path))
    (tmp_path / EVENTS).write_bytes(b"[1]\n")
    with pytest.raises(FederationError, match="line 1: it is not an event"):
        list(read_events(tmp_path))
    assert list(read_events(tmp_path / "absent")) == []


def test_errors_are_appended(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.error("first\nsecond\n")
        journal.error("γ \ud800")
    assert (tmp_path / "error.log").read_text(encoding="utf-8") == "first\nsecond\nγ \\ud800\n"


def test_json_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"acc": 0.1, "absent": {"fwt": "one task"}})
    assert json.loads(path.read_text()) == {"acc": 0.1, "absent": {"fwt": "one task"}}
    assert path.read_bytes().endswith(b"}\n")
    with pytest.raises(ValueError, match="acc = nan"):
        write_json(path, {"acc": math.nan})
    with pytest.raises(TypeError):
        replace_file(path, [b"half", "no bytes"], sync=False)
    assert json.loads(path.read_text())["acc"] == 0.1
    assert list(tmp_path.iterdir()) == [path]


def test_a_journal_is_mended_in_its_length_and_what_was_lost_is_kept(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for number in range(4):
            journal.write({"event": "round", "round": number, "loss": {}})
        offset = journal.offset
    whole = (tmp_path / EVENTS).read_bytes()
    lines = whole.splitlines(keepends=True)
    for damage in (
        bytes([whole[0] ^ 1]) + whole[1:],
        whole.replace(b'"event": "round", "round": 2', b'"evenu": "round", "round": 2'),
        lines[0] + lines[1][:-1] + b"J" + lines[2] + lines[3],  # an end of a line
        whole[:-1] + b"J",  # the last one
        whole[: len(whole) // 2],
    ):
        (tmp_path / EVENTS).write_bytes(damage)
        with Journal(tmp_path) as journal:
            lost = journal.mend(offset)
            journal.truncate(offset)
            events = list(journal.events())
        assert lost >= 1
        assert {"event": "damaged"} in events
        assert sum(event["event"] == "round" for event in events) >= 1
        assert (tmp_path / EVENTS).stat().st_size == offset
        assert (tmp_path / f"{EVENTS}.broken").stat().st_size
        (tmp_path / f"{EVENTS}.broken").unlink()
