"""Clusters: who can take part, what is said where somebody cannot, runs and sweeps on two nodes, nodes that die."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedcl import addresses, api, config
from fedcl.cli import main
from fedcl.console import Progress
from fedcl.engine import survey
from fedcl.engine.cluster import Node, room, worker_environment
from fedcl.engine.survey import Sight, trouble
from fedcl.errors import ConfigError
from fedcl.process import environment as process_environment
from tests.clusters import (
    ROOT,
    Cluster,
    cluster,
    ended,
    environment,
    fedcl,
    finished,
    happened,
    results,
    same_as_alone,
    wait_for_checkpoints,
    written,
)  # fmt: skip

FEDCL = ("-m", "fedcl")
IMPATIENT = """
import sys
from fedcl.cli import main
from fedcl.engine import pool
pool.PATIENCE = 3
sys.exit(main(sys.argv[1:]))
"""
STARTED = """
import json, os, ray
from fedcl.engine.cluster import start_ray, worker_environment
from fedcl.process import environment
before = dict(os.environ)
start_ray(None)
seen = ray.get(ray.remote(lambda: dict(os.environ)).options(runtime_env=worker_environment()).remote())
kept = [name for name in environment() if os.environ.get(name) != before.get(name)] == []
alike = worker_environment()
os.environ["FEDCL_RECORD"] = "0"
told = worker_environment()
actor = ray.remote(lambda: os.environ["FEDCL_RECORD"]).options(runtime_env=told)
print(json.dumps([seen, kept, alike, told, ray.get(actor.remote())]))
"""
EXAMPLES = ROOT / "examples" / "cluster"
TINY = ["stream.schedule.rounds_per_task=1", "stream.tasks=2", "engine.cohort=2"]


# What can be known without a cluster.


@pytest.mark.parametrize("address", [None, "auto", "head:6379", "10.0.0.1:6379", "[::1]:6379"])
def test_an_address_is_host_and_port_or_auto(address: str | None) -> None:
    assert addresses.problem(address) == ""


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "head:0", "head:70000", "ray://head:10001", "local"])
def test_another_address_is_one_sentence(address: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine\.address = .*: must be HOST:PORT"):
        config.load("split-digits", [f"engine.address='{address}'"])
    assert main(["sweep", "demo", "--address", address, "--out", str(tmp_path / "out")]) == 2
    assert f"--address {address!r}: must be HOST:PORT" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "way"),
    [(["run", "split-digits", "engine.kind=ray"], ", or run with engine.kind=inline"), (["sweep", "demo"], "")],
)
def test_ray_that_does_not_start_is_one_sentence(words: Sequence[str], way: str, tmp_path: Path) -> None:
    """Its files cannot be written here; on a machine that is too slow for its patience, it says so likewise."""
    nowhere = environment(Path("/dev/null/nowhere"))
    process = fedcl(*words, "--out", str(tmp_path / "out"), env=nowhere, cwd=tmp_path)
    out, said = process.communicate(timeout=200)
    why = "[Errno 20] Not a directory: '/dev/null/nowhere'"
    assert said == f"fedcl: Ray does not start on this machine ({why}); try again if the machine is busy{way}\n"
    assert (process.returncode, out.split()) == (1, [str(tmp_path / "out")] if way else [])


def test_rays_processes_inherit_what_workers_are_to_have(tmp_path: Path) -> None:
    """Only what has changed since needs a process of its own; this process keeps its own variables."""
    mine = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "7"}
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "FEDCL_", "MALLOC_"))}
    process = subprocess.run(
        [sys.executable, "-c", STARTED], env=bare | mine, cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    seen, kept, alike, told, inside = json.loads(process.stdout.splitlines()[-1])
    assert {name: seen.get(name) for name in process_environment()} == process_environment()
    assert process_environment()["OMP_NUM_THREADS"] == "1"
    assert (kept, alike, told, inside) == (True, {}, {"env_vars": {"FEDCL_RECORD": "0"}}, "0")


def test_a_ray_that_somebody_else_has_started_is_told_everything(ray_cluster: None) -> None:
    assert worker_environment() == {"env_vars": process_environment()}


def test_nodes_without_an_address_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["sweep", "demo", "--nodes", "2", "--out", str(tmp_path / "out")]) == 2
    assert "--nodes 2: without --address there is no cluster" in capsys.readouterr().err


def node(cpus: float, gpus: float = 0.0) -> Node:
    return Node(key="0123456789", host="a", cpus=cpus, gpus=gpus)


@pytest.mark.parametrize(
    ("there", "cpus", "gpus", "most"),
    [
        ([node(1), node(1)], 1, 0, 2),
        ([node(1), node(1)], 2, 0, 0),  # two cores of two machines are not two cores
        ([node(8), node(3)], 2, 0, 5),
        ([node(0.3)], 0.1, 0, 3),
        ([node(8, 2), node(64)], 1, 1, 2),
        ([node(8, 2)], 1, 0.6, 2),  # each lies on one GPU
        ([node(8, 2)], 1, 0.5, 4),
        ([node(8, 3)], 1, 2, 1),
        ([], 1, 0, 0),
    ],
)
def test_a_call_lies_on_one_node(there: list[Node], cpus: float, gpus: float, most: int) -> None:
    assert room(there, cpus, gpus) == most


def sight(**changes: Any) -> Sight:
    return Sight(**{"reads": True, "refused": "", "versions": survey.versions(), **changes})


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (sight(), ""),
        (sight(reads=False), "a does not see --out '{0}'; choose a folder that all machines share"),
        (sight(reads=False, refused="no such folder"), "a does not see --out '{0}'"),
        (sight(refused="denied"), r"a cannot write to --out '{0}' \(denied\); let its user write there"),
        ("has not answered in 120 s", "a has not answered in 120 s; has it fedcl under the same path"),
        (sight(versions=survey.versions() | {"torch": "1.0"}), "a has torch 1.0 instead of .*; install the same"),
        (sight(versions=survey.versions() | {"fedcl's source": "ab"}), "a has fedcl's source ab instead of"),
        (sight(versions=survey.versions() | {"fedcl": "0.0", "numpy": "1"}), "a has fedcl 0.0 .*, numpy 1 instead"),
    ],
)
def test_why_a_node_cannot_take_part(seen: Sight | str, said: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "n").write_text("token")
    found = trouble("a", seen, place / "n", "token", "--out")
    assert bool(found) == bool(said)
    assert re.match(said.format(tmp_path), found)


def test_what_a_node_has_written_must_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads the driver's file, as from a copy of the folder, but its own is not seen here."""
    monkeypatch.setattr(survey, "LAG", 0.3)
    (tmp_path / "place").mkdir()
    assert "does not see" in trouble("a", sight(), tmp_path / "place" / "n", "token", "--out")
    assert "does not see" in trouble("a", sight(), tmp_path / "gone" / "place" / "n", "token", "--out")


