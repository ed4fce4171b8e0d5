"""Who takes part where nodes prove who they are, how many numbers a node may have, and numbers that are freed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fedcl import api, cli
from fedcl.errors import ConfigError
from fedcl.lock import Lock
from fedcl.real import numbers
from fedcl.real.nodes import Member
from fedcl.real.numbers import Numbers
from server import federation
from server.names import Table
from server.roster import Roll
from tests.federations import tiny
from tests.test_names import TEXT, A, B, C, Hall, table
from tests.test_policy import _identity
from tests.test_versions import sit

__all__ = ["_identity"]  # a fixture: no policy of the environment

MEMBERS = {1: Member(name="hospital-a", key=A), 2: Member(name="hospital-b", key=B)}


def hall(*told: tuple[str, Any], inside: Any = ()) -> Hall:
    """Return nodes by key and wards, or by key and a text of numbers."""
    grid = Hall(None, *((key if isinstance(own, tuple) else "", own) for key, own in told), inside=inside)
    for context, (_, own) in zip(grid.contexts, told, strict=True):
        if isinstance(own, str):
            context.node_config["clients"] = own
    return grid


def roll(grid: Hall, folder: Path | None, told: list[str], **more: Any) -> Roll:
    wards = {"wards": more.pop("wards")} if "wards" in more else {}
    found = Table.of(folder, 4, **wards)
    return Roll(grid=grid, config=TEXT, clients=4, refused=told.append, table=found, **more)


# Everyone is looked up.


@pytest.mark.parametrize("own", ["3", "0,1,2,3", "", (), ("x",), ("x", "y")])
def test_a_node_that_is_not_listed_takes_no_part_whatever_it_names(own: Any, tmp_path: Path) -> None:
    """Node 3 is in nobody's list: neither its numbers nor its names are taken in, and no number is spent on it."""
    told: list[str] = []
    found = roll(hall((A, "0"), (B, ()), (C, own)), tmp_path, told, member=MEMBERS.get)
    assert found.look().ids == (1, 2)
    assert told == ["node 3 is left out: it is none of fedcl server nodes list"]
    assert table(tmp_path) == {"names": {B: 1}, "numbers": [0], "keys": {"0": A}}


def test_a_number_belongs_to_the_key_that_came_with_it_first(tmp_path: Path) -> None:
    """Whoever asks for it later, here or of another server, with a key or without, is left out and told."""
    told: list[str] = []
    found = roll(hall((A, "0,1"), (B, "1,2"), inside=[1]), tmp_path, told, member=MEMBERS.get)
    assert found.look().nodes.tolist() == [0, 0, -1, -1]
    found.grid.inside = [1, 2]  # type: ignore[attr-defined]
    assert found.look().nodes.tolist() == [0, 0, 1, -1]
    assert told == [f"clients [1] of the node with the key {B} are left out: client 1 is that of the node with the key "
                    f"{A} (clients.json)"]  # fmt: skip
    again = roll(hall((A, "3"), (B, "0,1,2")), tmp_path, told, member=MEMBERS.get)
    assert again.look().nodes.tolist() == [-1, -1, 0, 1]
    assert table(tmp_path)["keys"] == {"0": A, "1": A, "2": B, "3": A}
    keyless = roll(hall((A, "0,1,2,3")), tmp_path, told)
    assert keyless.look().ids == ()
    assert told[-1].startswith("clients [0, 1, 2, 3] of a node without a key are left out: ")


def test_a_number_that_came_without_a_key_is_bound_by_the_first_key(tmp_path: Path) -> None:
    told: list[str] = []
    assert roll(hall(("", "2")), tmp_path, told).look().nodes.tolist() == [-1, -1, 0, -1]
    assert table(tmp_path) == {"names": {}, "numbers": [2]}
    assert roll(hall((A, "2")), tmp_path, told, member=MEMBERS.get).look().nodes.tolist() == [-1, -1, 0, -1]
    assert (table(tmp_path)["keys"], told) == ({"2": A}, [])


# How many.


