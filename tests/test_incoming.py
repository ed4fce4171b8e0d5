"""What a server shares with an order: a node takes what the server method declares, and nothing else."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from clients.incoming import problem
from clients.site import Site, site
from fedcl import registry
from fedcl.answers import Layout, Tensors
from fedcl.embedding import fingerprint
from fedcl.forms import Form, declared, is_orthonormal, misnamed
from fedcl.orders import Array, ConsolidateOrder, EvaluateOrder, TrainOrder
from fedcl.world import as_text
from server.methods.fedavg import FedAvg
from tests.federations import tiny
from tests.nodes import SECRET
from tests.test_policy import order

EVERYONE = np.arange(4)
HOOKS = ("shared", "task_shared", "classifier")
PAIRS = {
    "fedavg": "server.method=fedavg",
    "fedewc": "client.method=fedewc; server.method=fedewc",
    "fedlwf": "client.method=fedlwf; server.method=fedlwf",
    "scaffold": "client.method=scaffold; server.method=scaffold; server.weights=uniform",
    "fot": "server.method={name: fot, project_bias: true}",
    "prototypes": "client.method=frozen; server.method={name: prototypes, missions: true}",
    "analytic": "client.method=frozen; server.method={name: analytic, width: 3, draw: 5}",
}


def here(method: str) -> Site:
    return site(as_text(tiny(*PAIRS[method].split("; "))), SECRET)


def sent(method: str, hook: str) -> dict[str, Array]:
    """Return what a method's hook sends in the middle of a run."""
    at = here(method)
    own, weights = at.scenario.server.method, at.parameters.views(torch.ones(at.parameters.size))
    state: Tensors = own.enrolled(own.begin(weights), 4)
    for task in (0, 1):
        state, _ = own.begin_task(state, weights, [task])
    if method == "fedewc":
        state |= {name: each + 1 for name, each in state.items() if name.startswith("sum/")}
    if method == "fot":
        for name, each in state.items():
            if name.startswith("basis/"):
                state[name] = torch.linalg.qr(torch.randn(len(each), 2, generator=torch.manual_seed(0)))[0]
    if method in ("prototypes", "analytic"):
        state |= {"count": torch.ones(4, dtype=torch.float64), "fingerprint": fingerprint(weights)}
    if method == "analytic":
        state |= {"head": torch.ones(3, 4, dtype=torch.float64)}
    found = own.classifier(state, weights) if hook == "classifier" else getattr(own, hook)(state)
    return {name: each.numpy() for name, each in found.items()}


def said(method: str, hook: str, tensors: dict[str, Array]) -> str | None:
    """Return what a node says to an order that brings these tensors as those of a hook."""
    at, statistics = here(method), list(here(method).scenario.server.method.task_answers)
    if hook == "classifier":
        asked: Any = replace(order(EvaluateOrder), classifier=tensors)
    elif hook == "shared" or method == "fot":
        riding = statistics if hook == "task_shared" else []
        asked = replace(order(TrainOrder), shared=tensors, statistics=["delta", *riding])
    else:
        asked = replace(order(ConsolidateOrder), shared=tensors, statistics=statistics)
    weights = np.ones(at.parameters.size, np.float32)
    return problem(at, replace(asked, weights=weights), EVERYONE)


SENDS = {
    ("fedewc", "shared"), ("fedlwf", "shared"), ("scaffold", "shared"), ("fot", "task_shared"),
    ("prototypes", "task_shared"), ("prototypes", "classifier"), ("analytic", "classifier"),
}  # fmt: skip


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("method", PAIRS)
def test_what_a_method_sends_is_taken(method: str, hook: str) -> None:
    """Whatever its own hooks give; and nothing at all, as at the beginning. Anything beside it is refused by name."""
    tensors = sent(method, hook)
    assert bool(tensors) == ((method, hook) in SENDS)
    if hook != "task_shared" or here(method).scenario.server.method.task_answers:
        assert said(method, hook, tensors) is None
        assert said(method, hook, {}) is None
        key = "classifier" if hook == "classifier" else "shared"
        sentence = str(said(method, hook, {**tensors, "more": np.zeros(3, np.float32)}))
        assert sentence.startswith(f"{key}.more: this server method sends {'nothing' if not tensors else ''}")


