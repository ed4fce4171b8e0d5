"""Sweeps: what a file stands for, what is run and what is not, tables."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fedcl import api, config
from fedcl.cli import main
from fedcl.errors import ConfigError
from fedcl.journal import read_events, write_json
from fedcl.shipped import sweep_names
from fedcl.statistics import spread
from fedcl.sweeps import runs, spec, tables
from fedcl.sweeps.spec import Sweep
from fedcl.testing import changed

TINY = {
    "stream.dataset": {"name": "synthetic", "classes": 4, "features": 4, "samples": 200, "test_samples": 40},
    "stream.clients": 3, "stream.tasks": 2, "stream.schedule.rounds_per_task": 3, "model": {"name": "mlp", "width": 6},
    "client.optimizer.lr": 0.05,
}  # fmt: skip


def small(**changes: Any) -> dict[str, Any]:
    return {
        "scenario": "split-digits",
        "set": TINY,
        "grid": {"client.method": ["finetune", "er"]},
        "seeds": 2,
        **changes,
    }


def written(folder: Path, plain: dict[str, Any]) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(plain))  # JSON is YAML
    return path


# What a file stands for.


def test_a_sweep_is_every_combination_and_seeds_come_last() -> None:
    """2 scenarios x 3 sizes x 2 groups x 2 seeds; the first seed of all comes before the second of any."""
    sweep = spec.of_plain({
        "scenarios": ["split-digits", "task-digits"],
        "set": {"client.epochs": 2},
        "grid": {
            "client.memory.size": {"range": [10, 30, 10]},
            "method": {"er": {"client.method": "er"}, "fot": {"client.method": "finetune", "server.method": "fot"}},
        },
        "seeds": [4, 9],
    }, "two", ["client.batch=8"])  # fmt: skip
    assert (sweep.name, len(sweep.points)) == ("two", 24)
    first, last = sweep.points[0], sweep.points[-1]
    assert first.labels == {"scenario": "split-digits", "client.memory.size": "10", "method": "er"}
    assert first.overrides == (
        "client.epochs=2", "client.batch=8", "client.memory.size=10", "client.method=er", "seed=4"
    )  # fmt: skip
    assert first.title == "split-digits client.memory.size=10 method=er seed=4"
    assert last.overrides[-4:] == ("client.memory.size=30", "client.method=finetune", "server.method=fot", "seed=9")
    assert [point.seed for point in sweep.points] == [4] * 12 + [9] * 12
    loaded = spec.checked(sweep)
    assert (loaded[0].seed, loaded[0].client.epochs, loaded[0].client.batch, loaded[0].client.memory.size) == (
        4,
        2,
        8,
        10,
    )


def test_values_may_be_parts_with_settings_of_their_own() -> None:
    sweep = spec.of_plain(
        small(grid={"client.optimizer": [{"name": "adam", "lr": 0.01}, {"name": "sgd", "lr": 0.1}]}), "x"
    )
    found = [each.client.optimizer for each in spec.checked(sweep)]
    assert [type(each).__name__ for each in found[:2]] == ["Adam", "SGD"]
    assert [each.lr for each in found[:2]] == [0.01, 0.1]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [([1, 5, 2], [1, 3, 5]), ([1, 3], [1, 2, 3]), ([0.1, 0.3, 0.1], [0.1, 0.2, 0.3]), ([3, 1, -1], [3, 2, 1])],
)
def test_ranges_have_their_ends(wanted: list[float], found: list[float]) -> None:
    sweep = spec.of_plain(small(grid={"client.optimizer.lr": {"range": wanted}}, seeds=1), "x")
    assert [point.labels["client.optimizer.lr"] for point in sweep.points] == [str(each) for each in found]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gird": {}}, r"unknown key 'gird' \(= \{\}\) of a sweep; did you mean 'grid'\?"),
        ({"scenarios": ["split-digits"]}, "scenario and scenarios: a sweep has one of them"),
        ({"scenario": None}, "scenarios = None: must be a name or a list of names"),
        ({"set": {"seed": 3}}, r"seed=3: a sweep has its seeds from its own key: seeds: 3, or seeds: \[0, 1, 2\]"),
        ({"grid": {"seed": [1, 2]}}, "seed=1: a sweep has its seeds from its own key"),
        ({"seeds": 0}, r"seeds = \[\]: must be how many|seeds = 0: must be how many"),
        ({"seeds": [1, 1]}, r"seeds = \[1, 1\]: one is there twice"),
        ({"grid": {"client.epochs": 3}}, r"grid\.client\.epochs = 3: must be a list of values"),
        ({"grid": {"client.epochs": {"range": [3, 1]}}}, r"grid\.client\.epochs\.range = \[3, 1\]: must be \[first"),
        ({"limits": {"runs": 3}}, "the sweep has 4 runs, more than limits.runs = 3"),
        ({"limits": {"cpu": 3}}, r"unknown key 'limits\.cpu' \(= 3\); did you mean 'cpus'\?"),
    ],
)
def test_a_wrong_file_is_one_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        spec.of_plain(
            {key: value for key, value in small(**changes).items() if value is not None or key == "scenario"}, "x"
        )


def test_impossible_combinations_are_named_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, small(grid={"client.batch": [4, -1]}))
    assert main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert (
        "2 of 4 runs are impossible: split-digits client.batch=-1 seed=0: client.batch = -1: must be at least 1" in said
    )
    assert not (tmp_path / "out").exists()


def test_an_unknown_sweep_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "demoo"]) == 2
    assert "no sweep 'demoo', neither shipped nor a file; did you mean 'demo'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(sweep_names()))
def test_every_shipped_sweep_can_be_run(name: str) -> None:
    """Its file says what it is for; its name is its file's; no two runs of it are the same."""
    sweep = spec.read(name)
    assert sweep_names()[name].read_text().startswith("# ")
    assert sweep.name == name
    assert len(runs.planned(sweep)) == len(sweep.points)
    assert sweep.points or sweep.studies


