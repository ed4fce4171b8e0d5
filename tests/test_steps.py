"""Server methods of one's own: steps that do not fit the weights, and declarations that nothing reads, are refused."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedcl import api, declarations, registry, testing
from fedcl.answers import Answer, Tensors
from fedcl.contradictions import notes
from fedcl.errors import ConfigError, FederationError
from fedcl.models import ModelSettings
from server.methods import ServerMethod
from server.methods.fedavg import FedAvg, average
from server.steps import fitting
from tests.federations import tiny

WEIGHTS = {"a": torch.zeros(2, 3), "b": torch.zeros(3)}
BENT = {
    "mean": lambda step: {name: each.mean(0) for name, each in step.items()},  # broadcasts
    "number": lambda step: dict.fromkeys(step, torch.ones(())),
    "rows": lambda step: {name: each[None] for name, each in step.items()},
    "double": lambda step: {name: each.double() for name, each in step.items()},
    "missing": lambda step: {name: each for name, each in step.items() if name != "head.bias"},
    "renamed": lambda step: {f"{name}s": each for name, each in step.items()},
    "more": lambda step: {**step, "extra": torch.ones(2)},
    "arrays": lambda step: {name: each.numpy() for name, each in step.items()},
    "list": lambda step: list(step.values()),
}  # fmt: skip
WORDS = {
    "mean": r"'body\.1\.weight' is \(\d+,\) torch\.float32: must be \(6, 5\) torch\.float32", "number": r"is \(\) ",
    "rows": r"is \(1, 6, 5\) ", "double": r"is \(6, 5\) torch\.float64: must be", "missing": r"without 'head\.bias'",
    "renamed": r"without 'body\.1\.weight'; did you mean 'body\.1\.weights'", "arrays": "is ndarray: must be",
    "more": "with 'extra', which no parameter is called", "list": "that is a list: must be a dict",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Bent(FedAvg):
    """FedAvg that bends what one of its hooks returns."""

    hook: str = "end_round"
    how: str = "mean"

    def _bent(self, hook: str, tensors: Tensors) -> Any:
        return BENT[self.how](tensors) if hook == self.hook else tensors

    def end_round(self, state: Tensors, weights: Tensors, total: Answer) -> tuple[Tensors, Tensors]:
        return state, self._bent("end_round", average(total))

    def project(self, state: Tensors, step: Tensors) -> Tensors:
        return self._bent("project", step)

    def begin_task(self, state: Tensors, weights: Tensors, began: Sequence[int]) -> tuple[Tensors, Tensors]:
        return state, self._bent("begin_task", weights)

    def end_task(
        self, state: Tensors, weights: Tensors, total: Answer | None, ended: Sequence[int]
    ) -> tuple[Tensors, Tensors]:
        return state, self._bent("end_task", weights)


@pytest.mark.parametrize(
    ("how", "hook"),
    [*((how, "end_round") for how in BENT), *(("mean", hook) for hook in ("project", "begin_task", "end_task"))],
)
def test_what_does_not_fit_the_weights_ends_a_run_in_one_sentence(how: str, hook: str, tmp_path: Path) -> None:
    """By name, shape and dtype, whichever hook returns it; nothing is broadcast."""
    method = f"server.method={{name: 'tests.test_steps:Bent', how: {how}, hook: {hook}}}"
    with pytest.raises(
        FederationError, match=rf"server\.method = 'tests\.test_steps:Bent': {hook} returns .*{WORDS[how]}"
    ):
        api.run(tiny(method), out=tmp_path / "run")


@given(st.lists(st.integers(0, 4), max_size=3), st.sampled_from([torch.float32, torch.float64]))
def test_only_the_very_shape_and_dtype_fit(shape: list[int], dtype: torch.dtype) -> None:
    """Every shape that could be broadcast onto (2, 3) is refused but (2, 3) itself."""
    step = {"a": torch.zeros(shape, dtype=dtype), "b": torch.zeros(3)}
    if shape == [2, 3] and dtype == torch.float32:
        assert fitting(step, WEIGHTS, "x") is step
    else:
        with pytest.raises(FederationError, match="whose 'a' is"):
            fitting(step, WEIGHTS, "x")


@pytest.mark.slow
def test_fedcl_check_finds_a_step_of_the_wrong_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fedcl check` used to pass it: the step was broadcast in every run alike."""
    found = testing.check_reference("tests.test_steps:Bent")
    assert "end_round returns a step whose" in found[0].problem


