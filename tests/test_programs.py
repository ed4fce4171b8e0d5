"""Recorded steps: the same bits as the steps themselves for every method, and nothing is recorded that would differ."""

import sys
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clients import programs
from clients.losses import Anchors, Batch, Forward, Term
from clients.losses.cross_entropy import CrossEntropy
from clients.methods import ClientMethod
from fedcl import models
from fedcl.engine import choice
from fedcl.models.work import multiplications
from tests.federations import Clients, tiny

MEMORY = "client.memory.size=7"
UNEVEN = (
    "stream.clients=6", "stream.dataset.samples=340", "client.epochs=2", "client.batch=10", "engine.cohort=6",
    "stream.partition={kind: 'tests.federations:Uneven', sizes: [31, 60, 5, 44, 7]}",
)  # fmt: skip
METHODS = {
    "finetune": [], "er": [MEMORY], "derpp": [MEMORY], "agem": [MEMORY], "fedprox": [], "ewc": [], "si": [], "lwf": [],
    "gpm": [], "prototypical": ["model={name: mlp, width: 8}"],
}  # fmt: skip
ADAM = "client.optimizer={name: adam, lr: 0.01, weight_decay: 0.001, keep: true}"
MOMENTUM = "client.optimizer={name: sgd, lr: 0.05, momentum: 0.9, weight_decay: 0.001, keep: true}"


def recorded(own: Clients) -> list[bool]:
    """Return of each form that was tried whether it is played."""
    return [play is not None for play in own.site.trainer.programs.known.values()]


def rounds(monkeypatch: pytest.MonkeyPatch, after: int, number: int, *overrides: str) -> tuple[Clients, Any]:
    monkeypatch.setattr(programs, "PLAYED_AFTER", after)
    own = Clients.of(tiny(*UNEVEN, *overrides))
    return own, own.rounds(number)


@pytest.mark.parametrize("stack", [1, 4])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_played_gives_the_same_bits_for_every_method(method: str, stack: int, monkeypatch: pytest.MonkeyPatch):
    """Six clients of 5 to 60 items, three rounds over two tasks: weights and records equal, and steps were played."""
    settings = (f"client.method={method}", f"engine.stack={stack}", *METHODS[method])
    for optimizer in (MOMENTUM, ADAM) if method == "finetune" else (MOMENTUM,):
        plain, expected = rounds(monkeypatch, sys.maxsize, 3, optimizer, *settings)
        own, found = rounds(monkeypatch, 2, 3, optimizer, *settings)
        assert recorded(plain) == []
        assert recorded(own)
        assert all(recorded(own))
        assert (found == expected).all()
        assert all((own.held[client] == plain.held[client]).all() for client in plain.held)


@pytest.mark.parametrize("stack", [1, 4])
def test_convolutions_groups_and_masks_are_played_too(stack: int, monkeypatch: pytest.MonkeyPatch):
    settings = (
        "model={name: cnn, width: 2}", "stream.dataset=digits", "stream.partition=iid", "stream.kind=task-incremental",
        f"engine.stack={stack}", "client.epochs=1", "client.clip=0.5",
    )  # fmt: skip
    _, expected = rounds(monkeypatch, sys.maxsize, 1, *settings)
    own, found = rounds(monkeypatch, 2, 1, *settings)
    assert any(recorded(own))
    assert (found == expected).all()


def test_the_last_of_a_stack_is_played_from_the_record_of_a_client_alone(monkeypatch: pytest.MonkeyPatch):
    """One client is never vmapped: both have shapes (1, ...) and the same operations, so one record serves both."""
    settings = ("engine.stack=4", "client.method=derpp", MEMORY)
    found: list[list[Any]] = []
    for after in (sys.maxsize, 2):
        monkeypatch.setattr(programs, "PLAYED_AFTER", after)
        own = Clients.of(tiny(*UNEVEN, *settings))
        visits = [[1, 3, 4, 2], [1], [1, 3, 4, 2], [1]]
        found.append([own.visit(own.initial, who, round=number).total for number, who in enumerate(visits, 1)])
    assert [play is not None for form, play in own.site.trainer.programs.known.items() if form[1][0][0][0] == 1] == [
        True
    ]
    assert all((one == other).all() for one, other in zip(*found, strict=True))


@dataclass(frozen=True, kw_only=True)
class Looking:
    """A loss that looks at its own number."""

    draws = ()

    def __call__(self, model: Forward, batch: Batch, anchors: Anchors) -> Tensor:
        loss = CrossEntropy()(model, batch, anchors)
        return loss * 2 if loss.item() > 1 else loss


@dataclass(frozen=True, kw_only=True)
class Counting:
    """A loss that is no pure function: it grows with every call."""

    calls: list[int] = field(default_factory=list)
    draws = ()

    def __call__(self, model: Forward, batch: Batch, anchors: Anchors) -> Tensor:
        self.calls.append(1)
        return CrossEntropy()(model, batch, anchors) * len(self.calls)


