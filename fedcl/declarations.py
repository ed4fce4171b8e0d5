"""What a part of one's own declares beside its settings: constants of its class, which the frame reads.

A constant that nothing reads (`reduce = "gather"`) would be ignored in silence, and what its author hopes for with it.
"""

from collections.abc import Iterator
from dataclasses import fields
from functools import cached_property
from typing import Any, Literal, get_args, get_origin

from fedcl.errors import nearest
from fedcl.settings import Settings

OURS = ("fedcl", "clients", "server")


def problems(cls: type) -> Iterator[str]:
    """Yield what is wrong with what a class of settings declares, the rest of a sentence each.

    Looked at are public names in small letters, as the frame's own are; _names and CAPITALS are the author's.
    """
    own = [each for each in cls.__mro__ if not _ours(each) and each.__module__ != "builtins"]
    contracts = [each for each in cls.__mro__ if _ours(each) and issubclass(each, Settings) and each is not Settings]
    if not (own and contracts):
        return
    known = _declared(contracts)
    settings = {each.name for each in fields(cls)} if hasattr(cls, "__dataclass_fields__") else set()
    for each in own:
        for name, value in vars(each).items():
            if name.startswith("_") or name != name.lower() or name in settings or _acts(value):
                continue
            if name not in known and not any(hasattr(contract, name) for contract in contracts):
                yield f"declares {name} = {value!r}, which nothing reads{nearest(name, known)}"
            elif (allowed := known.get(name)) and value not in allowed:
                yield f"declares {name} = {value!r}: must be one of {', '.join(map(repr, allowed))}"


def _ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in OURS


def _acts(value: Any) -> bool:
    """Return whether an attribute is a method of some kind."""
    return callable(value) or isinstance(value, property | cached_property | classmethod | staticmethod)


def _declared(contracts: list[type]) -> dict[str, tuple[Any, ...]]:
    """Return the names that the contracts declare, each with what it can be; (): anything."""
    found: dict[str, tuple[Any, ...]] = {}
    for each in contracts:
        for name, hint in vars(each).get("__annotations__", {}).items():
            inner = get_args(hint)[0] if str(hint).startswith("typing.ClassVar") else None
            if inner is not None:
                found.setdefault(name, get_args(inner) if get_origin(inner) is Literal else ())
    return found
