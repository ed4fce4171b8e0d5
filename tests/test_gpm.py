"""Gradient projection memory: the maths, what a client keeps, its guarantee, its limits (FedAvg, FOT), whole runs."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clients import anchors, methods, programs
from clients.answers.case import layer_inputs, load_weights
from clients.gradients import Transform
from clients.gradients.gpm import BASES, GPM, TASKS, padded, trimmed
from clients.site import Site
from fedcl import config, testing
from fedcl.answers import Layout, Tensors
from fedcl.config import Scenario
from fedcl.errors import ConfigError
from fedcl.models import Classifier, ModelSettings
from fedcl.settings import OutOfRange
from fedcl.subspace import Protection, in_use
from server.methods.fot import FOT
from tests.federations import Clients, run, tiny
from tests.frozen import weights_of

METHOD = "client.method={name: gpm, epsilon: 0.9}"
SYNTHETIC = "stream.dataset={name: synthetic, classes: 6, features: 12, samples: 144, test_samples: 24}"
# Tasks of two classes: vectors of 12 numbers, 12 of them for each of four clients; images of 8 x 8.
DATA = {
    "mlp": (SYNTHETIC, "stream.tasks=3"),
    "cnn": ("stream.dataset=digits", "stream.tasks=5", "model={name: cnn, width: 3}", "client.batch=120"),
}  # fmt: skip
ADAM = "client.optimizer={name: adam, lr: 0.01, weight_decay: 0.01, keep: true}"
models = pytest.mark.parametrize("model", DATA)


def bases_of(own: Clients, client: int) -> Tensors:
    """Return the bases (d, k) in a client's newest record, by layer."""
    kept = torch.from_numpy(own.record(client)[BASES].copy())
    return {name: trimmed(matrix) for name, matrix in own.site.kept[BASES].views(kept).items()}


def inputs_of(site: Site, weights: NDArray[Any], client: int, task: int) -> Tensors:
    """Return the inputs (d, n) of every layer for a client's data of a task, under a model (P,)."""
    load_weights(site.trainer.module, site.parameters, torch.from_numpy(weights.copy()))
    cell = torch.from_numpy(site.stream.train.cell(client, task).copy())
    x = site.trainer.data.inputs(cell, torch.full_like(cell, task))
    return layer_inputs(site.trainer.module, tuple(Protection().protected(site.parameters)), x)


# The transform


def test_by_hand() -> None:
    """U = the first of two inputs: the weights of the first do not move, whatever else is in the step."""
    step = {"a.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "a.bias": torch.ones(2), "b.weight": torch.ones(2, 2)}
    found = GPM()(step, {BASES: {"a.weight": torch.tensor([[1.0, 0.0], [0.0, 0.0]])}})
    assert found["a.weight"].tolist() == [[0.0, 2.0], [0.0, 4.0]]
    assert found["a.bias"] is step["a.bias"]
    assert found["b.weight"] is step["b.weight"]


def test_nothing_is_kept_of_the_first_task_and_nothing_is_bent() -> None:
    step = {"w.weight": torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))}
    assert torch.equal(GPM()(step, {BASES: {"w.weight": torch.zeros(16, 16)}})["w.weight"], step["w.weight"])


def test_zeros_behind_a_basis_change_nothing() -> None:
    """(d, k) -> (d, d) -> (d, k), for k = 0 and k = d too; and they project alike."""
    generator = torch.Generator().manual_seed(0)
    step = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    for k in (0, 3, 7):
        basis = torch.linalg.qr(torch.randn(7, 7, generator=generator, dtype=torch.float64))[0][:, :k]
        assert torch.equal(trimmed(padded(basis)), basis)
        found = GPM()({"w": step}, {BASES: {"w": padded(basis)}})["w"]
        assert (found - (step - step @ basis @ basis.T)).abs().max() < 1e-14


# What is kept


def published(tasks: list[Tensor], shares: list[float]) -> NDArray[Any]:
    """GPM (arXiv:2103.09762, eqs. 5, 8, 9) for the inputs of one layer, task after task, with NumPy's SVD.

    Smallest k with ||U U^T A||^2 + ||(R)_k||^2 >= epsilon ||A||^2, R = A - U U^T A.
    """
    basis = np.zeros((len(tasks[0]), 0))
    for a, share in zip((each.numpy() for each in tasks), shares, strict=True):
        rest = a - basis @ (basis.T @ a)
        vectors, singular, _ = np.linalg.svd(rest, full_matrices=False)
        whole, k = (a**2).sum(), 0
        held = whole - (rest**2).sum()
        while held < share * whole:
            held, k = held + singular[k] ** 2, k + 1
        basis = np.linalg.qr(np.concatenate([basis, vectors[:, :k]], axis=1))[0]
    return basis


