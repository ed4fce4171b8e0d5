"""Counter-based randomness: the published generator, draws that depend on their key and position alone, uniform."""

from itertools import permutations, product

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from fedcl import keys
from fedcl.keys import Purpose, at, below, bits, key

# One test in a thousand would fail by chance with another seed; these seeds are fixed.
RARE = 1e-3
seeds = st.integers(0, 2**62)
examples = settings(deadline=None, max_examples=30)


def test_draws_are_those_of_the_published_splitmix64():
    # Vigna's splitmix64.c from state 1234567: its first outputs are published with many ports.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert bits(np.uint64(1234567), 4).tolist() == expected


@examples
@given(seed=seeds, n=st.integers(1, 60), more=st.integers(0, 60))
def test_a_draw_depends_on_its_position_and_never_on_how_many_are_drawn(seed: int, n: int, more: int):
    own = key(seed, Purpose.SHUFFLE, np.arange(3))
    drawn = bits(own, n + more)
    assert (drawn[:, :n] == bits(own, n)).all()
    assert (at(own, np.array(n - 1)) == drawn[:, n - 1]).all()


@examples
@given(seed=seeds, client=st.integers(0, 10**7), round=st.integers(0, 10**6))
def test_a_key_alone_equals_the_key_in_a_cohort(seed: int, client: int, round: int):
    clients = np.array([0, client, client + 1, 3])
    together = key(seed, Purpose.REPLAY, clients[:, None], np.array([round, 7]))
    assert together.shape == (4, 2)
    assert together[1, 0] == key(seed, Purpose.REPLAY, client, round)
    assert together[2, 1] == key(seed, Purpose.REPLAY, client + 1, 7)


def test_no_two_purposes_seeds_clients_or_rounds_share_a_key_or_a_draw():
    """4 seeds x all purposes x 40 clients x 40 rounds, 3 draws each: 2^64 values leave no room for an accident."""
    clients, rounds = np.arange(40)[:, None], np.arange(40)
    found = [bits(key(seed, purpose, clients, rounds), 3) for seed, purpose in product(range(4), Purpose)]
    drawn = np.concatenate([each.ravel() for each in found])
    assert len(drawn) == 4 * len(Purpose) * 40 * 40 * 3
    assert len(np.unique(drawn)) == len(drawn)


def test_order_and_number_of_parts_matter():
    several = [
        key(0, Purpose.MODEL),
        key(0, Purpose.MODEL, 0),
        key(0, Purpose.MODEL, 0, 1),
        key(0, Purpose.MODEL, 1, 0),
    ]
    assert len({int(each) for each in several}) == 4


def test_draws_below_a_limit_are_uniform():
    """100 bins over positions, over clients and over rounds: each is a sequence that some part of the code walks."""
    n, bins = 50_000, 100
    walks = {
        "positions": bits(key(0, Purpose.REPLAY, 5, 3), n),
        "clients": at(key(0, Purpose.REPLAY, np.arange(n), 3), np.array(0)),
        "rounds": at(key(0, Purpose.REPLAY, 5, np.arange(n)), np.array(0)),
        "seeds": key(np.arange(n), Purpose.REPLAY, 5),
    }
    for walk, drawn in walks.items():
        assert chisquare(np.bincount(below(drawn, bins), minlength=bins)).pvalue > RARE, walk


def test_neighbours_are_independent():
    """Pairs of draws of neighbouring clients, and of neighbouring positions, fill a 16 x 16 table evenly."""
    drawn = below(bits(key(1, Purpose.SHUFFLE, np.arange(400)), 200), 16)
    for first, second in ((drawn[:-1], drawn[1:]), (drawn[:, :-1], drawn[:, 1:])):
        table = np.bincount((16 * first[::2, ::2] + second[::2, ::2]).ravel(), minlength=256)
        assert table.sum() >= 19_900
        assert chisquare(table).pvalue > RARE


@examples
@given(draw=st.integers(0, 2**64 - 1), limit=st.integers(1, 2**31 - 1))
def test_below_stays_inside_and_rises_with_the_draw(draw: int, limit: int):
    """floor(limit * draw / 2^64), but for the lower 32 bits of the draw, which are not looked at."""
    found = int(below(np.array(draw, np.uint64), limit))
    assert found == limit * (draw >> 32) >> 32
    assert 0 <= found < limit


def test_below_reaches_both_ends():
    ends = np.array([0, 2**64 - 1], np.uint64)
    for limit in (1, 2, 10, 2**31 - 1):
        assert below(ends, limit).tolist() == [0, limit - 1]
    assert below(ends, 0).tolist() == [0, 0]


@examples
@given(seed=seeds, lengths=st.lists(st.integers(0, 20), min_size=1, max_size=5), padding=st.integers(0, 30))
def test_permutations_do_not_depend_on_padding_or_company(seed: int, lengths: list[int], padding: int):
    own, n = key(seed, Purpose.SHUFFLE, np.arange(len(lengths))), np.array(lengths)
    width = max(lengths) + padding
    found = keys.permutations(own, n, width)
    for row, length in enumerate(lengths):
        alone = keys.permutations(own[[row]], n[[row]], length)[0]
        assert sorted(alone.tolist()) == list(range(length))
        assert found[row, :length].tolist() == alone.tolist()
        assert found[row, length:].tolist() == list(range(length, width))


def test_all_permutations_are_equally_likely():
    n = 24_000
    found = keys.permutations(key(0, Purpose.SHUFFLE, np.arange(n)), np.full(n, 4), 7)[:, :4]
    number = {each: i for i, each in enumerate(permutations(range(4)))}
    counts = np.bincount([number[tuple(each)] for each in found.tolist()], minlength=24)
    assert chisquare(counts).pvalue > RARE


def test_seeding_models_leaves_the_global_generator_where_it_was():
    before = torch.random.get_rng_state()
    drawn = []
    for seed in (3, 3, 4):
        with keys.seeded(seed, Purpose.MODEL):
            drawn.append(torch.rand(5))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_generators_are_keyed():
    drawn = [
        keys.generator(0, purpose, part).random(4).tolist()
        for purpose in (Purpose.DATA, Purpose.TASKS)
        for part in (0, 1)
    ]
    assert len({tuple(each) for each in drawn}) == 4
    assert drawn[0] == keys.generator(0, Purpose.DATA, 0).random(4).tolist()