def test_a_node_looks_at_the_token_and_leaves_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "LAG", 0.3)
    (tmp_path / survey.DRIVER).write_text("token")
    assert survey.look(str(tmp_path), "n", "token") == sight()
    assert (tmp_path / "n").read_text() == "token"
    assert survey.look(str(tmp_path), "n", "another").reads is False
    assert "No such file" in survey.look(str(tmp_path / "gone"), "n", "token").refused


def test_workers_that_wait_for_cores_of_others_are_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    Progress()({"event": "queued", "here": 1, "needed": 2})
    assert "waiting for free cores or GPUs: 1 of 2 workers have started" in capsys.readouterr().out


def test_the_launchers_file_is_as_ray_wants_it() -> None:
    """Filled up and checked by Ray itself, as `ray up` does."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    plain = yaml.safe_load((EXAMPLES / "ray-cluster.yaml").read_text())
    filled = prepare_config(plain)
    validate_config(filled)
    (kind,) = filled["available_node_types"].values()
    assert (kind["min_workers"], kind["max_workers"]) == (2, 2)
    with pytest.raises(Exception, match="worker_ip"):
        validate_config({**filled, "worker_ip": []})


def test_no_cluster_is_one_sentence_in_seconds(tmp_path: Path) -> None:
    """Nothing listens; exit code 1 and the key."""
    began, env = time.monotonic(), environment(tmp_path)
    for words in (
        ["run", "split-digits", *TINY, "engine.address=127.0.0.1:1"],
        ["sweep", "demo", "--address=127.0.0.1:1"],
    ):
        code, said = ended(fedcl(*words, "--out", str(tmp_path / words[0]), env=env, cwd=tmp_path))
        assert code == 1
        key = "engine.address =" if words[0] == "run" else "--address ="
        assert f"{key} '127.0.0.1:1': no Ray cluster answers there" in said
        assert "Traceback" not in said
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_something_else_that_listens_is_no_cluster(tmp_path: Path) -> None:
    """Ray itself would try for two minutes."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        words = ["sweep", "demo", "--address", address, "--out", str(tmp_path / "out")]
        code, said = ended(fedcl(*words, env=environment(tmp_path), cwd=tmp_path), 60)
    assert code == 1
    assert f"{address}': what answers there is no Ray cluster" in said


# Two nodes with a core each. The second has a folder of its own where the first has another: `private`.


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("private")


@pytest.fixture(scope="module")
def pair(private: Path) -> Iterator[Cluster]:
    with cluster(1) as made:
        made.add(before=apart(private))
        yield made


