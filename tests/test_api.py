"""What a Python program calls: run, resume, sweep, load, and what they return."""

import json
import os
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedcl
from clients import programs
from clients.methods import ER
from fedcl import config
from fedcl.config import Plain
from tests.federations import TINY, tiny
from tests.test_failures import CauseAfter
from tests.test_resume import StopAt


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> fedcl.Result:
    return fedcl.run(tiny(), out=tmp_path_factory.mktemp("runs") / "run")


# What is run.


@pytest.mark.parametrize(
    "overrides",
    [
        {"client": {"method": "er", "memory": {"size": 7}}, "seed": 3},
        {"client.method": "er", "client.memory.size": 7, "seed": 3},
        {"client.method": {"name": "er"}, "client.memory": {"size": np.int64(7)}, "seed": np.int32(3)},
    ],
)
def test_keywords_are_the_overrides_of_the_command_line(overrides: Plain) -> None:
    expected = config.load(TINY, ["client.method=er", "client.memory.size=7", "seed=3"])
    assert config.load(TINY, overrides) == expected


@pytest.mark.parametrize("value", [0.25, np.float64(0.25), np.float32(0.25)])
def test_numbers_may_be_those_of_numpy(value: Any) -> None:
    assert config.load(TINY, {"client.optimizer.lr": value}).client.optimizer.lr == 0.25


def test_a_scenario_is_a_name_a_path_plain_values_or_a_scenario(tmp_path: Path) -> None:
    """The same settings in four forms give the same weights."""
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(TINY))  # JSON is YAML
    forms = [str(path), path, TINY, config.load(TINY)]
    found = [fedcl.run(each, out=tmp_path / str(i), seed=4, client={"epochs": 2}) for i, each in enumerate(forms)]
    assert len({each.results["weights_sha256"] for each in found}) == 1
    assert {(each.config.seed, each.config.client.epochs) for each in found} == {(4, 2)}
    short = {"stream.tasks": 1, "stream.schedule.rounds_per_task": 1, "engine.kind": "inline"}
    named = fedcl.run("split-digits", out=str(tmp_path / "named"), **short)
    assert (named.config.name, named.results["cost"]["rounds"]) == ("split-digits", 1)


def test_a_group_of_settings_comes_first(tmp_path: Path) -> None:
    joint = fedcl.run(TINY, out=tmp_path / "joint", group="joint", seed=1)
    assert joint.config.stream.joint
    with pytest.raises(fedcl.FederationError, match="no accuracy matrix: joint training has no task ends"):
        _ = joint.matrix
    assert joint.metrics["forgetting"] is None
    assert joint.metrics["acc"] is not None


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            {"client__method": "er"},
            r"client__method = 'er': .* dots: \*\*\{'client.method': ...\}, .* client=\{'method'",
        ),
        ({"method": "er"}, r"unknown key 'method' \(= 'er'\); did you mean 'client.method'\?"),
        ({"client.method": "err"}, r"unknown client method 'err'; did you mean 'er'\?"),
        ({"client": "er"}, r"client = 'er': must be a block of named settings"),
        ({"seed": -1}, r"seed = -1: must be at least 0"),
        ({"seed": object}, r"seed = <class 'object'>"),
        ({"": 1}, r"'' = 1: must be a setting's key"),
        ({"client..batch": 1}, r"'client..batch' = 1: must be a setting's key"),
        ({"group": "jont"}, r"group = 'jont': unknown; did you mean 'joint'\?"),
    ],
)
def test_a_wrong_keyword_is_one_sentence_and_nothing_is_written(overrides: Plain, said: str, tmp_path: Path) -> None:
    with pytest.raises(fedcl.ConfigError, match=said) as caught:
        fedcl.run(TINY, out=tmp_path / "run", **overrides)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(fedcl.ConfigError) as caught:
        fedcl.sweep({"scenario": "split-digits", "seeds": 1}, out=tmp_path / "sweep", **overrides)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sweep").exists()


@dataclass(frozen=True, kw_only=True)
class Mine(ER):
    """A client method that its program has made itself."""


def test_a_part_may_be_an_object(tmp_path: Path) -> None:
    """It is written into config.yaml by its import string, and gives what ER gives."""
    own = fedcl.run(TINY, out=tmp_path / "own", client={"method": Mine()})
    assert own.config.client.method == Mine()
    assert own.results["weights_sha256"] == fedcl.run(TINY, out=tmp_path / "er", client={"method": "er"}).results[
        "weights_sha256"
    ]  # fmt: skip


# What comes of it.


