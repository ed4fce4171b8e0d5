"""What a model does, whatever it is made of: samples do not see each other, calls repeat, frozen parameters stay."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from clients import trainer
from clients.losses import Anchors, Batch, Forward, Term
from clients.methods import ClientMethod
from clients.trainer import Stepwise
from fedcl import api, registry, testing
from fedcl.errors import ConfigError
from fedcl.fingerprint import fingerprint
from fedcl.models import ModelSettings, fixed, make, trained
from fedcl.models.conv import CNN, Conv4, ResNet18
from fedcl.source import Source
from fedcl.world import as_text
from tests.federations import Clients, hashes, run, tiny
from tests.frozen import weights_of
from tests.own_models import Frozen, With, Words

SOUND = [With(layer="layer-norm"), With(layer="instance-norm"), With(layer="attention"), Words()]


@pytest.mark.parametrize("settings", SOUND, ids=repr)
def test_models_whose_samples_do_not_see_each_other_are_taken(settings: ModelSettings) -> None:
    before = torch.get_rng_state()
    make(settings, (5,), 3, seed=0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("layer", "problem"),
    [
        ("batch-norm", "gives a sample other outputs beside other samples .* use nn.GroupNorm"),
        ("centred", "gives a sample other outputs beside other samples of its batch, and batches are padded"),
        ("draws", "gives other outputs in every call: draws of its own cannot be repeated; use nn.Dropout"),
    ],
)
def test_models_are_refused_for_what_they_do(layer: str, problem: str) -> None:
    """Batch norm without running statistics has no buffer that would give it away, a norm of one's own no name."""
    with pytest.raises(ConfigError, match=f"model With: {problem}"):
        make(With(layer=layer), (5,), 3, seed=0)


def test_a_model_that_cannot_take_its_inputs_is_refused_before_a_run() -> None:
    with pytest.raises(ConfigError, match=r"model Words: fails on inputs of shape \(5, 2\)"):
        make(Words(), (5, 2), 3, seed=0)


@pytest.mark.parametrize("settings", [CNN(), Conv4(), ResNet18()], ids=repr)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_with_their_channels_first_are_refused(settings: ModelSettings, channels: int) -> None:
    with pytest.raises(ConfigError, match=rf"\({channels}, 32, 32\) have their channels first.*\(32, 32, {channels}\)"):
        make(settings, (channels, 32, 32), 3, seed=0)


# Padded rows

SETTINGS = {
    "er": [], "derpp": [], "agem": [], "ewc": [], "si": [], "lwf": [], "gpm": [], "prototypical": [], "fedprox": [],
    "fedewc": ["server.method=fedewc"], "fedlwf": ["server.method=fedlwf"],
    "scaffold": ["server.method=scaffold", "server.weights=uniform"],
}  # fmt: skip