def apart(folder: Path) -> list[str]:
    """Return what gives a command an empty folder of its own in that place, [] where that is not allowed."""
    words = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(folder)]
    try:
        allowed = subprocess.run([*words, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    return words if allowed else []


def swept(made: Cluster, path: Path, out: Path, *options: str, code: Sequence[str] = FEDCL) -> subprocess.Popen[str]:
    words = ["sweep", str(path), "--address", made.address, "--nodes", str(len(made.nodes)), "--out", str(out), "-q"]
    return fedcl(*words, *options, env=made.env, cwd=path.parent, code=code)


@pytest.mark.slow
def test_a_sweep_is_shared_by_both_nodes(pair: Cluster, tmp_path: Path) -> None:
    """Four runs on two nodes with a core each have the hashes of runs in one process; what is finished stays."""
    path, out = written(tmp_path), tmp_path / "out"
    assert ended(swept(pair, path, out)) == (0, "")
    (event,) = happened(out, "nodes")
    assert [each["cpus"] for each in event["nodes"]] == [1.0, 1.0]
    ends = happened(out, "run_end")
    assert [each["status"] for each in ends] == ["done"] * 4
    assert {each["node"] for each in ends} == {each["key"] for each in event["nodes"]}
    assert not list(out.glob(".nodes-*"))
    same_as_alone(path, out, tmp_path)
    assert ended(swept(pair, path, out)) == (0, "")
    assert len(happened(out, "run_end")) == 4


@pytest.mark.slow
def test_a_run_is_shared_by_both_nodes(pair: Cluster, tmp_path: Path) -> None:
    """Two workers of a core each need both nodes; `auto` takes as many as there is room for. The cluster stays up."""
    alone = api.run(config.load("split-digits", [*TINY, "engine.kind=inline"]), out=tmp_path / "alone").directory
    for workers in ("2", "auto"):
        words = ["run", "split-digits", *TINY, f"engine.workers={workers}", f"engine.address={pair.address}", "-q"]
        code, said = ended(fedcl(*words, "--out", str(tmp_path / workers), env=pair.env, cwd=tmp_path))
        assert (code, said) == (0, "")
        assert results(tmp_path / workers) == results(alone)


@pytest.mark.slow
def test_a_node_that_does_not_see_the_folder_is_named(pair: Cluster, private: Path, tmp_path: Path) -> None:
    if not apart(private):
        pytest.skip("a folder of its own for one node takes root")
    path = written(tmp_path)
    code, said = ended(swept(pair, path, private / "out"))
    assert code == 2
    assert said.startswith("fedcl: 1 of 2 nodes cannot take part: ")
    assert f"does not see --out '{private / 'out'}'; choose a folder that all machines share" in said
    assert not happened(private / "out", "run_start")
    words = ["run", "split-digits", *TINY, f"engine.address={pair.address}", "--out", str(private / "run")]
    code, said = ended(fedcl(*words, env=pair.env, cwd=tmp_path))
    assert (code, "1 of 2 nodes cannot take part" in said) == (2, True)


@pytest.mark.slow
def test_a_cluster_that_asks_for_a_token_says_so(pair: Cluster, tmp_path: Path) -> None:
    env = {name: value for name, value in pair.env.items() if not name.startswith("RAY_AUTH")}
    words = ["sweep", str(written(tmp_path)), "--address", pair.address, "--out", str(tmp_path / "out")]
    code, said = ended(fedcl(*words, env=env, cwd=tmp_path), 100)
    assert (code, "this Ray cluster asks for its token; set RAY_AUTH_MODE=token" in said) == (1, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"cpus": 2}, "limits.cpus = 2: no node is large enough for a run (Ray has 2 nodes, of at most 1 cores"),
        ({"gpus": 1}, "limits.cpus = 1, limits.gpus = 1: no node is large enough"),
    ],
)
def test_a_run_that_fits_on_no_node_is_one_sentence(
    pair: Cluster, tmp_path: Path, limits: dict[str, Any], said: str
) -> None:
    code, told = ended(swept(pair, written(tmp_path, limits=limits), tmp_path / "out"), 100)
    assert (code, said in told, "Traceback" in told) == (2, True, False)


@pytest.mark.slow
def test_more_workers_than_there_is_room_for_are_one_sentence(pair: Cluster, tmp_path: Path) -> None:
    for address in ([f"engine.address={pair.address}"], []):
        words = ["run", "split-digits", *TINY, "engine.kind=ray", "engine.workers=999", *address]
        code, said = ended(
            fedcl(*words, "--out", str(tmp_path / f"out{len(address)}"), env=pair.env, cwd=tmp_path), 100
        )
        assert (code, "Traceback" in said) == (2, False)
        assert "engine.workers = 999: there is room for" in said