@models
def test_bases_are_those_of_the_paper(model: str) -> None:
    """Two tasks left, of two visits each, all layers: projectors within 1e-6 of GPM on the client's own inputs.

    The model is that of the client's last visit to each task; the shares are .8 and .85.
    """
    method = "client.method={name: gpm, epsilon: 0.8, epsilon_step: 0.05}"
    own, client = Clients.of(tiny(*DATA[model], "model.dtype=float64", method)), 2
    weights, left = own.initial, []
    for clock, task in enumerate((0, 0, 1, 1, 2)):
        weights = weights + own.update(own.visit(weights, [client], round=clock + 1, task=task, clock=clock))
        if clock in (1, 3):
            left.append(inputs_of(own.site, own.record(client)["local"], client, task))
    assert own.record(client)[TASKS] == [2]
    found = bases_of(own, client)
    assert len(found) == {"mlp": 2, "cnn": 4}[model]
    for name, basis in found.items():
        expected = published([each[name] for each in left], [0.8, 0.85])
        assert basis.shape == expected.shape
        assert basis.shape[1] > 0
        assert np.abs(basis.numpy() @ basis.numpy().T - expected @ expected.T).max() < 1e-6
    assert max(1 - basis.shape[1] / basis.shape[0] for basis in found.values()) > 0.2  # projectors that say something


def test_a_record_holds_the_bases_and_the_number_of_tasks_left() -> None:
    """The sum of d^2 over the layers, 5 and 6 inputs, whatever the rank: 25 + 36 numbers, and one."""
    own = Clients.of(tiny(METHOD))
    assert own.site.record.names == ("visits", "cursor", "local", "position", BASES, TASKS)
    own.visit(own.initial, [0])
    assert own.record(0)[BASES].shape == (61,)
    assert not own.record(0)[BASES].any()
    assert own.record(0)[TASKS].tolist() == [0]
    per_task = Clients.of(tiny(METHOD, "client.method.heads=per-task"))
    assert per_task.site.kept[BASES] == Layout((("body.1.weight", (5, 5)),))


# Settings


def test_settings_are_those_of_fot_and_mean_the_same() -> None:
    """Names, defaults and ranges of the four; a share too large and a prefix without a layer are errors."""
    method, server = methods.GPM(), FOT()
    for name in ("epsilon", "epsilons", "epsilon_step", "heads"):
        assert getattr(method, name) == getattr(server, name)
    site = Clients.of(tiny("client.method={name: gpm, epsilon: 0.97, epsilon_step: 0.003, epsilons: {head: 0.5}}")).site
    (transform,) = site.scenario.client.method.transforms()
    assert [transform.protection.share(name, 2) for name in ("body.1.weight", "head.weight")] == [0.976, 0.506]
    with pytest.raises(OutOfRange, match="epsilons"):
        methods.GPM(epsilons={"body": 1.5})
    with pytest.raises(
        ConfigError, match=r"client\.method\.epsilons: no protected weight begins with 'boddy'; known: body"
    ):
        GPM(protection=Protection(epsilons={"boddy": 0.5})).bases(site.parameters)


def test_records_that_would_be_too_large_are_refused() -> None:
    """11,585^2 numbers are just below 2^27, 11,586^2 above: the error names the layer and what to do."""
    assert GPM().bases(Layout((("a.weight", (3, 11585)),))).size == 11585**2
    with pytest.raises(ConfigError, match=r"client\.method = 'gpm': .* 134,235,396 .* a\.weight .* 11,586 .* narrower"):
        GPM().bases(Layout((("a.weight", (3, 11586)), ("a.bias", (3,)))))


# The guarantee


@dataclass(frozen=True, kw_only=True)
class Spy:
    """Writes down the steps of a stack; changes nothing."""

    seen: list[Tensors] = field(repr=False)  # vmap asks for the repr at every step
    on: str = "step"
    level: str = "stack"
    references: dict[str, Any] = field(default_factory=dict)

    def __call__(self, gradients: Tensors, references: Any) -> Tensors:
        self.seen.append({name: each.clone() for name, each in gradients.items()})
        return gradients


