"""The training loop: stacked clients equal clients one by one; transforms in order; personal parameters stay."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from clients.gradients import Transform
from clients.losses import Term
from clients.losses.cross_entropy import CrossEntropy, Replay
from clients.methods import ClientMethod
from clients.trainer import Trainer
from fedcl.answers import Tensors
from fedcl.config import Scenario
from tests.federations import Clients, tiny

# Twelve clients with 3 to 60 items of each of two tasks (the last has 9): 1 to 12 steps a visit.
SIZES = [3, 60, 5, 44, 7, 31, 11, 23, 14, 4, 19]
UNEVEN = (
    "stream.clients=12",
    "stream.dataset.samples=460",
    f"stream.partition={{kind: 'tests.federations:Uneven', sizes: {SIZES}}}",
    "client.epochs=2",
    "client.batch=10",
    "client.memory.size=7",
    "engine.cohort=12",
)
SGD = "client.optimizer={name: sgd, lr: 0.05, momentum: 0.9, weight_decay: 0.001, keep: true}"
ADAM = "client.optimizer={name: adam, lr: 0.01, weight_decay: 0.001, keep: true}"
METHODS = ["finetune", "er", "der", "derpp", "fedprox"]
everyone = pytest.mark.parametrize("method", METHODS)
optimizers = pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["momentum", "adam"])


def stacked(stack: int, *overrides: str) -> Clients:
    return Clients.of(tiny(*UNEVEN, f"engine.stack={stack}", *overrides))


def same_records(one: Clients, other: Clients, bound: float) -> None:
    """Compare all records: counters and entries exactly, logits and optimiser buffers within the bound."""
    assert one.held.keys() == other.held.keys()
    for client in one.held:
        a, b = one.record(client), other.record(client)
        for name in a.dtype.names:
            if a[name].dtype.kind == "f":
                assert np.abs(a[name] - b[name]).max() < bound, (client, name)
            else:
                assert (a[name] == b[name]).all(), (client, name)


# One by one = stacked


@everyone
@optimizers
def test_three_rounds_in_double_precision_do_not_depend_on_the_stack(method: str, optimizer: str):
    """K = 1 against K = 8 (blocks of 8 and 4 clients), 3 to 60 items, memories that evict: within 1e-9."""
    pair = [stacked(stack, optimizer, f"client.method={method}", "model.dtype=float64") for stack in (1, 8)]
    after = [own.rounds(3) for own in pair]
    assert np.abs(after[0] - after[1]).max() < 1e-9
    assert np.abs(after[0] - pair[0].initial).max() > 0.05
    same_records(*pair, 1e-9)
    if method in ("er", "der", "derpp"):
        assert all(int(own.record(1)["seen"]) == 120 and int(own.record(1)["count"]) == 7 for own in pair)


@everyone
@optimizers
def test_one_round_in_single_precision_does_not_depend_on_the_stack(method: str, optimizer: str):
    """K = 1 against K = 8, 3 to 60 items, two epochs: within 1e-5."""
    pair = [stacked(stack, optimizer, f"client.method={method}", "model.dtype=float32") for stack in (1, 8)]
    after = [own.rounds(1) for own in pair]
    assert after[0].dtype == np.float32
    assert np.abs(after[0] - after[1]).max() < 1e-5
    assert np.abs(after[0] - pair[0].initial).max() > 0.01


@pytest.mark.parametrize(
    "overrides",
    [
        ["stream.kind=task-incremental"],
        ["stream.kind=domain-incremental"],
        ["client.clip=0.05", "client.replay_batch=3", "server.weights=uniform", "server.max_update_norm=0.1"],
        ["client.memory={policy: class-balanced, size: 7, admit: every_pass}"],
        ["model.personal=[head]"],
        ["model={name: cnn, width: 2, dtype: float64}", "stream.dataset=digits", "stream.partition=iid"],
    ],
    ids=["masks", "permutations", "limits", "class-balanced", "personal", "cnn"],
)
def test_every_other_path_does_not_depend_on_the_stack_either(overrides: list[str]):
    pair = [stacked(stack, "client.method=derpp", SGD, "model.dtype=float64", *overrides) for stack in (1, 8)]
    after = [own.rounds(3) for own in pair]
    assert np.abs(after[0] - after[1]).max() < 1e-9
    same_records(*pair, 1e-9)


def test_stacks_of_any_size_agree():
    """Twelve clients in stacks of 5 (5, 5, 2) and 11 (11 and one alone)."""
    reference = stacked(1, ADAM, "client.method=derpp", "model.dtype=float64").rounds(2)
    for stack in (5, 11, 12):
        found = stacked(stack, ADAM, "client.method=derpp", "model.dtype=float64").rounds(2)
        assert np.abs(found - reference).max() < 1e-9


# Clients that have finished


def finals(own: Clients, clients: list[int]) -> dict[int, NDArray[Any]]:
    """Return each client's own parameters after a visit of all of them together (all parameters personal)."""
    own.visit(own.initial, clients)
    return {client: own.record(client)["personal"].copy() for client in clients}


