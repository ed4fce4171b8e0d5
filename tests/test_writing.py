"""Files of ours are opened by one function, which follows no link; a folder of state is this user's alone."""

import ast
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fedcl
from clients import activity, audit, warm
from clients.versions import Folder
from fedcl import cli_real, rundir, timing, writing
from fedcl.engine import survey
from fedcl.errors import ConfigError
from fedcl.journal import Journal, replace_file
from fedcl.lock import Lock
from fedcl.real import bundle, gate
from fedcl.real.nodes import link_of
from fedcl.real.processes import Child

ROOT = Path(fedcl.__file__).parent.parent
# Who may open a file to write to it otherwise, and why.
OTHERWISE = {
    "fedcl/writing.py": "it is the function",
    "fedcl/output.py": "/dev/null",
    "fedcl/figure.py": "an output that the user names",
    "fedcl/report/__init__.py": "an output that the user names",
    "fedcl/report/paper.py": "outputs in a folder that the user names",
    "fedcl/bench/launch.py": "scratch of a benchmark, in a new temporary folder",
    "fedcl/bench/spec.py": "scratch of a benchmark, in a new temporary folder",
    "fedcl/bench/tune.py": "scratch of a benchmark, in a new temporary folder",
    "fedcl/testing.py": "scratch of a check, in a new temporary folder",
}
SHORT = (".write_text", ".write_bytes", ".touch", "shutil.copy", "shutil.copyfile", "shutil.copy2")
WRITES = {"O_CREAT", "O_TRUNC", "O_WRONLY", "O_RDWR", "O_APPEND"}


def openings(tree: ast.AST) -> Iterator[str]:
    """Yield every call that opens, creates or truncates a file, but for those that go through `fedcl.writing`."""
    for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call)]:
        name = ast.unparse(call.func)
        words = [each.value for each in [*call.args[:2], *(one.value for one in call.keywords)] if _is_text(each)]
        mode = any(isinstance(each, str) and set(each) <= set("rwaxbt+") and set(each) & set("wax+") for each in words)
        through = call.args and ast.unparse(call.args[0]).startswith("writing.descriptor(")
        plainly = (name == "open" or name.endswith(".open")) and mode and not through
        low = name == "os.open" and any(flag in ast.unparse(call) for flag in WRITES)
        if plainly or low or name.endswith(SHORT):
            yield ast.unparse(call)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant)


def test_files_are_opened_to_be_written_in_one_place() -> None:
    """Whoever adds another way finds it here."""
    found = set()
    for package in ("fedcl", "clients", "server"):
        for path in (ROOT / package).rglob("*.py"):
            if list(openings(ast.parse(path.read_text()))):
                found.add(str(path.relative_to(ROOT)))
    assert found == set(OTHERWISE)


def test_the_search_finds_each_way_of_opening() -> None:
    text = "open(p, 'wb'); open(file=p, mode='a'); p.open('w'); os.open(p, os.O_CREAT); p.write_text('a'); p.touch()"
    assert len(list(openings(ast.parse(text + "; open(p); open(p, 'rb'); open(writing.descriptor(p, 1), 'wb')")))) == 6


def _error(folder: Path) -> None:
    with Journal(folder) as journal:
        journal.error("a")


def _claim(folder: Path) -> None:
    with rundir.claimed(folder):
        raise ConfigError("what the run failed of")


def _activity(folder: Path) -> None:
    os.environ["FEDCL_ACTIVITY"] = str(folder / "activity.jsonl")
    activity.tell({"kind": "train"})


def _alone(folder: Path) -> None:
    with warm._alone(folder / "worker"):
        pass


