"""Trackers: what a run writes into its journal, handed on to TensorBoard, MLflow or Weights & Biases (`track: [...]`).

A tracker is an extra and changes nothing of what comes out; one that fails is told of in the journal and left out. What
a run has written before, in an earlier sitting or while a tracker was away, is taken from the journal.
"""

import importlib
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

from fedcl import config
from fedcl.config import Scenario
from fedcl.distribution import install
from fedcl.errors import ConfigError
from fedcl.journal import Event, Journal, ended, read_events, read_results
from fedcl.plain import flat_texts
from fedcl.track.scalars import figures, scalars
from fedcl.track.tracker import About, Tracker

LONGEST = 700  # characters of an error in the journal: what MLflow says of its stores has the remedy at its end
# Name in a scenario -> the module that it needs, the package that brings it, and what stands for it here.
TRACKERS = {
    "tensorboard": ("tensorboard", "tensorboard", "fedcl.track.tensorboard:TensorBoard"),
    "mlflow": ("mlflow", "mlflow-skinny", "fedcl.track.mlflow:MLflow"),
    "wandb": ("wandb", "wandb", "fedcl.track.wandb:WandB"),
}


def check(names: Sequence[str]) -> None:
    """Look whether the packages of trackers are installed; nothing is imported.

    Raises:
        ConfigError: one is not.
    """
    for name in names:
        module, package, _ = TRACKERS[name]
        if find_spec(module) is None:
            raise ConfigError(
                f"track = {list(names)}: {name!r} needs {package}, which is not installed; {install(name)}"
            )


def follow(journal: Journal, scenario: Scenario) -> "Tracking":
    """Hand on to a scenario's trackers what its run writes into its journal from now on, and what it has there.

    Raises:
        ConfigError: the package of one is not installed.
    """
    check(scenario.track)
    tracking = Tracking(journal, scenario)
    if scenario.track:
        journal.listeners = (*journal.listeners, tracking)
    return tracking


class Tracking:
    """A listener of the journal of one sitting of a run."""

    def __init__(self, journal: Journal, scenario: Scenario) -> None:
        self._journal, self._scenario = journal, scenario
        self._waiting, self._open = list(dict.fromkeys(scenario.track)), dict[str, Tracker]()
        self._round, self._status = 0, ""

    def __call__(self, event: Event) -> None:
        """Hand on one event, if it says something; the first that does opens the trackers."""
        values = scalars(event)
        if event["event"] == "end":
            self._round, self._status = event["round"], event["status"]
        if not values and event["event"] not in ("start", "end"):
            return
        for name, tracker in list(self._open.items()):
            with self._trouble(name):
                _hand(tracker, event)
        for name in self._waiting:
            with self._trouble(name):
                self._begin(name)
        self._waiting.clear()

    def close(self) -> None:
        """Hand on the figures of a run that has finished, and end the trackers."""
        results = read_results(self._journal.folder) if self._status else None
        found = figures(results) if results and ended(results) else {}
        for name, tracker in list(self._open.items()):
            with self._trouble(name):
                tracker.close(self._status or "died", self._round, found)
        self._open.clear()

    def _begin(self, name: str) -> None:
        """Open a tracker and hand on what the journal has, the event that is being told included."""
        module, _, cls = TRACKERS[name][2].partition(":")
        folder = self._journal.folder
        about = About(folder=folder, name=self._scenario.name, parameters=flat_texts(config.as_dict(self._scenario)))
        self._open[name] = tracker = getattr(importlib.import_module(module), cls)(about)
        for event in read_events(folder):
            _hand(tracker, event)

    @contextmanager
    def _trouble(self, name: str) -> Iterator[None]:
        """Leave a tracker out that raises, and say so: no tracker is worth a run."""
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            what = " ".join(f"{type(error).__name__}: {error}".split())
            self._journal.error(f"tracker {name} failed: {what}\n{traceback.format_exc()}")
            self._journal.write({"event": "untracked", "tracker": name, "error": what[:LONGEST]})


def _hand(tracker: Tracker, event: Event) -> None:
    """Hand the scalars of an event to a tracker, those that it has left out."""
    values = {name: value for name, value in scalars(event).items() if tracker.last(name) < event["round"]}
    if values:
        tracker.log(event["round"], values)
