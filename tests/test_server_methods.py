"""Server methods and selection against what they are by definition; whole runs against rounds worked out by hand."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chi2, chisquare

from fedcl.answers import Answer
from fedcl.config import Scenario
from server.methods.fedavg import FedAvg, average
from server.methods.single_task import SingleTask
from server.selection import Uniform
from tests.federations import Clients, run, tiny

RARE = 1e-3
UNEVEN = "stream.partition={kind: 'tests.federations:Uneven', sizes: [3, 21, 9]}"  # and 15 for client 3
CLIENTS = [1, 3, 2, 0]


# FedAvg


@pytest.mark.parametrize("weights", ["samples", "uniform"])
def test_fedavg_is_the_weighted_mean_of_the_clients_updates(weights: str):
    """Four clients with 3, 21, 9 and 15 items, trained alone, averaged by hand: within 1e-14."""
    scenario = tiny(UNEVEN, "model.dtype=float64", f"server.weights={weights}")
    own, alone = Clients.of(scenario), Clients.of(scenario)
    replies = [alone.visit(alone.initial, [client]) for client in CLIENTS]
    n = np.array([reply.table["n"][0] for reply in replies])
    assert n.tolist() == [21, 15, 9, 3]
    shares = n / n.sum() if weights == "samples" else np.full(4, 0.25)
    expected = sum(share * alone.update(reply) for share, reply in zip(shares, replies, strict=True))
    total = torch.from_numpy(own.visit(own.initial, CLIENTS).total.copy())
    state, step = FedAvg().end_round({}, {}, Answer(own.site.answer, total))
    assert state == {}
    assert total[-1].item() == (48 if weights == "samples" else 4)
    assert np.abs(own.site.parameters.flatten(step).numpy() - expected).max() < 1e-14


def test_an_average_does_not_depend_on_how_its_sum_was_cut():
    own = Clients.of(tiny(UNEVEN, "model.dtype=float64"))
    parts = [own.visit(own.initial, clients).total for clients in ([1, 3], [2], [0])]
    whole = own.visit(own.initial, CLIENTS).total
    means = [average(Answer(own.site.answer, torch.from_numpy(total.copy()))) for total in (sum(parts), whole)]
    assert all((means[0][name] - means[1][name]).abs().max() < 1e-14 for name in means[0])


def weights_of(scenario: Scenario, folder: Path) -> NDArray[Any]:
    """Run a scenario and return its final weights as one vector."""
    run(scenario, folder)
    return (
        Clients.of(scenario).site.parameters.flatten(safetensors.torch.load_file(folder / "model.safetensors")).numpy()
    )


def test_a_run_of_fedavg_is_its_rounds_by_hand_to_the_bit(tmp_path: Path):
    """Four rounds, two tasks, two cohorts a round, replay with memories that evict."""
    scenario = tiny(UNEVEN, "client.method=derpp")
    own = Clients.of(scenario)
    assert (weights_of(scenario, tmp_path) == own.rounds(4)).all()
    assert own.record(1)["seen"] == 42


def test_a_run_with_server_momentum_is_its_rounds_by_hand(tmp_path: Path):
    """v <- 0.5 v + D, w <- w + 0.7 v over four rounds, in double precision."""
    settings = ("model.dtype=float64", "server.optimizer={name: fedavgm, lr: 0.7, momentum: 0.5}")
    velocity = 0.0

    def bend(update: NDArray[Any]) -> NDArray[Any]:
        nonlocal velocity
        velocity = 0.5 * velocity + update
        return 0.7 * velocity

    expected = Clients.of(tiny(*settings)).rounds(4, bend=bend)
    assert np.abs(weights_of(tiny(*settings), tmp_path) - expected).max() < 1e-14


def test_a_run_with_server_adam_is_its_rounds_by_hand(tmp_path: Path):
    """m <- .9 m + .1 D, v <- .99 v + .01 D^2 from tau^2, w <- w + 0.02 m / (sqrt(v) + tau), over four rounds."""
    settings = (
        "model.dtype=float64",
        "server.optimizer={name: fedadam, lr: 0.02, tau: 0.01}",
        "server.weights=uniform",
    )
    moments = [0.0, 0.01**2]

    def bend(update: NDArray[Any]) -> NDArray[Any]:
        moments[:] = 0.9 * moments[0] + 0.1 * update, 0.99 * moments[1] + 0.01 * update**2
        return 0.02 * moments[0] / (np.sqrt(moments[1]) + 0.01)

    expected = Clients.of(tiny(*settings)).rounds(4, bend=bend)
    assert np.abs(weights_of(tiny(*settings), tmp_path) - expected).max() < 1e-13


# The single-task oracle


def test_single_task_starts_afresh_when_a_task_begins(tmp_path: Path):
    """Tasks of two rounds: the end of the run is rounds 3 and 4 from the initial weights."""
    scenario = tiny("server.method=single-task")
    own = Clients.of(scenario)
    found = weights_of(scenario, tmp_path)
    assert (found == own.rounds(2, first=3)).all()
    assert (found != own.rounds(4)).any()


def test_single_task_keeps_the_initial_weights_whatever_is_done_to_others():
    weights = {"w": torch.tensor([1.0, 2.0])}
    method = SingleTask()
    state = method.begin(weights)
    weights["w"] += 5
    state, restarted = method.begin_task(state, weights, [1])
    assert restarted["w"].tolist() == [1.0, 2.0]
    restarted["w"] += 7
    assert method.begin_task(state, restarted, [2])[1]["w"].tolist() == [1.0, 2.0]


# Selection


def test_every_client_and_every_group_is_equally_likely():
    """10 choose 3, 24,000 rounds: inclusion 3/10 each (counts add up to 3 a round), and each of 120 groups 1/120."""
    N, clients, n = 24_000, 10, 3
    chosen = np.array([Uniform().select(np.arange(clients), n, seed=0, round=round) for round in range(N)])
    counts, p = np.bincount(chosen.ravel(), minlength=clients), n / clients
    statistic = ((counts - N * p) ** 2).sum() / (N * p * (1 - p)) * (clients - 1) / clients
    assert chi2.sf(statistic, clients - 1) > RARE
    groups = {group: number for number, group in enumerate(combinations(range(clients), n))}
    assert chisquare(np.bincount([groups[tuple(each)] for each in chosen.tolist()], minlength=120)).pvalue > RARE


def test_rounds_are_chosen_independently():
    """One of five clients a round: two rounds running agree one time in five, within 5 standard deviations."""
    chosen = np.array([Uniform().select(np.arange(5), 1, seed=1, round=round)[0] for round in range(5_000)])
    assert abs((chosen[1:] == chosen[:-1]).mean() - 0.2) < 5 * np.sqrt(0.16 / 4_999)


@settings(deadline=None, max_examples=60)
@given(
    available=st.lists(st.integers(0, 10**6), min_size=2, max_size=30, unique=True),
    n=st.integers(1, 32),
    round=st.integers(1, 10**6),
    data=st.data(),
)
def test_a_choice_depends_on_who_is_there_and_not_on_how_they_are_listed(
    available: list[int], n: int, round: int, data: st.DataObject
):
    """Ascending and without repeats; one who was not chosen may leave; one who comes displaces at most one."""

    def select(clients: list[int]) -> list[int]:
        return Uniform().select(np.array(clients, np.int64), n, seed=3, round=round).tolist()

    chosen = select(available)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(available)
    assert len(chosen) == min(n, len(available))
    assert select(data.draw(st.permutations(available))) == chosen
    gone = data.draw(st.sampled_from(available))
    left = select([client for client in available if client != gone])
    assert set(chosen) - {gone} <= set(left)
    assert len(set(left) - set(chosen)) <= (gone in chosen)


def test_seeds_and_rounds_choose_others():
    choices = {tuple(Uniform().select(np.arange(50), 5, seed=seed, round=round)) for seed in (0, 1) for round in (1, 2)}
    assert len(choices) == 4
