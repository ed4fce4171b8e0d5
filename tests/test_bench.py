"""`fedcl bench`: everybody takes the same steps and comes to the same weights; figures are what they say. No timing."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from fedcl import api, config
from fedcl.bench import crew, launch, limit, loop, runner, spec, sums, tune, workloads
from fedcl.bench.machine import installed
from fedcl.bench.spec import Spec, Watch
from fedcl.bench.tune import Alternative
from fedcl.bench.work import Visit, Work, share, work_of
from fedcl.bench.workloads import Between, ManyDigits
from fedcl.cli import main
from fedcl.errors import ConfigError, FederationError

CLIENTS, ROUNDS = 8, 3
CASE = runner.Case(workload="mlp", clients=CLIENTS, registered=CLIENTS, rounds=ROUNDS, against="loop")


def prepared(folder: Path, workload: str, registered: int = CLIENTS) -> Spec:
    """Write the work of a toy federation; return what its processes are told."""
    work_of(workloads.scenario(workload, CLIENTS, registered, ROUNDS)).save(folder / "work.npz")
    return Spec(
        workload=workload, clients=CLIENTS, registered=registered, rounds=ROUNDS, workers=2, folder=str(folder),
        work=str(folder / "work.npz"),
    )  # fmt: skip


def run_fedcl(folder: Path, told: Spec) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Run fedcl itself; return its final weights and the events of its rounds."""
    import safetensors.numpy

    outcome = api.run(told.scenario, out=folder / "run")
    assert outcome.code == 0, outcome.error
    rounds = [event for event in api.load(folder / "run").events if event["event"] == "round"]
    return safetensors.numpy.load_file(folder / "run" / "model.safetensors"), rounds


# The data and the work.


def test_digits_are_drawn_and_enlarged_by_repeating_pixels() -> None:
    """28 x 28 pixels show the 8 x 8 ones again; the test items are those of the digits."""
    small, large = ManyDigits(samples=50).load(None), ManyDigits(samples=50, side=28).load(None)
    assert small.x.shape == (50, 8, 8)
    assert large.x.shape == (50, 28, 28)
    assert large.x.dtype == np.uint8
    assert (large.x[:, ::7, ::7] == small.x[:, ::2, ::2]).all()
    assert (large.y == small.y).all()


def test_everyone_has_between_low_and_high_items() -> None:
    """Sizes are in the range, at both ends of it sometimes, and what is left over is nobody's."""
    owner = Between(low=4, high=6).assign(np.zeros(1000, np.int64), 100, np.random.default_rng(0))
    sizes = np.bincount(owner[owner >= 0], minlength=100)
    assert set(sizes.tolist()) == {4, 5, 6}
    with pytest.raises(ConfigError, match=r"stream\.partition\.high = 60: 100 clients want \d+ items, there are 1000"):
        Between().assign(np.zeros(1000, np.int64), 100, np.random.default_rng(0))


@pytest.mark.parametrize("registered", [CLIENTS, 40])
def test_the_work_is_what_fedcl_trains(tmp_path: Path, registered: int) -> None:
    """Clients, updates and steps of every round are those of its events; the loop over it comes to its weights."""
    told = prepared(tmp_path, "mlp", registered)
    work = told.loaded()
    weights, events = run_fedcl(tmp_path, told)
    assert [[visit.client for visit in each] for each in work.rounds] == [event["clients"] for event in events]
    assert work.updates == [event["updates"] for event in events] == [CLIENTS] * ROUNDS
    assert [sum(len(visit.steps) for visit in each) for each in work.rounds] == [event["steps"] for event in events]
    assert all(40 <= visit.n <= 60 for each in work.rounds for visit in each)
    looped = loop.run(told, Watch(None))
    assert looped.weights.keys() == weights.keys()
    for name, each in weights.items():
        np.testing.assert_allclose(looped.weights[name], each, atol=1e-6)
        assert np.abs(each - work.weights[name]).max() > 1e-3  # something was learnt


