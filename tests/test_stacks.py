"""Stacks of clients: every shipped model in grey and colour, down to the last client, and what cannot be stacked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clients import work
from clients.losses import Anchors, Batch, Forward, Term
from clients.losses.cross_entropy import CrossEntropy
from clients.methods import ClientMethod
from fedcl import api, config, registry
from fedcl.config import Scenario
from fedcl.models import make
from fedcl.models.behaviour import stack_problem
from server.acceptance import notes_problem
from tests.federations import Clients, tiny
from tests.frozen import weights_of
from tests.own_models import LSTM

# One item, two, as many as a batch, one more, and the rest of 120: stacks shrink to one client, batches to one row.
SIZES = [1, 2, 5, 6]
PICTURES = (
    "stream.clients=5", "stream.tasks=1", "client.batch=5", "engine.cohort=5", "model.dtype=float64",
    f"stream.partition={{kind: 'tests.federations:Uneven', sizes: {SIZES}}}",
)  # fmt: skip
SLOW = pytest.param("resnet18", marks=pytest.mark.slow)
NARROW = {"cnn": "width: 4", "conv4": "width: 4", "resnet18": "width: 4", "mlp": "width: 8", "linear": ""}


def pictures(channels: int, samples: int = 60) -> str:
    return f"stream.dataset={{name: 'tests.own_models:Pictures', channels: {channels}, samples: {samples}}}"


def shipped(model: str) -> str:
    return f"model={{name: {model}, {NARROW[model]}}}"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("model", [*(each for each in registry.BUILT_IN["models"] if each != "resnet18"), SLOW])
def test_every_model_is_the_same_stacked_as_one_by_one(model: str, channels: int) -> None:
    """Clients of 1, 2, 5, 6 and 46 pictures, two rounds, in stacks of 1 and 5: within 1e-9, and nobody fails."""
    found = []
    for stack in (1, 5):
        own = Clients.of(tiny(pictures(channels), shipped(model), *PICTURES, f"engine.stack={stack}"))
        found.append(own.rounds(2))
        assert not own.site.apart
    assert max(np.abs(each - found[0]).max() for each in found) < 1e-9
    assert np.abs(found[0] - own.initial).max() > 1e-3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("batch", [1, 5])
def test_models_can_be_vmapped_whatever_the_number_of_clients(channels: int, batch: int) -> None:
    """In colour as in grey, for one client too (Fisher information of a single sample): gradients are those alone."""
    shape = (16, 16) if channels == 1 else (16, 16, channels)
    for name in ("cnn", "resnet18"):
        module = make(tiny(shipped(name)).model, shape, 4, 0).double()
        parameters = {each: value.detach() for each, value in module.named_parameters()}

        def loss(own: dict[str, Tensor], x: Tensor, module: Any = module) -> Tensor:
            logits: Tensor = torch.func.functional_call(module, own, (x,))
            return logits.square().sum()

        for k in (1, 3):
            x = torch.rand(k, batch, *shape, dtype=torch.float64)
            stacked = {each: value.expand(k, *value.shape) for each, value in parameters.items()}
            found = torch.vmap(torch.func.grad(loss))(stacked, x)
            for row in range(k):
                alone = torch.func.grad(loss)(parameters, x[row])
                assert max(float((found[each][row] - alone[each]).abs().max()) for each in alone) < 1e-9


def federation(model: str, *overrides: str) -> Scenario:
    """Return B1's federation: 300 colour pictures, 5 clients, Dirichlet .5, everything else as it is by default."""
    return config.load(
        {"name": "colour", "stream": {"partition": {"kind": "dirichlet", "alpha": 0.5}, "tasks": 2, "clients": 5}},
        [pictures(3, 300), shipped(model), "stream.schedule.rounds_per_task=2", "engine.kind=inline", *overrides],
    )


def lost_and_weights(scenario: Scenario, folder: Path) -> tuple[int, int, dict[str, Tensor]]:
    """Return how many updates a run has lost, how many it has, and its weights."""
    outcome = api.run(scenario, out=folder)
    rounds = [event for event in outcome.events if event["event"] == "round"]
    assert outcome.results["status"] == "finished"
    return sum(each["failed"] for each in rounds), sum(each["updates"] for each in rounds), weights_of(folder)


@pytest.mark.parametrize("model", ["cnn", "conv4", SLOW])
def test_a_colour_federation_of_unequal_clients_loses_no_update(model: str, tmp_path: Path) -> None:
    """Stacks as auto chooses them, and one by one: 20 of 20 updates each, in double precision within 1e-9."""
    found = {}
    for stack in ("auto", "1"):
        scenario = federation(model, f"engine.stack={stack}", "model.dtype=float64")
        lost, updates, found[stack] = lost_and_weights(scenario, tmp_path / stack)
        assert (lost, updates) == (0, 20)
    assert max(float((found["auto"][name] - each).abs().max()) for name, each in found["1"].items()) < 1e-9


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("model", ["cnn", "conv4", "resnet18"])
def test_a_colour_federation_on_ray_is_that_in_this_process(model: str, tmp_path: Path) -> None:
    """Cohorts of three clients, two workers: no update lost, the same bits."""
    cut = ("engine.cohort=3", "engine.stack=3")
    inline = lost_and_weights(federation(model, *cut), tmp_path / "inline")
    ray = lost_and_weights(federation(model, *cut, "engine.kind=ray", "engine.workers=2"), tmp_path / "ray")
    assert inline[:2] == ray[:2] == (0, 20)
    assert all(torch.equal(each, ray[2][name]) for name, each in inline[2].items())


