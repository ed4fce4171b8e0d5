"""A client that fails is data: named with its round, the others count, the run goes on or can be resumed."""

import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from flwr.app import Message
from torch import Tensor

from clients import programs
from clients.losses import Anchors, Batch, Forward, Term
from clients.losses.cross_entropy import CrossEntropy
from clients.methods import ClientMethod
from fedcl import api, wire
from fedcl.cli import main
from fedcl.config import Plain, Scenario
from fedcl.engine.inline import InlineGrid
from fedcl.orders import Ints, TrainReply
from fedcl.settings import setting
from fedcl.streams import Dataset
from fedcl.streams.datasets import Synthetic
from server.selection import Uniform
from tests.federations import hashes, run, tiny

ITEM = 3  # of class 3, so of the second task: whoever has it fails in rounds 3 and 4


# Parts of one's own that go wrong.


class Careless(Dataset):
    """A data set that nobody has checked."""

    def _problems(self) -> Any:
        return iter(())


@dataclass(frozen=True, kw_only=True)
class Poisoned(Synthetic):
    """Gaussian clusters with one item that no client can train on."""

    fault: Literal["label", "infinite"] = setting("label", "a label out of range, or infinite inputs")

    def load(self, root: str | None) -> Dataset:
        data = Synthetic.load(self, root)
        x, y = data.x.copy(), data.y.copy()
        if self.fault == "label":
            y[ITEM] = -1
        else:
            x[ITEM] = np.inf
        return Careless(x=x, y=y, test_x=data.test_x, test_y=data.test_y, classes=data.classes)


@dataclass(frozen=True, kw_only=True)
class Without(Uniform):
    """A selection that leaves one client out from a round on."""

    client: int = setting(0, "who is left out")
    since: int = setting(1, "from this round on")

    def select(self, available: Ints, n: int, *, seed: int, round: int) -> Ints:
        there = available[available != self.client] if round >= self.since else available
        return super().select(there, n, seed=seed, round=round)


@dataclass(frozen=True, kw_only=True)
class Breaking(CrossEntropy):
    """Cross-entropy that fails, or takes its process with it, while a file is there."""

    cause: str
    deadly: bool

    def __call__(self, model: Forward, batch: Batch, anchors: Anchors) -> Tensor:
        if Path(self.cause).exists():
            if self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("the disk is full")
        return super().__call__(model, batch, anchors)


@dataclass(frozen=True, kw_only=True)
class Fragile(ClientMethod):
    """Fine-tuning that works as long as a file is not there."""

    cause: str = setting("", "the file")
    deadly: bool = setting(False, "kill the process instead of raising")

    def terms(self) -> dict[str, Term]:
        return {"ce": Breaking(cause=self.cause, deadly=self.deadly)}


HERE = "tests.test_failures"
DATA = f"stream.dataset={{name: '{HERE}:Poisoned', classes: 4, features: 5, samples: 96, test_samples: 48, fault: %s}}"
ONE_COHORT = "engine.cohort=4"


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses that fail by the state of a file are no pure functions: what is recorded of them would not look."""
    monkeypatch.setattr(programs, "PLAYED_AFTER", sys.maxsize)
    monkeypatch.setenv("FEDCL_RECORD", "0")  # of Ray's workers


def owner(folder: Path) -> int:
    """Return the one client that has the poisoned item."""
    stream = api.load(folder).stream()
    (found,) = (client for client in range(4) if ITEM in stream.train.cell(client, 1))
    return found


def errors(folder: Path) -> list[Plain]:
    return [event for event in api.load(folder).events if event["event"] == "client_error"]


def rounds(folder: Path) -> list[Plain]:
    return [event for event in api.load(folder).events if event["event"] == "round"]


def weights(folder: Path) -> Tensor:
    return torch.cat([each.detach().flatten() for each in api.load(folder).model().parameters()])


def without(scenario: Scenario, client: int) -> Scenario:
    """Return the scenario in which a client is not asked from round 3 on."""
    return replace(scenario, server=replace(scenario.server, selection=Without(client=client, since=3)))


def assert_named(folder: Path, client: int, said: str) -> None:
    """Rounds 3 and 4 name the client with what happened, in the journal and in error.log; the others took part."""
    assert [(event["round"], event["client"]) for event in errors(folder)] == [(3, client), (4, client)]
    assert all(said in event["error"] for event in errors(folder))
    log = (folder / "error.log").read_text()
    assert all(f"round {round}, client {client}: {errors(folder)[0]['error']}" in log for round in (3, 4))
    others = sorted({0, 1, 2, 3} - {client})
    assert [sorted(event["clients"]) for event in rounds(folder)] == [[0, 1, 2, 3]] * 2 + [others] * 2
    assert [event["failed"] for event in rounds(folder)] == [0, 0, 1, 1]
    assert [event["updates"] for event in rounds(folder)] == [4, 4, 3, 3]


@pytest.mark.parametrize("stack", [1, 2])
def test_a_client_that_raises_is_named_and_the_others_count(stack: int, tmp_path: Path) -> None:
    """A label out of range: a traceback for rounds 3 and 4; bits as if that client had not been asked."""
    scenario = tiny(DATA % "label", ONE_COHORT, f"engine.stack={stack}", "client.method=er")
    results = run(scenario, tmp_path / "run")
    client = owner(tmp_path / "run")
    assert_named(tmp_path / "run", client, "RuntimeError: index")
    log = (tmp_path / "run" / "error.log").read_text()
    assert log.count("Traceback (most recent call last)") == 2
    assert "cross_entropy" in log
    assert all("Traceback" in event["traceback"] for event in errors(tmp_path / "run"))
    assert results["cost"]["failed"] == 2
    assert hashes(results) == hashes(run(without(scenario, client), tmp_path / "without"))
    assert not errors(tmp_path / "without")


def test_a_diverging_client_is_refused_and_named(tmp_path: Path) -> None:
    """Infinite inputs give an update that is not finite; the others' bits do not change."""
    scenario = tiny(DATA % "infinite", ONE_COHORT)
    results = run(scenario, tmp_path / "run")
    client = owner(tmp_path / "run")
    assert_named(tmp_path / "run", client, "not finite: the client has diverged")
    assert all(np.isfinite(event["loss"].get("ce", 0.0)) for event in rounds(tmp_path / "run"))
    assert hashes(results) == hashes(run(without(scenario, client), tmp_path / "without"))


