"""Walk the rounds and count: every schedule brings every client through its whole stream, in its own time."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcl import config
from fedcl.errors import ConfigError
from fedcl.streams.schedule import Entry, Explicit, Own, Schedule, Synchronous, Timeline


def walk(timeline: Timeline) -> np.ndarray:
    """Return the task (rounds, clients) of every round where everybody is asked every time."""
    clients = len(timeline.start)
    visits, seen = np.zeros(clients, np.int64), []
    for round in range(1, timeline.rounds + 1):
        seen.append(timeline.tasks(timeline.positions(timeline.clocks(round, visits))))
        visits += seen[-1] >= 0
    return np.array(seen)


def runs(tasks: np.ndarray) -> list[tuple[int, int]]:
    """Return (task, length) of each stretch of one client's column."""
    edges = np.flatnonzero(np.diff(tasks, prepend=-9, append=-9))
    return [(int(tasks[a]), int(b - a)) for a, b in pairwise(edges)]


schedules = st.one_of(
    st.builds(Synchronous, rounds_per_task=st.integers(1, 6), clock=st.sampled_from(["rounds", "participations"])),
    st.builds(
        Own,
        rounds_per_task=st.integers(1, 6),
        order=st.sampled_from(["same", "random"]),
        spread=st.floats(0, 0.9),
        start=st.integers(0, 5),
        clock=st.sampled_from(["rounds", "participations"]),
    ),
)


@given(schedule=schedules, clients=st.integers(1, 6), tasks=st.integers(1, 5), seed=st.integers(0, 2**40))
def test_every_client_meets_every_task_for_its_whole_length(schedule: Schedule, clients, tasks, seed):
    timeline = schedule.timeline(clients, tasks, per_round=clients, seed=seed)
    walked = walk(timeline)
    for client in range(clients):
        expected = np.diff(timeline.begin[client])
        assert sorted(timeline.order[client].tolist()) == list(range(tasks))
        column = walked[:, client]
        assert (column[: timeline.start[client]] == -1).all()
        assert runs(column[column >= 0]) == list(zip(timeline.order[client].tolist(), expected.tolist(), strict=True))


@given(schedule=schedules, clients=st.integers(1, 6), tasks=st.integers(1, 5), seed=st.integers(0, 2**40))
def test_each_position_is_left_exactly_once(schedule: Schedule, clients, tasks, seed):
    timeline = schedule.timeline(clients, tasks, per_round=clients, seed=seed)
    left, visits = np.zeros(clients, np.int64), np.zeros(clients, np.int64)
    for round in range(1, timeline.rounds + 1):
        before = timeline.positions(timeline.clocks(round, visits))
        visits += timeline.tasks(before) >= 0
        left += timeline.finished(before, timeline.positions(timeline.clocks(round + 1, visits)))
    assert left.tolist() == [tasks] * clients


def test_synchronous_by_hand():
    timeline = Synchronous(rounds_per_task=2).timeline(2, 3, per_round=1, seed=5)
    assert timeline.rounds == 6
    assert walk(timeline).T.tolist() == [[0, 0, 1, 1, 2, 2]] * 2


@pytest.mark.parametrize(
    ("rounds", "spread", "expected"),
    [
        (30, 0.5, (15, 45)),
        (30, 0.7, (9, 51)),
        (30, 0.1, (27, 33)),
        (1, 0.9, (1, 1)),
        (10, 0.0, (10, 10)),
        (2, 0.6, (1, 3)),
    ],
)
def test_own_lengths_lie_in_their_interval(rounds, spread, expected):
    own = Own(rounds_per_task=rounds, spread=spread)
    assert own.lengths() == expected
    lengths = np.diff(own.timeline(500, 4, per_round=5, seed=0).begin, axis=1)
    assert (lengths.min(), lengths.max()) == expected


def test_own_orders_and_starts_are_uniform_and_follow_the_client_not_the_population():
    own = Own(start=3)
    timeline, fewer = own.timeline(6000, 3, per_round=5, seed=1), own.timeline(10, 3, per_round=5, seed=1)
    _, orders = np.unique(timeline.order, axis=0, return_counts=True)
    assert len(orders) == 6
    assert orders.min() > 850
    assert np.bincount(timeline.start, minlength=4).min() > 1350
    assert (timeline.order[:10] == fewer.order).all()
    assert (timeline.begin[:10] == fewer.begin).all()
    assert (own.timeline(10, 3, per_round=5, seed=2).order != fewer.order).any()


def test_own_in_the_same_order():
    assert (Own(order="same").timeline(4, 3, per_round=4, seed=0).order == np.arange(3)).all()


EXPLICIT = Explicit(
    clients=[
        Entry(tasks=[2, 0], rounds=[2, 1]),
        Entry(start=2, tasks=[1, 2, 1], rounds=[1, 1, 2]),
    ]
)


