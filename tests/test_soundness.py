"""Dead weights are left behind, divergence is told, and lost updates are counted: in results, table and exit code."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from rich.console import Console

from fedcl import api, wire
from fedcl.cli import main
from fedcl.config import ServerConfig
from fedcl.console import Progress
from fedcl.engine import flower
from fedcl.journal import finished, read_events, read_results
from fedcl.orders import Order, TrainOrder, TrainReply, pick
from server import checkpoint
from server.norms import Limit
from server.waiting import Sums
from tests.federations import journal, tiny
from tests.nodes import Nodes
from tests.test_evil import OneEvil, five
from tests.test_hostile import told
from tests.test_versions import sit


@pytest.mark.parametrize(
    ("norms", "limit"),
    [([1, 2, 3], 20.0), ([1, 1, 1e30, np.inf], 10 * (1 + 1e30) / 2), ([5, 7], 60.0), ([7], 60.0), ([0, 0, 0, 4], 60.0)],
)
def test_the_limit_is_ten_medians_or_ten_times_one_and_the_weights_norm(norms: Any, limit: float) -> None:
    """Weights of norm 5; fewer than three norms, or a median of 0, are no measure."""
    found = Limit.of(ServerConfig(), np.array(norms, np.float64), {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])})
    assert found.norm == limit
    assert found.exceeded(np.array([limit, np.nextafter(limit, np.inf), np.inf, np.nan])).tolist() == [
        False,
        *[True] * 3,
    ]


def test_no_limit_is_set_without_a_ratio() -> None:
    found = Limit.of(ServerConfig(max_norm_ratio=None), np.ones(5), {"a": torch.ones(1)})
    assert found.exceeded(np.array([1e30, np.inf])).tolist() == [False, True]


class Failing(Nodes):
    """Nodes that train every cohort without client 3, as a client that fails is left out."""

    def _reply(self, message: Message) -> Message:
        if message.metadata.message_type == "train":
            order = wire.decode(message.content)
            kept = pick(order, np.flatnonzero(order.clients != 3))
            message.content = wire.encode(kept, config=wire.text(message.content, "config"))
        return super()._reply(message)


class Long(Nodes):
    """One node whose client 3 tells of an update that is much too long, and answers for the others when asked."""

    def _reply(self, message: Message) -> Message:
        answer = super()._reply(message)
        if message.metadata.message_type == "train":
            reply = wire.decode(answer.content)
            if 3 in reply.clients:
                norm, total = reply.table["norm"].copy(), reply.total.copy()
                norm[reply.clients == 3] *= 1e4
                total[:-1] *= np.float32(100)
                answer.content = wire.encode(replace(reply, total=total, table={**reply.table, "norm": norm}))
        return answer


def test_a_cohort_with_a_refused_client_is_formed_again_without_it(tmp_path: Path) -> None:
    """Two cohorts of two: the same weights as where that client fails, whether its node has one worker or more."""

    flower.identify()
    scenario = tiny("engine.cohort=2")
    assert sit(tmp_path / "long", Long(1), scenario) == "finished"
    found = api.load(tmp_path / "long").results
    assert [(client, "max_norm_ratio" in error) for _, client, error in told(tmp_path / "long")] == [(3, True)] * 4
    assert found["updates"] == {
        "asked": 16, "accepted": 12, "failed": 0, "diverged": 0, "refused": 4, "absent": 0, "withheld": 0
    }  # fmt: skip
    assert found["status"] == "finished"
    assert sit(tmp_path / "fails", Failing(1), scenario) == "finished"
    assert api.load(tmp_path / "fails").results["weights_sha256"] == found["weights_sha256"]


def poison(rounds: set[int]) -> Callable[[Message, TrainReply], TrainReply]:
    """Return what a client answers that says so large an update, in so small a federation, that weights die of it."""

    def crime(message: Message, reply: TrainReply) -> TrainReply:
        if reply.round not in rounds:
            return reply
        total = np.full_like(reply.total, 1e36)
        total[-1] = reply.total[-1]
        return replace(reply, total=total, table={**reply.table, "norm": np.array([1e38])})

    return crime


def test_dead_weights_are_left_by_themselves_and_the_round_repeated_without_the_longest(tmp_path: Path) -> None:
    """No limit is set: the server goes back, names the client, and ends with the weights of the run without it."""
    flower.identify()
    scenario = five("server.max_norm_ratio=null", "checkpoint.keep=1")
    assert sit(tmp_path / "run", OneEvil(poison({2})), scenario) == "finished"

    def mute(order: Order) -> str:
        return "deaf" if isinstance(order, TrainOrder) and order.round == 2 and order.clients.tolist() == [4] else "ok"

    assert sit(tmp_path / "mute", Nodes(5, mute), scenario) == "finished"
    (event,) = [event for event in journal(tmp_path / "run") if event["event"] == "fallback"]
    assert (event["round"], event["to"], event["left_out"], event["longest"][0]) == (2, 1, [4], [4, 1e38])
    results = api.load(tmp_path / "run").results
    assert results["status"] == "finished"
    assert results["weights_sha256"] == api.load(tmp_path / "mute").results["weights_sha256"]
    assert len(checkpoint.kept(tmp_path / "run" / "checkpoints")) == 2


def test_a_run_that_diverges_says_so_and_keeps_sound_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 3, status diverged, what to try; the only checkpoints are of weights that are finite and can be trained."""
    scenario = tiny("client.optimizer.lr=1e15", "stream.schedule.rounds_per_task=4")
    outcome = api.run(scenario, out=tmp_path / "run", check=False)
    results = read_results(tmp_path / "run") or {}
    assert (outcome.code, outcome.status, results["status"]) == (3, "diverged", "diverged")
    assert not finished(tmp_path / "run")
    assert "try a smaller client.optimizer.lr" in outcome.error
    for path in checkpoint.kept(tmp_path / "run" / "checkpoints"):
        tensors = checkpoint.read(path).tensors.values()
        assert all(torch.isfinite(each).all() for each in tensors if each.is_floating_point())
    assert main(["run", "--resume", str(tmp_path / "run"), "--quiet"]) == 3
    assert "goes on from there" in capsys.readouterr().err


