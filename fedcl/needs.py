"""What a part needs beside itself, read from what the part declares; nothing of it is written down a second time."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, get_args

from fedcl import registry
from fedcl.errors import ConfigError

DATA = "data files (data.root or FEDCL_DATA)"


def _made(cls: type) -> Any:
    """Return the part with its defaults; None where a setting has no default."""
    lacking = [each for each in fields(cls) if each.default is MISSING and each.default_factory is MISSING]
    return None if lacking else cls()


def _saying(kind: str, attribute: str) -> dict[str, frozenset[str]]:
    """Return what the parts of a kind say under an attribute, by name; those that say nothing are left out."""
    found = {}
    for name in registry.names(kind):
        try:
            found[name] = frozenset(getattr(_made(registry.find(kind, name)), attribute, ()))
        except ConfigError:  # it cannot be imported, which its own entry tells
            continue
    return {name: said for name, said in found.items() if said}


def _client_method(method: Any) -> list[str]:
    """A memory to draw from, and a server method that offers what its regularisers read."""
    reads = frozenset(getattr(method, "reads", ()))
    offering = [name for name, offers in _saying("server_methods", "offers").items() if reads and reads <= offers]
    found = ["a replay memory"] if getattr(method, "draws", ()) else []
    return found + ([f"server.method={' or '.join(offering)}"] if offering else [])


def _server_method(method: Any) -> list[str]:
    """A client method that reads what it offers, and what all clients must have in common."""
    offers = frozenset(getattr(method, "offers", ()))
    reading = [name for name, reads in _saying("client_methods", "reads").items() if reads <= offers]
    shares = {"body": ["a frozen embedding"], "model": ["a model without personal parts"]}
    found = [f"client.method={' or '.join(reading)}"] if reading else []
    return found + shares.get(getattr(method, "shares", ""), [])


def _curriculum(curriculum: Any) -> list[str]:
    """A pass over a visit's items where they are scored, and everybody's data for the score of an expert."""
    if not getattr(curriculum, "needs", ""):
        return []
    scores = [score for each in fields(curriculum) if each.name == "score" for score in get_args(each.type)]
    return ["a scoring pass before each visit", *(["pooled data for score=E"] if "E" in scores else [])]


def _selection(selection: Any) -> list[str]:
    """Losses of the clients, where it wants to know any before the first round."""
    import numpy as np

    if not hasattr(selection, "wants"):
        return []
    wanted = selection.wants(selection.begin(1), np.arange(1), 1, seed=0, round=1)
    return ["clients that score themselves"] if len(wanted) else []


def _dataset(dataset: Any) -> list[str]:
    """Files, where a folder is among the settings."""
    return [DATA] if any(each.name in ("folder", "path") for each in fields(dataset)) else []


_OF = {
    "client_methods": _client_method,
    "server_methods": _server_method,
    "curricula": _curriculum,
    "selections": _selection,
    "datasets": _dataset,
}


def needs(kind: str, cls: type) -> tuple[str, ...]:
    """Return what a part of a registry's kind needs beside itself, with its default settings."""
    chosen = _made(cls) if kind in _OF else None
    return () if chosen is None else tuple(_OF[kind](chosen))


def scenario_needs(plain: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a scenario, as read from its file, needs beside fedcl."""
    dataset = plain.get("stream", {}).get("dataset", "")
    name = dataset.get("name", "") if isinstance(dataset, Mapping) else dataset
    return needs("datasets", registry.find("datasets", name)) if name else ()
