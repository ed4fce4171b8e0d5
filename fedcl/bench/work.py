"""What everybody who is compared is given: first weights, data, and for every round who makes which step on what.

It is computed from the scenario's own stream, selection, plan and shuffles, so it is what fedcl itself trains on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clients import visits
from fedcl import keys, models, plan
from fedcl.config import Scenario
from fedcl.keys import Purpose
from fedcl.orders import TrainOrder, empty
from fedcl.plan import Cohort
from fedcl.streams import Stream
from fedcl.world import as_text, world

Ints = NDArray[np.int64]
WEIGHTS = "weights/"


@dataclass(frozen=True, kw_only=True, eq=False)
class Visit:
    """One client in one round."""

    client: int
    steps: tuple[Ints, ...]  # items of each step's batch
    replayed: int = 0  # samples that its memory adds to them

    @property
    def n(self) -> int:
        """Items of the client."""
        return sum(len(step) for step in self.steps)

    @property
    def items(self) -> Ints:
        """The items in the order in which they come by."""
        return np.concatenate(self.steps)


Round = tuple[Visit, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """The whole run: the model sees x * scale."""

    weights: dict[str, NDArray[np.float32]]
    x: NDArray[Any]  # (n, *shape)
    y: Ints  # (n,)
    scale: float
    rounds: tuple[Round, ...]

    @cached_property
    def inputs(self) -> Tensor:
        """Model inputs (n, *shape) float32 of all items, made once."""
        return torch.from_numpy(self.x).float() * self.scale

    @cached_property
    def labels(self) -> Tensor:
        """Labels (n,)."""
        return torch.from_numpy(self.y)

    def model(self, scenario: Scenario) -> nn.Module:
        """Return the scenario's model with the first weights."""
        module = models.make(scenario.model, tuple(self.x.shape[1:]), int(self.y.max()) + 1, scenario.seed)
        module.load_state_dict({name: torch.from_numpy(each) for name, each in self.weights.items()})
        return module

    @property
    def updates(self) -> list[int]:
        """Client updates of each round."""
        return [len(each) for each in self.rounds]

    @property
    def samples(self) -> list[int]:
        """Samples that go through the model in each round, replayed ones included."""
        return [sum(visit.n + visit.replayed for visit in each) for each in self.rounds]

    def save(self, path: Path) -> None:
        """Write it as one file."""
        everyone = [visit for each in self.rounds for visit in each]
        steps = [step for visit in everyone for step in visit.steps]
        np.savez(
            path, allow_pickle=False, x=self.x, y=self.y, scale=self.scale, updates=self.updates,
            clients=[visit.client for visit in everyone], replayed=[visit.replayed for visit in everyone],
            counts=[len(visit.steps) for visit in everyone], sizes=[len(step) for step in steps],
            items=np.concatenate(steps), **{WEIGHTS + name: each for name, each in self.weights.items()},
        )  # fmt: skip

    @staticmethod
    def load(path: Path) -> "Work":
        """Read what `save` has written."""
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        steps = iter(_cut(found["items"], found["sizes"]))
        everyone = iter([
            Visit(client=client, steps=tuple(next(steps) for _ in range(count)), replayed=replayed)
            for client, count, replayed in zip(
                *(found[name].tolist() for name in ("clients", "counts", "replayed")), strict=True
            )
        ])  # fmt: skip
        rounds = tuple(tuple(next(everyone) for _ in range(n)) for n in found["updates"].tolist())
        weights = {name.removeprefix(WEIGHTS): each for name, each in found.items() if name.startswith(WEIGHTS)}
        return Work(weights=weights, x=found["x"], y=found["y"], scale=float(found["scale"]), rounds=rounds)


def _cut(items: Ints, sizes: Ints) -> Iterator[Ints]:
    ends = np.cumsum(sizes)
    for begin, end in zip((ends - sizes).tolist(), ends.tolist(), strict=True):
        yield items[begin:end]


def work_of(scenario: Scenario) -> Work:
    """Lay a scenario out, round by round, as its server and its clients would (plain curriculum, one node)."""
    stream, server = world(as_text(scenario))[1], scenario.server
    everyone = scenario.stream.clients
    seen, nodes = np.zeros(everyone, np.int64), np.zeros(everyone, np.int64)
    memory, rounds = server.selection.begin(everyone), []
    for number in range(1, stream.timeline.rounds + 1):
        there = plan.available(stream, number, seen, joint=False)
        chosen, memory = server.selection.choose(
            memory, there, server.clients_per_round or len(there), seed=scenario.seed, round=number,
            rounds=stream.timeline.rounds,
        )  # fmt: skip
        cohorts = plan.plan_round(
            stream, number, seen, chosen, nodes, cohort=scenario.engine.clients, epochs=scenario.client.epochs,
            batch=scenario.client.batch, joint=False,
        )  # fmt: skip
        rounds.append(tuple(visit for cohort in cohorts for visit in _visits(scenario, stream, number, cohort, seen)))
        seen[chosen] += 1
    data = stream.dataset
    module = models.make(scenario.model, tuple(data.x.shape[1:]), data.classes, scenario.seed)
    weights = {name: each.detach().numpy() for name, each in module.named_parameters()}
    return Work(weights=weights, x=data.x, y=data.y, scale=data.scale, rounds=tuple(rounds))


def _visits(scenario: Scenario, stream: Stream, round: int, cohort: Cohort, seen: Ints) -> Iterator[Visit]:
    """Yield the visits of a cohort in the order of its clients."""
    client = scenario.client
    order = TrainOrder(
        round=round, cohort=cohort.number, clients=cohort.clients, packs=[], rows=empty(), folder="",
        weights=np.zeros(0), tasks=cohort.tasks, clocks=cohort.clocks,
    )  # fmt: skip

    def shuffle(number: int) -> keys.Bits:
        return keys.key(scenario.seed, Purpose.SHUFFLE, cohort.clients, round, number)

    local = visits.local_data(stream, order)
    walked = visits.walk(local, shuffle, lambda number, done: local.inside, epochs=client.epochs, batch=client.batch)
    laid = visits.batches(local, walked, width=client.batch)
    replays = len(client.method.draws) * (client.replay_batch or client.batch)
    for row, number in enumerate(cohort.clients.tolist()):
        count = int(laid.count[row])
        steps = tuple(laid.items[row, step][laid.weight[row, step] > 0] for step in range(count))
        yield Visit(client=number, steps=steps, replayed=count * replays if seen[number] else 0)


def share(visits: Sequence[Visit], part: int, parts: int) -> Sequence[Visit]:
    """Return one of `parts` shares of a round; visits come in descending order of steps, so shares weigh the same."""
    return visits[part::parts]