def test_a_result_has_the_figures_of_results_json(finished: fedcl.Result) -> None:
    told = json.loads((finished.directory / "results.json").read_text())
    assert (finished.code, finished.status, finished.error) == (0, "finished", "")
    assert finished.results == told
    assert finished.metrics == told["metrics"]
    assert finished.matrix.tolist() == told["accuracy_matrix"]
    assert (finished.matrix.shape, finished.tasks) == ((2, 2), [0, 1])
    assert finished.metrics["acc"] == pytest.approx(finished.matrix[-1].mean(), abs=1e-12)
    own = finished.clients["acc"]
    assert sorted(own) == [0, 1, 2, 3]
    assert np.mean(list(own.values())) == pytest.approx(told["clients"]["acc"]["mean"], abs=1e-12)
    assert finished.events[-1]["event"] == "end"


def test_load_gives_the_same_and_the_trained_model(finished: fedcl.Result) -> None:
    import torch

    loaded = fedcl.load(str(finished.directory))
    assert isinstance(loaded, fedcl.Result)
    assert (loaded.code, loaded.status) == (None, "finished")
    assert loaded.results == finished.results
    data = loaded.stream().dataset
    with torch.no_grad():
        right = loaded.model()(torch.from_numpy(data.test_x) * data.scale + data.shift).argmax(1).numpy() == data.test_y
    assert right.mean() == pytest.approx(np.average(loaded.matrix[-1], weights=[24, 24]), abs=1e-9)


def test_a_plot_shows_both_charts_and_needs_nothing_from_elsewhere(finished: fedcl.Result, tmp_path: Path) -> None:
    figure = finished.plot()
    page = figure.save(tmp_path / "new" / "run.html").read_text()
    assert page == figure.page
    assert page.count("<svg") == 2
    assert re.findall(r"<h3>(.*?)</h3>", page) == ["Accuracy matrix", "Accuracy over rounds"]
    assert f"{100 * finished.matrix[-1, 0]:.0f}" in page
    assert not re.search(r"<script|src=|href=|url\(|@import", page)
    shown = figure._repr_html_()
    assert shown.startswith("<iframe ")
    assert "<svg" not in shown  # the page stands in an attribute, escaped
    assert "&lt;svg" in shown


def test_a_chart_that_cannot_be_drawn_is_left_out(tmp_path: Path) -> None:
    """Joint training has no accuracy matrix; a run that failed in its first round has nothing at all."""
    assert fedcl.run(TINY, out=tmp_path / "joint", group="joint").plot().page.count("<svg") == 1
    failed = fedcl.run(TINY, out=tmp_path / "failed", check=False, **{"client.optimizer.lr": 1e30})
    assert (failed.code, failed.status) == (3, "diverged")
    with pytest.raises(fedcl.FederationError, match=r"nothing to draw of .*: .* was evaluated less than twice"):
        failed.plot()


# How it can end.


def fragile(cause: Path) -> Any:
    return tiny(f"client.method={{name: 'tests.test_failures:Fragile', cause: '{cause}'}}")


def test_a_failed_run_is_raised_and_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "PLAYED_AFTER", sys.maxsize)  # what is recorded of a loss does not look at files
    cause, folder = tmp_path / "cause", tmp_path / "run"
    with pytest.raises(fedcl.FederationError, match=r"^round 3: 0 of 4 clients answered") as caught:
        fedcl.run(fragile(cause), out=folder, listeners=[CauseAfter(cause, 2)])
    assert caught.value.__notes__ == [f"The run lies in {str(folder)!r}; fedcl.resume goes on with it."]
    with pytest.raises(fedcl.FederationError, match=r"^round 3: 0 of 4 clients answered"):
        fedcl.resume(folder)
    assert fedcl.resume(folder, check=False).status == "failed"
    cause.unlink()
    assert (fedcl.resume(folder).code, fedcl.resume(folder).status) == (0, "finished")


def test_a_stopped_run_ends_a_loop_over_runs(tmp_path: Path) -> None:
    """What is asked to stop is not the run alone: the exception leaves the loop, as Ctrl-C would."""

    def study() -> None:
        for seed in range(3):
            fedcl.run(TINY, out=tmp_path / str(seed), seed=seed, listeners=[StopAt("round", 2)])

    handler = signal.getsignal(signal.SIGTERM)  # Ray's own, where an earlier test has started it
    with pytest.raises(fedcl.Stopped, match="asked to stop"):
        study()
    assert [each.name for each in tmp_path.iterdir()] == ["0"]
    assert fedcl.load(tmp_path / "0").status == "stopped"
    assert signal.getsignal(signal.SIGTERM) == handler
    resumed = fedcl.resume(tmp_path / "0")
    assert resumed.results["weights_sha256"] == fedcl.run(TINY, out=tmp_path / "whole").results["weights_sha256"]