def test_explicit_by_hand():
    timeline = EXPLICIT.timeline(2, 3, per_round=2, seed=0)
    assert timeline.order.tolist() == [[2, 0, -1], [1, 2, 1]]
    assert timeline.begin.tolist() == [[0, 2, 3, 3], [0, 1, 2, 4]]
    assert timeline.rounds == 6
    assert walk(timeline).T.tolist() == [[2, 2, 0, -1, -1, -1], [-1, -1, 1, 2, 1, 1]]
    assert timeline.positions(np.array([-1, -2])).tolist() == [-1, -1]
    assert timeline.positions(np.array([3, 4])).tolist() == [2, 3]
    assert timeline.positions(np.array([99, 99])).tolist() == [2, 3]


def test_finished_by_hand():
    timeline = EXPLICIT.timeline(2, 3, per_round=2, seed=0)
    before = np.array([-1, 0])
    assert timeline.finished(before, np.array([0, 0])).tolist() == [False, False]
    assert timeline.finished(np.array([0, 2]), np.array([1, 3])).tolist() == [True, True]
    assert timeline.finished(np.array([2, 3]), np.array([2, 3])).tolist() == [False, False]


def test_participations_count_visits_and_wait_for_the_start():
    schedule = Explicit(clients=EXPLICIT.clients, clock="participations")
    timeline = schedule.timeline(2, 3, per_round=1, seed=0)
    visits = np.array([1, 0])
    assert timeline.clocks(2, visits).tolist() == [1, -1]
    assert timeline.clocks(3, visits).tolist() == [1, 0]
    assert timeline.clocks(50, visits).tolist() == [1, 0]
    # The longest stream has 4 visits; a client is asked every second round; the last one joins after 2 rounds.
    assert timeline.rounds == 4 * 2 // 1 + 2


def test_default_rounds_and_rounds_asked_for():
    assert Synchronous(rounds_per_task=3, clock="participations").timeline(10, 2, per_round=3, seed=0).rounds == 20
    assert Synchronous(rounds_per_task=3, clock="participations").timeline(10, 2, per_round=7, seed=0).rounds == 9
    assert Synchronous(rounds_per_task=3, rounds=4).timeline(10, 2, per_round=3, seed=0).rounds == 4


def test_slots_by_hand():
    timeline = EXPLICIT.timeline(2, 3, per_round=2, seed=0)
    slot, length = timeline.slots(np.array([0, 0, 1, 1, 1, 0]), np.array([1, 2, 3, 4, -1, 0]))
    assert slot.tolist() == [1, 0, 1, 0, 0, 0]
    assert length.tolist() == [2, 1, 2, 1, 1, 2]


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([Entry(tasks=[0], rounds=[1])], r"clients: 1 entries for 2 clients; .* stream\.clients = 1"),
        (
            [Entry(tasks=[0], rounds=[1]), Entry(tasks=[3], rounds=[1])],
            r"clients\[1\]\.tasks = \[3\]: there is no task 3",
        ),
        (
            [Entry(tasks=[0], rounds=[]), Entry(tasks=[1], rounds=[1])],
            r"clients\[0\]\.rounds = \[\]: must be 1 lengths",
        ),
        ([Entry(tasks=[0], rounds=[0]), Entry(tasks=[1], rounds=[1])], r"clients\[0\]\.rounds = \[0\]: .* at least 1"),
        ([Entry(tasks=[0], rounds=[1]), Entry()], r"clients\[1\]\.tasks = \[\]: must name at least one task"),
        ([Entry(start=-1, tasks=[0], rounds=[1])] * 2, r"clients\[0\]\.start = -1: must be at least 0"),
    ],
)
def test_explicit_mistakes(entries, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Explicit(clients=entries).timeline(2, 3, per_round=2, seed=0)


def test_explicit_from_a_scenario_and_back():
    plain = {"clients": [{"tasks": [0, 1], "rounds": [2, 1]}, {"start": 1, "tasks": [1], "rounds": [4]}]}
    schedule = config.build(Explicit, plain)
    timeline = schedule.timeline(2, 2, per_round=2, seed=0)
    assert timeline.begin.tolist() == [[0, 2, 3], [0, 4, 4]]
    again = config.build(Explicit, config.as_dict(schedule))
    assert again.entries() == schedule.entries()


@pytest.mark.parametrize(
    "entry", [{"tasks": [0], "rounds": [1], "begin": 3}, {"tasks": ["a"], "rounds": [1]}, {"tasks": 0, "rounds": 1}]
)
def test_explicit_entries_of_the_wrong_form_are_named(entry):
    with pytest.raises(ConfigError, match=r"schedule\.clients"):
        config.build(Explicit, {"clients": [entry]}, "stream.schedule")
