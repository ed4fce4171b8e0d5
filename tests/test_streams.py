"""From a scenario to the stream: tasks, cells, spans, masks and permutations, and what is impossible."""

import time
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedcl.config import Scenario, StreamConfig
from fedcl.errors import ConfigError
from fedcl.source import source
from fedcl.streams import Dataset, Stream, build_stream, empty_cells
from fedcl.streams.datasets import Digits, Synthetic, _digits, held_out
from fedcl.streams.partition import IID, Dirichlet, Drawn, Shards
from fedcl.streams.schedule import Entry, Explicit, Own, Synchronous
from fedcl.streams.tasks import split_classes

KINDS = ["class-incremental", "task-incremental", "domain-incremental"]
SMALL = Synthetic(classes=6, features=3, samples=150, test_samples=60).load(None)


def scenario(seed: int = 0, **stream) -> Scenario:
    defaults = {"dataset": Synthetic(), "tasks": 3, "clients": 4, "partition": IID(), "schedule": Synchronous()}
    return Scenario(seed=seed, stream=StreamConfig(**{**defaults, **stream}))


def small_stream(seed: int = 0, **stream) -> Stream:
    return build_stream(scenario(seed, **stream), SMALL)


streams = st.builds(
    small_stream,
    seed=st.integers(0, 2**40),
    kind=st.sampled_from(KINDS),
    tasks=st.integers(1, 6),
    clients=st.integers(1, 9),
    shuffle_classes=st.booleans(),
    partition=st.sampled_from([IID(), Dirichlet(alpha=0.1), Shards()]),
    schedule=st.sampled_from([Synchronous(rounds_per_task=4), Own(rounds_per_task=4), Own(online=True)]),
)


@given(stream=streams)
def test_cells_of_a_task_are_disjoint_and_cover_it(stream: Stream):
    for task in stream.tasks:
        cells = [stream.train.cell(client, task.id) for client in range(len(stream.train.count))]
        expected = np.flatnonzero(np.isin(stream.dataset.y, task.classes))
        assert sorted(np.concatenate(cells).tolist()) == expected.tolist()


@given(stream=streams)
def test_own_test_items_partition_the_central_ones_of_the_classes_held(stream: Stream):
    for task in stream.tasks:
        cells = [stream.test.cell(client, task.id) for client in range(len(stream.test.count))]
        assert sorted(np.concatenate(cells).tolist()) == stream.central[task.id].tolist()
        for client, items in enumerate(cells):
            held = stream.dataset.y[stream.train.cell(client, task.id)]
            assert np.isin(stream.dataset.test_y[items], held).all()


@given(stream=streams)
def test_central_items_are_all_items_of_the_tasks_classes(stream: Stream):
    for task in stream.tasks:
        expected = np.flatnonzero(np.isin(stream.dataset.test_y, task.classes))
        assert stream.central[task.id].tolist() == expected.tolist()


@given(stream=streams)
def test_spans_of_a_position_cover_its_cell(stream: Stream):
    timeline = stream.timeline
    for client, task in zip(*np.nonzero(stream.own), strict=True):
        position = int(np.flatnonzero(timeline.order[client] == task)[0])
        clocks = range(*timeline.begin[client, position : position + 2].tolist())
        spans = [stream.span(int(client), int(task), clock) for clock in clocks]
        count = int(stream.train.count[client, task])
        if timeline.online:
            assert list(chain.from_iterable(range(*span) for span in spans)) == list(range(count))
            sizes = [stop - start for start, stop in spans]
            assert max(sizes) - min(sizes) <= 1
        else:
            assert set(spans) == {(0, count)}


@given(stream=streams, clock=st.integers(0, 40))
def test_sizes_are_those_of_the_items(stream: Stream, clock: int):
    clients = np.arange(len(stream.train.count))
    for tasks in (np.full(len(clients), -1), stream.timeline.order[:, 0]):
        sizes = stream.sizes(clients, tasks, np.full(len(clients), clock))
        for client, task, size in zip(clients.tolist(), tasks.tolist(), sizes.tolist(), strict=True):
            items, shown = stream.items(client, task, *stream.span(client, task, clock))
            assert len(items) == len(shown) == size