def test_a_node_has_no_more_numbers_than_the_operator_allows(tmp_path: Path) -> None:
    """Two a node: the third ward and the third number are left out, now and later; another node finds room."""
    told: list[str] = []
    found = roll(hall((A, ("x", "y", "z")), (B, "0,1,2,3")), tmp_path, told, member=MEMBERS.get, wards=2)
    assert found.look().nodes.tolist() == [0, 0, 1, 1]
    many = "2 clients are the most that one node may have (fedcl server --wards sets more, nodes free takes one back)"
    assert told == [
        f"clients [2, 3] of the node with the key {B} are left out: {many}",
        f"{A}/z left out: {many}",
    ]
    again = roll(hall((A, ("z", "y"))), tmp_path, told, member=MEMBERS.get, wards=2)
    assert again.look().nodes.tolist() == [-1, -1, -1, 0]


def test_sixteen_are_the_default_for_names_with_keys_and_without() -> None:
    wards = [f"{A}/w{number}" for number in range(40)]
    own, why = Table(clients=100).admit_names(wards)
    assert own.tolist() == list(range(16))
    assert why[0].startswith(f"{A}/w16, {A}/w17, ")
    assert Table(clients=100).admit_numbers(np.arange(40), A)[0].tolist() == list(range(16))
    assert Table(clients=100).admit_numbers(np.arange(40))[0].tolist() == list(range(40))  # one node of a simulation


# Freed numbers.


def state_of(tmp_path: Path, grid: Hall, rounds: int = 3) -> Path:
    """Return the folder of a server whose federation was killed in a round."""

    def fate(asked: Any) -> str:
        return "dies" if getattr(asked, "clocks", None) is not None and asked.round > rounds else "ok"

    grid.fate = fate
    assert sit(tmp_path / "srv" / "run", grid, tiny("engine.cohort=4")) == "died"
    grid.fate = lambda asked: "ok"
    return tmp_path / "srv"


def freed(state: Path, *words: str) -> Any:
    return CliRunner().invoke(cli.app, ["server", "nodes", "free", *words, "--state", str(state)])


def test_a_freed_number_is_that_of_a_client_that_nobody_has_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B goes for good after round 3; C gets its number and starts anew; B itself gets none again."""
    monkeypatch.setattr(federation, "PATIENCE", 0.1)
    grid = Hall(tmp_path / "nodes", (A, ("x", "y", "z")), (B, ()), (C, ()), inside=[1, 2])
    state = state_of(tmp_path, grid)
    listed = CliRunner().invoke(cli.app, ["server", "nodes", "list", "--state", str(state)]).output
    assert f"client 3  {B}  answered last in round 3 of 3" in listed
    with Lock(state):
        assert "is in use by process" in str(freed(state, B).exception)
    assert "did you mean" in str(freed(state, B[:-1]).exception)
    assert freed(state, B).output == f"freed {B}\n"
    assert table(state / "run")["freed"] == [B]
    assert table(state / "run")["anew"] == {"3": 3}
    grid.inside = [2, 1, 3]
    assert sit(state / "run", grid, tiny("engine.cohort=4")) == "finished"
    assert table(state / "run")["names"] == {f"{A}/x": 0, f"{A}/y": 1, f"{A}/z": 2, C: 3}
    events = [json.loads(line) for line in (state / "run" / "events.jsonl").read_text().splitlines()]
    assert [event["clients"] for event in events if event["event"] == "round"][-1] == [0, 1, 2, 3]
    assert [(e["client"], e["name"]) for e in events if e["event"] == "joined"][-1] == (3, C)
    assert not [event for event in events if event["event"] == "client_error"]
    assert f"{B} left out: the operator has freed its number" in (state / "run" / "error.log").read_text()
    assert api.load(state / "run").results["status"] == "finished"


def test_whoever_has_not_answered_for_long_is_freed_together(tmp_path: Path) -> None:
    """Of rounds 1 to 3, client 3 answered in the first alone."""
    held = Numbers(names={A: 0, B: 3}, fixed={1: "", 2: C})
    rounds = [{"event": "round", "round": n, "clients": [0, 1, 2, 3][: 5 - n if n < 2 else 3]} for n in (1, 2, 3)]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rounds))
    assert numbers.unseen(held, tmp_path, 2) == [B]
    assert numbers.unseen(held, tmp_path, 3) == []
    left = numbers.without(held, [B, "2"], 3)
    assert left == Numbers(names={A: 0}, fixed={1: ""}, freed=frozenset({B}), anew={3: 3, 2: 3})
    with pytest.raises(ConfigError, match="client 'x' has no number"):
        numbers.without(held, ["x"], 3)
    numbers.write(tmp_path, left)
    assert numbers.read(tmp_path, 4) == left
