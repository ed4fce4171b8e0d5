"""Groups of overrides that a scenario takes by name: `group=joint`, its best settings, those of a search's own file."""

from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

from fedcl import files
from fedcl.errors import ConfigError, nearest, shown
from fedcl.plain import Plain, mapping, parse
from fedcl.shipped import ENDING, GROUPS

ORACLES, BEST = (f"{name}{ENDING}" for name in GROUPS)


@cache
def shipped(name: str) -> Plain:
    """Return a shipped file of groups. Nothing of it is ever changed."""
    return parse(resources.files("scenarios").joinpath(name).read_text(encoding="utf-8"), name)


def groups(scenario: str, own: Plain) -> Plain:
    """Return the groups of a scenario by name: its own, its best settings, and the oracles that all have."""
    return {**shipped(ORACLES), **shipped(BEST).get(scenario, {}), **own}


def _of_file(scenario: str, path: str) -> Plain:
    """Return the groups that a file such as a search's best.yaml has for a scenario."""
    found = parse(files.text(path, "group:"), path)
    if scenario not in found:
        raise ConfigError(f"group: {path!r} has none for the scenario {scenario!r}{nearest(scenario, found)}")
    return mapping(found[scenario], f"{path}: {scenario}")


def chosen(scenario: str, own: Plain, names: Any) -> Iterator[Plain]:
    """Yield the overrides of groups.

    Args:
        scenario: its name.
        own: groups of its own.
        names: of groups, one or a list; FILE:NAME is one of a search's best.yaml.

    Raises:
        ConfigError: there is no such group.
    """
    wanted = [names] if isinstance(names, str) else names
    if not isinstance(wanted, list):
        known = nearest("", groups(scenario, own))
        raise ConfigError(f"group = {shown(names)}: must be a name or a list of names{known}")
    for name in wanted:
        there, inner = groups(scenario, own), name
        if isinstance(name, str) and ".yaml:" in name and name not in there:
            path, _, inner = name.rpartition(":")
            there = _of_file(scenario, path)
        if not isinstance(inner, str) or inner not in there:
            raise ConfigError(f"group = {shown(name)}: unknown{nearest(str(inner), there)}")
        yield mapping(there[inner], f"groups.{inner}")
