"""An installed package whose part cannot be used is named where parts are listed, and is in nobody else's way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULES = {
    "raises": ("raise OverflowError('no')", "cannot import 'raises:Part' (client_methods): OverflowError: no"),
    "leaves": ("raise SystemExit(3)", "cannot import 'leaves:Part' (client_methods): SystemExit: 3"),
    "typo": ("def (", "cannot import 'typo:Part' (client_methods): SyntaxError: invalid syntax (typo.py, line 1)"),
    "empty": ("", "cannot import 'empty:Part' (client_methods): module 'empty' has no attribute 'Part'"),
    "number": ("Part = 3", "must name a frozen dataclass of settings, not 3"),
    "plain": ("class Part: pass", "must name a frozen dataclass of settings, not <class 'plain.Part'>"),
}  # fmt: skip
SAID = {"list": "finetune", "explain": "finetune", "show": "name: split-digits"}
COMMANDS = (
    ["list"], ["list", "clients"], ["list", "clients", "--json"], ["explain", "client.method"],
    ["show", "split-digits"],
    *(["show", "split-digits", f"client.method={name}"] for name in MODULES),
)  # fmt: skip


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each command where a package with all of these parts is installed."""
    folder = tmp_path_factory.mktemp("installed")
    for name, (text, _) in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    known = folder / "broken-1.0.dist-info"
    known.mkdir()
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    points = [f"{name} = {name}:Part" for name in MODULES]
    (known / "entry_points.txt").write_text("\n".join(["[fedcl.client_methods]", *points, ""]))
    code = (
        "import contextlib, io, json\n"
        "from fedcl.cli import main\n"
        "def run(words):\n"
        "    out, err = io.StringIO(), io.StringIO()\n"
        "    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):\n"
        "        code = main(words)\n"
        "    return code, out.getvalue(), err.getvalue()\n"
        f"print(json.dumps([run(words) for words in {COMMANDS!r}]))"
    )
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(each) for each in json.loads(done.stdout)]


def test_everything_else_is_listed_explained_and_shown(answers: list[tuple[int, str, str]]) -> None:
    for words, (code, out, err) in zip(COMMANDS[: -len(MODULES)], answers, strict=False):
        assert (code, err) == (0, "")
        assert SAID[words[0]] in out


@pytest.mark.parametrize("name", MODULES)
def test_a_part_that_cannot_be_used_is_named_with_the_reason(answers: list[tuple[int, str, str]], name: str) -> None:
    entries = {each["name"]: each["about"] for each in json.loads(answers[2][1])}
    assert entries[name] == MODULES[name][1]
    assert entries["er"].startswith("Experience replay")
    place = COMMANDS.index(["show", "split-digits", f"client.method={name}"])
    assert answers[place] == (2, "", f"fedcl: client.method.name = {name!r}: {MODULES[name][1]}\n")