@optimizers
def test_a_finished_client_does_not_move(optimizer: str):
    """Momentum, Adam and weight decay move weights even on zero gradients: client 0 stops after 2 of 12 steps."""
    settings = (optimizer, "model.dtype=float64", "model.personal=['*']")
    alone = finals(stacked(1, *settings), [0])[0]
    long, short = finals(stacked(2, *settings), [1, 0]), finals(stacked(2, *settings), [2, 0])
    assert np.abs(long[0] - alone).max() < 1e-12
    assert (long[0] == short[0]).all()  # to the bit: a neighbour with 12 steps or with 2
    assert np.abs(long[0] - long[1]).max() > 1e-2


def test_clients_must_come_in_descending_order_of_steps():
    """Who lays a stack out otherwise gets its clients one by one, and is told why."""
    own = stacked(2)
    assert "clients must come in descending order of steps" in own.visit(own.initial, [0, 1]).notes[0]


# Transforms


@dataclass(frozen=True, kw_only=True)
class Affine:
    """g -> a g + b: two of them do not commute."""

    a: float = 1.0
    b: float = 0.0
    on: str = "gradient"
    level: str = "client"
    references: Mapping[str, Term] = field(default_factory=dict)

    def __call__(self, gradients: Tensors, references: Mapping[str, Tensors]) -> Tensors:
        return {name: self.a * g + self.b for name, g in gradients.items()}


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """A-GEM (Chaudhry et al., ICLR 2019): g - (g.r / r.r) r where g.r < 0, r the gradient on remembered items."""

    on: str = "gradient"
    level: str = "client"
    references: Mapping[str, Term] = field(default_factory=lambda: {"memory": Replay()})

    def __call__(self, gradients: Tensors, references: Mapping[str, Tensors]) -> Tensors:
        r = references["memory"]
        dot = torch.stack([(g * r[name]).sum() for name, g in gradients.items()]).sum()
        square = torch.stack([each.square().sum() for each in r.values()]).sum()
        factor = dot.clamp(max=0) / square.clamp(min=1e-30)
        return {name: g - factor * r[name] for name, g in gradients.items()}


@dataclass(frozen=True, kw_only=True)
class Bent(ClientMethod):
    """Plain training with the given transforms."""

    bends: tuple[Any, ...] = ()

    def transforms(self) -> tuple[Transform, ...]:
        return self.bends


def bent(scenario: Scenario, *transforms: Any) -> Clients:
    return Clients.of(replace(scenario, client=replace(scenario.client, method=Bent(bends=transforms))))


ONE_STEP = ("client.batch=50", "model.dtype=float64", "model.personal=['*']")


def moved(settings: tuple[str, ...], stack: int, *transforms: Any) -> NDArray[Any]:
    """Return w_k - w of clients 1 and 3 after one step."""
    own = bent(tiny(*settings, f"engine.stack={stack}"), *transforms)
    found = finals(own, [1, 3])
    return np.stack([found[client] - own.initial for client in (1, 3)])


