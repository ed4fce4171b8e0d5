"""Whatever dies, no round is lost or counted twice: the same weights as in one process where nothing died."""

import random
import time
from pathlib import Path

import pytest

from fedcl import api, config
from tests.draws import seeded
from tests.federation.machines import SCENARIO, Machines, machines, until, visits

pytestmark = pytest.mark.machines

# Every client in every round, so that a round either counts with all of them or is done again.
ALL = ("server.deadline=60", "stream.tasks=4")


def kill_in_training(found: Machines, chance: random.Random) -> None:
    """A ClientApp's process, while it trains."""
    until("a ClientApp", lambda: found.processes("flwr-clientapp"))
    time.sleep(chance.uniform(0, 1))
    until("its death", lambda: found.kill("flwr-clientapp"))


def kill_worker(found: Machines, chance: random.Random) -> None:
    """The warm workers of all nodes."""
    time.sleep(chance.uniform(0, 4))
    assert until("a worker's death", lambda: found.kill("clients.warm"))


def kill_server_app(found: Machines, chance: random.Random) -> None:
    """The ServerApp, anywhere in a round."""
    time.sleep(chance.uniform(0, 8))
    assert found.kill("flwr-serverapp")


def kill_superlink(found: Machines, chance: random.Random) -> None:
    """The SuperLink, anywhere in a round."""
    time.sleep(chance.uniform(0, 8))
    assert found.kill("flower-superlink")


def kill_node(found: Machines, chance: random.Random) -> None:
    """A whole node, whose machine comes back."""
    time.sleep(chance.uniform(0, 4))
    found.running["node-1"].kill()
    found.running["node-1"].wait()
    until("the SuperNode's death", lambda: not found.processes("flower-supernode", 'clients="1"'))
    found.join(1)


def kill_everything(found: Machines, chance: random.Random) -> None:
    """Every process at once: a power failure of all machines."""
    time.sleep(chance.uniform(0, 8))
    assert found.kill("") >= 8
    for process in found.running.values():
        process.wait()
    found.serve("--resume")
    for client in range(3):
        found.join(client)


FAULTS = (kill_in_training, kill_worker, kill_server_app, kill_superlink, kill_node, kill_everything)


def test_whatever_dies_the_federation_goes_on(tmp_path: Path) -> None:
    """One fault a round, each at a random moment of it, in random order; then the undisturbed run's weights."""
    chance = seeded()
    scenario = config.load(SCENARIO[0], [*SCENARIO[1:], *ALL, "engine.kind=inline"])
    alone = api.run(scenario, out=tmp_path / "alone").results
    with machines(tmp_path) as found:
        found.serve(*SCENARIO, *ALL)
        for client in range(3):
            found.join(client)
        for round, fault in enumerate(chance.sample(FAULTS, len(FAULTS)), start=1):
            found.round_done(round)
            print(f"after round {round}: {fault.__name__}")
            fault(found, chance)
        results = found.finished()
        assert results["weights_sha256"] == alone["weights_sha256"]
        rounds = [event["round"] for event in found.events("round")]
        assert rounds == list(range(1, 9))
        assert all(sorted(event["clients"]) == [0, 1, 2] for event in found.events("round"))
        assert [visits(found, f"node-{client}", client, 8) for client in range(3)] == [8, 8, 8]
        assert results["accuracy_matrix"] == alone["accuracy_matrix"]
