"""What can be chosen by name: its first docstring line and its settings, read from the parts themselves."""

import inspect
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from fedcl import registry
from fedcl.config import as_dict, read, scenario_names
from fedcl.errors import ConfigError, nearest

# What users ask for -> the registry's kind.
KINDS = {
    "datasets": "datasets",
    "server": "server_methods",
    "clients": "client_methods",
    "memories": "memories",
    "curricula": "curricula",
    "models": "models",
    "partitions": "partitions",
    "schedules": "schedules",
    "optimizers": "optimizers",
    "server-optimizers": "server_optimizers",
    "selections": "selections",
}
TOPICS = ("scenarios", *KINDS, "metrics")


@dataclass(frozen=True)
class Option:
    """One setting of a part: its name, type, default (a plain value) and help text."""

    name: str
    type: str
    default: Any
    help: str


@dataclass(frozen=True)
class Entry:
    """One thing that can be chosen: its name, what it is in one line, its settings."""

    name: str
    about: str
    settings: tuple[Option, ...] = field(default=())


def about(thing: object) -> str:
    """Return the first line of a docstring; "" without one, or with the one that dataclasses make up."""
    text = (inspect.getdoc(thing) or "").strip()
    made_up = isinstance(thing, type) and text.startswith(f"{thing.__name__}(")
    return "" if made_up or not text else text.splitlines()[0]


def _type(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return text.replace("typing.", "")


def options(cls: type) -> tuple[Option, ...]:
    """Return the settings of a dataclass of settings."""
    found = []
    for each in fields(cls):
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        if hasattr(default, "__dataclass_fields__"):
            default = as_dict(default)
        plain = None if default is MISSING else default
        found.append(Option(each.name, _type(each.type), plain, str(each.metadata.get("help", ""))))
    return tuple(found)


def _part(kind: str, name: str) -> Entry:
    """Describe one part; an outside package that cannot be imported is listed with the reason."""
    try:
        cls = registry.find(kind, name)
    except ConfigError as error:
        return Entry(name, str(error))
    return Entry(name, about(cls), options(cls))


def _scenario(name: str, text: str) -> Entry:
    """Describe a scenario by the first sentence of the comment at its head."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    sentence = " ".join(lines).split(". ")[0].rstrip(".")
    groups = tuple(Option(group, "group", None, f"group={group}") for group in read(name).get("groups") or {})
    return Entry(name, sentence, groups)


def _metrics() -> list[Entry]:
    from fedcl import metrics

    functions = inspect.getmembers(metrics, inspect.isfunction)
    ours = [(name, f) for name, f in functions if f.__module__ == metrics.__name__ and not name.startswith("_")]
    return [Entry(name, about(function)) for name, function in ours]


def catalogue(topic: str) -> list[Entry]:
    """Return what can be chosen under `topic` (one of `TOPICS`).

    Raises:
        ConfigError: there is no such topic.
    """
    if topic == "scenarios":
        return [_scenario(name, entry.read_text()) for name, entry in scenario_names().items()]
    if topic == "metrics":
        return _metrics()
    if topic not in KINDS:
        raise ConfigError(f"nothing to list under {topic!r}{nearest(topic, TOPICS)}")
    return [_part(KINDS[topic], name) for name in registry.names(KINDS[topic])]
