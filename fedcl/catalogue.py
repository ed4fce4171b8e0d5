"""What can be chosen by name: what it is, its paper, needs and settings, read from the parts; what verifies it."""

import inspect
import itertools
import re
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from importlib import resources
from typing import Any

from fedcl import registry
from fedcl.citations import identifiers, paper, uncited
from fedcl.config import as_dict, read
from fedcl.errors import ConfigError, close, nearest
from fedcl.evidence import Evidence, evidence
from fedcl.needs import needs, scenario_needs
from fedcl.plain import Plain, flat_texts
from fedcl.shipped import scenario_names, sweep_names

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
TOPICS = ("scenarios", "sweeps", "groups", "streams", *KINDS, "metrics")
STREAMS = {
    "class-incremental": "each task brings new classes, and the model has to tell all classes apart",
    "task-incremental": "each task brings new classes, and the task of an input is known when it is predicted",
    "domain-incremental": "the classes stay, the inputs change: each task permutes the pixels in its own way",
}

COMMENT = re.compile(r"^([\w-]+): +# (.+)$", re.MULTILINE)  # a group, and what stands behind its name


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


@cache
def _shipped(name: str) -> Plain:
    """Return a shipped scenario, read once. Nothing of it is ever changed."""
    return read(name)


def _scenario(name: str, text: str) -> Entry:
    """Describe a scenario by the first sentence of the comment at its head."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    sentence, plain = " ".join(lines).split(". ")[0].rstrip("."), _shipped(name)
    groups = tuple(Option(group, "group", None, f"group={group}") for group in plain.get("groups") or {})
    papers = "; ".join(identifiers(sentence))
    return Entry(name, sentence, groups, papers, scenario_needs(plain), evidence("scenarios", name))


def _metrics() -> list[Entry]:
    from fedcl import metrics

    functions = inspect.getmembers(metrics, inspect.isfunction)
    ours = [(name, f) for name, f in functions if f.__module__ == metrics.__name__ and not name.startswith("_")]
    return [Entry(name, about(function)) for name, function in ours]


def _headed(text: str) -> str:
    """Return the comment at the head of a file as one line."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.lstrip("# ").rstrip() for line in lines)


def _groups() -> list[Entry]:
    """Describe every group: the oracles by the comment behind them, the others by their scenario and what they set."""
    from fedcl.groups import BEST, ORACLES, shipped

    words = dict(COMMENT.findall(resources.files("scenarios").joinpath(ORACLES).read_text(encoding="utf-8")))
    found = [Entry(name, f"any scenario: {words[name]}") for name in shipped(ORACLES)]
    for scenario, over in shipped(BEST).items():
        found += [Entry(name, f"{scenario}, the best settings that a search has found") for name in over]
    for scenario in scenario_names():
        own = _shipped(scenario).get("groups") or {}
        found += [Entry(name, f"{scenario}: {' '.join(f'{k}={v}' for k, v in flat_texts(over).items())}")
                  for name, over in own.items()]  # fmt: skip
    return found


def catalogue(topic: str) -> list[Entry]:
    """Return what can be chosen under `topic` (one of `TOPICS`).

    Raises:
        ConfigError: there is no such topic.
    """
    if topic == "scenarios":
        return [_scenario(name, entry.read_text()) for name, entry in scenario_names().items()]
    if topic == "sweeps":
        return [Entry(name, _headed(each.read_text()).split(". ")[0]) for name, each in sweep_names().items()]
    if topic == "streams":
        return [Entry(name, told) for name, told in STREAMS.items()]
    if topic == "groups":
        return _groups()
    if topic == "metrics":
        return _metrics()
    if topic not in KINDS:
        raise ConfigError(f"nothing to list under {topic!r}{nearest(topic, TOPICS)}")
    return [_part(topic, name) for name in registry.names(KINDS[topic])]


def named(name: str) -> list[tuple[str, Entry]]:
    """Return everything that is called so, each with its topic.

    Raises:
        ConfigError: nothing is.
    """
    found = [(topic, entry) for topic in TOPICS for entry in catalogue(topic) if entry.name == name]
    if not found:
        names = {entry.name for topic in TOPICS for entry in catalogue(topic)}
        raise ConfigError(f"nothing to list under {name!r}{nearest(name, TOPICS if close(name, TOPICS) else names)}")
    return found