def test_the_work_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Weights, data and every step."""
    work = work_of(workloads.scenario("derpp", CLIENTS, CLIENTS, ROUNDS))
    work.save(tmp_path / "work.npz")
    again = Work.load(tmp_path / "work.npz")
    assert work.weights.keys() == again.weights.keys()
    assert (work.x == again.x).all()
    assert (work.y == again.y).all()
    assert (work.scale, work.updates, work.samples) == (again.scale, again.updates, again.samples)
    for one, other in zip(sum(work.rounds, ()), sum(again.rounds, ()), strict=True):
        assert (one.client, len(one.steps), one.replayed) == (other.client, len(other.steps), other.replayed)
        assert (one.items == other.items).all()


def test_replayed_samples_count_once_a_client_has_a_memory() -> None:
    """DER++ draws two batches of 16 a step from the second visit on."""
    first, second, _ = work_of(workloads.scenario("derpp", CLIENTS, CLIENTS, ROUNDS)).rounds
    assert all(visit.replayed == 0 for visit in first)
    assert all(visit.replayed == 32 * len(visit.steps) for visit in second)


def test_shares_are_the_whole_round() -> None:
    """Each visit is in one share."""
    visits = [Visit(client=client, steps=(np.arange(3),)) for client in range(5)]
    assert [[each.client for each in share(visits, part, 2)] for part in range(2)] == [[0, 2, 4], [1, 3]]


# The comparators.


def test_a_step_by_hand_is_that_of_autograd() -> None:
    """Three clients at once, one of them with a smaller batch, in float64."""
    rng = torch.Generator().manual_seed(0)
    shapes = ((3, 5, 4), (3, 1, 5), (3, 2, 5), (3, 1, 2))
    weights = [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]
    x, y = torch.randn(3, 6, 4, generator=rng, dtype=torch.float64), torch.randint(0, 2, (3, 6), generator=rng)
    real = torch.ones(3, 6, dtype=torch.float64)
    real[1, 4:] = 0
    expected = []
    for client in range(3):
        own = [each[client].clone().requires_grad_() for each in weights]
        n = int(real[client].sum())
        logits = (x[client, :n] @ own[0].T + own[1]).relu() @ own[2].T + own[3]
        gradients = torch.autograd.grad(cross_entropy(logits, y[client, :n]), own)
        expected.append([each.detach() - 0.1 * slope for each, slope in zip(own, gradients, strict=True)])
    target = torch.nn.functional.one_hot(y, 2).double()
    limit.step(*weights, x, target, (real / real.sum(1, keepdim=True))[..., None], 0.1)  # type: ignore[arg-type,misc]
    for client, own in enumerate(expected):
        for each, wanted in zip(weights, own, strict=True):
            torch.testing.assert_close(each[client], wanted)


@pytest.mark.parametrize("workload", ["mlp", "cnn"])
def test_the_limit_comes_to_the_weights_of_the_loop(tmp_path: Path, workload: str) -> None:
    """Alone and with its shares added up."""
    told = prepared(tmp_path, workload)
    weights = crew.flat(told.loaded().weights)
    wanted = crew.made(loop.SHARE, told, 0, 1)(0, weights)
    parts = [crew.made(f"{limit.__name__}:share", told, part, 2)(0, weights) for part in range(2)]
    np.testing.assert_allclose(sum(parts), wanted, atol=0.005)  # sums over 8 clients of n, about 50, times an update
    assert np.abs(wanted).max() > 0.1


def test_both_servers_add_up_to_the_weighted_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sum of n times update over the sum of n, on the first weights."""
    monkeypatch.setattr(workloads, "MILLION", 20)
    told = prepared(tmp_path, "sums")
    work = told.loaded()
    flat, n = crew.flat(work.weights), np.array([visit.n for visit in work.rounds[0]])
    assert len(flat) == 65 * 20 + 21 * 10
    wanted = flat + np.average(np.stack(sums.updates(flat)[:CLIENTS]), axis=0, weights=n)
    for run in (sums.run, sums.run_flower):
        watch = Watch(None)
        found = run(told, watch)
        np.testing.assert_allclose(crew.flat(dict(found.weights)), wanted, atol=1e-6)
        assert (found.updates, len(watch.marks)) == ([CLIENTS] * ROUNDS, ROUNDS)
    assert np.abs(wanted - flat).max() > 1e-3


