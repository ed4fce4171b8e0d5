"""Client curriculum: pools by hand, walks, what a client is scored with, and runs in which scoring goes wrong."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from clients.scoring import score
from fedcl import api, config, testing, wire
from fedcl.engine.inline import InlineGrid
from fedcl.orders import Ints, ScoreOrder, ScoreReply
from server import checkpoint
from server.selection import Curriculum, Uniform
from server.state import restored, server_tensors
from tests.federations import Clients, hashes, journal, run, tiny
from tests.test_failures import DATA, owner
from tests.test_flwr_run import environment, flwr_run

__all__ = ["environment"]  # the fixture

examples = settings(deadline=None, max_examples=40)
LOSSES = np.array([5.0, 1.0, 9.0, 3.0, 8.0, 2.0, 7.0, 4.0, 6.0, 0.0])  # of ten clients


def walked(
    curriculum: Curriculum,
    losses: NDArray[np.float64],
    rounds: int,
    n: int,
    *,
    there: Callable[[int], Ints] | None = None,
    seed: int = 0,
) -> tuple[list[list[int]], list[list[int]]]:
    """Return whom each round asks, and whom it scores, where client k always has loss k of the list."""
    memory, asked, scored = curriculum.begin(len(losses)), [], []
    for round in range(1, rounds + 1):
        available = np.arange(len(losses)) if there is None else there(round)
        wanted = curriculum.wants(memory, available, n, seed=seed, round=round)
        if len(wanted):
            memory = curriculum.scored(memory, wanted, losses[wanted])
        chosen, memory = curriculum.choose(memory, available, n, seed=seed, round=round, rounds=rounds)
        asked.append(chosen.tolist())
        scored.append(wanted.tolist())
    return asked, scored


# Pools


@pytest.mark.parametrize(
    ("pacing", "sizes"),
    [  # 20 clients, b N = 4, a * rounds = 8, rounds 1, 2, 4, 6, 8, 10: 4 + 16 c(x) rounded down
        ("linear", [6, 8, 12, 16, 20, 20]),
        ("quad", [4, 5, 8, 13, 20, 20]),
        ("sqrt", [9, 12, 15, 17, 20, 20]),
        ("step", [4, 4, 4, 4, 20, 20]),
        ("exp", [4, 4, 4, 5, 20, 20]),
        ("log", [16, 17, 18, 19, 20, 20]),
    ],
)
def test_pool_sizes_by_hand(pacing: Any, sizes: list[int]):
    curriculum = Curriculum(pacing=pacing, a=0.8, b=0.2)
    assert [curriculum.pool(20, 3, round, 10) for round in (1, 2, 4, 6, 8, 10)] == sizes


def test_a_pool_is_never_smaller_than_a_round_or_its_setting():
    assert [Curriculum(a=1, b=0).pool(20, n, 1, 20) for n in (1, 7, 30)] == [1, 7, 20]
    assert Curriculum(a=1, b=0, min_pool=12).pool(20, 7, 1, 20) == 12


# Walks


def test_curr_takes_the_easiest_first_and_anti_the_hardest():
    """Ten clients, two a round, pools of 4, 5 and 7 in rounds 1, 3 and 6: by hand; scored anew at each."""
    own = {"a": 1.0, "b": 1 / 3 + 1e-6}  # 10 (b + (1 - b) round / 10): 4.0, 5.3, 7.3
    asked, scored = walked(Curriculum(order="curr", **own), LOSSES, 10, 2)
    assert [Curriculum(**own).pool(10, 2, round, 10) for round in (1, 3, 6)] == [4, 5, 7]
    assert asked[:2] == [[1, 9], [3, 5]]  # losses 0, 1 and 2, 3
    assert asked[2:5] == [[1, 9], [3, 5], [7]]  # the fifth is alone: the pool is used up
    assert asked[5:9] == [[1, 9], [3, 5], [0, 7], [8]]
    assert [bool(each) for each in scored] == [round in (1, 3, 6, 10) for round in range(1, 11)]
    asked, _ = walked(Curriculum(order="anti", **own), LOSSES, 10, 2)
    assert asked[:5] == [[2, 4], [6, 8], [2, 4], [6, 8], [0]]  # losses 9, 8 and 7, 6; then 5


@examples
@given(
    order=st.sampled_from(["curr", "anti", "rand"]),
    clients=st.integers(1, 30),
    n=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_every_client_of_a_full_pool_is_met_once_a_walk(order: Any, clients: int, n: int, seed: int):
    """With b = 1 the pool is everybody: ceil(N / n) rounds meet each once, the next as many do so again."""
    losses = np.random.default_rng(seed).random(clients)
    length = -(-clients // n)
    asked, _ = walked(Curriculum(order=order, b=1), losses, 2 * length, n, seed=seed)
    for walk in (asked[:length], asked[length:]):
        assert sorted(client for group in walk for client in group) == list(range(clients))
        assert [len(group) for group in walk[:-1]] == [n] * (length - 1)


@examples
@given(
    order=st.sampled_from(["curr", "anti", "rand"]),
    n=st.integers(1, 4),
    b=st.floats(0, 1),
    chances=st.lists(st.floats(0.2, 1), min_size=10, max_size=10),
    seed=st.integers(0, 99),
)
def test_whoever_is_away_waits_and_nobody_is_met_twice(order: Any, n: int, b: float, chances: list[float], seed: int):
    """Clients that come and go: who is asked is there, at most n of them; nobody twice in a walk; memories stay."""
    rng, curriculum = np.random.default_rng(seed), Curriculum(order=order, b=b)
    memory, met = curriculum.begin(10), set[int]()
    for round in range(1, 21):
        there = np.flatnonzero(rng.random(10) < chances)
        before = {name: each.clone() for name, each in memory.items()}
        fresh = len(there) and bool((memory["place"][there] == -1).all())
        wanted = curriculum.wants(memory, there, n, seed=seed, round=round)
        assert wanted.tolist() == (there.tolist() if fresh and order != "rand" else [])
        after = curriculum.scored(memory, wanted, LOSSES[wanted]) if len(wanted) else memory
        chosen, after = curriculum.choose(after, there, n, seed=seed, round=round, rounds=20)
        assert all(torch.equal(memory[name].nan_to_num(), before[name].nan_to_num()) for name in before)
        met = set() if fresh else met
        assert set(chosen.tolist()) <= set(there.tolist()) - met
        assert (len(there) > 0) <= len(chosen) <= n
        met |= set(chosen.tolist())
        memory = after


def test_rand_reads_no_score_and_has_the_pools_of_curr():
    """The control: the same sizes of groups in every round, another order from walk to walk, nobody scored."""
    own = {"a": 0.8, "b": 0.2}
    easy, _ = walked(Curriculum(order="curr", **own), LOSSES, 20, 3)
    asked, scored = walked(Curriculum(order="rand", **own), LOSSES, 20, 3)
    assert [len(group) for group in asked] == [len(group) for group in easy]
    assert scored == [[]] * 20
    assert walked(Curriculum(order="rand", **own), -LOSSES, 20, 3)[0] == asked
    assert set(Curriculum(order="rand").begin(10)) == {"place"}
    walks = {tuple(map(tuple, walked(Curriculum(order="rand", b=1), LOSSES, 4, 3, seed=seed)[0])) for seed in range(20)}
    assert len(walks) == 20


def test_at_most_so_many_are_scored_the_others_keep_what_they_had():
    """Three of ten a walk, drawn anew: who never was scored stands behind who was, whatever the order."""
    for order in ("curr", "anti"):
        curriculum = Curriculum(order=order, b=1, score_clients=3)
        memory, everyone, known = curriculum.begin(10), np.arange(10), set[int]()
        for round in range(1, 9):
            wanted = curriculum.wants(memory, everyone, 10, seed=0, round=round)
            before = memory["loss"].clone()
            memory = curriculum.scored(memory, wanted, LOSSES[wanted] + round)
            kept = np.setdiff1d(everyone, wanted)
            assert len(set(wanted.tolist())) == 3
            assert torch.equal(memory["loss"][kept].nan_to_num(), before[kept].nan_to_num())
            known |= set(wanted.tolist())
            ranked = curriculum._ranked(memory, everyone, 0, round)
            assert set(ranked[: len(known)].tolist()) == known
            score = memory["loss"].numpy()[ranked[: len(known)]]
            assert (np.diff(score if order == "curr" else -score) >= 0).all()
            _, memory = curriculum.choose(memory, everyone, 10, seed=0, round=round, rounds=8)
        assert len(known) == 10


def test_a_loss_that_is_no_number_is_the_largest():
    memory = Curriculum().scored(Curriculum().begin(4), np.arange(3), np.array([np.nan, 1.0, np.inf]))
    assert memory["loss"][:3].tolist() == [np.finfo(np.float64).max, 1.0, np.finfo(np.float64).max]
    ranked = Curriculum()._ranked(memory, np.arange(4), 0, 1)
    assert (ranked[0], ranked[3]) == (1, 3)  # the one without a score behind them


# Scores


def order_for(own: Clients, clients: list[int], task: int, clock: int = 0) -> ScoreOrder:
    k = len(clients)
    return ScoreOrder(
        round=3, cohort=0, clients=np.array(clients), tasks=np.full(k, task), clocks=np.full(k, clock),
        packs=[""] * k, rows=np.zeros(k, np.int64), folder="", weights=own.initial,
    )  # fmt: skip


def by_hand(own: Clients, module: torch.nn.Module, client: int, task: int, start: int = 0) -> float:
    x, y = own.shown(own.site.stream.train.cell(client, task)[start:])
    with torch.no_grad():
        return float(cross_entropy(module(x), y, reduction="sum"))


def test_a_score_is_the_cross_entropy_of_the_clients_items():
    """Sums and numbers of items of each client's cell against plain torch: within 1e-12; alone and with others."""
    own = Clients.of(tiny("model.dtype=float64"))
    reply = score(own.site, order_for(own, [3, 0, 2], 1), own)
    assert (reply.clients.tolist(), reply.errors) == ([3, 0, 2], [])
    assert reply.counts.tolist() == [len(own.site.stream.train.cell(client, 1)) for client in (3, 0, 2)]
    expected = [by_hand(own, own.model(), client, 1) for client in (3, 0, 2)]
    assert np.abs(reply.losses - expected).max() < 1e-12
    assert score(own.site, order_for(own, [0], 1), own).losses[0] == reply.losses[1]
    assert own.held == {}


