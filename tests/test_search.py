"""Searches: what a file stands for, what Optuna is told, what is pruned, what is found and how it is used."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedcl import api, config
from fedcl.cli import main
from fedcl.errors import ConfigError
from fedcl.journal import read_events
from fedcl.overrides import as_texts
from fedcl.sweeps import best, runs, spec, tables
from fedcl.sweeps.pruning import behind, curve, floors
from fedcl.sweeps.space import Among, Within
from fedcl.sweeps.spec import Sweep
from tests.test_sweep import TINY, swept_by

NO_OPTUNA = "optuna is not installed: pip install 'fedcl-flower[search]'"
METHODS = {"er": {"client.method": "er"}, "derpp": {"client.method": "derpp"}}
LR = {"client.optimizer.lr": {"range": [0.001, 0.5], "log": True}}
BETA = {"method": {"derpp": {"client.method.beta": {"range": [0.1, 1.0]}}}}


def sought(**changes: Any) -> dict[str, Any]:
    """Return a search as its file has it."""
    search = {"space": LR, "own": BETA, "trials": 3, "seeds": [7], **changes}
    return {"scenario": "split-digits", "set": TINY, "grid": {"method": METHODS}, "search": search, "seeds": 2}


def written(folder: Path, plain: dict[str, Any], name: str = "tiny") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(plain))  # JSON is YAML
    return path


# What a file stands for.


def test_every_combination_has_a_study_with_the_same_budget() -> None:
    """The shared space, and besides what one method has of its own."""
    sweep = spec.of_plain(sought(), "two", ["client.epochs=2"])
    assert (sweep.points, runs.planned(sweep), sweep.seeds) == ((), {}, (0, 1))
    er, derpp = sweep.studies
    assert [er.title, derpp.title] == ["split-digits method=er", "split-digits method=derpp"]
    assert [each.name for each in er.space] == ["client.optimizer.lr"]
    assert [each.name for each in derpp.space] == ["client.optimizer.lr", "client.method.beta"]
    settings = derpp.settings({"client.optimizer.lr": 0.012345, "client.method.beta": 0.5})
    assert settings == ("client.optimizer.lr=0.0123", "client.method.beta=0.5")
    point = derpp.point(settings, 7, 3)
    assert point.title == "split-digits method=derpp trial=3 seed=7"
    assert point.overrides[-5:] == ("client.epochs=2", "client.method=derpp", *settings, "seed=7")
    assert config.load(point.scenario, point.overrides).client.method.beta == 0.5


def test_parameters_are_spelled_as_axes() -> None:
    """Ranges of whole numbers and of others, steps, lists of values and of groups."""
    space = {
        "client.epochs": {"range": [1, 4]}, "client.clip": {"range": [0.5, 2.2, 0.5]}, "client.batch": [4, 8],
        "server": {"plain": {"server.optimizer": "sgd"}, "adam": {"server.optimizer.name": "fedadam"}},
    }  # fmt: skip
    epochs, clip, batch, server = spec.of_plain(sought(space=space, own={}), "x").studies[0].space
    assert isinstance(epochs, Within)
    assert isinstance(clip, Within)
    assert (epochs.whole, epochs.ends, epochs.overrides(3)) == (True, (1, 4), ("client.epochs=3",))
    assert (clip.whole, clip.ends, clip.overrides(1.5)) == (False, (0.5, 2.0), ("client.clip=1.5",))
    assert batch == Among(name="client.batch", choices=(("4", ("client.batch=4",)), ("8", ("client.batch=8",))))
    assert server.overrides("adam") == ("server.optimizer.name=fedadam",)
    assert [each.told for each in (epochs, clip, batch)] == [
        "client.epochs: 1 to 4 (whole numbers)", "client.clip: 0.5 to 2.0 (steps of 0.5)", "client.batch: 4, 8",
    ]  # fmt: skip


@pytest.mark.parametrize(("drawn", "set_to"), [(0.0999996, 0.1), (0.01234567, 0.0123), (0.010001, 0.01), (0.5, 0.5)])
def test_what_is_drawn_has_few_digits_and_keeps_within_its_ends(drawn: float, set_to: float) -> None:
    found = Within(name="x", low=0.01, high=0.5, step=None, log=True).overrides(drawn)
    assert found == (f"x={set_to}",)
    assert Within(name="x", low=0.01234, high=0.5, step=None, log=True).overrides(0.01234) == ("x=0.01234",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trails": 3}, r"unknown key 'search\.trails' \(= 3\) of a search; did you mean 'trials'\?"),
        ({"trials": 0}, r"search\.trials = 0: must be at least 1"),
        ({"metric": "acx"}, r"search\.metric = 'acx': unknown; did you mean 'acc'\?"),
        ({"direction": "up"}, r"search\.direction = 'up'"),
        ({"seeds": [0, 7]}, r"search\.seeds = \[0, 7\]: 0 is among `seeds` too; compare on others"),
        ({"seeds": "7"}, r"search\.seeds = '7': must be how many, or a list"),
        ({"space": {}}, r"search\.space has nothing to look for with split-digits method=er"),
        ({"space": {"client.epochs": 3}}, r"search\.space\.client\.epochs = 3: must be a list of values"),
        ({"space": {"client.epochs": {"range": [3, 1]}}}, r"client\.epochs\.range = \[3, 1\]: must be \[low, high\]"),
        ({"space": {"client.epochs": {"range": [1, 3], "lag": True}}}, r"did you mean 'log'\?"),
        ({"space": {"client.clip": {"range": [0, 1], "log": True}}}, r"clip\.log = True: must be .* above 0"),
        ({"space": {"method": ["er"]}}, r"search\.space\.method: the grid has it too"),
        ({"own": {"methud": {}}}, r"search\.own\.methud: no axis of the grid is called so; did you mean 'method'\?"),
        ({"own": {"method": {"dar": {}}}}, r"search\.own\.method\.dar: method has no such choice; did you mean"),
        ({"trials": 900}, r"the sweep has 1804 runs, more than limits\.runs = 1000"),
    ],
)
def test_a_wrong_search_is_one_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        spec.of_plain(sought(**changes), "x")


def test_an_impossible_end_of_the_space_is_named_before_anything_runs(tmp_path: Path) -> None:
    sweep = spec.of_plain(sought(space={"client.optimizer.lr": {"range": [-1.0, 1.0]}}), "x")
    with pytest.raises(ConfigError, match=r"^3 of 5 settings at the ends of the space are impossible: split-digits"):
        runs.carry_out(sweep, tmp_path / "out")
    mute = sought()
    mute["set"] = {**TINY, "evaluate.every": 0}
    with pytest.raises(ConfigError, match=r"search\.prune = True: split-digits is not evaluated between task ends"):
        runs.planned(spec.of_plain(mute, "x"))
    assert not (tmp_path / "out").exists()


def test_a_dry_run_tells_space_and_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(written(tmp_path, sought())), "--dry-run", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "  client.optimizer.lr: 0.001 to 0.5 (evenly in its logarithm)\n" in said
    assert (
        "2 searches of 3 trials with the seeds 7, judged by acc: 6 runs, fewer where trials are pruned; then 4" in said
    )


def test_without_optuna_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["sweep", str(written(tmp_path, sought())), "--out", str(tmp_path / "out"), "--quiet"]) == 2
    assert (
        "needs the package optuna, which is not installed; pip install 'fedcl-flower[search]'"
        in capsys.readouterr().err
    )


# Pruning.


def test_a_run_must_reach_a_quarter_of_those_that_went_to_their_end() -> None:
    """Of .2, .4, .6, .8 the lower quartile is .35; the last round is never compared, nor what is not in all."""
    ended = [{5: value, 10: value, 15: value} for value in (0.8, 0.2, 0.6, 0.4)]
    least = floors(ended)
    assert least == {5: pytest.approx(0.35), 10: pytest.approx(0.35)}
    assert floors(ended[:3]) == {}
    assert floors([*ended, {5: 0.5, 15: 0.5}]) == {5: 0.4}
    assert behind({5: 0.35, 10: 0.34}, {5: 0.35, 10: 0.35}) == 10
    assert behind({5: 0.35, 15: 0.0}, least | {5: 0.35}) is None
    assert behind({5: math.nan}, least) is None


# What Optuna makes of it: no run is needed for this.


def told_by(folder: Path, sittings: list[int], name: str = "s", batch: int = 1) -> list[tuple[Any, ...]]:
    """Return the trials of a search for the lr nearest to .03, in sittings of so many trials."""
    from fedcl.sweeps.advice import Adviser

    sweep = spec.of_plain(sought(trials=40, batch=batch), name)
    assert sweep.search is not None
    for n in sittings:
        adviser = Adviser(folder, sweep.name, sweep.studies[1], sweep.search)
        for _ in range(n):
            trial = adviser.ask()
            error = abs(math.log10(trial.values["client.optimizer.lr"] / 0.03))
            if error > 1:
                adviser.tell(trial, "pruned", None, [1 - error], ["k"])
            else:
                adviser.tell(trial, "done", 1 - error, [], ["k"])
        adviser.ask()  # and the process is gone before this one is told
    return [(each.number, dict(each.values), each.status, each.value) for each in adviser.told]


def test_a_search_that_is_stopped_is_advised_as_one_that_is_not(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason=NO_OPTUNA)
    for name in "abc":
        (tmp_path / name).mkdir()
    straight = told_by(tmp_path / "a", [25])
    assert told_by(tmp_path / "b", [3, 1, 14, 7]) == straight
    assert told_by(tmp_path / "c", [25], "another name") != straight
    assert [each[0] for each in straight] == list(range(25))
    assert {each[2] for each in straight} == {"done", "pruned"}
    lines = (tmp_path / "a" / "optuna.jsonl").read_text().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)  # and no pickle


def test_the_best_is_among_those_that_went_to_their_end(tmp_path: Path) -> None:
    """40 trials come to within a tenth of a decade; what is pruned is told as worse than what is not."""
    pytest.importorskip("optuna", reason=NO_OPTUNA)
    from fedcl.sweeps.advice import Adviser

    told = told_by(tmp_path, [40])
    sweep = spec.of_plain(sought(trials=40), "s")
    assert sweep.search is not None
    adviser = Adviser(tmp_path, "s", sweep.studies[1], sweep.search)
    assert adviser.best is not None
    assert adviser.best.value == max(each[3] for each in told if each[3] is not None) > 0.9
    assert all((each[3] is None) == (each[2] == "pruned") for each in told)
    assert Adviser(tmp_path, "s", sweep.studies[0], sweep.search).best is None  # another study of the same file


# What is run: each search is a command of its own, with a Ray of its own.


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Path]:
    """Return a search of three trials for two methods that has run undisturbed."""
    pytest.importorskip("optuna", reason=NO_OPTUNA)
    folder = tmp_path_factory.mktemp("search")
    path = written(folder, sought())
    assert swept_by(path, folder / "out") == (0, "")
    return spec.read(str(path)), folder / "out"


def runs_of(out: Path) -> set[str]:
    return {each.name for each in (out / "runs").iterdir()}


def acc(out: Path, key: str) -> float:
    return float(json.loads((out / "runs" / key / "results.json").read_text())["metrics"]["acc"])


def test_the_best_of_each_study_is_compared_on_other_seeds(searched: tuple[Sweep, Path]) -> None:
    """Six trials with seed 7, then the best of each with seeds 0 and 1; the table has these alone."""
    _, out = searched
    plan = json.loads((out / "sweep.json").read_text())
    ends = [event for event in read_events(out) if event["event"] == "run_end"]
    assert [event["status"] for event in ends] == ["done"] * 10
    assert [(point["labels"]["method"], point["seed"]) for point in plan["points"]] == [
        ("er", 0), ("er", 1), ("derpp", 0), ("derpp", 1),
    ]  # fmt: skip
    tried = {event["key"]: event["title"] for event in ends if "trial=" in event["title"]}
    for study in plan["search"]["studies"]:
        method, found = study["labels"]["method"], study["best"]
        assert study["done"] == 3
        assert found["value"] == max(acc(out, key) for key, title in tried.items() if f"method={method} " in title)
        assert found["value"] == acc(out, found["runs"][0])
        settings = [point["overrides"] for point in plan["points"] if point["labels"]["method"] == method]
        assert all(set(found["settings"]) <= set(each) for each in settings)
    rows = tables.collect(out).rows
    assert [row.values for row in rows] == [
        {point["seed"]: acc(out, point["key"]) for point in plan["points"] if point["labels"]["method"] == method}
        for method in ("er", "derpp")
    ]
    notes = tables.notes(tables.collect(out))
    assert any(note.startswith("search: 3 trials each, judged by acc over the seeds 7, ") for note in notes)
    assert any(note.startswith("best of split-digits method=derpp (3 done): 0.") for note in notes)


def test_the_best_settings_are_groups_that_a_scenario_takes(searched: tuple[Sweep, Path]) -> None:
    """group=FILE:NAME sets the very settings of the best trial, in fedcl run and in a sweep's grid."""
    _, out = searched
    plan = json.loads((out / "sweep.json").read_text())
    studies = {study["labels"]["method"]: study["best"]["settings"] for study in plan["search"]["studies"]}
    fixed = tuple(as_texts(TINY))
    file = out / "best.yaml"
    assert set(yaml.safe_load(file.read_text())["split-digits"]) == {"best-er", "best-derpp"}
    for method, settings in studies.items():
        wanted = config.load("split-digits", [*fixed, f"client.method={method}", *settings])
        kept = [text for text in fixed if not text.startswith("client.optimizer")]
        assert config.load("split-digits", [f"group={file}:best-{method}", *kept]) == wanted
    with pytest.raises(ConfigError, match=r"best\.yaml:best-err': unknown; did you mean 'best-er'\?"):
        config.load("split-digits", [f"group={file}:best-err"])
    with pytest.raises(ConfigError, match=r"has none for the scenario 'task-digits'; did you mean 'split-digits'\?"):
        config.load("task-digits", [f"group={file}:best-er"])
    with pytest.raises(ConfigError, match=r"group: 'nowhere\.yaml'"):
        config.load("split-digits", ["group=nowhere.yaml:best-er"])


