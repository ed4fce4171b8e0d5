"""SCAFFOLD: a step and a visit by hand, FedAvg where there is no drift, the optimum where there is, c = mean of c_k."""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from clients.gradients.scaffold import OWN, SERVERS, corrected, growth
from clients.methods import Finetune
from clients.site import site
from clients.versions import opened
from clients.work import train
from fedcl import testing
from fedcl.answers import Answer, Layout, answer_layout, prefixed, under
from fedcl.config import Scenario, config_hash
from fedcl.engine import flower
from fedcl.engine.choice import resolve
from fedcl.errors import ConfigError
from fedcl.models import make
from fedcl.orders import Ints, Order, TrainOrder
from fedcl.settings import setting
from fedcl.state import PackStore
from fedcl.streams import Dataset, Partition, build_stream
from fedcl.streams.datasets import Synthetic
from fedcl.world import as_text
from server import checkpoint
from server.methods.scaffold import Scaffold
from server.state import State, restored
from tests.federations import Clients, journal, run, tiny
from tests.frozen import weights_of
from tests.nodes import SECRET, Nodes
from tests.test_versions import sit, spoil_newest, stormy

METHOD = ("client.method=scaffold", "server.method=scaffold", "server.weights=uniform", "model.dtype=float64")
UNEVEN = "stream.partition={kind: tests.federations:Uneven, sizes: [7, 3, 5]}"  # and 9 for the fourth
LR = 0.1


def carried_out(own: Clients, weights: NDArray[Any], control: NDArray[Any], round: int, clients: list[int]) -> Answer:
    """Train clients on the first task, most steps first, and return the sum of their answers."""
    sent = own.site.parameters.views(torch.from_numpy(control.copy()))
    k = np.array(clients)
    order = TrainOrder(
        round=round, cohort=0, clients=k, tasks=np.zeros_like(k), clocks=np.zeros_like(k), weights=weights,
        packs=[""] * len(k), rows=np.zeros_like(k), folder="", statistics=["delta", "control"],
        shared={name: each.numpy() for name, each in prefixed(SERVERS, sent).items()},
    )  # fmt: skip
    reply = train(own.site, order, own)
    assert not reply.errors, reply.errors
    return Answer(own.site.answer, torch.from_numpy(reply.total))


def flat(own: Clients, answer: Answer, part: str) -> NDArray[Any]:
    """Return one part of an answer, (P,)."""
    return own.site.parameters.flatten(answer.under(part)).numpy()


# By hand


