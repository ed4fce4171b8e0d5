"""What can be chosen by name: what it is, its paper, needs and settings, read from the parts; what verifies it."""

import inspect
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from fedcl import registry
from fedcl.citations import identifiers, paper, uncited
from fedcl.config import as_dict, read
from fedcl.errors import ConfigError, nearest
from fedcl.evidence import Evidence, evidence
from fedcl.needs import needs, scenario_needs
from fedcl.shipped import scenario_names

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
    """One thing that can be chosen: its name, what it is in one line, its settings.

    `paper` is the short citation, "" without one; `needs` is what must be there beside it. `verified` is what speaks
    for it: nothing where it is not verified, None where no evidence is kept of things of its kind.
    """

    name: str
    about: str
    settings: tuple[Option, ...] = field(default=())
    paper: str = ""
    needs: tuple[str, ...] = ()
    verified: tuple[Evidence, ...] | None = None


def about(thing: object) -> str:
    """Return the first line of a docstring, without the paper; "" without one, or if dataclasses have made it up."""
    text = (inspect.getdoc(thing) or "").strip()
    made_up = isinstance(thing, type) and text.startswith(f"{thing.__name__}(")
    return "" if made_up or not text else uncited(text.splitlines()[0])


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


def _part(topic: str, name: str) -> Entry:
    """Describe one part; an outside package that cannot be imported is listed with the reason."""
    kind, verified = KINDS[topic], evidence(topic, name)
    try:
        cls = registry.find(kind, name)
    except ConfigError as error:
        return Entry(name, str(error), verified=verified)
    return Entry(name, about(cls), options(cls), paper(cls), needs(kind, cls), verified)


def _scenario(name: str, text: str) -> Entry:
    """Describe a scenario by the first sentence of the comment at its head."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    sentence, plain = " ".join(lines).split(". ")[0].rstrip("."), read(name)
    groups = tuple(Option(group, "group", None, f"group={group}") for group in plain.get("groups") or {})
    papers = "; ".join(identifiers(sentence))
    return Entry(name, sentence, groups, papers, scenario_needs(plain), evidence("scenarios", name))


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
    return [_part(topic, name) for name in registry.names(KINDS[topic])]
