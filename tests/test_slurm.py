"""examples/cluster/slurm.sbatch, run by itself: stand-ins for srun and scontrol start what they are told right here."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters import (
    ROOT,
    ended,
    environment,
    happened,
    kill,
    marked,
    same_as_alone,
    wait_for_checkpoints,
    written,
)

SCRIPT = ROOT / "examples" / "cluster" / "slurm.sbatch"
STAND_IN = """#!/usr/bin/env bash
echo "$*" >> {log}
while [ "${{1:0:1}}" = - ]; do shift; done  # its own options
{then}
"""


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Yield a folder whose name is in the environment of all that a job starts, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="job-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
        while left := marked(Path(folder)):
            kill(left)
            time.sleep(0.1)


def job(scratch: Path, tmp_path: Path, sweep: Path, out: Path) -> subprocess.Popen[str]:
    """Start the script as the first of two nodes with a core each."""
    for name, then in (("srun", 'exec "$@"'), ("scontrol", "")):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(STAND_IN.format(log=tmp_path / f"{name}.log", then=then))
        path.chmod(0o755)
    env = environment(scratch)
    env |= {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{env['PATH']}", "FEDCL_SCRATCH": str(scratch)}
    env |= {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "1"}
    env |= {"SLURMD_NODENAME": "first"}
    return subprocess.Popen(
        ["bash", str(SCRIPT), str(sweep), str(out)],
        env=env, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_the_script_is_bash() -> None:
    assert subprocess.run(["bash", "-n", str(SCRIPT)], capture_output=True).returncode == 0


@pytest.mark.slow
def test_a_job_that_runs_out_of_time_goes_on_in_the_next(scratch: Path, tmp_path: Path) -> None:
    """SIGTERM while both nodes are at work: exit 75 and a requeue; the next start ends with the same hashes."""
    path, out = written(tmp_path, rounds=60), tmp_path / "out"
    first = job(scratch, tmp_path, path, out)
    wait_for_checkpoints(first, out, "runs/*/", 2)
    first.send_signal(signal.SIGTERM)
    code, said = ended(first)
    assert code == 75, said
    assert (tmp_path / "scontrol.log").read_text() == f"requeue {os.getpid()}\n"
    assert gone(scratch)

    code, said = ended(job(scratch, tmp_path, path, out), 300)
    assert code == 0, said
    assert (tmp_path / "scontrol.log").read_text().count("requeue") == 1
    assert gone(scratch)

    steps = (tmp_path / "srun.log").read_text().splitlines()
    assert [("--head" in each, "--nodelist=first" in each, "--exclude=first" in each) for each in steps] == [
        (True, True, False), (False, False, True),
    ] * 2  # fmt: skip
    assert [len(each["nodes"]) for each in happened(out, "nodes")] == [2, 2]
    done = [event["key"] for event in happened(out, "run_end") if event["status"] == "done"]
    assert len(done) == len(set(done)) == 4
    same_as_alone(path, out, tmp_path)


@pytest.mark.slow
def test_a_job_that_has_failed_is_not_put_into_the_queue_again(scratch: Path, tmp_path: Path) -> None:
    code, said = ended(job(scratch, tmp_path, tmp_path / "none.yaml", tmp_path / "out"))
    assert (code, "no sweep" in said) == (2, True)
    assert not (tmp_path / "scontrol.log").exists()
    assert gone(scratch)


def gone(scratch: Path) -> bool:
    """Wait for a few seconds until nothing of the job is left; return whether that came."""
    end = time.monotonic() + 15
    while marked(scratch) and time.monotonic() < end:
        time.sleep(0.2)
    return not marked(scratch)
