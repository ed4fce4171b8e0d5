"""What a stranger meets: the wheel in an environment of its own, and the tutorial, word by word.

The environment holds the wheel and nothing else of fedcl; its dependencies are those of the environment that the tests
run in, lent by a .pth file. So this shows that the wheel has all that it needs of fedcl, not that pip finds the
dependencies: that all are declared is a test of its own. With FEDCL_TEST_INSTALL=1 nothing is lent, and pip installs
them all from its index.
"""

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import fedcl

ROOT = Path(__file__).parents[1]
PACKAGES = ("fedcl", "clients", "server", "scenarios")
TUTORIAL = ROOT / "docs" / "tutorial.md"
WHOLE = "FEDCL_TEST_INSTALL" in os.environ
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(ROOT)], check=True, timeout=120)
    (found,) = folder.iterdir()
    assert found.name == f"fedcl_flower-{fedcl.__version__}-py3-none-any.whl"
    return found


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the variables of a shell in which a new virtual environment with the wheel is active."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, *(() if WHOLE else ("--no-deps", "--no-index")), str(wheel)], check=True, timeout=1800)
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    own |= {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "VIRTUAL_ENV": str(folder)}
    if WHOLE:
        return own
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # pip builds with the hatchling that is lent (its name for this is upside down), and asks no index.
    return {**own, "PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"}


def said(environment: dict[str, str], folder: Path, *words: str) -> str:
    """Return what a command prints; its exit code must be 0."""
    done = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_wheel_has_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    """Scenarios, sweeps, templates and evidence too: whatever lies beside the code."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    assert names == {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    assert {"scenarios/split-digits.yaml", "scenarios/sweeps/demo.yaml", "fedcl/verified.yaml"} <= names


def imported(path: Path) -> set[str]:
    """Return the packages that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {each.name.partition(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_what_is_imported_is_declared(wheel: Path) -> None:
    """Every package that the code imports belongs to a dependency, or to an extra that is not for tests."""
    (metadata,) = (n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".dist-info/METADATA"))
    lines = zipfile.ZipFile(wheel).read(metadata).decode().splitlines()
    asked = [Requirement(line.partition(": ")[2]) for line in lines if line.startswith("Requires-Dist: ")]
    declared = {each.name.lower() for each in asked if "test" not in str(each.marker)}
    assert {"torch", "flwr", "ray", "pfl"} <= declared
    assert not {"pytest", "hatchling"} & declared
    used = set().union(*(imported(path) for package in PACKAGES for path in (ROOT / package).rglob("*.py")))
    installed = packages_distributions()
    for name in sorted(used - set(sys.stdlib_module_names) - set(PACKAGES) - {"__future__"}):
        homes = {each.lower().replace("_", "-") for each in installed.get(name, [name])}
        assert homes & declared, f"{name} ({', '.join(homes)}) is imported and not declared"


@pytest.mark.slow
def test_the_wheel_runs_a_federation_where_nothing_else_of_fedcl_is(
    environment: dict[str, str], tmp_path: Path
) -> None:
    where = said(
        environment, tmp_path, "python", "-c", "import fedcl, clients; print(fedcl.__file__, clients.__file__)"
    )
    assert all(path.startswith(environment["VIRTUAL_ENV"]) for path in where.split())
    assert said(environment, tmp_path, "fedcl", "--version") == f"fedcl {fedcl.__version__}\n"
    listed = json.loads(said(environment, tmp_path, "fedcl", "list", "--json"))
    assert "split-digits" in listed["scenarios"]
    assert "derpp" in listed["clients"]
    assert said(environment, tmp_path, "fedcl", "list", "clients").count("verified by") >= 10
    assert "15 runs in " in said(environment, tmp_path, "fedcl", "sweep", "demo", "--dry-run")
    directory = said(
        environment, tmp_path, "fedcl", "run", "split-digits", "stream.schedule.rounds_per_task=1", "--quiet"
    ).strip()
    results = json.loads((Path(directory) / "results.json").read_text())
    assert results["status"] == "finished"
    assert results["metrics"]["acc"] > 0.15
    page = Path(said(environment, tmp_path, "fedcl", "report", directory).strip())
    assert "<svg" in (tmp_path / page).read_text()


@pytest.mark.slow
def test_the_tutorial_word_by_word(environment: dict[str, str], tmp_path: Path) -> None:
    """Every bash and python block in order, in one folder; then what they were to show."""
    blocks = BLOCK.findall(TUTORIAL.read_text())
    assert [language for language, _ in blocks].count("python") >= 3
    printed = []
    for language, text in blocks:
        words = ("bash", "-euo", "pipefail", "-c", text) if language == "bash" else ("python", "-c", text)
        printed.append(said(environment, tmp_path, *words))
    listed = json.loads(said(environment, tmp_path, "fedcl", "list", "clients", "--json"))
    (mine,) = (entry for entry in listed if entry["name"] == "focal-replay")
    assert [option["name"] for option in mine["settings"]] == ["gamma"]
    assert "arXiv:1708.02002" in mine["paper"]
    checks = [line for text in printed for line in text.splitlines() if line.startswith(("passed ", "failed "))]
    assert len(checks) == 5
    assert all(line.startswith("passed ") for line in checks)
    table = json.loads((tmp_path / "runs/sweeps/focal/table.json").read_text())["rows"]
    means = {row["labels"]["method"]: row["spread"]["mean"] for row in table}
    assert set(means) == {"er", "finetune", "focal-1", "focal-2"}
    assert all(row["spread"]["n"] == 3 for row in table)
    assert means["finetune"] < min(means["er"], means["focal-1"], means["focal-2"]) - 0.2
    report = (tmp_path / "runs/sweeps/focal/report.html").read_text()
    assert "focal-replay" in report
    assert "<svg" in (tmp_path / "er.html").read_text()
