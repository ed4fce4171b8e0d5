"""Draws that protect: repeatable with the secret, noise without it; a node's secret never leaves the node."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict
from scipy.stats import kstest

from clients.node import InContext
from clients.site import site
from fedcl import hidden
from fedcl.hidden import Hidden
from tests.federations import hashes, run, tiny

SECRET = bytes(range(32))


def test_draws_have_their_distribution() -> None:
    """100,000 draws each against the exact distribution (Kolmogorov and Smirnov), mean and variance."""
    uniform, normal = Hidden(SECRET, 1).uniform(1000, 100), Hidden(SECRET, 2).normal(1000, 100)
    assert uniform.dtype == normal.dtype == np.float32
    assert kstest((uniform.ravel() + 1) / 2, "uniform").pvalue > 1e-3
    assert kstest(normal.ravel(), "norm").pvalue > 1e-3
    assert abs(normal.mean()) < 4 / 100_000**0.5
    assert abs(np.corrcoef(normal[:500].ravel(), normal[500:].ravel())[0, 1]) < 4 / 50_000**0.5  # sine and cosine


def test_the_same_secret_and_purpose_draw_the_same_and_others_do_not() -> None:
    first = Hidden(SECRET, 3, 7, "body.1.weight").normal(4, 5)
    assert (first == Hidden(SECRET, 3, 7, "body.1.weight").normal(4, 5)).all()
    others = [
        Hidden(SECRET[::-1], 3, 7, "body.1.weight"), Hidden(SECRET, 4, 7, "body.1.weight"),
        Hidden(SECRET, 3, 8, "body.1.weight"), Hidden(SECRET, 3, 7, "body.3.weight"), Hidden(SECRET, "3", 7),
    ]  # fmt: skip
    assert all(abs(np.corrcoef(first.ravel(), each.normal(4, 5).ravel())[0, 1]) < 0.95 for each in others)
    assert len({each.normal(2).tobytes() for each in others}) == len(others)


def test_a_sequence_goes_on() -> None:
    draws = Hidden(SECRET, 0)
    assert not (draws.normal(3, 3) == draws.normal(3, 3)).any()
    assert Hidden(SECRET, 0).normal(0, 5).shape == (0, 5)
    assert Hidden(SECRET, 0).normal(3).shape == (3,)


def test_a_simulated_nodes_secret_comes_from_the_seed() -> None:
    assert hidden.of_seed(1) == hidden.of_seed(1)
    assert hidden.of_seed(1) != hidden.of_seed(2)


def test_a_node_makes_its_secret_once_and_every_node_another() -> None:
    here, there = InContext(RecordDict()), InContext(RecordDict())
    secret = here.secret()
    assert len(secret) == 32
    assert here.secret() == secret
    assert there.secret() != secret


@pytest.mark.parametrize("draws", ["normal", "uniform"])
def test_another_secret_gives_other_sketches_and_nearly_the_same_bases(
    tmp_path: Path, draws: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wide sketches: what the secret changes is noise of the bases, and the run can be repeated with the same one."""
    scenario = tiny(f"server.method={{name: fot, sketch_draws: {draws}, sketch_width: 200}}", "model.dtype=float64")
    first, again = (run(scenario, tmp_path / name) for name in ("first", "again"))
    assert hashes(first) == hashes(again)
    monkeypatch.setattr(hidden, "of_seed", lambda seed: SECRET)
    site.cache_clear()  # what a process knows of a scenario holds the secret
    other = run(scenario, tmp_path / "other")
    site.cache_clear()
    assert hashes(first)[0] != hashes(other)[0]
    assert other["metrics"]["acc"] == pytest.approx(first["metrics"]["acc"], abs=0.05)
