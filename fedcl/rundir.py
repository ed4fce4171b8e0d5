"""The run directory: what to run and where, its first event, and the files that stand beside the journal."""

import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

from fedcl import config, registry, track, writing
from fedcl.answers import Tensors
from fedcl.config import Scenario
from fedcl.distribution import installed
from fedcl.engine.choice import resolve
from fedcl.errors import ConfigError, FederationError
from fedcl.inputs import write_inputs
from fedcl.interrupt import Stopped
from fedcl.journal import ERRORS, FAILED, RESULTS, clear, read_events, replace_file, write_json
from fedcl.lock import Lock
from fedcl.results import summarise
from fedcl.streams import Dataset, Stream
from fedcl.yamltext import write_yaml

# Who is told of every event while a run goes on in this process (the console).
LISTENERS: ContextVar[tuple[Callable[[dict[str, Any]], None], ...]] = ContextVar("listeners", default=())
# The command line that started the run, kept with its results.
COMMAND: ContextVar[str] = ContextVar("command", default="")


def default_folder(scenario: Scenario) -> Path:
    """Return runs/NAME/YYYYMMDD-HHMMSS-hash, under the current folder."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / scenario.name / f"{stamp}-{config.config_hash(scenario)[:8]}"


def _free(wanted: Path) -> Path:
    """Make a folder of a name that is free, the wanted one or the first of those with a number behind it.

    Raises:
        ConfigError: no folder can be made there.
    """
    folder, number = wanted, 1
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with suppress(FileExistsError):  # of a run that began in the same second
                folder.mkdir()
                return folder
            number += 1
            folder = wanted.with_name(f"{wanted.name}.{number}")
    except OSError as error:
        raise ConfigError(f"{str(folder)!r}: cannot be made ({error.strerror})") from error


def create(scenario: Scenario, folder: Path | None) -> Path:
    """Create a run directory with its config.yaml.

    Raises:
        ConfigError: there is a run in the folder already, or it cannot be written, or a tracker is not installed.
    """
    track.check(scenario.track)
    folder = folder.absolute() if folder else _free(default_folder(scenario).absolute())
    if (folder / "config.yaml").exists():
        raise ConfigError(f"{str(folder)!r} holds a run already: fedcl run --resume {folder}, or another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = write_yaml(config.as_dict(scenario), allow_unicode=True)
        replace_file(folder / "config.yaml", [text.encode()], sync=True)
    except OSError as error:
        raise ConfigError(f"--out {str(folder)!r}: cannot be written ({error})") from error
    return folder


def asked(run_config: Mapping[str, Any]) -> tuple[Scenario, Path]:
    """Return what a Flower run is to do and its run directory.

    `fedcl run` names a run directory that is there (`directory`); `flwr run` names a `scenario`, `overrides` (one text,
    separated by spaces) and perhaps `out`.
    """
    directory = run_config.get("directory")
    if directory:
        folder = Path(str(directory))
        return config.load(str(folder / "config.yaml")), folder
    overrides = str(run_config.get("overrides") or "").split()
    scenario, _ = resolve(config.load(str(run_config.get("scenario") or "split-digits"), overrides))
    out = run_config.get("out")
    return scenario, create(scenario, Path(str(out)) if out else None)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the run directory's lock, and write into error.log why the run could not go on, if it could not.

    Raises:
        ConfigError: another process works in it.
    """
    with Lock(folder):
        for each in (folder, folder / "checkpoints", folder / "state"):
            clear(each)
        try:
            yield
        except Stopped:
            raise
        except Exception as error:
            expected = isinstance(error, ConfigError | FederationError)
            what = str(error) if expected else f"{type(error).__name__}: {error}"
            text = f"{FAILED}{' '.join(what.split())}\n" + ("" if expected else traceback.format_exc())
            with suppress(OSError), writing.appending(folder / ERRORS) as file:
                file.write(
                    text.encode("utf-8", "backslashreplace")
                )  # not where the disk is full: the error itself is told all the same
            raise


def versions() -> dict[str, str]:
    """Return the versions that results may depend on."""
    found = {"python": platform.python_version()}
    for package in ("fedcl", "torch", "numpy", "flwr", "ray"):
        found[package] = installed(package) or "not installed"
    return found


def device_name(device: str) -> str:
    """Return the device in words."""
    return torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()


def start_event(scenario: Scenario, stream: Stream, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Return the first event of a run, with notes for its user beside those of the data."""
    return {
        "event": "start", "name": scenario.name, "seed": scenario.seed, "config_hash": config.config_hash(scenario),
        "command": COMMAND.get(), "clients": scenario.stream.clients, "tasks": len(stream.tasks),
        "rounds": stream.timeline.rounds, "joint": scenario.stream.joint, "personal": bool(scenario.model.personal),
        "evaluation_every": scenario.evaluate.every, "device": device_name(scenario.engine.device),
        "stack": scenario.engine.stack, "cohort": scenario.engine.cohort, "versions": versions(),
        "task_classes": [list(task.classes) for task in stream.tasks], "orders": orders(scenario),
        "notes": [*stream.dataset.notes, *notes],
    }  # fmt: skip


def orders(scenario: Scenario) -> list[str]:
    """Return in which order the curricula of a scenario show items and ask clients."""
    within = registry.name_of("curricula", scenario.client.curriculum)
    return [within, str(getattr(scenario.server.selection, "order", "uniform"))]


def finish(folder: Path, weights: Tensors, classifier: Tensors, dataset: Dataset, plain: dict[str, Any]) -> None:
    """Write the global model, what it takes, what predicts instead of its logits if something does, then results.json.

    A run killed in between is resumed to write them all.
    """
    import safetensors.torch

    for name, tensors in (("model", weights), ("classifier", classifier)):
        path = folder / f"{name}.safetensors"
        if tensors:
            held = safetensors.torch.save({each: tensor.contiguous() for each, tensor in tensors.items()})
            replace_file(path, [held], sync=False)
        else:
            path.unlink(missing_ok=True)
    write_inputs(folder, dataset)
    write_json(folder / RESULTS, summarise(plain, read_events(folder)))
