"""Prototypes: the mean feature of each class, whoever has the data, whenever it comes, whoever fails meanwhile."""

import random
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedcl import api, config
from fedcl.answers import LAYOUTS, Answer, Layout, Tensors
from fedcl.classifiers import nearest
from fedcl.config import Scenario
from fedcl.embedding import body, fingerprint
from fedcl.errors import ConfigError
from fedcl.predict import predict
from server.methods.prototypes import Prototypes
from tests.federations import Clients, hashes, journal, run, tiny
from tests.frozen import COMMON, Failing, answers, federations, learnt, marks, pooled, site_of, tree, weights_of
from tests.test_resume import StopAt, killed_and_resumed, scenario_file

METHOD = "server.method=prototypes"
SLOW = [HealthCheck.too_slow]
WEIGHTS = {"body.w": torch.tensor([1.0]), "head.weight": torch.zeros(2, 1), "head.bias": torch.zeros(2)}


def means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the mean feature of each class (classes, f); 0 for a class without samples."""
    member = torch.nn.functional.one_hot(labels, classes).double()
    return member.T @ features / member.sum(0).clamp(min=1)[:, None]


def assert_centralised(scenario: Scenario, folder: Path, weights: Tensors | None = None) -> None:
    """What the server holds is what all data at once gives: counts exactly, prototypes within 1e-6."""
    features, labels = pooled(site_of(scenario), weights)
    state = learnt(folder)
    classes = len(state["count"])
    assert torch.equal(state["count"], labels.bincount(minlength=classes).double())
    found = Prototypes().made(state)
    assert (found["prototypes"] - means(features, labels, classes)).abs().max() < 1e-6
    assert torch.equal(found["seen"], state["count"] > 0)


# Federated = centralised


def test_any_federation_has_the_prototypes_of_all_data_at_once() -> None:
    """Any split, order, revisit, cohorts, 30 % sampling; a client absent until the end, answers lost and refused."""
    met: Counter[str] = Counter()

    @given(federations(METHOD))
    @settings(max_examples=15, deadline=None, suppress_health_check=SLOW)
    def check(drawn: tuple[Scenario, Failing]) -> None:
        scenario, failing = drawn
        with TemporaryDirectory() as folder, failing:
            run(scenario, Path(folder))
            assert_centralised(scenario, Path(folder))
        met.update(failing.met)

    check()
    assert min(met[kind] for kind in ("absent", "lost", "broken", "miscounted", "moved")) > 0


@given(st.randoms(use_true_random=False), st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_any_tree_of_sums_gives_the_same_prototypes(draws: random.Random, left: int) -> None:
    """Twelve answers added two at a time in any order, then taken in one to six parts at task ends."""
    site = site_of(tiny(*COMMON, METHOD))
    method, weights = site.scenario.server.method, dict(site.trainer.module.named_parameters())
    state = method.begin(weights)
    for part in tree(draws.randrange, answers(site), left):
        assert method.task_problem(weights, part) is None
        state, _ = method.end_task(state, weights, part, [])
    features, labels = pooled(site)
    assert (method.made(state)["prototypes"] - means(features, labels, 6)).abs().max() < 1e-12


def sums_of(values: list[float], weights: Tensors = WEIGHTS) -> Answer:
    """Return the answer of a client with one feature and samples of class 0 at these values."""
    n = len(values)
    parts = {"sum": torch.tensor([[sum(values)], [0.0]]), "count": torch.tensor([n, 0.0])}
    layout = LAYOUTS["class_sums"](Layout.of(weights), Prototypes())
    named = {f"class_sums/{name}": each.double() for name, each in parts.items()}
    return Answer(layout, layout.flatten({**named, "class_sums/fingerprint": marks(weights, n)}))


def test_thirty_at_zero_then_thirty_at_one_give_a_half() -> None:
    """The published merge, a running mean with the new count alone, would give .25."""
    method = Prototypes()
    state = method.begin(WEIGHTS)
    for values in ([0.0] * 30, [1.0] * 30):
        state, _ = method.end_task(state, WEIGHTS, sums_of(values), [0])
    assert method.classifier(state, WEIGHTS)["prototypes"][0].item() == 0.5
    assert state["count"].tolist() == [60, 0]


def test_accuracy_is_that_of_the_nearest_class_mean(tmp_path: Path) -> None:
    """The run's accuracy on every task's test items is the one computed by hand from all training data."""
    scenario = tiny(*COMMON, METHOD)
    results = run(scenario, tmp_path)
    site = site_of(scenario)
    features, labels = pooled(site)
    expected = []
    for task, items in enumerate(site.stream.central):
        shown = torch.from_numpy(items)
        there = site.trainer.module.features(site.test.inputs(shown, torch.full_like(shown, task))).detach()
        distances = (there[:, None] - means(features, labels, 6)[None]).square().sum(2)
        expected.append((distances.argmin(1) == site.test.y[shown]).double().mean().item())
    assert results["accuracy_matrix"][-1] == pytest.approx(expected, abs=1e-12)
    assert results["metrics"]["acc"] > 1 / 3  # twice what guessing gives


def test_predictions_for_files_are_the_class_means_too(tmp_path: Path) -> None:
    """A run leaves its classifier beside the model, and `predict` uses it; a run of FedAvg leaves none."""
    run(tiny(*COMMON, METHOD), tmp_path / "run")
    found = api.load(tmp_path / "run")
    stream, classifier = found.stream(), found.classifier()
    assert torch.equal(classifier["prototypes"], Prototypes().made(learnt(tmp_path / "run"))["prototypes"])
    given = list(predict(found.model(), stream, stream.dataset.test_x, classifier=classifier))
    right = [each.label == stream.dataset.test_y[each.row] for each in given]
    assert sum(right) / 60 == pytest.approx(found.results["metrics"]["acc"], abs=1e-12)  # 20 test items a task
    run(tiny("server.method=fedavg"), tmp_path / "fedavg")
    assert api.load(tmp_path / "fedavg").classifier() == {}


def test_a_class_without_samples_is_never_predicted() -> None:
    scores = nearest(torch.tensor([[0.1, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([False, True]))
    assert scores[0, 0] == -torch.inf
    assert scores[0, 1].item() == pytest.approx(-(2.9**2), rel=1e-6)


# The embedding


def test_a_frozen_client_changes_nothing_at_all() -> None:
    """With momentum and weight decay: the update is exactly zero, and every sample is still counted in its weight."""
    optimizer = "client.optimizer={name: sgd, lr: 0.5, momentum: 0.9, weight_decay: 0.1, keep: true}"
    own = Clients.of(tiny("client.method=frozen", optimizer))
    reply = own.visit(own.initial, [0, 1, 2, 3])
    assert (reply.total[:-1] == 0).all()
    assert reply.total[-1] == own.site.stream.train.count[:, 0].sum()
    assert [name for name in reply.table if name.startswith("loss/")] == []
    assert (reply.table["norm"] == 0).all()


def test_fingerprints_see_every_bit_of_the_body_and_nothing_of_the_head() -> None:
    moved = {**WEIGHTS, "body.w": torch.tensor([1.0 + 2**-23])}
    assert not torch.equal(fingerprint(moved), fingerprint(WEIGHTS))
    assert torch.equal(fingerprint({**WEIGHTS, "head.bias": torch.ones(2)}), fingerprint(WEIGHTS))
    assert (fingerprint(WEIGHTS) < 2**24).all()
    assert list(body(WEIGHTS)) == ["body.w"]


def test_sums_of_another_embedding_are_refused() -> None:
    """Alone, and mixed into a sum of right ones: the words of the fingerprint add up to something else."""
    moved = {**WEIGHTS, "body.w": torch.tensor([1.5])}
    right, wrong = sums_of([1.0, 2.0]), sums_of([3.0], moved)
    mixed = Answer(right.layout, right.flat + wrong.flat)
    assert Prototypes().task_problem(WEIGHTS, right) is None
    assert "another embedding" in str(Prototypes().task_problem(WEIGHTS, wrong))
    assert "another embedding" in str(Prototypes().task_problem(WEIGHTS, mixed))


def test_sums_of_an_earlier_embedding_are_dropped_and_asked_for_again() -> None:
    method, moved = Prototypes(base_rounds=None), {**WEIGHTS, "body.w": torch.tensor([1.5])}
    state, _ = method.end_task(method.begin(WEIGHTS), WEIGHTS, sums_of([7.0, 9.0]), [0])
    assert method.asks(state, WEIGHTS) == "due"
    assert method.asks(state, moved) == "everything"
    assert method.classifier(state, moved) == {}
    state, _ = method.end_task(state, moved, sums_of([1.0], moved), [0])
    assert method.classifier(state, moved)["prototypes"][0].item() == 1.0
    assert state["count"].tolist() == [1, 0]
    assert method.classifier(state, WEIGHTS) == {}


def test_an_embedding_that_never_freezes_has_the_prototypes_of_its_last_weights() -> None:
    """Trained on to the end with failing clients: whatever was sent before is sent anew, every sample counts once."""
    met: Counter[str] = Counter()

    @given(federations("server.method={name: prototypes, base_rounds: null}", "client.method=finetune"))
    @settings(max_examples=6, deadline=None, suppress_health_check=SLOW)
    def check(drawn: tuple[Scenario, Failing]) -> None:
        scenario, failing = drawn
        with TemporaryDirectory() as folder, failing:
            run(scenario, Path(folder))
            assert_centralised(scenario, Path(folder), weights_of(Path(folder)))
        met.update(failing.met)

    check()
    assert met["absent"] > 0


BASE = ("client.method=finetune", "server.optimizer={name: fedavgm, lr: 0.7, momentum: 0.5}", "evaluate.every=1")


def test_the_embedding_freezes_after_the_base_rounds(tmp_path: Path) -> None:
    """Three rounds of six: their weights are those of three rounds of FedAvg to the bit, whatever momentum is left.

    The first task ends in round 2; its sums are asked for in round 3, when the embedding is frozen.
    """
    scenario = tiny(*COMMON, *BASE, "server.method={name: prototypes, base_rounds: 3}")
    run(scenario, tmp_path / "run")
    short = tiny(*COMMON, *BASE, "server.method=fedavg", "stream.schedule.rounds=3")
    run(short, tmp_path / "short")
    found = weights_of(tmp_path / "run")
    assert all(torch.equal(each, found[name]) for name, each in weights_of(tmp_path / "short").items())
    assert_centralised(scenario, tmp_path / "run", found)
    events = [event for event in journal(tmp_path / "run") if event["event"] == "consolidation"]
    assert [(event["round"], event["clients"]) for event in events] == [(3, 4), (4, 4), (6, 4)]


def test_bodies_of_ones_own_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.personal = \['\*'\]: method 'prototypes' adds up features"):
        tiny(METHOD, "model.personal=['*']")
    assert tiny(METHOD, "model.personal=[head]").model.personal == ["head"]


# Given features


def test_given_weights_are_where_a_run_starts(tmp_path: Path) -> None:
    """The body of a trained model, kept by a frozen run to the bit; a head of another shape is drawn anew."""
    run(tiny("client.method=finetune"), tmp_path / "trained")
    file = tmp_path / "trained" / "model.safetensors"
    scenario = tiny(METHOD, "client.method=frozen", f"model.weights={file}", "stream.dataset.classes=6")
    run(scenario, tmp_path / "run")
    found, before = weights_of(tmp_path / "run"), weights_of(tmp_path / "trained")
    assert all(torch.equal(each, found[name]) for name, each in body(before).items())
    drawn = dict(site_of(scenario).trainer.module.named_parameters())
    assert torch.equal(found["head.weight"], drawn["head.weight"])
    assert_centralised(scenario, tmp_path / "run", found)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.width=7", r"parameter 'body\.1\.weight' has shape \(6, 5\) where the model has \(7, 5\)"),
        ("model.depth=2", r"has no parameter 'body\.3\.weight'"),
        ("model.weights=nowhere.safetensors", "is not there"),
    ],
)
def test_weights_that_do_not_fit_are_refused(override: str, said: str, tmp_path: Path) -> None:
    run(tiny("client.method=finetune"), tmp_path / "trained")
    file = tmp_path / "trained" / "model.safetensors"
    with pytest.raises(ConfigError, match=rf"model\.weights = .*{said}"):
        api.run(tiny(f"model.weights={file}", override), out=tmp_path / "run")


# The frame


ENGINE = tiny(*COMMON, *BASE, "server.method={name: prototypes, base_rounds: 3}", "checkpoint.seconds=0")


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_ray_workers_give_the_bits_of_one_process(workers: int, tmp_path: Path) -> None:
    expected = run(ENGINE, tmp_path / "inline")
    plain = config.as_dict(ENGINE)
    plain["engine"] |= {"kind": "ray", "workers": workers}
    found = run(config.load(plain), tmp_path / "ray")
    assert hashes(found) == hashes(expected)
    assert journal(tmp_path / "ray") == journal(tmp_path / "inline")


def test_a_killed_run_ends_like_one_left_alone(tmp_path: Path) -> None:
    expected = run(ENGINE, tmp_path / "straight")
    killed_and_resumed(tmp_path / "run", scenario_file(tmp_path, ENGINE), [2.2, 4.4])
    assert hashes(api.load(tmp_path / "run").results) == hashes(expected)
    assert journal(tmp_path / "run") == journal(tmp_path / "straight")


def test_who_is_still_awaited_is_not_forgotten_over_a_stop(tmp_path: Path) -> None:
    """Stopped while a client is absent since the first task's end: after the resume it is asked, and counted once."""
    scenario = tiny(*COMMON, METHOD, "checkpoint.seconds=0")
    with Failing(seed=1, until=6, absent=2):
        expected = run(scenario, tmp_path / "straight")
        outcome = api.run(scenario, out=tmp_path / "run", listeners=[StopAt("round", 3)], check=False)
        assert outcome.code == 75
        assert hashes(api.resume(tmp_path / "run").results) == hashes(expected)
    assert_centralised(scenario, tmp_path / "run")


@pytest.mark.parametrize("name", ["prototype-digits", "analytic-digits"])
def test_time_plays_no_part_in_the_shipped_scenarios(name: str, tmp_path: Path) -> None:
    """Own orders, own lengths and a sample of the clients end with the accuracy of the synchronous federation."""
    found = [run(config.load(each, ["engine.kind=inline"]), tmp_path / each) for each in (name, f"{name}-async")]
    assert found[0]["metrics"]["acc"] == pytest.approx(found[1]["metrics"]["acc"], abs=1e-12)
    assert found[0]["metrics"]["acc"] > 0.9
    assert (weights_of(tmp_path / name)["head.bias"] == weights_of(tmp_path / f"{name}-async")["head.bias"]).all()
