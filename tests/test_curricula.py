"""Curricula: pacing tables, what a visit shows and in which order, what it is scored with; nothing else moves."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch.nn.functional import cross_entropy

from clients import visits
from clients.curricula import HARDEST, Curriculum, Vanilla, Visit, ranks, scores
from clients.curricula.cyclical import Cyclical, drawn, fractions
from clients.curricula.episodes import Episodes
from clients.curricula.sample import Curr, Rand, Sample, progress
from clients.visits import Local, Walk
from fedcl import api, config, keys, testing
from fedcl.cli import main
from fedcl.config import Plain, Scenario
from fedcl.errors import ConfigError
from fedcl.keys import Purpose, key
from fedcl.pacing import CURVES, pool_sizes
from tests.federations import Clients, hashes, run, tiny

RARE = 1e-3
examples = settings(deadline=None, max_examples=40)


# Pacing


@pytest.mark.parametrize(
    ("pacing", "sizes"),
    [  # N = 100, b = 0.2, at x = 0, 1/4, 1/2, 3/4, 1 and behind, worked out by hand
        ("linear", [20, 40, 60, 80, 100, 100]),
        ("quad", [20, 25, 40, 65, 100, 100]),
        ("sqrt", [20, 60, 76, 89, 100, 100]),
        ("step", [20, 20, 20, 20, 100, 100]),
        ("exp", [20, 20, 20, 26, 100, 100]),
        ("log", [20, 88, 94, 97, 100, 100]),
    ],
)
def test_pacing_tables(pacing: Any, sizes: list[int]):
    x = np.array([0, 0.25, 0.5, 0.75, 1, 1.5])
    assert pool_sizes(pacing, x, np.array(100), b=0.2, min_pool=1).tolist() == sizes


def test_the_pool_is_clipped_to_min_pool_and_to_n():
    """Of 20 samples and a pool of at least 32 all 20 are in; of 100 with b = 0 the first pool has 32, never none."""
    x, n = np.zeros(2), np.array([20, 100])
    assert pool_sizes("linear", x, n, b=0.0, min_pool=32).tolist() == [20, 32]
    assert pool_sizes("linear", x, n, b=0.0, min_pool=1).tolist() == [1, 1]
    assert pool_sizes("linear", np.zeros(1), np.array([100]), b=0.29, min_pool=1).tolist() == [29]


@examples
@given(pacing=st.sampled_from(sorted(CURVES)), n=st.integers(1, 500), b=st.floats(0, 1), x=st.floats(0, 3))
def test_pools_grow_and_stay_inside_the_data(pacing: Any, n: int, b: float, x: float):
    own = {"b": b, "min_pool": 1}
    before, after = (int(pool_sizes(pacing, np.array(each), np.array(n), **own)) for each in (x, x + 0.1))
    assert 1 <= before <= after <= n
    assert int(pool_sizes(pacing, np.array(1.0), np.array(n), **own)) == n


def visit(k: int, w: int, *, losses: Any = None, **given_fields: Any) -> Visit:
    """Return a visit of k clients with w items each, scored with random losses."""
    fields = {
        "inside": np.ones((k, w), np.bool_), "labels": np.zeros((k, w), np.int64), "steps": np.full(k, 10),
        "number": np.zeros(k, np.int64),
        "visits": np.ones(k, np.int64), "keys": key(0, Purpose.CURRICULUM, np.arange(k), 1),
    }  # fmt: skip
    losses = np.random.default_rng(0).random((k, w)) if losses is None else losses
    return Visit(**{**fields, **given_fields}, losses=losses)


def test_progress_counts_the_steps_of_a_visit_or_of_all_visits_of_the_position():
    """a = 1/2, T = 10, third visit of four, 3 steps done: 3 / 5 of a visit's pacing, 23 / 20 of a task's."""
    here, done = visit(1, 5, number=np.array([2]), visits=np.array([4])), np.array([3])
    assert progress(here, done, a=0.5, over="visit").tolist() == [3 / 5]
    assert progress(here, done, a=0.5, over="task").tolist() == [23 / 20]


# The walk through a visit


def lengths_of(*lengths: int) -> Local:
    """Return visits of these lengths; item i of a client is i."""
    k, w, zero = len(lengths), max(lengths), np.zeros(len(lengths), np.int64)
    items = np.broadcast_to(np.arange(w), (k, w))
    return Local(items=items, tasks=np.zeros((k, w), np.int64), lengths=np.array(lengths), offsets=zero, bases=zero)


def shuffle(k: int) -> Callable[[int], keys.Bits]:
    return lambda number: key(0, Purpose.SHUFFLE, np.arange(k), 1, number)


def walked(curriculum: Curriculum, local: Local, *, epochs: int, batch: int) -> Walk:
    k = len(local.lengths)
    here = visit(k, local.items.shape[1], inside=local.inside, steps=(local.lengths // batch + 1) * epochs)
    return visits.walk(local, shuffle(k), curriculum.pools(here), epochs=epochs, batch=batch)


def shown(found: Walk, row: int) -> list[list[int]]:
    """Return the items of each step of a client."""
    real = found.real[row]
    steps = found.step[row][real]
    return [found.index[row][real][steps == step].tolist() for step in range(steps.max(initial=-1) + 1)]


@examples
@given(lengths=st.lists(st.integers(1, 13), min_size=1, max_size=4), epochs=st.integers(1, 3), batch=st.integers(1, 6))
def test_vanilla_shuffles_all_items_once_an_epoch(lengths: list[int], epochs: int, batch: int):
    """Each epoch is the keyed permutation of a client's items, cut into batches; its first entries are epoch 0."""
    found = walked(Vanilla(), lengths_of(*lengths), epochs=epochs, batch=batch)
    for row, n in enumerate(lengths):
        expected = []
        for epoch in range(epochs):
            own = keys.permutations(shuffle(len(lengths))(epoch)[[row]], np.array([n]), n)[0].tolist()
            expected += [own[begin : begin + batch] for begin in range(0, n, batch)]
        assert shown(found, row) == expected
        assert found.first[row].sum() == n
        assert found.step[row][found.first[row]].max() < -(-n // batch)


@examples
@given(
    lengths=st.lists(st.integers(1, 13), min_size=1, max_size=4), epochs=st.integers(1, 4), batch=st.integers(1, 6),
    curriculum=st.sampled_from([Curr(b=0.1, min_pool=1), Rand(b=0.3, min_pool=2, pacing="step"), Cyclical()]),
)  # fmt: skip
def test_every_curriculum_takes_vanillas_steps(lengths: list[int], epochs: int, batch: int, curriculum: Curriculum):
    """epochs * ceil(N / B) steps of at least one item; each item that comes by has exactly one first appearance."""
    found = walked(curriculum, lengths_of(*lengths), epochs=epochs, batch=batch)
    for row, n in enumerate(lengths):
        steps = shown(found, row)
        assert len(steps) == epochs * -(-n // batch)
        assert all(1 <= len(step) <= batch and len(set(step)) == len(step) for step in steps)
        firsts = found.index[row][found.first[row]].tolist()
        assert sorted(firsts) == sorted(set(itertools.chain(*steps)))


def test_b_1_is_vanilla_entry_by_entry():
    local = lengths_of(12, 7)
    one, all_of_it = (walked(each, local, epochs=3, batch=5) for each in (Curr(b=1.0, min_pool=1), Vanilla()))
    for name in ("index", "step", "column", "real", "first"):
        assert np.array_equal(getattr(one, name), getattr(all_of_it, name))


@pytest.mark.parametrize("curriculum", [Vanilla(), Curr(), Rand(), Cyclical(), Episodes()], ids=str)
def test_of_no_data_nothing_is_shown(curriculum: Curriculum):
    """Slices of an online stream may hold nothing, for everybody at once."""
    nobody = replace(lengths_of(1, 1), lengths=np.zeros(2, np.int64))
    found = walked(curriculum, nobody, epochs=2, batch=3)
    assert not found.real.any()
    assert not found.first.any()
    laid = visits.batches(nobody, found, width=3)
    assert laid.count.tolist() == [0, 0]
    assert laid.weight.tolist() == [[[0.0] * 3]] * 2


def test_an_empty_pool_is_an_error():
    class Nothing(Curriculum):
        def pools(self, visit: Visit) -> Any:
            return lambda number, done: np.zeros_like(visit.inside)

    with pytest.raises(ValueError, match="shows nothing in pass 0"):
        walked(Nothing(), lengths_of(3), epochs=1, batch=2)


def test_ranks_put_padding_last_and_ties_by_position():
    inside = np.array([[True, True, True, False], [True, True, True, True]])
    found = ranks(np.array([[0.5, -0.5, 0.5, -9.0], [HARDEST, HARDEST, 1.0, -HARDEST]]), inside)
    assert found.tolist() == [[1, 0, 2, 3], [2, 3, 1, 0]]


# Cyclical


def test_cyclical_fractions():
    assert fractions(0.25, 1.0, 0.5, 8) == [0.25, 0.5, 1.0, 0.5, 0.25, 0.5, 1.0, 0.5]
    assert fractions(0.3, 1.0, 0.5, 7) == [0.3, 0.6, 1.0, 0.5, 0.3, 0.6, 1.0]
    assert fractions(0.5, 0.5, 0.5, 3) == [0.5] * 3


def test_cyclical_shows_fractions_of_the_data_until_vanillas_steps_are_used_up():
    """N = 16, B = 4, 3 epochs = 12 steps: passes over 4, 8, 16, 8, 4 and 8 items take 1 + 2 + 4 + 2 + 1 + 2."""
    steps = shown(walked(Cyclical(), lengths_of(16), epochs=3, batch=4), 0)
    edges = np.cumsum([0, 1, 2, 4, 2, 1, 2])
    passes = [set(itertools.chain(*steps[a:b])) for a, b in itertools.pairwise(edges)]
    assert [len(each) for each in passes] == [4, 8, 16, 8, 4, 8]
    assert passes[0] != passes[4]


def test_cyclical_over_a_task_moves_on_with_the_visits():
    """In the third of several visits every pass shows all; in the fourth, half."""
    here = visit(2, 8, number=np.array([2, 3]), visits=np.array([9, 9]))
    pool = Cyclical(over="task").pools(here)
    for number in range(3):
        assert pool(number, np.zeros(2, np.int64)).sum(axis=1).tolist() == [8, 4]


def test_cyclical_draws_go_by_one_over_the_loss():
    """Pairs out of four items drawn without replacement: 20,000 draws against the exact chances of all six pairs."""
    losses, k = np.array([0.5, 1.0, 2.0, 4.0]), 20_000
    p = (1 / losses) / (1 / losses).sum()
    pairs = list(itertools.combinations(range(4), 2))
    exact = np.array([p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j]) for i, j in pairs])
    own = key(0, Purpose.CURRICULUM, np.arange(k), 1)
    found = drawn(own, np.broadcast_to(losses, (k, 4)), np.ones((k, 4), np.bool_), np.full(k, 2))
    counts = [int((found[:, i] & found[:, j]).sum()) for i, j in pairs]
    assert sum(counts) == k
    assert chisquare(counts, exact * k).pvalue > RARE


