"""Penalties too steep for plain descent: held to what it can follow, counted and told; everything else as published."""

from pathlib import Path

import numpy as np
import pytest
import torch

from clients import anchors
from clients.losses import Anchors, Regulariser
from clients.losses.ewc import FISHER
from clients.optimizers import SGD, Adam
from clients.work import train
from fedcl import api
from fedcl.orders import TrainOrder
from tests.federations import Clients, hashes, run, tiny

METHODS = ("ewc", "fedewc")
BITS = ("model.dtype=float64", "engine.stack=2", "stream.schedule.rounds_per_task=3")


def chosen(method: str, lam: float) -> tuple[str, ...]:
    server = ("server.method=fedewc",) if method == "fedewc" else ()
    return (*BITS, f"client.method={{name: {method}, lam: {lam}}}", *server)


def test_what_descent_can_follow_is_its_optimisers() -> None:
    """2 / lr, with momentum 2 (1 + momentum) / lr; Adam's steps are bounded, steps of no length are too."""
    assert [SGD(lr=0.1).steepest, SGD(lr=0.1, momentum=0.5).steepest] == [20.0, 30.0]
    assert SGD(lr=0.0).steepest == Adam().steepest == np.inf


@pytest.mark.parametrize(("curvature", "follows"), [(19.9, True), (20.1, False), (10.0, True)])
def test_plain_descent_diverges_from_there_on(curvature: float, follows: bool) -> None:
    """w <- w - lr c w: |1 - lr c| below or above 1. At c = 1 / lr one step is enough."""
    w = 1.0
    for _ in range(1000):
        w -= 0.1 * curvature * w
    assert (abs(w) < 1) is follows
    assert curvature != 10.0 or w == 0


def test_what_is_too_steep_is_held_and_counted() -> None:
    """lr = .1, lam = 10: F up to 2 stays, to the bit; above it is 1. What is kept of F is not changed."""
    own = Clients.of(tiny("client.method=ewc", "client.optimizer.lr=0.1", "engine.stack=2"))
    size = own.site.parameters.size
    records = np.zeros(2, own.site.record)
    records[FISHER][0, :4] = [1.9, 2.0, 2.1, 1e30]
    records[FISHER][1, -1] = np.inf
    before, kept = records.copy(), anchors.own(own.site, records)
    assert anchors.bounded(own.site, kept, {}).tolist() == [2, 1]
    flat = own.site.parameters.flatten(kept[FISHER])
    assert flat[0, :5].tolist() == [np.float32(1.9), 2.0, 1.0, 1.0, 0.0]
    assert flat[1, -1] == 1.0
    assert (records == before).all()
    assert size > 5


@pytest.mark.parametrize(
    "overrides", [["client.method=finetune"], ["client.method=ewc", "client.optimizer={name: adam}"]]
)
def test_nothing_is_held_where_nothing_can_be_too_steep(overrides: list[str]) -> None:
    own = Clients.of(tiny(*overrides))
    assert anchors.bounded(own.site, {}, {}) is None
    assert "capped" not in own.visit(own.initial, [0]).table


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_would_diverge_ends_finite_and_says_so(method: str, tmp_path: Path) -> None:
    """lam = 1e5: the loss stays below 10 where the published penalty reaches 1e6, events count, one note tells."""
    found = {}
    for held in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not held:
                patch.setattr(anchors, "bounded", lambda *given: None)
            found[held] = api.run(tiny(*chosen(method, 1e5)), out=tmp_path / str(held), check=False)
    rounds = {held: [e for e in each.events if e["event"] == "round"] for held, each in found.items()}
    largest = {held: max(sum(e["loss"].values()) for e in each) for held, each in rounds.items()}
    failed = {held: sum(e["failed"] for e in each) for held, each in rounds.items()}
    assert largest[True] < 10
    assert failed[True] == 0
    assert largest[False] > 1e6 or failed[False] > 0
    assert sum(e.get("capped", 0) for e in rounds[True]) > 0
    assert all("capped" not in e for e in rounds[True][:3])  # the first task has no penalty
    (note,) = [e["text"] for e in found[True].events if e["event"] == "note"]
    assert note.startswith(f"client.method = {method!r}: some of its penalties are so steep")


@pytest.mark.parametrize("method", METHODS)
def test_runs_in_which_nothing_is_held_keep_their_bits(method: str, tmp_path: Path) -> None:
    """lam = 1: the hashes are those without any bound, and no event counts."""
    bounded = run(tiny(*chosen(method, 1.0)), tmp_path / "bounded")
    assert not any("capped" in e or e["event"] == "note" for e in api.load(tmp_path / "bounded").events)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anchors, "bounded", lambda *given: None)
        assert hashes(run(tiny(*chosen(method, 1.0)), tmp_path / "plain")) == hashes(bounded)


def test_a_stack_holds_what_each_client_holds_alone() -> None:
    """Three rounds over two tasks, lam = 1e5: within 1e-9, and the same counts."""
    pair, counts = [], []
    for stack in (1, 4):
        own = Clients.of(tiny(*chosen("ewc", 1e5), f"engine.stack={stack}", "engine.cohort=4"))
        pair.append(own.rounds(5))
        order = TrainOrder(
            round=6, cohort=0, clients=np.arange(4), tasks=np.ones(4, np.int64), clocks=np.full(4, 5),
            weights=own.initial, packs=[""] * 4, rows=np.zeros(4, np.int64), folder="",
        )  # fmt: skip
        counts.append(train(own.site, order, own).table["capped"].tolist())
    assert np.abs(pair[0] - pair[1]).max() < 1e-9
    assert counts[0] == counts[1]
    assert min(counts[0]) > 0


def test_every_curvature_is_that_of_its_term() -> None:
    """By the second derivative of the penalty, for every regulariser that names one."""
    for method in METHODS:
        own = Clients.of(tiny(*chosen(method, 7.0)))
        for term in own.site.regularisers:
            assert isinstance(term, Regulariser)
            assert term.curvature == {FISHER: 7.0}
            w = torch.zeros(1, requires_grad=True)
            kept = {"ewc.theta": {"w": torch.ones(1)}, FISHER: {"w": torch.full((1,), 3.0)}}
            model = type("Model", (), {"parameters": {"w": w}})()
            anchored = Anchors({}, kept) if method == "ewc" else Anchors(kept, {})
            (first,) = torch.autograd.grad(term(model, None, anchored), w, create_graph=True)  # type: ignore[arg-type]
            (second,) = torch.autograd.grad(first.sum(), w)
            assert second.item() == 3.0 * term.curvature[FISHER]