@pytest.mark.parametrize("method", registry.BUILT_IN["client_methods"])
@pytest.mark.parametrize("stack", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_what_a_padded_row_shows_reaches_no_result(method: str, stack: int, tmp_path: Path) -> None:
    """Clients of 3 to 17 items, batches of 5, memories that are not full, four rounds: the same three hashes.

    In the second run padded rows show other inputs, labels and logits to the losses.
    """
    found = []
    sizes = "stream.partition={kind: 'tests.federations:Uneven', sizes: [3, 17, 8]}"
    settings = (f"client.method={method}", f"engine.stack={stack}", "engine.cohort=3", "client.memory.size=20", sizes)
    for other in (0.0, 1.0):
        with testing.padded_otherwise(other):
            found.append(hashes(run(tiny(*settings, *SETTINGS.get(method, [])), tmp_path / str(other))))
    assert found[0] == found[1]


@dataclass(frozen=True, kw_only=True)
class Unweighted:
    """A loss that takes the mean over all rows, padded ones too."""

    draws = ()

    def __call__(self, model: Forward, batch: Batch, anchors: Anchors) -> torch.Tensor:
        return cross_entropy(model(batch.now.x) + batch.now.mask, batch.now.y)


@dataclass(frozen=True, kw_only=True)
class Careless(ClientMethod):
    """Training with such a loss."""

    def terms(self) -> dict[str, Term]:
        return {"ce": Unweighted()}


def test_fedcl_check_finds_a_loss_that_padded_rows_reach(tmp_path: Path) -> None:
    """Its author's mistake shows as a sentence; plain training passes."""
    with pytest.raises(AssertionError, match="the rows that pad a batch change the result: weigh each sample"):
        testing.padding_changes_nothing(testing.scenario_with("tests.test_behaviour:Careless"), tmp_path / "careless")
    testing.padding_changes_nothing(testing.scenario_with("clients.methods:Finetune"), tmp_path / "finetune")


def test_padded_rows_show_a_clients_own_items() -> None:
    """Not item 0 of the data set, which may be somebody else's."""
    own = Clients.of(tiny("client.batch=5", "stream.partition={kind: 'tests.federations:Uneven', sizes: [0, 17, 8]}"))
    shown, feed = list[torch.Tensor](), Stepwise.feed
    cell = set(own.site.stream.train.cell(1, 0).tolist())
    assert 0 not in cell

    def spy(self: Stepwise, k: int, steps: range, data: Source) -> list[Any]:
        shown.append(self.items)
        return feed(self, k, steps, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Stepwise, "feed", spy)
        own.visit(own.initial, [1])
    assert set(shown[0].flatten().tolist()) <= cell


# Parameters that do not train

FROZEN = "model={name: 'tests.own_models:Frozen', dtype: float64}"


def test_frozen_parameters_are_no_part_of_what_is_exchanged() -> None:
    module = make(Frozen(), (5,), 4, seed=0)
    assert list(trained(module)) == ["head.weight", "head.bias"]
    assert list(fixed(module)) == ["body.1.weight", "body.1.bias"]
    own = Clients.of(tiny(FROZEN))
    assert own.site.parameters.size == 6 * 4 + 4
    assert own.visit(own.initial, [0, 1]).total.shape == (6 * 4 + 4 + 1,)
    with pytest.raises(ConfigError, match="no parameter trains"):
        make(Frozen(prefix=""), (5,), 4, seed=0)


@pytest.mark.parametrize(
    "method",
    ["derpp", "gpm", *(pytest.param(each, marks=pytest.mark.slow) for each in ("er", "agem", "ewc", "si", "lwf"))],
)
def test_a_frozen_body_trains_its_head_alone(method: str, tmp_path: Path) -> None:
    """Every method, Adam with weight decay, alone and stacked: the body is that of the seed, the model can be read."""
    adam = "client.optimizer={name: adam, lr: 0.01, weight_decay: 0.01}"
    found = {}
    for stack in (1, 2):
        outcome = api.run(
            tiny(FROZEN, f"client.method={method}", adam, f"engine.stack={stack}"), out=tmp_path / str(stack)
        )
        found[stack] = weights_of(tmp_path / str(stack))
        assert list(found[stack]) == ["head.bias", "head.weight"]
        model, fresh = outcome.model(), make(Frozen(dtype="float64"), (5,), 4, seed=0)
        assert all(torch.equal(each, fixed(fresh)[name]) for name, each in fixed(model).items())
        assert torch.equal(trained(model)["head.weight"], found[stack]["head.weight"])
        assert not torch.equal(trained(model)["head.weight"], trained(fresh)["head.weight"])
    assert max(float((found[1][name] - each).abs().max()) for name, each in found[2].items()) < 1e-9


@pytest.mark.parametrize("method", ["prototypes", "analytic", "fot", "fedewc"])
def test_server_methods_know_what_does_not_train(method: str, tmp_path: Path) -> None:
    """A frozen body is one embedding for all: its class sums are taken, and the fingerprints agree."""
    client = {"prototypes": "frozen", "analytic": "frozen", "fedewc": "fedewc"}.get(method, "finetune")
    settings = (FROZEN, f"server.method={method}", f"client.method={client}")
    outcome = api.run(tiny(*settings), out=tmp_path / "run")
    assert outcome.results["status"] == "finished"
    assert [event for event in outcome.events if event["event"] == "client_error"] == []
    assert np.isfinite(outcome.metrics["acc"] or 0)


def test_a_weights_file_with_another_frozen_part_is_refused(tmp_path: Path) -> None:
    """The file is read by the server alone: nobody else would have its body."""
    api.run(tiny("model={name: 'tests.own_models:Frozen', prefix: nothing, dtype: float64}"), out=tmp_path / "run")
    file = tmp_path / "run" / "model.safetensors"
    with pytest.raises(
        ConfigError, match=r"model\.weights = .*'body\.1\.weight' does not train .* let the model's build"
    ):
        api.run(tiny(FROZEN, f"model.weights={file}"), out=tmp_path / "other")


def test_frozen_parts_that_differ_between_nodes_are_found() -> None:
    """They never travel, so the fingerprint that server and node compare is of their numbers too."""
    text, build = as_text(tiny(FROZEN)), Frozen.build
    made = fingerprint.__wrapped__(text)
    assert made == fingerprint.__wrapped__(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Frozen, "build", lambda self, *given: build(replace(self, scale=2.0), *given))
        assert fingerprint.__wrapped__(text) != made