# Whole visits against a loop in plain torch


def curriculum(order: str, **own: Any) -> str:
    chosen = {"order": order, "b": 0.3, "a": 0.8, "min_pool": 2, **own}
    return f"client.curriculum={{{', '.join(f'{name}: {value}' for name, value in chosen.items())}}}"


def clients(*overrides: str) -> Clients:
    """Four clients with 12 items a task, batches of 5, three epochs: nine steps a visit."""
    return Clients.of(tiny("model.dtype=float64", "client.epochs=3", "client.method=finetune", *overrides))


def difficulty(own: Clients, items: np.ndarray, *models: torch.nn.Module) -> np.ndarray:
    x, y = own.shown(items)
    with torch.no_grad():
        return np.sum([cross_entropy(model(x), y, reduction="none").numpy() for model in models], axis=0)


def plain_visit(own: Clients, module: torch.nn.Module, client: int, round: int, hardness: np.ndarray) -> None:
    """Train on a paced visit of task 0: N = 12, b = 0.3, a = 0.8, T = (floor(12 / 5) + 1) * 3 = 9 steps."""
    cell = own.site.stream.train.cell(client, 0)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    easiest, done = np.argsort(hardness, kind="stable"), 0
    for number in itertools.count():
        size = min(12, max(2, int(3.6 + (12 - 3.6) * done / (0.8 * 9) + 1e-9)))
        draws = keys.bits(key(0, Purpose.SHUFFLE, client, round, number), 12)
        pool = sorted(easiest[:size].tolist(), key=lambda position: int(draws[position]))
        for begin in range(0, size, 5):
            if done == 9:
                return
            x, y = own.shown(cell[pool[begin : begin + 5]])
            optimizer.zero_grad()
            cross_entropy(module(x), y).backward()
            optimizer.step()
            done += 1