# Declarations


@dataclass(frozen=True, kw_only=True)
class Gathering(FedAvg):
    """Hopes to be given every client's answer apart."""

    reduce = "gather"


@dataclass(frozen=True, kw_only=True)
class Mistyped(FedAvg):
    """Means `offers`."""

    offer: ClassVar[tuple[str, ...]] = ("x",)


@dataclass(frozen=True, kw_only=True)
class Someone(FedAvg):
    """Asks nobody that there is."""

    participants = "anyone"


@dataclass(frozen=True, kw_only=True)
class Unknown(FedAvg):
    """Asks for what nobody measures."""

    answers: ClassVar[tuple[str, ...]] = ("delta", "gradient")


@dataclass(frozen=True, kw_only=True)
class Deep(ModelSettings):
    """A model that declares something."""

    layers = 3

    def build(self, shape: tuple[int, ...], classes: int) -> Any:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Sound(FedAvg):
    """Everything that is allowed: declarations of ours, settings, methods, _names and CAPITALS."""

    participants = "all"
    SCALE = 3
    _own = "x"
    depth: int = 2

    def helper(self) -> int:
        return self.depth

    @property
    def twice(self) -> int:
        return 2 * self.depth


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (
            "Gathering",
            "declares reduce = 'gather', which nothing reads; "
            "known: afresh, answers, offers, participants, shares, when",
        ),
        ("Mistyped", r"declares offer = \('x',\), which nothing reads; did you mean 'offers'\?"),
        ("Someone", "declares participants = 'anyone': must be one of 'round', 'all'"),
    ],
)
def test_declarations_that_nothing_reads_are_refused_when_a_scenario_is_read(name: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=rf"server\.method = 'tests\.test_steps:{name}': {problem}"):
        tiny(f"server.method='tests.test_steps:{name}'")
    with pytest.raises(ConfigError, match=problem):  # as `fedcl check` reads it
        testing.check_reference(f"tests.test_steps:{name}")


def test_parts_of_every_kind_are_looked_at() -> None:
    with pytest.raises(
        ConfigError, match=r"model = 'tests\.test_steps:Deep': declares layers = 3, which nothing reads"
    ):
        tiny("model='tests.test_steps:Deep'")
    assert list(declarations.problems(Sound)) == []


@pytest.mark.parametrize("kind", registry.BUILT_IN)
def test_shipped_parts_declare_what_is_read(kind: str) -> None:
    """As if they were somebody else's: nothing that they declare is unknown to their contract."""
    for name in registry.BUILT_IN[kind]:
        cls = registry.find(kind, name)
        other = type(cls.__name__, (cls,), {"__module__": "theirs", "__doc__": cls.__doc__})
        assert list(declarations.problems(other)) == []


def test_an_unknown_statistic_is_refused_before_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="asks clients for an unknown statistic 'gradient'"):
        api.run(tiny("server.method='tests.test_steps:Unknown'"), out=tmp_path / "run")
    assert issubclass(Unknown, ServerMethod)


# Notes on what is read


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["server.method=fot"], "heads = 'shared' and stream.kind = 'class-incremental'"),
        (["server.method={name: fot, heads: per-task}"], ""),
        (["server.method=fot", "stream.kind=task-incremental"], ""),
        (["server.method=fot", "stream.kind=domain-incremental"], ""),
        (["client.method={name: fedprox, mu: 50}"], r"client.method.mu = 50: above 20 steps"),
        (["client.method={name: fedprox, mu: 10}"], ""),
        ([], ""),
    ],
)
def test_what_will_hardly_do_what_its_user_wants_is_noted(overrides: list[str], words: str) -> None:
    found = " ".join(notes(tiny(*overrides)))
    assert words in found
    assert bool(found) is bool(words)
