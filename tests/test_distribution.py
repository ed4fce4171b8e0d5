"""What is installed is called fedcl-flower: every hint and every look at metadata knows it."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import fedcl
from fedcl.distribution import DISTRIBUTION, install, installed

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOLDERS = ("fedcl", "clients", "server", "scenarios", "tests", "docs", "examples")
FILES = [
    path
    for root in (ROOT.glob("*.md"), *((ROOT / folder).rglob("*") for folder in FOLDERS))
    for path in root
    if path.suffix in {".py", ".md", ".yaml", ".toml"} and path.name != Path(__file__).name
]
HINT = re.compile(r"pip install (?:-\S+ )*'?(fedcl[\w-]*|\.(?!/))\\?(?:\[([\w,\\]+)\])?")
LOOKUP = re.compile(r"""(?:version|requires|metadata|distribution)\(["']fedcl["']\)|["']fedcl\[""")


def test_the_distribution_is_the_projects() -> None:
    assert PROJECT["name"] == DISTRIBUTION == "fedcl-flower"
    assert list(PROJECT["scripts"]) == ["fedcl"]
    assert Requirement(PROJECT["name"]).name != fedcl.__name__


@pytest.mark.parametrize("extra", sorted(PROJECT["optional-dependencies"]))
def test_the_hint_for_an_extra_is_a_requirement_that_a_shell_hands_on(extra: str) -> None:
    pip, verb, wanted = shlex.split(install(extra))
    assert (pip, verb) == ("pip", "install")
    assert (Requirement(wanted).name, Requirement(wanted).extras) == (DISTRIBUTION, {extra})


def test_without_an_extra_the_hint_is_plain() -> None:
    assert install() == "pip install fedcl-flower"


def test_no_text_names_the_strangers_package_or_only_a_checkout() -> None:
    """`pip install fedcl`, `fedcl[extra]` and `-e .[extra]` stand nowhere; each extra that is named exists."""
    extras, hints = set(PROJECT["optional-dependencies"]), 0
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert not LOOKUP.search(text), path
        for name, named in HINT.findall(text):
            hints += 1
            assert name == DISTRIBUTION, path
            unknown = set(filter(None, named.replace("\\", "").split(","))) - extras - {"gone", "old"}
            assert not unknown, f"{path}: {unknown}"
    assert hints >= 8


def test_fedcls_own_version_is_that_of_the_code_which_runs() -> None:
    assert installed("fedcl") == fedcl.__version__
    assert installed("surely-not-there") is None
