"""Conformance tests for a part of one's own: what every method, memory, data set and model of fedcl has to keep.

`fedcl check package.module:Name` runs them; `check_reference` gives the same to a test suite.
"""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcl import api, config, registry
from fedcl.config import Scenario
from fedcl.engine import worker
from fedcl.errors import ConfigError, FederationError, nearest
from fedcl.packs import read_pack
from fedcl.result import Result

HASHES = ("weights_sha256", "state_sha256", "clients_sha256")
# What tells a kind of part from the others: the method that the frame calls on it.
KINDS = {
    "terms": "client_methods", "end_round": "server_methods", "slots": "memories", "load": "datasets",
    "build": "models", "streams": "schedules", "assign": "partitions", "select": "selections",
    "pools": "curricula",
}  # fmt: skip
PLACES = {
    "client_methods": "client.method", "server_methods": "server.method", "memories": "client.memory",
    "datasets": "stream.dataset", "models": "model", "schedules": "stream.schedule",
    "partitions": "stream.partition", "selections": "server.selection", "curricula": "client.curriculum",
}  # fmt: skip
TINY: dict[str, Any] = {
    "name": "check",
    "stream": {
        "dataset": {"name": "synthetic", "classes": 6, "features": 8, "samples": 360, "test_samples": 60},
        "kind": "class-incremental", "tasks": 3, "clients": 6,
        "partition": {"kind": "dirichlet", "alpha": 1.0}, "schedule": {"kind": "synchronous", "rounds_per_task": 4},
    },
    "model": {"name": "mlp", "width": 12, "dtype": "float64"},
    "client": {
        "method": "er", "memory": {"policy": "reservoir", "size": 9}, "optimizer": {"name": "sgd", "lr": 0.05},
        "batch": 8,
    },
    "server": {"clients_per_round": 5},
    "engine": {"kind": "inline", "cohort": 3, "stack": 1},
    "checkpoint": {"seconds": 0},
}  # fmt: skip


class DoesNotApply(Exception):
    """A check has nothing to look at; says why."""


@dataclass(frozen=True)
class Check:
    """One conformance test and what it found."""

    name: str
    problem: str = ""  # empty: passed


def kind_of(reference: str) -> str:
    """Return the registry kind of a part, told by the method that the frame calls on it.

    Raises:
        ConfigError: it cannot be imported, or is no part of fedcl.
    """
    if ":" not in reference:
        raise ConfigError(f"{reference!r} must read package.module:Name")
    cls = registry.find("client_methods", reference)
    kinds = [kind for method, kind in KINDS.items() if callable(getattr(cls, method, None))]
    if len(kinds) != 1:
        raise ConfigError(
            f"{reference!r} is no part of fedcl: it must have exactly one of these methods{nearest('', KINDS)}"
        )
    return kinds[0]


def scenario_with(reference: str) -> Scenario:
    """Return a small federation on synthetic data (or its own) with the part in its place."""
    kind = kind_of(reference)
    plain: dict[str, Any] = {registry.chooser(kind): reference}
    if kind == "memories":
        plain["size"] = TINY["client"]["memory"]["size"]
    if kind == "models":
        plain["dtype"] = "float64"
    for name in reversed(PLACES[kind].split(".")):
        plain = {name: plain}
    if kind == "models":  # inputs that are images suit convolutions and dense nets alike
        plain["stream"] = {"dataset": "digits", "tasks": 5}
    return config.load(config.overlay(Scenario, TINY, plain))


def _run(scenario: Scenario, *, out: Path) -> Result:
    """Run without showing how far it is: the tests of a part are a line each."""
    return api.run(scenario, out=out, progress=False)


def changed(scenario: Scenario, **engine: Any) -> Scenario:
    """Return the scenario with other engine settings."""
    return config.load(config.overlay(Scenario, config.as_dict(scenario), {"engine": engine}))


def hashes(outcome: Result) -> list[str]:
    """Return the three hashes of a finished run."""
    return [outcome.results[name] for name in HASHES]


def stacked_equals_one_by_one(scenario: Scenario, folder: Path) -> None:
    """Training clients stacked gives the weights of training them one by one, within 1e-9 in float64."""
    found = [_run(changed(scenario, stack=stack), out=folder / f"stack-{stack}") for stack in (1, 3)]
    alone, stacked = (dict(each.model().named_parameters()) for each in found)
    gap = max(float((alone[name] - stacked[name]).detach().abs().max()) for name in alone)
    assert gap <= 1e-9, f"the largest difference is {gap:.2e}"


