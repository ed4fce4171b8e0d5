"""Distrust on both sides: a hostile node's answers count for nothing, and a node does nothing for a hostile server."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.versions import OldSitting
from clients.work import train
from fedcl import api, plan, wire
from fedcl.answers import Answer, Layout
from fedcl.config import ServerConfig
from fedcl.engine import flower
from fedcl.orders import (
    ClientError,
    ConsolidateOrder,
    EvaluateOrder,
    EvaluateReply,
    Order,
    ScoreReply,
    TrainOrder,
    TrainReply,
)
from fedcl.world import as_text, world
from server import evaluation, scoring
from server.acceptance import Known, update_problem
from server.exchange import FACTS, Size
from tests.federations import Clients, journal, tiny
from tests.nodes import Nodes
from tests.test_policy import SCENARIO, _identity, ask, files, node, order
from tests.test_versions import sit

__all__ = ["_identity"]  # a fixture: no policy of the environment

# A hostile node.

HOSTILE = 1  # client, and node, that answers nonsense: from round 2 on one fault a round


class Hostile(Nodes):
    """Four honest nodes, one client each; answers of one of them are exchanged on their way, by their round."""

    def __init__(self, spoilers: dict[int, Any]) -> None:
        super().__init__(4)
        self.spoilers = spoilers
        self.earlier: dict[int, RecordDict] = {}

    def _reply(self, message: Message) -> Message:
        answer = super()._reply(message)
        if message.metadata.message_type != "train":
            return answer
        asked = wire.decode(message.content)
        if asked.clients.tolist() == [HOSTILE]:
            self.earlier[asked.round] = answer.content
            if asked.round in self.spoilers:
                content = self.spoilers[asked.round](self, answer.content)
                answer.content = answer.content if content is None else content
        return answer


def changed(**changes: Any) -> Callable[[Hostile, RecordDict], RecordDict]:
    """Return a spoiler that changes fields of the reply: values, or functions of the reply."""

    def spoil(_: Hostile, content: RecordDict) -> RecordDict:
        reply = wire.decode(content)
        fields = {name: each(reply) if callable(each) else each for name, each in changes.items()}
        return wire.encode(replace(reply, **fields))

    return spoil


def raw(record: str, name: str, **claims: Any) -> Callable[[Hostile, RecordDict], None]:
    """Return a spoiler that puts an array with these claims into the message."""

    def spoil(_: Hostile, content: RecordDict) -> None:
        facts = {"dtype": "float32", "shape": (1,), "stype": wire.RAW, "data": bytes(4), **claims}
        content.array_records[record][name] = Array(**facts)

    return spoil


def facts(**changes: Any) -> Callable[[Hostile, RecordDict], None]:
    def spoil(_: Hostile, content: RecordDict) -> None:
        content["facts"] = wire._config({**wire._facts(content), **changes})

    return spoil


def worded(_: Hostile, content: RecordDict) -> None:
    del content.array_records["arrays"]["total"]
    content["facts"] = wire._config({**wire._facts(content), "total": "many"})


def column(name: str, values: Any) -> Callable[[TrainReply], Any]:
    return lambda reply: {**reply.table, name: np.array(values)}


def spoilt(at: int, value: float) -> Callable[[TrainReply], Any]:
    def total(reply: TrainReply) -> Any:
        flat = reply.total.copy()
        flat[at] = value
        return flat

    return total


def claims(samples: int) -> Callable[[Hostile, RecordDict], RecordDict]:
    """Return a spoiler that claims so many samples, in the table and in the weight of the sum alike."""
    return changed(table=column("n", [samples]), total=spoilt(-1, samples))


def nested(depth: int) -> Any:
    inner: Any = 1
    for _ in range(depth):
        inner = [inner]
    return inner


ANOTHER = [ClientError(client=2, error="it was not me", traceback="")]
FAULTS: dict[str, tuple[Any, str]] = {
    "NaN": (changed(total=spoilt(3, np.nan)), "not finite in delta/"),
    "infinite": (changed(total=spoilt(3, np.inf)), "not finite in delta/"),
    "wrong shape": (changed(total=lambda reply: reply.total[:-1]), "instead of (65,)"),
    "wrong dtype": (changed(total=lambda reply: reply.total.astype(np.float64)), "in float64, not in float32"),
    "10 GB claimed": (raw("arrays", "total", shape=(2_500_000_000,)), "claims shape (2500000000,) but brings 4 bytes"),
    "claims beside a 0": (raw("arrays", "total", shape=(0, 2**62), data=b""), "no array here has such a shape"),
    "many dimensions": (raw("arrays", "total", shape=(1,) * 100), "no array here has such a shape"),
    "too large": (raw("arrays", "more", shape=(10**6,), data=bytes(4 * 10**6)), "bytes of numbers, where"),
    "old round": (changed(round=1), "not the answer of cohort 1 in round"),
    "replayed": (lambda grid, _: grid.earlier[1], "not the answer of cohort"),
    "unknown statistic": (raw("table", "x" * 200, dtype="float64", data=bytes(8)), "a name of more than 100 letters"),
    "many columns": (changed(table=lambda r: {**r.table, **{str(n): r.table["n"] for n in range(80)}}), "than 64 colu"),
    "negative count": (changed(table=column("n", [-5])), "its table lacks the numbers of samples"),
    "enormous count": (changed(table=column("n", [2**62])), "its table lacks the numbers of samples"),
    "weight": (changed(total=spoilt(-1, 1e30)), "the weights of its updates add up to 1e+30, not to "),
    "more samples": (claims(500), f"n = 500 of client {HOSTILE}, but its data by the stream make it "),
    "fewer samples": (claims(1), f"n = 1 of client {HOSTILE}, but its data by the stream make it "),
    "more steps": (changed(table=column("steps", [500])), f"steps = 500 of client {HOSTILE}, but its data by the str"),
    "other clients": (changed(clients=np.array([2])), "it covers clients that were not asked"),
    "errors of others": (changed(errors=ANOTHER), "it names errors of clients that were not asked"),
    "missing column": (changed(table=lambda reply: {"n": reply.table["n"]}), "its table lacks the numbers"),
    "truth values": (changed(table=column("norm", [True])), "its table holds something else than numbers"),
    "text for numbers": (worded, "'total' of a TrainReply"),
    "text for a round": (facts(round="2"), "'round' of a TrainReply"),
    "nested facts": (facts(more=nested(200)), ""),
    "deep facts": (lambda _, content: content.config_records["facts"].update(json="[" * 50_000), "readable facts"),
    "enormous facts": (facts(more="x" * (2 * FACTS + 1)), "letters beside its numbers"),
}  # fmt: skip


ROUNDS = {fault: round for round, fault in enumerate(FAULTS, 2)}
READ = "nested facts"  # what no field of a reply asks for is not looked at
FOUR = tiny(f"stream.schedule.rounds_per_task={len(FAULTS) // 2 + 2}", "checkpoint.keep=1")


def told(folder: Path) -> list[tuple[int, int, str]]:
    """Return round, client and reason of each answer that was refused."""
    events = [event for event in journal(folder) if event["event"] == "client_error"]
    return [(event["round"], event["client"], event["error"]) for event in events]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Run directories of a run with a fault a round, and of one in which the client does not answer in those rounds."""
    flower.identify()
    folder, silent = tmp_path_factory.mktemp("hostile"), {ROUNDS[fault] for fault in FAULTS if fault != READ}

    def mute(asked: Order) -> str:
        alone = isinstance(asked, TrainOrder) and asked.clients.tolist() == [HOSTILE]
        return "deaf" if alone and asked.round in silent else "ok"

    hostile = Hostile({round: FAULTS[fault][0] for fault, round in ROUNDS.items()})
    assert sit(folder / "hostile", hostile, FOUR) == "finished"
    assert sit(folder / "mute", Nodes(4, mute), FOUR) == "finished"
    return folder / "hostile", folder / "mute"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_hostile_answer_is_refused_by_name(fault: str, runs: tuple[Path, Path]) -> None:
    """One event of its round with the client and the reason, and a line in error.log."""
    found = [(client, error) for round, client, error in told(runs[0]) if round == ROUNDS[fault]]
    if fault == READ:
        assert found == []
        return
    ((client, error),) = found
    assert client == HOSTILE
    assert error.startswith("answer refused: ")
    assert FAULTS[fault][1] in error
    assert f"round {ROUNDS[fault]}, client {HOSTILE}: {error}" in (runs[0] / "error.log").read_text()