def test_a_step_and_a_growth_by_hand() -> None:
    """g = 3, c_k = 1, c = 5: the step goes along 7; 4 and 2 steps of length .5 over -6 and 2: x = 3 and -2."""
    found = corrected({"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])}, {"w": torch.tensor([5.0])})
    assert found["w"].tolist() == [7.0]
    moved = torch.tensor([[-6.0], [2.0]])
    assert growth(moved, torch.tensor([4.0, 2.0]), 0.5, torch.tensor([5.0])).tolist() == [[-2.0], [-7.0]]


@pytest.mark.parametrize("stack", [1, 3])
def test_two_visits_are_those_of_the_paper(stack: int) -> None:
    """Three clients of 1 to 2 steps an epoch, two epochs, c and c_k of all kinds: w_k and c_k within 1e-12."""
    own = Clients.of(tiny(*METHOD, UNEVEN, "client.epochs=2", f"engine.stack={stack}", "engine.cohort=3"))
    size, clients = own.site.parameters.size, [0, 2, 1]
    control = np.random.default_rng(0).standard_normal(size) * 0.1
    weights, kept = own.initial, {client: np.zeros(size) for client in clients}
    for round in (1, 2):
        answer = carried_out(own, weights, control, round, clients)
        ends, steps = zip(*(published(own, each, round, weights, kept[each], control) for each in clients), strict=True)
        assert sorted(steps) == [2, 2, 4]
        news = [
            kept[each] - control + (weights - end) / (k * LR) for each, end, k in zip(clients, ends, steps, strict=True)
        ]
        grown = sum(new - kept[client] for new, client in zip(news, clients, strict=True))
        assert np.abs(flat(own, answer, "delta") - sum(end - weights for end in ends)).max() < 1e-12
        assert np.abs(flat(own, answer, "control") - grown).max() < 1e-12
        assert float(answer["weight"]) == 3
        kept = dict(zip(clients, news, strict=True))
        for client, new in kept.items():
            assert np.abs(own.record(client)[OWN] - new).max() < 1e-12
        weights, control = weights + flat(own, answer, "delta") / 3, control + grown / 4


def published(
    own: Clients, client: int, round: int, weights: NDArray[Any], kept: NDArray[Any], control: NDArray[Any]
) -> tuple[NDArray[Any], int]:
    """Return a client's parameters (P,) after w <- w - lr (g - c_k + c), in plain torch, and the steps taken."""
    module, correction, steps = own.model(), torch.from_numpy(control - kept), 0
    parameters = list(module.parameters())
    torch.nn.utils.vector_to_parameters(torch.from_numpy(weights.copy()), parameters)
    for epoch in (0, 1):
        for part in np.array_split(items := own.shuffled(client, 0, round, epoch), range(5, len(items), 5)):
            x, y = own.shown(part)
            gradient = torch.autograd.grad(cross_entropy(module(x), y), parameters)
            g = torch.cat([each.flatten() for each in gradient])
            after = torch.nn.utils.parameters_to_vector(parameters).detach() - LR * (g + correction)
            torch.nn.utils.vector_to_parameters(after, parameters)
            steps += 1
    return torch.nn.utils.parameters_to_vector(parameters).detach().numpy(), steps


def test_the_server_by_hand() -> None:
    """Two of five clients: w moves by the mean update; c by the sum of what their c_k grew by, over five."""
    method, weights = Scaffold(), {"w": torch.tensor([1.0, 2.0])}
    state = method.enrolled(method.begin(weights), 5)
    layout = answer_layout(method.answers, Layout.of(weights), method)
    total = Answer(layout, torch.tensor([4.0, -2.0, 2.0, 10.0, -5.0]))  # updates, their number, growths
    for times in (1, 2):
        state, step = method.end_round(state, weights, total)
        assert step["w"].tolist() == [2.0, -1.0]
        assert method.shared(state)[f"{SERVERS}/w"].tolist() == [2.0 * times, -1.0 * times]
    assert method.shared(state)[f"{SERVERS}/w"].dtype == torch.float32


def test_a_record_grows_by_the_control_variate_alone() -> None:
    own = Clients.of(tiny(*METHOD))
    assert own.site.record.names == ("visits", "cursor", OWN)
    assert own.site.record[OWN].shape == (own.site.parameters.size,)


# Where it is FedAvg


def test_the_first_round_is_fedavg_to_the_bit(tmp_path: Path) -> None:
    """c = c_k = 0: nothing is corrected yet; from the second round on it is, with uneven data."""
    once, twice = "stream.schedule.rounds=1", "stream.schedule.rounds=2"
    plain = ("model.dtype=float64", "server.weights=uniform", UNEVEN)
    for rounds, same in ((once, True), (twice, False)):
        fedavg = run(tiny(*plain, rounds), tmp_path / f"fedavg {rounds}")["weights_sha256"]
        scaffold = run(tiny(*METHOD, UNEVEN, rounds), tmp_path / f"scaffold {rounds}")["weights_sha256"]
        assert (fedavg == scaffold) is same


@dataclass(frozen=True, kw_only=True)
class Copies(Synthetic):
    """Gaussian clusters, the whole of them once for every client."""

    copies: int = setting(4, "clients")

    def load(self, root: str | None) -> Dataset:
        data = Synthetic.load(self, root)
        x, y = np.tile(data.x, (self.copies, 1)), np.tile(data.y, self.copies)
        return replace(data, x=x, y=y)


@dataclass(frozen=True, kw_only=True)
class Blocks(Partition):
    """Each client gets the items of one block of neighbours, all of one size."""

    def assign(self, labels: Ints, clients: int, rng: np.random.Generator) -> Ints:
        return np.arange(len(labels)) // (len(labels) // clients)


def test_where_everyone_has_the_same_data_it_is_fedavg(tmp_path: Path) -> None:
    """Full batches of one data set, everyone asked: c_k = c in every round, and the weights are FedAvg's to 1e-12."""
    same = (
        "stream.dataset={name: tests.test_scaffold:Copies, classes: 4, features: 5, samples: 24, test_samples: 8}",
        "stream.partition={kind: tests.test_scaffold:Blocks}", "stream.schedule.rounds_per_task=4", "client.epochs=3",
        "client.batch=24",
    )  # fmt: skip
    run(tiny(*same, "model.dtype=float64", "server.weights=uniform"), tmp_path / "fedavg")
    run(tiny(*METHOD, *same), tmp_path / "scaffold")
    assert distance(weights_of(tmp_path / "scaffold"), weights_of(tmp_path / "fedavg")) < 1e-12


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in other)


# The optimum

OPTIMUM = (
    "stream.dataset={name: synthetic, classes: 4, features: 5, samples: 160, test_samples: 8, separation: 1}",
    "stream.tasks=1", "stream.partition={kind: shards, per_client: 2}", "stream.schedule.rounds_per_task=80",
    "model={name: linear, dtype: float64}", "client.epochs=20", "client.batch=40", "client.optimizer.lr=0.2",
    "engine.cohort=4", "engine.stack=4", "checkpoint.rounds=80",
)  # fmt: skip


def optimum(scenario: Scenario) -> dict[str, Tensor]:
    """Return the parameters that are best for all data at once, by quasi-Newton steps from the run's first weights."""
    data = build_stream(scenario).dataset
    x, y = torch.from_numpy(data.x).double(), torch.from_numpy(data.y)
    module = make(scenario.model, x.shape[1:], data.classes, scenario.seed)
    search = torch.optim.LBFGS(
        module.parameters(), max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        search.zero_grad()
        loss = cross_entropy(module(x), y)
        loss.backward()
        return loss

    search.step(closure)
    return {name: each.detach() for name, each in module.named_parameters()}


@pytest.mark.parametrize("asked", [4, pytest.param(2, marks=pytest.mark.slow)])
def test_it_finds_the_joint_optimum_from_which_fedavg_stays_away(asked: int, tmp_path: Path) -> None:
    """Logistic regression, two of four classes a client, 20 local steps, 80 rounds of all clients or of half of them.

    SCAFFOLD ends within 1e-3 of the joint optimum in every weight; FedAvg stays more than .1 away.
    """
    asking = f"server.clients_per_round={asked}"
    best = optimum(scenario := tiny(*METHOD, *OPTIMUM, asking))
    run(scenario, tmp_path / "scaffold")
    run(tiny(*OPTIMUM, asking, "model.dtype=float64", "server.weights=uniform"), tmp_path / "fedavg")
    gaps = {name: distance(weights_of(tmp_path / name), best) for name in ("scaffold", "fedavg")}
    print(gaps)
    assert gaps["scaffold"] < 1e-3
    assert gaps["fedavg"] > 0.1


# The invariant: the mean of all clients' c_k is c, whoever took part


def assert_mean(scenario: Scenario, state: State, kept: list[NDArray[Any]]) -> None:
    """The mean of the clients' control variates (P,) is the server's within 1e-12 of the larger of them."""
    control = site(as_text(scenario)).parameters.flatten(under("control", state.method)).numpy()
    most = max(np.abs(each).max() for each in [control, *kept])
    assert np.abs(sum(kept) / len(kept) - control).max() <= 1e-12 * most


def from_packs(folder: Path, path: Path, scenario: Scenario) -> tuple[State, list[NDArray[Any]]]:
    """Return the state of a checkpoint and every client's control variate in the packs that it names."""
    state = restored(checkpoint.read(path), config_hash(scenario))
    record, everyone = site(as_text(scenario)).record, np.arange(scenario.stream.clients)
    packs, rows = state.index.locate(everyone)
    found = PackStore(folder / "state").load(everyone, packs, rows, np.zeros(1, record))
    return state, list(found[OWN])


def from_nodes(grid: Nodes, path: Path, scenario: Scenario) -> tuple[State, list[NDArray[Any]]]:
    """Return the state of a checkpoint and every client's control variate in the version that its node keeps."""
    state, record = restored(checkpoint.read(path), config_hash(scenario)), site(as_text(scenario), SECRET).record
    kept = []
    for client, accepted in enumerate(state.accepted.tolist()):
        fresh = np.zeros(1, record)
        data = grid.place(client).read(client, accepted) if accepted else b""
        held = opened(data, record, client, accepted, config_hash(scenario)) if accepted else fresh
        kept.append(held[0][OWN])
    return state, kept


@pytest.mark.parametrize("personal", ["[]", "[head]"])
def test_c_is_the_mean_of_all_c_k_after_every_round(personal: str, tmp_path: Path) -> None:
    """Two of four clients a round, of uneven data, twelve rounds, two tasks; personal parameters have no control."""
    few = ("stream.schedule.rounds_per_task=6", "server.clients_per_round=2", "checkpoint={seconds: 0, keep: 12}")
    scenario, _ = resolve(tiny(*METHOD, UNEVEN, *few, f"model.personal={personal}"))
    run(scenario, tmp_path / "run")
    paths = checkpoint.kept(tmp_path / "run" / "checkpoints")
    assert len(paths) == 12
    for path in paths:
        state, kept = from_packs(tmp_path / "run", path, scenario)
        assert_mean(scenario, state, kept)
    assert all(np.abs(each).max() > 0.01 for each in kept)
    theirs = site(as_text(scenario)).personal.numpy()
    assert theirs.any() == (personal == "[head]")
    assert not any(each[theirs].any() for each in kept)


STORM, _ = resolve(tiny(*METHOD, UNEVEN, "stream.schedule.rounds_per_task=5", "checkpoint.keep=3"))
FATES = ["lost", "deaf", "refused", "late", "twice", "deaf", "refused", "late", "dies"]


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(2, 12))])
def test_whatever_becomes_of_an_answer_the_nodes_accepted_records_and_c_agree(seed: int, tmp_path: Path) -> None:
    """A third of the messages lost, refused, late, repeated; servers that die; checkpoints cut short.

    Whenever the server is gone, all its kept checkpoints name records with which they agree.
    """
    flower.identify()
    draws, sittings, agreed = random.Random(seed), 0, 0
    grid = Nodes(4, stormy(draws, 0.7, FATES), tmp_path / "nodes")
    folder = tmp_path / "run"
    ended = ""
    while ended != "finished" and sittings < 200:
        ended, sittings = sit(folder, grid, STORM), sittings + 1
        for path in checkpoint.kept(folder / "checkpoints"):
            assert_mean(STORM, *from_nodes(grid, path, STORM))
            agreed += 1
        if ended != "finished" and len(checkpoint.kept(folder / "checkpoints")) > 1 and draws.random() < 0.3:
            spoil_newest(folder)
    assert ended == "finished"
    if seed < 2:  # a server dies in most storms, and in these two for certain
        assert sittings > 1
    assert agreed >= 3
    rounds = [each["clients"] for each in journal(folder) if each["event"] == "round"]
    assert any(0 < len(clients) < 4 for clients in rounds)