@pytest.mark.parametrize("stack", [1, 2])
@pytest.mark.parametrize(
    ("order", "score"), [("curr", "G"), ("anti", "G"), ("curr", "L"), ("anti", "LG"), ("rand", "G")]
)
def test_sample_curricula_are_the_published_loop(order: str, score: str, stack: int):
    """Two visits of two clients, the second from another global model: updates within 1e-12 of a plain loop."""
    own = clients(curriculum(order, score=score), f"engine.stack={stack}")
    local = {client: own.model() for client in (1, 2)}  # before its first visit a client has the global model
    weights = own.initial
    for round in (1, 2):
        reply, expected, finished = own.visit(weights, [1, 2], round=round), [], {}
        for client in (1, 2):
            module, sent = own.model(), own.model()
            for each in (module, sent):
                scores.load_weights(each, own.site.parameters, torch.from_numpy(weights.copy()))
            cell = own.site.stream.train.cell(client, 0)
            judges = {"G": [sent], "L": [local[client]], "LG": [local[client], sent]}[score]
            hardness = difficulty(own, cell, *judges) * (-1 if order == "anti" else 1)
            if order == "rand":
                hardness = keys.bits(key(0, Purpose.CURRICULUM, client, round), 12).astype(np.float64)
            plain_visit(own, module, client, round, hardness)
            finished[client] = module
            after = own.site.parameters.flatten(dict(module.named_parameters())).detach().numpy()
            expected.append(after - weights)
        assert reply.table["steps"].tolist() == [9, 9]
        assert np.abs(own.update(reply) - np.mean(expected, axis=0)).max() < 1e-12
        local, weights = finished, weights + 2 * own.update(reply)


