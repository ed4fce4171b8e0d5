"""Small federations for tests: a scenario of a few clients, a whole run of it, or its clients without a server."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clients.memories import Ints, Records
from clients.site import Site
from clients.work import train
from fedcl import api, config, keys, plan
from fedcl.config import Plain, Scenario
from fedcl.errors import LOSSY
from fedcl.journal import read_events
from fedcl.keys import Purpose
from fedcl.models import make
from fedcl.orders import TrainOrder, TrainReply
from fedcl.results import HASHES, lossy
from fedcl.streams import Dataset, Partition, build_stream

TINY: Plain = {
    "name": "tiny",
    "stream": {
        "dataset": {"name": "synthetic", "classes": 4, "features": 5, "samples": 96, "test_samples": 48},
        "tasks": 2,
        "clients": 4,
        "partition": "iid",
        "schedule": {"kind": "synchronous", "rounds_per_task": 2},
    },
    "model": {"name": "mlp", "width": 6},
    "client": {"memory": {"policy": "reservoir", "size": 5}, "optimizer": {"name": "sgd", "lr": 0.1}, "batch": 5},
    "engine": {"kind": "inline", "cohort": 2, "stack": 1, "device": "cpu"},
    "evaluate": {"every": 0},
}


def tiny(*overrides: str) -> Scenario:
    """Four clients, two tasks of two rounds, 96 Gaussian vectors, 70 parameters; `dotted.key=value` overrides."""
    return config.load(TINY, overrides)


def run(scenario: Scenario, folder: Path) -> dict[str, Any]:
    """Run a scenario from end to end and return its results; the exit code is that of the updates that were lost."""
    outcome = api.run(scenario, out=folder)
    assert outcome.code == (LOSSY if lossy(outcome.results) else 0), outcome.error
    return outcome.results


def hashes(results: Plain) -> list[str]:
    """Return the three hashes of a finished run."""
    assert results["status"] == "finished"
    return [results[name] for name in HASHES]


def journal(folder: Path) -> list[Plain]:
    """Return a run's events without what may differ between two runs of the same: times, command, checkpoints."""
    events = [event for event in read_events(folder) if event["event"] != "checkpoint"]
    return [
        {name: each for name, each in event.items() if name not in ("seconds", "command", "stragglers", "memory")}
        for event in events
    ]


@dataclass(frozen=True, kw_only=True)
class Uneven(Partition):
    """Client i has sizes[i] items of every task; what is left over goes to the last client."""

    sizes: list[int] = field(default_factory=list)

    def assign(self, labels: Ints, clients: int, rng: np.random.Generator) -> Ints:
        owner = np.repeat(np.arange(len(self.sizes)), self.sizes)
        return rng.permutation(np.concatenate([owner, np.full(len(labels) - len(owner), clients - 1)]))


@dataclass
class Clients:
    """The clients of a scenario in this process: their site, and the newest record of each."""

    site: Site
    held: dict[int, Records] = field(default_factory=dict)

    @staticmethod
    def of(scenario: Scenario, dataset: Dataset | None = None) -> "Clients":
        return Clients(Site(scenario, build_stream(scenario, dataset), b""))

    def __post_init__(self) -> None:
        parameters = dict(self.site.trainer.module.named_parameters())
        self.initial: NDArray[Any] = self.site.parameters.flatten(parameters).detach().numpy().copy()

    def load(self, clients: Ints, packs: list[str], rows: Ints, fresh: Records) -> Records:
        return np.concatenate([self.held.get(client, fresh) for client in clients.tolist()])

    def save(
        self, name: str, clients: Ints, records: Records, old: Records | None = None, seldom: Sequence[str] = ()
    ) -> str:
        self.held |= {client: records[[row]].copy() for row, client in enumerate(clients.tolist())}
        return ""

    def record(self, client: int) -> Any:
        """Return the newest record of a client."""
        return self.held[client][0]

    def model(self) -> nn.Module:
        """Return a fresh module with the initial weights, for a loop in plain torch."""
        data = self.site.stream.dataset
        return make(self.site.scenario.model, data.x.shape[1:], data.classes, self.site.scenario.seed)

    def shuffled(self, client: int, task: int, round: int, epoch: int) -> Ints:
        """Return a client's items of a task in the order of an epoch."""
        cell, seed = self.site.stream.train.cell(client, task), self.site.scenario.seed
        own = keys.key(seed, Purpose.SHUFFLE, np.array([client]), round, epoch)
        return cell[keys.permutations(own, np.array([len(cell)]), len(cell))[0]]

    def shown(self, items: Ints) -> tuple[Tensor, Tensor]:
        """Return inputs (in double precision) and labels of items."""
        data = self.site.stream.dataset
        return torch.from_numpy(data.x[items]).double(), torch.from_numpy(data.y[items])

    def visit(
        self, weights: NDArray[Any], clients: Sequence[int], *, round: int = 1, task: int = 0, clock: int = 0
    ) -> TrainReply:
        """Train clients on one task from the given weights; whoever fails fails the test."""
        k = len(clients)
        return self.carry_out(weights, round, np.array(clients), np.full(k, task), np.full(k, clock))

    def carry_out(self, weights: NDArray[Any], round: int, clients: Ints, tasks: Ints, clocks: Ints) -> TrainReply:
        """Carry one order out."""
        order = TrainOrder(
            round=round, cohort=0, clients=clients, tasks=tasks, clocks=clocks, weights=weights,
            packs=[""] * len(clients), rows=np.zeros(len(clients), np.int64), folder="",
        )  # fmt: skip
        reply = train(self.site, order, self)
        assert not reply.errors, reply.errors
        return reply

    def update(self, reply: TrainReply) -> NDArray[Any]:
        """Return the weighted mean update of a reply: with one client, w_k - w."""
        return reply.total[:-1] / reply.total[-1]

    def rounds(self, n: int, *, first: int = 1, bend: Callable[[Any], Any] = lambda update: update) -> NDArray[Any]:
        """Return the weights after rounds first .. first + n - 1 of FedAvg, as the server would plan them.

        Args:
            bend: what is done with the mean update before it is added.
        """
        stream, settings = self.site.stream, self.site.scenario
        weights, visits = self.initial, np.zeros(settings.stream.clients, np.int64)
        for number in range(first, first + n):
            chosen = plan.available(stream, number, visits, joint=settings.stream.joint)
            total = np.zeros(self.site.answer.size, weights.dtype)
            for cohort in plan.plan_round(
                stream, number, visits, chosen, np.zeros_like(visits), cohort=settings.engine.clients,
                epochs=settings.client.epochs, batch=settings.client.batch, joint=settings.stream.joint,
            ):  # fmt: skip
                total += self.carry_out(weights, number, cohort.clients, cohort.tasks, cohort.clocks).total
            visits[chosen] += 1
            weights = weights + bend(total[:-1] / total[-1])
        return weights