def test_an_answer_that_is_not_taken_moves_neither_side(tmp_path: Path) -> None:
    """Client 1's answers of rounds 2 and 3 are refused: its c_k is that of round 1, and c is the mean with it."""
    flower.identify()
    scenario, _ = resolve(tiny(*METHOD, "stream.schedule.rounds=3", "checkpoint.keep=3"))

    def fate(order: Order) -> str:
        return "refused" if isinstance(order, TrainOrder) and order.round > 1 and 1 in order.clients else "ok"

    grid = Nodes(4, fate, tmp_path / "nodes")
    assert sit(tmp_path / "run", grid, scenario) == "finished"
    states = [from_nodes(grid, path, scenario) for path in checkpoint.kept(tmp_path / "run" / "checkpoints")]
    assert [state.accepted.tolist() for state, _ in states] == [[1, 1, 1, 1], [2, 1, 2, 2], [3, 1, 3, 3]]
    for state, kept in states:
        assert_mean(scenario, state, kept)
        assert (kept[1] == states[0][1][1]).all()
    assert np.abs(states[2][1][0] - states[0][1][0]).max() > 1e-3


# What does not go together


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("client.optimizer={name: adam}", r"client\.optimizer = 'adam': must be 'sgd', because control variates are"),
        ("client.optimizer.momentum=0.5", r"client\.optimizer\.momentum = 0\.5: must be 0\.0, because control"),
        ("client.optimizer.weight_decay=0.1", r"client\.optimizer\.weight_decay = 0\.1: must be 0\.0"),
        ("client.optimizer.keep=true", r"client\.optimizer\.keep = True: must be False"),
        ("client.optimizer.lr=0", r"client\.optimizer\.lr = 0: must be above 0"),
        ("client.clip=1", r"client\.clip = 1\.0: must be null"),
        ("server.max_update_norm=1", r"server\.max_update_norm = 1\.0: must be null"),
        ("server.weights=samples", r"server\.weights = 'samples': must be 'uniform', because .* one a client"),
        ("client.method=finetune", r"client\.method = 'finetune': server method 'scaffold' needs control of the clien"),
        ("server.method=fedavg", r"server\.method = 'fedavg': client method 'scaffold' needs scaffold\.control of the"),
    ],
)
def test_what_bends_a_step_is_refused_in_one_sentence(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        tiny(*METHOD, override)
    assert "\n" not in str(refused.value)


def test_other_methods_may_bend_their_steps() -> None:
    assert tiny("client.optimizer={name: adam, keep: true}", "client.clip=1").client.method == Finetune()


# Whole runs

WHOLE = (*METHOD, UNEVEN, "server.clients_per_round=3", "client.epochs=2")


def test_conformance(tmp_path: Path) -> None:
    """Stacked as one by one, with clients of one and two steps an epoch; killed as left alone."""
    testing.stacked_equals_one_by_one(tiny(*WHOLE, "engine.cohort=4"), tmp_path / "stack")
    testing.killed_run_resumes(tiny(*WHOLE, "checkpoint.seconds=0"), tmp_path / "kill")


def test_stacked_is_one_by_one_with_personal_heads(tmp_path: Path) -> None:
    scenario = tiny(*WHOLE, "engine.cohort=4", "model.personal=[head]")
    testing.stacked_equals_one_by_one(scenario, tmp_path)


def test_the_joint_oracle_is_controlled_too(tmp_path: Path) -> None:
    """All tasks at once, as one: c goes to the clients there too, and stays the mean."""
    scenario, _ = resolve(tiny(*WHOLE, "stream.joint=true", "checkpoint={seconds: 0, keep: 4}"))
    run(scenario, tmp_path / "run")
    for path in checkpoint.kept(tmp_path / "run" / "checkpoints"):
        assert_mean(scenario, *from_packs(tmp_path / "run", path, scenario))


@pytest.mark.slow
def test_workers_make_no_difference(tmp_path: Path, ray_cluster: None) -> None:
    testing.workers_make_no_difference(tiny(*WHOLE), tmp_path)
