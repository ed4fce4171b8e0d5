"""What bash completes, asked as bash asks: by the shell function that fedcl gives it, and fast."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedcl import registry
from fedcl.completion import overrides
from fedcl.shipped import scenario_names, sweep_names

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "numpy", "flwr", "ray", "sklearn", "scipy"}


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `fedcl`, and the function for bash beside it."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "fedcl").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fedcl "$@"\n')
    (folder / "fedcl").chmod(0o755)
    environment = {**os.environ, "_FEDCL_COMPLETE": "source_bash", "PYTHONPATH": str(ROOT)}
    given = subprocess.run([folder / "fedcl"], env=environment, capture_output=True, text=True, check=True)
    assert "complete -o default -F _fedcl_completion fedcl" in given.stdout
    (folder / "completion.bash").write_text(given.stdout)
    return folder


def completed(script: Path, *words: str) -> list[str]:
    """Return what bash offers for the last of the words, which are split as readline splits them (at "=" too)."""
    asked = f'source {script}/completion.bash; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _fedcl_completion fedcl; '
    environment = {**os.environ, "PATH": f"{script}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", asked + 'printf "%s\\n" "${COMPREPLY[@]}"', "bash", *words], env=environment, cwd=script,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fedcl", "swe"], ["sweep"]),
        (["fedcl", "run", "split-d"], ["split-digits", "split-digits-async"]),
        (["fedcl", "show", ""], list(scenario_names())),
        (["fedcl", "server", "--state", "x", "task-digits-fot-"], ["task-digits-fot-async"]),
        (["fedcl", "bench", "--tune", "scale"], ["scale-synthetic"]),
        (["fedcl", "sweep", ""], list(sweep_names())),
        (["fedcl", "list", "cl"], ["clients"]),
        (["fedcl", "run", "split-digits", "client.m"], ["client.method=", "client.memory="]),
        (
            ["fedcl", "run", "split-digits", "client.memory"],
            ["client.memory=reservoir", "client.memory=class-balanced"],
        ),
        (["fedcl", "run", "split-digits", "client.method", "="], registry.names("client_methods")),
        (["fedcl", "run", "split-digits", "client.method", "=", "der"], ["der", "derpp"]),
        (["fedcl", "sweep", "demo", "seed", "=", "1", "stream.kind", "=", "t"], ["task-incremental"]),
        (["fedcl", "run", "split-digits", "seed", "=", "1", "client.epo"], ["client.epochs=1"]),
        (["fedcl", "run", "split-digits", "stream.joint", "=", ""], ["true", "false"]),
        (["fedcl", "run", "split-digits", "client.nothing", "=", ""], []),
        (["fedcl", "run", "--res"], ["--resume"]),
        (["fedcl", "report", "x"], []),  # bash goes on with file names
    ],
)
def test_bash_completes(script: Path, words: list[str], expected: list[str]) -> None:
    assert completed(script, *words) == expected


def test_shells_that_leave_key_and_value_together_get_both() -> None:
    class Context:
        params = {"overrides": ["seed=1"]}  # noqa: RUF012

    assert overrides(Context(), "client.method=der") == ["client.method=der", "client.method=derpp"]  # type: ignore


def test_completing_imports_nothing_that_computes() -> None:
    """A key, which needs the most: the scenario's schema and the entry points."""
    code = f"import sys; from fedcl.cli import main\ntry: main([])\nfinally: assert not {HEAVY} & set(sys.modules)"
    environment = {
        **os.environ, "_FEDCL_COMPLETE": "complete_bash", "COMP_WORDS": "fedcl run split-digits client.method = er",
        "COMP_CWORD": "5",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["er"]
