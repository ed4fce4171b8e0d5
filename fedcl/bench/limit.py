"""The least that the arithmetic costs here: written by hand for this very model, in as many processes as workers.

The mlp: K clients at once, forward and gradient by hand with batched products that update the weights in place. The
cnn: one client after another on one flat buffer, no optimiser object; batched products by hand gain nothing there.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedcl.bench import crew, work
from fedcl.bench.crew import Flat, Share
from fedcl.bench.spec import Spec, Told, Watch
from fedcl.bench.work import Visit, Work

STACK = 50  # clients at once, found best by hand for 64-64-10


def run(spec: Spec, watch: Watch) -> Told:
    """Run the loop in as many processes as fedcl has workers."""
    return crew.run_shared(f"{__name__}:share", spec, watch)


def share(spec: Spec, part: int, parts: int) -> Share:
    """Return the training of one share of each round."""
    return _one_by_one(spec, part, parts) if spec.workload == "cnn" else _stacked(spec, part, parts)


@dataclass(frozen=True, kw_only=True)
class Stack:
    """K clients, in descending order of steps; steps s and batches b are padded."""

    active: tuple[int, ...]  # how many of them make each step
    items: Tensor  # (K, s, b)
    weight: Tensor  # (K, s, b, 1) 1 / real batch size, 0 on padding
    n: Tensor  # (K,)

    @staticmethod
    def of(visits: list[Visit], batch: int) -> "Stack":
        """Lay out some visits."""
        counts = np.array([len(visit.steps) for visit in visits])
        shape = (len(visits), int(counts.max()), batch)
        items, weight = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        for row, visit in enumerate(visits):
            for number, step in enumerate(visit.steps):
                items[row, number, : len(step)], weight[row, number, : len(step)] = step, 1 / len(step)
        return Stack(
            active=tuple(int((counts > step).sum()) for step in range(shape[1])),
            items=torch.from_numpy(items),
            weight=torch.from_numpy(weight)[..., None],
            n=torch.tensor([float(visit.n) for visit in visits]),
        )


def _laid(given: Work, part: int, parts: int, batch: int) -> list[list[Stack]]:
    rounds = [list(work.share(each, part, parts)) for each in given.rounds]
    return [[Stack.of(each[k : k + STACK], batch) for k in range(0, len(each), STACK)] for each in rounds]


@torch.no_grad()
def step(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, x: Tensor, target: Tensor, weight: Tensor, lr: float) -> None:
    """Make one step of K clients in place: two layers, ReLU, cross-entropy.

    Args:
        w1, b1, w2, b2: (K, h, d), (K, 1, h), (K, c, h), (K, 1, c).
        x, target, weight: (K, b, d), (K, b, c) one-hot, (K, b, 1).
    """
    hidden = torch.baddbmm(b1, x, w1.transpose(1, 2)).relu_()
    slope = torch.baddbmm(b2, hidden, w2.transpose(1, 2)).softmax(2).sub_(target).mul_(weight)
    back = torch.bmm(slope, w2).mul_(hidden > 0)
    w2.baddbmm_(slope.transpose(1, 2), hidden, alpha=-lr)
    b2.sub_(slope.sum(1, keepdim=True), alpha=lr)
    w1.baddbmm_(back.transpose(1, 2), x, alpha=-lr)
    b1.sub_(back.sum(1, keepdim=True), alpha=lr)


def _stacked(spec: Spec, part: int, parts: int) -> Share:
    given, client = spec.loaded(), spec.scenario.client
    rounds, x = _laid(given, part, parts, client.batch), given.inputs.flatten(1)
    targets = torch.nn.functional.one_hot(given.labels).float()

    def trained(stack: Stack, start: Tensor) -> Tensor:
        """Return the sum over the stack's clients of n (their weights - start)."""
        views = crew.named(start.numpy(), given.weights).values()
        w1, b1, w2, b2 = (torch.from_numpy(each).expand(len(stack.n), *each.shape).clone() for each in views)
        for number, k in enumerate(stack.active):
            items = stack.items[:k, number]
            step(
                w1[:k], b1[:k, None], w2[:k], b2[:k, None], x[items], targets[items], stack.weight[:k, number],
                client.optimizer.lr,
            )  # fmt: skip
        total = torch.cat([(stack.n @ each.flatten(1)) for each in (w1, b1, w2, b2)])
        return total - stack.n.sum() * start

    def train(number: int, weights: Flat) -> Flat:
        start = torch.from_numpy(weights)
        total = torch.zeros_like(start)
        for stack in rounds[number]:
            total += trained(stack, start)
        return total.numpy()

    return train


def _one_by_one(spec: Spec, part: int, parts: int) -> Share:
    given, lr = spec.loaded(), spec.scenario.client.optimizer.lr
    model, x, y = given.model(spec.scenario), given.inputs, given.labels
    buffer = torch.from_numpy(crew.flat(given.weights))
    parameters: list[Tensor] = list(model.parameters())
    for parameter, view in zip(parameters, crew.named(buffer.numpy(), given.weights).values(), strict=True):
        parameter.data = torch.from_numpy(view)

    def train(number: int, weights: Flat) -> Flat:
        start = torch.from_numpy(weights)
        total = torch.zeros_like(start)
        for visit in work.share(given.rounds[number], part, parts):
            buffer.copy_(start)
            for items in map(torch.from_numpy, visit.steps):
                gradients = torch.autograd.grad(cross_entropy(model(x[items]), y[items]), parameters)
                with torch.no_grad():
                    torch._foreach_add_(parameters, gradients, alpha=-lr)
            total.add_(buffer - start, alpha=visit.n)
        return total.numpy()

    return train
