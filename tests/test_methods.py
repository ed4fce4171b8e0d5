"""Client methods: equal where the formulas are equal, and equal to the papers' loops written out in plain torch."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from fedcl import keys
from fedcl.keys import Purpose, at, below, key
from tests.federations import Clients, tiny

REPLAY = ["er", "der", "derpp"]
ALL = [0, 1, 2, 3]


def clients(method: str, *overrides: str) -> Clients:
    """Return tiny clients in double precision, two epochs a visit: 12 items, 6 steps, a memory of 5."""
    return Clients.of(tiny(f"client.method={method}", "model.dtype=float64", "client.epochs=2", *overrides))


def three_rounds(method: str, *overrides: str) -> NDArray[Any]:
    """Return the weights after three rounds, the last of them in the second task; memories have evicted by then."""
    return clients(method, *overrides).rounds(3)


def named(**settings: Any) -> str:
    """Return the override that chooses a method with its settings."""
    return ", ".join(f"{name}: {value}" for name, value in settings.items()).join("{}")


@pytest.mark.parametrize("stack", [1, 2])
def test_fedprox_without_pull_is_finetune_to_the_bit(stack: int):
    prox = three_rounds(named(name="fedprox", mu=0), f"engine.stack={stack}")
    assert (prox == three_rounds("finetune", f"engine.stack={stack}")).all()
    assert (prox != three_rounds(named(name="fedprox", mu=0.1), f"engine.stack={stack}")).any()


@pytest.mark.parametrize("stack", [1, 2])
def test_derpp_without_beta_is_der_to_the_bit(stack: int):
    derpp = three_rounds(named(name="derpp", beta=0), f"engine.stack={stack}")
    assert (derpp == three_rounds("der", f"engine.stack={stack}")).all()
    assert (derpp != three_rounds("derpp", f"engine.stack={stack}")).any()


def test_der_without_alpha_is_finetune_to_the_bit():
    assert (three_rounds(named(name="der", alpha=0)) == three_rounds("finetune")).all()


@pytest.mark.parametrize("stack", [1, 2])
@pytest.mark.parametrize("kind", ["class-incremental", "task-incremental"])
@pytest.mark.parametrize("method", REPLAY)
def test_replay_with_an_empty_memory_is_finetune_to_the_bit(method: str, kind: str, stack: int):
    """In the first visit nothing is remembered; in the second something is, and it shows."""
    pair = [clients(each, f"stream.kind={kind}", f"engine.stack={stack}") for each in (method, "finetune")]
    first = [each.visit(each.initial, ALL).total for each in pair]
    second = [each.visit(each.initial, ALL, round=2).total for each in pair]
    assert (first[0] == first[1]).all()
    assert np.abs(second[0] - second[1]).max() > 1e-3


def last_batch_gradient(own: Clients, round: int) -> torch.Tensor:
    """Return the gradient, at the initial weights, of client 1's last batch in a visit of one epoch."""
    module, (x, y) = own.model(), own.shown(own.shuffled(1, 0, round, 0)[-2:])  # 12 items in batches of 5
    gradients = torch.autograd.grad(cross_entropy(module(x), y), list(module.parameters()))
    return torch.cat([each.flatten() for each in gradients])


def test_a_large_mu_stays_at_the_global_model():
    """With lr mu = 1 every step ends at w - grad(w_t) / mu, so mu (w_k - w) -> -grad(w) of the last batch."""
    for mu in (10.0, 1e2, 1e4, 1e6):
        own = clients(named(name="fedprox", mu=mu), f"client.optimizer.lr={1 / mu}", "client.epochs=1")
        update = torch.from_numpy(own.update(own.visit(own.initial, [1], round=1)))
        expected = -last_batch_gradient(own, 1) / mu
        assert (update - expected).norm() <= 20 / mu * expected.norm()
        assert update.norm() < 3 / mu


def test_the_distance_to_the_global_model_falls_with_mu():
    """lr 0.01, twenty epochs: lr mu stays at or below 1."""
    distances = []
    for mu in (0, 1, 10, 100):
        own = clients(named(name="fedprox", mu=mu), "client.optimizer.lr=0.01", "client.epochs=20")
        distances.append(np.linalg.norm(own.update(own.visit(own.initial, [1]))))
    assert distances == sorted(distances, reverse=True)
    assert distances[3] < 0.05 * distances[0]


# The papers' loops, written out for one client: no stacking, no padding, no memory policy but algorithm R.