# What is asked for.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--workload", "mpl"), "unknown; did you mean 'mlp'?"),
        (("--against", "flwer"), "unknown; did you mean 'flower'?"),
        (("--workload", "derpp", "--against", "flower"), "not compared; mlp: flower, pfl, loop, loop2, limit;"),
        (("--against", "flower,finetune"), "no workload has all of them; mlp: flower"),
        (("--clients", "many"), "must be numbers with commas between them"),
        (("--clients", "1"), "must be numbers of at least 2"),
        (("--rounds", "2"), "must be more than the 2 warm ones"),
        (("--workload", "mlp", "--against", "loop", "--pairs", "0"), "must be at least 1"),
        (("--workload", "mlp", "--against", "loop", "client.epoch=2"), "did you mean 'epochs'?"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    words: Sequence[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2, the nearest choice, no traceback."""
    assert main(["bench", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("fedcl: ")
    assert said in error
    assert "\n" not in error


def test_a_missing_rival_is_refused_by_name_and_else_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence says how to install it."""
    monkeypatch.setattr(runner, "installed", lambda package: None)
    with pytest.raises(ConfigError, match=r"pip install 'fedcl-flower\[bench\]'"):
        runner.cases(["mlp"], [8], ["pfl"], None, ())
    assert [case.against for case in runner.cases(["mlp"], [8], [], None, ())] == ["flower", "loop", "loop2", "limit"]


def test_cases_are_all_workloads_with_all_of_their_rivals() -> None:
    """One for each number of clients; the population has its own."""
    found = runner.cases([], [100, 1000], ["loop"], 7, ("seed=1",))
    assert [(case.workload, case.clients, case.rounds) for case in found] == [
        (name, n, 7) for name in ("mlp", "cnn") for n in (100, 1000)
    ]
    assert {case.overrides for case in found} == {("seed=1",)}
    (population,) = runner.cases(["registered"], [8], [], None, ())
    assert (population.clients, population.registered, population.against) == (100, 10_000, "flower")
    assert workloads.scenario("registered", 100, 10_000, 3).stream.clients == 10_000


# What comes out.


def told_of(seconds: list[float], **more: Any) -> dict[str, Any]:
    """Return what a process tells, in part."""
    memory = {"process": 10, "below": [7, 5]}
    return {"seconds": seconds, "start_seconds": 1.0, "first_round_seconds": seconds[0], "memory": memory, **more}


def test_figures_are_of_the_pairs_and_leave_the_warm_rounds_out() -> None:
    """By hand: 8 updates in the one round that counts, in 2 and 4 seconds, then in 1 and 8."""
    work = work_of(workloads.scenario("mlp", CLIENTS, CLIENTS, ROUNDS))
    found = runner.result(
        CASE, work, [(told_of([9, 9, 2]), told_of([5, 9, 4])), (told_of([7, 9, 1]), told_of([6, 9, 8]))]
    )
    assert found["ratio"] == {"min": 2, "median": 5, "max": 8}
    assert found["updates_per_second"]["fedcl"] == {"min": 4, "median": 6, "max": 8}
    assert found["updates_per_second"]["other"] == {"min": 1, "median": 1.5, "max": 2}
    assert found["first_round_seconds"]["other"]["median"] == 5.5
    assert found["memory"]["fedcl"] == {"process": 10, "below": 7, "together": 22}


def test_replay_is_measured_by_samples() -> None:
    """In the same time, DER++ gets more samples done than plain training by what it replays."""
    work = work_of(workloads.scenario("derpp", CLIENTS, CLIENTS, ROUNDS))
    case = replace(CASE, workload="derpp", against="finetune")
    found = runner.result(case, work, [(told_of([1, 1, 2]), told_of([1, 1, 2]))])
    last = work.rounds[-1]
    fresh, steps = sum(visit.n for visit in last), sum(len(visit.steps) for visit in last)
    assert found["unit"] == "samples"
    assert found["ratio"]["median"] == pytest.approx((fresh + 32 * steps) / fresh)
    assert found["samples_per_second"]["other"]["median"] == fresh / 2


def test_projection_is_measured_between_the_ends_of_tasks() -> None:
    """Tasks of 3 rounds: after two warm ones 4, 5, 7, 8 are ordinary, 3, 6 and 9 of 9 end a task; all are if all do."""
    assert workloads.counted("fot", 9) == ([3, 4, 6, 7], [2, 5, 8])
    assert workloads.counted("fot", 3) == ([2], [2])
    assert workloads.counted("mlp", 4) == ([2, 3], [])
    work = work_of(workloads.scenario("fot", CLIENTS, CLIENTS, 9))
    case = replace(CASE, workload="fot", against="fedavg", rounds=9)
    ours, theirs = [9, 9, 7, 1, 1, 5, 1, 1, 6], [9, 9, 2, 2, 2, 2, 2, 2, 2]
    found = runner.result(case, work, [(told_of(ours), told_of(theirs))])
    assert found["ratio"]["median"] == 2.0
    assert found["updates_per_second"]["fedcl"]["median"] == 8.0
    assert found["task_end_seconds"]["fedcl"]["median"] == 6


def test_other_weights_are_refused(tmp_path: Path) -> None:
    """A thousandth apart is not rounding, and neither is no number."""
    files = []
    for number, value in enumerate((1.0, 1.001, 1.00001, np.nan)):
        files.append({"weights": str(tmp_path / f"{number}.npz")})
        np.savez(files[-1]["weights"], w=np.array([0.0, value]))
    assert runner.agreement(CASE, files[0], files[2]) == pytest.approx(1e-5)
    for other in (files[1], files[3]):
        with pytest.raises(FederationError, match=r"final weights differ by .* after 2 rounds"):
            runner.agreement(CASE, files[0], other)


def test_who_does_less_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round with a missing update is no round."""
    monkeypatch.setattr(runner, "launch", lambda name, spec: {"updates": [CLIENTS, CLIENTS - 1]})
    with pytest.raises(FederationError, match="fedcl aggregated 15 client updates of 16"):
        runner.compare(CASE, 1, lambda text: None)


def test_a_process_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    """Here: there is no work."""
    told = Spec(
        workload="mlp", clients=8, registered=8, rounds=3, workers=1, folder=str(tmp_path / "a"),
        work=str(tmp_path / "none.npz"),
    )  # fmt: skip
    with pytest.raises(FederationError, match=r"loop has failed \(exit 1\): FileNotFoundError: .*none\.npz"):
        launch.launch("loop", told)


SPREAD = {"min", "median", "max"}


def compared(folder: Path, *words: str) -> list[dict[str, Any]]:
    """Run the real command at toy size; check the shape of what it writes and return the results."""
    out = folder / "figures.json"
    toy = ("--clients", str(CLIENTS), "--rounds", str(ROUNDS), "--pairs", "1", "--out", str(out))
    assert main(["bench", *words, *toy]) == 0
    written = json.loads(out.read_text())
    assert {"cores", "cpu", "python", "torch", "flwr", "ray", "pfl", "environment", "date"} <= written["machine"].keys()
    assert written["machine"]["environment"] == spec.ENVIRONMENT
    for each in written["results"]:
        assert (each["clients"], each["registered"], each["rounds"], each["pairs"]) == (CLIENTS, CLIENTS, ROUNDS, 1)
        assert each["ratio"].keys() == SPREAD
        for name in ("updates_per_second", "samples_per_second", "start_seconds", "first_round_seconds"):
            assert each[name].keys() == {"fedcl", "other"}
            assert all(figures.keys() == SPREAD and figures["min"] > 0 for figures in each[name].values())
        assert all(figures["process"] > 1_000_000 for figures in each["memory"].values())
    results: list[dict[str, Any]] = written["results"]
    return results


def test_the_command_compares(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """fedcl, the loop and the limit, each in its own process, come to the same weights; a table says what was found."""
    results = compared(tmp_path, "--workload", "mlp", "--against", "loop,limit")
    assert [each["against"] for each in results] == ["loop", "limit"]
    assert all(0 <= each["max_weight_difference"] <= 1e-5 for each in results)
    assert "limit" in capfd.readouterr().out


@pytest.mark.nightly
@pytest.mark.parametrize(("workload", "against"), [("derpp", "finetune"), ("fot", "fedavg")])
def test_methods_are_compared_with_fedcl_without_them(tmp_path: Path, workload: str, against: str) -> None:
    """Weights are not compared: they are meant to differ."""
    (result,) = compared(tmp_path, "--workload", workload)
    assert (result["against"], result["max_weight_difference"]) == (against, None)


@pytest.mark.nightly
@pytest.mark.parametrize("workload", ["mlp", "cnn"])
@pytest.mark.parametrize("against", ["flower", "pfl", "loop2"])
def test_rivals_come_to_the_same_weights(tmp_path: Path, workload: str, against: str) -> None:
    """Every rival with each model."""
    if against == "pfl" and installed("pfl") is None:
        pytest.skip("pfl is not installed: pip install 'fedcl-flower[bench]'")
    (result,) = compared(tmp_path, "--workload", workload, "--against", against)
    assert 0 <= result["max_weight_difference"] <= 1e-4


# Tuning.


def test_every_stack_that_a_round_fills_is_tried_and_auto_comes_first() -> None:
    scenario = config.load("scale-synthetic", ["stream.clients=40", "server.clients_per_round=20", "engine.workers=2"])
    tried = tune.alternatives(scenario)
    assert tried[0] == Alternative("inline", 20)
    assert tried[1:] == [Alternative(kind, stack) for kind in ("inline", "ray") for stack in (1, 8, 16)]
    alone = config.load("scale-synthetic", ["stream.clients=8", "server.clients_per_round=8", "engine.workers=1"])
    assert tune.alternatives(alone) == [Alternative("inline", 8), Alternative("inline", 1)]


def test_the_line_is_that_of_the_fastest_by_the_median() -> None:
    """Medians 150, 200 and 190: auto reaches .75 of the fastest."""
    rates = {
        Alternative("inline", 8): [100.0, 200.0],
        Alternative("inline", 1): [190.0, 210.0],
        Alternative("ray", 1): [80.0, 300.0],
    }
    said = tune.told(rates, Alternative("inline", 8))
    assert "inline                  8  100-200 (auto)" in said
    assert "inline                  1  190-210 (fastest)" in said
    assert said.endswith("auto reaches 0.75 of the fastest; for the scenario:\nengine: {kind: inline, stack: 1}")
    assert config.load("scale-synthetic", [tune.line(Alternative("ray", 16)).replace(": ", "=", 1)]).engine.stack == 16


def test_too_few_rounds_and_unknown_scenarios_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--tune", "scale-synthetic", "--rounds", "3"]) == 2
    assert "--rounds 3: must be at least 4" in capsys.readouterr().err
    assert main(["bench", "--tune", "scale-sintetic"]) == 2
    assert "scale-synthetic" in capsys.readouterr().err


@pytest.mark.slow
def test_tuning_prints_a_line_that_the_scenario_takes(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["stream.clients=2", "server.clients_per_round=2", "stream.dataset.samples=200", "engine.workers=1"]
    assert main(["bench", "--tune", "scale-synthetic", "--rounds", "4", *small]) == 0
    last = capsys.readouterr().out.rstrip().splitlines()[-1]
    assert last in ("engine: {kind: inline, stack: 1}", "engine: {kind: inline, stack: 2}")
