"""Run a federation in simulation, go on with one, load one: what the command line and Python programs call."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from fedcl import config, rundir, timing
from fedcl.answers import Tensors
from fedcl.config import Scenario
from fedcl.engine import choice
from fedcl.errors import ConfigError, FederationError
from fedcl.interrupt import STOPPED, Stopped, listening
from fedcl.journal import finished, read_events
from fedcl.process import settle
from fedcl.streams import Stream
from fedcl.world import as_text, world

Listener = Callable[[dict[str, Any]], None]
SERVER_APP = "server.app:app"


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    directory: Path
    code: int  # 0 finished, 1 failed, 75 stopped and resumable
    results: dict[str, Any]
    error: str = ""


@dataclass(frozen=True)
class Run:
    """A run directory, read."""

    directory: Path

    @cached_property
    def config(self) -> Scenario:
        """The resolved scenario."""
        return config.load(str(self.directory / "config.yaml"))

    @cached_property
    def results(self) -> dict[str, Any]:
        """The figures, from the journal as it is now."""
        from fedcl.results import summarise

        return summarise(config.as_dict(self.config), self.events)

    @property
    def events(self) -> list[dict[str, Any]]:
        """What happened, in order."""
        return list(read_events(self.directory))

    def stream(self) -> Stream:
        """Return the stream that the clients met."""
        return world(as_text(self.config))[1]

    def model(self) -> nn.Module:
        """Return the trained global model, in evaluation mode.

        Raises:
            FederationError: the run has not written its model yet.
        """
        import safetensors.torch

        import fedcl.models

        path = self.directory / "model.safetensors"
        if not path.is_file():
            raise FederationError(
                f"{str(path)!r} is missing: the run has not ended; fedcl run --resume {self.directory}"
            )
        data = self.stream().dataset
        module = fedcl.models.make(self.config.model, tuple(data.x.shape[1:]), data.classes, self.config.seed)
        module.load_state_dict(safetensors.torch.load_file(path))
        return module.eval()

    def classifier(self) -> Tensors:
        """Return what predicts instead of the model's logits (see `fedcl.classifiers`); nothing: the logits do."""
        import safetensors.torch

        path = self.directory / "classifier.safetensors"
        return safetensors.torch.load_file(path) if path.is_file() else {}


def load(directory: Path | str) -> Run:
    """Return the run of a run directory.

    Raises:
        ConfigError: it is none.
    """
    directory = Path(directory).absolute()
    if not (directory / "config.yaml").is_file():
        raise ConfigError(f"{str(directory)!r} is no run directory: it has no config.yaml")
    return Run(directory)


def run(
    scenario: Scenario, *, out: Path | None = None, command: str = "", listeners: Sequence[Listener] = (),
    profile: bool = False,
) -> Outcome:  # fmt: skip
    """Run a scenario in simulation and write its run directory.

    Args:
        out: exactly this run directory.
        command: what the run directory says that the run was started with.
        listeners: are called with every event of the journal.
        profile: write down where the time goes (`fedcl.timing`).

    Raises:
        ConfigError: the scenario contradicts its data, or `out` cannot be used.
    """
    scenario, _ = choice.resolve(scenario)
    if getattr(scenario.stream.dataset, "elsewhere", False):
        where = "the clients' data lies in folders on their own machines"
        raise ConfigError(
            f"stream.dataset.name = 'local': {where}; fedcl server and fedcl client run it, there or here"
        )
    return _go(scenario, rundir.create(scenario, out), command, listeners, profile)


def resume(
    directory: Path | str, *, command: str = "", listeners: Sequence[Listener] = (), profile: bool = False
) -> Outcome:
    """Go on with a run from its last checkpoint; one that had finished stays as it is.

    Raises:
        ConfigError: the directory holds no run.
    """
    found = load(directory)
    if finished(found.directory):
        return Outcome(found.directory, 0, found.results)
    return _go(found.config, found.directory, command, listeners, profile)


def _go(scenario: Scenario, folder: Path, command: str, listeners: Sequence[Listener], profile: bool) -> Outcome:
    """Start the engine and hand it to the ServerApp."""
    from fedcl.engine import flower

    settle()
    tokens = rundir.LISTENERS.set(tuple(listeners)), rundir.COMMAND.set(command)
    code, message, grid = 0, "", None
    if profile:
        timing.start()
    try:
        with listening() as stop:  # a stop that is asked for while Ray starts counts too
            grid = _grid(scenario, folder, stop.check)
            stop.check()
            module, _, name = SERVER_APP.partition(":")
            context = flower.context({"directory": str(folder), "state": str(folder / "state")}, {})
            getattr(importlib.import_module(module), name)(grid, context)
    except Stopped:
        code = STOPPED
    except FederationError as error:
        code, message = 1, str(error)
    finally:
        if grid is not None:
            grid.close()
        rundir.LISTENERS.reset(tokens[0])
        rundir.COMMAND.reset(tokens[1])
        if profile:
            timing.write(folder, timing.stop())
    return Outcome(folder, code, load(folder).results, message)


def _grid(scenario: Scenario, folder: Path, check: Callable[[], None]) -> Any:
    """Return the grid that the scenario asks for.

    Raises:
        ConfigError: there is no room for its workers, or not every machine sees the run directory.
        Stopped: somebody asked for it meanwhile.
    """
    if choice.kind(scenario) == "inline":
        from fedcl.engine.inline import InlineGrid

        return InlineGrid()
    from fedcl.engine import cluster, survey
    from fedcl.engine.ray_grid import RayGrid, fitting

    engine, text, (workers, gpus) = scenario.engine, as_text(scenario), choice.workers(scenario)
    cluster.start_ray(engine.address)
    check()
    if engine.address:
        survey.survey(folder, "--out", check)
    workers = fitting(workers, engine.workers != "auto", gpus, everywhere=engine.address is not None)
    grid = RayGrid(text, world(text)[1], workers=workers, gpus=gpus)
    try:
        grid.begin(check, lambda here: _queued(here, workers))
    except BaseException:
        grid.close()
        raise
    return grid


def _queued(here: int, needed: int) -> None:
    """Tell who watches that workers wait until others free their cores."""
    for listener in rundir.LISTENERS.get():
        listener({"event": "queued", "here": here, "needed": needed})
