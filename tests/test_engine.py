"""The same seed gives the same bits: in this process, on one Ray worker or two, and when a worker is killed."""

import os
import signal
import time
from pathlib import Path

import pytest

from fedcl.config import Plain, Scenario
from fedcl.engine.ray_grid import RayGrid
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
REPLAYS = {name for name in VARIANTS if not name.startswith(("finetune", "fedprox"))}


def variant(name: str, *overrides: str) -> Scenario:
    return tiny(*COMMON, *VARIANTS[name], *overrides)


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Plain, Path]]:
    """Every variant in this process: results and run directory."""
    folder = tmp_path_factory.mktemp("inline")
    return {name: (run(variant(name), folder / name), folder / name) for name in VARIANTS}


@pytest.mark.parametrize("name", VARIANTS)
def test_two_ray_workers_give_the_bits_of_one_process(
    name: str, inline: dict[str, tuple[Plain, Path]], tmp_path: Path
) -> None:
    """All three hashes, every figure and every event but the times are those of the inline run."""
    results, folder = inline[name]
    found = run(variant(name, "engine.kind=ray", "engine.workers=2"), tmp_path / "run")
    assert hashes(found) == hashes(results)
    assert found["metrics"] == results["metrics"]
    assert journal(tmp_path / "run") == journal(folder)


@pytest.mark.parametrize(
    "name", ["derpp", *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS if name != "derpp")]
)
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


@pytest.mark.parametrize(
    "name", ["derpp", *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(REPLAYS - {"derpp"}))]
)
def test_a_killed_worker_changes_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`kill -9` of a worker while it trains: its cohorts are repeated, the bits and the journal stay."""
    assassin = Assassin(monkeypatch)
    long = variant(name, "client.epochs=60", "stream.schedule.rounds_per_task=1", "engine.workers=2")
    expected = run(long, tmp_path / "inline")
    killed = run(tiny_ray(long), tmp_path / "killed")
    assert assassin.killed
    assert assassin.repeated >= 1
    assert hashes(killed) == hashes(expected)
    assert journal(tmp_path / "killed") == journal(tmp_path / "inline")
    assert killed["cost"]["failed"] == 0