@pytest.mark.slow
def test_fewer_nodes_than_asked_for_are_one_sentence(pair: Cluster, tmp_path: Path) -> None:
    """SIGTERM ends the wait for a third node."""
    path = written(tmp_path)
    child = swept(pair, path, tmp_path / "out", "--nodes", "3")
    time.sleep(12)
    assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    assert ended(child)[0] == 75


@pytest.mark.slow
def test_a_stopped_sweep_on_a_cluster_goes_on(pair: Cluster, tmp_path: Path) -> None:
    """SIGTERM while both nodes are at work: exit 75; the same command finishes it, with the same hashes."""
    path, out = written(tmp_path, rounds=100), tmp_path / "out"
    child = swept(pair, path, out)
    wait_for_checkpoints(child, out, "runs/*/", 2)
    child.send_signal(signal.SIGTERM)
    code, said = ended(child)
    assert (code, "the same command goes on" in said) == (75, True)
    assert "stopped" in [event["status"] for event in happened(out, "run_end")]
    assert ended(swept(pair, path, out)) == (0, "")
    done = [event["key"] for event in happened(out, "run_end") if event["status"] == "done"]
    assert len(done) == len(set(done)) == 4
    same_as_alone(path, out, tmp_path)


@pytest.mark.slow
def test_a_stopped_run_on_a_cluster_goes_on(pair: Cluster, tmp_path: Path) -> None:
    long = ["stream.schedule.rounds_per_task=40", "stream.tasks=2", "checkpoint.seconds=0"]
    words = ["run", "split-digits", *long, "engine.workers=2", f"engine.address={pair.address}", "-q"]
    child = fedcl(*words, "--out", str(tmp_path / "run"), env=pair.env, cwd=tmp_path)
    wait_for_checkpoints(child, tmp_path / "run")
    child.send_signal(signal.SIGTERM)
    assert ended(child)[0] == 75
    finished(fedcl("run", "--resume", str(tmp_path / "run"), "-q", env=pair.env, cwd=tmp_path))
    alone = api.run(config.load("split-digits", [*long, "engine.kind=inline"]), out=tmp_path / "alone").directory
    assert results(tmp_path / "run") == results(alone)


@pytest.mark.slow
def test_a_run_without_an_address_starts_its_own_cluster(pair: Cluster, tmp_path: Path) -> None:
    """Somebody's cluster is up, and found by `auto`; who does not name it does not join it."""
    words = ["run", "split-digits", *TINY, "engine.kind=ray", "engine.workers=1", "-q"]
    env = {**pair.env, "RAY_ADDRESS": pair.address}
    finished(fedcl(*words, "--out", str(tmp_path / "own"), env=pair.env, cwd=tmp_path))
    found = fedcl(*words, "engine.address=auto", "--out", str(tmp_path / "auto"), env=env, cwd=tmp_path)
    assert ended(found) == (0, "")


# Clusters that do not survive it.


def first_round(events: Path) -> str:
    """Return what a journal says of the first round, which the first checkpoint has committed."""
    return next(line for line in events.read_text().splitlines() if '"event": "round"' in line)


@pytest.mark.slow
def test_a_node_that_dies_leaves_its_runs_to_the_others(tmp_path: Path) -> None:
    """Both nodes are at work when one is killed: its run goes on elsewhere from its checkpoint; the sweep ends."""
    path, out = written(tmp_path, rounds=100), tmp_path / "out"
    with cluster() as made:
        child = swept(made, path, out)
        wait_for_checkpoints(child, out, "runs/*/", 2)
        begun = {path: first_round(path) for path in out.glob("runs/*/events.jsonl")}
        made.lose(1)
        finished(child)
    ends = happened(out, "run_end")
    assert [each["status"] for each in ends] == ["done"] * 4
    assert len({each["node"] for each in ends}) == 1  # nothing had ended before
    same_as_alone(path, out, tmp_path)
    # With the seconds of its rounds, so those were not done again: both went on, and neither began afresh.
    assert len(begun) == 2
    assert begun == {path: first_round(path) for path in begun}


@pytest.mark.slow
def test_a_sweep_ends_when_no_node_is_left_that_is_large_enough(tmp_path: Path) -> None:
    """Runs of two cores fit on one of two nodes, which dies; the same command goes on when there is another."""
    path, out = written(tmp_path, rounds=100, limits={"cpus": 2}), tmp_path / "out"
    with cluster(1) as made:
        made.add(cpus=2)
        child = swept(made, path, out, code=["-c", IMPATIENT])
        wait_for_checkpoints(child, out, "runs/*/")
        made.lose(1)
        code, said = ended(child)
        assert (code, "Traceback" in said) == (1, False)
        assert "limits.cpus = 2: no node is large enough for a run (Ray has 1 nodes, of at most 1 cores" in said
        made.add(cpus=2)
        finished(swept(made, path, out, "--nodes", "2"))
    assert len([each for each in happened(out, "run_end") if each["status"] == "done"]) == 4
