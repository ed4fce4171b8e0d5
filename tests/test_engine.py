"""The same seed gives the same bits: in this process, on one Ray worker or two, and when a worker is killed."""

import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import ray
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as st

from fedcl.config import Plain, Scenario
from fedcl.engine.ray_grid import Call, RayGrid, dealt
from server.training import stragglers
from tests.federations import hashes, journal, run, tiny

pytestmark = pytest.mark.usefixtures("ray_cluster")

# Seven clients of unequal sizes in cohorts of two: four cohorts a round. 120 items, memories of 5: they must evict.
COMMON = (
    "stream.clients=7",
    "stream.dataset.samples=120",
    "stream.partition={kind: dirichlet, alpha: 2.0}",
    "client.epochs=2",
    "engine.stack=2",
)
CLASS_BALANCED = "client.memory={policy: class-balanced, size: 5}"
MOMENTUM = "client.optimizer={name: sgd, lr: 0.1, momentum: 0.9, keep: true}"
ADAM = "client.optimizer={name: adam, lr: 0.01, keep: true}"
EVERY_PASS, PERSONAL = "client.memory.admit=every_pass", "model.personal=[head]"
VARIANTS: dict[str, tuple[str, ...]] = {
    "finetune": ("client.method=finetune", MOMENTUM),
    "er": ("client.method=er", "server.optimizer=fedadam"),
    "er-balanced": ("client.method=er", CLASS_BALANCED, EVERY_PASS, ADAM),
    "der": ("client.method=der", EVERY_PASS, "engine.stack=1"),
    "der-balanced": ("client.method=der", CLASS_BALANCED, PERSONAL),
    "derpp": ("client.method=derpp", "server.clients_per_round=5", MOMENTUM),
    "derpp-balanced": ("client.method=derpp", CLASS_BALANCED, "server.optimizer=fedavgm"),
    "fedprox": ("client.method=fedprox", PERSONAL, ADAM),
}
FAST = ("er-balanced", "der", "derpp", "fedprox")
REPLAYS = {name for name in VARIANTS if not name.startswith(("finetune", "fedprox"))}


