"""Which memory entries a replay draw takes: exact chances, what the draws do with them, and whole visits."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from clients.block import lay
from clients.memories.rehearsal import draw, first_positions, phase_weights, shared_out
from fedcl import keys
from fedcl.keys import Purpose, key
from fedcl.orders import TrainOrder
from tests.federations import Clients, tiny

RARE = 1e-3
examples = settings(deadline=None, max_examples=40)


def own(k: int) -> keys.Bits:
    return key(0, Purpose.REHEARSAL, np.arange(k), 3)


def weights(rehearsal: Any, alpha: float, position: int, phases: int) -> list[float]:
    return phase_weights(rehearsal, alpha, np.array([position]), phases, own(1))[0].tolist()


def test_power_law_by_hand():
    """In phase 3 with alpha 2: 1/9, 1/4 and 1 for phases 0, 1 and 2; none for the current one and those ahead."""
    assert weights("power-law", 2.0, 3, 5) == pytest.approx([1 / 9, 1 / 4, 1, 0, 0])
    assert weights("power-law", 0.0, 3, 5) == [1, 1, 1, 0, 0]
    assert weights("power-law", 1.0, 0, 3) == [0, 0, 0]


def test_exponential_by_hand():
    """Ages 3, 2 and 1 with alpha ln 2: each phase has half the chance of the one after it."""
    assert weights("exponential", math.log(2), 3, 4) == pytest.approx([1 / 4, 1 / 2, 1, 0])


def test_random_deals_the_power_laws_chances_to_the_past_phases():
    """Each client has 1, 1/2, 1/3 in some order; over 6,000 clients all six orders come as often (chi squared)."""
    found = phase_weights("random", 1.0, np.full(6000, 3), 4, own(6000))
    assert np.allclose(np.sort(found, axis=1), [0, 1 / 3, 1 / 2, 1])
    assert (found[:, 3] == 0).all()
    orders, counts = np.unique(np.round(found, 6), axis=0, return_counts=True)
    assert len(orders) == 6
    assert chisquare(counts).pvalue > RARE


def test_a_phase_is_the_first_position_of_the_task():
    """Client 0 meets tasks 2, 0, 2, 1; client 1 meets 1, then 0."""
    order = np.array([[2, 0, 2, 1], [1, 0, -1, -1]])
    assert first_positions(order, np.array([[2, 1, 0], [0, 1, 1]])).tolist() == [[0, 3, 1], [1, 0, 0]]


def test_chances_are_shared_by_the_entries_of_a_phase():
    """Chances 1 : 2 : 4 of three phases with 2, 0 and 1 entries and an empty slot: 1/10, 1/10, 4/5 and none."""
    groups, filled = np.array([[0, 0, 2, 1]]), np.array([[True, True, True, False]])
    found = shared_out(np.array([[1.0, 2.0, 4.0]]), groups, filled)
    assert found[0].tolist() == pytest.approx([0.1, 0.1, 0.8, 0.0])
    assert shared_out(np.zeros((1, 3)), groups, filled).tolist() == [[0.0] * 4]


@examples
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(0, 2**32))
def test_no_slot_without_a_chance_is_drawn(chances: list[float], seed: int):
    given_chances = np.where(np.array(chances) < 0.2, 0.0, chances)[None]
    found = draw(given_chances, keys.bits(key(seed, Purpose.REPLAY, np.arange(1), 1, 0), 200))
    assert found.shape == (1, 200)
    allowed = np.flatnonzero(given_chances[0]) if given_chances.any() else [0]
    assert np.isin(found, allowed).all()


def test_draws_follow_the_chances():
    """30,000 draws of each of two clients against their exact chances (chi squared), each client with its own."""
    chances = np.array([[0.1, 0.0, 0.6, 0.3], [0.25, 0.25, 0.25, 0.25]])
    found = draw(chances, keys.bits(key(0, Purpose.REPLAY, np.arange(2), 1, 0), 30_000))
    for row, p in zip(found, chances, strict=True):
        counts = np.bincount(row, minlength=4)
        assert (counts[p == 0] == 0).all()
        assert chisquare(counts[p > 0], p[p > 0] * 30_000).pvalue > RARE


# Whole visits


def one_client(*overrides: str) -> Clients:
    """One client that meets tasks 1, 3, 0 and 2 in two visits each, with 20 items of each."""
    entry = "{tasks: [1, 3, 0, 2], rounds: [2, 2, 2, 2]}"
    return Clients.of(
        tiny(
            "stream.clients=1", "stream.tasks=4", f"stream.schedule={{kind: explicit, clients: [{entry}]}}",
            "stream.dataset={samples: 80, classes: 4}", "client.method=er", *overrides,
        )
    )  # fmt: skip


def after_four_tasks(rehearsal: str, alpha: float) -> Clients:
    """The client after all its visits, with 30 of the 80 items remembered, and its next visit of 2,000 steps."""
    held = one_client("client.memory.size=30")
    for clock, task in enumerate((1, 1, 3, 3, 0, 0, 2, 2)):
        held.visit(held.initial, [0], round=clock + 1, task=task, clock=clock)
    memory = f"client.memory={{size: 30, draw: {rehearsal}, alpha: {alpha}}}"
    found = one_client(memory, "client.epochs=500", "client.replay_batch=10")
    found.held = held.held
    return found


def replayed(found: Clients, clock: int, task: int, steps: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Return tasks and labels of what a visit replays, and the weight of a step's rows."""
    zero = np.zeros(1, np.int64)
    order = TrainOrder(
        round=99, cohort=0, clients=zero, tasks=np.array([task]), clocks=np.array([clock]), weights=found.initial,
        packs=[""], rows=zero, folder="",
    )  # fmt: skip
    drawn = lay(found.site, order, found.held[0].copy()).draws["replay"]
    assert drawn.items.shape[1] == steps
    return drawn.tasks.numpy().ravel(), drawn.labels.numpy().ravel(), float(drawn.weight.sum() / steps)