def test_hostile_answers_count_for_nothing(runs: tuple[Path, Path]) -> None:
    """Weights and accuracies are those of the run in which they did not come, to the bit; nobody else is named."""
    results, expected = (api.load(folder).results for folder in runs)
    for name in ("weights_sha256", "metrics", "accuracy_matrix"):
        assert results[name] == expected[name]
    assert {client for _, client, _ in told(runs[0])} == {HOSTILE}
    assert len(told(runs[0])) == len(told(runs[1])) == len(FAULTS) - 1


# What the server knows of the data.

UNEVEN = tiny("stream.partition={kind: 'tests.federations:Uneven', sizes: [3, 4, 20]}", "evaluate.samples=2")
STREAM = world(as_text(UNEVEN))[1]


def test_what_is_known_of_a_visit_is_what_clients_count() -> None:
    """Under every curriculum and clock, and for the joint oracle: n and steps of real visits, in whatever order."""
    for overrides in (
        ["client.epochs=3"], ["stream.joint=true"], ["stream.schedule.online=true"], ["client.curriculum=cyclical"],
        ["client.curriculum=curr"], ["stream.schedule.kind=own", "client.batch=1"],
    ):  # fmt: skip
        clients = Clients.of(tiny("stream.partition=dirichlet", *overrides))
        stream, scenario, everyone = clients.site.stream, clients.site.scenario, np.zeros(4, np.int64)
        ready = plan.available(stream, 1, everyone, joint=scenario.stream.joint)
        own = scenario.client
        cohorts = plan.plan_round(
            stream, 1, everyone, ready, everyone, cohort=3, epochs=own.epochs, batch=own.batch,
            joint=scenario.stream.joint,
        )  # fmt: skip
        known = Known.of_visits(stream, cohorts, epochs=own.epochs, batch=own.batch)
        assert known.clients.tolist() == sorted(ready.tolist())
        for each in cohorts:
            table = clients.carry_out(clients.initial, 1, each.clients, each.tasks, each.clocks).table
            assert known.problem(each.clients, table) is None
            for name in ("n", "steps"):
                said = str(known.problem(each.clients, {**table, name: table[name] + 1}))
                assert said.startswith(f"{name} = {table[name][0] + 1} of client {each.clients[0]}, but its data")