def test_a_loss_that_explodes_is_told_when_it_does_and_at_the_end(tmp_path: Path) -> None:
    """Losses far above that of guessing to the last round: all rounds are run, with exit 3 and one line."""
    scenario = tiny("stream.dataset.name=synthetic", "client.optimizer.lr=300", "model.width=40")
    console = Console(record=True, width=200)
    outcome = api.run(scenario, out=tmp_path / "run", listeners=[Progress(console, console)], check=False)
    events = [event for event in read_events(tmp_path / "run") if event["event"] == "diverging"]
    assert (outcome.code, outcome.status) == (3, "diverged")
    assert [event["round"] for event in events if event["exploded"]] == [2, 3]
    assert events[0]["chance"] == pytest.approx(np.log(4), abs=1e-6)
    assert events[0]["loss"] > 1000 * events[0]["chance"]
    assert console.export_text().count("training diverges") == 1


def test_sums_come_back_from_memory_and_from_a_file_that_leaves_nothing(tmp_path: Path) -> None:
    """Ten vectors, of which three fit into memory; one is replaced, one dropped."""
    sums, vectors = Sums(tmp_path, most=3 * 400), [np.full(100, n, np.float32) for n in range(10)]
    for number, vector in enumerate(vectors):
        sums.put(number, vector)
    sums.put(7, 70 * vectors[1])
    sums.drop(0)
    sums.put(10, vectors[1])
    assert [sums.get(number)[0] for number in range(1, 11)] == [1, 2, 3, 4, 5, 6, 70, 8, 9, 1]
    assert all(sums.get(number).dtype == np.float32 and sums.get(number).shape == (100,) for number in range(1, 11))
    sums.close()
    assert list(tmp_path.iterdir()) == []
