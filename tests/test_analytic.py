"""Analytic learning: the ridge regression of all data at once, whoever has it, whenever it comes, whoever fails."""

import random
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedcl import api, config
from fedcl.answers import Answer, Layout
from fedcl.classifiers import ridge
from fedcl.config import Scenario
from fedcl.embedding import projection, random_features
from fedcl.errors import FederationError
from server.methods.analytic import Analytic, solve, symmetric
from tests.federations import hashes, journal, run, tiny
from tests.frozen import COMMON, Failing, answers, federations, learnt, pooled, site_of, tree, weights_of
from tests.test_resume import StopAt, killed_and_resumed, scenario_file

PLAIN, RANDOM = "server.method={name: analytic, gamma: 0.1}", "server.method={name: analytic, gamma: 0.1, width: 16}"
EITHER = pytest.mark.parametrize("method", [PLAIN, RANDOM], ids=["features", "random"])


def centralised(method: Analytic, features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, float]:
    """Return W of all data at once, by least squares of the stacked system, and what it may be off by.

    min ||Phi W - Y||^2 + gamma ||W||^2 = least squares of [Phi; sqrt(gamma) I] against [Y; 0], solved by QR: not by the
    normal equations that the server uses. The bound is max(1e-9, 1e-14 * the condition of G + gamma I).
    """
    phi = random_features(features, method.draw, method.width)
    ridges = method.gamma**0.5 * torch.eye(phi.shape[1], dtype=torch.float64)
    right = torch.nn.functional.one_hot(labels, classes).double()
    stacked, wanted = torch.cat([phi, ridges]), torch.cat([right, right.new_zeros(len(ridges), classes)])
    found = torch.linalg.lstsq(stacked, wanted, driver="gels").solution
    condition = float(torch.linalg.cond(phi.T @ phi + method.gamma * torch.eye(len(ridges), dtype=torch.float64)))
    return found, max(1e-9, 1e-14 * condition)


def assert_centralised(scenario: Scenario, folder: Path) -> None:
    """The server's W is that of all data at once under the final weights; every sample is counted once."""
    features, labels = pooled(site_of(scenario), weights_of(folder))
    state = learnt(folder)
    classes = len(state["count"])
    assert torch.equal(state["count"], labels.bincount(minlength=classes).double())
    expected, bound = centralised(scenario.server.method, features, labels, classes)
    assert (state["head"] - expected).abs().max() <= bound


# Federated = centralised


@EITHER
def test_any_federation_has_the_head_of_all_data_at_once(method: str) -> None:
    """Any split, order, revisit, cohorts, 30 % sampling; a client absent until the end, answers lost and refused."""
    met: Counter[str] = Counter()

    @given(federations(method))
    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def check(drawn: tuple[Scenario, Failing]) -> None:
        scenario, failing = drawn
        with TemporaryDirectory() as folder, failing:
            run(scenario, Path(folder))
            assert_centralised(scenario, Path(folder))
        met.update(failing.met)

    check()
    assert min(met[kind] for kind in ("absent", "lost", "broken", "miscounted", "moved")) > 0


