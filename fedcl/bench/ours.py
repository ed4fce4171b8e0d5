"""fedcl itself, exactly as `fedcl run` runs it: journal, clients' records and checkpoints included."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.numpy

from fedcl import api
from fedcl.bench import workloads
from fedcl.bench.spec import Spec, Told, Watch
from fedcl.memory import peaks


class Listener:
    """Marks the time of every round's event: from one to the next lies a whole round with all that belongs to it."""

    def __init__(self, watch: Watch) -> None:
        self.watch, self.updates, self.memory = watch, list[int](), dict[str, Any]()

    def __call__(self, event: dict[str, Any]) -> None:
        """Take in an event."""
        match event["event"]:
            case "start":
                self.watch.begin()
            case "round":
                self.watch.mark()
                self.updates.append(event["updates"])
            case "end":  # the workers are still up
                self.memory = peaks()


def run(spec: Spec, watch: Watch) -> Told:
    """Run the scenario.

    Raises:
        FederationError: the run has failed.
    """
    listener, folder = Listener(watch), Path(spec.folder) / "run"
    api.run(spec.scenario, out=folder, listeners=[listener])
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    return Told(updates=listener.updates, weights=weights, memory=listener.memory)


def run_plain(spec: Spec, watch: Watch) -> Told:
    """Run the same scenario without the method that it is about."""
    return run(replace(spec, overrides=[*spec.overrides, workloads.PLAIN[spec.workload]]), watch)