@dataclass
class Loop:
    """One client's visits with SGD, loss = CE + alpha * dark + beta * replay, memory and logits as published."""

    own: Clients
    client: int
    alpha: float = 0.0
    beta: float = 0.0
    every_pass: bool = False
    seen: int = 0
    memory: dict[int, tuple[int, torch.Tensor]] = field(default_factory=dict)  # slot -> (item, logits)
    known: set[int] = field(default_factory=set)
    losses: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def drawn(self, number: int, round: int, step: int) -> list[int]:
        """Return the slots of replay draw `number`, five a step, with replacement, from the memory before the visit."""
        own = key(0, Purpose.REPLAY, self.client, round, number)
        return [int(below(at(own, np.array(5 * step + i)), self.before)) for i in range(5)]

    def loss(self, module: torch.nn.Module, round: int, step: int) -> torch.Tensor:
        """Return what is added to the cross-entropy of the stream's batch."""
        total, number = torch.zeros((), dtype=torch.float64), 0
        for name, factor in (("dark", self.alpha), ("replay", self.beta)):
            if factor and self.before:
                items, logits = zip(*(self.at_start[slot] for slot in self.drawn(number, round, step)), strict=True)
                x, y = self.own.shown(np.array(items))
                gap = module(x) - torch.stack(logits)
                term = gap.square().mean() if name == "dark" else cross_entropy(module(x), y)
                self.losses[name].append(factor * term.item())
                total = total + factor * term
            number += bool(factor)
        return total

    def admit(self, item: int, logits: torch.Tensor) -> None:
        """Offer an item as it comes by: algorithm R."""
        own, number = key(0, Purpose.ADMIT, self.client), self.seen
        slot = number if number < 5 else int(below(at(own, np.array(number)), number + 1))
        if slot < 5:
            self.memory[slot] = item, logits
        self.seen, self.known = number + 1, self.known | {item}

    def visit(self, module: torch.nn.Module, task: int, round: int) -> None:
        """Train the module on a task: two epochs in batches of five."""
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        self.before, self.at_start, step = len(self.memory), dict(self.memory), 0
        self.losses.clear()
        for epoch in range(2):
            for items in np.split(self.own.shuffled(self.client, task, round, epoch), [5, 10]):
                x, y = self.own.shown(items)
                out = module(x)
                for item, logits in zip(items.tolist(), out.detach(), strict=True):
                    if self.every_pass or item not in self.known:
                        self.admit(item, logits)
                ce = cross_entropy(out, y)
                self.losses["ce"].append(ce.item())
                optimizer.zero_grad()
                (ce + self.loss(module, round, step)).backward()
                optimizer.step()
                step += 1


@pytest.mark.parametrize("stack", [1, 2])
@pytest.mark.parametrize("admit", ["first_seen", "every_pass"])
@pytest.mark.parametrize(
    ("method", "alpha", "beta"),
    [
        ("finetune", 0, 0),
        ("er", 0, 1),
        ("der", 0.1, 0),
        ("derpp", 0.1, 0.5),
        (named(name="derpp", alpha=1, beta=2), 1, 2),
    ],
)
def test_methods_are_the_published_loops(method: str, alpha: float, beta: float, admit: str, stack: int):
    """Three visits over two tasks: updates, losses, memory and remembered logits of each client within 1e-12."""
    own = clients(method, f"client.memory.admit={admit}", f"engine.stack={stack}", "model.personal=['*']")
    loops = [Loop(own, client, alpha, beta, admit == "every_pass") for client in (1, 2)]
    modules = [own.model() for _ in loops]
    for round, task in enumerate((0, 0, 1), start=1):
        reply = own.visit(own.initial, [1, 2], round=round, task=task, clock=round - 1)
        for row, (loop, module) in enumerate(zip(loops, modules, strict=True)):
            loop.visit(module, task, round)
            after = own.site.parameters.flatten(dict(module.named_parameters())).detach().numpy()
            record = own.record(loop.client)
            assert np.abs(record["personal"] - after).max() < 1e-12
            for name, found in loop.losses.items():
                assert reply.table[f"loss/{name}"][row] == pytest.approx(np.mean(found), abs=1e-12)
            if method != "finetune":
                assert record["items"].tolist() == [loop.memory[slot][0] for slot in range(5)]
                assert (
                    record["seen"]
                    == loop.seen
                    == (12 * round * 2 if admit == "every_pass" else (12, 12, 24)[round - 1])
                )
            if alpha:
                logits = np.stack([loop.memory[slot][1].numpy() for slot in range(5)])
                assert np.abs(record["logits"] - logits).max() < 1e-12
    assert np.abs(own.record(1)["personal"] - own.record(2)["personal"]).max() > 1e-2


def test_the_two_draws_of_derpp_are_independent():
    """The slots of the two draws agree no more often than by chance: 1 in 5 (3,000 draws, 5 standard deviations)."""
    own = [key(0, Purpose.REPLAY, np.arange(100), 1, number) for number in (0, 1)]
    first, second = (below(keys.bits(each, 30), 5) for each in own)
    assert abs((first == second).mean() - 0.2) < 5 * np.sqrt(0.16 / 3000)
