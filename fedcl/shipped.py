"""The scenarios and sweeps that fedcl ships. Imports nothing else: a shell that completes them should not wait."""

from importlib import resources
from typing import Any

ENDING = ".yaml"
GROUPS = ("groups", "best")  # beside the scenarios: groups of overrides of all of them, and best settings by scenario


def scenario_names() -> dict[str, Any]:
    """Return the scenarios by name, as path-likes with `read_text`."""
    shipped = _files(resources.files("scenarios"))
    return {name: each for name, each in shipped.items() if name not in GROUPS}


def sweep_names() -> dict[str, Any]:
    """Return the sweeps by name, as path-likes with `read_text`."""
    return _files(resources.files("scenarios").joinpath("sweeps"))


def _files(folder: Any) -> dict[str, Any]:
    found = {each.name.removesuffix(ENDING): each for each in folder.iterdir() if each.name.endswith(ENDING)}
    return dict(sorted(found.items()))
