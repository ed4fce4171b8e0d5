"""The single-task oracle: every task of its run is, to the bit, a run of that task alone."""

from pathlib import Path
from typing import Any

import pytest

from tests.federations import hashes, journal, run, tiny

# Three tasks of two rounds, three clients.
COMMON = (
    "stream.dataset={name: synthetic, classes: 6, features: 5, samples: 90, test_samples: 60}",
    "stream.tasks=3", "stream.clients=3",
)  # fmt: skip
# What might remember something of the task before: the server's optimiser, the choice of clients, the clients.
REMEMBERING: dict[str, tuple[str, ...]] = {
    "server momentum": ("server.optimizer=fedavgm",),
    "fedadam": ("server.optimizer={name: fedadam, lr: 0.05}",),
    "kept adam": ("client.optimizer={name: adam, lr: 0.05, keep: true}",),
    "kept momentum": ("client.optimizer={name: sgd, lr: 0.1, momentum: 0.9, keep: true}", "server.optimizer=fedavgm"),
    "memory": ("client.method=er", "client.memory.admit=every_pass"),
    "personal head": ("model.personal=[head]", "server.optimizer=fedavgm"),
    "selection": (
        "server.selection={name: curriculum, b: 1.0}", "server.clients_per_round=2", "model.personal=[head.bias]",
    ),
    "local score": ("client.curriculum={order: curr, score: LG, min_pool: 1}", "client.epochs=2"),
    "regulariser": ("client.method={name: si, c: 5.0}",),
}  # fmt: skip


def alone(task: int) -> str:
    """Return the schedule of a run of one task, in the rounds that it has in the whole run: its draws are those."""
    one = f"{{start: {2 * task}, tasks: [{task}], rounds: [2]}}"
    return f"stream.schedule={{kind: explicit, clients: [{one}, {one}, {one}]}}"


def ends(folder: Path) -> list[Any]:
    """Return what the last round's events say of accuracies."""
    last = [event for event in journal(folder) if event["event"] in ("evaluation", "task_end", "client_task_end")]
    return [event["accuracy"] for event in last if event["round"] == last[-1]["round"]]


@pytest.mark.parametrize("name", REMEMBERING)
def test_every_task_is_a_run_of_that_task_alone(name: str, tmp_path: Path) -> None:
    """Weights and accuracies at the end of each task are those of a run with that task only, to the bit."""
    settings = (*COMMON, "group=single-task", *REMEMBERING[name])
    for task in range(3) if name == "server momentum" else [2]:
        until = run(tiny(*settings, f"stream.schedule.rounds={2 * (task + 1)}"), tmp_path / f"{task}")
        single = run(tiny(*settings, alone(task)), tmp_path / f"{task}-alone")
        assert hashes(until)[0] == hashes(single)[0]
        assert ends(tmp_path / f"{task}") == ends(tmp_path / f"{task}-alone")


@pytest.mark.parametrize("name", ["server momentum", "kept adam", "personal head"])
def test_what_remembers_is_told_apart(name: str, tmp_path: Path) -> None:
    """The same settings under FedAvg end elsewhere: what is forgotten makes a difference."""
    settings = (*COMMON, "client.method=finetune", *REMEMBERING[name])
    until = run(tiny(*settings), tmp_path / "all")
    single = run(tiny(*settings, alone(2)), tmp_path / "alone")
    assert hashes(until)[0] != hashes(single)[0]
