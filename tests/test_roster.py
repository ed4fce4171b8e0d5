"""Nodes that come, go, are slow, or come back under another id; answers after their deadline."""

import json
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message

from fedcl import wire
from fedcl.engine import flower
from fedcl.errors import FederationError
from fedcl.interrupt import Stopped, StopRequest
from fedcl.orders import Order, TrainOrder
from fedcl.world import as_text
from server import federation
from server.app import main as server_app
from server.names import Table
from server.roster import Roll, roster
from tests.federations import tiny
from tests.nodes import Nodes

TEXT = as_text(tiny())
EVERYONE = np.arange(4)


class Doors(Nodes):
    """Four nodes, of which those in `inside` are there; those in `mute` never answer, those in `sick` with errors."""

    def __init__(self, inside: Iterable[int], mute: Iterable[int] = (), sick: Iterable[int] = ()) -> None:
        super().__init__(4)
        self.inside, self.mute, self.sick = set(inside), set(mute), set(sick)
        self.greeted: list[int] = []

    def get_node_ids(self) -> Iterable[int]:
        return sorted(self.inside)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.greeted += [each.metadata.dst_node_id for each in messages]
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        waiting = [each for each in message_ids if each in self._queue]
        return super().pull_messages([e for e in waiting if self._queue[e].metadata.dst_node_id not in self.mute])

    def _reply(self, message: Message) -> Message:
        if message.metadata.dst_node_id in self.sick:
            return Message(Error(code=2, reason="Traceback\nValueError: it is not well"), reply_to=message)
        return super()._reply(message)


def roll(grid: Doors, told: list[str] | None = None) -> Roll:
    flower.identify()
    refused = (told if told is not None else []).append
    return Roll(grid=grid, config=TEXT, clients=4, refused=refused, table=Table(clients=4))


def test_nodes_are_greeted_once_and_taken_in_and_struck_off_between_looks() -> None:
    grid = Doors([1, 2])
    found = roll(grid)
    assert found.look().nodes.tolist() == [0, 1, -1, -1]
    grid.inside = {2, 4}
    assert found.look().nodes.tolist() == [-1, 0, -1, 1]
    assert found.look().ids == (2, 4)
    assert grid.greeted == [1, 2, 4]


def test_a_mute_node_delays_nobody_and_is_heard_later() -> None:
    grid = Doors([1, 2, 3], mute=[2])
    found = roll(grid)
    assert found.look().nodes.tolist() == [0, -1, 1, -1]
    grid.mute = set()
    assert found.look().nodes.tolist() == [0, 1, 2, -1]
    assert grid.greeted == [1, 2, 3]


def test_a_node_that_cannot_introduce_itself_is_named_and_greeted_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid, told = Doors([1, 2], sick=[2]), list[str]()
    found = roll(grid, told)
    assert [found.look().nodes.tolist() for _ in range(3)] == [[0, -1, -1, -1]] * 3
    assert told == ["node 2 could not introduce itself: ValueError: it is not well"]
    now = time.monotonic()
    monkeypatch.setattr("server.roster.time.monotonic", lambda: now + 11)
    assert found.look().nodes.tolist() == [0, -1, -1, -1]
    assert (grid.greeted, len(told)) == ([1, 2, 2], 1)  # told once
    grid.sick = set()
    monkeypatch.setattr("server.roster.time.monotonic", lambda: now + 22)
    assert found.look().nodes.tolist() == [0, 1, -1, -1]


def test_a_client_belongs_to_the_node_that_came_last() -> None:
    """A node that was killed is on Flower's list for a minute while its successor is there already."""
    hosts = {7: np.array([0, 1]), 5: np.array([2]), 9: np.array([1, 0])}
    found = roster(hosts, 4)
    assert found.ids == (9, 5)
    assert found.nodes.tolist() == [0, 0, 1, -1]


def test_waiting_ends_with_everyone_or_with_enough_after_the_patience_or_with_a_stop() -> None:
    grid, heard, stop = Doors([1, 2]), list[int](), StopRequest()
    found = roll(grid)
    began = time.monotonic()
    assert found.meet(EVERYONE, 2, stop, patience=0.4, waiting=heard.append).reachable.sum() == 2
    assert time.monotonic() - began >= 0.4
    assert heard == []
    assert found.meet(np.array([0, 1]), 2, stop, patience=60).reachable.sum() == 2  # all that are wanted: at once

    threading.Timer(0.3, grid.inside.add, [4]).start()
    assert found.meet(EVERYONE, 3, stop, waiting=heard.append).nodes.tolist() == [0, 1, -1, 2]
    assert heard == [2]
    stop.asked = True
    with pytest.raises(Stopped):
        found.meet(EVERYONE, 4, stop)


def settings(folder: Path, *overrides: str) -> dict[str, Any]:
    path = folder.with_suffix(".yaml")
    path.write_text(as_text(tiny(*overrides)))
    return {"scenario": str(path), "out": str(folder)}


def test_nodes_come_and_go_in_the_middle_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds 1 and 2 with clients 0 and 1; then node 1 has gone, nodes 3 and 4 have come."""
    flower.identify()
    monkeypatch.setattr(federation, "PATIENCE", 0.1)
    grid = Doors([1, 2])

    def fate(order: Order) -> str:
        if isinstance(order, TrainOrder) and order.round == 2:
            grid.inside = {2, 3, 4}
        return "ok"

    grid.fate = fate
    server_app(grid, flower.context(settings(tmp_path / "run"), {}))
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [sorted(e["clients"]) for e in events if e["event"] == "round"] == [[0, 1], [0, 1], [1, 2, 3], [1, 2, 3]]


class Slow(Doors):
    """Node 2 answers the training of round 1 when round 2 has begun."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        waiting = [each for each in message_ids if each in self._queue]
        slow = {each for each in waiting if self._late_one(self._queue[each])}
        second = any(m.metadata.message_type == "train" for m in self._queue.values()) and self.second
        return Nodes.pull_messages(self, [each for each in waiting if second or each not in slow])

    second = False

    def _late_one(self, message: Message) -> bool:
        if message.metadata.message_type != "train" or message.metadata.dst_node_id != 2:
            return False
        return bool(wire.decode(message.content).round == 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.second |= any(
            each.metadata.message_type == "train" and wire.decode(each.content).round == 2 for each in messages
        )
        return super().push_messages(messages)


def test_an_answer_after_its_deadline_is_written_down_and_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flower.identify()
    server_app(Slow([1, 2, 3, 4]), flower.context(settings(tmp_path / "run", "server.deadline=0.5"), {}))
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    first, second = [event for event in events if event["event"] == "round"][:2]
    assert sorted(first["clients"]) == [0, 2, 3]
    assert sorted(second["clients"]) == [0, 1, 2, 3]
    errors = [(e["client"], e["error"]) for e in events if e["event"] == "client_error"]
    assert errors == [(1, "no answer within server.deadline")]
    assert [(e["round"], e["clients"]) for e in events if e["event"] == "late"] == [(1, [1])]


def test_a_simulation_whose_one_node_cannot_start_fails_at_once(tmp_path: Path) -> None:
    flower.identify()
    started = time.monotonic()
    records = {"state": str(tmp_path / "state")}
    with pytest.raises(FederationError, match="node 1 could not introduce itself: ValueError: it is not well"):
        server_app(Doors([1], sick=[1]), flower.context({**settings(tmp_path / "run"), **records}, {}))
    assert time.monotonic() - started < 30
    assert "the run failed: node 1 could not" in (tmp_path / "run" / "error.log").read_text()