@dataclass(frozen=True, kw_only=True)
class Watched(methods.GPM):
    """GPM with a spy before it and one behind it."""

    before: Spy = field(default_factory=lambda: Spy(seen=[]))
    after: Spy = field(default_factory=lambda: Spy(seen=[]))

    def transforms(self) -> tuple[Transform, ...]:
        return (self.before, *super().transforms(), self.after)


@pytest.mark.parametrize("clients", [[3], [0, 3]], ids=["alone", "stacked"])
@models
def test_no_step_touches_the_protected_inputs(model: str, clients: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam with weight decay in float32, third task: ||step U|| <= 1e-5 ||G|| for each step, client and layer.

    G is the step before the projection, of which a large part touched them. What is not protected is not changed.
    """
    monkeypatch.setattr(programs, "PLAYED_AFTER", sys.maxsize)  # what is played calls no spy
    watched, scenario = Watched(epsilon=0.8), tiny(*DATA[model], ADAM, "client.epochs=3", "engine.stack=2")
    own = Clients.of(replace(scenario, client=replace(scenario.client, method=watched)))
    weights = own.initial
    for clock, task in ((0, 0), (2, 1), (4, 2)):
        begin = len(watched.before.seen)
        weights = weights + own.update(own.visit(weights, clients, round=clock + 1, task=task, clock=clock))
    bases, touched = [bases_of(own, client) for client in clients], []
    for before, after in zip(watched.before.seen[begin:], watched.after.seen[begin:], strict=True):
        for name, step in before.items():
            assert name in bases[0] or torch.equal(step, after[name])
            for g, bent, basis in zip(step, after[name], [each.get(name) for each in bases], strict=True):
                if basis is not None:
                    assert (bent.flatten(1) @ basis).norm() <= 1e-5 * g.norm()
                    touched.append(float((g.flatten(1) @ basis).norm() / g.norm()))
    assert len(touched) >= 3 * len(clients) * len(bases[0])
    assert np.median(touched) > 0.3


@dataclass(frozen=True, kw_only=True)
class Unbiased(ModelSettings):
    """An MLP without biases, 40 units wide."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        body = nn.Sequential(nn.Flatten(), nn.Linear(shape[0], 40, bias=False), nn.ReLU())
        module = Classifier(body, 40, classes)
        module.head = nn.Linear(40, classes, bias=False)
        return module


def test_with_all_energy_and_no_biases_old_outputs_do_not_change() -> None:
    """Twelve items of 30 numbers in each of three tasks, energy 1, Adam with weight decay: old logits within 1e-9.

    The client goes on from its own model: all parameters are personal. Its logits on new items do change.
    """
    own = Clients.of(
        tiny(
            SYNTHETIC, "stream.dataset.features=30", "stream.tasks=3",
            "model={name: 'tests.test_gpm:Unbiased', dtype: float64, personal: ['*']}", ADAM,
            "client.epochs=5", "client.method={name: gpm, epsilon: 1.0}",
        )
    )  # fmt: skip
    client, logits = 1, []
    cells = [own.shown(own.site.stream.train.cell(client, task))[0] for task in range(3)]
    for clock, task in ((0, 0), (2, 1), (4, 2)):
        own.visit(own.initial, [client], round=clock + 1, task=task, clock=clock)
        module = own.site.trainer.module
        load_weights(module, own.site.parameters, torch.from_numpy(own.record(client)["personal"].copy()))
        logits.append([module(x).detach() for x in cells])
    assert [basis.shape[1] for basis in bases_of(own, client).values()] == [24, 24]
    for left, before in enumerate(logits[:2]):
        for later in logits[left + 1 :]:
            assert (later[left] - before[left]).abs().max() < 1e-9
            assert (later[left + 1] - before[left + 1]).norm() > 0.1 * before[left + 1].norm()


# Limits


@pytest.mark.parametrize("stack", [1, 4])
def test_the_first_task_is_finetuning_to_the_bit(stack: int, tmp_path: Path) -> None:
    """Empty bases bend nothing: equal weights after one task, other weights after two."""
    for rounds, same in ((2, True), (4, False)):
        base = (f"engine.stack={stack}", "engine.cohort=4", f"stream.schedule.rounds={rounds}")
        found = [
            run(tiny(*base, *more), tmp_path / f"{rounds}-{len(more)}")["weights_sha256"] for more in ((), (METHOD,))
        ]
        assert (found[0] == found[1]) is same


def test_nothing_ends_for_the_joint_oracle(tmp_path: Path) -> None:
    """All data at once is one task: the same weights as finetuning on it."""
    found = [
        run(tiny("stream.joint=true", *more), tmp_path / str(len(more)))["weights_sha256"] for more in ((), (METHOD,))
    ]
    assert found[0] == found[1]


@models
def test_one_client_and_one_step_a_visit_make_it_fot_on_the_server(model: str, tmp_path: Path) -> None:
    """FOT with exact statistics and pooled energies, to the end of the second task: weights within 1e-9.

    Plain averaging's are others. From the third task on the two are not the same: FOT measures the client's model
    after a last step that only the server projects, GPM after a projected one.
    """
    one = (
        *DATA[model], "model.dtype=float64", "stream.clients=1", "client.batch=500", "stream.schedule.rounds=6",
        "stream.schedule.rounds_per_task=3", "client.optimizer={name: sgd, lr: 0.3, weight_decay: 0.01}",
    )  # fmt: skip
    fot = "server.method={name: fot, statistic: gram, energy: squared, epsilon: 0.9}"
    for name, more in (("gpm", METHOD), ("fot", fot), ("plain", "seed=0")):
        run(tiny(*one, more), tmp_path / name)
    found, expected, plain = (weights_of(tmp_path / name) for name in ("gpm", "fot", "plain"))
    assert max(float((found[name] - expected[name]).abs().max()) for name in found) < 1e-9
    assert max(float((found[name] - plain[name]).abs().max()) for name in found) > 1e-3


# Whole runs


def federation() -> Scenario:
    """Return the federation of the conformance tests: 6 clients, 5 a round, three tasks of 4 rounds."""
    return config.load(testing.TINY, ["client.method={name: gpm, epsilon: 0.8, epsilon_step: 0.05}"])


def test_stacked_clients_are_clients_one_by_one(tmp_path: Path) -> None:
    """Eight stacked against eight alone, of uneven size, in double precision after 12 rounds: within 1e-9."""
    eight = ["stream.clients=8", "server.clients_per_round=8", "engine.cohort=8"]
    for stack in (1, 8):
        run(config.load(config.as_dict(federation()), [*eight, f"engine.stack={stack}"]), tmp_path / str(stack))
    alone, stacked = (weights_of(tmp_path / str(stack)) for stack in (1, 8))
    assert max(float((alone[each] - stacked[each]).abs().max()) for each in alone) < 1e-9


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """SIGKILL after the first checkpoint, then resume: the three hashes of a run left alone."""
    testing.killed_run_resumes(federation(), tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_workers_make_no_difference(tmp_path: Path) -> None:
    """Inline, one Ray worker and two: the three hashes agree."""
    testing.workers_make_no_difference(federation(), tmp_path)


# As many columns as are in use


@pytest.mark.parametrize(("ranks", "columns"), [((0, 0), 0), ((1, 0), 8), ((8, 3), 8), ((9, 2), 16), ((17, 20), 20)])
def test_a_step_is_given_the_columns_in_use(ranks: tuple[int, ...], columns: int) -> None:
    """Of two clients those of the larger basis, up to a power of two, and no more than there are: (2, 20, r)."""
    bases = [torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(r)))[0][:, :r] for r in ranks]
    found = in_use(torch.stack([padded(each) for each in bases]).numpy())
    assert found.shape == (2, 20, columns)
    for basis, matrix in zip(bases, found, strict=True):
        assert torch.equal(matrix[:, : basis.shape[1]], basis)
        assert not matrix[:, basis.shape[1] :].any()


def test_training_multiplies_with_the_rank_that_there_is() -> None:
    """784 inputs, of which three tasks' few items use some: bases of 784 x 16 and 784 x 32, of no layer at first."""
    wide = "stream.dataset={name: synthetic, classes: 6, features: 784, samples: 144, test_samples: 24}"
    own = Clients.of(tiny(wide, "stream.tasks=3", METHOD, "engine.stack=2"))
    seen = []
    for clock, task in ((0, 0), (2, 1), (4, 2)):
        own.visit(own.initial, [0, 3], round=clock + 1, task=task, clock=clock)
        records = np.concatenate([own.held[0], own.held[3]])
        seen.append({name: each.shape for name, each in anchors.own(own.site, records)[BASES].items()})
    rank = max(each["body.1.weight"].shape[1] for each in (bases_of(own, 0), bases_of(own, 3)))
    assert seen[0] == {}
    assert 16 < rank <= 24
    assert seen[2] == {"body.1.weight": (2, 784, 32), "head.weight": (2, 6, 6)}