# What cannot be stacked


def test_a_model_that_cannot_be_stacked_is_trained_one_by_one_from_the_start(tmp_path: Path) -> None:
    """An LSTM: PyTorch's operator is named at the start, nothing is lost, the bits are those of engine.stack = 1."""
    lstm = ("model={name: 'tests.own_models:LSTM'}", "stream.dataset=digits", "engine.cohort=4")
    runs = {stack: api.run(tiny(*lstm, f"engine.stack={stack}"), out=tmp_path / str(stack)) for stack in (1, 4)}
    notes = {stack: run.events[0]["notes"] for stack, run in runs.items()}
    assert notes[1] == []
    (note,) = notes[4]
    assert note.startswith("model.name = 'tests.own_models:LSTM': clients are trained one by one")
    assert "aten::lstm.input" in note
    assert [event for event in runs[4].events if event["event"] in ("client_error", "note")] == []
    assert runs[1].results["weights_sha256"] == runs[4].results["weights_sha256"]
    assert stack_problem(make(LSTM(), (8, 8), 3, 0), (8, 8))
    assert stack_problem(make(tiny().model, (8, 8), 3, 0), (8, 8)) is None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A loss that reads a number, which no stack can."""

    draws = ()

    def __call__(self, model: Forward, batch: Batch, anchors: Anchors) -> Tensor:
        loss = CrossEntropy()(model, batch, anchors)
        return loss * (2 if loss.item() > 0 else 1)


@dataclass(frozen=True, kw_only=True)
class Own(ClientMethod):
    """Training with a loss of one's own."""

    def terms(self) -> dict[str, Term]:
        return {"own": Reading()}


def test_clients_that_fail_together_only_are_trained_one_by_one_for_good(tmp_path: Path) -> None:
    """A loss with .item(): no update is lost, one note names the operator, the bits are those of engine.stack = 1."""
    found = {}
    for stack in (1, 4):
        plain = tiny("engine.cohort=4", f"engine.stack={stack}", "client.method={name: 'tests.test_stacks:Own'}")
        found[stack] = api.run(plain, out=tmp_path / str(stack))
    notes = [event["text"] for event in found[4].events if event["event"] == "note"]
    assert len(notes) == 1
    assert notes[0].startswith("engine.stack = 4: clients are trained one by one where a stack of them fails: in ")
    assert "item" in notes[0]
    assert [event for event in found[4].events if event["event"] == "client_error"] == []
    assert found[1].results["weights_sha256"] == found[4].results["weights_sha256"]


def test_only_the_stack_that_fails_is_trained_one_by_one_where_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four together fail, two do not: so the next stack is one again, whoever carries it out."""
    own, tried, train_block = Clients.of(tiny("engine.cohort=4", "engine.stack=4")), list[int](), work.train_block

    def failing(site: Any, order: Any, old: Any, laid: Any, rows: slice) -> Any:
        tried.append(rows.stop - rows.start)
        if tried[-1] > 2:
            raise RuntimeError("NYI: four of them")
        return train_block(site, order, old, laid, rows)

    monkeypatch.setattr(work, "train_block", failing)
    replies = [own.visit(own.initial, [0, 1, 2, 3], round=round) for round in (1, 2)]
    assert tried == [4, 4, *[1] * 4, *[1] * 4, 2] * 2
    assert own.site.stack == 4
    note = (
        "engine.stack = 4: clients are trained one by one where a stack of them fails: in failing (NYI: four of them)"
    )
    assert [reply.notes for reply in replies] == [[note], [note]]
    assert [list(reply.clients) for reply in replies] == [[0, 1, 2, 3]] * 2


def test_a_client_that_fails_alone_costs_the_others_nothing_in_a_stack_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Client 2 always fails and every stack does: the other three are there, one by one."""
    own, train_block = Clients.of(tiny("engine.cohort=4", "engine.stack=4")), work.train_block

    def failing(site: Any, order: Any, old: Any, laid: Any, rows: slice) -> Any:
        if rows.stop - rows.start > 1 or order.clients[rows][0] == 2:
            raise RuntimeError("no")
        return train_block(site, order, old, laid, rows)

    monkeypatch.setattr(work, "train_block", failing)
    order = work.TrainOrder(
        round=1, cohort=0, clients=np.arange(4), tasks=np.zeros(4, np.int64), clocks=np.zeros(4, np.int64),
        weights=own.initial, packs=[""] * 4, rows=np.zeros(4, np.int64), folder="",
    )  # fmt: skip
    reply = work.train(own.site, order, own)
    assert (reply.clients.tolist(), [each.client for each in reply.errors]) == ([0, 1, 3], [2])
    assert own.site.stack == 1


@pytest.mark.parametrize(
    ("notes", "sound"),
    [([], True), (["a" * 500] * 4, True), (["a" * 501], False), (["a"] * 5, False), (["\x1b[2J"], False)],
)
def test_notes_of_nodes_are_bounded(notes: list[str], sound: bool) -> None:
    assert (notes_problem(notes) is None) is sound