def slow_but(*fast: str) -> list[Any]:
    """Return all variants for parametrize, those not named marked slow."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]


def variant(name: str, *overrides: str) -> Scenario:
    return tiny(*COMMON, *VARIANTS[name], *overrides)


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Plain, Path]]:
    """Every variant in this process: results and run directory."""
    folder = tmp_path_factory.mktemp("inline")
    return {name: (run(variant(name), folder / name), folder / name) for name in VARIANTS}


@pytest.mark.parametrize("name", slow_but(*FAST))
def test_two_ray_workers_give_the_bits_of_one_process(
    name: str, inline: dict[str, tuple[Plain, Path]], tmp_path: Path
) -> None:
    """All three hashes, every figure and every event but the times are those of the inline run."""
    results, folder = inline[name]
    found = run(variant(name, "engine.kind=ray", "engine.workers=2"), tmp_path / "run")
    assert hashes(found) == hashes(results)
    assert found["metrics"] == results["metrics"]
    assert journal(tmp_path / "run") == journal(folder)


@pytest.mark.parametrize("name", slow_but("derpp"))
def test_one_ray_worker_gives_the_bits_of_one_process(
    name: str, inline: dict[str, tuple[Plain, Path]], tmp_path: Path
) -> None:
    """One worker gets all cohorts in two calls; sums are formed in the same order."""
    found = run(variant(name, "engine.kind=ray", "engine.workers=1"), tmp_path / "run")
    assert hashes(found) == hashes(inline[name][0])
    assert journal(tmp_path / "run") == journal(inline[name][1])


def test_memories_evict_wherever_a_method_replays(inline: dict[str, tuple[Plain, Path]]) -> None:
    """Equal hashes say something about memories only if these were full: every replaying variant evicts."""
    evicted = {name: results["cost"]["evicted"] for name, (results, _) in inline.items()}
    assert {name for name, number in evicted.items() if number > 0} == REPLAYS


def test_variants_differ(inline: dict[str, tuple[Plain, Path]]) -> None:
    """No two variants have the same clients or weights: the hashes see methods, policies and optimisers."""
    for hashed in ("weights_sha256", "clients_sha256"):
        assert len({results[hashed] for results, _ in inline.values()}) == len(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_another_seed_gives_other_bits(name: str, inline: dict[str, tuple[Plain, Path]], tmp_path: Path) -> None:
    """Weights and clients differ; a repeated seed gives the same again."""
    other, again = (run(variant(name, f"seed={seed}"), tmp_path / str(seed)) for seed in (1, 0))
    assert other["weights_sha256"] != inline[name][0]["weights_sha256"]
    assert other["clients_sha256"] != inline[name][0]["clients_sha256"]
    assert hashes(again) == hashes(inline[name][0])


def test_the_servers_state_depends_on_the_seed(inline: dict[str, tuple[Plain, Path]], tmp_path: Path) -> None:
    """Where the server remembers something that training makes (momentum), its hash follows the seed as well."""
    other = run(variant("derpp-balanced", "seed=1"), tmp_path / "run")
    assert other["state_sha256"] != inline["derpp-balanced"][0]["state_sha256"]


def seconds_of(process: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Killer:
    """Kills a worker's process in the second round, once it has been training for a twentieth of a second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pushes, self.killed, self.repeated, self.processes = 0, 0, 0, list[int]()
        begin, push, repeat = RayGrid.begin, RayGrid.push_messages, RayGrid._repeat

        def begun(grid: RayGrid, check: Callable[[], None], wait: Callable[[int], None]) -> None:
            begin(grid, check, wait)
            self.processes = ray.get([worker.ready.remote() for worker in grid._workers])

        def pushed(grid: RayGrid, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            self.pushes += messages[0].metadata.message_type == "train"
            if self.killed or self.pushes < 2:
                return push(grid, messages)
            began, ids = seconds_of(self.processes[0]), push(grid, messages)
            self.kill(self.processes[0], began + 0.05)
            return ids

        def repeated(grid: RayGrid, call: Call, error: Exception) -> None:
            self.repeated += len(call.messages)
            repeat(grid, call, error)

        for name, function in (("begin", begun), ("push_messages", pushed), ("_repeat", repeated)):
            monkeypatch.setattr(RayGrid, name, function)

    def kill(self, process: int, when: float) -> None:
        end = time.monotonic() + 30
        while seconds_of(process) < when and time.monotonic() < end:
            time.sleep(0.002)
        os.kill(process, signal.SIGKILL)
        self.killed = process


@pytest.mark.parametrize("name", slow_but("derpp"))
def test_a_killed_worker_changes_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`kill -9` of a worker while it trains: its cohort is trained again, the bits and the journal stay."""
    long = ("client.epochs=100", "stream.schedule.rounds_per_task=1")
    expected = run(variant(name, *long), tmp_path / "inline")
    killer = Killer(monkeypatch)
    found = run(variant(name, *long, "engine.kind=ray", "engine.workers=2"), tmp_path / "killed")
    assert killer.killed in killer.processes
    assert killer.repeated == 1
    assert hashes(found) == hashes(expected)
    assert journal(tmp_path / "killed") == journal(tmp_path / "inline")
    assert found["cost"]["failed"] == 0


# Scheduling


def test_calls_are_dealt_longest_first():
    """9, 7, 6, 5, 4, 2 on two: 9 + 5 + 2 and 7 + 6 + 4; the longer call starts first, cohorts in it stay in order."""
    assert dealt([9, 7, 6, 5, 4, 2], 2) == [[1, 2, 4], [0, 3, 5]]
    assert dealt([1, 5], 4) == [[1], [0]]
    assert dealt([], 3) == []


@given(st.lists(st.floats(0, 1e6), max_size=30), st.integers(1, 8))
def test_every_cohort_is_dealt_once_and_no_call_is_far_above_the_mean(costs: list[float], parts: int):
    """Graham's bound: the longest call is at most the mean and one more cohort."""
    found = dealt(costs, parts)
    assert sorted(number for part in found for number in part) == list(range(len(costs)))
    sums = [sum(costs[number] for number in part) for part in found]
    assert max(sums, default=0) <= sum(costs) / parts + max(costs, default=0) * (1 + 1e-9) + 1e-6
    assert all(sums[i] >= sums[i + 1] - 1e-6 for i in range(len(sums) - 1))


def test_a_cohort_that_takes_longer_than_its_steps_explain_is_a_straggler():
    """Median 0.01 s a step: 300 steps are 3 s; 7 s are more than twice that; 0.15 s for 10 are a moment's delay."""
    cohorts = [(0, 300, 3.0), (1, 200, 2.0), (2, 300, 7.0), (3, 10, 0.15), (4, 100, 1.0)]
    assert stragglers(cohorts) == [{"cohort": 2, "seconds": 7.0, "expected": 3.0}]
    assert stragglers(cohorts[:3]) == []