def test_orders_differ_from_each_other_and_take_as_many_steps():
    """One visit: vanilla, curr, anti, rand and cyclical all end elsewhere, all after nine steps."""
    chosen = ["client.curriculum=vanilla", *(curriculum(each) for each in ("curr", "anti", "rand"))]
    found = []
    for each in [*chosen, "client.curriculum=cyclical"]:
        own = clients(each)
        reply = own.visit(own.initial, [0, 3])
        assert reply.table["steps"].tolist() == [9, 9]
        found.append(own.update(reply))
    for one, other in itertools.combinations(found, 2):
        assert np.abs(one - other).max() > 1e-4


def test_an_expert_is_trained_on_the_data_of_all_clients():
    """Ten epochs of SGD from the initial weights over the 48 items of task 1, keyed; once a site."""
    own = clients(curriculum("curr", score="E"))
    found = scores.expert(own.site, 1)
    assert scores.expert(own.site, 1) is found
    cells = [own.site.stream.train.cell(client, 1) for client in range(4)]
    items, module = np.sort(np.concatenate(cells)), own.model()
    assert len(items) == 48
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for epoch in range(10):
        shuffled = keys.permutations(key(0, Purpose.CURRICULUM, np.array([1]), 0, epoch), np.array([48]), 48)[0]
        for begin in range(0, 48, 5):
            x, y = own.shown(items[shuffled[begin : begin + 5]])
            optimizer.zero_grad()
            cross_entropy(module(x), y).backward()
            optimizer.step()
    after = own.site.parameters.flatten(dict(module.named_parameters())).detach()
    assert float((found - after).abs().max()) < 1e-12
    cell = own.site.stream.train.cell(2, 1)
    scored = scores.cross_entropies(own.site, found, cell, np.ones(len(cell), np.int64))
    assert np.abs(scored - difficulty(own, cell, module)).max() < 1e-12