@dataclass(frozen=True, kw_only=True)
class Peeking:
    """A loss that reads the labels behind PyTorch's back: what is recorded of it holds those of one batch."""

    draws = ()

    def __call__(self, model: Forward, batch: Batch, anchors: Anchors) -> Tensor:
        most = int(np.bincount(batch.now.y.numpy()).max())
        return CrossEntropy()(model, batch, anchors) * most


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A loss that draws a number."""

    draws = ()

    def __call__(self, model: Forward, batch: Batch, anchors: Anchors) -> Tensor:
        return CrossEntropy()(model, batch, anchors) * torch.rand(())


@dataclass(frozen=True, kw_only=True)
class Given(ClientMethod):
    """Training with one loss."""

    term: Any = None

    def terms(self) -> dict[str, Term]:
        return {"own": self.term}


@pytest.mark.parametrize("term", [Looking, Counting, Peeking, Drawing])
def test_a_loss_that_is_no_function_of_tensors_is_never_played(term: Any, monkeypatch: pytest.MonkeyPatch):
    """One that looks at numbers or draws some cannot be recorded; one that differs by call is found out by its bits."""
    monkeypatch.setattr(programs, "PLAYED_AFTER", 2)
    scenario = tiny(*UNEVEN, "engine.stack=1")
    own = Clients.of(replace(scenario, client=replace(scenario.client, method=Given(term=term()))))
    own.rounds(1)
    assert recorded(own)
    assert not any(recorded(own))


def test_no_more_forms_are_recorded_than_a_process_may_hold(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(programs, "MOST", 2)
    own, found = rounds(monkeypatch, 1, 2, "engine.stack=4")
    _, expected = rounds(monkeypatch, sys.maxsize, 2, "engine.stack=4")
    assert len(recorded(own)) + len(own.site.trainer.programs.trials) == 2
    assert (found == expected).all()


def test_what_fails_when_played_is_shown_by_the_step_itself(monkeypatch: pytest.MonkeyPatch):
    """A label that no class has: the second try fails in the loss, not in what was recorded of it."""
    monkeypatch.setattr(programs, "PLAYED_AFTER", 1)
    own = Clients.of(tiny(*UNEVEN, "engine.stack=4"))
    own.rounds(1)
    assert all(recorded(own))
    own.site.stream.dataset.y[:] = 99
    with pytest.raises(AssertionError, match=r"out of bounds.*cross_entropy\.py"):
        own.visit(own.initial, [1, 3], round=2)


@pytest.mark.slow
def test_compiled_stacks_agree_within_roundings_and_with_themselves():
    """engine.compile is part of the arithmetic: within 1e-5 of what is not compiled, and the same bits each time."""
    settings = ("engine.stack=4", "client.method=derpp", MEMORY, "model.dtype=float32")
    compiled = [Clients.of(tiny(*UNEVEN, "engine.compile=true", *settings)) for _ in range(2)]
    first, second = (own.rounds(3) for own in compiled)
    plain = Clients.of(tiny(*UNEVEN, *settings)).rounds(3)
    assert any(recorded(compiled[0]))
    assert (first == second).all()
    assert 0 < np.abs(first - plain).max() < 1e-5


def test_auto_cuts_a_round_into_whole_stacks_of_nearly_equal_size():
    """Of an mlp 1,000 clients are 16 stacks of 63 in 8 cohorts, 100 are 2 of 50, 5 are 1; of a cnn 100 are 10 of 10."""
    found = {}
    for clients in (5, 100, 1000):
        items = f"stream.dataset={{name: synthetic, samples: {4 * clients}}}"
        settings = ("stream.tasks=1", items, f"stream.clients={clients}", "stream.partition=iid", "engine.device=cpu")
        engine = choice.resolve(tiny(*settings, "engine.cohort=auto", "engine.stack=auto"))[0].engine
        found[clients] = (engine.stack, engine.cohort)
    assert found == {5: (5, 5), 100: (50, 50), 1000: (63, 126)}
    images = ("stream.dataset=digits", "stream.partition=iid", "stream.clients=100", "engine.device=cpu")
    for width, batch, cohort, expected in (
        (16, 16, "auto", (10, 10)), (64, 16, "auto", (10, 10)), (64, 16, 6, (6, 6)), (64, 16, 60, (10, 60)),
        (96, 16, "auto", (1, 4)), (64, 32, "auto", (1, 4)),
    ):  # fmt: skip
        cnn = (f"model={{name: cnn, width: {width}}}", f"engine.cohort={cohort}", "engine.stack=auto")
        engine = choice.resolve(tiny(*images, *cnn, f"client.batch={batch}"))[0].engine
        assert (engine.stack, engine.cohort) == expected


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        ("{name: mlp, width: 5, depth: 2}", (4,), 4 * 5 + 5 * 5 + 5 * 3),
        # 8 x 8 places of 9 inputs, 4 x 4 of 2 * 9; 2 x 2 places of 4 channels; the hidden layer has 64 units.
        ("{name: cnn, width: 2}", (8, 8), 64 * 9 * 2 + 16 * 18 * 4 + 16 * 64 + 64 * 3),
    ],
)
def test_the_multiplications_of_a_sample_are_those_of_its_layers(model: str, shape: tuple[int, ...], expected: int):
    module = models.make(tiny(f"model={model}").model, shape, 3, 0)
    assert multiplications(module, shape) == expected


@pytest.mark.parametrize(
    ("asked", "stack", "workers", "kind"),
    [(128, 64, 2, "inline"), (129, 64, 2, "ray"), (8, 1, 2, "inline"), (9, 1, 2, "ray"), (1000, 1, 1, "inline")],
)
def test_auto_starts_workers_where_a_round_has_work_for_them(asked: int, stack: int, workers: int, kind: str):
    """Clients that are trained one by one, or whose samples are much work, have long steps: some are enough."""
    settings = ("engine.kind=auto", "engine.cohort=64", f"engine.stack={stack}", f"engine.workers={workers}")
    many = ("stream.clients=1000", "stream.dataset={name: synthetic, samples: 4000}", "stream.partition=iid")
    asking = tiny(
        "stream.tasks=1", *many, *settings, f"server.clients_per_round={asked}", "model={name: mlp, width: 64}"
    )
    assert choice.kind(asking) == kind
    assert choice.kind(replace(asking, engine=replace(asking.engine, address="10.0.0.1:6379"))) == "ray"
    large = replace(asking, model=replace(asking.model, width=6000))  # too much work for one process
    assert choice.kind(large) == ("ray" if asked > 8 and workers > 1 else "inline")
