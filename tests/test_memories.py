"""Replay memories: the published algorithms item by item, who is offered and when, and what is remembered with it."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chisquare

from clients.memories import Ints, Memory, Records
from clients.memories.class_balanced import ClassBalanced
from clients.memories.reservoir import Reservoir
from clients.optimizers import SGD
from clients.records import fresh, record_dtype
from clients.trainer import Stepwise
from fedcl.answers import Layout
from fedcl.keys import Bits, Purpose, at, below, key
from tests.federations import Clients, tiny

RARE = 1e-3
CLASSES = 5
examples = settings(deadline=None, max_examples=40)
streams = st.lists(st.integers(0, CLASSES - 1), max_size=60)


def records(memory: Memory, k: int) -> Records:
    """Return fresh records of k clients with this memory."""
    dtype = record_dtype(
        tasks=1, classes=CLASSES, memory=memory, logits=False, optimizer=SGD(), parameters=Layout(()), personal=0,
        real="<f4",
    )  # fmt: skip
    return np.repeat(fresh(dtype), k)


def padded(rows: list[list[int]]) -> tuple[Ints, Ints]:
    """Return ragged label lists as labels (k, o) and validity (k, o)."""
    width = max((len(row) for row in rows), default=0)
    labels, valid = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.bool_)
    for i, row in enumerate(rows):
        labels[i, : len(row)], valid[i, : len(row)] = row, True
    return labels, valid


def write(held: Records, labels: Ints, slots: Ints) -> None:
    """Write labels where the policy wants them, in stream order."""
    for row, column in zip(*np.nonzero(slots >= 0), strict=True):
        held["labels"][row, slots[row, column]] = labels[row, column]


def alone(memory: Memory, labels: list[int], own: Bits, cuts: Iterable[int] = ()) -> tuple[list[int], Records]:
    """Offer one client its stream, cut into several visits; return the slots and the record."""
    held, found, edges = records(memory, 1), [], [0, *sorted(cuts), len(labels)]
    for begin, end in pairwise(edges):
        shown, valid = padded([labels[begin:end]])
        slots = memory.slots(held, shown, valid, own[None])
        write(held, shown, slots)
        found += slots[0].tolist()
    return found, held


def algorithm_r(size: int, n: int, own: Bits) -> list[int]:
    """Return the slot of each of n items as in Vitter (1985): the first `size` fill it, then j = random(0..i)."""
    slots = []
    for i in range(n):
        j = i if i < size else int(below(at(own, np.array(i)), i + 1))
        slots.append(j if j < size else -1)
    return slots


def chrysakis_moens(size: int, labels: list[int], own: Bits) -> list[int]:
    """Return the slot of each item as in Chrysakis and Moens (2020), algorithm 1, with the same draws."""
    memory: list[int] = []
    seen, full, slots = Counter[int](), set[int](), []
    for i, c in enumerate(labels):
        seen[c] += 1
        if len(memory) < size:
            memory.append(c)
            slots.append(len(memory) - 1)
            continue
        held = Counter(memory)
        largest = {each for each in held if held[each] == max(held.values())}
        full |= largest
        u, pick = (at(own, np.array(2 * i + j)) for j in (0, 1))
        victims = [slot for slot, each in enumerate(memory) if (each == c if c in full else each in largest)]
        if c in full and int(below(u, seen[c])) >= held[c]:
            slots.append(-1)
            continue
        slots.append(victims[int(below(pick, len(victims)))])
        memory[slots[-1]] = c
    return slots


# Reservoir


@examples
@given(rows=st.lists(streams, min_size=1, max_size=4), size=st.integers(1, 12), seed=st.integers(0, 2**40))
def test_reservoir_is_algorithm_r_alone_and_in_a_cohort(rows: list[list[int]], size: int, seed: int):
    memory, own = Reservoir(size=size), key(seed, Purpose.ADMIT, np.arange(len(rows)))
    together, (labels, valid) = records(memory, len(rows)), padded(rows)
    slots = memory.slots(together, labels, valid, own)
    for i, row in enumerate(rows):
        expected = algorithm_r(size, len(row), own[i])
        assert slots[i, : len(row)].tolist() == expected
        assert (slots[i, len(row) :] == -1).all()
        assert alone(memory, row, own[i])[0] == expected
        assert (together["seen"][i], together["count"][i]) == (len(row), min(size, len(row)))


def test_reservoir_skips_items_that_are_not_offered():
    """Items 1 and 3 are not offered: the others are numbered 0, 1, 2."""
    memory, own = Reservoir(size=2), key(0, Purpose.ADMIT, np.arange(1))
    valid = np.array([[True, False, True, False, True]])
    slots = memory.slots(records(memory, 1), np.zeros((1, 5), np.int64), valid, own)
    assert slots[0, [1, 3]].tolist() == [-1, -1]
    assert slots[0, [0, 2, 4]].tolist() == algorithm_r(2, 3, own[0])


def kept(slots: Ints, size: int) -> Ints:
    """Return which item (streams, size) lies in each slot at the end, -1 for none."""
    last = np.full((len(slots), size), -1)
    for column in range(slots.shape[1]):
        rows = np.flatnonzero(slots[:, column] >= 0)
        last[rows, slots[rows, column]] = column
    return last


def test_reservoir_keeps_every_item_with_probability_size_over_n():
    """10,000 streams of 40 items, 10 slots: each item is kept 2,500 times, in every part of the stream.

    The 40 counts add up to 10 a stream, so they are negatively correlated: X^2 (n - 1) / n is chi-squared with n - 1
    degrees of freedom, X^2 the sum of squared deviations over the binomial variance.
    """
    n, size, N = 40, 10, 10_000
    memory, own = Reservoir(size=size), key(7, Purpose.ADMIT, np.arange(N))
    slots = memory.slots(records(memory, N), np.zeros((N, n), np.int64), np.ones((N, n), np.bool_), own)
    last = kept(slots, size)
    assert (last >= 0).all()
    counts, p = np.bincount(last.ravel(), minlength=n), size / n
    statistic = ((counts - N * p) ** 2).sum() / (N * p * (1 - p)) * (n - 1) / n
    assert chi2.sf(statistic, n - 1) > RARE
    assert chi2.cdf(statistic, n - 1) > RARE  # nor too even to be random
    late = np.bincount(slots[:, size:][slots[:, size:] >= 0], minlength=size)
    assert chisquare(late).pvalue > RARE  # displaced slots are uniform


def test_reservoir_keeps_pairs_as_often_as_it_should():
    """Two given items are kept together with probability s (s - 1) / (n (n - 1)): the sample is simple random."""
    n, size, N = 8, 4, 10_000
    memory, own = Reservoir(size=size), key(8, Purpose.ADMIT, np.arange(N))
    slots = memory.slots(records(memory, N), np.zeros((N, n), np.int64), np.ones((N, n), np.bool_), own)
    code = (1 << kept(slots, size)).sum(axis=1)
    subsets = np.bincount(code, minlength=1 << n)
    assert (subsets > 0).sum() == 70  # 8 choose 4
    assert chisquare(subsets[subsets > 0]).pvalue > RARE


# Class-balanced


def test_class_balanced_on_a_stream_worked_out_by_hand():
    """Four slots: how many of classes 0, 1, 2 are held after each item is the same whatever is drawn.

    The first four items fill the slots. The next class 2 and class 1 each displace one of class 0, the largest (3, then
    2 items). Then class 1 is the largest and loses one to class 2. By now each class was the largest once and is full:
    an item displaces one of its own class or nothing.
    """
    labels = [0, 0, 0, 1, 2, 1, 2, 0, 1, 1]
    expected = [[1, 0, 0], [2, 0, 0], [3, 0, 0], [3, 1, 0], [2, 1, 1], [1, 2, 1], *[[1, 1, 2]] * 4]
    memory, offered = ClassBalanced(size=4), np.ones((1, 1), np.bool_)
    for own in key(3, Purpose.ADMIT, np.arange(50)):
        held, found = records(memory, 1), []
        for label in labels:
            write(held, np.array([[label]]), memory.slots(held, np.array([[label]]), offered, own[None]))
            found.append(np.bincount(held["labels"][0, : int(held["count"][0])], minlength=3).tolist())
        assert found == expected
        assert held["class_full"][0].tolist() == [True, True, True, False, False]
        assert held["class_seen"][0].tolist() == [4, 4, 2, 0, 0]


@examples
@given(rows=st.lists(streams, min_size=1, max_size=4), size=st.integers(1, 8), seed=st.integers(0, 2**40))
def test_class_balanced_is_the_papers_algorithm_alone_and_in_a_cohort(rows: list[list[int]], size: int, seed: int):
    memory, own = ClassBalanced(size=size), key(seed, Purpose.ADMIT, np.arange(len(rows)))
    together, (labels, valid) = records(memory, len(rows)), padded(rows)
    slots = memory.slots(together, labels, valid, own)
    for i, row in enumerate(rows):
        expected = chrysakis_moens(size, row, own[i])
        assert slots[i, : len(row)].tolist() == expected
        assert (slots[i, len(row) :] == -1).all()
        assert alone(memory, row, own[i])[0] == expected
        assert together["count"][i] == min(size, len(row))


@examples
@given(labels=streams, size=st.integers(1, 8), seed=st.integers(0, 2**40))
def test_class_balanced_takes_from_the_largest_or_from_its_own(labels: list[int], size: int, seed: int):
    """Never more than `size`; the largest class never grows once there is no room."""
    memory, own = ClassBalanced(size=size), key(seed, Purpose.ADMIT, np.array(0))
    held: list[int] = []
    for label, slot in zip(labels, alone(memory, labels, own)[0], strict=True):
        before = Counter(held)
        if slot == len(held):
            held.append(label)
        elif slot >= 0:
            displaced, held[slot] = held[slot], label
            assert displaced == label or before[displaced] == max(before.values())
            assert Counter(held)[label] <= max(before.values())
    assert len(held) == min(size, len(labels))


def test_class_balanced_holds_classes_evenly_whatever_their_frequency():
    """900 items of class 0, 60 of class 1, 40 of class 2, shuffled: 12 slots hold 4 of each."""
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [900, 60, 40])).tolist()
    memory = ClassBalanced(size=12)
    for own in key(1, Purpose.ADMIT, np.arange(20)):
        _, held = alone(memory, labels, own)
        assert np.bincount(held["labels"][0], minlength=3).tolist() == [4, 4, 4]


def test_class_balanced_samples_uniformly_inside_a_class():
    """One class, 4 slots, 20 items, 4,000 streams: each item is kept 800 times (chi-squared as for the reservoir)."""
    n, size, N = 20, 4, 4_000
    memory, own = ClassBalanced(size=size), key(9, Purpose.ADMIT, np.arange(N))
    slots = memory.slots(records(memory, N), np.zeros((N, n), np.int64), np.ones((N, n), np.bool_), own)
    counts, p = np.bincount(kept(slots, size).ravel(), minlength=n), size / n
    statistic = ((counts - N * p) ** 2).sum() / (N * p * (1 - p)) * (n - 1) / n
    assert chi2.sf(statistic, n - 1) > RARE


@examples
@given(
    labels=streams,
    size=st.integers(1, 8),
    cuts=st.lists(st.integers(0, 60), max_size=5),
    policy=st.sampled_from([Reservoir, ClassBalanced]),
)
def test_decisions_do_not_depend_on_how_a_stream_is_cut(
    labels: list[int], size: int, cuts: list[int], policy: type[Memory]
):
    memory, own = policy(size=size), key(5, Purpose.ADMIT, np.array(2))
    whole, cut = alone(memory, labels, own), alone(memory, labels, own, [min(c, len(labels)) for c in cuts])
    assert whole[0] == cut[0]
    assert whole[1].tobytes() == cut[1].tobytes()


# Who is offered, over visits


def er(*overrides: str) -> Clients:
    """Return clients with replay; 96 items of 4 classes in 2 tasks, 12 items a client and task."""
    return Clients.of(tiny("client.method=er", *overrides))


def seen_after(clients: Clients, visits: list[tuple[int, int, int]]) -> list[int]:
    """Return what client 1 was offered in all after each visit (round, task, clock)."""
    found = []
    for round, task, clock in visits:
        clients.visit(clients.initial, [1], round=round, task=task, clock=clock)
        found.append(int(clients.record(1)["seen"]))
    return found


def test_first_seen_offers_each_item_once():
    visits = [(1, 0, 0), (2, 0, 1), (3, 1, 2), (4, 1, 3), (5, 0, 0)]  # the last is a task met again
    assert seen_after(er("client.epochs=3"), visits) == [12, 12, 24, 24, 24]


def test_every_pass_offers_every_item_again_in_every_epoch():
    visits = [(1, 0, 0), (2, 0, 1), (3, 1, 2), (4, 0, 0)]
    assert seen_after(er("client.epochs=3", "client.memory.admit=every_pass"), visits) == [36, 72, 108, 144]


def online(*overrides: str) -> Clients:
    """Return clients whose tasks last three rounds, a third of the items each."""
    return er("stream.schedule={kind: synchronous, rounds_per_task: 3, online: true}", *overrides)


@pytest.mark.parametrize(("admit", "again"), [("first_seen", 12), ("every_pass", 16)])
def test_slices_of_an_online_stream_are_offered_as_they_come(admit: str, again: int):
    """Clocks 0, 1, 2 are the three slices of task 0; a task that is met again starts over with what it knows."""
    visits = [(1, 0, 0), (2, 0, 1), (3, 0, 2), (4, 0, 0)]
    assert seen_after(online(f"client.memory.admit={admit}"), visits) == [4, 8, 12, again]


def test_a_large_memory_holds_each_item_exactly_once():
    """Three online slices, revisits and another task: the memory holds the client's cells, every item once."""
    clients = online("client.memory.size=50", "client.epochs=2")
    for round, (task, clock) in enumerate([(0, 0), (0, 1), (0, 2), (0, 0), (1, 3), (1, 4), (1, 5), (0, 1)], start=1):
        clients.visit(clients.initial, [1, 3], round=round, task=task, clock=clock)
    cells = clients.site.stream.train
    for client in (1, 3):
        own, expected = clients.record(client), np.concatenate([cells.cell(client, task) for task in (0, 1)])
        n = int(own["count"])
        assert n == 24
        assert sorted(own["items"][:n].tolist()) == sorted(expected.tolist())
        assert (own["labels"][:n] == clients.site.stream.dataset.y[own["items"][:n]]).all()
        assert own["tasks"][:n].tolist() == (own["labels"][:n] // 2).tolist()  # classes 0, 1 are task 0


def test_tasks_that_share_items_offer_each_of_them_as_another_entry():
    clients = er("stream.kind=domain-incremental", "client.memory.size=60")
    for round, task in enumerate((0, 1, 0), start=1):
        clients.visit(clients.initial, [1], round=round, task=task, clock=2 * task)
    own, cell = clients.record(1), clients.site.stream.train.cell(1, 0)
    assert own["seen"] == 2 * len(cell)
    entries = set(zip(own["items"][: own["seen"]].tolist(), own["tasks"][: own["seen"]].tolist(), strict=True))
    assert entries == {(item, task) for item in cell.tolist() for task in (0, 1)}


@pytest.mark.parametrize("policy", ["reservoir", "class-balanced"])
def test_memories_evict_and_the_table_counts_it(policy: str):
    """12 items into 5 slots: evicted = kept - 5 in the first visit, all of those kept afterwards."""
    clients = er(f"client.memory={{policy: {policy}, size: 5}}")
    own = key(0, Purpose.ADMIT, np.array(1))
    first = clients.visit(clients.initial, [1], round=1)
    second = clients.visit(clients.initial, [1], round=2, task=1, clock=2)
    if policy == "reservoir":
        slots = np.array(algorithm_r(5, 24, own))
        expected = [(slots[:12] >= 0).sum() - 5, (slots[12:] >= 0).sum()]
        assert [int(reply.table["evicted"][0]) for reply in (first, second)] == expected
        assert sum(expected) > 0
    else:
        assert second.table["evicted"][0] >= 2  # room must be made for the new classes
        held = Counter(clients.record(1)["labels"].tolist())
        assert sorted(held) == [0, 1, 2, 3]
        assert max(held.values()) == 2


def test_memories_are_the_same_alone_and_in_a_cohort():
    """Padding to the longest client of a cohort changes nothing."""
    uneven = "stream.partition={kind: 'tests.federations:Uneven', sizes: [2, 23, 7]}"
    together, apart = er(uneven, "client.epochs=2"), er(uneven, "client.epochs=2")
    for round, (task, clock) in enumerate([(0, 0), (1, 2)], start=1):
        together.visit(together.initial, [1, 3, 2, 0], round=round, task=task, clock=clock)
        for client in (0, 1, 2, 3):
            apart.visit(apart.initial, [client], round=round, task=task, clock=clock)
    for client in range(4):
        assert together.held[client].tobytes() == apart.held[client].tobytes()
    assert together.record(1)["seen"] == 46


# Batches larger than what there is


@pytest.mark.parametrize(("size", "expected"), [(5, 12), (40, 40)])
def test_a_batch_is_no_wider_than_the_largest_client_and_a_replayed_one_than_the_memory(
    size: int, expected: int
) -> None:
    """client.batch = 100,000 for "all": 12 rows of 12 items, and as many of the memory as it or a batch has."""
    seen: list[tuple[int, int]] = []
    feed = Stepwise.feed

    def spy(self: Stepwise, *given: Any) -> Any:
        seen.append(tuple(self.items.shape[1:]))
        return feed(self, *given)

    chosen = ("client.method=er", f"client.memory.size={size}", "model.dtype=float64", "client.epochs=2")
    wide, exact = (Clients.of(tiny(*chosen, f"client.batch={batch}")) for batch in (100_000, 12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepwise, "feed", spy)
        found = wide.visit(wide.initial, [0, 1], round=1).total
    assert set(seen) == {(2, 12), (2, expected)}
    if size == 5:
        assert np.abs(found - exact.visit(exact.initial, [0, 1], round=1).total).max() < 1e-12
