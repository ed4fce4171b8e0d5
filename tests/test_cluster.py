"""A Ray cluster that is there already: `engine.address`, and what is said where there is none."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedcl import api, config

TINY = ["stream.schedule.rounds_per_task=1", "stream.tasks=2", "engine.cohort=2"]


def fedcl(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root}
    command = [sys.executable, "-m", "fedcl", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep a cluster out of the file in which Ray notes the newest: who starts Ray without an address joins that."""
    # Not under tmp_path: a socket's path has room for about a hundred bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("apart")
def test_existing_cluster_gives_the_same_bits(tmp_path: Path) -> None:
    """Runs on a cluster of two nodes, started by somebody else, have the hashes of an inline run and leave it up."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        for name in ("first", "second"):
            words = ["run", "split-digits", *TINY, "engine.kind=ray", "engine.workers=2", "-q"]
            done = fedcl(*words, f"engine.address={cluster.address}", "--out", str(tmp_path / name), cwd=tmp_path)
            assert done.returncode == 0, done.stderr
        inline = api.run(config.load("split-digits", [*TINY, "engine.kind=inline"]), out=tmp_path / "inline")
        for name in ("first", "second"):
            assert api.load(tmp_path / name).results["weights_sha256"] == inline.results["weights_sha256"]
    finally:
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("apart")
def test_a_run_without_an_address_starts_its_own_cluster(tmp_path: Path) -> None:
    """Somebody's cluster is up, with no core to spare: who does not name it is not kept waiting by it."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        words = ["run", "split-digits", *TINY, "engine.kind=ray", "engine.workers=1", "-q"]
        done = fedcl(*words, "--out", str(tmp_path / "run"), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_no_cluster_is_one_sentence(tmp_path: Path) -> None:
    """An address where nobody answers ends with exit code 1 and a sentence that names the key."""
    done = fedcl(
        "run", "split-digits", *TINY, "engine.address=127.0.0.1:1", "--out", str(tmp_path / "run"), cwd=tmp_path
    )
    assert done.returncode == 1
    assert "engine.address = '127.0.0.1:1'" in done.stderr
    assert "Traceback" not in done.stderr
