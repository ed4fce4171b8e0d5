"""Optimisers: the clients' equal torch.optim, alone as stacked; the server's equal the published recursions."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clients.gradients.clip import ClipNorm
from clients.optimizers import SGD, Adam, Optimizer
from fedcl.answers import Tensors
from server import optimizers as server
from tests.federations import Clients, tiny

K, STEPS = 3, 8
SHAPES = {"w": (4, 2), "b": (2,)}
Make = Callable[[Any], torch.optim.Optimizer]

PAIRS: list[tuple[Optimizer, Make]] = [
    (SGD(lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    (SGD(lr=0.1, weight_decay=0.2), lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.2)),
    (SGD(lr=0.1, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    (
        SGD(lr=0.05, momentum=0.5, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.5, weight_decay=0.1),
    ),
    (Adam(lr=0.01), lambda p: torch.optim.Adam(p, lr=0.01)),
    (
        Adam(lr=0.1, beta1=0.7, beta2=0.9, eps=1e-3, weight_decay=0.3),
        lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.7, 0.9), eps=1e-3, weight_decay=0.3),
    ),
]
names = [f"{type(optimizer).__name__}-{number}" for number, (optimizer, _) in enumerate(PAIRS)]


def drawn(lead: tuple[int, ...]) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(*lead, *shape, generator=generator, dtype=torch.float64) for n, shape in SHAPES.items()}


def ours(optimizer: Optimizer, start: Tensors, gradients: Tensors) -> Tensors:
    """Return the parameters (k, *shape) after steps with the given gradients (steps, k, *shape)."""
    weights = {n: w.clone() for n, w in start.items()}
    buffers = {each: {n: torch.zeros_like(w) for n, w in start.items()} for each in optimizer.buffers}
    k = len(start["b"])
    for step in range(STEPS):
        count = torch.full((k,), step + 1.0, dtype=torch.float64)
        change = optimizer.step({n: g[step] for n, g in gradients.items()}, weights, buffers, count)
        weights = {n: w + change[n] for n, w in weights.items()}
    return weights


def torchs(make: Make, start: Tensors, gradients: Tensors, row: int) -> Tensors:
    """Return what torch.optim makes of one client."""
    weights = {n: w[row].clone().requires_grad_() for n, w in start.items()}
    optimizer = make(list(weights.values()))
    for step in range(STEPS):
        for n, w in weights.items():
            w.grad = gradients[n][step, row].clone()
        optimizer.step()
    return {n: w.detach() for n, w in weights.items()}


@pytest.mark.parametrize(("optimizer", "make"), PAIRS, ids=names)
def test_eight_steps_equal_torch_optim_alone_and_stacked(optimizer: Optimizer, make: Make):
    start, gradients = drawn((K,)), drawn((STEPS, K))
    together = ours(optimizer, start, gradients)
    for row in range(K):
        expected = torchs(make, start, gradients, row)
        alone = ours(optimizer, {n: w[[row]] for n, w in start.items()}, {n: g[:, [row]] for n, g in gradients.items()})
        for n in SHAPES:
            assert (together[n][row] - expected[n]).abs().max() < 1e-12
            assert (alone[n][0] - expected[n]).abs().max() < 1e-12
            assert (expected[n] - start[n][row]).abs().max() > 1e-2


def test_adam_counts_the_steps_of_each_client_apart():
    """The first step of Adam is lr * sign(g) whatever g is; at a large count without history it is smaller."""
    adam, gradient = Adam(lr=0.5, eps=1e-300), {"b": torch.tensor([[3.0], [-1e-3]], dtype=torch.float64)}
    buffers = {each: {"b": torch.zeros(2, 1, dtype=torch.float64)} for each in adam.buffers}
    change = adam.step(gradient, gradient, buffers, torch.tensor([1.0, 1000.0], dtype=torch.float64))["b"]
    assert change[0].item() == pytest.approx(-0.5, abs=1e-12)
    late = 0.5 * 0.1 / (1 - 0.9**1000) / math.sqrt(0.001 / (1 - 0.999**1000))
    assert change[1].item() == pytest.approx(late, abs=1e-12)


# Visits


def visits(own: Clients, make: Make, *, keep: bool) -> list[Tensor]:
    """Return client 1's parameters after each of two visits in a plain loop: 12 items in batches of 5, one epoch."""
    module, after = own.model(), []
    optimizer = make(module.parameters())
    for round, task in ((1, 0), (2, 1)):
        optimizer = optimizer if keep else make(module.parameters())
        for items in np.split(own.shuffled(1, task, round, 0), [5, 10]):
            optimizer.zero_grad()
            x, y = own.shown(items)
            cross_entropy(module(x), y).backward()
            optimizer.step()
        after.append(own.site.parameters.flatten(dict(module.named_parameters())).detach().clone())
    return after


MAKES: list[tuple[str, Make]] = [
    (
        "{name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 0.01, keep: %s}",
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    ),
    ("{name: adam, lr: 0.05, weight_decay: 0.01, keep: %s}", lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.01)),
]