@pytest.mark.parametrize(
    ("rehearsal", "p"),
    [
        ("power-law", {1: 1 / 9, 3: 1 / 4, 0: 1}),
        ("exponential", {1: math.exp(-6), 3: math.exp(-4), 0: math.exp(-2)}),
        ("uniform", None),
        ("class-balanced", {0: 1, 1: 1, 2: 1, 3: 1}),
    ],
)
def test_a_visit_replays_by_the_age_of_the_phases(rehearsal: str, p: dict[int, float] | None):
    """Phase 3 (task 2) after tasks 1, 3, 0, alpha 2: 20,000 replayed entries against the exact chances."""
    found = after_four_tasks(rehearsal, alpha=2)
    tasks, labels, weight = replayed(found, clock=7, task=2, steps=2000)
    entries = np.bincount(found.record(0)["tasks"], minlength=4)
    assert entries.min() >= 3  # every task is remembered, the current one too
    what = labels if rehearsal == "class-balanced" else tasks
    chances = entries.astype(float) if p is None else np.array([p.get(each, 0.0) for each in range(4)])
    counts = np.bincount(what, minlength=4)
    assert (counts[chances == 0] == 0).all()
    expected = (chances / chances.sum() * counts.sum())[chances > 0]
    assert counts.sum() == 20_000
    assert chisquare(counts[chances > 0], expected).pvalue > RARE
    assert weight == pytest.approx(1)


def test_alpha_0_rehearses_all_past_phases_alike():
    """The control: tasks 1 and 3 half and half in phase 2, whatever the numbers of their entries."""
    found = after_four_tasks("power-law", alpha=0)
    tasks, _, _ = replayed(found, clock=4, task=0, steps=2000)
    counts = np.bincount(tasks, minlength=4)
    assert counts[[0, 2]].tolist() == [0, 0]
    assert chisquare(counts[[1, 3]]).pvalue > RARE


def test_nothing_is_replayed_in_the_first_phase():
    """The memory holds entries of task 1 alone: a second visit of phase 0 has no past to rehearse, uniform has."""
    held = Clients.of(tiny("client.method=er"))
    held.visit(held.initial, [0], round=1)
    losses = {}
    for rehearsal in ("uniform", "power-law", "exponential", "random"):
        found = Clients.of(tiny("client.method=er", f"client.memory.draw={rehearsal}"))
        found.held = held.held.copy()
        losses[rehearsal] = found.visit(held.initial, [0], round=2, clock=1).table["loss/replay"].item()
    assert losses.pop("uniform") > 0.1
    assert set(losses.values()) == {0.0}


def test_a_client_draws_the_same_alone_and_in_a_cohort():
    """Power-law draws of client 2 in phase 1, alone and among four: the same slots."""
    found = Clients.of(tiny("client.method=er", "client.memory.draw=random"))
    found.visit(found.initial, [0, 1, 2, 3], round=1)

    def slots(*clients: int) -> np.ndarray:
        k = len(clients)
        order = TrainOrder(
            round=3, cohort=0, clients=np.array(clients), tasks=np.ones(k, np.int64), clocks=np.full(k, 2),
            weights=found.initial, packs=[""] * k, rows=np.zeros(k, np.int64), folder="",
        )  # fmt: skip
        records = np.concatenate([found.held[client] for client in clients])
        drawn = lay(found.site, order, records).draws["replay"].slots
        assert drawn is not None
        return drawn[-1].numpy()

    alone, together = slots(2), slots(0, 1, 3, 2)
    assert np.array_equal(alone, together)
    assert len(np.unique(alone)) > 1
