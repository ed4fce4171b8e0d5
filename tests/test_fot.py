"""Federated orthogonal training: its guarantee, its limits (FedAvg, centralised GPM), its cost, and whole runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from clients.answers.case import Case, columns, layer_inputs, load_weights
from clients.answers.subspace import gram, sketch
from fedcl import api, subspace
from fedcl.answers import LAYOUTS, Answer, Layout, Tensors
from fedcl.config import Plain, Scenario, load
from fedcl.errors import ConfigError
from fedcl.models import make
from fedcl.models.conv import CNN
from fedcl.models.dense import MLP
from fedcl.settings import OutOfRange
from fedcl.source import Source
from fedcl.subspace import grow, leading, project_out
from fedcl.testing import killed_run_resumes, stacked_equals_one_by_one, workers_make_no_difference
from server import checkpoint
from server.methods.fot import FOT
from server.optimizers import SGD, FedAdam, FedAvgM
from tests.federations import Clients, journal, run, tiny

FOTS = "server.method={name: fot, epsilon: 0.9}"
OPTIMIZERS = [SGD(lr=0.5), FedAvgM(momentum=0.8), FedAdam(lr=0.1)]
MODELS = {"mlp": (MLP(width=12, depth=2), (4, 4)), "cnn": (CNN(width=3), (8, 8))}


# The algebra


def orthonormal(d: int, k: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.linalg.qr(torch.randn(d, k, generator=torch.Generator().manual_seed(seed), dtype=dtype))[0]


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_the_fewest_leading_directions_are_taken() -> None:
    """Energies 8, 4, 2, 1, 1: shares held .5, .75, .875, .9375, 1; more than the wanted share, not as much."""
    values, vectors = torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0]), torch.eye(5)
    found = [leading(values, vectors, wanted, at_least=0).shape[1] for wanted in (0, -1, 0.1, 0.5, 0.6, 0.9, 1.0)]
    assert found == [0, 0, 1, 2, 2, 4, 5]
    assert leading(values, vectors, -1, at_least=1).shape[1] == 1
    assert leading(torch.tensor([3.0, 0.0, 0.0]), torch.eye(3), 1.0, at_least=2).shape[1] == 1
    assert leading(torch.zeros(3), torch.eye(3), 0.5, at_least=1).shape[1] == 0


@given(st.integers(1, 9), st.integers(0, 9), st.integers(1, 12), st.integers(0, 999))
@hypothesis_settings(max_examples=60)
def test_a_basis_stays_orthonormal_however_it_grows(d: int, k: int, n: int, seed: int) -> None:
    """Within 1e-12; the old basis stays as it is; never more than d columns; its span has the new directions."""
    k = min(k, d)
    basis, new = orthonormal(d, k, seed), orthonormal(d, min(n, d), seed + 1)
    grown = grow(basis, new)
    assert grown.shape[1] == min(d, k + new.shape[1])
    assert torch.equal(grown[:, :k], basis)
    assert (grown.T @ grown - torch.eye(grown.shape[1])).abs().max() < 1e-12
    if k + new.shape[1] <= d:
        assert (new - grown @ (grown.T @ new)).abs().max() < 1e-9


def test_directions_that_are_there_already_do_not_spoil_a_basis() -> None:
    """Unit vectors inside the span, of which QR would make anything: nothing grows."""
    basis = torch.eye(5)[:, :2].double()
    assert torch.equal(grow(basis, basis), basis)
    assert grow(basis, torch.eye(5).double()).shape == (5, 5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("name", MODELS)
def test_no_step_touches_the_protected_inputs(name: str, optimizer: Any) -> None:
    """Three rounds in float32, projected after the optimiser: ||step U|| <= 1e-5 ||G|| for every protected layer.

    G is the step before it is projected. What is not protected (biases, norms) is not touched.
    """
    model, shape = MODELS[name]
    weights = dict(make(model, shape, 4, 0).named_parameters())
    method, layout = FOT(), Layout.of(weights)
    state = method.begin({name: each.detach() for name, each in weights.items()})
    names = method.protected(layout)
    assert len(names) == 3 + (name == "cnn")
    for number, weight in enumerate(names):
        d = state[f"basis/{weight}"].shape[0]
        state[f"basis/{weight}"] = orthonormal(d, d // 2, number, torch.float64).float()
    moments = optimizer.begin(weights)
    for round in range(3):
        mean = {each: normal(*shape, seed=round, dtype=torch.float32) for each, shape in layout.shapes}
        moments, before = optimizer.apply(moments, mean)
        step = method.project(state, before)
        for weight in names:
            inside = step[weight].flatten(1) @ state[f"basis/{weight}"]
            assert inside.norm() <= 1e-5 * before[weight].norm()
            assert (before[weight].flatten(1) @ state[f"basis/{weight}"]).norm() > 0.1 * before[weight].norm()
        assert all(torch.equal(step[each], before[each]) for each in step if each not in names)


def test_the_projection_is_the_nearest_step_that_leaves_old_inputs_alone() -> None:
    """Idempotent, and what is removed is orthogonal to what stays; a convolution's kernel is (out, in * kh * kw)."""
    delta, basis = normal(4, 3, 2, 2), orthonormal(12, 5)
    kept = project_out(delta, basis)
    assert kept.shape == delta.shape
    assert torch.allclose(project_out(kept, basis), kept, atol=1e-14)
    assert abs(float((kept * (delta - kept)).sum())) < 1e-12
    assert (kept.flatten(1) @ basis).abs().max() < 1e-14