def test_who_is_not_known_is_not_compared() -> None:
    """Clients whose counts only their node knows are left out of what is known; the others still are compared."""
    known = Known.of(np.array([7, 2]), n=np.array([70, 20]))
    assert known.problem(np.array([2, 5, 7]), {"n": np.array([20, 999, 70])}) is None
    assert known.problem(np.array([5]), {"n": np.array([999])}) is None
    assert known.problem(np.zeros(0, np.int64), {"n": np.zeros(0, np.int64)}) is None
    assert known.problem(np.array([2]), {}) is None
    said = known.problem(np.array([5, 7]), {"n": np.array([999, 71])})
    assert said == "n = 71 of client 7, but its data by the stream make it 70"


def test_other_replies_count_what_the_stream_says_too() -> None:
    """Evaluations, scores and statistics of a task: the true numbers pass, one more does not."""
    k = np.arange(4)
    fields: dict[str, Any] = {"round": 1, "cohort": 0, "clients": k, "table": {}}
    tests = Known.of_tests(STREAM, k, UNEVEN.evaluate.samples)
    items = np.minimum(STREAM.test.count, 2)
    for more in (0, 1):
        there = items + more
        said = evaluation._problem(EvaluateReply(**fields, correct=0 * there, items=there), 2, tests)
        assert (said is None) == (more == 0)
    assert str(said).startswith(f"items = {there[0].tolist()} of client 0, but its data by the stream make it")
    visits = Known.of(k, n=np.array([3, 4, 20, 21]))
    for last, fine in ((21, True), (22, False)):
        reply = ScoreReply(**fields, losses=np.ones(4), counts=np.array([3, 4, 20, last]))
        assert (scoring._problem(visits, reply) is None) == fine


