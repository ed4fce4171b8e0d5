"""Every partition gives every item exactly one owner, and cells and dealt test items follow from it without loss."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcl.errors import ConfigError
from fedcl.settings import OutOfRange
from fedcl.streams.partition import IID, Cells, Dirichlet, Partition, Shards, deal, deal_class, group, top_up

PARTITIONS = [IID(), Dirichlet(alpha=0.05), Dirichlet(), Dirichlet(alpha=100.0), Shards(), Shards(per_client=5)]
labels_of = st.lists(st.integers(0, 6), max_size=120).map(lambda values: np.array(values, np.int64))
seeds = st.integers(0, 2**32)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("partition", PARTITIONS, ids=repr)
@given(labels=labels_of, clients=st.integers(1, 40), seed=seeds)
def test_every_item_has_exactly_one_owner(partition: Partition, labels, clients, seed):
    owner = partition.assign(labels, clients, rng(seed))
    assert owner.shape == labels.shape
    assert owner.dtype == np.int64
    assert ((owner >= 0) & (owner < clients)).all()


@pytest.mark.parametrize("partition", PARTITIONS, ids=repr)
def test_the_same_generator_gives_the_same_owners(partition: Partition):
    labels = np.arange(200) % 10
    first, again, other = (partition.assign(labels, 7, rng(seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


@given(labels=labels_of, clients=st.integers(1, 40), seed=seeds)
def test_iid_sizes_differ_by_at_most_one(labels, clients, seed):
    counts = np.bincount(IID().assign(labels, clients, rng(seed)), minlength=clients)
    assert counts.max() - counts.min() <= 1


@given(
    labels=labels_of,
    clients=st.integers(1, 20),
    least=st.integers(0, 6),
    alpha=st.sampled_from([0.01, 1.0]),
    seed=seeds,
)
def test_dirichlet_gives_everyone_the_minimum_or_says_that_it_cannot(labels, clients, least, alpha, seed):
    partition = Dirichlet(alpha=alpha, min_samples=least)
    if least * clients > len(labels):
        with pytest.raises(ConfigError, match=rf"min_samples = {least}: .* at most {len(labels) // clients}"):
            partition.assign(labels, clients, rng(seed))
    else:
        counts = np.bincount(partition.assign(labels, clients, rng(seed)), minlength=clients)
        assert counts.min() >= least


def test_top_up_takes_from_the_richest_only_what_is_missing():
    owner = np.array([0] * 10 + [1] * 4 + [2])
    counts = np.bincount(top_up(owner, 4, 3, rng()), minlength=4)
    assert counts.tolist() == [5, 4, 3, 3]
    assert (top_up(owner, 3, 1, rng()) == owner).all()


def test_dirichlet_proportions_are_those_drawn():
    n, clients = 20_000, 5
    expected = rng(3)
    items = expected.permutation(n)
    shares = expected.dirichlet(np.full(clients, 0.5))
    counts = np.bincount(Dirichlet(alpha=0.5).assign(np.zeros(n, np.int64), clients, rng(3)), minlength=clients)
    assert np.abs(counts - n * shares).max() < 1
    assert len(items) == counts.sum()


def test_small_alpha_concentrates_and_large_alpha_equalises():
    labels = np.repeat(np.arange(10), 1000)

    def largest_share(alpha: float) -> float:
        owner = Dirichlet(alpha=alpha).assign(labels, 10, rng())
        return np.mean([np.bincount(owner[labels == c], minlength=10).max() / 1000 for c in range(10)])

    assert largest_share(0.01) > 0.9
    assert largest_share(1000.0) < 0.13


def test_shards_give_each_client_few_labels_and_equal_sizes():
    labels = rng().permutation(np.repeat(np.arange(10), 60))
    owner = Shards(per_client=2).assign(labels, 10, rng(1))
    assert np.bincount(owner).tolist() == [60] * 10
    assert max(len(np.unique(labels[owner == client])) for client in range(10)) <= 2


@given(clients=st.integers(1, 8), tasks=st.integers(1, 5), n=st.integers(0, 80), seed=seeds)
def test_cells_are_disjoint_and_cover_what_is_owned(clients, tasks, n, seed):
    draw = np.random.default_rng(seed)
    owner, task = draw.integers(-1, clients, n), draw.integers(0, tasks, n)
    cells = group(owner, task, clients, tasks, rng(seed))
    assert cells.start.shape == cells.count.shape == (clients, tasks)
    assert sorted(cells.items.tolist()) == np.flatnonzero(owner >= 0).tolist()
    for client in range(clients):
        for number in range(tasks):
            expected = np.flatnonzero((owner == client) & (task == number))
            assert sorted(cells.cell(client, number).tolist()) == expected.tolist()


def test_shared_cells_are_the_same_for_every_task():
    one = group(np.array([1, 0, 1]), np.zeros(3, np.int64), 2, 1, rng())
    cells = one.shared(4)
    assert cells.count.tolist() == [[1] * 4, [2] * 4]
    assert all((cells.cell(1, task) == one.cell(1, 0)).all() for task in range(4))
    assert isinstance(cells, Cells)
    assert cells.items is one.items


@given(n=st.integers(0, 50), counts=st.lists(st.integers(1, 30), min_size=1, max_size=12), seed=seeds)
def test_dealing_stays_within_one_of_the_exact_share(n, counts, seed):
    counts = np.array(counts)
    dealt = np.bincount(deal(n, counts, rng(seed)), minlength=len(counts))
    assert dealt.sum() == n
    assert np.abs(dealt - n * counts / counts.sum()).max() < 1


def test_dealing_by_hand():
    # Exact shares of 10 items for 1 : 2 : 4 are 1.43, 2.86 and 5.71: the two left over go to the last two.
    assert np.bincount(deal(10, np.array([1, 2, 4]), rng())).tolist() == [1, 3, 6]


def test_test_items_go_to_those_who_hold_the_class():
    dealt = deal_class(9, np.array([7, 7, 2]), rng())
    assert np.bincount(dealt, minlength=8).tolist() == [0, 0, 3, 0, 0, 0, 0, 6]
    assert deal_class(2, np.zeros(0, np.int64), rng()).tolist() == [-1, -1]


def test_settings_out_of_range():
    with pytest.raises(OutOfRange, match=r"alpha = 0\.0: must be above 0"):
        Dirichlet(alpha=0.0)
    with pytest.raises(OutOfRange, match="per_client = 0: must be at least 1"):
        Shards(per_client=0)
