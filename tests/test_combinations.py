"""Parts go together or are refused when the scenario is read, whatever is combined: never a failure in the run."""

from pathlib import Path
from typing import Any

import pytest

from fedcl import api, registry
from fedcl.config import Scenario
from tests.combinations import Axes, Combination, Pair, axes, covering, read
from tests.federations import journal

AXES = axes()


def problems(choices: Axes, combination: Combination, folder: Path) -> list[str]:
    """Run a combination; return what is wrong with it."""
    scenario = read(choices, combination)
    assert isinstance(scenario, Scenario)
    try:
        ended = api.run(scenario, out=folder, check=False)
    except Exception as error:  # every combination is told, not the first alone
        return [f"{type(error).__name__}: {error}"]
    if ended.code:
        return [ended.error]
    results, events = ended.results, journal(folder)
    found = [f"client {each['client']}: {each['error']}" for each in events if each["event"] == "client_error"]
    found += [f"round {each['round']}: lost" for each in events if each["event"] == "round" and each["failed"]]
    found += [f"{name}: no number, and no reason" for name in untold(results)]
    losses = [value for each in events if each["event"] == "round" for value in each["loss"].values()]
    trained = any(each["steps"] and combination["client method"] != "frozen" for each in events if "steps" in each)
    if trained and not losses:
        found.append("no loss was finite")
    if combination["trace"] != "none" and combination["oracle"] != "joint":
        found += [] if any(each["event"] == "client_trace" for each in events) else ["nobody was traced"]
    return found


def untold(results: dict[str, Any]) -> list[str]:
    """Return the figures of a run that are neither a number nor absent with a reason."""
    return [name for name, value in results["metrics"].items() if value is None and name not in results["absent"]]


def failures(found: list[Combination], folder: Path) -> dict[str, list[str]]:
    """Return what is wrong with which combinations: only choices that are not plain are named."""
    plain = {axis: next(iter(each)) for axis, each in AXES.items()}
    wrong = {}
    for number, combination in enumerate(found):
        name = ", ".join(f"{axis} {choice}" for axis, choice in combination.items() if choice != plain[axis])
        wrong[name] = problems(AXES, combination, folder / str(number))
    return {name: each for name, each in wrong.items() if each}


def assert_sentences(refused: dict[Pair, str]) -> None:
    """Each refusal is one sentence that begins with a key and its value."""
    for pair, reason in refused.items():
        assert "\n" not in reason, pair
        key, _, rest = reason.partition(" = ")
        assert all(part.isidentifier() for part in key.split(".")), (pair, reason)
        assert ": " in rest, (pair, reason)
        assert len(reason) < 250, (pair, reason)


def test_every_part_runs_in_some_combination_with_others(tmp_path: Path) -> None:
    """Each choice of each axis at least once, with others drawn for it."""
    found, refused = covering(AXES, 1)
    assert {name for ((_, name),) in refused} <= {"arrival"}  # the one for data that arrives with its owners
    assert_sentences(refused)
    assert failures(found, tmp_path) == {}


@pytest.fixture(scope="module")
def pairs() -> tuple[list[Combination], dict[Pair, str]]:
    return covering(AXES, 2)


@pytest.mark.nightly
@pytest.mark.parametrize("method", registry.names("client_methods"))
def test_every_pair_of_parts_runs_or_is_refused_when_it_is_read(method: str, pairs: Any, tmp_path: Path) -> None:
    """A covering set of all pairs of choices, the combinations with one client method."""
    found, refused = pairs
    assert_sentences(refused)
    mine = [each for each in found if each["client method"] == method]
    assert mine
    assert failures(mine, tmp_path) == {}