@EITHER
@given(draws=st.randoms(use_true_random=False), left=st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_any_tree_of_sums_gives_the_same_head(method: str, draws: random.Random, left: int) -> None:
    """AFL's absolute aggregation law: twelve answers added two at a time in any order, taken in one to six parts."""
    site = site_of(tiny(*COMMON, method))
    server, weights = site.scenario.server.method, dict(site.trainer.module.named_parameters())
    state = server.begin(weights)
    for part in tree(draws.randrange, answers(site), left):
        assert server.task_problem(weights, part) is None
        state, _ = server.end_task(state, weights, part, [])
    expected, bound = centralised(server, *pooled(site), 6)
    assert (state["head"] - expected).abs().max() <= bound


def recursion(batches: list[tuple[Tensor, Tensor]], gamma: float) -> Tensor:
    """Return W by ACIL's recursion: R <- R - R X'(I + X R X')^-1 X R from I / gamma, W <- W + R X'(Y - X W)."""
    R = torch.eye(batches[0][0].shape[1], dtype=torch.float64) / gamma
    W = torch.zeros(R.shape[0], batches[0][1].shape[1], dtype=torch.float64)
    for X, Y in batches:
        R = R - R @ X.T @ torch.linalg.solve(torch.eye(len(X), dtype=torch.float64) + X @ R @ X.T, X @ R)
        W = W + R @ X.T @ (Y - X @ W)
    return W


@EITHER
def test_the_recursion_over_tasks_gives_the_same_head(method: str, tmp_path: Path) -> None:
    """ACIL meets the classes in the order of the tasks and keeps no sum; the run ends with its W."""
    scenario = tiny(*COMMON, method)
    run(scenario, tmp_path)
    site = site_of(scenario)
    server = scenario.server.method
    features, labels = pooled(site)
    phi, right = random_features(features, server.draw, server.width), torch.nn.functional.one_hot(labels, 6).double()
    parts = [(labels // 2 == task) for task in range(3)]
    assert [int(part.sum()) for part in parts] == [30, 30, 30]
    found = recursion([(phi[part], right[part]) for part in parts], server.gamma)
    _, bound = centralised(server, features, labels, 6)
    assert (learnt(tmp_path)["head"] - found).abs().max() <= bound


def test_gamma_is_added_once(tmp_path: Path) -> None:
    """Four clients and three tasks are twelve answers; added with each of them, gamma would be 1.2 instead of .1."""
    scenario = tiny(*COMMON, PLAIN)
    run(scenario, tmp_path)
    found = learnt(tmp_path)["head"]
    features, labels = pooled(site_of(scenario))
    often, _ = centralised(Analytic(gamma=1.2), features, labels, 6)
    assert (found - often).abs().max() > 1e-3
    assert_centralised(scenario, tmp_path)


def test_a_new_class_is_a_new_column() -> None:
    """Until task 2 comes its classes have zero columns and are never predicted; then the columns are those of all."""
    site = site_of(tiny(*COMMON, PLAIN))
    method, weights = site.scenario.server.method, dict(site.trainer.module.named_parameters())
    parts, seen = answers(site), []
    state = method.begin(weights)
    for task in range(3):
        for part in parts[task::3]:  # client by client, task by task
            state, _ = method.end_task(state, weights, part, [task])
        classifier = method.classifier(state, weights)
        seen.append(classifier["seen"].tolist())
        scores = ridge(torch.randn(4, 6), classifier)
        assert torch.isinf(scores).any(0).tolist() == [not each for each in seen[-1]]
        assert (state["head"][:, ~classifier["seen"]] == 0).all()
    assert seen == [[True] * n + [False] * (6 - n) for n in (2, 4, 6)]


def test_accuracy_is_that_of_the_head(tmp_path: Path) -> None:
    """The run's accuracy on every task's test items is the one computed by hand from all training data."""
    scenario = tiny(*COMMON, RANDOM)
    results = run(scenario, tmp_path)
    site = site_of(scenario)
    W, _ = centralised(scenario.server.method, *pooled(site), 6)
    R, expected = projection(0, 6, 16), []
    for task, items in enumerate(site.stream.central):
        shown = torch.from_numpy(items)
        there = site.trainer.module.features(site.test.inputs(shown, torch.full_like(shown, task))).detach()
        right = ((there @ R).relu() @ W).argmax(1) == site.test.y[shown]
        expected.append(right.double().mean().item())
    assert results["accuracy_matrix"][-1] == pytest.approx(expected, abs=1e-12)
    assert results["metrics"]["acc"] > 1 / 3  # twice what guessing gives


# The parts


@given(st.integers(1, 7), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_upper_triangle_says_it_all(d: int, seed: int) -> None:
    half = torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    whole = half + half.T
    upper = torch.cat([whole[row, row:] for row in range(d)])
    assert torch.equal(symmetric(upper, d), whole)


def test_ridge_in_closed_form() -> None:
    """One feature, samples 1, 2 and 3 of class 0 with gamma 2: W = 6 / (14 + 2)."""
    found = solve(torch.tensor([[14.0]]).double(), torch.tensor([[6.0, 0.0]]).double(), 2.0)
    assert found.tolist() == [[pytest.approx(6 / 16, abs=1e-15), 0.0]]


def test_a_gamma_below_the_rounding_of_the_features_is_told() -> None:
    """Two equal features of size 1e10: G is singular, and a gamma of 1e-9 is lost beside 1e20."""
    with pytest.raises(FederationError, match=r"server\.method\.gamma = 1e-09: too small"):
        solve(torch.full((2, 2), 1e20).double(), torch.ones(2, 1).double(), 1e-9)


def test_random_features_are_the_same_for_everyone_and_differ_by_number() -> None:
    """R has mean 0 and variance 1 (10,000 entries: within 4 standard errors)."""
    R = projection(3, 100, 100)
    assert torch.equal(R, projection.__wrapped__(3, 100, 100))
    assert not torch.equal(R, projection(4, 100, 100))
    assert abs(R.mean()) < 0.04
    assert abs(R.var() - 1) < 4 * (2 / 10_000) ** 0.5
    x = torch.tensor([[-1.0, 2.0]])
    assert torch.equal(random_features(x, 0, 0), x.double())
    assert torch.equal(random_features(x, 0, 5), (x.double() @ projection(0, 2, 5)).clamp(min=0))


def test_sums_of_another_embedding_are_refused() -> None:
    site = site_of(tiny(*COMMON, PLAIN))
    weights = dict(site.trainer.module.named_parameters())
    part = answers(site)[0]
    wrong = Answer(part.layout, part.flat.clone())
    wrong.flat[-1] += 1
    assert Analytic().task_problem(weights, part) is None
    assert "another embedding" in str(Analytic().task_problem(weights, wrong))
    assert (
        part.layout.size == 6 * 7 // 2 + 6 * 6 + 6 + 2 == sum(v.numel() for v in part.layout.views(part.flat).values())
    )
    assert Layout.of(weights).shapes[0] == ("body.1.weight", (6, 5))


# The frame


BASE = ("client.method=finetune", "evaluate.every=1", "checkpoint.seconds=0")
ENGINE = tiny(*COMMON, *BASE, "server.method={name: analytic, width: 16, base_rounds: 3}")


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_ray_workers_give_the_bits_of_one_process(workers: int, tmp_path: Path) -> None:
    expected = run(ENGINE, tmp_path / "inline")
    plain = config.as_dict(ENGINE)
    plain["engine"] |= {"kind": "ray", "workers": workers}
    found = run(config.load(plain), tmp_path / "ray")
    assert hashes(found) == hashes(expected)
    assert journal(tmp_path / "ray") == journal(tmp_path / "inline")


def test_a_killed_run_ends_like_one_left_alone(tmp_path: Path) -> None:
    expected = run(ENGINE, tmp_path / "straight")
    assert_centralised(ENGINE, tmp_path / "straight")
    killed_and_resumed(tmp_path / "run", scenario_file(tmp_path, ENGINE), [3.3])
    assert hashes(api.load(tmp_path / "run").results) == hashes(expected)


def test_who_is_still_awaited_is_not_forgotten_over_a_stop(tmp_path: Path) -> None:
    """Stopped while a client is absent since the first task's end: after the resume it is asked, and counted once."""
    scenario = tiny(*COMMON, PLAIN, "checkpoint.seconds=0")
    with Failing(seed=1, until=6, absent=2):
        expected = run(scenario, tmp_path / "straight")
        outcome = api.run(scenario, out=tmp_path / "run", listeners=[StopAt("round", 3)], check=False)
        assert outcome.code == 75
        assert hashes(api.resume(tmp_path / "run").results) == hashes(expected)
    assert_centralised(scenario, tmp_path / "run")
