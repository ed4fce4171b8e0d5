"""What a run has come to, read from its run directory."""

import os
import textwrap
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fedcl import config, kept
from fedcl.answers import Tensors
from fedcl.config import Scenario
from fedcl.digest import digest
from fedcl.errors import ConfigError, FederationError
from fedcl.inputs import read_inputs
from fedcl.journal import EVENTS, read_events
from fedcl.log import Log, collect, table
from fedcl.metrics import Matrix
from fedcl.process import settled
from fedcl.results import client_figures, summarise
from fedcl.streams import Stream, build_stream
from fedcl.world import as_text, world

if TYPE_CHECKING:
    from fedcl.figure import Figure

CLASSIFIER = "classifier.safetensors"
ANEW = "delete results.json, and fedcl run --resume writes it anew"


@dataclass(frozen=True, repr=False)
class Result:
    """A run directory, read when something of it is asked for."""

    directory: Path
    code: int | None = (
        None  # of the call that has run it: 0 finished, 1 failed, 3 with lost updates, 75 stopped; None: it was loaded
    )
    error: str = ""  # why it failed

    def __repr__(self) -> str:
        """Return name, seed, status and figures in a few lines."""
        found = self.results
        shown = ", ".join(f"{name} {value:.3f}" for name, value in found["metrics"].items() if value is not None)
        head = f"Result: {found['name']}, seed {found['seed']}: {found['status']}"
        return "\n  ".join([head, *textwrap.wrap(shown, 76), str(self.directory)])

    def _repr_html_(self) -> str:
        """Return the table of figures for a notebook."""
        from fedcl.console import rows

        found = self.results
        head = escape(f"{found['name']}, seed {found['seed']}: {found['status']}")
        body = "".join(
            f"<tr><td>{escape(name)}</td><td style='text-align: right'>{escape(value)}</td>"
            f"<td style='text-align: left; opacity: .7'>{escape(note)}</td></tr>"
            for name, value, note in rows(found)
        )
        return f"<table><caption>{head}</caption><tbody>{body}</tbody></table><p>{escape(str(self.directory))}</p>"

    @cached_property
    def config(self) -> Scenario:
        """The resolved scenario."""
        path = self.directory / "config.yaml"
        try:
            return config.load(str(path))
        except ConfigError as error:
            raise ConfigError(f"{path} cannot be taken: {str(error).removeprefix(str(path)).lstrip()}") from error

    @property
    def events(self) -> list[dict[str, Any]]:
        """What happened, in order, as the journal is now."""
        return list(read_events(self.directory))

    @property
    def readable(self) -> list[dict[str, Any]]:
        """The events, without lines that cannot be read: a run goes on without them (`Journal.mend`)."""
        return list(read_events(self.directory, strict=False))

    @cached_property
    def results(self) -> dict[str, Any]:
        """Everything that results.json holds, from the journal as it was when this was first asked for."""
        with kept.sound(self.directory / EVENTS):
            return summarise(config.as_dict(self.config), self.events)

    @property
    def status(self) -> str:
        """How far the run is: finished, diverged, stopped, failed, or running (also when it was killed)."""
        return str(self.results["status"])

    @property
    def metrics(self) -> dict[str, float | None]:
        """The figures of the global model by name; None where one is unknown, and `results["absent"]` says why."""
        found: dict[str, float | None] = self.results["metrics"]
        return found

    @property
    def matrix(self) -> Matrix:
        """The accuracy matrix (ends of tasks, `tasks`): of the global model, fractions, NaN where unknown.

        Raises:
            FederationError: the run has none.
        """
        rows = self.results["accuracy_matrix"]
        if rows is None:
            raise FederationError(f"there is no accuracy matrix: {self.results['absent']['accuracy_matrix']}")
        return table(rows)

    @property
    def tasks(self) -> list[int]:
        """The tasks in the order in which they first ended: the columns of `matrix`."""
        found: list[int] = self.results["task_order"]
        return found

    @cached_property
    def clients(self) -> dict[str, dict[int, float]]:
        """Each client's own accuracy ("acc") and "forgetting", by its number; who has none of it is left out."""
        with kept.sound(self.directory / EVENTS):
            return client_figures(self._log)

    @property
    def _log(self) -> Log:
        with kept.sound(self.directory / EVENTS):
            return collect(self.events)

    def plot(self) -> "Figure":
        """Return the accuracy matrix and the accuracy over rounds, drawn: a notebook shows it, `save` writes it.

        Raises:
            FederationError: there is nothing to draw yet.
        """
        from fedcl.figure import figure

        return figure(self.directory)

    def stream(self) -> Stream:
        """Return the stream that the clients met."""
        return world(as_text(self.config))[1]

    @cached_property
    def outline(self) -> Stream:
        """The stream without its items, which needs no data: what the model takes, and its classes by name and task.

        Raises:
            ConfigError: the run's inputs.json is damaged; of a run without one, its data is not there.
        """
        data = read_inputs(self.directory)
        return self.stream() if data is None else build_stream(self.config, data)

    @settled()
    def model(self) -> nn.Module:
        """Return the trained global model, in evaluation mode.

        Raises:
            FederationError: the run has not written its model yet, or it is damaged.
        """
        import fedcl.models

        path = self.directory / "model.safetensors"
        if not path.is_file():
            raise FederationError(
                f"{str(path)!r} is missing: the run has not ended; fedcl run --resume {self.directory}"
            )
        data = self.outline.dataset
        module = fedcl.models.make(self.config.model, tuple(data.x.shape[1:]), data.classes, self.config.seed)
        held, written = kept.read_tensors(path, ANEW), self._log.end.get("weights_sha256")
        if written and digest(held) != written:
            raise kept.damaged(path, "its weights are not those that the run has ended with", ANEW)
        with kept.sound(path, ANEW):
            module.load_state_dict({**fedcl.models.fixed(module), **held})
        return module.eval()

    def classifier(self) -> Tensors:
        """Return what predicts instead of the model's logits (see `fedcl.classifiers`); nothing: the logits do."""
        path = self.directory / CLASSIFIER
        return kept.read_tensors(path, ANEW) if os.path.lexists(path) else {}


def read(directory: Path | str) -> Result:
    """Return the run of a run directory.

    Raises:
        ConfigError: it is none.
    """
    directory = Path(directory).absolute()
    if not (directory / "config.yaml").is_file():
        raise ConfigError(f"{str(directory)!r} is no run directory: it has no config.yaml")
    return Result(directory)