@pytest.mark.parametrize("method", ["prototypes", "fedewc"])
def test_statistics_of_more_samples_than_a_task_has_are_refused(method: str, tmp_path: Path) -> None:
    """Twice the sums of twice the samples agree with each other, not with the stream: they stay pending, unused."""

    class Doubling(Nodes):
        def _reply(self, message: Message) -> Message:
            answer = super()._reply(message)
            if message.metadata.message_type == "query.consolidate":
                reply = wire.decode(answer.content)
                if reply.clients.tolist() == [HOSTILE]:
                    table = {"n": 2 * reply.table["n"]}
                    answer.content = wire.encode(replace(reply, total=2 * reply.total, table=table))
            return answer

    client = "frozen" if method == "prototypes" else method
    asked = tiny(f"server.method={method}", f"client.method={client}")
    assert sit(tmp_path / "run", Doubling(4), asked) == "finished"
    found = told(tmp_path / "run")
    assert {client for _, client, _ in found} == {HOSTILE}
    assert all("by the stream make it" in error and "refused: n = " in error for *_, error in found)
    assert len(found) >= 2


def test_a_node_with_a_least_count_answers_for_all_samples_of_a_client_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every answer has the counts that the server knows: none is refused, one client's visits stay there."""
    monkeypatch.setenv("FEDCL_MIN_COUNT", "4")
    uneven = "stream.partition={kind: 'tests.federations:Uneven', sizes: [3, 14, 5]}"
    assert sit(tmp_path / "run", Nodes(2), tiny(uneven, "evaluate.clients=0")) == "finished"
    assert told(tmp_path / "run") == []
    withheld = [event for event in journal(tmp_path / "run") if event["event"] == "withheld"]
    assert [(event["client"], event["figures"]) for event in withheld if event["figures"] == ["visit"]] == [
        (0, ["visit"])
    ]
    rounds = [event for event in journal(tmp_path / "run") if event["event"] == "round"]
    assert [sorted(event["clients"]) for event in rounds] == [[1, 2, 3]] * 4


def test_a_size_is_bounded_before_it_is_read() -> None:
    """8 bytes a number of the layout and 64 columns a client, 64 KiB of text a client and once more: one less fits."""
    size = Size(whole=10, each=2)

    def problem(numbers: int, letters: int) -> str | None:
        content = RecordDict({"arrays": wire.pack({"a": np.zeros(numbers)})})
        content["facts"] = wire.ConfigRecord({"json": "x" * letters})
        return size.problem(Message(content, 1, "train"), 3)

    flower.identify()
    assert problem(10 + 3 * 66, 4 * FACTS) is None
    assert problem(11 + 3 * 66, 0) == "it brings 1,672 bytes of numbers, where 1,664 are the most"
    assert "letters beside its numbers" in str(problem(0, 4 * FACTS + 1))


# The norm bound.

LAYOUT = Layout((("delta/w", (3,)), ("weight", ())))


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0.0, 1.0)), min_size=1, max_size=5), st.floats(1.1, 100.0))
@settings(max_examples=60)
def test_no_sum_of_bounded_updates_is_refused_and_a_longer_one_is(parts: Any, beyond: float) -> None:
    """sum n_k u_k with ||u_k|| <= L = 2 is at most L sum n_k; the same direction made longer than that is refused."""
    server, n = ServerConfig(max_update_norm=2.0), np.array([count for count, _ in parts])
    direction = np.array([0.6, 0.0, 0.8])
    total = sum(count * 2.0 * share * direction for count, share in parts)
    table = {"n": n, "norm": np.array([2.0 * share for _, share in parts])}

    def answer(delta: Any, weight: float) -> Answer:
        return Answer(LAYOUT, torch.tensor([*delta, weight], dtype=torch.float64))

    assert update_problem(server, answer(total, n.sum()), table) is None
    longer = direction * 2.0 * n.sum() * beyond
    said = str(update_problem(server, answer(longer, n.sum()), table))
    assert said.startswith(f"its mean update has norm {2 * beyond:.3g}, more than server.max_update_norm = 2")
    assert "add up to" in str(update_problem(server, answer(total, n.sum() + 1), table))
    uniform = ServerConfig(weights="uniform")
    mean = sum(2.0 * share * direction for _, share in parts)
    assert update_problem(uniform, answer(mean, len(n)), table) is None
    most, beyond_all = table["norm"].sum(), str(update_problem(uniform, answer(mean + direction, len(n)), table))
    assert beyond_all.endswith(f"but its table makes it {most / len(n):.3g} at most")