def test_a_personal_head_is_part_of_the_model_that_scores():
    """Once a client has its own head, G is the global body under that head."""
    own = clients(curriculum("curr"), "model.personal=[head]")
    own.visit(own.initial, [1])
    order = api_order(own, 1)
    found = scores._models(own.site, order, own.held[1], 0)[0].numpy()
    personal = own.site.personal.numpy()
    assert np.array_equal(found[personal], own.record(1)["personal"])
    assert np.array_equal(found[~personal], own.initial[~personal])
    assert np.abs(found[personal] - own.initial[personal]).max() > 1e-3


def api_order(own: Clients, client: int) -> Any:
    """Return an order of one client's second visit."""
    from fedcl.orders import TrainOrder

    zero = np.zeros(1, np.int64)
    return TrainOrder(
        round=2, cohort=0, clients=np.array([client]), tasks=zero, clocks=zero, weights=own.initial,
        packs=[""], rows=zero, folder="",
    )  # fmt: skip


# Memory under a curriculum


@pytest.mark.parametrize("admit", ["first_seen", "every_pass"])
def test_what_a_visit_never_shows_is_offered_when_it_is_first_shown(admit: str):
    """Pacing over a task of four visits, b = 0.25: 3 of 12 items in the first visit, all by the last, each once."""
    schedule = "stream.schedule.rounds_per_task=4"
    paced = curriculum("curr", over="task", b=0.25, a=0.7)
    memory = f"client.memory={{size: 12, admit: {admit}}}"
    own = clients(paced, "client.method=er", memory, schedule)
    counts, offered = [], []
    for clock in range(4):
        own.visit(own.initial, [0], round=clock + 1, clock=clock)
        record = own.record(0)
        cell = own.site.stream.train.cell(0, 0)
        assert set(record["items"][: record["count"]].tolist()) <= set(cell[record["shown"][:12]].tolist())
        counts.append(int(record["shown"].sum()))
        offered.append(int(record["seen"]))
    assert 3 <= counts[0] < counts[3] == 12
    if admit == "first_seen":
        assert offered == counts
        assert sorted(own.record(0)["items"].tolist()) == sorted(cell.tolist())
    else:
        assert offered[0] > counts[0]


def test_shown_items_are_counted_task_by_task():
    """Client 1 visits task 1, then task 0: each visit marks its own twelve of the 24 items of the client's stream."""
    own = clients(curriculum("rand", b=1.0), "client.method=er", "client.memory.size=5")
    own.visit(own.initial, [1], round=1, task=1)
    assert own.record(1)["shown"].tolist() == [False] * 12 + [True] * 12
    own.visit(own.initial, [1], round=2, task=0)
    assert own.record(1)["shown"].tolist() == [True] * 24


def test_records_grow_only_where_a_curriculum_asks():
    assert {"local", "shown"}.isdisjoint(clients("client.method=er").site.record.names)
    assert "local" not in clients(curriculum("curr")).site.record.names
    site = clients(curriculum("curr", score="LG")).site
    assert site.record["local"].shape == (site.parameters.size,)


