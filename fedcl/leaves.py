"""One value of a scenario against the type that its field declares."""

from dataclasses import fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedcl.errors import ConfigError, shown
from fedcl.yamltext import Written, unwritten


@cache
def _schema(cls: type) -> Any:
    return OmegaConf.structured(cls, flags={"readonly": False, "allow_objects": True})


@cache
def _kinds(declared: Any) -> tuple[Any, ...]:
    """Return the types, and the words, that a field's declared type lets through."""
    if get_origin(declared) is Literal:
        return get_args(declared)
    if get_origin(declared) in (Union, UnionType):
        return tuple(kind for each in get_args(declared) for kind in _kinds(each))
    return () if isinstance(declared, str) else (declared,)


def _fits(value: Any, declared: Any) -> bool:
    """Return whether a value is what a field declares, so that OmegaConf, a millisecond each, changes nothing."""
    kinds = _kinds(declared)
    if type(value) is str:  # not where OmegaConf would look up another value, or miss one
        return (str in kinds or value in kinds) and "${" not in value and value != "???"
    return type(value) in (bool, int, float, NoneType) and type(value) in kinds


def _meant(value: Any, declared: Any) -> Any:
    """Return a value with its numbers as the field takes them: as they were written where it takes text only."""
    if isinstance(value, list) and get_origin(declared) is list:
        return [_meant(each, *get_args(declared)) for each in value]
    kinds = _kinds(declared)
    if str in kinds and not {int, float, bool} & set(kinds):
        if isinstance(value, Written):
            return value.text
        if isinstance(value, bool):
            raise ValueError("is no text; put it into quotes if it is meant as such")
    return unwritten(value)


def leaf(cls: type, name: str, value: Any, path: str) -> Any:
    """Check and convert the value of a field with OmegaConf's typed nodes.

    Args:
        path: the whole key, for the error.

    Raises:
        ConfigError: it is not what the field declares.
    """
    declared = next(each.type for each in fields(cls) if each.name == name)
    if get_origin(declared) is list and isinstance(value, str):
        quoted = shown(value)
        raise ConfigError(f"{path} = {quoted}: must be a list: {path}=[{quoted[1:-1]}]")
    try:
        value = _meant(value, declared)
        if type(value) is int and float in get_args(declared):
            value = float(value)  # OmegaConf converts for a plain float, not inside a union
        if _fits(value, declared):
            return value
        result: Any = OmegaConf.select(OmegaConf.merge(_schema(cls), {name: value}), name)
        return OmegaConf.to_container(result) if OmegaConf.is_config(result) else result
    except (OmegaConfBaseException, ValueError, TypeError, OverflowError) as error:
        reason = str(error).splitlines()[0][-200:]
        raise ConfigError(f"{path} = {shown(value)}: {reason}") from error