def test_a_diverging_client_does_no_harm_to_those_stacked_with_it(tmp_path: Path) -> None:
    """Trained under vmap beside others, its infinities stay its own: the weights are those without it, to 1e-12."""
    scenario = tiny(DATA % "infinite", ONE_COHORT, "engine.stack=4", "model.dtype=float64")
    run(scenario, tmp_path / "run")
    client = owner(tmp_path / "run")
    assert_named(tmp_path / "run", client, "not finite: the client has diverged")
    run(without(scenario, client), tmp_path / "without")
    assert float((weights(tmp_path / "run") - weights(tmp_path / "without")).abs().max()) <= 1e-12


def test_a_learning_rate_without_bounds_ends_the_run_and_names_everybody(tmp_path: Path) -> None:
    """lr 1e30: all four diverge in round 1, exit 3, no accuracy is made up, and the weights are the first ones."""
    outcome = api.run(tiny("client.optimizer.lr=1e30"), out=tmp_path / "run", check=False)
    assert outcome.code == 3
    assert outcome.error.startswith(
        "the weights that the run begins with are not sound: from them no update of the next round is of "
    )
    assert sorted(event["client"] for event in errors(tmp_path / "run")) == [0, 1, 2, 3]
    assert all("not finite" in event["error"] for event in errors(tmp_path / "run"))
    (event,) = rounds(tmp_path / "run")
    assert (event["clients"], event["updates"], event["failed"], event["loss"]) == ([], 0, 4, {})
    assert (outcome.results["status"], outcome.results["metrics"]["acc"]) == ("diverged", None)


def test_too_few_answers_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """min_clients 4 and one that fails: `fedcl run` exits 1, tells of the client and says how to go on."""
    plain = tmp_path / "scenario.yaml"
    scenario = tiny(DATA % "label", ONE_COHORT, "server.min_clients=4")
    run(replace(scenario, server=replace(scenario.server, min_clients=3)), tmp_path / "three are enough")
    plain.write_text(
        (tmp_path / "three are enough" / "config.yaml").read_text().replace("min_clients: 3", "min_clients: 4")
    )
    folder = tmp_path / "run"
    assert main(["run", str(plain), "--out", str(folder), "--quiet"]) == 1
    said = capsys.readouterr().err
    assert f"client {owner(folder)} failed in round 3: RuntimeError: index -1 is out of bounds" in said
    assert said.count("Traceback") == 1
    assert said.endswith(
        "fedcl: round 3: 3 of 4 clients answered, server.min_clients = 4 are needed; "
        f"fedcl run --resume {folder} goes on from the last complete round\n"
    )
    assert [(event["round"], event["client"]) for event in errors(folder)] == [(3, owner(folder))]
    assert api.load(folder).results["status"] == "failed"


class CauseAfter:
    """A listener that makes the cause of the failure appear when a round has ended."""

    def __init__(self, cause: Path, round: int) -> None:
        self.cause, self.round = cause, round

    def __call__(self, event: Plain) -> None:
        if (event["event"], event.get("round")) == ("round", self.round):
            self.cause.touch()


