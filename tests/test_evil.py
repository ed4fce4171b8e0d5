"""A registered client that means harm, one of five, with default settings: the run ends as if it were not there."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message

from fedcl import api, wire
from fedcl.config import Scenario
from fedcl.engine import flower
from fedcl.orders import ClientError, TrainReply
from tests.federations import tiny
from tests.nodes import Nodes
from tests.test_hostile import told
from tests.test_versions import sit

EVIL = 4  # client, and the node that hosts it
Crime = Callable[[TrainReply], TrainReply]


class OneEvil(Nodes):
    """Five nodes, one client each; what the last one answers to a training order is what it likes."""

    def __init__(self, crime: Callable[[Message, TrainReply], Any]) -> None:
        super().__init__(5)
        self.crime = crime

    def _reply(self, message: Message) -> Message:
        answer = super()._reply(message)
        if message.metadata.message_type != "train" or wire.decode(message.content).clients.tolist() != [EVIL]:
            return answer
        done = self.crime(answer, wire.decode(answer.content))
        if isinstance(done, str):
            return Message(Error(code=2, reason=done), reply_to=message)
        answer.content = wire.encode(done)
        return answer


def scaled(factor: float, *, honest: bool) -> Callable[[Message, TrainReply], TrainReply]:
    """Return a crime that multiplies the update, and tells its true norm or the one that it had before."""

    def crime(_: Message, reply: TrainReply) -> TrainReply:
        total, table = reply.total.copy(), dict(reply.table)
        total[:-1] *= np.float32(factor)
        table["norm"] = table["norm"] * abs(factor) if honest else table["norm"]
        return replace(reply, total=total, table=table)

    return crime


def filled(value: float, norm: float) -> Callable[[Message, TrainReply], TrainReply]:
    """Return a crime that answers one value everywhere."""

    def crime(_: Message, reply: TrainReply) -> TrainReply:
        total = np.full_like(reply.total, value)
        total[-1] = reply.total[-1]
        return replace(reply, total=total, table={**reply.table, "norm": np.array([norm])})

    return crime


def foreign(_: Message, reply: TrainReply) -> TrainReply:
    return replace(reply, clients=np.array([0]))


def shorter(_: Message, reply: TrainReply) -> TrainReply:
    return replace(reply, total=reply.total[:-2])


def says(text: str) -> Callable[[Message, TrainReply], Any]:
    """Return a crime that answers an error with this text for the client."""

    def crime(_: Message, reply: TrainReply) -> TrainReply:
        errors = [ClientError(client=EVIL, error=text, traceback="")]
        none = {name: column[:0] for name, column in reply.table.items()}
        return replace(reply, clients=reply.clients[:0], table=none, errors=errors, total=0 * reply.total)

    return crime


CRIMES: dict[str, tuple[Callable[[Message, TrainReply], Any], str]] = {
    "3e38": (filled(3e38, np.inf), "more than server.max_norm_ratio = 10 times"),
    "3e38, said to be 1": (filled(3e38, 1.0), "but its table makes it 1 at most"),
    "x1000": (scaled(1000, honest=True), "more than server.max_norm_ratio = 10 times"),
    "x1000, not told": (scaled(1000, honest=False), "but its table makes it"),
    "sign flip x20": (scaled(-20, honest=True), "more than server.max_norm_ratio = 10 times"),
    "NaN": (filled(np.nan, 1.0), "numbers that are not finite"),
    "norm NaN": (filled(1e30, np.nan), "its table lacks the norms of its updates"),
    "wrong shape": (shorter, "the answer has shape"),
    "foreign number": (foreign, "it covers clients that were not asked"),
    "60 MB of error text": (says("x" * 60_000_000), "letters beside its numbers"),
    "60 MB of exception": (lambda *_: "y" * 60_000_000, "yyyy"),
    "escape sequences": (says("\x1b[2J\x1b]0;owned\x07 gone"), "gone"),
}  # fmt: skip


def five(*overrides: str) -> Scenario:
    return tiny(
        "stream.clients=5", "stream.dataset.samples=200", "client.method=er", "client.memory.size=30", *overrides
    )


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The results of the run in which that client's answers never come."""
    flower.identify()
    folder = tmp_path_factory.mktemp("without") / "run"
    assert (
        sit(folder, Nodes(5, lambda order: "deaf" if order.clients.tolist() == [EVIL] else "ok"), five()) == "finished"
    )
    return api.load(folder).results


@pytest.mark.parametrize("crime", CRIMES)
def test_one_evil_client_of_five_changes_nothing_and_is_named(crime: str, without: Any, tmp_path: Path) -> None:
    """Default settings: the accuracy and the weights of the run without it, and a reason for it in every round."""
    done, reason = CRIMES[crime]
    assert sit(tmp_path / "run", OneEvil(done), five()) == "finished"
    results, named = api.load(tmp_path / "run").results, told(tmp_path / "run")
    assert results["metrics"]["acc"] > 0.5
    assert abs(results["metrics"]["acc"] - without["metrics"]["acc"]) <= 0.02
    assert results["weights_sha256"] == without["weights_sha256"]
    training_errors = [(round, client) for round, client, error in named if reason in error]
    assert training_errors == [(round, EVIL) for round in (1, 2, 3, 4)]
    assert {client for _, client, _ in named} <= {EVIL}


def test_a_sign_flip_of_five_times_is_not_caught(without: Any, tmp_path: Path) -> None:
    """What docs/deployment.md says of it: that is for robust methods."""
    assert sit(tmp_path / "run", OneEvil(scaled(-5, honest=True)), five()) == "finished"
    assert told(tmp_path / "run") == []
    assert api.load(tmp_path / "run").results["weights_sha256"] != without["weights_sha256"]