def test_an_update_beyond_the_bound_is_clipped_or_its_client_refused() -> None:
    """The bound between the second and third longest of four updates: clip takes all, refuse names two."""
    plain = Clients.of(tiny("engine.stack=2"))
    norms = plain.visit(plain.initial, [0, 1, 2, 3]).table["norm"]
    bound = float(np.sort(norms)[1:3].mean())
    for kind in ("clip", "refuse"):
        own = Clients.of(tiny("engine.stack=2", f"server.max_update_norm={bound}", f"server.norm_bound={kind}"))
        zeros = np.zeros(4, np.int64)
        asked = TrainOrder(round=1, cohort=0, clients=np.arange(4), tasks=zeros, clocks=zeros, weights=own.initial,
                           packs=[""] * 4, rows=zeros, folder="")  # fmt: skip
        reply = train(own.site, asked, own)
        kept = np.flatnonzero(norms <= bound) if kind == "refuse" else np.arange(4)
        assert reply.clients.tolist() == kept.tolist()
        assert sorted(each.client for each in reply.errors) == sorted(set(range(4)) - set(kept.tolist()))
        assert all("longer than server.max_update_norm = " in each.error for each in reply.errors)
        assert sorted(own.held) == kept.tolist()
        if kind == "refuse":
            alone = plain.visit(plain.initial, kept.tolist()).total
            np.testing.assert_allclose(reply.total, alone, rtol=1e-5, atol=1e-7)


def test_a_node_that_does_not_clip_is_refused(tmp_path: Path) -> None:
    """Its sum is longer than the bound allows: named, and the others count."""
    bound = tiny("server.max_update_norm=0.05")

    def longer(_: Hostile, content: RecordDict) -> RecordDict:
        reply = wire.decode(content)
        flat = reply.total.copy()
        flat[:-1] *= 1e4
        return wire.encode(replace(reply, total=flat))

    assert sit(tmp_path / "run", Hostile({2: longer}), bound) == "finished"
    ((round, client, error),) = told(tmp_path / "run")
    assert (round, client) == (2, HOSTILE)
    assert "more than server.max_update_norm = 0.05" in error


# A hostile server.


def weights(value: float) -> Any:
    found = order().weights.copy()
    found[5] = value
    return found


