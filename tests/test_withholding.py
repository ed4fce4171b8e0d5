"""What rests on too few samples stays on its node, figure by figure; the rest of a client's figures leave."""

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.consolidation import consolidate
from clients.evaluation import evaluate
from clients.policy import Policy
from clients.site import site
from clients.trace import trace
from fedcl import cli_real, wire
from fedcl.answers import Answer, borrowed
from fedcl.config import Scenario, load
from fedcl.engine import choice
from fedcl.orders import ConsolidateOrder, EvaluateOrder, EvaluateReply, ScoreOrder, TraceOrder, TrainOrder, Withheld
from fedcl.streams import Dataset, Stream, build_stream
from fedcl.withholding import LEAST, of_task
from tests.federations import Clients, tiny
from tests.nodes import SECRET, Nodes
from tests.test_policy import SCENARIO, TEXT, _identity, ask, lines, node, order
from tests.test_versions import sit

__all__ = ["_identity"]  # a fixture: no policy of the environment

STORE = Clients.of(SCENARIO)


def counts_of(reply: Any, least: int) -> Any:
    """Return the samples by class that a reply's class sums rest on."""
    total = Answer(site(TEXT, SECRET, least).layout(["class_sums"]), borrowed(reply.total))
    return total["class_sums/count"].numpy()


@given(least=st.integers(0, 25), client=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_no_figure_between_0_and_the_minimum_leaves_and_all_others_do(least: int, client: int) -> None:
    """Whatever the minimum: by class, by task, by visit; withheld ones are named, the others are as without it."""
    here, free = site(TEXT, SECRET, least), site(TEXT, SECRET)
    for kind, carry_out in ((EvaluateOrder, evaluate), (TraceOrder, trace)):
        asked = order(kind, [client])
        found, whole = (carry_out(at, asked, STORE) for at in (here, free))  # type: ignore[operator]
        few = (whole.items > 0) & (whole.items < least)
        assert (found.items == np.where(few, 0, whole.items)).all()
        assert few.any() == bool(found.withheld)
        assert [each.figures for each in found.withheld] == [[f"task {t}" for t in np.flatnonzero(few[0])]] * int(
            few.any()
        )
        hits, all_hits = ("correct", "correct") if kind is EvaluateOrder else ("right", "right")
        assert (getattr(found, hits) == np.where(few, 0, getattr(whole, all_hits))).all()
    asked = order(ConsolidateOrder, [client])
    found, whole = (consolidate(at, asked, STORE) for at in (here, free))
    counts = counts_of(whole, 0)
    assert counts_of(found, least).tolist() == np.where(counts < least, 0, counts).tolist()
    assert found.table["n"].tolist() == [counts_of(found, least).sum()]
    few = np.flatnonzero((counts > 0) & (counts < least))
    assert [each for one in found.withheld for each in one.figures] == [f"class {each}" for each in few]
    for kind in (TrainOrder, ScoreOrder):
        asked, n = order(kind, [client]), int(free.stream.train.count[client, 0])
        admitted, withheld = Policy(min_count=least).admitted(here, asked)
        assert admitted.clients.tolist() == [client] * (n >= least)
        assert [each.figures for each in withheld] == [["visit"]] * (n < least)


def stream_of(counts: Any, order: Any = None) -> Stream:
    """Return the stream of one client that has counts[task][class] items, in tasks that all have the same classes."""
    y = np.repeat(np.tile(np.arange(len(counts[0])), len(counts)), np.concatenate(counts))
    owner = np.repeat(np.arange(len(counts)), [sum(each) for each in counts])
    scenario = tiny("stream.kind=domain-incremental", "stream.clients=1", f"stream.tasks={len(counts)}")
    x = np.zeros((len(y), 5), np.float32)
    stream = build_stream(scenario, Dataset(x=x, y=y, test_x=x, test_y=y, classes=len(counts[0])))
    held = replace(stream.train, items=np.argsort(owner, kind="stable"),
                   count=np.array([[sum(each) for each in counts]]),
                   start=np.array([[0, *np.cumsum([sum(each) for each in counts])[:-1]]]))  # fmt: skip
    timeline = replace(stream.timeline, order=np.array([order or range(len(counts))]))
    return replace(stream, train=held, timeline=timeline)


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=5).filter(
        lambda counts: all(sum(each) for each in counts)
    ),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_what_is_withheld_of_a_class_leaves_with_a_later_task_and_nothing_leaves_twice(
    counts: Any, least: int, random: Any
) -> None:
    """Over all tasks, in whatever order they are met or asked for: every item at most once, each class by `least`."""
    order = random.sample(range(len(counts)), len(counts))
    stream, met = stream_of(counts, order), np.zeros(3, np.int64)
    left: list[int] = []
    for task in order:
        found = of_task(stream, 0, task, least, by_class=True)
        sizes = np.bincount(stream.dataset.y[found.items], minlength=3)
        assert ((sizes == 0) | (sizes >= least)).all()
        left += found.items.tolist()
        met += counts[task]
        waits = met - np.bincount(stream.dataset.y[left], minlength=3)
        assert ((waits >= 0) & (waits < least)).all()
        assert found.withheld == [f"class {each}" for each in np.flatnonzero(waits)]
        assert {
            stream.train.cell(0, t).tolist().index(i) >= 0 for i, t in zip(found.items, found.tasks, strict=True)
        } <= {True}
    assert len(set(left)) == len(left)