@pytest.mark.parametrize("stack", [1, 2])
def test_transforms_act_in_order(stack: int):
    """Doubling then adding 1 gives 2 g + 1; the other way round 2 (g + 1)."""
    double, add = Affine(a=2.0), Affine(b=1.0)
    plain = moved(ONE_STEP, stack)
    assert np.abs(moved(ONE_STEP, stack, double, add) - (2 * plain - 0.1)).max() < 1e-14
    assert np.abs(moved(ONE_STEP, stack, add, double) - 2 * (plain - 0.1)).max() < 1e-14


@pytest.mark.parametrize("stack", [1, 2])
def test_transforms_act_on_the_gradient_or_on_the_step(stack: int):
    """Adam's first step is lr * sign(g): halving g changes nothing, halving the step halves it.

    Weight decay comes between the two: without gradient it remains, without step nothing does.
    """
    adam = (*ONE_STEP, "client.optimizer={name: adam, lr: 0.1, eps: 1.0e-12}")
    plain = moved(adam, stack)
    assert np.abs(moved(adam, stack, Affine(a=0.5)) - plain).max() < 1e-8
    assert np.abs(moved(adam, stack, Affine(a=0.5, on="step")) - plain / 2).max() < 1e-15
    decay = (*ONE_STEP, "client.optimizer.weight_decay=0.5")
    initial = bent(tiny(*decay)).initial
    assert np.abs(moved(decay, stack, Affine(a=0.0)) + 0.1 * 0.5 * initial).max() < 1e-15
    assert (moved(decay, stack, Affine(a=0.0, on="step")) == 0).all()


@pytest.mark.parametrize("stack", [1, 2])
def test_the_limit_of_the_gradient_comes_after_the_methods_transforms(stack: int):
    """A gradient made a thousand times larger is still cut down to client.clip: |step| = lr * clip."""
    found = moved((*ONE_STEP, "client.clip=0.2"), stack, Affine(a=1000.0))
    assert np.linalg.norm(found, axis=1) == pytest.approx([0.02, 0.02], abs=1e-14)


@dataclass(frozen=True, kw_only=True)
class Loudest:
    """Scales by the number of clients that are given together, which only a whole stack can say."""

    on: str = "gradient"
    level: str = "stack"
    references: Mapping[str, Term] = field(default_factory=dict)

    def __call__(self, gradients: Tensors, references: Mapping[str, Tensors]) -> Tensors:
        return {name: len(g) * g for name, g in gradients.items()}


@pytest.mark.parametrize("stack", [1, 2])
def test_a_transform_of_the_stack_is_given_all_its_clients(stack: int):
    """Each gradient is multiplied by the clients in its stack: by 1 one by one, by 2 in pairs."""
    plain = moved(ONE_STEP, stack)
    assert np.abs(moved(ONE_STEP, stack, Loudest()) - stack * plain).max() < 1e-14


@pytest.mark.parametrize("stack", [1, 2])
def test_fedprox_leaves_personal_parameters_alone(stack: int):
    """With everything personal, the pull to the global model pulls nothing: the same bits as plain training."""
    settings = ("model.personal=['*']", "model.dtype=float64", "client.epochs=3", f"engine.stack={stack}")
    plain, pulled = (Clients.of(tiny(*settings, f"client.method={m}")) for m in ("finetune", "{name: fedprox, mu: 5}"))
    found, expected = finals(pulled, [1, 3]), finals(plain, [1, 3])
    assert all((found[client] == expected[client]).all() for client in (1, 3))
    assert np.abs(expected[1] - plain.initial).max() > 1e-3


@dataclass(frozen=True, kw_only=True)
class Instead:
    """Replaces the gradient by `factor` times that of a reference loss."""

    references: Mapping[str, Term]
    factor: float = 1.0
    on: str = "gradient"
    level: str = "client"

    def __call__(self, gradients: Tensors, references: Mapping[str, Tensors]) -> Tensors:
        return {name: self.factor * r for name, r in references["loss"].items()}


