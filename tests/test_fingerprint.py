"""Server and node work together only where both have the same installed: hello, orders, and the server's sittings."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict

import fedcl.fingerprint
from clients import node
from fedcl import wire
from fedcl.engine import flower
from fedcl.errors import FederationError
from fedcl.fingerprint import fingerprint
from fedcl.interrupt import StopRequest
from fedcl.orders import TrainOrder
from fedcl.world import as_text
from server import federation
from server.app import app as server_app
from server.names import Table
from server.roster import Roll
from server.sittings import sit
from tests.federations import tiny
from tests.nodes import Nodes
from tests.test_versions import sit as start

TEXT = as_text(tiny())


def other_version(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the fingerprint of the same text under another version of fedcl."""
    with monkeypatch.context() as patch:
        patch.setattr(fedcl.fingerprint, "__version__", "9.9.9")
        return fingerprint.__wrapped__(TEXT)


def test_a_fingerprint_is_of_what_results_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Version, settings, model, methods and what they answer change it; where a run happens does not."""
    changes = ("seed=1", "model.width=7", "client.method=er", "server.method=fot", "server.max_update_norm=1")
    found = {fingerprint(as_text(tiny(change))) for change in changes}
    assert len(found | {fingerprint(TEXT), other_version(monkeypatch)}) == len(changes) + 2
    assert all(len(each) == 64 for each in found)
    assert fingerprint(as_text(tiny("engine.kind=ray", "engine.workers=3"))) == fingerprint(TEXT)
    fingerprint(TEXT)
    hits = fingerprint.cache_info().hits
    fingerprint(TEXT)
    assert fingerprint.cache_info().hits == hits + 1


class Strange(Nodes):
    """Nodes of which some introduce themselves in their own way."""

    def __init__(self, nodes: int, strange: dict[int, RecordDict]) -> None:
        super().__init__(nodes)
        self.strange = strange

    def _carry_out(self, message: Message) -> Message:
        answer = super()._carry_out(message)
        number = message.metadata.dst_node_id
        if message.metadata.message_type == "query.hello" and number in self.strange:
            answer.content = self.strange[number]
        return answer


def test_nodes_with_another_fingerprint_are_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Node 2 has another version, node 3 says none, node 4 floats; clients 0 stays, and each reason is told once."""
    flower.identify()
    told: list[str] = []
    strange = {
        2: wire.hello(np.array([1]), other_version(monkeypatch)),
        3: RecordDict({"arrays": wire.pack({"clients": np.array([2])})}),
        4: RecordDict({"arrays": wire.pack({"clients": np.zeros(2)})}),
    }
    roll = Roll(grid=Strange(4, strange), config=TEXT, clients=4, refused=told.append, table=Table(clients=4))
    roster = roll.meet(np.arange(4), 0, StopRequest(), patience=0.3)
    assert roster.nodes.tolist() == [0, -1, -1, -1]
    other = other_version(monkeypatch)[:12]
    assert told[0].startswith("the node of clients 1 is left out: its fingerprint ")
    assert f"{other!r} is not the server's {fingerprint(TEXT)[:12]!r}" in told[0]
    assert "without readable facts" in told[1]
    assert "hello without a list of clients" in told[2]
    assert len(told) == 3


def test_a_server_leaves_such_a_node_out_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client is in no round, and error.log says why."""
    flower.identify()
    monkeypatch.setattr(federation, "PATIENCE", 0.2)
    grid = Strange(4, {2: wire.hello(np.array([1]), other_version(monkeypatch))})
    server_app(grid, flower.context(_asked(tmp_path / "run"), {}))
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert {client for event in events if event["event"] == "round" for client in event["clients"]} == {0, 2, 3}
    assert (tmp_path / "run" / "error.log").read_text().startswith("the node of clients 1 is left out: its fingerprint")


def _asked(folder: Path) -> dict[str, Any]:
    path = folder.with_suffix(".yaml")
    path.write_text(as_text(tiny()))
    return {"scenario": str(path), "out": str(folder)}


def test_a_node_refuses_an_order_with_another_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it trains: nothing is kept, not even the sitting."""
    flower.identify()
    at, zeros = RecordDict(), np.zeros(1, np.int64)
    order = TrainOrder(
        round=1, cohort=0, clients=zeros, packs=[""], rows=zeros, folder="", weights=np.zeros(70, np.float32),
        tasks=zeros, clocks=zeros, accepted=zeros, oldest=zeros, federation="a", sitting=1,
    )  # fmt: skip
    for mark in ("", other_version(monkeypatch)):
        content = wire.encode(replace(order, fingerprint=mark), config=TEXT)
        with pytest.raises(wire.BadMessage, match=f"fingerprint = '{mark[:12]}' is not this node's"):
            node.answer("train", content, {}, at)
    assert not at.array_records
    assert "sittings" not in at.config_records


def test_sittings_count_the_starts_of_a_run_directory(tmp_path: Path) -> None:
    """1, 2, 3 under one name, which another directory does not share; a damaged file is not begun anew."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    names = [sit(tmp_path / "a", "tiny") for _ in range(3)]
    assert [number for _, number in names] == [1, 2, 3]
    assert len({name for name, _ in names}) == 1
    assert names[0][0].startswith("tiny-")
    assert sit(tmp_path / "b", "tiny")[0] != names[0][0]
    (tmp_path / "a" / "sittings").write_text('{"federation": "tiny"}')
    with pytest.raises(FederationError, match="sittings is damaged"):
        sit(tmp_path / "a", "tiny")


@pytest.mark.parametrize("packs", [True, False])
def test_orders_carry_the_sitting_where_nodes_keep_the_records(packs: bool, tmp_path: Path) -> None:
    """A run directory started twice: 1, then 2; in simulation 0, and no file."""
    flower.identify()
    seen: set[tuple[str, int]] = set()

    def fate(order: Any) -> str:
        seen.add((order.fingerprint, order.sitting))
        return "dies" if order.round == 2 and order.sitting < 2 and not packs else "ok"

    grid = Nodes(4, fate)
    ends = [start(tmp_path / "run", grid, tiny(), packs=packs) for _ in range(1 if packs else 2)]
    own = fingerprint(TEXT)
    assert ends == (["finished"] if packs else ["died", "finished"])
    assert seen == ({(own, 0)} if packs else {(own, 1), (own, 2)})
    assert (tmp_path / "run" / "sittings").exists() is not packs