@pytest.mark.parametrize("kind", KINDS)
def test_joint_visits_take_every_cell_of_the_own_stream_once(kind: str):
    entries = [Entry(tasks=[2, 0, 2], rounds=[1, 2, 1])] * 4
    stream = small_stream(kind=kind, schedule=Explicit(clients=entries, online=True))
    start, stop = stream.span(1, -1, 0)
    items, tasks = stream.items(1, -1, start, stop)
    assert items.tolist() == stream.train.cell(1, 0).tolist() + stream.train.cell(1, 2).tolist()
    assert tasks.tolist() == [0] * stream.train.count[1, 0] + [2] * stream.train.count[1, 2]
    assert (start, stop) == (0, stream.totals[1])


def test_a_repeated_task_starts_over_in_an_online_stream():
    entries = [Entry(tasks=[0, 1, 0], rounds=[2, 1, 3])]
    stream = small_stream(clients=1, schedule=Explicit(clients=entries, online=True))
    assert stream.train.count[0].tolist() == [50, 50, 50]
    spans = [stream.span(0, task, clock) for clock, task in enumerate([0, 0, 1, 0, 0, 0])]
    assert spans == [(0, 25), (25, 50), (0, 50), (0, 16), (16, 33), (33, 50)]


def test_empty_cells_are_those_of_the_own_stream():
    labels = np.array([0, 0, 1, 1, 2, 2])
    data = Dataset(np.zeros((6, 1), np.float32), labels, np.zeros((3, 1), np.float32), np.arange(3), classes=3)
    entries = [Entry(tasks=[0, 1], rounds=[1, 1])] * 3
    stream = build_stream(scenario(clients=3, schedule=Explicit(clients=entries)), data)
    empty = empty_cells(stream)
    # Two items for three clients: one of them goes without; nobody ever meets task 2.
    assert [task for _, task in sorted(empty, key=lambda cell: cell[1])] == [0, 1]
    assert all(len(stream.train.cell(*cell)) == 0 for cell in empty)


def test_nobody_is_tested_on_a_class_that_nobody_holds():
    labels = np.array([0, 0, 1, 1])
    data = Dataset(np.zeros((4, 1), np.float32), labels, np.zeros((6, 1), np.float32), np.arange(6) % 3, classes=3)
    stream = build_stream(scenario(tasks=3, clients=2), data)
    assert stream.central[2].tolist() == [2, 5]
    assert stream.test.count.sum(axis=0).tolist() == [2, 2, 0]


def test_permutations_keep_task_0_and_permute_the_others():
    stream = small_stream(kind="domain-incremental", tasks=4)
    assert stream.permutations is not None
    assert stream.permutations.shape == (4, 3)
    assert stream.permutations[0].tolist() == [0, 1, 2]
    assert (np.sort(stream.permutations, axis=1) == np.arange(3)).all()
    more = small_stream(kind="domain-incremental", tasks=9).permutations
    assert more is not None
    assert (more[:4] == stream.permutations).all()
    assert small_stream(kind="class-incremental").permutations is None


def test_domain_incremental_tasks_share_storage():
    stream = small_stream(kind="domain-incremental", tasks=5)
    assert len(stream.train.items) == len(SMALL.y)
    assert all(np.shares_memory(stream.train.cell(0, 0), stream.train.cell(0, task)) for task in range(5))
    assert [task.classes for task in stream.tasks] == [tuple(range(6))] * 5


def test_masks():
    assert small_stream(kind="class-incremental").masks.all()
    masks = small_stream(kind="task-incremental", tasks=3).masks
    assert masks.astype(int).tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]


def test_classes_are_split_nearly_evenly():
    assert [task.classes for task in split_classes(np.arange(10), 4)] == [(0, 1, 2), (3, 4, 5), (6, 7), (8, 9)]
    shuffled = small_stream(shuffle_classes=True, seed=3).tasks
    assert sorted(sum((task.classes for task in shuffled), ())) == list(range(6))
    assert any(small_stream(shuffle_classes=True, seed=seed).tasks != shuffled for seed in range(3))
    assert small_stream(seed=1).tasks == small_stream(seed=2).tasks