@pytest.mark.parametrize("stack", [1, 2])
def test_each_transform_gets_the_gradients_of_its_own_references(stack: int):
    """The reference CE gives plain training; two transforms may call different references by one name."""
    ce, nothing = Instead(references={"loss": CrossEntropy()}), Instead(references={"loss": Replay()})
    plain = moved(ONE_STEP, stack)
    assert np.abs(moved(ONE_STEP, stack, ce) - plain).max() < 1e-15
    assert (moved(ONE_STEP, stack, nothing) == 0).all()  # the memory is empty
    assert np.abs(moved(ONE_STEP, stack, nothing, ce) - plain).max() < 1e-15
    assert (moved(ONE_STEP, stack, ce, nothing) == 0).all()


def test_a_transform_with_references_is_the_same_stacked_as_alone():
    """Conflicts of the gradient with that on remembered items are removed, three rounds over two tasks: within 1e-9."""
    settings = (*UNEVEN, SGD, "model.dtype=float64", "client.memory.size=7")
    pair = [bent(tiny(*settings, f"engine.stack={stack}"), Conflict()) for stack in (1, 8)]
    after = [own.rounds(3) for own in pair]
    assert np.abs(after[0] - after[1]).max() < 1e-9
    same_records(*pair, 1e-9)
    plain = bent(tiny(*settings)).rounds(3)
    assert np.abs(after[0] - plain).max() > 1e-3
    assert pair[0].record(1)["seen"] == 120


def test_without_conflict_the_formula_of_the_transform_is_plain_training():
    """In the first visit the memory is empty, its gradient 0, and nothing is bent."""
    own, plain = bent(tiny("model.dtype=float64"), Conflict()), bent(tiny("model.dtype=float64"))
    assert (own.visit(own.initial, [0, 1, 2, 3]).total == plain.visit(plain.initial, [0, 1, 2, 3]).total).all()


# Personal parameters


@pytest.mark.parametrize("stack", [1, 2])
def test_personal_parameters_stay_on_the_client_and_never_enter_an_answer(stack: int):
    settings = ("model.personal=[head]", "model.dtype=float64", f"engine.stack={stack}", "client.method=er")
    own = Clients.of(tiny(*settings))
    head = np.concatenate(
        [np.full(s.stop - s.start, n.startswith("head")) for n, (s, _) in own.site.parameters.slices.items()]
    )
    first = own.visit(own.initial, [1, 3])
    heads = {client: own.record(client)["personal"].copy() for client in (1, 3)}
    assert (first.total[:-1][head] == 0).all()
    assert (first.total[:-1][~head] != 0).any()
    assert all(np.abs(each - own.initial[head]).max() > 1e-2 for each in heads.values())
    assert np.abs(heads[1] - heads[3]).max() > 1e-2

    # The second visit starts from the client's own head, whatever the server's weights say there.
    other = own.initial + np.where(head, 7.0, 0.0)
    before = {client: record.copy() for client, record in own.held.items()}
    second = own.visit(other, [1, 3], round=2)
    own.held = before
    assert (own.visit(own.initial, [1, 3], round=2).total == second.total).all()
    assert np.abs(own.record(1)["personal"] - heads[1]).max() < 0.5


def test_with_all_parameters_personal_a_client_trains_as_if_alone():
    """Three visits without a federation equal one client's federation of its own."""
    personal = Clients.of(tiny("model.personal=['*']", "model.dtype=float64"))
    single, weights = Clients.of(tiny("model.dtype=float64")), personal.initial
    for round in (1, 2, 3):
        reply = personal.visit(personal.initial, [0, 1, 2, 3], round=round)
        assert (reply.total[:-1] == 0).all()
        assert (reply.table["norm"] == 0).all()
        weights = weights + single.update(single.visit(weights, [2], round=round))
    assert np.abs(personal.record(2)["personal"] - weights).max() < 1e-12


def test_the_loop_needs_neither_flower_nor_ray():
    import subprocess
    import sys

    code = "import sys, clients.trainer; print(sorted({'flwr', 'ray'} & {m.split('.')[0] for m in sys.modules}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert Trainer.__module__ == "clients.trainer"
