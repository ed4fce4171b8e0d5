"""Answers: named views of one vector, what is refused, what is clipped, and what clients put into them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clients.answers import Trained, answer_rows, delta
from fedcl.answers import Answer, Layout, answer_layout, clip_rows, refusal

examples = settings(deadline=None, max_examples=60)
shapes = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=5)
leads = st.lists(st.integers(1, 3), max_size=2).map(tuple)
PARAMETERS = Layout((("body.weight", (2, 3)), ("head.bias", (2,))))


def layout_of(dims: list[tuple[int, ...]]) -> Layout:
    return Layout(tuple((f"t{number}", shape) for number, shape in enumerate(dims)))


@examples
@given(dims=shapes, lead=leads)
def test_views_and_flatten_are_inverse(dims: list[tuple[int, ...]], lead: tuple[int, ...]):
    """For any shapes, scalars and empty tensors among them, and any number of clients in front."""
    layout = layout_of(dims)
    assert layout.size == sum(math.prod(shape) for shape in dims)
    flat = torch.arange(math.prod(lead) * layout.size, dtype=torch.float64).view(*lead, layout.size)
    views = layout.views(flat)
    assert {name: tuple(view.shape) for name, view in views.items()} == {n: lead + shape for n, shape in layout.shapes}
    assert torch.equal(layout.flatten(views), flat)
    assert Layout.of(layout.views(torch.zeros(layout.size))) == layout


@examples
@given(dims=shapes)
def test_views_share_the_vectors_memory_and_cover_it_once(dims: list[tuple[int, ...]]):
    layout = layout_of(dims)
    flat = torch.zeros(layout.size)
    for view in layout.views(flat).values():
        view += 1
    assert (flat == 1).all()
    edges = [(where.start, where.stop) for where, _ in layout.slices.values()]
    assert [start for start, _ in edges] == [0, *(stop for _, stop in edges)][:-1]


def test_a_missing_tensor_is_an_error():
    with pytest.raises(KeyError, match=r"head\.bias"):
        PARAMETERS.flatten({"body.weight": torch.zeros(2, 3)})


def test_an_answer_is_read_by_name():
    layout = answer_layout(("delta",), PARAMETERS)
    assert [name for name, _ in layout.shapes] == ["delta/body.weight", "delta/head.bias", "weight"]
    assert layout.size == 9
    answer = Answer(layout, torch.arange(9.0))
    assert answer["weight"].item() == 8.0
    assert answer.under("delta")["body.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert answer.under("delta")["head.bias"].tolist() == [6, 7]
    assert answer_layout((), PARAMETERS).size == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("position", "name"), [(0, "delta/body.weight"), (7, "delta/head.bias"), (8, "weight")])
def test_numbers_that_are_not_finite_are_refused_by_name(bad: float, position: int, name: str):
    layout, flat = answer_layout(("delta",), PARAMETERS), torch.ones(9)
    assert refusal(layout, flat) is None
    flat[position] = bad
    assert refusal(layout, flat) == f"numbers that are not finite in {name}"


def test_answers_of_another_length_are_refused():
    layout = answer_layout(("delta",), PARAMETERS)
    for shape in ((8,), (10,), (0,), (1, 9)):
        assert refusal(layout, torch.ones(shape)) == f"the answer has shape {shape} instead of (9,)"


rows = st.lists(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3), min_size=1, max_size=4)


@examples
@given(values=rows, limit=st.floats(1e-3, 1e6))
def test_clipping_keeps_directions_and_bounds_norms(values: list[list[float]], limit: float):
    given_rows = torch.tensor(values, dtype=torch.float64)
    norms = given_rows.norm(dim=1)
    clipped = clip_rows(given_rows, limit)
    assert clipped.norm(dim=1).tolist() == pytest.approx(norms.clamp(max=limit).tolist(), rel=1e-12)
    for row, norm, found in zip(given_rows, norms, clipped, strict=True):
        if norm < limit * (1 - 1e-12):  # at the limit itself the factor may be 1 rounded down
            assert torch.equal(found, row)
        else:
            assert (found * norm - row * limit).abs().max() <= 1e-9 * norm * limit
    assert clip_rows(given_rows, None) is given_rows


def trained(
    after: Tensor, weights: list[float], max_norm: float | None = None, shared: Tensor | None = None
) -> Trained:
    return Trained(
        update=(after - torch.tensor([1.0, 2.0])) * (torch.ones(2) if shared is None else shared),
        weights=torch.tensor(weights),
        max_norm=max_norm,
    )


def test_delta_is_the_weighted_update_and_its_weight():
    after = torch.tensor([[4.0, 6.0], [1.0, 1.0]])  # updates (3, 4) and (0, -1)
    assert delta(trained(after, [2.0, 10.0])).tolist() == [[6, 8, 2], [0, -10, 10]]
    assert delta(trained(after, [1.0, 1.0], max_norm=2.5)).tolist() == [[1.5, 2.0, 1], [0, -1, 1]]


def test_personal_parameters_are_zero_and_do_not_count_for_the_norm():
    after, shared = torch.tensor([[4.0, 6.0]]), torch.tensor([1.0, 0.0])
    assert delta(trained(after, [2.0], shared=shared)).tolist() == [[6, 0, 2]]
    assert delta(trained(after, [2.0], max_norm=3.5, shared=shared)).tolist() == [[6, 0, 2]]


def test_rows_are_as_long_as_the_layout_says():
    found = answer_rows(("delta", "delta"), trained(torch.zeros(3, 2), [1.0, 1.0, 1.0]))
    assert found.shape == (3, answer_layout(("delta", "delta"), Layout((("w", (2,)),))).size)