def test_shipped_sweeps_are_what_they_say() -> None:
    """Four curricula on three partitions, five memories of two policies, five methods tuned and five at their best."""
    size = {name: len(spec.read(name).points) for name in sweep_names()}
    assert size == {"best-digits": 50, "curricula": 60, "demo": 15, "replay-memory": 50, "tune-digits": 0}
    scenarios = spec.checked(spec.read("curricula"))
    orders = {(each.stream.partition, type(each.client.curriculum).__name__, each.seed) for each in scenarios}
    assert len(orders) == 60
    memories = {
        (each.client.memory.size, type(each.client.memory).__name__)
        for each in spec.checked(spec.read("replay-memory"))
    }
    assert len(memories) == 10
    demo = [point.labels["method"] for point in spec.read("demo").points[:5]]
    assert [study.labels["method"] for study in spec.read("tune-digits").studies] == demo
    assert [point.labels["method"] for point in spec.read("best-digits").points[:5]] == demo


@pytest.mark.parametrize("name", ["curricula", "replay-memory"])
def test_a_sweep_of_data_that_is_not_there_is_refused_before_anything_runs(name: str, tmp_path: Path) -> None:
    """One sentence that names the data, for all runs of it; nothing is written."""
    sweep = spec.read(name, ["stream.dataset=fashion-mnist", f"data.root={tmp_path / 'nowhere'}"])
    with pytest.raises(
        ConfigError, match=r"fashion_mnist/.*: neither it nor its \.gz is there; set data\.root or FEDCL_DATA"
    ):
        runs.carry_out(sweep, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_points_of_one_configuration_are_one_run(tmp_path: Path) -> None:
    """lr 0.05 is what is set anyway."""
    sweep = spec.of_plain(small(grid={"rate": {"set": {}, "again": {"client.optimizer.lr": 0.05}}}, seeds=1), "x")
    (run,) = runs.planned(sweep).values()
    assert [point.labels["rate"] for point in run.points] == ["set", "again"]


# What is run. Each sweep is a command of its own, with a Ray of its own.


def swept_by(path: Path, out: Path, *options: str, timeout: float = 300) -> tuple[int, str]:
    """Return exit code and stderr of the command."""
    command = [sys.executable, "-m", "fedcl", "sweep", str(path), "--out", str(out), "--quiet", *options]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=timeout)
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Path, runs.State]:
    """Return a sweep of two methods and two seeds that has run undisturbed."""
    folder = tmp_path_factory.mktemp("sweep")
    path = written(folder, small())
    assert swept_by(path, folder / "out") == (0, "")
    sweep = spec.read(str(path))
    return sweep, folder / "out", runs.carry_out(sweep, folder / "out")  # nothing is left to do