def test_every_method_of_fedcl_declares_what_it_sends() -> None:
    for name in registry.BUILT_IN["server_methods"]:
        method = registry.find("server_methods", name)()
        assert [hook for hook in HOOKS if not declared(method, hook)] == []


def with_(name: str, change: Any) -> Any:
    return lambda tensors: {**tensors, name: change(tensors[name])}


def without(name: str) -> Any:
    return lambda tensors: {other: each for other, each in tensors.items() if other != name}


def at(place: Any, value: Any) -> Any:
    def changed(array: Array) -> Array:
        array = array.copy()
        array[place] = value
        return array

    return changed


BASIS = "basis/body.1.weight"
FALSE: list[tuple[str, str, Any, str]] = [
    ("fedlwf", "shared", with_("lwf.known", lambda _: np.array([2])), "shared.lwf.known: holds numbers above 1"),
    ("fedlwf", "shared", with_("lwf.known", lambda _: np.array([-1])), "shared.lwf.known: holds numbers below 0"),
    ("fedlwf", "shared", with_("lwf.known", lambda _: np.array([0, 0])), "shared.lwf.known: holds a number twice"),
    ("fedlwf", "shared", with_("lwf.known", lambda _: np.array([0.0])), "float64 of shape (1,) where int64 of shape ("),
    ("fedlwf", "shared", with_("lwf.known", lambda _: np.array([[0]])), "int64 of shape (1, 1) where int64 of shape"),
    ("fedlwf", "shared", without("lwf.known"), "shared.lwf.known: is missing beside the others"),
    ("fedlwf", "shared", with_("lwf.teacher/head.bias", lambda a: a[:1]), "lwf.teacher/head.bias: float32 of shape (1"),
    ("fedewc", "shared", with_("ewc.fisher/head.bias", at(0, -1)), "ewc.fisher/head.bias: holds numbers below 0"),
    ("fedewc", "shared", without("ewc.theta/head.bias"), "shared.ewc.theta/head.bias: is missing"),
    ("scaffold", "shared", with_("scaffold.control/head.bias", lambda a: a.astype(np.float64)), "float64 of shape"),
    ("scaffold", "shared", with_("scaffold.control/head.bias", at(0, np.nan)), "holds numbers that are not finite"),
    ("fot", "task_shared", with_(BASIS, lambda a: 2 * a), f"shared.{BASIS}: its columns are not orthonormal"),
    ("fot", "task_shared", with_(BASIS, lambda a: a[:, [0, 0]]), f"shared.{BASIS}: its columns are not orthonormal"),
    ("fot", "task_shared", with_(BASIS, lambda a: 1e30 * a), f"shared.{BASIS}: its columns are not orthonormal"),
    ("fot", "task_shared", with_(BASIS, lambda a: a[1:]), f"shared.{BASIS}: float32 of shape"),
    ("prototypes", "task_shared", with_("count", at(0, -1)), "shared.count: holds numbers below 0"),
    ("prototypes", "task_shared", with_("count", at(0, 0.5)), "shared.count: holds numbers that are not whole"),
    ("prototypes", "task_shared", without("count"), "shared.count: is missing beside the others"),
    ("prototypes", "classifier", with_("seen", lambda a: a.astype(np.int64)), "classifier.seen: int64 of shape (4,"),
    ("prototypes", "classifier", with_("prototypes", lambda a: a.T), "classifier.prototypes: float64 of shape (6, 4)"),
    ("prototypes", "classifier", without("seen"), "classifier.seen: is missing"),
    ("analytic", "classifier", with_("random", at(1, 10**9)), "classifier.random: is [5, 1000000000], not [5, 3] as t"),
    ("analytic", "classifier", with_("ridge", lambda a: a[:, :1]), "classifier.ridge: float64 of shape (3, 1) where"),
    ("analytic", "classifier", lambda _: {"odd": np.zeros(1)}, "classifier.odd: this server method sends ridge, seen,"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(FALSE)))