def test_the_any_time_accuracy_ends_as_the_runs_figure(searched: tuple[Sweep, Path]) -> None:
    _, out = searched
    for folder in (out / "runs").iterdir():
        reached = curve(folder)
        assert list(reached) == [5]  # evaluate.every is 5, of 6 rounds
        assert reached[5] == pytest.approx(api.load(folder).results["metrics"]["a_auc"], abs=1e-12)


def test_what_is_told_is_not_done_again(searched: tuple[Sweep, Path]) -> None:
    sweep, out = searched
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*")}
    state = runs.carry_out(sweep, out)
    assert (state.counts, state.to_come) == ({"done": 4}, 0)
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*")} == before


def planting(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return a search whose fifth trial learns nothing in one study, and in another one some trial diverges.

    What the first trials are depends on the search's name alone: names are tried until it is so.
    """
    from fedcl.sweeps.advice import Adviser

    planted = {"slow": {"client.optimizer.lr": 1e-7}, "diverging": {"client.optimizer.lr": 1e30}}
    own = {kind: {"as": {"fine": {}, "planted": settings}} for kind, settings in planted.items()}
    plain = sought(space={"client.optimizer.lr": {"range": [0.05, 0.2]}}, own={"kind": own}, trials=5)
    plain |= {"grid": {"kind": {kind: {} for kind in planted}}, "set": {**TINY, "evaluate.every": 1}, "seeds": 1}
    for n in range(1000):
        sweep = spec.of_plain({**plain, "name": f"planted-{n}"}, "")
        assert sweep.search is not None
        slow, diverging = (
            [Adviser.ask(each).values["as"] for each in [Adviser(folder, sweep.name, study, sweep.search)] * 5]
            for study in sweep.studies
        )
        if slow == ["fine"] * 4 + ["planted"] and set(diverging) == {"fine", "planted"}:
            return sweep.name, plain
    raise AssertionError("no name plants them")


@pytest.mark.slow
def test_a_hopeless_setting_is_pruned_and_one_that_diverges_is_the_worst(tmp_path: Path) -> None:
    """lr 1e-7 is stopped at its first evaluation, as four are there to compare with; with 1e30 nothing is finite."""
    pytest.importorskip("optuna", reason=NO_OPTUNA)
    (tmp_path / "names").mkdir()
    name, plain = planting(tmp_path / "names")
    path, out = written(tmp_path, {**plain, "name": name}), tmp_path / "out"
    assert swept_by(path, out) == (0, "")
    slow, diverging = json.loads((out / "sweep.json").read_text())["search"]["studies"]
    assert (slow["done"], slow["pruned"], slow["hopeless"]) == (4, 1, 0)
    assert diverging["hopeless"] >= 1
    assert diverging["done"] + diverging["pruned"] + diverging["hopeless"] == 5
    assert all(float(each["best"]["settings"][-1].partition("=")[2]) >= 0.05 for each in (slow, diverging))
    ends = [event for event in read_events(out) if event["event"] == "run_end"]
    (key,) = [each["key"] for each in ends if each["status"] == "pruned" and "slow" in each["title"]]
    pruned = api.load(out / "runs" / key)
    assert (pruned.config.client.optimizer.lr, pruned.results["status"]) == (1e-7, "stopped")
    assert (list(curve(pruned.directory)), pruned.results["cost"]["rounds"]) == ([1], 1)  # of six rounds
    hopeless = [event for event in ends if event["status"] == "hopeless"]
    assert all("are not sound" in event["error"] for event in hopeless)
    assert runs.carry_out(spec.read(str(path)), out).counts == {"done": 2}  # the comparison; nothing is left to do


@pytest.mark.slow
def test_a_search_that_is_stopped_twice_ends_as_one_that_is_not(searched: tuple[Sweep, Path], tmp_path: Path) -> None:
    """SIGTERM while trials run: exit 75; the same command tries the same settings and repeats no finished run."""
    _, straight = searched
    path, out = written(tmp_path, sought()), tmp_path / "out"
    command = [sys.executable, "-m", "fedcl", "sweep", str(path), "--out", str(out), "--quiet"]
    for after in (2, 5):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while child.poll() is None and len(list(out.glob("runs/*/checkpoints"))) < after:
            time.sleep(0.02)
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate(timeout=120)
        assert child.returncode == 75, said
    assert swept_by(path, out) == (0, "")
    assert runs_of(out) == runs_of(straight)
    one, other = (json.loads((folder / "sweep.json").read_text()) for folder in (straight, out))
    assert one["search"] == other["search"]
    assert one["points"] == other["points"]
    assert (out / "best.yaml").read_text() == (straight / "best.yaml").read_text()
    done = [event["key"] for event in read_events(out) if event.get("status") == "done"]
    assert len(done) == len(set(done))
    assert sum((out / "runs" / key / "model.safetensors").is_file() for key in runs_of(out)) == 10


@pytest.mark.slow
def test_what_is_no_settings_fault_ends_its_study_and_is_tried_again(
    searched: tuple[Sweep, Path], tmp_path: Path
) -> None:
    """The folder of the first trial's run is a file at first: exit 1, the other study goes on; then all is well."""
    _, straight = searched
    path, out = written(tmp_path, sought()), tmp_path / "out"
    first = next(e["key"] for e in read_events(straight) if e["event"] == "run_start" and "=er trial=0" in e["title"])
    (out / "runs").mkdir(parents=True)
    (out / "runs" / first).write_text("in the way")
    code, said = swept_by(path, out)
    assert code == 1
    assert "failed: split-digits method=er trial=0 seed=7" in said
    er, derpp = json.loads((out / "sweep.json").read_text())["search"]["studies"]
    assert (er["done"], er["best"], derpp["done"]) == (0, None, 3)
    (out / "runs" / first).unlink()
    assert swept_by(path, out) == (0, "")
    assert (out / "best.yaml").read_text() == (straight / "best.yaml").read_text()


# What is written for others.


def test_a_group_is_every_part_that_is_touched_whole() -> None:
    """Whatever the scenario has there: name and all settings of the part; single settings stay single."""
    texts = ["client.method=er", "client.optimizer.lr=0.02", "client.batch=8", "model.width=7"]
    found = best.blocks("split-digits", ["client.optimizer={name: adam}"], texts)
    assert set(found) == {"client", "model"}
    assert set(found["client"]) == {"method", "optimizer", "batch"}
    assert (found["client"]["method"], found["client"]["batch"]) == ({"name": "er"}, 8)
    assert (found["client"]["optimizer"]["name"], found["client"]["optimizer"]["lr"]) == ("adam", 0.02)
    assert (found["model"]["name"], found["model"]["width"]) == ("mlp", 7)
    joint = best.blocks("split-digits", [], ["group=joint", "client.epochs=2"])
    assert joint == {"stream": {"joint": True}, "client": {"method": {"name": "finetune"}, "epochs": 2}}