# Whole runs


@pytest.mark.parametrize("method", ["finetune", "derpp"])
def test_b_1_is_vanilla_to_the_bit(method: str, tmp_path: Path):
    """A pool of everything from the first step on: the weights of a whole run, memory and all, have the same bits."""
    base = ["client.epochs=3", f"client.method={method}"]
    vanilla = run(tiny(*base), tmp_path / "vanilla")
    for number, order in enumerate(("curr", "anti", "rand")):
        same = run(tiny(*base, curriculum(order, b=1.0)), tmp_path / str(number))
        assert same["weights_sha256"] == vanilla["weights_sha256"]
    other = run(tiny(*base, curriculum("curr")), tmp_path / "other")
    assert other["weights_sha256"] != vanilla["weights_sha256"]
    assert other["cost"]["client_updates"] == vanilla["cost"]["client_updates"]


def paced(**engine: Any) -> Scenario:
    """The conformance tests' federation, scored with the client's last model and paced over each visit of 3 epochs."""
    own: Plain = {"curriculum": {"order": "curr", "score": "LG", "min_pool": 3, "b": 0.3}, "epochs": 3}
    eight = {"stream": {"clients": 8}, "server": {"clients_per_round": 8}, "engine": {"cohort": 8}}
    return testing.changed(config.load(config.overlay(Scenario, testing.TINY, {**eight, "client": own})), **engine)


def test_one_client_at_a_time_is_eight_together(tmp_path: Path):
    """Scores, pools and training of a stack of 8 and of 8 single clients: weights within 1e-9 in float64."""
    found = [api.run(paced(stack=stack), out=tmp_path / str(stack)) for stack in (1, 8)]
    alone, stacked = (dict(api.load(each.directory).model().named_parameters()) for each in found)
    assert max(float((alone[name] - stacked[name]).detach().abs().max()) for name in alone) <= 1e-9


def test_a_killed_run_with_a_curriculum_resumes(tmp_path: Path):
    testing.killed_run_resumes(paced(), tmp_path)
    assert (tmp_path / "killed" / "results.json").is_file()


@pytest.mark.usefixtures("ray_cluster")
def test_workers_make_no_difference_to_a_curriculum(tmp_path: Path):
    """Experts are trained by each worker for itself: one process and two Ray workers give the same bits."""
    scored = [curriculum("anti", score="E"), "client.epochs=2", "stream.clients=8"]
    inline = hashes(run(tiny(*scored), tmp_path / "inline"))
    assert hashes(run(tiny(*scored, "engine.kind=ray", "engine.workers=2"), tmp_path / "ray")) == inline


# What a user is told


def test_a_single_epoch_is_noted_and_nothing_else(capsys: pytest.CaptureFixture[str]):
    """`fedcl show` tells on stderr that pacing inside a visit of one epoch does next to nothing."""
    assert main(["show", "split-digits", "client.curriculum=curr", "client.epochs=1"]) == 0
    assert capsys.readouterr().err.startswith("fedcl: note: client.curriculum paces inside a visit")
    for harmless in (["client.epochs=3"], ["client.epochs=1", "client.curriculum.over=task"]):
        assert main(["show", "split-digits", "client.curriculum=curr", *harmless]) == 0
        assert capsys.readouterr().err == ""
    assert Vanilla().notes(1) == Cyclical().notes(1) == Sample(b=1.0).notes(1) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("currr", ".order = 'currr': unknown curriculum 'currr'; did you mean 'curr'?"),
        ("{order: cyclical, sp: 0.9, ep: 0.5}", ".sp = 0.9: must be at most ep = 0.5"),
        ("{order: curr, a: 0}", ".a = 0.0: must be above 0"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_sentence(text: str, said: str):
    with pytest.raises(ConfigError) as refused:
        config.load("split-digits", [f"client.curriculum={text}"])
    assert str(refused.value) == f"client.curriculum{said}"
