"""A console that cannot print ends no run: the exit code is the run's, letters that an encoding lacks are replaced."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedcl.journal import finished

TINY = "{name: tiny, stream: {dataset: {name: synthetic}, clients: 2, tasks: 2}, engine: {kind: inline}}"


def _run(how: str, tmp_path: Path, **environment: str) -> int:
    """Run a small federation in a shell and return its exit code."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    command = (
        f"{sys.executable} -c 'from fedcl.cli import main; raise SystemExit(main())' run tiny.yaml --out run {how}"
    )
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], cwd=tmp_path, env={**os.environ, **environment},
        capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    return done.returncode


@pytest.mark.parametrize("how", ["> /dev/full", "2> /dev/full > /dev/full", "| head -1", ">&- 2>&-"])
def test_an_output_that_fails_ends_the_console_only(tmp_path: Path, how: str) -> None:
    assert _run(how, tmp_path) == 0
    assert finished(tmp_path / "run")


def test_letters_that_the_output_lacks_are_replaced(tmp_path: Path) -> None:
    assert _run("> out.txt", tmp_path, PYTHONIOENCODING="ascii") == 0
    assert "? loss" in (tmp_path / "out.txt").read_text("ascii")


def test_a_terminal_that_goes_away_ends_the_console_only(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    ours, theirs = pty.openpty()
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); from fedcl.cli import main; raise SystemExit("
    command = [sys.executable, "-c", f"{code}main())", "run", "tiny.yaml", "--out", "run"]
    child = subprocess.Popen(
        command, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )  # fmt: skip
    os.close(theirs)
    os.read(ours, 1)  # it has begun to print
    os.close(ours)
    child.send_signal(signal.SIGHUP)
    assert child.wait(300) == 0
    assert finished(tmp_path / "run")


def test_what_is_only_printed_fails_with_its_output(tmp_path: Path) -> None:
    command = (
        f"{sys.executable} -c 'from fedcl.cli import main; raise SystemExit(main())' show split-digits > /dev/full"
    )
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, timeout=300, check=False)
    assert done.returncode == 1
    assert done.stderr.decode() == "fedcl: what was printed is lost, the output failed: No space left on device\n"