# Layer inputs


def test_inputs_of_a_convolution_are_its_patches() -> None:
    """Kernel (2, 3), stride (2, 1), padding (1, 2), dilation (1, 2): patch by patch, sample, row, column by hand."""
    layer = nn.Conv2d(2, 5, (2, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2), bias=False).double()
    x = normal(3, 2, 5, 6)
    padded = nn.functional.pad(x, (2, 2, 1, 1))
    expected = [
        padded[sample, :, row : row + 2, column : column + 5 : 2].flatten()
        for sample in range(3)
        for row in range(0, 6, 2)
        for column in range(6)
    ]
    found = columns(layer, x)
    assert torch.equal(found, torch.stack(expected, dim=1))
    outputs = (layer.weight.flatten(1) @ found).unflatten(1, (3, 3, 6)).transpose(0, 1)
    assert torch.allclose(outputs, layer(x), atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_inputs_of_every_protected_layer_give_its_outputs(name: str) -> None:
    """W A + b is what the layer says, for each sample (and position): within 1e-12."""
    model, shape = MODELS[name]
    module = make(model, shape, 4, 0).double()
    names = tuple(FOT().protected(Layout.of(dict(module.named_parameters()))))
    x, outputs = normal(7, *shape), {}
    for weight in names:
        layer = module.get_submodule(weight.removesuffix(".weight"))
        layer.register_forward_hook(lambda _, __, out, weight=weight: outputs.update({weight: out}))
    found = layer_inputs(module, names, x)
    for weight in names:
        layer = module.get_submodule(weight.removesuffix(".weight"))
        said = outputs[weight].transpose(0, 1).flatten(1) if outputs[weight].dim() == 4 else outputs[weight].T
        bias = 0 if layer.bias is None else layer.bias[:, None]
        assert (layer.weight.flatten(1) @ found[weight] + bias - said).abs().max() < 1e-12


def test_layers_whose_inputs_are_not_known_are_refused() -> None:
    for layer in (nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(1, 1, 3, padding_mode="circular"), nn.Embedding(4, 3)):
        with pytest.raises(TypeError, match="layer statistics"):
            columns(layer, torch.zeros(1, 4, 8, 8))


# Statistics of clients against centralised GPM


def data_of(x: Tensor) -> Source:
    return Source(
        x=x.flatten(1), y=torch.zeros(len(x), dtype=torch.int64), shape=tuple(x.shape[1:]), scale=1.0, shift=0.0,
        permutations=None, masks=None, dtype=x.dtype,
    )  # fmt: skip


def case_of(model: str, method: FOT, state: Tensors, x: Tensor, client: int, round: int = 1) -> Case:
    """A client with these inputs, under the initial weights of the model."""
    module = make(MODELS[model][0], tuple(x.shape[1:]), 4, 0).to(x.dtype)
    return Case(
        module=module, parameters=Layout.of(dict(module.named_parameters())), method=method,
        shared=method.task_shared(state), data=data_of(x), items=torch.arange(len(x)),
        tasks=torch.zeros(len(x), dtype=torch.int64), client=client, round=round, secret=b"",
    )  # fmt: skip


def summed(model: str, method: FOT, state: Tensors, parts: Sequence[Tensor], round: int = 1) -> Answer:
    """The sum of the statistics of clients with these inputs."""
    measure = {"gram": gram, "sketch": sketch}[method.statistic]
    cases = [case_of(model, method, state, x, client, round) for client, x in enumerate(parts)]
    flat = torch.stack([measure(case) for case in cases]).sum(0)
    return Answer(LAYOUTS[method.statistic](cases[0].parameters, method), flat)


def learnt(model: str, method: FOT, tasks: Sequence[Sequence[Tensor]]) -> Tensors:
    """The bases after tasks whose clients have these inputs."""
    shape = MODELS[model][1]
    module = make(MODELS[model][0], shape, 4, 0).to(tasks[0][0].dtype)
    state, weights = method.begin({name: each.detach() for name, each in module.named_parameters()}), {}
    for number, parts in enumerate(tasks):
        total = summed(model, method, state, parts, number)
        state, weights = method.end_task(state, weights, total, [number])
    return {name.removeprefix("basis/"): each for name, each in state.items() if name.startswith("basis/")}


def gpm(a: Sequence[NDArray[Any]], epsilon: float) -> NDArray[Any]:
    """GPM (Saha et al., arXiv:2103.09762, eqs. 4, 8, 9) on pooled inputs of one layer, task after task, in float64.

    Smallest k with ||U U^T A||^2 + ||(R)_k||^2 >= epsilon ||A||^2, R = A - U U^T A.
    """
    basis = np.zeros((len(a[0]), 0))
    for inputs in a:
        rest = inputs - basis @ (basis.T @ inputs)
        vectors, singular, _ = np.linalg.svd(rest, full_matrices=False)
        whole, k = (inputs**2).sum(), 0
        held = whole - (rest**2).sum()
        while held < epsilon * whole:
            held, k = held + singular[k] ** 2, k + 1
        basis = np.linalg.qr(np.concatenate([basis, vectors[:, :k]], axis=1))[0]
    return basis


def projector(basis: Tensor) -> NDArray[Any]:
    matrix = basis.double().numpy()
    return matrix @ matrix.T


def tasks_of(model: str, n: int = 42, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Three tasks' pooled inputs: each in a few directions of its own, with noise."""
    shape = MODELS[model][1]
    d = shape[0] * shape[1]
    tasks = []
    for task in range(3):
        low = normal(n, 3, seed=10 + task) @ normal(3, d, seed=20 + task) + 0.3 * normal(n, d, seed=30 + task)
        tasks.append(low.view(n, *shape).to(dtype))
    return tasks


def cut(x: Tensor, clients: int) -> list[Tensor]:
    """Uneven shares: 1, 2, 3, ... parts of the items."""
    ends = np.cumsum(np.arange(1, clients + 1)) * len(x) // (clients * (clients + 1) // 2)
    return list(torch.tensor_split(x, ends[:-1].tolist()))


@pytest.mark.parametrize("clients", [1, 3, 7])
@pytest.mark.parametrize("model", MODELS)
def test_exact_statistics_give_centralised_gpm(model: str, clients: int) -> None:
    """`squared` + `gram` over three tasks: the projector of GPM on the pooled inputs within 1e-6, the same rank."""
    method, tasks = FOT(energy="squared", statistic="gram", epsilon=0.9), tasks_of(model)
    found = learnt(model, method, [cut(x, clients) for x in tasks])
    module = make(MODELS[model][0], MODELS[model][1], 4, 0).double()
    for name, basis in found.items():
        inputs = [layer_inputs(module, (name,), x)[name].numpy() for x in tasks]
        expected = gpm(inputs, 0.9)
        assert basis.shape == expected.shape
        assert basis.shape[1] > 0
        assert np.abs(projector(basis) - expected @ expected.T).max() < 1e-6
    assert max(1 - basis.shape[1] / basis.shape[0] for basis in found.values()) > 0.2  # projectors that say something


def test_a_task_that_brings_nothing_new_needs_nothing_when_squared_and_one_direction_as_released() -> None:
    """The same inputs again: `squared` adds no direction, `reference` at least one."""
    x = tasks_of("mlp")[0]
    methods = FOT(energy="squared", statistic="gram", epsilon=0.9), FOT(statistic="gram", epsilon=0.5)
    for method, more in zip(methods, (0, 1), strict=True):
        once, twice = learnt("mlp", method, [[x]]), learnt("mlp", method, [[x], [x]])
        assert [twice[name].shape[1] - once[name].shape[1] for name in once] == [more] * 3


def test_the_reference_energy_is_the_weighted_mean_of_unsquared_ratios() -> None:
    """Two clients of 6 and 36 items under a basis: eps' = (r - (1 - eps)) / r by hand, then the fewest directions."""
    method, (first, second, _) = FOT(statistic="gram", epsilon=0.8), tasks_of("mlp")
    bases = learnt("mlp", method, [[first]])
    state = {**{f"basis/{name}": each for name, each in bases.items()}, "tasks": torch.tensor(1)}
    parts = [second[:6], second[6:]]
    total = summed("mlp", method, state, parts)
    grown, _ = method.end_task(state, {}, total, [1])
    module = make(MODELS["mlp"][0], (4, 4), 4, 0).double()
    for name, basis in bases.items():
        inputs = [layer_inputs(module, (name,), x)[name] for x in parts]
        rests = [a - basis @ (basis.T @ a) for a in inputs]
        r = sum(len(x) * float(rest.norm() / a.norm()) for x, rest, a in zip(parts, rests, inputs, strict=True)) / 42
        wanted = (r - 0.2) / r
        values = torch.linalg.svdvals(torch.cat(rests, dim=1)).square()
        k = int((values.cumsum(0) / values.sum() <= wanted).sum()) + 1
        assert grown[f"basis/{name}"].shape[1] == basis.shape[1] + k


@pytest.mark.parametrize("model", MODELS)
def test_sketches_come_nearer_to_gram_matrices_the_wider_they_are(model: str) -> None:
    """With E = Y Y^T / m - A A^T in every layer, for 1, 8, 64 and 512 columns an input (m = d times that):

    ||E|| <= 4 ||A||^2 / sqrt(m), and the basis, of rank k, leaves at most sqrt(2 k) ||E|| more energy outside than
    the exact one of its rank (Ky Fan). That excess shrinks at least eightfold from 1 to 512.
    """
    parts, exact = cut(tasks_of(model)[0], 3), FOT(statistic="gram", epsilon=0.8)
    state = exact.begin({name: each.detach() for name, each in make(*MODELS[model], 4, 0).double().named_parameters()})
    pooled = summed(model, exact, state, parts).under("gram")
    excess: dict[int, float] = {}
    for width in (1, 8, 64, 512):
        method, excess[width] = FOT(sketch_width=width, epsilon=0.8), 0.0
        total = summed(model, method, state, parts)
        bases, _ = method.end_task(state, {}, total, [0])
        for name, a in pooled.items():
            y, basis = total[f"sketch/{name}"], bases[f"basis/{name}"]
            assert y.shape == (len(a), width * len(a))
            error = float((y @ y.T / y.shape[1] - a).norm())
            assert error <= 4 * a.trace() / y.shape[1] ** 0.5
            best = torch.linalg.eigvalsh(a).flip(0)[: basis.shape[1]].sum()
            more = float(best - (basis.T @ a @ basis).trace())
            assert more <= (2 * basis.shape[1]) ** 0.5 * error
            excess[width] += more / float(a.trace())
    assert 0 < excess[512] < excess[1] / 8


def test_a_sketch_is_the_residual_times_a_matrix_of_the_clients_own() -> None:
    """Y Y^T / m estimates R R^T; clients and rounds have other S; the same client and round the same."""
    x = tasks_of("mlp")[0]
    method = FOT(sketch_width=400.0)
    weights = {n: p.detach() for n, p in make(MODELS["mlp"][0], (4, 4), 4, 0).double().named_parameters()}
    state = method.begin(weights)
    one, again, other, later = (
        sketch(case_of("mlp", method, state, x, client, round)) for client, round in ((0, 1), (0, 1), (1, 1), (0, 2))
    )
    assert torch.equal(one, again)
    assert (one != other).any()
    assert (one != later).any()
    name = "body.1.weight"
    y = Answer(LAYOUTS["sketch"](Layout.of(weights), method), one)[f"sketch/{name}"]
    a = x.flatten(1).T
    assert y.shape == (16, 6400)
    assert ((y @ y.T / 6400 - a @ a.T).norm() / (a @ a.T).norm()) < 4 * (16 / 6400) ** 0.5


def test_with_all_energy_and_no_biases_old_outputs_do_not_change() -> None:
    """float32, twenty inputs in 8 of 16 directions, energy 1: the rank is 8, and steps leave every old output alone."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 12, bias=False), nn.ReLU(), nn.Linear(12, 3, bias=False))
    weights = {name: each.detach().clone() for name, each in module.named_parameters()}
    x = (normal(20, 8) @ normal(8, 16, seed=2)).float()
    statistics: tuple[Literal["sketch", "gram"], ...] = ("sketch", "gram")
    for statistic in statistics:
        method = FOT(epsilon=1.0, statistic=statistic)
        state, layout = method.begin(weights), Layout.of(weights)
        load_weights(module, layout, layout.flatten(weights))
        case = Case(
            module=module, parameters=layout, method=method, shared={}, data=data_of(x), items=torch.arange(20),
            tasks=torch.zeros(20, dtype=torch.int64), client=0, round=1, secret=b"",
        )  # fmt: skip
        flat = {"sketch": sketch, "gram": gram}[statistic](case)
        total = Answer(LAYOUTS[statistic](layout, method), flat)
        state, _ = method.end_task(state, weights, total, [0])
        assert state["basis/1.weight"].shape == (16, 8)
        with torch.no_grad():
            before = module(x)
            step = method.project(
                state, {name: normal(*each.shape, dtype=torch.float32) for name, each in weights.items()}
            )
            load_weights(module, layout, layout.flatten({name: weights[name] + step[name] for name in weights}))
            after, moved = module(x), module(normal(20, 16, dtype=torch.float32))
            load_weights(module, layout, layout.flatten(weights))
            still = module(normal(20, 16, dtype=torch.float32))
        assert (after - before).norm() < 1e-4 * before.norm()
        assert (moved - still).norm() > 0.1 * still.norm()


# Settings


def test_shares_are_set_by_layer_and_grow_by_task() -> None:
    method = FOT(epsilon=0.5, epsilons={"body": 0.6, "body.3": 0.7}, epsilon_step=0.1)
    assert [method.share(name, 0) for name in ("head.weight", "body.1.weight", "body.3.weight")] == [0.5, 0.6, 0.7]
    assert method.share("body.3.weight", 2) == pytest.approx(0.9)
    assert method.share("body.3.weight", 9) == 1.0
    with pytest.raises(OutOfRange, match="epsilons"):
        FOT(epsilons={"body": 0.0})
    weights = {name: each.detach() for name, each in make(MLP(), (3,), 2, 0).named_parameters()}
    with pytest.raises(ConfigError, match=r"no protected weight begins with 'boddy'; known: body"):
        FOT(epsilons={"boddy": 0.5}).begin(weights)


@pytest.mark.parametrize("heads", ["shared", "per-task"])
def test_per_task_heads_are_not_projected(heads: Literal["shared", "per-task"]) -> None:
    """With `per-task` the head has no basis and its step keeps its bits; with `shared` it is protected."""
    method, x = FOT(heads=heads, statistic="gram"), tasks_of("mlp")[0]
    bases = learnt("mlp", method, [[x]])
    assert ("head.weight" in bases) == (heads == "shared")
    step = {
        "head.weight": normal(4, 12),
        "body.1.weight": normal(12, 16),
        "head.bias": normal(4),
        "scale": torch.tensor(1.5),
    }
    found = method.project({f"basis/{name}": each for name, each in bases.items()}, step)
    kept = {name for name in step if torch.equal(found[name], step[name])}
    assert kept == {"head.bias", "scale"} | ({"head.weight"} if heads == "per-task" else set())


# Whole runs


def events(folder: Path, kind: str) -> list[Plain]:
    return [event for event in journal(folder) if event["event"] == kind]


def weights_of(folder: Path) -> Tensors:
    return {name: each.detach() for name, each in api.load(folder).model().named_parameters()}


def test_until_the_first_task_has_ended_fot_is_fedavg_to_the_bit(tmp_path: Path) -> None:
    """Three rounds of one task each: equal weights; after it ended: other weights."""
    for rounds, same in ((3, True), (4, False)):
        scenario = [tiny(FOTS, "stream.schedule.rounds_per_task=3", f"stream.schedule.rounds={rounds}"),
                    tiny("stream.schedule.rounds_per_task=3", f"stream.schedule.rounds={rounds}")]  # fmt: skip
        found = [run(each, tmp_path / f"{rounds}-{n}")["weights_sha256"] for n, each in enumerate(scenario)]
        assert (found[0] == found[1]) is same


def test_statistics_ride_only_in_the_round_in_which_a_task_ends(tmp_path: Path) -> None:
    """Bytes up and down of four rounds, two tasks: by hand from the shapes; bases go down once they are not empty."""
    run(tiny(FOTS), tmp_path)
    parameters, sketches = 64, 5 * 5 * 5 + 6 * 6 * 5 + 2 * 3 + 1
    rounds, bases = events(tmp_path, "round"), events(tmp_path, "bases")
    assert [event["round"] for event in bases] == [2, 4]
    assert [event["bytes_up"] for event in rounds] == [
        4 * 4 * (parameters + 1 + more) for more in (0, sketches, 0, sketches)
    ]
    ranks = bases[0]["rank"]
    columns = 5 * ranks["body.1.weight"] + 6 * ranks["head.weight"]
    assert columns > 0
    assert [event["bytes_down"] for event in rounds] == [4 * 4 * (parameters + more) for more in (0, 0, 0, columns)]
    assert bases[0]["cost"] == {"bases": 4 * columns, "statistics": 4 * (sketches - 1), "update": 4 * parameters}


def test_ranks_are_told_when_bases_grow_and_saturation_is_warned_of(tmp_path: Path) -> None:
    """Energy 1 after two tasks of full rank: the first layer is full, and a sentence says so."""
    run(tiny("server.method={name: fot, epsilon: 1.0}"), tmp_path)
    first, last = events(tmp_path, "bases")
    assert first["rank"]["body.1.weight"] == last["rank"]["body.1.weight"] == 5
    assert last["share"]["body.1.weight"] == 1.0
    assert last["share"]["head.weight"] == last["rank"]["head.weight"] / 6
    assert any(note.startswith("body.1.weight: 100% of the input directions") for note in last["notes"])


def test_bases_grow_every_so_many_rounds_when_asked_to(tmp_path: Path) -> None:
    """consolidate_every 2 in tasks of three rounds: rounds 2, 4, 6; task ends in round 3 add nothing."""
    run(
        tiny("server.method={name: fot, epsilon: 0.7, consolidate_every: 2}", "stream.schedule.rounds_per_task=3"),
        tmp_path,
    )
    assert [event["round"] for event in events(tmp_path, "bases")] == [2, 4, 6]
    assert [event["round"] for event in events(tmp_path, "task_end")] == [3, 6]
    per_round = [event["bytes_up"] for event in events(tmp_path, "round")]
    assert per_round[0] == per_round[2] == per_round[4] < per_round[1] == per_round[3]


OWN = """stream.schedule={kind: explicit, clients: [{tasks: [0, 1], rounds: [2, 3]}, {tasks: [1, 0], rounds: [1, 2]},
{start: 1, tasks: [0], rounds: [3]}, {tasks: [1], rounds: [2]}]}""".replace("\n", " ")


def test_under_own_order_bases_grow_when_everyone_has_finished_a_task(tmp_path: Path) -> None:
    """Task 0 is over after round 4 (client 2), task 1 after 5 (client 0): who is at it in that round tells."""
    scenario = tiny(FOTS, OWN)
    run(scenario, tmp_path)
    assert [event["round"] for event in events(tmp_path, "bases")] == [4, 5]
    own = Clients.of(scenario)
    sizes = [own.site.layout(names).size * 4 for names in (["delta"], ["delta", "sketch"])]
    rounds = events(tmp_path, "round")
    assert [event["bytes_up"] // event["updates"] for event in rounds] == [
        sizes[number in (4, 5)] for number in range(1, 6)
    ]


def test_a_task_that_ends_unseen_is_told(tmp_path: Path) -> None:
    """A round's one client is at another task when a task ends: nothing of it is protected, and it is said."""
    own = """stream.schedule={kind: explicit, clients: [{tasks: [0], rounds: [1]}, {tasks: [1], rounds: [6]},
    {tasks: [1], rounds: [6]}, {tasks: [1], rounds: [6]}]}""".replace("\n", " ")
    seeds = []
    for seed in range(6):
        run(tiny(FOTS, own, "server.clients_per_round=1", f"seed={seed}"), tmp_path / str(seed))
        first = events(tmp_path / str(seed), "bases")[0]
        asked = events(tmp_path / str(seed), "round")[0]["clients"]
        assert first["round"] == 1
        assert (sum(first["rank"].values()) > 0) == (asked == [0])
        assert (first["notes"] == []) == (asked == [0])
        seeds.append(asked == [0])
    assert True in seeds
    assert False in seeds


@pytest.mark.parametrize("method", ["single-task", "fedavg", "fot"])
def test_the_joint_oracle_has_no_statistics(method: str, tmp_path: Path) -> None:
    assert run(tiny(f"server.method={method}", "stream.joint=true"), tmp_path)["cost"]["rounds"] == 4
    assert sum(sum(event["rank"].values()) for event in events(tmp_path, "bases")) == 0


def conformance(*overrides: str) -> Scenario:
    return tiny(
        FOTS, "client.method=er", "model.dtype=float64", "stream.clients=5", "engine.cohort=3", "checkpoint.seconds=0",
        *overrides,
    )  # fmt: skip


@pytest.mark.parametrize("statistic", ["sketch", "gram"])
def test_stacked_training_gives_the_same(statistic: str, tmp_path: Path) -> None:
    stacked_equals_one_by_one(conformance(f"server.method.statistic={statistic}"), tmp_path)
    assert events(tmp_path / "stack-3", "bases") == events(tmp_path / "stack-1", "bases") != []


def test_a_killed_run_resumes_to_the_bit(tmp_path: Path) -> None:
    killed_run_resumes(conformance("stream.schedule.rounds_per_task=5"), tmp_path)
    assert journal(tmp_path / "killed") == journal(tmp_path / "straight")


@pytest.mark.usefixtures("ray_cluster")
def test_workers_make_no_difference_to_the_bit(tmp_path: Path) -> None:
    workers_make_no_difference(conformance(), tmp_path)
    assert events(tmp_path / "ray-2", "bases") == events(tmp_path / "inline", "bases") != []


@pytest.mark.slow
def test_fot_forgets_at_most_a_third_of_what_averaging_forgets(tmp_path: Path) -> None:
    """task-digits-fot, mean of seeds 0 to 4: a third of the forgetting at most, ACC at least three points higher."""
    figures = {}
    for method, overrides in (("fot", []), ("fedavg", ["server.method=fedavg"])):
        runs = [
            run(
                load("task-digits-fot", [*overrides, f"seed={seed}", "engine.kind=inline"]),
                tmp_path / f"{method}-{seed}",
            )
            for seed in range(5)
        ]
        figures[method] = {name: np.mean([each["metrics"][name] for each in runs]) for name in ("acc", "forgetting")}
    assert figures["fot"]["forgetting"] <= figures["fedavg"]["forgetting"] / 3
    assert figures["fot"]["acc"] >= figures["fedavg"]["acc"] + 0.03


# Biases as weights of one more input


def test_a_protected_bias_is_the_weight_of_an_input_that_is_always_1() -> None:
    """`project_bias` gives what plain FOT gives for layers without biases whose inputs have a row of ones."""
    x = normal(30, 4)
    method = FOT(project_bias=True, statistic="gram", energy="squared", epsilon=0.9)
    weights = {"1.weight": normal(3, 4, seed=1), "1.bias": normal(3, seed=2)}
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    layout = Layout.of(weights)
    load_weights(module, layout, layout.flatten(weights))
    case = Case(
        module=module, parameters=layout, method=method, shared={}, data=data_of(x), items=torch.arange(30),
        tasks=torch.zeros(30, dtype=torch.int64), client=0, round=1, secret=b"",
    )  # fmt: skip
    total = Answer(LAYOUTS["gram"](layout, method), gram(case))
    augmented = torch.cat([x, torch.ones(30, 1, dtype=torch.float64)], dim=1)
    assert (total["gram/1.weight"] - augmented.T @ augmented).abs().max() < 1e-10
    state, _ = method.end_task(method.begin(weights), weights, total, [0])
    basis = state["basis/1.weight"]
    wanted = gpm([augmented.T.numpy()], 0.9)
    assert abs((basis @ basis.T).numpy() - wanted @ wanted.T).max() < 1e-6
    step = method.project(state, {"1.weight": normal(3, 4, seed=3), "1.bias": normal(3, seed=4)})
    rows = torch.cat([step["1.weight"], step["1.bias"][:, None]], dim=1)
    assert (rows @ basis).norm() < 1e-12
    plain = FOT(statistic="gram").project({"basis/1.weight": basis[:4, :0]}, {"1.bias": normal(3)})
    assert torch.equal(plain["1.bias"], normal(3))


def test_a_run_with_protected_biases(tmp_path: Path) -> None:
    """Every basis has a row more than its layer has inputs: the bias's."""
    scenario = tiny(
        "server.method={name: fot, epsilon: 0.9, project_bias: true}", "stream.kind=domain-incremental",
        "stream.schedule.rounds_per_task=1", "model.dtype=float64",
    )  # fmt: skip
    run(scenario, tmp_path)
    last = checkpoint.read(checkpoint.kept(tmp_path / "checkpoints")[-1])
    bases = {name: each for name, each in last.tensors.items() if name.startswith("method/basis/")}
    rows = {name.removeprefix("method/basis/"): each.shape[0] for name, each in bases.items()}
    assert rows == {"body.1.weight": 6, "head.weight": 7}


def spread_out(d: int, decay: float, seed: int = 0) -> Tensor:
    """Return a sketch (d, d) whose directions have energies of decay^(2 i), up to what the noise of a sketch makes."""
    drawn = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(d, d, generator=drawn))[0]
    return (directions * decay ** torch.arange(float(d))) @ torch.randn(d, d, generator=drawn) / d**0.5


@pytest.mark.parametrize("wanted", [0.5, 0.95, 0.999])
def test_few_directions_of_a_large_sketch_hold_what_is_wanted(wanted: float) -> None:
    """As many as the exact ones, or one more; what they hold is measured on the sketch itself."""
    sketch, nothing = spread_out(1040, 0.95), torch.zeros(1040, 0, dtype=torch.float64)
    few = subspace.directions_of_sketch(sketch, 0.0, wanted)
    exact = subspace.directions_of_sketch(sketch, 0.0)
    assert few[0].shape == (subspace.FEW + 1,)
    assert exact[0].shape == (1040,)
    assert float(few[0].sum()) == pytest.approx(float(exact[0].sum()), rel=1e-6)
    found, best = (
        subspace.grown(nothing, *each, left=1.0, epsilon=wanted, at_least=0) for each in (few, exact)
    )  # fmt: skip
    assert best.shape[1] <= found.shape[1] <= best.shape[1] + 1
    torch.testing.assert_close(found.T @ found, torch.eye(found.shape[1], dtype=torch.float64), atol=1e-9, rtol=0)
    held = (found.T @ sketch.double()).square().sum() / sketch.double().square().sum()
    assert wanted < float(held)


def test_a_large_sketch_that_needs_many_directions_is_looked_at_whole() -> None:
    sketch = spread_out(1040, 0.999)
    few, exact = subspace.directions_of_sketch(sketch, 0.0, 0.95), subspace.directions_of_sketch(sketch, 0.0)
    assert few[0].shape == (1040,)
    assert torch.equal(few[0], exact[0])
    zeros = subspace.directions_of_sketch(torch.zeros(1040, 1040), 0.0, 0.95)
    assert not zeros[0].any()