def test_an_online_stream_is_scored_on_what_the_visit_would_show():
    """The second of two slices of a task's items."""
    own = Clients.of(tiny("model.dtype=float64", "stream.schedule.online=true"))
    reply = score(own.site, order_for(own, [1], 0, clock=1), own)
    half = len(own.site.stream.train.cell(1, 0)) // 2
    assert reply.counts.tolist() == [len(own.site.stream.train.cell(1, 0)) - half]
    assert abs(reply.losses[0] - by_hand(own, own.model(), 1, 0, half)) < 1e-12


def test_a_client_with_a_head_of_its_own_is_scored_with_it():
    """After a visit: the global body under the client's head; a client that was never visited: the global model."""
    own = Clients.of(tiny("model.dtype=float64", "model.personal=[head]"))
    own.visit(own.initial, [1])
    reply = score(own.site, order_for(own, [1, 2], 0), own)
    weights = torch.from_numpy(own.initial.copy())
    weights[own.site.personal] = torch.from_numpy(own.record(1)["personal"].copy())
    module = own.model()
    expected = [by_hand(own, module, 2, 0)]
    torch.nn.utils.vector_to_parameters(weights, module.parameters())
    expected.insert(0, by_hand(own, module, 1, 0))
    assert np.abs(reply.losses - expected).max() < 1e-12
    assert abs(reply.losses[0] - by_hand(own, own.model(), 1, 0)) > 1e-3


