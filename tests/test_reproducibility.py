"""The figures of REPRODUCIBILITY.md: split-digits over five seeds, by the very runs that the table names."""

from pathlib import Path

import pytest

from fedcl import api, config

SEEDS = range(5)


def accuracies(folder: Path, *overrides: str) -> list[float]:
    """Return ACC of split-digits for seeds 0 to 4."""
    found = []
    for seed in SEEDS:
        scenario = config.load("split-digits", [*overrides, f"seed={seed}", "engine.kind=inline"])
        outcome = api.run(scenario, out=folder / f"seed-{seed}")
        assert outcome.code == 0
        found.append(outcome.results["metrics"]["acc"])
        if scenario.client.method.draws:
            rounds = [event for event in api.load(outcome.directory).events if event["event"] == "round"]
            assert sum(event["evicted"] for event in rounds) > 0
    return found


@pytest.mark.slow
def test_finetune_forgets(tmp_path: Path) -> None:
    """Without a memory only the last task is left: ACC near 1 in 5."""
    assert all(0.15 <= acc <= 0.30 for acc in accuracies(tmp_path, "client.method=finetune"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["er", "derpp"])
def test_replay_keeps(tmp_path: Path, method: str) -> None:
    """Twenty-four remembered images a client, which really are displaced, keep ACC at .75 or more."""
    assert all(acc >= 0.75 for acc in accuracies(tmp_path, f"client.method={method}"))
