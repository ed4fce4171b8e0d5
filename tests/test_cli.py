"""The command line as a user meets it: exit codes, one sentence a mistake, files that are written."""

import csv
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml

import fedcl
from fedcl import registry
from fedcl.catalogue import KINDS, TOPICS
from fedcl.cli import main
from fedcl.config import load

ROOT = Path(__file__).parents[1]
SMALL = ["split-digits", "engine.kind=inline", "stream.tasks=2", "stream.schedule.rounds_per_task=1", "client.epochs=1"]


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "small"
    assert main(["run", *SMALL, "--quiet", "--out", str(directory)]) == 0
    return directory


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(capsys, *arguments: str) -> str:
    """Return what a refused command says: one line on stderr, exit code 2, nothing on stdout."""
    assert main(list(arguments)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("fedcl: ")
    assert said.err.count("\n") == 1
    return said.err.removeprefix("fedcl: ").rstrip("\n")


def printed(capsys, *arguments: str, code: int = 0) -> str:
    assert main(list(arguments)) == code
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


def test_the_version_is_that_of_the_package(capsys):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert printed(capsys, "--version") == f"fedcl {project['version']}\n"
    assert fedcl.__version__ == project["version"]


def test_help_imports_neither_torch_nor_flower_nor_numpy():
    heavy = "{'torch', 'flwr', 'ray', 'numpy', 'sklearn', 'omegaconf', 'rich.live'} & set(sys.modules)"
    code = f"import sys; from fedcl.cli import main; main(['run', '--help']); assert not {heavy}, {heavy}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--resume" in done.stdout


def test_the_public_names_are_loaded_when_asked_for():
    from fedcl import api, config

    assert (fedcl.load, fedcl.run, fedcl.resume, fedcl.Scenario) == (api.load, api.run, api.resume, config.Scenario)
    assert set(dir(fedcl)) == set(fedcl.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = fedcl.lode


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rnu"], "did you mean 'run'"),
        (["run", "--ot", "x"], "did you mean '--out'"),
        (["run"], "name a SCENARIO"),
        (["run", "split-digit"], "did you mean 'split-digits'"),
        (["run", "split-digits", "client.epoch=1"], "did you mean 'epochs'"),
        (["run", "split-digits", "client.optimizer.lr=.nan"], "client.optimizer.lr = nan"),
        (["run", "split-digits", "--resume", "x"], "leave out SCENARIO"),
        (["run", "--resume", "x"], "no run directory"),
        (["show"], "missing argument 'scenario'"),
        (["show", "split-digits", "seed"], "dotted.key=value"),
        (["list", "client"], "did you mean 'clients'"),
        (["report"], "missing argument 'dir...'"),
        (["report", "nowhere"], "'nowhere' holds no run"),
        (["predict", "nowhere", "x.npy"], "no run directory"),
    ],
)
def test_a_users_mistake_is_one_sentence(capsys, arguments, expected):
    assert expected.lower() in refused(capsys, *arguments).lower()


def test_without_arguments_the_help_is_shown(capsys):
    assert main([]) == 2
    assert "Usage: fedcl" in capsys.readouterr().out