# Runs

UNEVEN = "stream.partition={kind: 'tests.federations:Uneven', sizes: [3, 21, 9]}"
SMALL = ("server.clients_per_round=1", "stream.schedule.rounds_per_task=4", UNEVEN)


def curriculum(order: str = "curr", **more: Any) -> str:
    given = ", ".join(f"{name}: {value}" for name, value in {"order": order, **more}.items())
    return f"server.selection={{name: curriculum, {given}}}"


def asked(folder: Path) -> list[list[int]]:
    return [event["clients"] for event in journal(folder) if event["event"] == "round"]


def test_orders_ask_others_in_a_real_run(tmp_path: Path):
    """Round 1 of curr (anti) asks the client whose mean loss under the fresh model is lowest (highest)."""
    own = Clients.of(tiny(*SMALL))
    reply = score(own.site, order_for(own, [0, 1, 2, 3], 0), own)
    means = reply.losses / reply.counts
    found = {}
    for order in ("curr", "anti", "rand"):
        run(tiny(*SMALL, curriculum(order, a=1, b=0.2)), tmp_path / order)
        found[order] = asked(tmp_path / order)
    assert found["curr"][0] == [int(means.argmin())]
    assert found["anti"][0] == [int(means.argmax())]
    assert len({str(each) for each in found.values()}) == 3
    assert not [event for event in journal(tmp_path / "rand") if event["event"] == "scores"]


