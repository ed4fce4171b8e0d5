"""A scenario: one tree of frozen dataclasses that is the schema, the defaults, the ranges and the help text.

YAML + overrides -> `load` -> Scenario -> `as_dict` -> config.yaml -> the same Scenario. Every mistake of the user ends
as one `ConfigError` sentence with the key, the value and the nearest valid choice.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import reduce
from operator import getitem
from typing import Any, Literal

from fedcl import addresses, declarations, files, registry
from fedcl.contradictions import problems
from fedcl.errors import ConfigError, close, nearest, shown
from fedcl.groups import chosen
from fedcl.leaves import leaf
from fedcl.overrides import given, typed
from fedcl.plain import Plain as Plain
from fedcl.plain import mapping
from fedcl.plain import parse as parse
from fedcl.schema import ALIASES, nearest_key, number_of
from fedcl.settings import OutOfRange, Settings, part, setting
from fedcl.shipped import scenario_names

# Keys that say where and how fast a run happens, and who is told, never what comes out: left out of the hash.
PLACE = ("data.root", "engine.kind", "engine.workers", "engine.gpus_per_worker", "engine.address", "track")


def one_component(name: str) -> str:
    """Return why a name cannot be that of one folder, "" if it can."""
    inside = name not in ("", ".", "..") and "/" not in name and "\0" not in name
    return "" if inside else "names a folder below runs/: must be one name, without slashes"


@dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """Where files of real data lie."""

    root: str | None = setting(None, "folder with data sets; default: the environment's FEDCL_DATA")


@dataclass(frozen=True, kw_only=True)
class StreamConfig(Settings):
    """Datasets to tasks, who has what, and when."""

    dataset: Any = part("datasets", "digits", "the data that all clients share out")
    kind: Literal["class-incremental", "task-incremental", "domain-incremental"] = setting(
        "class-incremental", "what changes from task to task: classes, classes with a known task, or inputs (permuted)"
    )
    tasks: int = setting(5, "tasks in the stream", low=1, high=10_000)
    shuffle_classes: bool = setting(False, "draw the order of the classes from the seed")
    base_classes: int = setting(
        0, "classes of the first task, the first of the data set; 0: as many as the others", low=0
    )
    partition: Any = part("partitions", "iid", "who has what of each task")
    clients: int = setting(5, "clients of the federation", low=1, high=10_000_000)
    schedule: Any = part("schedules", "synchronous", "when each client is at which task")
    joint: bool = setting(False, "oracle: every visit trains on the client's data of all its tasks at once")


@dataclass(frozen=True, kw_only=True)
class ClientConfig(Settings):
    """What a client does in one visit."""

    method: Any = part("client_methods", "finetune", "loss terms, replay draws and gradient transforms")
    memory: Any = part("memories", "reservoir", "replay memory of a client")
    curriculum: Any = part("curricula", "vanilla", "which items of a visit are shown when")
    optimizer: Any = part("optimizers", "sgd", "local optimiser")
    epochs: int = setting(1, "passes over the visit's data", low=1, high=1_000_000)
    batch: int = setting(16, "samples a step; more than a client has: all of them", low=1, high=1_000_000)
    replay_batch: int | None = setting(
        None, "samples drawn from the memory a step; default: as batch, or all if fewer", low=1, high=1_000_000
    )
    clip: float | None = setting(None, "largest norm of a client's gradient", above=0)


@dataclass(frozen=True, kw_only=True)
class ServerConfig(Settings):
    """Who is asked, how answers become new weights, and when a round has failed."""

    method: Any = part("server_methods", "fedavg", "how answers become a step")
    optimizer: Any = part("server_optimizers", "sgd", "what is done with the step (1.0 * step by default)")
    selection: Any = part("selections", "uniform", "who is asked in a round")
    clients_per_round: int | None = setting(None, "clients asked in a round; default: all", low=1)
    weights: Literal["samples", "uniform"] = setting("samples", "weight of a client's answer")
    min_clients: int = setting(1, "fewer answers than this end the run (exit 1, resumable)", low=1)
    max_update_norm: float | None = setting(None, "largest norm of a client's update", above=0)
    norm_bound: Literal["clip", "refuse"] = setting(
        "clip", "what happens to a longer update: it is scaled down, or refused and its client named"
    )
    max_norm_ratio: float | None = setting(
        10.0, "longest update in medians of its round's norms; a longer one is refused; null: none is", low=1
    )
    deadline: float = setting(3600.0, "seconds that a round waits for answers", above=0)


@dataclass(frozen=True, kw_only=True)
class EngineConfig(Settings):
    """Where the clients run. Only cohort, stack, device and compile have a part in the arithmetic."""

    kind: Literal["auto", "ray", "inline"] = setting(
        "auto", "ray, or inline in this process; auto: ray if it has a use"
    )
    workers: int | Literal["auto"] = setting("auto", "Ray workers; auto: one a core (or a GPU share)", low=1)
    gpus_per_worker: float | Literal["auto"] = setting("auto", "GPUs of a worker, a fraction shares one", low=0)
    cohort: int | Literal["auto"] = setting(
        "auto", "clients in one unit of scheduling, reply and summation", low=1, high=100_000
    )
    stack: int | Literal["auto"] = setting("auto", "clients trained with stacked parameters; 1: one by one", low=1)
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "where the workers compute; auto: cuda if there is one")
    compile: bool = setting(False, "fuse the steps of full stacks by PyTorch's compiler: seconds to begin with")
    address: str | None = setting(
        None, "of a Ray cluster: HOST:PORT, or 'auto' for that of this machine", problem=addresses.problem
    )

    @property
    def clients(self) -> int:
        """Clients of a cohort, where nobody has settled "auto" (`fedcl.engine.choice`): on real nodes."""
        return 32 if self.cohort == "auto" else self.cohort


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Settings):
    """How often and on what accuracy is measured."""

    every: int = setting(5, "rounds between evaluations of the global model; 0: only when tasks end", low=0)
    clients: int | None = setting(
        None, "clients evaluated on their own stream (a keyed fixed sample); default: all", low=0
    )
    samples: int | None = setting(None, "test items a task (a keyed fixed sample); default: all", low=1)
    score: Literal["accuracy"] = setting("accuracy", "what fills the accuracy matrix")
    trace: int = setting(
        0, "steps of local training between measurements on the client's own test items; 0: none", low=0
    )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Settings):
    """How often the run is committed: every `rounds` rounds or `seconds` seconds, whichever is later."""

    rounds: int = setting(1, "rounds between checkpoints", low=1)
    seconds: float = setting(5.0, "seconds between checkpoints", low=0)
    keep: int = setting(2, "checkpoints kept, at least 2: the newest is not known yet to be sound", low=1)


@dataclass(frozen=True, kw_only=True)
class Scenario(Settings):
    """A whole federation: everything that its results depend on."""

    name: str = setting("unnamed", "names the run directory", problem=one_component)
    seed: int = setting(0, "the one seed of everything random", low=0, high=2**62)
    data: DataConfig = field(default_factory=DataConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    model: Any = part("models", "mlp", "architecture")
    client: ClientConfig = field(default_factory=ClientConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    track: list[Literal["tensorboard", "mlflow", "wandb"]] = setting([], "trackers that are told what happens, by name")


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return as_dict(value) if is_dataclass(value) else value


def as_dict(node: Any) -> Plain:
    """Return a block of settings as plain dicts, lists, numbers and strings that `build` turns back into it."""
    plain: Plain = {}
    for each in fields(node):
        value, kind = getattr(node, each.name), each.metadata.get("part")
        if kind and isinstance(value, str):  # a default that `build` has not looked up
            plain[each.name] = {registry.chooser(kind): value}
        elif kind:
            plain[each.name] = {registry.chooser(kind): registry.name_of(kind, value), **as_dict(value)}
        else:
            plain[each.name] = _plain(value)
    return plain


def config_hash(scenario: Scenario) -> str:
    """Hash everything that results depend on; what stands in PLACE is left out."""
    plain = as_dict(scenario)
    for key in PLACE:
        *blocks, name = key.split(".")
        del reduce(getitem, blocks, plain)[name]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _fields(cls: type) -> dict[str, Field[Any]]:
    return {each.name: each for each in fields(cls)}


def _default(each: Field[Any]) -> Any:
    return each.default_factory() if callable(each.default_factory) else each.default


def _build_part(kind: str, value: Any, default: Any, path: str) -> Any:
    """Build what is chosen by name; settings without a name are those of the default."""
    if is_dataclass(value):
        return value
    if isinstance(value, int | float) and (meant := number_of(Scenario, path, value)):
        raise ConfigError(f"{path} = {value!r}: must be a name or a block of settings; did you mean {meant!r}?")
    chosen = {registry.chooser(kind): value} if isinstance(value, str) else mapping(value, path)
    name = chosen.pop(registry.chooser(kind), default)
    if not isinstance(name, str):
        raise ConfigError(
            f"{path}.{registry.chooser(kind)} = {shown(name)}: must be a name{nearest('', registry.names(kind))}"
        )
    try:
        cls = registry.find(kind, name)
    except ConfigError as error:
        raise ConfigError(f"{path}.{registry.chooser(kind)} = {name!r}: {error}") from error
    for problem in declarations.problems(cls):
        raise ConfigError(f"{path} = {name!r}: {problem}")
    return build(cls, chosen, path)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _unknown(cls: type, name: str, value: Any, path: str) -> str:
    """Say that a key is unknown, and which one will be meant: one of the block, else one of the whole tree."""
    inside = "" if name in ALIASES else close(name, _fields(cls), cutoff=0.65)
    found = "" if inside else nearest_key(Scenario, name, value, path) if path else nearest_key(cls, name, value)
    hint = f"; did you mean {inside or found!r}?" if inside or found else nearest(name, _fields(cls))
    return f"unknown key {_join(path, name)!r} (= {shown(value)}){hint}"


def build(cls: type, values: Any, path: str = "") -> Any:
    """Build the settings dataclass `cls` from plain values.

    Raises:
        ConfigError: unknown keys, wrong types or values out of range, each a line that names its whole dotted key.
    """
    given, known, built = mapping(values, path), _fields(cls), {}
    wrong = [_unknown(cls, name, given[name], path) for name in given if name not in known]
    for name, each in known.items():
        try:
            built.update(_built(cls, name, each, given, path))
        except ConfigError as error:
            wrong.append(str(error))
    if wrong:
        raise ConfigError("\n".join(wrong))
    try:
        return cls(**built)
    except OutOfRange as error:
        raise ConfigError(f"{_join(path, error.name)} = {error.value!r}: {error.reason}") from error
    except (TypeError, ValueError) as error:  # a part of an outside package may check in its own way
        raise ConfigError(f"{path or 'the scenario'}: {' '.join(str(error).split())}") from error


def _built(cls: type, name: str, each: Field[Any], given: Plain, path: str) -> Plain:
    """Return one field by name, built from what is given; nothing where the default stands."""
    where, default, kind = _join(path, name), _default(each), each.metadata.get("part")
    if kind:
        return {name: _build_part(kind, given.get(name, default), default, where)}
    if is_dataclass(default):
        return {name: build(type(default), given.get(name, {}), where)}
    return {name: leaf(cls, name, given[name], where)} if name in given else {}


def _expand(kind: str | None, value: Any) -> Any:
    return {registry.chooser(kind): value} if kind and isinstance(value, str) else value


def overlay(cls: type | None, base: Plain, over: Plain) -> Plain:
    """Lay `over` on `base`; naming another part replaces the part and its settings, not naming one keeps it."""
    result = dict(base)
    for name, value in over.items():
        each = _fields(cls).get(name) if cls else None
        kind = each.metadata.get("part") if each else None
        old = _expand(kind, result.get(name, _default(each) if kind and each else None))
        new = _expand(kind, value)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            choice = registry.chooser(kind) if kind else None
            if choice and choice in new and new[choice] != old.get(choice):
                result[name] = new
            else:
                inner = type(_default(each)) if each and is_dataclass(_default(each)) else None
                result[name] = overlay(inner, dict(old), dict(new))
        else:
            result[name] = new
    return result


def read(scenario: str) -> Plain:
    """Read a shipped scenario by name, or a scenario file by path, as plain values.

    Raises:
        ConfigError: there is neither, or it is no plain file of YAML.
    """
    shipped = scenario_names()
    if scenario in shipped:
        return parse(shipped[scenario].read_text(encoding="utf-8"), scenario)
    if not os.path.lexists(scenario):
        raise ConfigError(f"no scenario {scenario!r}, neither shipped nor a file{nearest(scenario, shipped)}")
    return parse(files.text(scenario, "scenario"), scenario)


def load(scenario: str | Plain, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Scenario:
    """Read a scenario, lay its groups and the overrides on it, check it.

    Args:
        scenario: a shipped name, a path, or plain values (as `as_dict` returns them).
        overrides: `dotted.key=value` texts, or values by dotted key; `group` (a name, or a list of them) applies groups
            of overrides first.

    Raises:
        ConfigError: one sentence that names key, value and nearest valid choice.
    """
    plain = read(scenario) if isinstance(scenario, str) else dict(scenario)
    if isinstance(overrides, Mapping):
        changes = [given(key, value) for key, value in overrides.items()]
    else:
        changes = [typed(text) for text in overrides]
    own = mapping(plain.pop("groups", None) or {}, "groups")
    groups = [change.pop("group") for change in changes if "group" in change]
    for over in chosen(str(plain.get("name")), own, groups[-1] if groups else []):
        plain = overlay(Scenario, plain, over)
    for change in changes:  # one after another on the whole: laid on each other first, they would bring defaults along
        plain = overlay(Scenario, plain, change)
    return check(build(Scenario, plain))


def check(scenario: Scenario) -> Scenario:
    """Check what no single setting can know.

    Raises:
        ConfigError: two settings contradict each other.
    """
    for problem in problems(scenario):
        raise ConfigError(problem)
    return scenario