def test_what_a_method_cannot_send_is_refused_by_its_key(number: int) -> None:
    method, hook, change, expected = FALSE[number]
    assert expected in str(said(method, hook, change(sent(method, hook))))


def test_bases_go_with_what_asks_for_them_alone() -> None:
    """A training order without sketches brings none, though the method may send them with others."""
    assert "this server method sends nothing" in str(said("fot", "shared", sent("fot", "task_shared")))


# Methods of other packages.


@dataclass(frozen=True, kw_only=True)
class Mine(FedAvg):
    """Sends something and does not say in which form."""

    def shared(self, state: Tensors) -> Tensors:
        return {"mine": torch.zeros(3)}


@dataclass(frozen=True, kw_only=True)
class Says(Mine):
    """Says it for its base."""

    def shared_forms(self, parameters: Layout, tasks: int) -> dict[str, Form]:
        return {"mine": Form(shape=(3,))}


@dataclass(frozen=True, kw_only=True)
class Again(Says):
    """Sends something else than its base, and does not say so."""

    def shared(self, state: Tensors) -> Tensors:
        return {"yours": torch.zeros(5)}


def test_forms_count_where_they_are_said_for_what_is_sent() -> None:
    assert [declared(each(), "shared") for each in (FedAvg, Mine, Says, Again)] == [True, False, True, False]
    assert declared(Mine(), "classifier")
    assert not declared(object(), "shared")


def test_a_method_that_says_nothing_is_held_to_size_and_finite_numbers() -> None:
    """And to tasks that there are, where a client looks them up."""
    asked = tiny("server.method={name: 'tests.test_incoming:Mine'}")
    at = site(as_text(asked), SECRET)

    def told(**shared: Array) -> str | None:
        tensors = {name.replace("__", "."): each for name, each in shared.items()}
        return problem(at, replace(order(scenario=asked), shared=tensors), EVERYONE)

    assert told(mine=np.zeros(3), odd=np.ones((2, 2), np.int64), lwf__known=np.array([1, 0])) is None
    assert told(mine=np.array([np.inf])) == "shared.mine: holds numbers that are not finite"
    assert told(lwf__known=np.array([2])) == "shared.lwf.known: holds numbers above 1"
    assert told(lwf__known=np.array([-1])) == "shared.lwf.known: holds numbers below 0"
    assert "float64 of shape (1,) where int64" in str(told(lwf__known=np.array([0.5])))


# Forms.


def test_columns_are_orthonormal_within_rounding() -> None:
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 12)))[0].astype(np.float32)
    assert is_orthonormal(basis)
    assert is_orthonormal(basis[:, :0])
    assert not is_orthonormal(basis.T)  # more columns than rows
    assert not is_orthonormal(basis + np.float32(0.01))


def test_a_hook_sends_nothing_or_all_that_is_not_optional() -> None:
    one, two, rest = Form(shape=()), Form(shape=()), Form(shape=(), optional=True)
    hooks = [{"a": one, "b": two}, {"c": one, "d": rest}]
    zero = np.zeros(())
    for names in ("", "ab", "c", "abcd", "abc", "cd"):
        assert misnamed(dict.fromkeys(names, zero), hooks) is None
    assert str(misnamed({"a": zero}, hooks)).startswith("b: is missing")
    assert str(misnamed({"d": zero}, hooks)).startswith("c: is missing")
    assert misnamed({"e": zero}, hooks) == "e: this server method sends a, b, c, d"
    assert misnamed({"e": zero}, []) == "e: this server method sends nothing"