def test_scoring_is_written_down_and_paid_for(tmp_path: Path):
    """Pools of 1, 2, 2, 3, ... of four clients: scored at the start of each walk, two numbers up, the model down."""
    results = run(tiny(*SMALL, curriculum(a=1, b=0)), tmp_path)
    events = [event for event in journal(tmp_path) if event["event"] == "scores"]
    sizes = [Curriculum(a=1, b=0).pool(4, 1, round, 8) for round in range(1, 9)]
    assert sizes == [1, 1, 1, 2, 2, 3, 3, 4]
    assert [event["round"] for event in events] == [1, 2, 3, 4, 6]  # then a walk of three
    assert {(event["clients"], event["bytes_up"], event["bytes_down"]) for event in events} == {(4, 64, 4 * 4 * 64)}
    rounds = [event for event in journal(tmp_path) if event["event"] == "round"]
    for name in ("bytes_up", "bytes_down"):
        assert results["cost"][name] == sum(event[name] for event in (*rounds, *events))


def test_a_walk_through_all_by_draws_covers_everyone(tmp_path: Path):
    run(tiny(*SMALL, curriculum("rand", b=1)), tmp_path)
    found = [client for (client,) in asked(tmp_path)]
    assert (sorted(found[:4]), sorted(found[4:])) == ([0, 1, 2, 3], [0, 1, 2, 3])


def test_a_selection_without_a_memory_leaves_no_trace(tmp_path: Path):
    """Nothing of it in the server's tensors, so in no hash and in no checkpoint."""
    assert Uniform().begin(7) == {}
    assert len(Uniform().wants({}, np.arange(3), 2, seed=0, round=1)) == 0
    chosen, memory = Uniform().choose({}, np.arange(9), 2, seed=4, round=3, rounds=5)
    assert (chosen.tolist(), memory) == (Uniform().select(np.arange(9), 2, seed=4, round=3).tolist(), {})
    run(tiny("checkpoint.seconds=0"), tmp_path / "uniform")
    run(tiny("checkpoint.seconds=0", curriculum()), tmp_path / "curriculum")
    names = {}
    for name in ("uniform", "curriculum"):
        snapshot = checkpoint.read(checkpoint.kept(tmp_path / name / "checkpoints")[-1])
        state = restored(snapshot, snapshot.facts["config_hash"])
        names[name] = {each for each in server_tensors(state) if each.startswith("selection/")}
    assert names == {"uniform": set(), "curriculum": {"selection/place", "selection/loss"}}


@pytest.mark.slow
def test_a_killed_run_resumes_in_the_middle_of_a_walk(tmp_path: Path):
    testing.killed_run_resumes(tiny(*SMALL, curriculum(), "checkpoint.seconds=0"), tmp_path)


def test_hashes_do_not_depend_on_how_clients_are_cut(tmp_path: Path):
    """Cohorts of one, two and four give the same scores, so the same clients."""
    found = []
    for cohort in (1, 2, 4):
        folder = tmp_path / str(cohort)
        results = run(tiny(*SMALL, curriculum(), f"engine.cohort={cohort}"), folder)
        found.append((asked(folder), hashes(results)[0]))
    assert found[0] == found[1] == found[2]


