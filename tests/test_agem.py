"""A-GEM: the projected gradient by hand and in general, and whole visits against a loop in plain torch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from clients import methods
from clients.gradients.agem import AGEM, dot, without_conflict
from clients.losses import Draw
from clients.losses.cross_entropy import Replay
from fedcl.answers import Tensors
from fedcl.keys import Purpose, at, below, key
from fedcl.testing import check_reference
from tests.federations import Clients, tiny

examples = settings(deadline=None, max_examples=60)
NUMBERS = st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=5, max_size=5)


def named(values: list[float]) -> Tensors:
    """Return five numbers as a vector and a matrix in double precision."""
    flat = torch.tensor(values, dtype=torch.float64)
    return {"bias": flat[:1], "weight": flat[1:].view(2, 2)}


def test_by_hand():
    """g = (1, 0), g_ref = (-1, 1): product -1, square 2, so g + g_ref / 2 = (1/2, 1/2)."""
    found = without_conflict({"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([-1.0, 1.0])})
    assert found["w"].tolist() == [0.5, 0.5]


@examples
@given(NUMBERS, NUMBERS)
def test_nothing_points_against_the_reference(gradient: list[float], reference: list[float]):
    """Product with the reference >= 0 up to rounding; without conflict g to the bit; never longer than g."""
    g, r = named(gradient), named(reference)
    found = without_conflict(g, r)
    lengths = (float(dot(each, each).sqrt()) for each in (found, g, r))
    after, before, by = lengths
    if float(dot(g, r)) >= 0:
        assert all(torch.equal(found[name], g[name]) for name in g)
    else:
        assert abs(float(dot(found, r))) <= 1e-14 * before * by
    assert after <= before * (1 + 1e-14)


def test_the_product_is_over_all_parameters_at_once():
    """One tensor agrees and one conflicts: 3 - 1 > 0, so nothing is changed in either."""
    g = {"a": torch.tensor([3.0]), "b": torch.tensor([1.0])}
    found = without_conflict(g, {"a": torch.tensor([1.0]), "b": torch.tensor([-1.0])})
    assert (found["a"].item(), found["b"].item()) == (3.0, 1.0)


@pytest.mark.parametrize("value", [0.0, -1e-30])
def test_an_empty_or_vanishing_reference_changes_nothing(value: float):
    g = {"w": torch.ones(3)}
    assert torch.equal(without_conflict(g, {"w": torch.full((3,), value)})["w"], g["w"])


def test_stacked_is_one_by_one():
    """Under vmap each of 50 clients has its own product; about half of them conflict."""
    generator = torch.Generator().manual_seed(0)
    g, r = ({"w": torch.randn(50, 3, 4, generator=generator, dtype=torch.float64)} for _ in range(2))
    stacked = torch.vmap(without_conflict)(g, r)["w"]
    rows = [without_conflict({"w": g["w"][k]}, {"w": r["w"][k]})["w"] for k in range(50)]
    assert float((stacked - torch.stack(rows)).abs().max()) <= 1e-14
    changed = int((stacked != g["w"]).flatten(1).any(1).sum())
    assert changed == int(((g["w"] * r["w"]).flatten(1).sum(1) < 0).sum())
    assert 15 <= changed <= 35


def test_the_method_declares_its_reference():
    """The memory's cross-entropy is a reference and no loss term: it is drawn for, and not logged."""
    assert methods.AGEM().draws == (Draw(name="replay"),)
    assert list(methods.AGEM().terms()) == ["ce"]
    assert methods.AGEM().transforms() == (AGEM(),)
    assert AGEM().references == {"memory": Replay()}


# Whole visits


def flat(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([each.flatten() for each in gradients])


def plain_visit(own: Clients, module: torch.nn.Module, client: int, task: int, round: int) -> int:
    """Train a module on a visit with A-GEM from the client's newest memory; return how often it projected."""
    parameters, conflicts, step = list(module.parameters()), 0, 0
    remembered = own.record(client)["items"][: own.record(client)["count"]] if client in own.held else []
    for epoch in range(2):
        for items in np.split(own.shuffled(client, task, round, epoch), [5, 10]):
            x, y = own.shown(items)
            g = torch.autograd.grad(cross_entropy(module(x), y), parameters)
            if len(remembered):
                draws = at(key(0, Purpose.REPLAY, client, round, 0), 5 * step + np.arange(5))
                x, y = own.shown(remembered[below(draws, len(remembered))])
                r = torch.autograd.grad(cross_entropy(module(x), y), parameters)
                product, square = flat(g) @ flat(r), flat(r) @ flat(r)
                if product < 0:
                    g = tuple(a - product / square * b for a, b in zip(g, r, strict=True))
                    conflicts += 1
            with torch.no_grad():
                for parameter, gradient in zip(parameters, g, strict=True):
                    parameter -= 0.1 * gradient
            step += 1
    return conflicts


@pytest.mark.parametrize("stack", [1, 2])
def test_visits_are_the_published_loop(stack: int):
    """Two tasks of two clients: parameters within 1e-12 of a plain loop that projects at some steps, not at all."""
    base = ["model.dtype=float64", "client.epochs=2", "client.method=agem", "model.personal=['*']"]
    own = Clients.of(tiny(*base, f"engine.stack={stack}"))
    modules, conflicts = {client: own.model() for client in (0, 3)}, 0
    for round, task in enumerate((0, 1, 0), start=1):
        conflicts += sum(plain_visit(own, module, client, task, round) for client, module in modules.items())
        own.visit(own.initial, [0, 3], round=round, task=task, clock=round - 1)
        for client, module in modules.items():
            after = own.site.parameters.flatten(dict(module.named_parameters())).detach().numpy()
            assert np.abs(own.record(client)["personal"] - after).max() < 1e-12
    assert 0 < conflicts < 24  # of the 24 steps that had a memory


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_conformance():
    """The conformance tests of `fedcl check`: stacked, workers, kill and resume, memory's budget, padding."""
    found = check_reference("clients.methods:AGEM")
    assert len(found) == 5
    assert [each.problem for each in found] == [""] * 5
    assert not any("does not apply" in each.name for each in found)
