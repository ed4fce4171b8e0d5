"""Trackers: their stores say what the journal says, also after a stop or a kill, and no run dies of them."""

import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcl import api, config, track
from fedcl.cli import main
from fedcl.engine import flower
from fedcl.engine.inline import InlineGrid
from fedcl.errors import ConfigError
from fedcl.journal import read_events
from fedcl.plain import flat_texts
from fedcl.track.scalars import figures, scalars
from server.app import app
from tests.federations import hashes, tiny
from tests.nodes import Death

ROUNDS = 6
SETTINGS = ("stream.schedule.rounds_per_task=3", "evaluate.every=1", "checkpoint.seconds=0")
Series = dict[str, dict[int, float]]  # name -> round -> value


def tracked(*names: str, more: tuple[str, ...] = ()) -> config.Scenario:
    return tiny(*SETTINGS, f"track=[{','.join(names)}]", *more)


def told(folder: Path) -> Series:
    """Return what the journal says, computed here in another way than trackers are told."""
    found: Series = {}

    def take(name: str, round: int, value: float) -> None:
        found.setdefault(name, {})[round] = value

    for event in read_events(folder):
        if event["event"] == "round":
            at = event["round"]
            take("total_loss", at, sum(event["loss"].values()))
            take("updates_per_second", at, event["updates"] / event["seconds"])
            for term, value in event["loss"].items():
                take(f"loss/{term}", at, value)
            for name in ("seconds", "updates", "failed", "bytes_up", "bytes_down"):
                take(name, at, event[name])
        elif event["event"] == "evaluation":
            at, started = (
                event["round"],
                [a for a, begun in zip(event["accuracy"], event["started"], strict=True) if begun],
            )
            take("accuracy/mean", at, float(np.mean(started or event["accuracy"])))
            take("evaluation/loss", at, event["loss"])
            for task, value in enumerate(event["accuracy"]):
                take(f"accuracy/task_{task}", at, value)
        elif event["event"] == "client_task_end":
            own = [row[task] for task, row in zip(event["tasks"], event["accuracy"], strict=True)]
            take("accuracy/clients_at_task_end", event["round"], float(np.mean(own)))
    return found


def event_files(folder: Path) -> tuple[Series, dict[str, float]]:
    """Return every scalar in the event files of a run, none twice, and the figures."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: Series = {}
    files = sorted((folder / "tensorboard").glob("events.out.tfevents.*"))
    for file in files:
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    steps = found.setdefault(value.tag, {})
                    assert event.step not in steps, f"{value.tag} twice at {event.step}"
                    steps[event.step] = float(value.tensor.float_val[0])
    last = {name: found.pop(name).popitem()[1] for name in [*found] if name.startswith("figure/")}
    return found, last


def store(folder: Path) -> tuple[Any, Series, dict[str, float]]:
    """Return MLflow's run of a run directory, every point of its metrics, none twice, and the figures."""
    from mlflow.tracking import MlflowClient

    client, run = MlflowClient(), json.loads((folder / "trackers.json").read_text())["mlflow"]
    found: Series = {}
    for name in client.get_run(run).data.metrics:
        points = client.get_metric_history(run, name)
        found[name] = {point.step: point.value for point in points}
        assert len(found[name]) == len(points), f"{name} has a step twice"
    last = {name: found.pop(name).popitem()[1] for name in [*found] if name.startswith("figure/")}
    return client.get_run(run), found, last


def close(found: Series, expected: Series) -> None:
    """Assert that two series are the same, as far as 32 bits tell."""
    assert found.keys() == expected.keys()
    for name, steps in expected.items():
        assert found[name].keys() == steps.keys(), name
        for at, value in steps.items():
            assert np.float32(found[name][at]) == np.float32(value), (name, at)