def test_a_run_of_a_sweep_is_the_run_that_fedcl_run_makes(
    swept: tuple[Sweep, Path, runs.State], tmp_path: Path
) -> None:
    _, out, state = swept
    assert state.counts == {"done": 4}
    key, run = next(iter(state.runs.items()))
    alone = api.run(changed(run.scenario, kind="inline"), out=tmp_path / "alone").results
    found = json.loads((out / "runs" / key / "results.json").read_text())
    for name in ("weights_sha256", "state_sha256", "clients_sha256", "metrics", "config_hash"):
        assert found[name] == alone[name]
    assert key == config.config_hash(run.scenario)[:12]
    assert found["command"].startswith("fedcl sweep ")


def test_what_is_finished_is_not_done_again(swept: tuple[Sweep, Path, runs.State]) -> None:
    sweep, out, _ = swept
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*")}
    state = runs.carry_out(sweep, out)
    assert state.counts == {"done": 4}
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*")} == before
    ends = [event["status"] for event in read_events(out) if event["event"] == "run_end"]
    assert ends == ["done"] * 4


def test_the_table_is_over_the_seeds_of_each_method(swept: tuple[Sweep, Path, runs.State]) -> None:
    _, out, state = swept
    found = tables.collect(out)
    by_hand: dict[str, list[float]] = {"finetune": [], "er": []}
    for key, run in state.runs.items():
        results = json.loads((out / "runs" / key / "results.json").read_text())
        by_hand[run.points[0].labels["client.method"]].append(results["metrics"]["acc"])
    assert [row.labels["client.method"] for row in found.rows] == ["finetune", "er"]
    assert [row.spread for row in found.rows] == [spread(values) for values in by_hand.values()]
    assert found.rows[0].versus is None
    versus = found.rows[1].versus
    assert versus is not None
    assert versus.note == "no test: 2 seeds in common"
    assert versus.difference.mean == pytest.approx(
        sum(er - plain for er, plain in zip(by_hand["er"], by_hand["finetune"], strict=True)) / 2
    )
    assert "no interval: 2 seeds, 3 are the fewest" in tables.notes(found)
    assert "p: no test: 2 seeds in common." in tables.notes(found)
    with pytest.raises(ConfigError, match=r"--metric 'acx': unknown; did you mean 'acc'\?"):
        tables.collect(out, "acx")


def test_a_report_of_a_sweep_is_one_of_its_runs(swept: tuple[Sweep, Path, runs.State], tmp_path: Path) -> None:
    _, out, _ = swept
    assert main(["report", str(out), "--out", str(tmp_path / "report.html")]) == 0
    assert "4 runs" in (tmp_path / "report.html").read_text()
    write_json(tmp_path / "sweep.json", {"schema": 1, "points": [{"key": "ab"}]})
    assert main(["report", str(tmp_path)]) == 1  # no plan of ours: damaged


def test_one_that_fails_stops_nobody_and_is_run_again_when_asked(tmp_path: Path) -> None:
    """Its folder is a file at first."""
    path, out = written(tmp_path, small()), tmp_path / "out"
    sweep = spec.read(str(path))
    broken = list(runs.planned(sweep))[1]
    (out / "runs").mkdir(parents=True)
    (out / "runs" / broken).write_text("in the way")
    code, said = swept_by(path, out)
    assert code == 1
    assert "failed: split-digits client.method=er seed=0" in said
    state = runs.carry_out(sweep, out)  # it is not run again unless somebody asks for it
    assert state.counts == {"done": 3, "failed": 1}
    assert state.status[broken] == "failed"
    assert "cannot be written" in state.errors[broken]
    (out / "runs" / broken).unlink()
    assert swept_by(path, out, "--retry-failed") == (0, "")
    again = runs.carry_out(sweep, out)
    assert (again.counts, again.errors) == ({"done": 4}, {})