FAULTS: dict[str, tuple[Callable[[ScoreReply], ScoreReply], str]] = {
    "another round": (lambda r: replace(r, round=r.round + 1), "it is not the answer of cohort 0 in round 1"),
    "not asked": (lambda r: replace(r, clients=r.clients + 100), "it covers clients that were not asked, or one twice"),
    "no items": (lambda r: replace(r, counts=r.counts * 0), "a client without items, or with a loss below 0"),
    "below 0": (lambda r: replace(r, losses=-r.losses), "a client without items, or with a loss below 0"),
    "short": (lambda r: replace(r, losses=r.losses[:1]), "'losses' has 1 entries for 2 clients"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_score_that_cannot_be_is_refused_and_the_run_goes_on(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Cohort 0 of round 1: its two clients are named and rank behind the other two."""
    honest, (tamper, said) = InlineGrid._carry_out, FAULTS[fault]

    def carry_out(grid: InlineGrid, message: Message) -> Message:
        answer = honest(grid, message)
        if message.metadata.message_type == "query.score":
            reply = wire.decode(answer.content)
            if (reply.round, reply.cohort) == (1, 0):
                answer.content = wire.encode(tamper(reply))
        return answer

    monkeypatch.setattr(InlineGrid, "_carry_out", carry_out)
    run(tiny(*SMALL, curriculum(b=1)), tmp_path)
    errors = [event for event in journal(tmp_path) if event["event"] == "client_error"]
    assert [(event["round"], event["error"]) for event in errors] == [(1, f"answer refused: {said}")] * 2
    lost = {event["client"] for event in errors}
    assert {client for (client,) in asked(tmp_path)[:2]} == {0, 1, 2, 3} - lost
    assert {client for (client,) in asked(tmp_path)[2:4]} == lost
    (first, *_) = [event for event in journal(tmp_path) if event["event"] == "scores"]
    assert (first["round"], first["clients"]) == (1, 2)


def test_a_client_that_cannot_be_scored_is_named_the_others_are_scored(tmp_path: Path):
    """A label out of range in the second task: pools of 2, 2 and 4 are scored in rounds 1, 2 and 3, where one fails."""
    run(tiny(DATA % "label", "server.clients_per_round=2", curriculum(a=0.75, b=0)), tmp_path)
    events = [event for event in journal(tmp_path) if event["event"] in ("scores", "client_error")]
    assert [(event["round"], event["clients"]) for event in events if event["event"] == "scores"] == [
        (1, 4), (2, 4), (3, 3),
    ]  # fmt: skip
    error = next(event for event in events if event["event"] == "client_error")
    assert (error["round"], error["client"]) == (3, owner(tmp_path))
    assert error["error"].startswith("IndexError")
    assert "cross_entropies" in error["traceback"]
    assert sorted(client for group in asked(tmp_path)[2:] for client in group) == sorted(
        {0, 1, 2, 3} - {owner(tmp_path)}
    )


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_workers_make_no_difference(tmp_path: Path):
    testing.workers_make_no_difference(tiny(*SMALL, curriculum()), tmp_path)


@pytest.mark.slow
def test_flwr_run_asks_the_same_clients(environment: dict[str, str], tmp_path: Path):
    """Flower's own simulation, a node for each client: the same are asked, the weights agree within 1e-5."""
    overrides = ["stream.schedule.rounds=2", "server.clients_per_round=2", "server.selection.name=curriculum"]
    ours = api.run(config.load("split-digits", [*overrides, "engine.kind=inline"]), out=tmp_path / "ours")
    assert ours.code == 0
    out = tmp_path / "theirs"
    flwr_run(environment, out, *overrides)
    assert [sorted(each) for each in asked(out)] == [sorted(each) for each in asked(tmp_path / "ours")]
    scored = [event["clients"] for event in journal(out) if event["event"] == "scores"]
    assert scored
    assert set(scored) == {5}
    weights = [dict(api.load(folder).model().named_parameters()) for folder in (out, tmp_path / "ours")]
    assert max(float((weights[0][name] - each).detach().abs().max()) for name, each in weights[1].items()) <= 1e-5