def test_a_statistic_that_tells_no_classes_apart_rests_on_the_task() -> None:
    stream = stream_of([[2, 2, 0], [3, 3, 0]])
    few, enough = (of_task(stream, 0, task, 5, by_class=False) for task in (0, 1))
    assert (few.items.tolist(), few.withheld) == ([], ["task 0"])
    assert (len(enough.items), enough.withheld) == (6, [])


# The server.


def fated(folder: Path, scenario: Scenario, monkeypatch: pytest.MonkeyPatch, least: int = 5) -> list[Any]:
    """Run a scenario on nodes of their own, two of them, and return its events."""
    monkeypatch.setenv("FEDCL_MIN_COUNT", str(least))
    assert sit(folder, Nodes(2), scenario) == "finished"
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_the_server_expects_what_is_withheld_and_takes_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody's answer is refused; the sums lack exactly the classes that are named, of the clients that are named."""
    events = fated(tmp_path / "run", SCENARIO, monkeypatch)
    assert [event for event in events if event["event"] == "client_error"] == []
    named = {(event["client"], each) for event in events if event["event"] == "withheld" for each in event["figures"]}
    stream, expected = site(TEXT, SECRET).stream, set()
    for client in range(4):
        for task in range(2):
            expected |= {(client, each) for each in of_task(stream, client, task, 5, by_class=True).withheld}

    assert {each for each in named if each[1].startswith("class")} == expected
    assert {each for each in named if each[1] == "visit"} == {(0, "visit"), (1, "visit")}  # of 3 and of 4
    assert {client for event in events if event["event"] == "round" for client in event["clients"]} == {2, 3}
    assert sum(event["clients"] for event in events if event["event"] == "consolidation") == 8


LIES: dict[str, tuple[Callable[[EvaluateReply], Any], str]] = {
    "too many names": (lambda reply: [Withheld(client=0, least=3, figures=["task 0", "task 1"])], "make it"),
    "nothing that lacks": (lambda reply: [Withheld(client=0, least=1, figures=["task 0"])], r"make it \[\]"),
    "of another client": (lambda reply: [Withheld(client=9, least=5, figures=[])], "have not answered"),
    "twice": (lambda reply: [Withheld(client=0, least=0, figures=[])] * 2, "or of one twice"),
    "another text": (lambda reply: [Withheld(client=0, least=5, figures=["task 0\\x1b[2J"])], "'withheld'"),
    "no number": (lambda reply: [Withheld(client=0, least="5", figures=[])], "'withheld'"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("what", LIES)
def test_what_a_node_says_that_it_withholds_must_be_so(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A false word about it is refused by name, like any false count."""
    lie, why = LIES[what]
    encode = wire.encode

    def lying(message: Any, *more: Any, **rest: Any) -> Any:
        if isinstance(message, EvaluateReply) and 0 in message.clients.tolist():
            message = replace(message, withheld=lie(message))
        return encode(message, *more, **rest)

    monkeypatch.setattr(wire, "encode", lying)
    events = fated(tmp_path / "run", tiny("engine.cohort=1"), monkeypatch, least=0)
    errors = {event["error"] for event in events if event["event"] == "client_error"}
    assert len(errors) == 1
    assert re.search(f"answer refused: .*{why}", errors.pop())


def test_the_audit_names_what_is_withheld(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDCL_AUDIT", str(tmp_path / "audit"))
    monkeypatch.setenv("FEDCL_MIN_COUNT", "3")
    reply = ask(order(ConsolidateOrder, [0, 3]), node(tmp_path / "node"))
    named = [(line["clients"], line["withheld"]) for line in lines(tmp_path / "audit") if "withheld" in line]
    assert named == [([each.client], each.figures) for each in reply.withheld]
    assert [each.client for each in reply.withheld] == [0]  # three samples of two classes


# The default.


def test_nodes_withhold_below_five_unless_told_otherwise() -> None:
    assert Policy().min_count == LEAST == 5
    assert inspect.signature(cli_real.client).parameters["min_count"].default == LEAST


@pytest.mark.slow
@pytest.mark.parametrize("name", ["split-digits", "split-digits-async", "prototype-digits", "analytic-digits"])
def test_shipped_digits_use_every_client_on_nodes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default: everyone trains, everyone's own test items count, and of class sums the named classes alone lack."""
    more = ["stream.schedule.rounds_per_task=2", "evaluate.every=0", "engine.cohort=1", "engine.device=cpu"]
    scenario = choice.resolve(load(name, more))[0]
    events = fated(tmp_path / "run", scenario, monkeypatch, least=LEAST)
    assert {client for event in events if event["event"] == "round" for client in event["clients"]} == set(range(5))
    ends = [event for event in events if event["event"] == "client_task_end"]
    assert {client for event in ends for client in event["clients"]} == set(range(5))
    refused = [event["error"] for event in events if event["event"] == "client_error" and "refused" in event["error"]]
    assert refused == []