@pytest.mark.parametrize("stack", [1, 2])
@pytest.mark.parametrize(("text", "make"), MAKES, ids=["sgd", "adam"])
def test_kept_buffers_continue_as_one_run_of_torch_optim(text: str, make: Make, stack: int):
    """Two visits of three steps equal six steps of torch.optim if kept, and two fresh ones if not; to 1e-12."""
    for keep in (True, False):
        settings = (f"client.optimizer={text % str(keep).lower()}", "model.dtype=float64", "model.personal=['*']")
        own = Clients.of(tiny(*settings, f"engine.stack={stack}"))
        kept, fresh = visits(own, make, keep=True), visits(own, make, keep=False)
        assert (kept[1] - fresh[1]).abs().max() > 1e-2
        for number, expected in enumerate(kept if keep else fresh):
            own.visit(own.initial, [1, 3], round=1 + number, task=number, clock=2 * number)
            found = torch.from_numpy(own.record(1)["personal"].copy())
            assert (found - expected).abs().max() < 1e-12
        fields = [name for name in own.site.record.names or () if name.startswith("optimizer.")]
        assert bool(fields) == keep
        if keep:
            assert own.record(1)["optimizer.steps"] == 6


# Clipping


def test_clipping_scales_the_whole_gradient_to_the_limit():
    gradients = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    clipped = ClipNorm(limit=1.0)(gradients, {})
    assert clipped["a"].tolist() == pytest.approx([0.6, 0.0], abs=1e-7)
    assert clipped["b"].item() == pytest.approx(0.8, abs=1e-7)
    for limit in (5.0, 7.0):  # at or below the limit: as it is
        assert all(torch.equal(ClipNorm(limit=limit)(gradients, {})[n], g) for n, g in gradients.items())
    nothing = ClipNorm(limit=1.0)({"a": torch.zeros(2)}, {})
    assert nothing["a"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("stack", [1, 2])
def test_every_client_is_clipped_by_its_own_norm(stack: int):
    """With one plain step of lr 1 an update is the clipped gradient: norm exactly the limit, or below it."""
    settings = ("client.batch=50", "client.optimizer.lr=1", "model.dtype=float64", f"engine.stack={stack}")
    free, held = Clients.of(tiny(*settings)), Clients.of(tiny(*settings, "client.clip=0.3"))
    free_norms, norms = (own.visit(own.initial, [0, 1, 2, 3]).table["norm"] for own in (free, held))
    assert norms == pytest.approx(np.minimum(free_norms, 0.3), abs=1e-12)
    assert free_norms.max() > 0.3 + 1e-3
    middle = float(np.sort(free_norms)[1:3].mean())
    some = Clients.of(tiny(*settings, f"client.clip={middle}"))
    clipped = some.visit(some.initial, [0, 1, 2, 3]).table["norm"]
    assert clipped == pytest.approx(np.minimum(free_norms, middle), abs=1e-12)
    assert sorted(clipped < middle - 1e-9) == [False, False, True, True]


# The server's


def steps(optimizer: Any, updates: list[float]) -> list[float]:
    """Return what is added to a weight in each round."""
    state, found = optimizer.begin({"w": torch.zeros(1, dtype=torch.float64)}), []
    for update in updates:
        state, step = optimizer.apply(state, {"w": torch.tensor([update], dtype=torch.float64)})
        found.append(step["w"].item())
    return found


def test_plain_server_steps_are_lr_times_the_update():
    assert steps(server.SGD(), [1.0, 2.0, -1.0]) == [1.0, 2.0, -1.0]
    assert steps(server.SGD(lr=0.5), [1.0, 2.0, -1.0]) == [0.5, 1.0, -0.5]


def test_fedavgm_over_three_steps():
    """v: 1, 0.9 + 2 = 2.9, 2.61 - 1 = 1.61; w += v / 2."""
    assert steps(server.FedAvgM(lr=0.5, momentum=0.9), [1.0, 2.0, -1.0]) == pytest.approx([0.5, 1.45, 0.805], abs=1e-14)
    assert steps(server.FedAvgM(momentum=0.0), [1.0, 2.0, -1.0]) == [1.0, 2.0, -1.0]
    constant = steps(server.FedAvgM(lr=1.0, momentum=0.5), [1.0] * 3)  # 2 (1 - 2^-t)
    assert constant == pytest.approx([1.0, 1.5, 1.75], abs=1e-15)


def test_fedadam_over_three_steps():
    """D = 1, 2, -1, beta 0.9 and 0.99, tau 0.001, v_0 = tau^2, no bias correction.

    m: .1, .29, .161            v: .01 + .99e-6, .0499 + .9801e-6, .059401 + .970299e-6
    """
    found = steps(server.FedAdam(lr=0.1, beta1=0.9, beta2=0.99, tau=1e-3), [1.0, 2.0, -1.0])
    v = [0.01 + 0.99e-6, 0.0499 + 0.9801e-6, 0.059401 + 0.970299e-6]
    expected = [0.1 * m / (math.sqrt(second) + 1e-3) for m, second in zip((0.1, 0.29, 0.161), v, strict=True)]
    assert found == pytest.approx(expected, abs=1e-14)
    assert found == pytest.approx([0.0990050, 0.1292420, 0.0657881], abs=1e-6)


def test_fedadam_of_a_constant_update():
    """m = (1 - b1^t) D and v = b2^t tau^2 + (1 - b2^t) D^2."""
    lr, b1, b2, tau, D = 0.3, 0.8, 0.95, 1e-2, -0.7
    found = steps(server.FedAdam(lr=lr, beta1=b1, beta2=b2, tau=tau), [D] * 3)
    for t, step in enumerate(found, start=1):
        v = b2**t * tau**2 + (1 - b2**t) * D**2
        assert step == pytest.approx(lr * (1 - b1**t) * D / (math.sqrt(v) + tau), abs=1e-14)