@pytest.mark.parametrize("stack", [1, 2])
def test_a_failed_run_goes_on_once_the_cause_is_gone(stack: int, tmp_path: Path) -> None:
    """Everybody fails in round 3: exit 1, again while the cause is there; then the run ends as if undisturbed."""
    cause = tmp_path / "cause"
    scenario = tiny(f"client.method={{name: '{HERE}:Fragile', cause: '{cause}'}}", f"engine.stack={stack}")
    expected = run(scenario, tmp_path / "undisturbed")
    folder = tmp_path / "run"
    outcome = api.run(scenario, out=folder, listeners=[CauseAfter(cause, 2)], check=False)
    for failed in (outcome, api.resume(folder, check=False)):
        assert failed.code == 1
        assert failed.error.startswith("round 3: 0 of 4 clients answered")
        assert sorted((event["round"], event["client"]) for event in errors(folder)) == [(3, k) for k in range(4)]
        assert {event["error"] for event in errors(folder)} == {"RuntimeError: the disk is full"}
    cause.unlink()
    assert api.resume(folder).code == 0
    found = api.load(folder).results
    assert hashes(found) == hashes(expected)
    assert found["metrics"] == expected["metrics"]
    assert errors(folder) == []
    assert [event["round"] for event in rounds(folder)] == [1, 2, 3, 4]
    assert (folder / "error.log").read_text().count("the disk is full\n  | Traceback") == 8


def tampered(reply: TrainReply, fault: str) -> TrainReply:
    """Return what a faulty or hostile node could answer."""
    changes: dict[str, dict[str, Any]] = {
        "another round": {"round": reply.round + 1},
        "another cohort": {"cohort": reply.cohort + 1},
        "clients not asked": {"clients": reply.clients + 100},
        "a client twice": {"clients": np.repeat(reply.clients[:1], len(reply.clients))},
        "too long": {"total": np.append(reply.total, np.float32(0))},
        "not finite": {"total": np.where(np.arange(len(reply.total)) == 5, np.float32(np.nan), reply.total)},
        "no samples": {"table": {**reply.table, "n": np.zeros_like(reply.table["n"])}},
        "samples as fractions": {"table": {**reply.table, "n": reply.table["n"] + 0.5}},
        "no steps": {"table": {name: column for name, column in reply.table.items() if name != "steps"}},
    }
    return replace(reply, **changes[fault])


REFUSALS = {
    "another round": "it is not the answer of cohort 0 in round 2",
    "another cohort": "it is not the answer of cohort 0 in round 2",
    "clients not asked": "it covers clients that were not asked, or one twice",
    "a client twice": "it covers clients that were not asked, or one twice",
    "too long": "the answer has shape (66,) instead of (65,)",
    "not finite": "numbers that are not finite in delta/body.1.weight",
    "no samples": "its table lacks the numbers",
    "samples as fractions": "its table lacks the numbers",
    "no steps": "its table lacks the numbers",
}


@pytest.mark.parametrize("fault", REFUSALS)
def test_an_answer_that_cannot_be_is_refused(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cohort 0 of round 2 answers nonsense: its two clients are named, nothing of it is added, the run goes on."""
    honest = InlineGrid._carry_out

    def carry_out(grid: InlineGrid, message: Message) -> Message:
        answer = honest(grid, message)
        if message.metadata.message_type == "train":
            reply = wire.decode(answer.content)
            if (reply.round, reply.cohort) == (2, 0):
                answer.content = wire.encode(tampered(reply, fault))
        return answer

    monkeypatch.setattr(InlineGrid, "_carry_out", carry_out)
    results = run(tiny(), tmp_path / "run")
    refused = [event["client"] for event in errors(tmp_path / "run")]
    assert [(event["round"], event["failed"], event["updates"]) for event in rounds(tmp_path / "run")] == [
        (1, 0, 4), (2, 2, 2), (3, 0, 4), (4, 0, 4),
    ]  # fmt: skip
    assert all(event["error"].startswith(f"answer refused: {REFUSALS[fault]}") for event in errors(tmp_path / "run"))
    assert sorted(refused + rounds(tmp_path / "run")[1]["clients"]) == [0, 1, 2, 3]
    monkeypatch.setattr(InlineGrid, "_carry_out", honest)
    selection = LeftOut(clients=refused, round=2)
    scenario = tiny()
    expected = run(replace(scenario, server=replace(scenario.server, selection=selection)), tmp_path / "without")
    assert hashes(results) == hashes(expected)


@dataclass(frozen=True, kw_only=True)
class LeftOut(Uniform):
    """A selection that leaves some clients out of one round."""

    clients: list[int] = setting([], "who")
    round: int = setting(0, "of which round")

    def select(self, available: Ints, n: int, *, seed: int, round: int) -> Ints:
        there = available[~np.isin(available, self.clients)] if round == self.round else available
        return super().select(there, n, seed=seed, round=round)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_clients_that_kill_their_workers_are_given_up_and_named(tmp_path: Path) -> None:
    """Each cohort of round 3 takes three workers with it: exit 1, all clients named; then it can be resumed."""
    cause, folder = tmp_path / "cause", tmp_path / "run"
    method = f"client.method={{name: '{HERE}:Fragile', cause: '{cause}', deadly: true}}"
    scenario = tiny(method, "engine.kind=ray", "engine.workers=2")
    outcome = api.run(scenario, out=folder, listeners=[CauseAfter(cause, 2)], check=False)
    assert outcome.code == 1
    assert sorted((event["round"], event["client"]) for event in errors(folder)) == [(3, k) for k in range(4)]
    assert all("3 workers died on this cohort" in event["traceback"] for event in errors(folder))
    cause.unlink()
    assert hashes(api.resume(folder).results) == hashes(run(tiny(method), tmp_path / "undisturbed"))