def test_what_is_no_run_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(fedcl.ConfigError, match="is no run directory"):
        fedcl.load(tmp_path)


# Sweeps.

STUDY: Plain = {
    "scenario": "split-digits",
    "set": {
        "stream.dataset": TINY["stream"]["dataset"], "stream.tasks": 2, "stream.clients": 3,
        "stream.schedule.rounds_per_task": np.int64(2), "model": {"name": "mlp", "width": 6},
    },
    "grid": {"client.method": ["finetune", "er"]},
    "seeds": (0, 1, 2),
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> fedcl.SweepResult:
    return fedcl.sweep(STUDY, out=tmp_path_factory.mktemp("sweeps") / "study", **{"client.batch": 8})


def test_a_sweep_of_plain_values_has_a_table_and_results(study: fedcl.SweepResult) -> None:
    assert [(row["scenario"], row["client.method"], row["seeds"]) for row in study.table] == [
        ("split-digits", "finetune", 3), ("split-digits", "er", 3)
    ]  # fmt: skip
    results = study.results
    assert len(results) == 6
    assert {each.config.client.batch for each in results} == {8}
    for row, name in zip(study.table, ("Finetune", "ER"), strict=True):
        mine = {r.config.seed: r.metrics["acc"] for r in results if type(r.config.client.method).__name__ == name}
        assert row["values"] == mine
        assert row["mean"] == pytest.approx(np.mean(list(mine.values())), abs=1e-12)
        assert row["low"] < row["mean"] < row["high"]
    first, second = study.table
    assert (first["difference"], first["p"]) == (None, None)
    assert second["difference"] == pytest.approx(second["mean"] - first["mean"], abs=1e-12)
    assert 0 < second["p"] <= 1
    assert study.failed == []
    worst = [each.results["clients"]["acc"]["worst"] for each in results if each.config.client.method == ER()]
    assert study.rows("clients.acc.worst")[1]["mean"] == pytest.approx(np.mean(worst), abs=1e-12)
    with pytest.raises(fedcl.ConfigError, match="did you mean 'acc'"):
        study.rows("accc")


def test_a_sweep_is_loaded_from_its_folder_and_goes_on(study: fedcl.SweepResult) -> None:
    loaded = fedcl.load(study.directory)
    assert isinstance(loaded, fedcl.SweepResult)
    assert loaded == study
    before = {each: os.stat(each.directory / "results.json").st_mtime_ns for each in study.results}
    more = fedcl.sweep({**STUDY, "seeds": [0, 1, 2, 3]}, out=study.directory, **{"client.batch": 8})
    assert len(more.results) == 8
    assert {each: os.stat(each.directory / "results.json").st_mtime_ns for each in before} == before
    assert json.loads((study.directory / "table.json").read_text())["rows"][0]["spread"]["n"] == 4


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_that_fails_is_named_and_the_others_count(tmp_path: Path) -> None:
    grid = {"lr": {"small": {"client.optimizer.lr": 0.05}, "huge": {"client.optimizer.lr": 1e30}}}
    found = fedcl.sweep({**STUDY, "grid": grid, "seeds": 1}, out=tmp_path / "out")
    (failed,) = found.failed
    assert failed["run"] == "split-digits lr=huge seed=0"
    assert "the weights that the run begins with are not sound" in failed["error"]
    assert failed["directory"] in [each.directory for each in found.results]
    assert [(row["lr"], row["seeds"], row["mean"] is None) for row in found.table] == [
        ("small", 1, False), ("huge", 0, True)
    ]  # fmt: skip


def test_a_result_prints_its_figures(finished: fedcl.Result) -> None:
    """In a program its name, status and known figures; in a notebook the table that the command line prints."""
    said, page = repr(finished), finished._repr_html_()
    assert said.splitlines()[0] == f"Result: {finished.results['name']}, seed {finished.results['seed']}: finished"
    assert f"acc {finished.metrics['acc']:.3f}" in said
    assert str(finished.directory) in said
    assert max(map(len, said.splitlines()[:-1])) <= 80
    assert f"<td>ACC</td><td style='text-align: right'>{finished.metrics['acc']:.3f}</td>" in page
    assert "<script" not in page


@pytest.mark.parametrize(
    ("asked", "terminal", "shown"), [(None, False, False), (None, True, True), (True, False, True)]
)
def test_progress_is_shown_where_somebody_looks(
    monkeypatch: pytest.MonkeyPatch, asked: bool | None, terminal: bool, shown: bool
) -> None:
    from fedcl import api

    monkeypatch.setattr(api.sys.stdout, "isatty", lambda: terminal, raising=False)
    with api._shown(asked) as listeners:
        assert bool(listeners) is shown
