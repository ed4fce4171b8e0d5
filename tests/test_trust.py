"""A scenario that a server has sent: a node imports, reads and fills in nothing for it that its operator forbids."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message

from clients.app import app
from fedcl import trust, wire
from fedcl.cli import main
from fedcl.config import load
from fedcl.engine import flower
from fedcl.errors import ConfigError
from fedcl.interrupt import Stopped
from fedcl.orders import Order
from fedcl.settings import part
from fedcl.streams.partition import IID
from fedcl.trust import own_text, packages
from fedcl.world import as_text, world
from tests.federations import tiny
from tests.test_policy import KINDS, _identity, files, lines, node, order

__all__ = ["_identity"]  # a fixture: no policy of the environment but FEDCL_TRUST=tests

PARTS = {
    "stream.dataset": "name", "stream.partition": "kind", "stream.schedule": "kind", "model": "name",
    "client.method": "name", "client.memory": "policy", "client.curriculum": "order", "client.optimizer": "name",
    "server.method": "name", "server.optimizer": "name", "server.selection": "name",
}  # fmt: skip
SOURCE = """
from dataclasses import dataclass
from pathlib import Path
from fedcl.streams.partition import IID
Path(__file__).with_suffix(".was-here").touch()
@dataclass(frozen=True, kw_only=True)
class Part(IID):
    '''Like its base.'''
