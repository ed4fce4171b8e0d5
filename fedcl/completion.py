"""What a shell completes: scenarios, sweeps, topics, KEY=VALUE; and the arguments that take them.

Imports nothing that computes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import Field, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin

import typer

from fedcl.shipped import scenario_names, sweep_names


def settings(help: str) -> Any:
    """Return the argument [KEY=VALUE]... of a command."""
    return typer.Argument(metavar="[KEY=VALUE]...", help=help, autocompletion=overrides)


def scenario() -> Any:
    """Return the argument SCENARIO of a command."""
    return typer.Argument(help="A name (fedcl list scenarios) or a YAML file.", autocompletion=scenarios)


def _begun(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def scenarios(incomplete: str) -> list[str]:
    """Return the shipped scenarios that begin so."""
    return _begun(scenario_names(), incomplete)


def sweeps(incomplete: str) -> list[str]:
    """Return the shipped sweeps that begin so."""
    return _begun(sweep_names(), incomplete)


def topics(incomplete: str) -> list[str]:
    """Return what `fedcl list` can list that begins so."""
    from fedcl.catalogue import TOPICS

    return _begun(TOPICS, incomplete)


def keys(incomplete: str) -> list[str]:
    """Return the settings and blocks that begin so."""
    from fedcl.config import Scenario

    found = [key for key, _ in _settings(Scenario)]
    return _begun(dict.fromkeys([*(key.partition(".")[0] for key in found), *found]), incomplete)


def overrides(context: typer.Context, incomplete: str) -> list[str]:
    """Return the settings that begin so; of a single one what it can be, or its default.

    Settings inside a part (client.memory.size) are left out: to know them, the part would have to be imported.
    """
    from fedcl.config import Scenario

    settings = dict(_settings(Scenario))
    key, value, alone = _read(list(context.params.get("overrides") or ()), incomplete)
    if value is None:
        keys = _begun(settings, key)
        if len(keys) != 1:
            return [f"{each}=" for each in keys]
        key, value = keys[0], ""
    found = _begun(_values(settings[key]), value) if key in settings else []
    return found if alone else [f"{key}={each}" for each in found]


def _read(words: list[str], incomplete: str) -> tuple[str, str | None, bool]:
    """Return key, value (None: no "=" yet), and whether the value stands alone: bash takes k=v for three words."""
    if words[-1:] == ["="] and len(words) > 1:
        return words[-2], incomplete, True
    if words and not incomplete and "=" not in words[-1] and words[-2:-1] != ["="]:  # click has dropped the "="
        return words[-1], "", True
    key, equals, value = incomplete.partition("=")
    return key, value if equals else None, False


def _settings(cls: Any, path: str = "") -> Iterator[tuple[str, Field[Any]]]:
    """Yield the settings of a block and of the blocks in it, by dotted key."""
    for each in fields(cls):
        block: Any = each.default_factory
        if isinstance(block, type) and is_dataclass(block):
            yield from _settings(block, f"{path}{each.name}.")
        else:
            yield f"{path}{each.name}", each


def _values(setting: Field[Any]) -> list[str]:
    """Return what a setting can be where that is a list of names, else its default."""
    from fedcl import registry
    from fedcl.overrides import as_text

    if kind := setting.metadata.get("part"):
        return registry.names(kind)
    if get_origin(setting.type) is Literal:
        return list(get_args(setting.type))
    return ["true", "false"] if setting.type is bool else [as_text(setting.default)]
