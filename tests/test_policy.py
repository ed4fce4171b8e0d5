"""A node's own rules and its audit, through the ClientApp: what is not allowed is neither computed nor sent."""

import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message

from clients import audit, policy
from clients.app import app
from clients.audit import Unwritten
from clients.policy import Policy, Refused, of_environment
from clients.site import site
from fedcl import wire
from fedcl.config import Scenario, config_hash
from fedcl.engine import flower
from fedcl.errors import ConfigError
from fedcl.fingerprint import fingerprint
from fedcl.orders import ConsolidateOrder, EvaluateOrder, Order, ScoreOrder, TraceOrder, TrainOrder, Withheld
from fedcl.withholding import LEAST
from fedcl.world import as_text
from tests.federations import Clients, Uneven, tiny
from tests.nodes import SECRET

PARTITION = f"stream.partition={{kind: '{Uneven.__module__}:Uneven', sizes: [3, 4, 20]}}"  # client 3 has the rest, 21
SCENARIO = tiny(PARTITION, "engine.cohort=4", "evaluate.trace=1", "server.method=prototypes")
TEXT = as_text(SCENARIO)
HERE = site(TEXT, SECRET)
KINDS = {TrainOrder: "train", EvaluateOrder: "evaluate", ConsolidateOrder: "query.consolidate",
         ScoreOrder: "query.score", TraceOrder: "query.trace"}  # fmt: skip


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    flower.identify()
    for name in ("ALLOW", "MIN_COUNT", "AUDIT", "STATE"):
        monkeypatch.delenv(f"FEDCL_{name}", raising=False)
    monkeypatch.setenv("FEDCL_MIN_COUNT", "0")
    monkeypatch.setenv("FEDCL_TRUST", "tests")  # whose partition the scenario names


def order(kind: type[Order] = TrainOrder, clients: Any = (0, 1, 2, 3), scenario: Scenario = SCENARIO) -> Any:
    """Return an order of a kind to clients of task 0, of a server that knows them by no round."""
    k = np.array(clients, np.int64)
    zeros = np.zeros_like(k)
    facts: dict[str, Any] = {} if kind is EvaluateOrder else {"tasks": zeros}
    facts |= {"clocks": zeros} if kind in (TrainOrder, ScoreOrder, TraceOrder) else {}
    facts |= {"statistics": ["class_sums"]} if kind is ConsolidateOrder else {}
    return kind(
        round=1, cohort=0, clients=k, packs=[""] * len(k), rows=zeros, folder="",
        weights=Clients.of(scenario).initial, accepted=zeros, oldest=zeros, federation="tiny-1", sitting=1,
        fingerprint=fingerprint(as_text(scenario)), **facts,
    )  # fmt: skip


def node(folder: Path) -> Context:
    """Return a node that hosts all clients and keeps their records in a folder."""
    folder.mkdir(exist_ok=True)
    (folder / "secret").write_bytes(SECRET)
    return flower.context({}, {"partition-id": 0, "num-partitions": 1, "state": str(folder)})


def ask(asked: Order, at: Context, scenario: Scenario = SCENARIO) -> Any:
    """Return the ClientApp's reply."""
    message = Message(wire.encode(asked, config=as_text(scenario)), 1, KINDS[type(asked)])
    flower.number(message)
    return wire.decode(app(message, at).content)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What may leave.


