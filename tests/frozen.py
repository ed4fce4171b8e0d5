"""What tests of methods on frozen features share: all data at once, what the server has learnt, clients that fail."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import strategies as st
from torch import Tensor

from clients.answers import task_answer
from clients.answers.case import Case
from clients.site import Site
from fedcl import keys
from fedcl.answers import Answer, Tensors
from fedcl.config import Plain, Scenario
from fedcl.embedding import fingerprint
from fedcl.orders import ConsolidateOrder
from server import checkpoint
from tests.federations import Clients, tiny

# 90 Gaussian vectors of 6 classes in 3 tasks; the clients' memories and training play no part.
COMMON = (
    "stream.dataset={name: synthetic, classes: 6, features: 5, samples: 90, test_samples: 60}",
    "stream.tasks=3",
    "client.method=frozen",
    "model.dtype=float64",
    "checkpoint.seconds=1000",
)


def learnt(folder: Path) -> Tensors:
    """Return the server method's state at the end of a run."""
    found = checkpoint.read(checkpoint.kept(folder / "checkpoints")[-1]).tensors
    return {name.removeprefix("method/"): each for name, each in found.items() if name.startswith("method/")}


def weights_of(folder: Path) -> Tensors:
    found = checkpoint.read(checkpoint.kept(folder / "checkpoints")[-1]).tensors
    return {name.removeprefix("weights/"): each for name, each in found.items() if name.startswith("weights/")}


def site_of(scenario: Scenario) -> Site:
    return Clients.of(scenario).site


def pairs(site: Site) -> list[tuple[int, int]]:
    """Return every (client, task) with data of a client's own stream."""
    found = np.argwhere(site.stream.own & (site.stream.train.count > 0))
    return [(client, task) for client, task in found.tolist()]


@torch.no_grad()
def pooled(site: Site, weights: Tensors | None = None) -> tuple[Tensor, Tensor]:
    """Return features (n, f) and labels (n,) of all data of all clients' streams, every cell once, in one batch."""
    cells = [site.stream.items(client, task, 0, 10**9) for client, task in pairs(site)]
    items, tasks = (torch.from_numpy(np.concatenate(each)) for each in zip(*cells, strict=True))
    module = copy.deepcopy(site.trainer.module)
    if weights:
        module.load_state_dict(weights)
    return module.features(site.trainer.data.inputs(items, tasks)).double(), site.trainer.data.y[items]


def answers(site: Site, round: int = 1) -> list[Answer]:
    """Return the task statistics of every pair, each alone, under the initial weights."""
    names = site.scenario.server.method.task_answers
    weights = site.parameters.flatten(dict(site.trainer.module.named_parameters())).detach().clone()
    return [Answer(site.layout(names), task_answer(names, case(site, pair, weights, round))) for pair in pairs(site)]


def case(site: Site, pair: tuple[int, int], weights: Tensor, round: int) -> Case:
    order = ConsolidateOrder(
        round=round, cohort=0, clients=np.array(pair[:1]), tasks=np.array(pair[1:]), packs=[""], rows=np.zeros(1, int),
        folder="", weights=weights.numpy(),
    )  # fmt: skip
    return site.case(order, 0, weights)


@dataclass
class Failing:
    """Clients whose answers to consolidation fail, each in its own way, in every round before `until`.

    Drawn by (client, round), so that a run that is repeated or resumed meets the same. `absent` fails in all of them.
    """

    seed: int
    until: int
    absent: int = -1
    met: dict[str, int] = field(default_factory=dict)

    def __call__(self, names: Sequence[str], case: Case) -> Tensor:
        client, round = case.client, case.round
        draw = int(keys.key(self.seed, keys.Purpose.SELECT, client, round)) % 8
        kind = (
            "absent" if client == self.absent else ("lost", "broken", "miscounted", "moved")[draw] if draw < 4 else ""
        )
        if round >= self.until or not kind:
            return task_answer(names, case)
        self.met[kind] = self.met.get(kind, 0) + 1
        return self.wrong(kind, names, case)

    def wrong(self, kind: str, names: Sequence[str], case: Case) -> Tensor:
        """Return a wrong answer: not finite, a sample too few, or of an embedding that is a little off."""
        if kind in ("absent", "lost"):
            raise ConnectionError("out of reach")
        if kind == "moved":
            module = copy.deepcopy(case.module)
            with torch.no_grad():
                next(module.parameters()).add_(1e-3)
            return task_answer(names, Case(**{**vars(case), "module": module}))
        flat = task_answer(names, case)
        flat[-3 if kind == "miscounted" else 0] += -0.5 if kind == "miscounted" else torch.nan
        return flat

    def __enter__(self) -> "Failing":
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("clients.consolidation.task_answer", self)
        return self

    def __exit__(self, *error: object) -> None:
        self.patch.undo()


def last_round(entries: Sequence[Plain]) -> int:
    return max(entry["start"] + sum(entry["rounds"]) for entry in entries)


@st.composite
def federations(draw: Callable[..., Any], *settings: str) -> tuple[Scenario, Failing]:
    """Draw who has what, in which order and how often each meets it, the tree of the sums, and who fails when.

    Three in ten clients are asked to train in a round. The last round of all comes two after the last task's end; in
    it nobody fails.
    """
    clients = draw(st.integers(3, 6))
    visits = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 2)), min_size=1, max_size=5)  # tasks may repeat
    entries = []
    for _ in range(clients):
        tasks, rounds = zip(*draw(visits), strict=True)
        entries.append({"start": draw(st.integers(0, 2)), "tasks": list(tasks), "rounds": list(rounds)})
    rounds = last_round(entries) + 2
    partition = draw(st.sampled_from(["iid", {"kind": "dirichlet", "alpha": 0.3}, {"kind": "shards", "per_client": 2}]))
    plain = {
        "stream.clients": clients,
        "stream.schedule": {"kind": "explicit", "clients": entries, "rounds": rounds},
        "stream.partition": partition,
        "stream.kind": draw(st.sampled_from(["class-incremental", "domain-incremental"])),
        "server.clients_per_round": max(1, round(0.3 * clients)),
        "engine.cohort": draw(st.integers(1, 4)),
        "engine.stack": 1,
        "seed": draw(st.integers(0, 99)),
    }
    overrides = [
        f"{name}={yaml.safe_dump(value, default_flow_style=True).split('...')[0]}" for name, value in plain.items()
    ]
    failing = Failing(seed=draw(st.integers(0, 99)), until=rounds, absent=draw(st.integers(0, clients - 1)))
    return tiny(*COMMON, *settings, *overrides), failing


def tree(draw: Callable[..., int], parts: list[Answer], left: int) -> list[Answer]:
    """Add answers up two at a time, any two, until `left` of them are left."""
    parts = list(parts)
    while len(parts) > left:
        one, other = parts.pop(draw(len(parts))), parts.pop(draw(len(parts)))
        parts.append(Answer(one.layout, one.flat + other.flat))
    return parts


def marks(weights: Tensors, n: int) -> Tensor:
    """Return what n samples bring of the fingerprint of weights."""
    return n * fingerprint(weights)
