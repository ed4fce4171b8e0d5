"""Parts of one's own: a small real package with one of each, installed with pip, then used by its entry points."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "own-parts"
PARTS = {
    "clients": "example-er-ace",
    "server": "example-ema",
    "datasets": "example-rings",
    "models": "example-cosine",
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Install the example package into a folder of its own; return the environment in which it is found."""
    folder = tmp_path_factory.mktemp("outside")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(folder), str(EXAMPLE)], check=True, timeout=120)
    root = str(Path(__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), root, os.environ.get("PYTHONPATH", "")])}


def fedcl(environment: dict[str, str], *words: str, cwd: Path) -> str:
    """Run the command line and return what it prints; its exit code must be 0."""
    done = subprocess.run(
        [sys.executable, "-m", "fedcl", *words], env=environment, cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("topic", PARTS)
def test_parts_are_listed(installed: dict[str, str], tmp_path: Path, topic: str) -> None:
    """An installed part stands in `fedcl list` under its entry point's name."""
    names = [entry["name"] for entry in json.loads(fedcl(installed, "list", topic, "--json", cwd=tmp_path))]
    assert PARTS[topic] in names


def test_all_four_parts_train_together(installed: dict[str, str], tmp_path: Path) -> None:
    """Rings are learnt with the outside method, server method and model: far above the 1 in 6 of guessing."""
    words = [
        "stream.dataset=example-rings", "model=example-cosine", "client.method=example-er-ace",
        "server.method=example-ema", "stream.tasks=2", "stream.schedule.rounds_per_task=10", "engine.kind=inline",
    ]  # fmt: skip
    fedcl(installed, "run", "split-digits", *words, "--out", str(tmp_path / "run"), "--quiet", cwd=tmp_path)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["status"] == "finished"
    assert results["metrics"]["acc"] > 2 / 6
    assert set(results["task_order"]) == {0, 1}
    again = tmp_path / "again"
    fedcl(installed, "run", str(tmp_path / "run" / "config.yaml"), "--out", str(again), "--quiet", cwd=tmp_path)
    repeated = json.loads((again / "results.json").read_text())
    assert repeated["weights_sha256"] == results["weights_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "reference",
    [
        "fedcl_example.client:ERACE",
        "fedcl_example.server:Smoothed",
        "fedcl_example.model:Cosine",
        "fedcl_example.data:Rings",
    ],
)
def test_parts_pass_the_conformance_tests(installed: dict[str, str], tmp_path: Path, reference: str) -> None:
    """`fedcl check` passes all five checks on each part."""
    lines = fedcl(installed, "check", reference, cwd=tmp_path).splitlines()
    assert len(lines) == 5
    assert all(line.startswith("passed") for line in lines)


@pytest.mark.slow
def test_check_finds_a_method_that_depends_on_the_stack(installed: dict[str, str], tmp_path: Path) -> None:
    """A method whose loss looks at how clients are stacked fails `stacked = one by one`, and the exit code says so."""
    (tmp_path / "faulty.py").write_text(
        "from dataclasses import dataclass\n"
        "import torch\n"
        "from clients.methods import ClientMethod\n"
        "from clients.losses.cross_entropy import CrossEntropy\n"
        "class Odd(CrossEntropy):\n"
        "    def __call__(self, model, batch, anchors):\n"
        "        stacked = torch._C._functorch.is_batchedtensor(batch.now.x)\n"
        "        return super().__call__(model, batch, anchors) * (1.5 if stacked else 1.0)\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Faulty(ClientMethod):\n"
        "    def terms(self):\n"
        "        return {'ce': Odd()}\n"
    )
    environment = {**installed, "PYTHONPATH": f"{tmp_path}{os.pathsep}{installed['PYTHONPATH']}"}
    done = subprocess.run(
        [sys.executable, "-m", "fedcl", "check", "faulty:Faulty"], env=environment, cwd=tmp_path, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert [line.startswith("failed stacked = one by one") for line in lines] == [True, *[False] * 4]