PLACES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "lock": ("lock", lambda folder: Lock(folder).__enter__()),
    "journal": ("events.jsonl", Journal),
    "error.log": ("error.log", _error),
    "error.log of a failure": ("error.log", _claim),
    "gate": ("flwr-clientapp", lambda folder: gate.write_commands(folder, gate.NODE, folder)),
    "a child's log": ("node.log", lambda folder: Child("node", ["true"], {}, folder / "node.log").stop()),
    "connection": ("flwr/config.toml", lambda folder: link_of(folder, host="a", port=1, tls=None, auth=False)
                   .write_connection()),
    "app": ("fedcl/pyproject.toml", bundle.write),
    "audit": ("audit", lambda folder: audit.write(folder / "audit", [{}])),
    "activity": ("activity.jsonl", _activity),
    "worker": ("worker.lock", _alone),
    "profile": ("profile.json", lambda folder: timing.write(folder, [])),
    "trace": ("trace.json", lambda folder: timing.write(folder, [])),
    "survey": ("key", lambda folder: _raise(survey.look(str(folder), "key", "token").refused)),
}  # fmt: skip


def _raise(refused: str) -> None:
    if refused:
        raise ConfigError(refused)


@pytest.mark.parametrize("what", ["a link", "a link to nothing", "a pipe"])
@pytest.mark.parametrize("place", PLACES)
def test_no_file_of_ours_is_written_through_a_link_or_into_a_pipe(
    place: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence; what the link leads to is as before, and a pipe holds nobody up."""
    monkeypatch.setattr(survey, "LAG", 0.0)
    monkeypatch.setenv("FEDCL_ACTIVITY", "")
    name, write = PLACES[place]
    folder, victim = tmp_path / "folder", tmp_path / "victim"
    (folder / name).parent.mkdir(parents=True)
    victim.write_text("precious")
    if what == "a pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to(victim if what == "a link" else tmp_path / "new")
    with pytest.raises((ConfigError, audit.Unwritten)) as caught:
        write(folder)
    why = "symbolic link, which is not followed: remove it" if "link" in what else "no regular file: remove it"
    assert why in str(caught.value) or "what the run failed of" in str(caught.value)
    assert victim.read_text() == "precious"
    assert not (tmp_path / "new").exists()


def test_what_is_written_whole_takes_the_place_of_a_link(tmp_path: Path) -> None:
    """Records, tables and secrets of a node: the link is gone, what it led to is as before."""
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "sittings.json").symlink_to(tmp_path / "victim")
    Folder(tmp_path).remember({"a": 1})
    (tmp_path / "model").symlink_to(tmp_path / "victim")
    replace_file(tmp_path / "model", [b"new"], sync=False)
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "sittings.json").is_symlink()
    assert (tmp_path / "model").read_bytes() == b"new"


def test_modes_are_as_asked_for(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        writing.write(tmp_path / "a", "text")
        writing.write(tmp_path / "b", b"bytes", writing.OWN)
        writing.appending(tmp_path / "c", writing.OWN).close()
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / each).stat().st_mode) for each in "abc"] == [0o644, 0o600, 0o600]


# The folder of state.


@pytest.mark.parametrize("held", ["nothing", "ours", "something else"])
@pytest.mark.parametrize("mode", [0o755, 0o711, 0o777, 0o740])
def test_a_folder_of_state_that_others_may_read_is_closed_to_them_or_refused(
    held: str, mode: int, tmp_path: Path
) -> None:
    """An empty one and one of ours are closed; one with other things in it is named and left as it is."""
    state = tmp_path / "state"
    state.mkdir()
    if held != "nothing":
        (state / ("lock" if held == "ours" else "thesis.tex")).touch()
    state.chmod(mode)
    if held == "something else":
        with pytest.raises(ConfigError, match=rf"others may look into it \(mode {mode:o}\): chmod 700, or name a new"):
            cli_real._made(state)
    else:
        assert cli_real._made(state) == state
    assert stat.S_IMODE(state.stat().st_mode) == (mode if held == "something else" else 0o700)


def test_a_folder_of_state_is_made_for_this_user_alone(tmp_path: Path) -> None:
    assert stat.S_IMODE(cli_real._made(tmp_path / "a/b").stat().st_mode) == 0o700
    (tmp_path / "a/b").chmod(0o500)
    assert stat.S_IMODE(cli_real._made(tmp_path / "a/b").stat().st_mode) == 0o500


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ConfigError, match="it is another user's"):
        cli_real._made(tmp_path)