def workers_make_no_difference(scenario: Scenario, folder: Path) -> None:
    """One Ray worker, two, and none at all give the same bits."""
    inline = hashes(_run(changed(scenario, kind="inline"), out=folder / "inline"))
    for workers in (1, 2):
        outcome = _run(changed(scenario, kind="ray", workers=workers), out=folder / f"ray-{workers}")
        assert hashes(outcome) == inline, f"{workers} Ray workers give other bits than one process"


def killed_run_resumes(scenario: Scenario, folder: Path) -> None:
    """A run killed by SIGKILL and resumed gives the bits of a run that was left alone."""
    straight = hashes(_run(scenario, out=folder / "straight"))
    target, directory = folder / "scenario.yaml", folder / "killed"
    target.write_text((folder / "straight" / "config.yaml").read_text())
    command = [sys.executable, "-m", "fedcl", "run", str(target), "--out", str(directory), "--quiet"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while child.poll() is None and not list((directory / "checkpoints").glob("r*.safetensors")):
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert hashes(api.resume(directory, progress=False)) == straight, "the resumed run gives other bits"


def memory_stays_within_budget(scenario: Scenario, folder: Path) -> None:
    """No client ever keeps more than its memory's size, and the memories really evict."""
    if not scenario.client.method.draws:
        raise DoesNotApply("the client method replays nothing")
    outcome, size = _run(scenario, out=folder / "memory"), scenario.client.memory.size
    evicted = sum(event["evicted"] for event in outcome.events if event["event"] == "round")
    packs = [read_pack(path)[1] for path in sorted((outcome.directory / "state").glob("*.pack"))]
    assert packs, "no client has kept anything"
    for records in packs:
        assert records["items"].shape[1] == size, f"a client has room for more than {size} items"
        assert (records["count"] <= size).all(), f"a client counts more than {size} items"
    assert evicted > 0, "the memories were never full: nothing was evicted"


def padding_changes_nothing(scenario: Scenario, folder: Path) -> None:
    """What the rows that pad a batch show (other inputs, labels, remembered logits) reaches no result, to the bit."""
    found = []
    for change in (0.0, 1.0):
        with padded_otherwise(change):
            found.append(hashes(_run(changed(scenario, kind="inline"), out=folder / f"padding-{change:g}")))
    assert found[0] == found[1], (
        "the rows that pad a batch change the result: weigh each sample by batch.now.weight, which is 0 for them"
    )


@contextmanager
def padded_otherwise(change: float) -> Iterator[None]:
    """Have the rows that pad a batch show something else within the block, in this process; 0: what they do show."""
    stepwise = worker.found("clients.trainer:Stepwise")  # fedcl imports no clients but by name
    feed = stepwise.feed

    def showing(*given: Any) -> list[Any]:
        items = []
        for each in feed(*given):  # new tensors whatever the change: some kernels round by where numbers lie
            padded = each.weight == 0
            x = each.x + change * padded[(..., *(None,) * (each.x.dim() - padded.dim()))] * (7 - 3 * each.x)
            y = each.y.masked_fill(padded & (change > 0), 0)
            items.append(each._replace(x=x, y=y, logits=each.logits + 5 * change * padded[..., None]))
        return items

    stepwise.feed = showing
    try:
        yield
    finally:
        stepwise.feed = feed


CHECKS: dict[str, Callable[[Scenario, Path], None]] = {
    "stacked = one by one": stacked_equals_one_by_one,
    "1 worker = 2 workers": workers_make_no_difference,
    "kill and resume = straight run": killed_run_resumes,
    "memory within its budget": memory_stays_within_budget,
    "padding changes nothing": padding_changes_nothing,
}


def check_reference(reference: str) -> list[Check]:
    """Run every conformance test on a part named `package.module:Name`.

    Raises:
        ConfigError: it cannot be imported or is no part of fedcl.
    """
    scenario, found = scenario_with(reference), []
    for name, test in CHECKS.items():
        with tempfile.TemporaryDirectory(prefix="fedcl-check-") as folder:
            try:
                test(scenario, Path(folder))
                found.append(Check(name))
            except DoesNotApply as reason:
                found.append(Check(f"{name} (does not apply: {reason})"))
            except (AssertionError, FederationError) as error:
                found.append(Check(name, str(error) or "failed"))
    return found