@pytest.mark.slow
def test_a_stopped_sweep_goes_on(tmp_path: Path) -> None:
    """SIGTERM within the first run: exit 75; the same command finishes it."""
    path = written(tmp_path, small(set={**TINY, "stream.schedule.rounds_per_task": 100}, limits={"at_once": 1}))
    command = [sys.executable, "-m", "fedcl", "sweep", str(path), "--out", str(tmp_path / "out"), "--quiet"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    journals = (tmp_path / "out").glob
    while child.poll() is None and not any('"round"' in each.read_text() for each in journals("runs/*/events.jsonl")):
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 75, said
    assert "the same command goes on" in said
    ends = [event["status"] for event in read_events(tmp_path / "out") if event["event"] == "run_end"]
    assert ends == ["stopped"]
    assert subprocess.run(command, stdout=subprocess.DEVNULL, timeout=300).returncode == 0
    assert runs.carry_out(spec.read(str(path)), tmp_path / "out").counts == {"done": 4}


# Tables.


def test_methods_are_compared_where_all_else_is_alike(tmp_path: Path) -> None:
    """Of two axes the first is compared: each row with the first choice of it that has the same second axis."""
    out, points = tmp_path, []
    for policy, size, value in (("a", "1", 0.5), ("a", "2", 0.8), ("b", "1", 0.6), ("b", "2", 0.7)):
        for seed in range(3):
            key = f"{policy}{size}{seed}"
            labels = {"scenario": "s", "policy": policy, "size": size}
            points.append({"key": key, "labels": labels, "seed": seed, "overrides": []})
            (out / "runs" / key).mkdir(parents=True)
            write_json(out / "runs" / key / "results.json", results(value + seed / 100))
    write_json(out / "sweep.json", {"schema": 1, "name": "two", "command": "", "points": points})
    found = tables.collect(out)
    versus = [None if row.versus is None else round(row.versus.difference.mean, 9) for row in found.rows]
    assert versus == [None, None, 0.1, -0.1]
    assert (
        "difference: to the first policy of the same scenario and size, on the seeds that both have"
        in tables.notes(found)[1]
    )


def results(acc: float | None, status: str = "finished") -> dict[str, Any]:
    return {
        "schema": 1,
        "status": status,
        "metrics": {"acc": acc, "forgetting": 0.1},
        "clients": {"acc": {"worst": 0.5}},
    }


def invented(out: Path, accuracies: dict[tuple[str, str], list[float | None]]) -> Path:
    """Write a sweep by (scenario, method) with these accuracies, one a seed."""
    points = []
    for (scenario, method), values in accuracies.items():
        for seed, value in enumerate(values):
            key = f"{scenario}-{method}-{seed}".replace("|", "-")  # the name of a folder
            points.append(
                {"key": key, "labels": {"scenario": scenario, "method": method}, "seed": seed, "overrides": []}
            )
            (out / "runs" / key).mkdir(parents=True)
            write_json(out / "runs" / key / "results.json", results(value))
    write_json(out / "sweep.json", {"schema": 1, "name": "invented", "command": "", "points": points})
    return out


SEEDS = [0.70, 0.72, 0.74]


def test_tables_in_every_format(tmp_path: Path) -> None:
    """FOT beats plain training by .10, .11 and .12 on a; b has no figure of er; special letters are escaped."""
    better = [0.80, 0.83, 0.86]
    out = invented(tmp_path, {
        ("a", "plain_1"): list(SEEDS), ("a", "f|t"): list(better),
        ("b", "plain_1"): list(SEEDS), ("b", "f|t"): [None] * 3,
    })  # fmt: skip
    found = tables.collect(out)
    tables.write(found, out)
    lines = (out / "table.csv").read_text().splitlines()
    assert lines[0] == "scenario,method,seeds,mean,std,interval,iqm,difference,its interval,p,test"
    assert lines[2] == "a,f|t,3,0.830,0.030,0.755 to 0.905,0.830,+0.110,+0.085 to +0.135,0.003,paired t test"
    assert lines[4] == "b,f|t,0,-,-,-,-,-,-,-,-"
    markdown, latex = (out / "table.md").read_text(), (out / "table.tex").read_text()
    assert "| a | f\\|t | 3 | 0.830 |" in markdown
    assert r"a & plain\_1 & 3 & 0.720 &" in latex
    assert latex.count(r"\\") == 5
    paper = (out / "paper.tex").read_text()  # in percent, the best of a scenario in bold, what no run has as --
    assert r"a & plain\_1 & 72.0 $\pm$ 2.0" in paper
    assert r"a & f|t & \textbf{83.0} $\pm$ 3.0" in paper
    assert "b & f|t & --" in paper
    plain = json.loads((out / "table.json").read_text())
    assert plain["rows"][1]["values"] == {"0": 0.8, "1": 0.83, "2": 0.86}
    assert plain["rows"][1]["versus"]["difference"]["mean"] == pytest.approx(0.11)
    assert plain["rows"][3]["spread"] is None
    assert found.ranks == {}  # b lacks a method


def test_ranks_need_two_scenarios_with_every_method(tmp_path: Path) -> None:
    two = {(scenario, method): [value] for scenario in "ab" for method, value in (("er", 0.9), ("fot", 0.8))}
    found = tables.collect(invented(tmp_path, two))
    assert found.ranks == {"method=er": 1.0, "method=fot": 2.0}
    assert tables.notes(found)[-1] == "mean rank over scenarios: method=er 1.00, method=fot 2.00"


def test_figures_of_clients_have_a_dotted_name(tmp_path: Path) -> None:
    out = invented(tmp_path, {("a", "er"): [0.9, 0.8]})
    assert tables.collect(out, "clients.acc.worst").rows[0].values == {0: 0.5, 1: 0.5}
    assert tables.collect(out, "clients.nothing").rows[0].values == {}


def test_a_folder_without_a_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no sweep"):
        tables.collect(tmp_path)


# Killed.


GRID = {
    "scenarios": ["split-digits", "task-digits", "split-digits-async"],
    "set": {"stream.schedule.rounds_per_task": 2, "client.epochs": 1},
    "grid": {
        "method": {
            "finetune": {"client.method": "finetune"},
            "er": {"client.method": "er", "client.memory.size": 24},
            "derpp": {"client.method": "derpp", "client.memory.size": 24},
            "fot": {"client.method": "finetune", "server.method": "fot"},
        }
    },
    "seeds": 5,
}
FOLDERS = ("straight", "killed")
TIMES = {"command", "cost"}  # of results.json: where, how fast, with how much memory


@pytest.mark.nightly
def test_a_sweep_that_is_killed_three_times_ends_as_one_that_is_not(tmp_path: Path) -> None:
    """4 methods x 3 scenarios x 5 seeds, SIGKILL of everything at three random moments, then the same command.

    Same results.json of every run, times apart, and no finished run done twice.
    """
    path, killed = written(tmp_path, GRID), tmp_path / "killed"
    assert swept_by(path, tmp_path / "straight", timeout=1200) == (0, "")
    undisturbed = runs.planned(spec.read(str(path)))
    assert len(undisturbed) == 60
    command = [sys.executable, "-m", "fedcl", "sweep", str(path), "--out", str(killed), "--quiet"]
    moments, finished = sorted(random.SystemRandom().sample(range(1, 55), 3)), dict[Path, int]()
    for begun in moments:  # so many runs have a checkpoint
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        while child.poll() is None and len(list(killed.glob("runs/*/checkpoints"))) < begun:
            time.sleep(0.01)
        time.sleep(random.SystemRandom().random())
        assert child.poll() is None, moments
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        finished = {each: each.stat().st_mtime_ns for each in killed.glob("runs/*/results.json")} | finished
    assert swept_by(path, killed, timeout=1200) == (0, "")
    cores = len(os.sched_getaffinity(0))  # so many runs are in work at a time
    assert moments[-1] - cores <= len(finished) < 60, moments
    assert {each: each.stat().st_mtime_ns for each in finished} == finished, moments  # not one of them was done again
    for key in undisturbed:
        one, other = (json.loads((tmp_path / name / "runs" / key / "results.json").read_text()) for name in FOLDERS)
        assert one.keys() == other.keys()
        different = {name for name in one if one[name] != other[name]}
        assert different <= TIMES, (key, moments, different)
        for name in ("rounds", "client_updates", "steps", "bytes_up", "bytes_down", "failed"):
            assert one["cost"][name] == other["cost"][name], (key, moments, name)
    done = [event["key"] for event in read_events(killed) if event.get("status") == "done"]
    started = Counter(event["key"] for event in read_events(killed) if event["event"] == "run_start")
    assert len(done) == len(set(done)), moments
    # Only what was running is started once more; some of it may have come to its end just before Ray's processes did.
    assert 60 <= started.total() <= 60 + 3 * cores, moments