"""


@dataclass(frozen=True, kw_only=True)
class Nest(IID):
    """A part of a package that is trusted, with a part of its own."""

    inner: Any = part("partitions", "iid", "another one")


@pytest.fixture
def intruder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that is installed here, and the file that its import leaves."""
    (tmp_path / "intruder").mkdir()
    (tmp_path / "intruder" / "__init__.py").write_text("")
    (tmp_path / "intruder" / "parts.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "intruder" / "parts.was-here"
    for name in [each for each in sys.modules if each.partition(".")[0] == "intruder"]:
        del sys.modules[name]


def text(**changes: Any) -> str:
    """Return the text of a small scenario with other values at dotted keys (a__b for a.b)."""
    plain = json.loads(as_text(tiny()))
    for key, value in changes.items():
        inner, *path = plain, *key.split("__")
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = value
    return json.dumps(plain, sort_keys=True)


def hello(at: Context, said: str) -> list[int]:
    """Return the clients with which a node answers a server that says this text."""
    message = Message(wire.config_of(said), 1, "query.hello")
    flower.number(message)
    return wire.hosted(app(message, at).content).tolist()


def ask(asked: Order, at: Context, said: str) -> Any:
    message = Message(wire.encode(asked, config=said), 1, KINDS[type(asked)])
    flower.number(message)
    return wire.decode(app(message, at).content)


def untouched(intruder: Path) -> bool:
    return not intruder.exists() and not any(name.partition(".")[0] == "intruder" for name in sys.modules)


# Imports.


@pytest.mark.parametrize("key", PARTS)
def test_a_node_imports_no_package_that_a_server_names(
    key: str, intruder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an order or a hello: one sentence with key, value and flag, audited; the module has not run."""
    at, audit = node(tmp_path / "node"), tmp_path / "audit"
    monkeypatch.setenv("FEDCL_AUDIT", str(audit))
    before = files(tmp_path / "node")
    said = text(**{key.replace(".", "__"): {PARTS[key]: "intruder.parts:Part"}})
    expected = f"{key}.{PARTS[key]} = 'intruder.parts:Part': this node imports only what its operator trusts; package "
    for act in (lambda: ask(order(), at, said), lambda: hello(at, said)):
        with pytest.raises(ConfigError) as caught:
            act()
        assert str(caught.value) == f"{expected}'intruder' is let in by fedcl client --trust intruder (FEDCL_TRUST)"
    assert untouched(intruder)
    assert files(tmp_path / "node") == before
    assert [line["refused"] for line in lines(audit)] == [str(caught.value)] * 2


def test_nor_one_inside_a_part_that_is_trusted(intruder: Path, tmp_path: Path) -> None:
    inner = {"kind": "tests.test_trust:Nest", "inner": {"kind": "intruder.parts:Part"}}
    with pytest.raises(ConfigError, match=r"^stream\.partition\.inner\.kind = 'intruder\.parts:Part': this node im"):
        hello(node(tmp_path / "node"), text(stream__partition=inner))
    assert untouched(intruder)
    inner["inner"] = {"kind": "iid"}
    assert hello(node(tmp_path / "node"), text(stream__partition=inner)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("trusted", "fine"),
    [("", False), ("intrude", False), ("intruder.part", False), ("intruder.parts.more", False), ("tests", False),
     ("intruder", True), ("intruder.parts", True), ("numpy, intruder", True)],
)  # fmt: skip
def test_the_operator_says_whose_parts_are_taken(
    trusted: str, fine: bool, intruder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package and what is below it; a name that merely begins alike is another package."""
    monkeypatch.setenv("FEDCL_TRUST", trusted)
    said = text(stream__partition={"kind": "intruder.parts:Part"}, name=f"as {trusted}")
    if fine:
        assert hello(node(tmp_path / "node"), said) == [0, 1, 2, 3]
        assert intruder.exists()
        return
    with pytest.raises(ConfigError, match="this node imports only what its operator trusts"):
        hello(node(tmp_path / "node"), said)
    assert untouched(intruder)


def test_in_a_simulation_the_user_has_written_the_scenario(intruder: Path) -> None:
    """The node of fedcl's own grids, and whoever loads a scenario: nothing is asked."""
    at = flower.context({}, {"partition-id": 0, "num-partitions": 1, "shares-folder": True})
    assert hello(at, text(stream__partition={"kind": "intruder.parts:Part"}, name="mine")) == [0, 1, 2, 3]
    assert intruder.exists()
    assert trust._TRUSTED.get() is None


def test_trust_is_told_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given becomes FEDCL_TRUST of the node's processes."""
    given: dict[str, Any] = {}

    class Recorder:
        def __init__(self, **settings: Any) -> None:
            given.update(settings)

        def take_part(self, stop: Any) -> None:
            raise Stopped

    monkeypatch.setattr("fedcl.real.joining.Node", Recorder)
    words = ["client", "--server", "a:1", "--state", str(tmp_path / "s"), "--trust", "mylab", "--trust", "other.parts"]
    assert main(words) == 75
    assert given["extra"] == {"FEDCL_MIN_COUNT": "5", "FEDCL_TRUST": "mylab,other.parts"}
    for wrong in ("my lab", "os;", "", "a.", ".a", "a:B", "1a"):
        with pytest.raises(ConfigError, match="must be the name of a package"):
            packages([wrong], "--trust")


# Files.

OUT = ["/etc", "~/own", "~root/own", "..", "own/../../etc", "../own", "a/.."]
KEYS = {
    "stream.dataset.path": {"name": "folder", "path": None},
    "stream.dataset.folder": {"name": "mnist", "folder": None},
    "stream.dataset.anything": {"name": "an-outside-one", "anything": None},
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("path", OUT)
def test_a_node_reads_nothing_outside_of_its_own_data(
    key: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before anything is looked at, whatever the part that would read it."""
    monkeypatch.setenv("FEDCL_DATA", str(tmp_path))
    values = {name: path if each is None else each for name, each in KEYS[key].items()}
    with pytest.raises(ConfigError) as caught:
        hello(node(tmp_path / "node"), text(stream__dataset=values))
    assert str(caught.value) == (
        f"{key} = {path!r}: a node reads only below its own data folder (FEDCL_DATA), by a path without '..', '~' or "
        "a '/' in front"
    )


def _folder(at: Path, classes: list[str]) -> Path:
    for name in classes:
        (at / "own" / name).mkdir(parents=True)
        np.savez(at / "own" / f"{name}.npz", x=np.ones((10, 3), np.float32), y=np.array([name] * 10))
    return at


def test_the_servers_place_of_data_is_not_the_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """data.root of the text goes before FEDCL_DATA where the user has written it, and is left out on a node."""
    there, here = _folder(tmp_path / "there", ["a", "b", "c", "d"]), _folder(tmp_path / "here", ["a", "b"])
    monkeypatch.setenv("FEDCL_DATA", str(here))
    said = text(
        stream__dataset={"name": "folder", "path": "own"}, data__root=str(there), stream__tasks=1, stream__clients=2
    )
    assert world(said)[1].dataset.classes == 4
    assert world(own_text(said))[1].dataset.classes == 2
    assert hello(node(tmp_path / "node"), said) == [0, 1]
    monkeypatch.delenv("FEDCL_DATA")
    with pytest.raises(ConfigError, match=r"it lies below data\.root; set data\.root or FEDCL_DATA"):
        hello(node(tmp_path / "node"), text(**{"stream__dataset": {"name": "folder", "path": "own"}, "name": "x"}))


def test_what_a_node_never_reads_may_name_a_place_of_the_servers() -> None:
    said = text(model__weights="/srv/model.safetensors", data__root="/srv/data", name="../odd")
    assert json.loads(own_text(said)) == {**json.loads(said), "data": {"root": None}}


def test_an_honest_text_stays_as_it_is() -> None:
    """To the letter, so that the node's fingerprint and hash are the server's."""
    for name in ("split-digits", "permuted-mnist-fot", "reconnaissance-omniglot"):
        assert own_text(as_text(load(name))) == as_text(load(name))


# The environment.


@pytest.mark.parametrize("key", ["name", "stream__clients", "client__epochs", "model__weights"])
def test_a_node_tells_nothing_of_its_environment(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpolation would come back in the error's sentence."""
    monkeypatch.setenv("A_SECRET", "xyzzy")
    with pytest.raises(ConfigError) as caught:
        hello(node(tmp_path / "node"), text(**{key: "${oc.env:A_SECRET}"}))
    assert "xyzzy" not in str(caught.value)
    assert "a node fills in nothing" in str(caught.value)


@pytest.mark.parametrize("said", ["", "[]", "7", "name: a\n", "[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000])
def test_a_text_that_no_server_sends_is_refused_in_a_sentence(said: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, wire.BadMessage)) as caught:
        hello(node(tmp_path / "node"), said)
    assert len(str(caught.value)) < 300