@pytest.fixture
def mlflow_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of MLflow's as files."""
    pytest.importorskip("mlflow", reason="MLflow comes with fedcl's extra mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return tmp_path / "store"


@pytest.fixture
def _tensorboard() -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard comes with fedcl's extra tensorboard")


# What is told.


def test_the_numbers_of_events() -> None:
    """By hand; what is unknown is left out, and what says nothing in numbers is empty."""
    evaluation = {"event": "evaluation", "round": 4, "accuracy": [0.5, None, 0.25], "started": [True, True, True]}
    assert scalars({**evaluation, "loss": None}) == {
        "accuracy/mean": 0.375, "accuracy/task_0": 0.5, "accuracy/task_2": 0.25,
    }  # fmt: skip
    ends = {"event": "client_task_end", "round": 4, "clients": [0, 2, 3], "tasks": [1, 0, 0]}
    assert scalars({**ends, "accuracy": [[0.5, 1.0], [0.5, 0.25], None]}) == {"accuracy/clients_at_task_end": 0.75}
    assert scalars({"event": "consolidation", "round": 3, "bytes_up": 7}) == {"consolidation/bytes_up": 7.0}
    empty = {"event": "round", "round": 1, "seconds": 0.0, "updates": 0, "loss": {}, "failed": 3}
    assert scalars({**empty, "bytes_up": 0, "bytes_down": 9}) == {
        "seconds": 0.0, "updates": 0.0, "failed": 3.0, "bytes_up": 0.0, "bytes_down": 9.0,
    }  # fmt: skip
    for kind in ("start", "checkpoint", "joined", "end"):
        assert scalars({"event": kind, "round": 1}) == {}


def test_figures_and_parameters_are_flat() -> None:
    results = {
        "metrics": {"acc": 0.5, "bwt": None}, "cost": {"seconds": 2, "memory": {"process": 9, "below": [1]}},
        "clients": {"acc": {"worst": 0.25}, "forgetting": None, "matrices": {"0": {"tasks": [1]}}},
    }  # fmt: skip
    assert figures(results) == {
        "metrics.acc": 0.5, "cost.seconds": 2.0, "cost.memory.process": 9.0, "clients.acc.worst": 0.25,
    }  # fmt: skip
    assert flat_texts({"a": {"b": 1, "c": []}, "d": "x", "e": None, "f": {}}) == {
        "a.b": "1", "a.c": "[]", "d": "x", "e": "null", "f": "{}",
    }  # fmt: skip


# The key.


def test_trackers_are_no_part_of_what_a_run_is() -> None:
    """Same hash, so the same checkpoints, the same nodes and the same folder of a sweep."""
    assert config.config_hash(tracked("tensorboard")) == config.config_hash(tracked())
    assert tracked("tensorboard", "mlflow").track == ["tensorboard", "mlflow"]
    assert config.load(config.as_dict(tracked("mlflow"))).track == ["mlflow"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[tensorbord]", "'tensorbord', expected one of"),
        ("mlflow", r"track = 'mlflow': must be a list: track=\[mlflow\]"),
    ],
)
def test_a_wrong_tracker_is_one_sentence(value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tiny(f"track={value}")


def test_a_missing_package_is_told_with_the_command_before_the_run_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(track, "find_spec", lambda module: None)
    out = tmp_path / "run"
    assert main(["run", "split-digits", "engine.kind=inline", "track=[wandb,mlflow]", "--out", str(out)]) == 2
    needs = "'wandb' needs wandb, which is not installed; pip install 'fedcl-flower[wandb]'"
    assert capsys.readouterr().err == f"fedcl: track = ['wandb', 'mlflow']: {needs}\n"
    assert not out.exists()


# What lies in the stores.


@pytest.mark.usefixtures("_tensorboard")
def test_event_files_say_what_the_journal_says(tmp_path: Path) -> None:
    outcome = api.run(tracked("tensorboard"), out=tmp_path / "run")
    assert outcome.code == 0
    found, last = event_files(outcome.directory)
    expected = told(outcome.directory)
    assert set(expected["total_loss"]) == set(range(1, ROUNDS + 1))
    assert set(expected["accuracy/mean"]) == set(range(ROUNDS + 1))
    close(found, expected)
    metrics = outcome.results["metrics"]
    assert last["figure/metrics.acc"] == pytest.approx(metrics["acc"])
    assert len(last) == len(figures(outcome.results))


@pytest.mark.usefixtures("_tensorboard")
def test_tensorboard_itself_reads_them(tmp_path: Path) -> None:
    """Its own reader of a folder, which the page shows: scalars, the configuration as text, and the parameters."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    outcome = api.run(tracked("tensorboard"), out=tmp_path / "run")
    reader = EventAccumulator(str(outcome.directory / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0})
    reader.Reload()
    assert [event.step for event in reader.Scalars("total_loss")] == list(range(1, ROUNDS + 1))
    (text,) = reader.Tensors("configuration/text_summary")
    assert b"    stream.clients: 4\n" in text.tensor_proto.string_val[0]
    assert "hparams" in reader.summary_metadata["_hparams_/session_start_info"].plugin_data.plugin_name


def test_a_store_of_mlflow_says_what_the_journal_says(tmp_path: Path, mlflow_store: Path) -> None:
    scenario = tracked("mlflow")
    outcome = api.run(scenario, out=tmp_path / "run")
    assert outcome.code == 0
    run, found, last = store(outcome.directory)
    expected = told(outcome.directory)
    close(found, expected)
    assert found["total_loss"] == expected["total_loss"]  # all 64 bits
    assert last == {f"figure/{name}": value for name, value in figures(outcome.results).items()}
    assert run.info.status == "FINISHED"
    assert run.info.run_name == f"{tmp_path.name}/run"
    assert run.data.tags["fedcl.directory"] == str(outcome.directory)
    assert run.data.params == flat_texts(config.as_dict(outcome_config(outcome)))
    assert mlflow_store.is_dir()


def outcome_config(outcome: api.Result) -> config.Scenario:
    return api.load(outcome.directory).config


@pytest.mark.usefixtures("_tensorboard")
def test_a_run_that_flower_starts_is_tracked_too(tmp_path: Path) -> None:
    """As `flwr run` and the supervisor of real machines have it: the ServerApp opens the journal, nobody listens."""
    overrides = "stream.clients=2 stream.tasks=2 stream.schedule.rounds_per_task=1 client.epochs=1 track=[tensorboard]"
    asked = {"scenario": "split-digits", "overrides": overrides, "out": str(tmp_path / "run")}
    grid = InlineGrid()
    try:
        app(grid, flower.context({**asked, "state": str(tmp_path / "state")}, {}))
    finally:
        grid.close()
    close(event_files(tmp_path / "run")[0], told(tmp_path / "run"))


# A run that goes on.


def stopping(at: int) -> Any:
    """Return a listener that asks the run to stop after a round."""

    def listener(event: Mapping[str, Any]) -> None:
        if event["event"] == "round" and event["round"] == at:
            os.kill(os.getpid(), signal.SIGTERM)

    return listener


def killing(at: int) -> Any:
    """Return a listener that ends everything in a round, when the trackers have had it."""

    def listener(event: Mapping[str, Any]) -> None:
        if event["event"] == "evaluation" and event["round"] == at:
            raise Death

    return listener


@pytest.fixture
def _last_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the trackers hear an event before the other listeners do."""
    follow = track.follow

    def first(journal: Any, scenario: config.Scenario) -> track.Tracking:
        before = journal.listeners
        journal.listeners = ()
        tracking = follow(journal, scenario)
        journal.listeners = (*journal.listeners, *before)
        return tracking

    monkeypatch.setattr("server.federation.follow", first)


@pytest.mark.usefixtures("_tensorboard", "mlflow_store")
def test_a_stopped_run_goes_on_in_the_same_place(tmp_path: Path) -> None:
    outcome = api.run(tracked("tensorboard", "mlflow"), out=tmp_path / "run", listeners=[stopping(2)], check=False)
    assert outcome.code == 75
    run, found, last = store(outcome.directory)
    assert (run.info.status, max(found["total_loss"]), last) == ("KILLED", 2, {})
    assert api.resume(outcome.directory).code == 0
    again, found, last = store(outcome.directory)
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")
    expected = told(outcome.directory)
    close(found, expected)
    assert "figure/metrics.acc" in last
    close(event_files(outcome.directory)[0], expected)


@pytest.mark.usefixtures("_tensorboard", "mlflow_store", "_last_listener")
def test_rounds_that_come_again_after_a_kill_are_there_once(tmp_path: Path) -> None:
    """Nothing was committed: all four rounds are done again. Values are the same, times are those of either time."""
    scenario = tracked("tensorboard", "mlflow", more=("checkpoint.seconds=1000",))
    with pytest.raises(Death):
        api.run(scenario, out=tmp_path / "run", listeners=[killing(4)])
    assert max(store(tmp_path / "run")[1]["accuracy/mean"]) == 4
    assert api.resume(tmp_path / "run").code == 0
    expected = told(tmp_path / "run")
    close(event_files(tmp_path / "run")[0], expected)
    _, found, _ = store(tmp_path / "run")
    timed = ("seconds", "updates_per_second")
    assert {name: found[name].keys() for name in timed} == {name: expected[name].keys() for name in timed}
    close(*({name: each[name] for name in expected if name not in timed} for each in (found, expected)))


# A tracker that fails.


@pytest.mark.usefixtures("_tensorboard")
def test_a_tracker_that_fails_is_told_of_and_costs_nothing(
    tmp_path: Path, mlflow_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """MLflow's store is taken away after round 3: TensorBoard goes on, the run ends with the weights that it has."""

    def taking(event: Mapping[str, Any]) -> None:
        if event["event"] == "round" and event["round"] == 3:
            shutil.rmtree(mlflow_store)
            mlflow_store.write_text("no folder any more")

    plain = api.run(tracked(), out=tmp_path / "plain")
    outcome = api.run(tracked("tensorboard", "mlflow"), out=tmp_path / "run", listeners=[taking])
    assert outcome.code == 0
    assert hashes(outcome.results) == hashes(plain.results)
    (event,) = [each for each in read_events(outcome.directory) if each["event"] == "untracked"]
    assert event["tracker"] == "mlflow"
    assert event["error"]
    assert "tracker mlflow failed: " in (outcome.directory / "error.log").read_text()
    assert "Traceback" in (outcome.directory / "error.log").read_text()
    close(event_files(outcome.directory)[0], told(outcome.directory))


@pytest.mark.usefixtures("_tensorboard")
def test_a_tracker_that_cannot_begin_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file stands where its folder should."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "tensorboard").write_text("")
    arguments = ["run", "split-digits", "engine.kind=inline", "stream.tasks=2", "stream.schedule.rounds_per_task=1"]
    assert main([*arguments, "client.epochs=1", "track=[tensorboard]", "--quiet", "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert said.startswith("tracker tensorboard gets no more of this run: FileExistsError: ")
    assert said.count("\n") == 1


def test_no_tracker_writes_nothing(tmp_path: Path) -> None:
    outcome = api.run(tracked(), out=tmp_path / "run")
    assert not {"trackers.json", "tensorboard", "wandb", "mlruns"} & {each.name for each in outcome.directory.iterdir()}


# Weights & Biases, without a server.


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="Weights & Biases comes with fedcl's extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.mark.usefixtures("_offline")
def test_wandb_writes_its_files_for_a_later_sync(tmp_path: Path) -> None:
    """One folder for the run, also when it was stopped and went on."""
    outcome = api.run(tracked("wandb"), out=tmp_path / "run", listeners=[stopping(2)], check=False)
    assert outcome.code == 75
    run = json.loads((outcome.directory / "trackers.json").read_text())["wandb"]
    assert api.resume(outcome.directory).code == 0
    assert not any(event["event"] == "untracked" for event in read_events(outcome.directory))
    assert json.loads((outcome.directory / "trackers.json").read_text())["wandb"] == run
    (folder,) = (outcome.directory / "wandb").glob("offline-run-*")
    (file,) = folder.glob(f"run-{run}.wandb")
    content = file.read_bytes()
    for word in (b"total_loss", b"accuracy/task_0", b"figure/metrics.acc", b"client.optimizer.lr"):
        assert word in content
