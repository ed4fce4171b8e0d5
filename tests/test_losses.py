"""Loss terms against closed forms: weighted rows, masked classes, remembered logits, distance to the global model."""

import math

import pytest
import torch
from torch import Tensor

from clients.losses import Anchors, Batch, Draw, Forward, Items
from clients.losses.cross_entropy import CrossEntropy, Replay, weighted
from clients.losses.dark import Dark
from clients.losses.proximal import Proximal
from fedcl.source import source
from tests.federations import Clients, tiny

NOTHING = Anchors({}, {})
INF = math.inf


def linear(w: Tensor) -> Forward:
    """Return the model x -> x w."""
    return Forward(lambda x: x @ w, {"w": w})


def items(
    x: Tensor, y: list[int], weight: list[float], mask: Tensor | None = None, logits: Tensor | None = None
) -> Items:
    rows = len(y)
    return Items(
        x,
        torch.tensor(y),
        torch.zeros(rows, 1, dtype=x.dtype) if mask is None else mask,
        torch.tensor(weight, dtype=x.dtype),
        x.new_zeros(rows, 0) if logits is None else logits,
    )


def doubles(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_cross_entropy_is_the_mean_over_the_real_rows():
    """Two real rows of weight 1/2, two padded rows of weight 0; logits are the inputs (w = I)."""
    x = doubles([0.0, math.log(3.0)], [math.log(2.0), 0.0], [5.0, -7.0], [1.0, 1.0])
    batch = Batch(items(x, [1, 1, 0, 0], [0.5, 0.5, 0.0, 0.0]), {})
    loss = CrossEntropy()(linear(torch.eye(2, dtype=torch.float64)), batch, NOTHING)
    assert loss.item() == pytest.approx(0.5 * (math.log(4 / 3) + math.log(3.0)), abs=1e-15)


def test_masked_classes_do_not_compete_and_get_no_gradient():
    """Class 2 has by far the largest logit and is masked: loss log(1 + e^-1), gradient (p0, p1 - 1, 0) x."""
    w = torch.tensor([[1.0, 2.0, 50.0]], dtype=torch.float64, requires_grad=True)
    mask = doubles([0.0, 0.0, -INF], [0.0, 0.0, 0.0])  # the second row is padding: its mask is lifted
    batch = items(doubles([1.0], [1.0]), [1, 2], [1.0, 0.0], mask)
    loss = weighted(linear(w), batch)
    (gradient,) = torch.autograd.grad(loss, w)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1.0)), abs=1e-15)
    p = 1 / (1 + math.e)
    assert gradient[0].tolist() == pytest.approx([p, -p, 0.0], abs=1e-15)


def test_padded_rows_of_a_masked_stream_are_finite():
    """In a task-incremental stream a padded row shows item 0, whose label its mask may exclude."""
    site = Clients.of(tiny("stream.kind=task-incremental", "model.dtype=float64")).site
    data = source(site.stream, "train", torch.float64, torch.device("cpu"))
    assert data.mask(torch.tensor([0, 1])).tolist() == [[0, 0, -INF, -INF], [-INF, -INF, 0, 0]]
    clients = Clients(site)
    reply = clients.visit(clients.initial, [0, 1], task=1, clock=2)  # 12 items in batches of 5: three padded rows
    assert torch.isfinite(torch.from_numpy(reply.total.copy())).all()
    head = site.answer.views(torch.from_numpy(reply.total.copy()))["delta/head.bias"]
    assert (head[:2] == 0).all()  # the classes of task 0 are masked: nothing moves them
    assert (head[2:] != 0).all()


def test_replay_is_beta_times_the_cross_entropy_of_its_own_draw():
    w, x = torch.eye(2, dtype=torch.float64), doubles([0.0, math.log(3.0)])
    nothing = items(doubles([9.0, 9.0]), [0], [1.0])
    for beta in (0.0, 0.5, 2.0):
        term = Replay(beta=beta)
        assert term.draws == (Draw(name="replay"),)
        loss = term(linear(w), Batch(nothing, {"replay": items(x, [0], [1.0])}), NOTHING)
        assert loss.item() == pytest.approx(beta * math.log(4.0), abs=1e-15)


@pytest.mark.parametrize("draw", ["replay", "dark"])
def test_an_empty_memory_costs_nothing(draw: str):
    w = torch.eye(2, dtype=torch.float64, requires_grad=True)
    empty = items(doubles([3.0, 4.0], [3.0, 4.0]), [0, 0], [0.0, 0.0], logits=torch.zeros(2, 2, dtype=torch.float64))
    loss = {"replay": Replay(), "dark": Dark()}[draw](linear(w), Batch(empty, {draw: empty}), NOTHING)
    assert loss.item() == 0.0
    assert torch.autograd.grad(loss, w)[0].abs().sum() == 0.0


def test_dark_is_the_mean_over_logits_of_the_squared_gap():
    """Gaps (1, -2, 0) and (0, 0, 3) with weights 3/4 and 1/4, a padded row: alpha (3/4 * 5/3 + 1/4 * 3)."""
    x = doubles([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [8.0, 8.0, 8.0])
    remembered = doubles([0.0, 2.0, 0.0], [0.0, 1.0, -3.0], [0.0, 0.0, 0.0])
    mask = doubles([0.0, -INF, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0])  # not looked at
    old = items(x, [0, 1, 2], [0.75, 0.25, 0.0], mask, remembered)
    for alpha in (0.1, 1.0):
        loss = Dark(alpha=alpha)(linear(torch.eye(3, dtype=torch.float64)), Batch(old, {"dark": old}), NOTHING)
        assert loss.item() == pytest.approx(alpha * (0.75 * 5 / 3 + 0.25 * 3), abs=1e-15)
    assert Dark().draws == (Draw(name="dark", logits=True),)


def test_proximal_is_half_mu_times_the_squared_distance_over_all_parameters():
    parameters = {"a": doubles([3.0, 0.0]).requires_grad_(), "b": doubles([1.0]).requires_grad_()}
    anchors = Anchors({"global": {"a": doubles([0.0, 4.0]), "b": doubles([1.0])}}, {})
    model = Forward(lambda x: x, parameters)
    loss = Proximal(mu=0.2)(model, Batch(items(doubles([1.0]), [0], [1.0]), {}), anchors)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    assert loss.item() == pytest.approx(0.1 * 25.0, abs=1e-15)
    assert gradients[0].tolist() == [pytest.approx([0.6, -0.8], abs=1e-15)]
    assert gradients[1].tolist() == [[0.0]]


def test_the_same_input_is_passed_through_the_model_once():
    calls: list[float] = []

    def call(x: Tensor) -> Tensor:
        calls.append(float(x.sum()))
        return 2 * x

    model, x = Forward(call, {}), torch.ones(3)
    assert model(x) is model(x)
    assert calls == [3.0]
    # An input that nobody else holds must not be mistaken for the next one at the same address.
    found = [float(model(torch.full((1,), float(value))).sum()) for value in range(20)]
    assert found == [2.0 * value for value in range(20)]
    assert len(calls) == 21