def test_streams_of_the_same_seed_are_the_same():
    first, again, other = (small_stream(seed=seed, partition=Dirichlet()) for seed in (5, 5, 6))
    assert (first.train.items == again.train.items).all()
    assert (first.test.items == again.test.items).all()
    assert (first.train.count != other.train.count).any()


def test_digits():
    data = Digits().load(None)
    assert data.x.shape == (1438, 8, 8)
    assert data.test_x.shape == (359, 8, 8)
    assert data.x.dtype == np.uint8
    assert data.x.max() * data.scale == 1.0
    ratio = np.bincount(data.test_y) / (np.bincount(data.test_y) + np.bincount(data.y))
    assert np.abs(ratio - 0.2).max() < 0.003
    assert data.x.astype(int).sum() + data.test_x.astype(int).sum() == 561718  # of all 1,797 images


def test_held_out_is_stratified_and_fixed():
    labels = np.repeat([0, 1], [100, 10])
    chosen = held_out(labels, 0.2)
    assert [chosen[:100].sum(), chosen[100:].sum()] == [20, 2]
    assert (chosen == held_out(labels, 0.2)).all()


def test_synthetic_clusters_lie_at_their_distance():
    data = Synthetic(classes=4, features=8, samples=40_000, separation=5.0).load(None)
    means = np.stack([data.x[data.y == label].mean(axis=0) for label in range(4)])
    assert np.abs(np.linalg.norm(means, axis=1) - 5.0).max() < 0.05
    assert data.x.dtype == np.float32
    assert abs((data.x - means[data.y]).std() - 1) < 0.01
    test_means = np.stack([data.test_x[data.test_y == label].mean(axis=0) for label in range(4)])
    assert np.abs(means - test_means).max() < 0.5


def test_synthetic_seed_is_its_own():
    assert (Synthetic().load(None).x == Synthetic().load(None).x).all()
    assert (Synthetic(seed=1).load(None).x != Synthetic().load(None).x).any()


@pytest.mark.parametrize("kind", KINDS[:2])
def test_more_tasks_than_classes(kind: str):
    with pytest.raises(ConfigError, match=rf"stream\.tasks = 7: {kind} splits the 6 classes .* at most 6"):
        small_stream(kind=kind, tasks=7)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"y": np.array([0, 1])}, "3 training inputs but labels of shape"),
        ({"y": np.array([0, 1, 2])}, "training labels reach from 0 to 2; must be in"),
        ({"y": np.array([0.0, 1, 1])}, "labels float64"),
        ({"test_x": np.zeros((3, 5), np.float32)}, r"test inputs of shape \(5,\)"),
        ({"x": np.zeros((0, 4), np.float32), "y": np.zeros(0, np.int64)}, "training split is empty"),
    ],
)
def test_data_that_contradict_themselves(change, sentence):
    x, y = np.zeros((3, 4), np.float32), np.array([0, 1, 1])
    with pytest.raises(ConfigError, match=sentence):
        Dataset(**{"x": x, "y": y, "test_x": x, "test_y": y, "classes": 2, **change})


def test_a_hundred_thousand_clients_build_fast():
    started = time.perf_counter()
    stream = build_stream(scenario(tasks=5, clients=100_000, partition=Dirichlet(), schedule=Own()))
    built = time.perf_counter()
    assert built - started < 10  # about one second on a free core
    clients = np.arange(0, 100_000, 100)
    stream.sizes(clients, stream.timeline.order[clients, 0], np.zeros(1000, np.int64))  # computes what is cached
    assert stream.train.count.sum() == 2000
    assert stream.sizes(clients, stream.timeline.order[clients, 0], np.zeros(1000, np.int64)).shape == (1000,)


