"""Regularisers: formulas by hand and in closed form, whole visits against plain torch, and what the server adds."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from clients.answers.fisher import squared_gradients
from clients.losses import Anchors, Batch, Forward, Items, Regulariser
from clients.losses.ewc import penalty
from clients.losses.lwf import LwF, distillation
from clients.losses.si import SI, importance
from clients.optimizers import SGD
from clients.trainer import Block, Stepwise, Trainer
from clients.work import train
from fedcl import api, config, testing
from fedcl.answers import Answer, Layout, Tensors, answer_layout, prefixed, under
from fedcl.config import Scenario
from fedcl.errors import ConfigError
from fedcl.orders import TrainOrder
from server.methods.fedewc import FedEWC, fisher
from server.methods.fedlwf import FedLwF
from tests.federations import Clients, hashes, run, tiny
from tests.frozen import case, learnt, pairs, weights_of

ALL = ["ewc", "si", "lwf", "fedewc", "fedlwf"]
LOCAL = ["ewc", "si", "lwf"]
# Four tasks of two classes, 12 items a client and task: three steps an epoch.
FOUR = (
    "stream.dataset={name: synthetic, classes: 8, features: 5, samples: 192, test_samples: 48}",
    "stream.tasks=4",
    "model.dtype=float64",
    "client.epochs=2",
)


def chosen(name: str) -> tuple[str, ...]:
    """Return the overrides that choose a method, on both sides if it has two."""
    return (f"client.method={name}", *((f"server.method={name}",) if name.startswith("fed") else ()))


def close(found: NDArray[Any], expected: NDArray[Any], tolerance: float = 1e-12) -> bool:
    """Return whether they agree, relative to the largest expected number."""
    return bool(np.abs(found - expected).max() <= tolerance * max(1e-3, np.abs(expected).max()))


# Fisher information


@pytest.mark.parametrize("kind", ["class-incremental", "task-incremental", "domain-incremental"])
def test_fisher_of_logistic_regression_is_its_closed_form(kind: str):
    """d log p(y | x) / dW = (y - p) x^T: so sum (y - p)^2 (x^2)^T and, for the bias, sum (y - p)^2; within 1e-12."""
    site = Clients.of(tiny("model=linear", "model.dtype=float64", f"stream.kind={kind}")).site
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=site.parameters.size))
    for pair in pairs(site):
        one = case(site, pair, weights, 1)
        x, views = site.trainer.data.inputs(one.items, one.tasks).flatten(1), site.parameters.views(weights)
        scores = x @ views["head.weight"].T + views["head.bias"] + site.trainer.data.mask(one.tasks)
        gaps = (one_hot(site.trainer.data.y[one.items], 4) - scores.softmax(1)).square()
        expected = {"head.weight": gaps.T @ x.square(), "head.bias": gaps.sum(0)}
        assert len(x) > 5
        assert close(squared_gradients(one).numpy(), site.parameters.flatten(expected).numpy())


def test_fisher_is_that_of_samples_one_by_one_however_it_is_cut(monkeypatch: pytest.MonkeyPatch):
    """An MLP, autograd sample by sample: within 1e-12, in chunks of all, of 5 and of 1."""
    site = Clients.of(tiny("model.dtype=float64")).site
    weights = torch.from_numpy(np.random.default_rng(1).normal(size=site.parameters.size))
    one = case(site, (2, 1), weights, 1)
    expected = one_by_one(one.module, site.trainer.data.inputs(one.items, one.tasks), site.trainer.data.y[one.items])
    for numbers in (2**23, 5 * len(weights), 1):
        monkeypatch.setattr("clients.answers.fisher.NUMBERS", numbers)
        assert close(squared_gradients(one).numpy(), expected)


def one_by_one(module: nn.Module, x: Tensor, y: Tensor) -> NDArray[Any]:
    """Return the sum of the squared gradients of single samples, (P,)."""
    parameters = list(module.parameters())
    total = torch.zeros(sum(each.numel() for each in parameters), dtype=torch.float64)
    for row in range(len(x)):
        loss = cross_entropy(module(x[row : row + 1]), y[row : row + 1])
        total += torch.cat([each.flatten() for each in torch.autograd.grad(loss, parameters)]).square()
    return total.numpy()


# The formulas


def test_the_penalty_by_hand():
    """F = (1, 2), w - w* = (3, -1): 9 + 2 = 11; a parameter that F does not name has no part."""
    parameters = {"w": torch.tensor([4.0, 0.0]), "other": torch.ones(3)}
    anchors = {"ewc.theta": {"w": torch.tensor([1.0, 1.0])}, "ewc.fisher": {"w": torch.tensor([1.0, 2.0])}}
    assert penalty(parameters, anchors).item() == 11.0


def test_distillation_by_hand():
    """T = 2, old classes 0 and 1 of 3: p = (1/4, 3/4); q = (1/2, 1/2) gives ln 2, q = (3/4, 1/4) gives more."""
    ln3 = float(np.log(3))
    old = torch.tensor([[0.0, 2 * ln3, 9.0]] * 2, dtype=torch.float64)
    new = torch.tensor([[1.0, 1.0, -5.0], [2 * ln3, 0.0, 7.0]], dtype=torch.float64)
    classes = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    expected = [np.log(2), -(0.25 * np.log(0.75) + 0.75 * np.log(0.25))]
    assert np.abs(distillation(new, old, classes, 2.0).numpy() - expected).max() < 1e-15
    empty = torch.zeros(4, 0)
    batch = Batch(Items(new, empty, empty, torch.tensor([0.25, 0.75], dtype=torch.float64), old), {})
    anchors = Anchors({}, {"lwf.classes": {"classes": classes}})
    found = LwF(alpha=3.0, temperature=2.0)(Forward(lambda x: x, {}), batch, anchors)
    assert abs(found.item() - 3 * (0.25 * expected[0] + 0.75 * expected[1])) < 1e-15


def test_without_old_classes_nothing_is_distilled():
    """Neither a loss nor a gradient, and no number that is not finite."""
    logits = torch.randn(5, 3, requires_grad=True)
    found = distillation(logits, torch.randn(5, 3) * 100, torch.zeros(3), 2.0)
    assert found.tolist() == [0.0] * 5
    assert torch.autograd.grad(found.sum(), logits)[0].abs().max() == 0


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0.5, 5))
def test_distillation_is_least_at_the_teacher(seed: int, known: int, temperature: float):
    """H(p, q) >= H(p, p), and the gradient vanishes at the teacher's own logits; classes not known get none."""
    generator = torch.Generator().manual_seed(seed)
    old, new = (torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    classes = (torch.arange(6) < known).double()
    least = distillation(old, old, classes, temperature)
    assert (distillation(new, old, classes, temperature) >= least - 1e-12).all()
    at = old.clone().requires_grad_()
    slope = torch.autograd.grad(distillation(at, old, classes, temperature).sum(), at)[0]
    assert slope.abs().max() < 1e-12
    at = new.clone().requires_grad_()
    slope = torch.autograd.grad(distillation(at, old, classes, temperature).sum(), at)[0]
    assert slope[:, known:].abs().max() == 0 if known < 6 else slope.abs().max() > 0


# The path integral


@dataclass(frozen=True, kw_only=True)
class Quadratic:
    """1/2 sum h_i w_i^2, whatever the batch."""

    draws = ()

    def __call__(self, model: Forward, batch: Batch, anchors: Anchors) -> Tensor:
        w = model.parameters["head.weight"]
        return (torch.arange(1, w.numel() + 1).view_as(w) * w.square()).sum() / 2


def descend(start: Tensor, *, penalised: bool, steps: int = 60) -> tuple[Tensor, Tensor]:
    """Descend on the quadratic (k, P), under SI's penalty towards 10 or without it; return end and path."""
    own = Clients.of(tiny("model=linear", "model.dtype=float64"))
    site, k = own.site, len(start)
    held = {"si.theta": torch.full_like(start, 10.0), "si.omega": torch.full_like(start, float(penalised))}
    zeros = torch.zeros(k, steps, 1, dtype=torch.int64)
    block = Block(
        counts=[steps] * k, start=start, shared=start[0], draws={}, capture=None, buffers={},
        noise=torch.zeros(k, steps, 0, dtype=torch.int64),
        now=Stepwise(items=zeros, tasks=zeros, labels=zeros, weight=torch.ones(k, steps, 1, dtype=torch.float64)),
        steps_before=torch.zeros(k), own={name: site.parameters.views(each) for name, each in held.items()},
    )  # fmt: skip
    trainer = Trainer(
        module=site.trainer.module, layout=site.parameters, terms={"q": Quadratic(), "si": SI()}, transforms=(),
        optimizer=SGD(lr=1e-4), data=site.trainer.data, classes=4, path=True,
    )  # fmt: skip
    result = trainer.train(block)
    assert result.path is not None
    return result.after, result.path


def loss(weights: Tensor, size: int = 20) -> Tensor:
    """Return the quadratic of each client (k,): the 20 weights of the head come before its 4 biases."""
    return (torch.arange(1, size + 1) * weights[:, :size].square()).sum(1) / 2


@pytest.mark.parametrize("penalised", [False, True])
@pytest.mark.parametrize("k", [1, 3])
def test_the_path_integral_is_the_decrease_of_the_loss(penalised: bool, k: int):
    """Within 1 % of it, on two visits with a jump between that changes the loss by four times as much.

    The penalty pulls elsewhere and has no part: what is integrated is the quadratic's own gradient.
    """
    first = torch.from_numpy(np.random.default_rng(2).normal(size=(k, 24)))
    one, path = descend(first, penalised=penalised)
    jump = 4 * one
    two, more = descend(jump, penalised=penalised)
    decrease = loss(first) - loss(one) + loss(jump) - loss(two)
    assert ((path + more).sum(1) - decrease).abs().max() < 0.01 * decrease.min()
    assert ((loss(jump) - loss(one)) > 4 * decrease).all()
    assert ((path + more)[:, 20:] == 0).all()


def test_importance_by_hand():
    """Path 6 over a distance of 2 with xi = 1: 6 / 5; where nothing moved, path / xi."""
    found = importance(torch.tensor([6.0, 6.0]), torch.tensor([-2.0, 0.0]), 1.0)
    assert found.tolist() == [pytest.approx(1.2), 6.0]


# Whole visits against plain torch


@dataclass
class Plain:
    """A client in plain torch: its regulariser's memory, spelled out from the papers."""

    own: Clients
    client: int
    name: str
    module: nn.Module
    task: int | None = None
    theta: Tensor | None = None  # end of the last task
    weight: Tensor | float = 0.0  # Fisher information or omega
    path: Tensor | float = 0.0
    moved: Tensor | float = 0.0
    old: set[int] = field(default_factory=set)  # classes

    def flat(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.module.parameters())

    def logits(self, weights: Tensor, x: Tensor) -> Tensor:
        """Return the logits of other weights."""
        now = self.flat().detach().clone()
        nn.utils.vector_to_parameters(weights, self.module.parameters())
        found = self.module(x).detach()
        nn.utils.vector_to_parameters(now, self.module.parameters())
        return found

    def leave(self) -> None:
        """End a task with the model as it stands."""
        x, y = self.own.shown(self.own.site.stream.train.cell(self.client, self.task or 0))
        self.theta = self.flat().detach().clone()
        if self.name == "ewc":
            self.weight = 0.5 * self.weight + torch.from_numpy(one_by_one(self.module, x, y)) / len(x)
        if self.name == "si":
            self.weight = torch.clamp(self.weight + self.path / (self.moved**2 + 0.1), min=0)
        self.path, self.moved = 0.0, 0.0
        self.old |= set(y.tolist())

    def held(self, x: Tensor) -> Tensor:
        """Return what is added to the cross-entropy."""
        if self.theta is None:
            return torch.zeros((), dtype=torch.float64)
        if self.name == "lwf":
            known = sorted(self.old)
            target = (self.logits(self.theta, x)[:, known] / 3).softmax(1)
            return -2 * (target * (self.module(x)[:, known] / 3).log_softmax(1)).sum(1).mean()
        factor = {"ewc": 40.0 / 2, "si": 2.0}[self.name]
        weight = torch.as_tensor(self.weight)
        if self.name == "ewc":  # where lr * lam * F > 2, plain descent must diverge, and 1 / (lr * lam) is taken
            weight = torch.where(0.1 * 40.0 * weight > 2, 1 / (0.1 * 40.0), weight)
        return factor * (weight * (self.flat() - self.theta) ** 2).sum()

    def visit(self, start: Tensor, task: int, round: int) -> None:
        """Train two epochs on a task from given weights."""
        if self.task not in (None, task):
            self.leave()
        self.task = task
        nn.utils.vector_to_parameters(start.clone(), self.module.parameters())
        parameters = list(self.module.parameters())
        for epoch in range(2):
            for items in np.split(self.own.shuffled(self.client, task, round, epoch), [5, 10]):
                x, y = self.own.shown(items)
                data, held = cross_entropy(self.module(x), y), self.held(x)
                g = torch.cat([each.flatten() for each in torch.autograd.grad(data, parameters)])
                whole = g
                if held.requires_grad:
                    whole = g + torch.cat([each.flatten() for each in torch.autograd.grad(held, parameters)])
                step, now = -0.1 * whole, self.flat().detach()
                self.path, self.moved = self.path - g * step, self.moved + step
                nn.utils.vector_to_parameters(now + step, self.module.parameters())


SETTINGS = {
    "ewc": "client.method={name: ewc, lam: 40.0, gamma: 0.5}",
    "si": "client.method={name: si, c: 2.0, xi: 0.1}",
    "lwf": "client.method={name: lwf, alpha: 2.0, temperature: 3.0}",
}


@pytest.mark.parametrize("stack", [1, 2])
@pytest.mark.parametrize("name", LOCAL)
def test_visits_are_the_published_loop(name: str, stack: int):
    """Three tasks, two visits each from other global weights: models within 1e-11 of a loop in plain torch.

    So are the integral and the way of the task at hand, which no jump between visits adds to. Without the term the
    models would be others by more than 1e-4.
    """
    own = Clients.of(tiny(*FOUR, SETTINGS[name], f"engine.stack={stack}"))
    plain = [Plain(own, client, name, own.model()) for client in (0, 3)]
    finetuned = Clients.of(tiny(*FOUR))
    rng, differences = np.random.default_rng(3), []
    for clock, task in enumerate((0, 0, 1, 1, 2, 2)):
        start = own.initial + 0.3 * rng.normal(size=len(own.initial))
        for each in (own, finetuned):
            each.visit(start, [0, 3], round=clock + 1, task=task, clock=clock)
        for each in plain:
            each.visit(torch.from_numpy(start), task, clock + 1)
            record, after = own.record(each.client), each.flat().detach().numpy()
            assert close(record["local"], after, 1e-11)
            other = finetuned.visit(start, [each.client], round=clock + 1, task=task, clock=clock)
            differences.append(float(np.abs(start + finetuned.update(other) - after).max()))
            if name == "si":
                assert close(record["path"], np.asarray(each.path), 1e-10)
                assert close(record["moved"], np.asarray(each.moved), 1e-10)
    assert max(differences[:4]) < 1e-12  # the first task
    assert min(differences[4:]) > 1e-4
    for each in plain:
        record = own.record(each.client)
        assert each.theta is not None
        theta, weight = {"ewc": ("theta", "fisher"), "si": ("theta", "omega"), "lwf": ("teacher", "classes")}[name]
        assert close(record[f"{name}.{theta}"], each.theta.numpy(), 1e-11)
        if name == "lwf":
            assert np.flatnonzero(record["lwf.classes"]).tolist() == sorted(each.old)
        else:
            assert close(record[f"{name}.{weight}"], np.asarray(each.weight), 1e-10)


def test_a_client_that_missed_the_end_of_its_task_leaves_it_at_its_next_visit():
    """Asked at clocks 0 and 7 of four tasks of two visits: the anchor is the model that clock 0 left, on task 0."""
    own = Clients.of(tiny(*FOUR, "client.method=ewc"))
    own.visit(own.initial, [1], round=1, task=0, clock=0)
    left = own.record(1)["local"].copy()
    assert not own.record(1)["ewc.fisher"].any()
    own.visit(own.initial, [1], round=8, task=3, clock=7)
    assert (own.record(1)["ewc.theta"] == left).all()
    one = case(own.site, (1, 0), torch.from_numpy(left.copy()), 1)
    expected = (squared_gradients(one) / len(one.items)).numpy()
    assert (own.record(1)["ewc.fisher"] == expected).all()


def test_records_hold_only_what_the_method_needs():
    """Beside visits and cursor: nothing for finetune and where the server keeps the anchors."""
    names = {name: Clients.of(tiny(*chosen(name))).site.record.names for name in ("finetune", *ALL)}
    assert names["finetune"] == names["fedewc"] == names["fedlwf"] == ("visits", "cursor")
    assert names["ewc"] == ("visits", "cursor", "local", "position", "ewc.theta", "ewc.fisher")
    assert names["si"] == ("visits", "cursor", "local", "position", "si.theta", "si.omega", "path", "moved")
    assert names["lwf"] == ("visits", "cursor", "local", "position", "lwf.teacher", "lwf.classes")


# What the server adds


def ordered(own: Clients, weights: NDArray[Any], shared: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """Return the update of client 2's visit to task 1 when the server sends something with the weights."""
    order = TrainOrder(
        round=5, cohort=0, clients=np.array([2]), tasks=np.array([1]), clocks=np.array([2]), weights=weights,
        packs=[""], rows=np.zeros(1, np.int64), folder="", shared=shared,
    )  # fmt: skip
    reply = train(own.site, order, own)
    assert not reply.errors
    return own.update(reply)


def test_fedewc_and_fedlwf_on_a_client_are_their_local_forms_with_the_servers_anchors():
    """The same visit in plain torch, anchored to what was sent: within 1e-11."""
    rng = np.random.default_rng(4)
    own = Clients.of(tiny(*FOUR))
    start, theta = own.initial, own.initial + 0.3 * rng.normal(size=len(own.initial))
    weight, known = rng.uniform(size=len(theta)), np.array([0])

    def sent(**flat: NDArray[Any]) -> dict[str, NDArray[Any]]:
        named = (
            prefixed(name.replace("_", "."), own.site.parameters.views(torch.from_numpy(each)))
            for name, each in flat.items()
        )
        return {name: view.numpy() for views in named for name, view in views.items()}

    for name, chosen_settings, shared in (
        ("fedewc", "lam: 40.0", sent(ewc_theta=theta, ewc_fisher=weight)),
        ("fedlwf", "alpha: 2.0, temperature: 3.0", {**sent(lwf_teacher=theta), "lwf.known": known}),
    ):
        method = f"client.method={{name: {name}, {chosen_settings}}}"
        found = ordered(Clients.of(tiny(*FOUR, method, f"server.method={name}")), start, shared)
        plain = Plain(own, 2, name.removeprefix("fed"), own.model(), theta=torch.from_numpy(theta))
        plain.weight, plain.old = torch.from_numpy(weight), set(own.site.stream.tasks[0].classes)
        plain.visit(torch.from_numpy(start), 1, 5)
        assert close(start + found, plain.flat().detach().numpy(), 1e-11)
        without = ordered(Clients.of(tiny(*FOUR, method, f"server.method={name}")), start, {})
        assert (without == ordered(Clients.of(tiny(*FOUR)), start, {})).all()
        assert np.abs(without - found).max() > 1e-3


def pooled_fisher(scenario: Scenario, task: int, weights: Tensors) -> NDArray[Any]:
    """Return the mean squared gradient over all clients' data of a task, sample by sample."""
    own = Clients.of(scenario)
    module = own.model()
    module.load_state_dict(weights)
    stream = own.site.stream
    items = np.concatenate([stream.train.cell(client, task) for client in range(scenario.stream.clients)])
    x, y = own.shown(items)
    return one_by_one(module, x, y) / len(items)


@pytest.mark.parametrize("clients", [1, 4])
def test_fedewc_is_the_fisher_information_of_all_data_at_once(clients: int, tmp_path: Path):
    """After two tasks: gamma F_1 + F_2, each under the global model of its end, anchored at the last; within 1e-10."""
    scenario = tiny(
        f"stream.clients={clients}", "model.dtype=float64", "client.method=fedewc",
        "server.method={name: fedewc, gamma: 0.25}", "checkpoint.seconds=0",
    )  # fmt: skip
    half = config.load(config.as_dict(scenario), ["stream.schedule.rounds=2"])
    run(half, tmp_path / "half")
    run(scenario, tmp_path / "whole")
    expected = 0.25 * pooled_fisher(scenario, 0, weights_of(tmp_path / "half"))
    expected = expected + pooled_fisher(scenario, 1, weights_of(tmp_path / "whole"))
    state, weights = learnt(tmp_path / "whole"), weights_of(tmp_path / "whole")
    order = [name for name, _ in Clients.of(scenario).site.parameters.shapes]
    assert close(torch.cat([fisher(state)[name].flatten() for name in order]).numpy(), expected, 1e-10)
    assert all(torch.equal(each, weights[name]) for name, each in under("theta", state).items())
    events = [event for event in api.load(tmp_path / "whole").events if event["event"] == "consolidation"]
    assert [(event["round"], event["clients"]) for event in events] == [(2, clients), (4, clients)]


def test_a_late_answer_joins_the_task_that_ended_last():
    """60 and then 40 samples of a task: their pooled mean, after gamma times the mean of the task before."""
    weights = {"w": torch.zeros(2)}
    method = FedEWC(gamma=0.5)
    layout = answer_layout(["fisher"], Layout.of(weights))

    def total(squares: list[float], samples: float) -> Answer:
        return Answer(layout, torch.tensor([*squares, samples], dtype=torch.float64))

    state = method.begin(weights)
    assert method.shared(state) == {}
    state, _ = method.end_task(state, weights, total([8.0, 2.0], 2), [0])
    state, _ = method.end_task(state, {"w": torch.ones(2)}, total([60.0, 0.0], 60), [1])
    state, _ = method.end_task(state, {"w": torch.full((2,), 9.0)}, total([0.0, 40.0], 40), [])
    shared = method.shared(state)
    assert shared["ewc.theta/w"].tolist() == [1.0, 1.0]
    assert shared["ewc.fisher/w"].tolist() == pytest.approx([0.5 * 4 + 0.6, 0.5 * 1 + 0.4])
    state, _ = method.end_task(state, weights, None, [2])  # nobody answered
    assert method.shared(state)["ewc.fisher/w"].tolist() == pytest.approx([1.3, 0.45])
    assert method.task_problem(weights, total([1.0, -1.0], 1)) is not None
    assert method.task_problem(weights, total([1.0, 1.0], 1)) is None


def test_fedlwfs_teacher_is_the_global_model_when_a_task_begins():
    """None at the first; then the weights of that moment, with the tasks begun before, until the next begins."""
    method, weights = FedLwF(), {"w": torch.tensor([1.0, 2.0])}
    state, same = method.begin_task(method.begin(weights), weights, [0, 2])
    assert same is weights
    assert method.shared(state) == {}
    state, _ = method.begin_task(state, weights, [1])
    weights["w"] += 5
    assert method.shared(state)["lwf.teacher/w"].tolist() == [1.0, 2.0]
    assert method.shared(state)["lwf.known"].tolist() == [0, 2]
    state, _ = method.begin_task(state, weights, [3])
    assert method.shared(state)["lwf.teacher/w"].tolist() == [6.0, 7.0]
    assert method.shared(state)["lwf.known"].tolist() == [0, 2, 1]


@pytest.mark.parametrize("name", ["fedewc", "fedlwf"])
def test_half_of_a_federated_method_is_refused(name: str):
    """A client method without what it reads of the server is an error, and so are parameters that the server lacks."""
    with pytest.raises(ConfigError, match=rf"server\.method = 'fedavg': client method '{name}' needs"):
        tiny(f"client.method={name}")
    with pytest.raises(ConfigError, match=r"model\.personal = \['head'\]"):
        tiny(*chosen(name), "model.personal=['head']")
    assert tiny(*chosen(name)).model.personal == []


# Whole runs


@pytest.mark.parametrize("stack", [1, 4])
def test_the_first_task_is_finetuning_to_the_bit(stack: int, tmp_path: Path):
    """Every regulariser adds exactly nothing at first: equal weights after one task, others after two."""
    base = [f"engine.stack={stack}", "engine.cohort=4", "stream.schedule.rounds=2"]
    expected = run(tiny(*base), tmp_path / "finetune")["weights_sha256"]
    for name in ALL:
        assert run(tiny(*base, *chosen(name)), tmp_path / name)["weights_sha256"] == expected
    both = [*base[:2], "stream.schedule.rounds=4"]
    found = {name: run(tiny(*both, *chosen(name)), tmp_path / f"{name}-2")["weights_sha256"] for name in ALL}
    found["finetune"] = run(tiny(*both), tmp_path / "finetune-2")["weights_sha256"]
    assert len(set(found.values())) == 6


@pytest.mark.parametrize("name", ALL)
def test_nothing_ends_for_the_joint_oracle(name: str, tmp_path: Path):
    """All data at once is one task: the same weights as finetuning on it."""
    expected = run(tiny("stream.joint=true"), tmp_path / "finetune")["weights_sha256"]
    assert run(tiny("stream.joint=true", *chosen(name)), tmp_path / name)["weights_sha256"] == expected


def federation(name: str) -> Scenario:
    """Return the federation of the conformance tests with a method: 6 clients, 5 a round, three tasks of 4 rounds."""
    return config.load(testing.TINY, chosen(name))


@pytest.mark.parametrize("name", ALL)
def test_eight_stacked_are_eight_one_by_one(name: str, tmp_path: Path):
    """K = 1 against 8 in double precision after 12 rounds: weights within 1e-9 (clients of uneven size)."""
    plain = [*chosen(name), "stream.clients=8", "server.clients_per_round=8", "engine.cohort=8"]
    scenarios = [config.load(testing.TINY, [*plain, f"engine.stack={stack}"]) for stack in (1, 8)]
    for number, scenario in enumerate(scenarios):
        run(scenario, tmp_path / str(number))
    alone, stacked = (weights_of(tmp_path / str(number)) for number in range(2))
    assert max(float((alone[each] - stacked[each]).abs().max()) for each in alone) < 1e-9


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    "name", [name if name in ("ewc", "fedewc") else pytest.param(name, marks=pytest.mark.slow) for name in ALL]
)
def test_workers_make_no_difference(name: str, tmp_path: Path):
    """Inline, one Ray worker and two: the three hashes agree."""
    testing.workers_make_no_difference(federation(name), tmp_path)
    assert hashes(api.load(tmp_path / "inline").results) == hashes(api.load(tmp_path / "ray-2").results)


@pytest.mark.parametrize("name", ALL)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(name: str, tmp_path: Path):
    """SIGKILL after the first checkpoint, then resume: the three hashes of a run left alone."""
    testing.killed_run_resumes(federation(name), tmp_path)
    assert hashes(api.load(tmp_path / "killed").results) == hashes(api.load(tmp_path / "straight").results)


def test_which_terms_are_regularisers():
    """The path integral leaves these out of the gradient, and only these."""
    terms = {name: federation(name).client.method.terms() for name in ALL}
    found = {name: [each for each, term in own.items() if isinstance(term, Regulariser)] for name, own in terms.items()}
    assert found == {"ewc": ["ewc"], "si": ["si"], "lwf": ["lwf"], "fedewc": ["ewc"], "fedlwf": ["lwf"]}