@pytest.mark.parametrize(
    ("kind", "statistic"),
    [(TrainOrder, "delta"), (ConsolidateOrder, "class_sums"), (EvaluateOrder, "accuracy"), (ScoreOrder, "score"),
     (TraceOrder, "trace")],
)  # fmt: skip
def test_a_statistic_leaves_only_where_it_is_allowed(
    kind: type[Order], statistic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All others allowed: refused by one sentence, and the node's folder is as before. It alone allowed: answered."""
    at, others = node(tmp_path / "node"), [name for name in policy.KNOWN if name != statistic]
    before = files(tmp_path / "node")
    monkeypatch.setenv("FEDCL_ALLOW", ",".join(others))
    with pytest.raises(Refused, match=f"^statistic '{statistic}' must not leave this node: FEDCL_ALLOW allows "):
        ask(order(kind), at)
    assert files(tmp_path / "node") == before
    monkeypatch.setenv("FEDCL_ALLOW", "")
    with pytest.raises(Refused, match="allows nothing"):
        ask(order(kind), at)
    monkeypatch.setenv("FEDCL_ALLOW", f" {statistic} ,")
    assert ask(order(kind), at).clients.tolist() == [0, 1, 2, 3]


def test_a_forbidden_statistic_is_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even begun: what would train, and what would look up a record, is not called."""
    monkeypatch.setenv("FEDCL_ALLOW", "accuracy")

    def called(*_: Any, **__: Any) -> Any:
        raise AssertionError("the node began to work")

    monkeypatch.setattr("clients.work.work", called)
    monkeypatch.setattr("clients.versions.Versions.load", called)
    with pytest.raises(Refused):
        ask(order(), node(tmp_path / "node"))


def test_own_accuracy_in_a_consolidation_is_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missions tell how well each client does: class sums alone are not enough to allow that."""
    missions = tiny(PARTITION, "client.method=frozen", "server.method={name: prototypes, missions: true}")
    monkeypatch.setenv("FEDCL_ALLOW", "class_sums")
    with pytest.raises(Refused, match="'accuracy' must not leave"):
        ask(order(ConsolidateOrder, scenario=missions), node(tmp_path / "node"), missions)


def test_hello_is_always_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDCL_ALLOW", "")
    message = Message(wire.config_of(TEXT), 1, "query.hello")
    flower.number(message)
    assert wire.hosted(app(message, node(tmp_path / "node")).content).tolist() == [0, 1, 2, 3]


# How many samples it rests on.


def test_a_client_with_too_few_samples_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Visits of 3, 4, 20 and 21 samples, at least 4: the sum is that of clients 1, 2, 3 alone, to the bit.

    Client 0 has no record afterwards, and the sentence does not say how many samples it has.
    """
    monkeypatch.setenv("FEDCL_MIN_COUNT", "4")
    reply = ask(order(), node(tmp_path / "a"))
    assert reply.clients.tolist() == [1, 2, 3]
    assert reply.table["n"].tolist() == [4, 20, 21]
    assert (reply.errors, reply.withheld) == ([], [Withheld(client=0, least=4, figures=["visit"])])
    assert not (tmp_path / "a" / "client-000000").exists()
    monkeypatch.setenv("FEDCL_MIN_COUNT", "0")
    alone = ask(order(clients=[1, 2, 3]), node(tmp_path / "b"))
    assert reply.total.tobytes() == alone.total.tobytes()
    monkeypatch.setenv("FEDCL_MIN_COUNT", "22")
    before = files(tmp_path / "a")
    nothing = ask(order(), node(tmp_path / "a"))
    assert (nothing.clients.tolist(), nothing.total.any()) == ([], False)
    assert [each.client for each in nothing.withheld] == [0, 1, 2, 3]
    assert files(tmp_path / "a") == before


# The audit.


@pytest.mark.parametrize("kind", KINDS)
def test_the_audit_lists_every_byte_of_a_reply(
    kind: type[Order], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are those of the reply's arrays but for the clients' numbers; shapes and dtypes too."""
    path = tmp_path / "audit.jsonl"
    monkeypatch.setenv("FEDCL_AUDIT", str(path))
    monkeypatch.setenv("FEDCL_MIN_COUNT", "1")
    reply = ask(order(kind), node(tmp_path / "node"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    arrays = [value for name, value in vars(reply).items() if isinstance(value, np.ndarray) and name != "clients"]
    sent = [*arrays, *reply.table.values()]
    listed = lines(path)
    assert sum(line["bytes"] for line in listed) == sum(each.nbytes for each in sent) > 0
    assert sorted((line["dtype"], line["shape"]) for line in listed) == sorted(
        (str(each.dtype), list(each.shape)) for each in sent
    )
    for line in listed:
        assert (line["round"], line["clients"], line["federation"]) == (1, [0, 1, 2, 3], "tiny-1")
        assert line["config_hash"] == config_hash(SCENARIO)
        assert line["time"].endswith("+00:00")
    assert {line["statistic"] for line in listed} == set(policy.statistics(order(kind)))


def test_a_sum_of_two_statistics_is_listed_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """delta and sketch: two lines whose lengths are those of their layouts, in that order."""
    riding = tiny("server.method=fot")
    monkeypatch.setenv("FEDCL_AUDIT", str(tmp_path / "audit"))
    asked = replace(order(scenario=riding), statistics=["delta", "sketch"], leaving=np.array([1, 1, 0, 0]))
    reply = ask(asked, node(tmp_path / "node"), riding)
    here = site(as_text(riding), SECRET)
    sizes = [(line["statistic"], line["shape"]) for line in lines(tmp_path / "audit") if line["part"] == "total"]
    assert sizes == [(name, [here.layout([name]).size]) for name in ("delta", "sketch")]
    assert sum(shape[0] for _, shape in sizes) == len(reply.total)


def test_refusals_are_listed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forbidden statistic, a client with too little, an unreadable order: one line each, with its sentence."""
    at, path = node(tmp_path / "node"), tmp_path / "audit"
    monkeypatch.setenv("FEDCL_AUDIT", str(path))
    monkeypatch.setenv("FEDCL_ALLOW", "delta")
    monkeypatch.setenv("FEDCL_MIN_COUNT", "4")
    with pytest.raises(Refused):
        ask(order(ScoreOrder), at)
    ask(order(), at)
    with pytest.raises(wire.BadMessage):
        ask(replace(order(), fingerprint="f" * 64), at)
    refused = [(line["clients"], line["refused"][:20]) for line in lines(path) if "refused" in line]
    assert refused == [
        ([0, 1, 2, 3], "statistic 'score' mu"), ([0, 1, 2, 3], "fingerprint = 'fffff"),
    ]  # fmt: skip
    assert [(line["clients"], line["withheld"]) for line in lines(path) if "withheld" in line] == [([0], ["visit"])]
    assert all(line["federation"] == "tiny-1" and line["round"] == 1 for line in lines(path))


@pytest.mark.parametrize("fault", ["a folder", "no folder", "the disk is full"])
def test_nothing_leaves_without_its_audit(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply is refused, whatever keeps the audit from being written; the server hears why."""
    path = {"a folder": tmp_path, "no folder": tmp_path / "none" / "audit"}.get(fault, tmp_path / "audit")
    monkeypatch.setenv("FEDCL_AUDIT", str(path))
    if fault == "the disk is full":
        sync = os.fsync

        def full(opened: int) -> None:
            if path.exists() and os.fstat(opened).st_ino == path.stat().st_ino:
                raise OSError(28, "No space left on device")
            sync(opened)

        monkeypatch.setattr(audit.os, "fsync", full)
    with pytest.raises(Unwritten, match=r"FEDCL_AUDIT = .* cannot be written .*: nothing leaves this node"):
        ask(order(EvaluateOrder), node(tmp_path / "node"))


def test_an_audit_line_is_on_the_disk_before_the_reply_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is encoded is already listed and synced; a torn line before it is ended, not continued."""
    path, synced = tmp_path / "audit", [0]
    path.write_text('{"torn')
    monkeypatch.setenv("FEDCL_AUDIT", str(path))
    sync, encode = os.fsync, wire.encode

    def seen(opened: int) -> None:
        sync(opened)
        synced[0] = os.fstat(opened).st_size

    def encoded(message: Any, **rest: Any) -> Any:
        if not isinstance(message, Order):
            assert synced[0] == path.stat().st_size > len('{"torn')
        return encode(message, **rest)

    monkeypatch.setattr(audit.os, "fsync", seen)
    monkeypatch.setattr(wire, "encode", encoded)
    ask(order(EvaluateOrder), node(tmp_path / "node"))
    torn, *whole = path.read_text().splitlines()
    assert torn == '{"torn'
    assert all(json.loads(line)["statistic"] == "accuracy" for line in whole)


# The environment.


def test_the_policy_of_an_environment() -> None:
    assert of_environment({}) == of_environment({"FEDCL_MIN_COUNT": ""}) == Policy()
    assert Policy().min_count == LEAST == 5
    assert of_environment({"FEDCL_ALLOW": "delta, accuracy", "FEDCL_MIN_COUNT": "5", "FEDCL_AUDIT": "/a"}) == Policy(
        allow=frozenset({"delta", "accuracy"}), min_count=5, audit=Path("/a")
    )
    assert of_environment({"FEDCL_ALLOW": ""}) == Policy(allow=frozenset())
    with pytest.raises(ConfigError, match="unknown statistic 'dleta'; did you mean 'delta'"):
        of_environment({"FEDCL_ALLOW": "dleta"})
    for number in ("-1", "many", "1.5", "²"):
        with pytest.raises(ConfigError, match=r"FEDCL_MIN_COUNT = .*: must be a whole number"):
            of_environment({"FEDCL_MIN_COUNT": number})