def test_the_digits_are_those_of_scikit_learn_with_and_without_it(monkeypatch: pytest.MonkeyPatch):
    """The file is there with the tested version, and is not needed."""
    from sklearn.datasets import load_digits

    expected = np.column_stack([load_digits().data, load_digits().target])
    monkeypatch.setattr("sklearn.datasets.load_digits", None)
    read = _digits()
    monkeypatch.undo()
    elsewhere = SimpleNamespace(distribution=lambda name: SimpleNamespace(locate_file=lambda file: f"/nowhere/{file}"))
    monkeypatch.setattr("fedcl.streams.datasets.metadata", elsewhere)
    for found in (read, _digits()):
        assert found.dtype == expected.dtype
        assert (found == expected).all()


# Drawn cells


@pytest.mark.parametrize("kind", ["class-incremental", "domain-incremental"])
def test_drawn_items_are_of_their_task_and_do_not_depend_on_who_else_there_is(kind: str):
    few, many = (
        small_stream(kind=kind, tasks=3, clients=n, partition=Drawn(samples=9, test_samples=4)) for n in (5, 500)
    )
    for client, task in [(0, 0), (4, 2), (3, 1)]:
        items, tested = few.train.cell(client, task), few.test.cell(client, task)
        assert items.tolist() == many.train.cell(client, task).tolist()
        assert (len(items), len(tested)) == (9, 4)
        assert set(SMALL.y[items]) | set(SMALL.test_y[tested]) <= set(few.tasks[task].classes)
    assert few.train.cell(0, 0).tolist() != few.train.cell(1, 0).tolist()
    same = few.train.cell(2, 0).tolist() == few.train.cell(2, 1).tolist()
    assert same == (kind == "domain-incremental")  # there tasks differ in how the same items are shown


def test_drawn_items_are_uniform():
    """20,000 draws of the 150 items of one task: chi-squared of 149 degrees below its 99.9 % quantile, 206."""
    stream = small_stream(tasks=1, clients=400, partition=Drawn(samples=50))
    counts = np.bincount(np.concatenate([stream.train.cell(client, 0) for client in range(400)]), minlength=150)
    assert ((counts - 20_000 / 150) ** 2 / (20_000 / 150)).sum() < 206


@pytest.mark.parametrize("partition", [IID(), Drawn(samples=9)], ids=["shared out", "drawn"])
def test_visits_taken_together_are_those_taken_one_by_one(partition):
    stream = small_stream(tasks=3, clients=5, partition=partition)
    clients, tasks = np.array([4, 0, 2]), np.array([2, 0, 1])
    starts, stops = np.array([0, 2, 1]), np.array([3, 6, 1])
    items, shown = stream.visited(clients, tasks, starts, stops)
    assert items.shape == shown.shape == (3, 4)
    for row, (client, task, start, stop) in enumerate(zip(clients, tasks, starts, stops, strict=True)):
        expected, task_of = stream.items(client, task, start, stop)
        assert items[row, : len(expected)].tolist() == expected.tolist()
        assert shown[row, : len(expected)].tolist() == task_of.tolist()
        assert not items[row, len(expected) :].any()


def test_a_million_drawn_clients_take_the_memory_of_a_few():
    """Each has the same number of items, which is held once; nothing of the cells grows with the clients."""
    stream = small_stream(tasks=1, clients=1_000_000, partition=Drawn(samples=50))
    assert stream.train.count.strides[0] == 0
    assert stream.train.items.nbytes + stream.train.start.nbytes < 10_000
    assert len(stream.train.cell(999_999, 0)) == 50


def test_inputs_made_beforehand_are_the_same_bits(monkeypatch: pytest.MonkeyPatch):
    stream = build_stream(scenario(kind="domain-incremental", tasks=3, clients=2), Digits().load(None))
    stored = source(stream, "train", torch.float32, torch.device("cpu"))
    kept = stored.x.clone()
    items, tasks = torch.arange(30).view(3, 10), torch.arange(3)[:, None].expand(3, 10)
    shown = stored.inputs(items, tasks)
    assert shown.max() == 1.0  # scaled
    assert torch.equal(stored.ready().inputs(items, tasks), shown)
    assert torch.equal(stored.x, kept)
    monkeypatch.setattr("fedcl.source.READY", kept.numel() - 1)
    assert stored.ready() is stored