def test_the_module_runs_and_gives_the_exit_code():
    done = subprocess.run([sys.executable, "-m", "fedcl", "show", "nothing"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("fedcl: no scenario 'nothing'")


def test_a_reader_that_leaves_early_is_no_error():
    command = f"set -o pipefail; {sys.executable} -m fedcl show split-digits | true"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""


def test_shell_completion_knows_the_scenarios(monkeypatch):
    words = {"_FEDCL_COMPLETE": "complete_bash", "COMP_WORDS": "fedcl run split-d", "COMP_CWORD": "2"}
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-m", "fedcl"], cwd=ROOT, capture_output=True, text=True)
    assert "split-digits" in done.stdout.split()


def test_show_prints_a_configuration_that_loads_to_the_same(capsys, tmp_path):
    text = printed(capsys, "show", "split-digits", "client.optimizer.lr=0.25")
    assert yaml.safe_load(text)["client"]["optimizer"]["lr"] == 0.25
    (tmp_path / "again.yaml").write_text(text)
    assert load("again.yaml") == load("split-digits", ["client.optimizer.lr=0.25"])


def test_the_plan_of_the_synchronous_scenario(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = printed(capsys, "show", "split-digits", "--plan").splitlines()
    assert lines[0] == "split-digits: 5 clients, 5 tasks, 150 rounds, 5 asked a round"
    assert lines[1].startswith("one column = 3 rounds")
    assert lines[3].split() == ["round", "1", "31", "61", "91", "121"]
    assert lines[4:] == [
        f"client {k}".ljust(16) + "0" * 10 + "1" * 10 + "2" * 10 + "3" * 10 + "4" * 10 for k in range(5)
    ]
    assert max(map(len, lines)) <= 80


def test_the_plan_of_a_written_out_schedule(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    entries = "[{start: 1, tasks: [1, 0], rounds: [2, 3]}, {tasks: [0], rounds: [4]}]"
    schedule = f"stream.schedule={{kind: explicit, clients: {entries}}}"
    changes = ["stream.clients=2", "server.clients_per_round=null"]
    lines = printed(capsys, "show", "split-digits", "--plan", *changes, schedule).splitlines()
    assert lines[0] == "split-digits: 2 clients, 5 tasks, 6 rounds, 2 asked a round"
    assert lines[-2:] == ["client 0".ljust(16) + ".11000", "client 1".ljust(16) + "0000.."]


def test_the_plan_stays_within_forty_clients_and_counts_visits(capsys):
    changes = ["stream.clients=100", "server.clients_per_round=50", "stream.schedule.clock=participations"]
    lines = printed(capsys, "show", "split-digits", "--plan", "stream.tasks=2", *changes).splitlines()
    assert sum(line.startswith("client ") for line in lines) == 40
    assert "the first 40 of 100 clients" in lines
    assert any("asked equally often" in line for line in lines)
    symbols = lines[-1].split()[-1]
    assert symbols == "0" * (len(symbols) // 2) + "1" * (len(symbols) // 2)


@pytest.mark.parametrize("topic", TOPICS)
def test_every_topic_lists_names_with_a_line_each(capsys, topic):
    entries = json.loads(printed(capsys, "list", topic, "--json"))
    text = printed(capsys, "list", topic)
    assert entries
    assert max(map(len, text.splitlines())) <= 100
    for entry in entries:
        assert entry["about"], entry["name"]
        assert "\n" not in entry["about"]
        assert f"  {entry['name']}: " in text
        assert f" {entry['name']}: {entry['about']}" in f" {' '.join(text.split())}"
    if topic in KINDS:
        assert [entry["name"] for entry in entries] == registry.names(KINDS[topic])


def test_settings_are_listed_with_default_and_help(capsys):
    methods = {entry["name"]: entry for entry in json.loads(printed(capsys, "list", "clients", "--json"))}
    settings = {option["name"]: option for option in methods["derpp"]["settings"]}
    assert (settings["alpha"]["default"], settings["beta"]["default"]) == (0.1, 0.5)
    assert all(option["help"] for option in settings.values())
    assert "    beta = 0.5  " in printed(capsys, "list", "clients")


def test_paper_needs_and_verification_are_listed(capsys):
    """One line under what it is; --json has each of them, and where the evidence stands."""
    lines = printed(capsys, "list", "clients").splitlines()
    er = "    paper Chaudhry et al., 2019, arXiv:1902.10486; needs a replay memory; verified by oracle, figure"
    assert lines[lines.index("  er: Experience replay: CE(x, y) + CE(x', y').") + 1] == er
    entry = {each["name"]: each for each in json.loads(printed(capsys, "list", "clients", "--json"))}["er"]
    assert entry["paper"] == "Chaudhry et al., 2019, arXiv:1902.10486"
    assert entry["needs"] == ["a replay memory"]
    assert {"kind": "figure", "where": "ER | split-digits"} in entry["verified"]
    assert "    not verified" in printed(capsys, "list", "scenarios").splitlines()
    assert "verified" not in printed(capsys, "list", "models")


def test_all_names_are_listed_by_topic(capsys):
    names = json.loads(printed(capsys, "list", "--json"))
    assert list(names) == list(TOPICS)
    assert names["partitions"][:3] == ["iid", "dirichlet", "shards"]
    assert "partitions: iid, dirichlet, shards, drawn" in printed(capsys, "list").splitlines()


def test_a_run_writes_its_directory(run_directory):
    results = json.loads((run_directory / "results.json").read_text())
    assert (results["status"], results["cost"]["rounds"]) == ("finished", 2)
    assert results["command"] == f"fedcl run {' '.join(SMALL)} --quiet --out {run_directory}"
    assert load(str(run_directory / "config.yaml")).stream.tasks == 2


def test_a_run_tells_its_progress_its_table_and_its_directory(capsys):
    lines = printed(capsys, "run", *SMALL).splitlines()
    assert lines[0].startswith("split-digits: 5 clients, 2 tasks, 2 rounds, seed 0")
    assert any(line.startswith("round 2: task 1 ended; accuracy per task: ") for line in lines)
    assert any(line.split()[:1] == ["ACC"] for line in lines)
    directory = Path(lines[-1])
    assert directory.parent == Path.cwd() / "runs" / "split-digits"
    assert (directory / "model.safetensors").is_file()


def test_a_quiet_run_prints_its_directory_alone(capsys, tmp_path):
    assert printed(capsys, "run", *SMALL, "--quiet", "--out", str(tmp_path / "here")) == f"{tmp_path / 'here'}\n"


def test_a_finished_run_is_not_overwritten(capsys, run_directory):
    assert str(run_directory) in refused(capsys, "run", *SMALL, "--out", str(run_directory))


def test_resuming_a_finished_run_shows_it_again(capsys, run_directory):
    before = (run_directory / "results.json").read_bytes()
    assert printed(capsys, "run", "--resume", str(run_directory), "--quiet") == f"{run_directory}\n"
    assert (run_directory / "results.json").read_bytes() == before


def test_a_report_is_written_beside_the_run_or_where_asked(capsys, run_directory, tmp_path):
    assert printed(capsys, "report", str(run_directory)) == f"{run_directory / 'report.html'}\n"
    assert "<html" in (run_directory / "report.html").read_text()
    out = tmp_path / "both.html"
    assert printed(capsys, "report", str(run_directory), str(run_directory), "--out", str(out)) == f"{out}\n"
    assert out.is_file()


def predicted(capsys, *arguments: str) -> list[dict[str, str]]:
    return list(csv.DictReader(printed(capsys, "predict", *arguments).splitlines()))


def test_predictions_agree_with_the_model_and_among_file_formats(capsys, run_directory, tmp_path):
    run = fedcl.load(run_directory)
    data = run.stream().dataset
    x = data.test_x[:7]
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x.astype(np.float32), other=np.zeros(3))
    header = ",".join(f"p{i}" for i in range(64))
    np.savetxt(tmp_path / "x.csv", x.reshape(7, -1), fmt="%d", delimiter=",", header=header, comments="")
    files = [str(tmp_path / name) for name in ("x.npy", "x.npz", "x.csv")]
    rows = predicted(capsys, str(run_directory), *files)
    assert [row["file"] for row in rows] == [file for file in files for _ in range(7)]
    assert [int(row["row"]) for row in rows] == [*range(7)] * 3

    import torch

    with torch.no_grad():
        inputs = torch.from_numpy(x.astype(np.float32)) * data.scale + data.shift
        chances = run.model()(inputs).softmax(1).max(1)
    for start in (0, 7, 14):
        assert [int(row["class"]) for row in rows[start : start + 7]] == chances.indices.tolist()
        assert [float(row["probability"]) for row in rows[start : start + 7]] == pytest.approx(
            chances.values.tolist(), abs=1e-4
        )


def test_one_input_needs_no_batch_dimension(capsys, run_directory, tmp_path):
    np.save(tmp_path / "one.npy", np.zeros((8, 8), np.uint8))
    assert len(predicted(capsys, str(run_directory), str(tmp_path / "one.npy"))) == 1


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.npy", np.zeros((3, 9, 9)), "x.npy: has shape (3, 9, 9): the model takes (n, 8, 8)"),
        ("x.npy", np.full((1, 8, 8), np.nan), "must hold finite numbers, but row 0 has NaN"),
        ("x.npy", np.array([["a"]]), "its array holds <U1; must be numbers"),
        ("x.csv", "1,2\n3\n", "has 1 cells in row 1, but 2 columns"),
        ("x.csv", "a,b\n", "holds no item"),
        ("x.npz", np.zeros((1, 8, 8)), "has no array 'x'"),
        ("x.npy", "no array", "cannot be read as .npy"),
        ("x.txt", "", "is of a kind that is not read; must be .npy, .png"),
        ("gone.npy", None, "gone.npy: is not there"),
    ],
)
def test_inputs_that_cannot_be_predicted_are_one_sentence(capsys, run_directory, name, content, expected):
    path = Path(name)
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None and path.suffix == ".npz":
        np.savez(path, y=content)
    elif content is not None:
        np.save(path, content)
    assert expected in refused(capsys, "predict", str(run_directory), name)


def test_a_task_leaves_only_its_classes(capsys, tmp_path):
    directory = tmp_path / "tasks"
    small = [*SMALL, "stream.kind=task-incremental"]
    assert main(["run", *small, "--quiet", "--out", str(directory)]) == 0
    stream = fedcl.load(directory).stream()
    np.save("x.npy", stream.dataset.test_x[:40])
    capsys.readouterr()
    for task in stream.tasks:
        rows = predicted(capsys, str(directory), "x.npy", "--task", str(task.id))
        assert {int(row["class"]) for row in rows} <= set(task.classes)
    assert "--task 2: the run has the tasks 0 to 1" in refused(
        capsys, "predict", str(directory), "x.npy", "--task", "2"
    )


def test_checking_something_that_is_not_there_is_one_sentence(capsys):
    assert "no.such.package:Name" in refused(capsys, "check", "no.such.package:Name")