ORDERS: dict[str, tuple[Any, str]] = {
    "forbidden statistic": (lambda: replace(order(), statistics=["delta"]), "statistic 'delta' must not leave"),
    "a model that does not fit": (lambda: replace(order(), weights=np.zeros(7, np.float32)), "weights: float32 of sha"),
    "another dtype": (lambda: replace(order(), weights=order().weights.astype(np.float64)), "weights: float64 of shap"),
    "NaN weights": (lambda: replace(order(), weights=weights(np.nan)), "weights: hold numbers that are not finite"),
    "infinite weights": (lambda: replace(order(), weights=weights(np.inf)), "weights: hold numbers that are not fin"),
    "unknown statistic": (lambda: replace(order(), statistics=["dleta"]), "statistics: unknown 'dleta'; did you mean"),
    "another statistic": (lambda: replace(order(), statistics=["fisher"]), "'fisher' is not among what this server m"),
    "no statistic": (lambda: replace(order(), statistics=[]), "statistics = []: must be some"),
    "consolidates delta": (lambda: replace(order(ConsolidateOrder), statistics=["delta"]), "'delta' is not among"),
    "clients not hosted": (lambda: order(clients=[0, 4]), "clients = [4]: not hosted by this node, which has [0, 1,"),
    "a client twice": (lambda: order(clients=[0, 0]), "clients = [0, 0]: must be some, each once"),
    "nobody": (lambda: order(clients=[]), "clients = []: must be some"),
    "other fingerprint": (lambda: replace(order(), fingerprint="0" * 64), "fingerprint = '000000000000' is not this"),
    "no fingerprint": (lambda: replace(order(), fingerprint=""), "fingerprint = '' is not this node's"),
    "lower sitting": (lambda: replace(order(), sitting=1), "an order of a server that has died: sitting = 1"),
    "negative sitting": (lambda: replace(order(), sitting=-1), "sitting = -1: must be at least 0"),
    "long name": (lambda: replace(order(), federation="x" * 201), "federation = 'xxxxx"),
    "round 0": (lambda: replace(order(), round=0), "round = 0: must be at least 1 and at most 4"),
    "task out of range": (lambda: replace(order(), tasks=np.full(4, 2)), "tasks = [2, 2, 2, 2]: must be between 0 an"),
    "all tasks": (lambda: replace(order(), tasks=np.full(4, -1)), "tasks = [-1, -1, -1, -1]: must be between 0 and 1"),
    "clock out of range": (lambda: replace(order(), clocks=np.full(4, 9)), "clocks = [9, 9, 9, 9]: must be between"),
    "leaving": (lambda: replace(order(), leaving=np.full(4, 3)), "leaving = [3, 3, 3, 3]: must be 0 or 1"),
    "NaN shared": (lambda: replace(order(), shared={"a": np.array([np.nan])}), "shared.a: holds numbers that are not"),
    "too much shared": (lambda: replace(order(), shared={"a": np.zeros(1_100_000)}), "shared: 1,100,000 numbers, more"),
    "NaN classifier": (lambda: replace(order(EvaluateOrder), classifier={"h": np.array([np.nan])}), "classifier.h: ho"),
    "shared by nobody": (lambda: replace(order(), shared={"a": np.zeros(3)}), "shared.a: this server method sends no"),
    "half a classifier": (
        lambda: replace(order(EvaluateOrder), classifier={"prototypes": np.zeros((4, 6))}), "classifier.seen: is miss"
    ),
    "another classifier": (
        lambda: replace(order(EvaluateOrder), classifier={"ridge": np.zeros((6, 4))}), "classifier.ridge: this server m"
    ),
    "a folder": (lambda: replace(order(), folder="/etc"), "folder = '/etc': this node keeps its clients' records its"),
}  # fmt: skip


@pytest.mark.parametrize("what", ORDERS)
def test_a_node_does_nothing_for_a_hostile_order(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence; its records and what it remembers are as before; its audit tells of the refusal alone."""
    at, audit = node(tmp_path / "node"), tmp_path / "audit"
    ask(replace(order(), sitting=2), at)
    before = files(tmp_path / "node")
    assert len([name for name in before if name.endswith(".state")]) == 4
    monkeypatch.setenv("FEDCL_AUDIT", str(audit))
    if what == "forbidden statistic":
        monkeypatch.setenv("FEDCL_ALLOW", "accuracy,score")
    make, said = ORDERS[what]
    asked = make() if "sitting" in what else replace(make(), sitting=2)
    with pytest.raises((wire.FederationError, OldSitting)) as caught:
        ask(asked, at)
    assert said in str(caught.value)
    assert files(tmp_path / "node") == before
    (line,) = (json.loads(each) for each in audit.read_text().splitlines())
    assert line["refused"] == str(caught.value)
    assert line["round"] == asked.round


def test_an_order_of_an_honest_server_is_carried_out(tmp_path: Path) -> None:
    """What the hostile ones are changed from is answered, so that each refusal is for what was changed."""
    assert ask(order(), node(tmp_path / "a"), SCENARIO).clients.tolist() == [0, 1, 2, 3]
    assert ask(order(EvaluateOrder), node(tmp_path / "b"), SCENARIO).clients.tolist() == [0, 1, 2, 3]
    assert ask(order(ConsolidateOrder), node(tmp_path / "c"), SCENARIO).clients.tolist() == [0, 1, 2, 3]
