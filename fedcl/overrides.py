"""Settings that are changed: `dotted.key=value` as it is typed, or keys and plain values of a Python program.

Both come to the same: a block of settings that `fedcl.config.overlay` lays on a scenario.
"""

from collections.abc import Mapping
from numbers import Integral, Real
from os import PathLike, fspath
from typing import Any

import yaml
from omegaconf.errors import OmegaConfBaseException

from fedcl.errors import ConfigError, shown
from fedcl.plain import MOST_DEPTH, Plain, checked, filled_in, shallow
from fedcl.yamltext import read_yaml, write_yaml


def typed(text: str) -> Plain:
    """Turn `a.b=c` into {a: {b: c}}, c read as YAML.

    Raises:
        ConfigError: it does not read so.
    """
    name, equals, value = text.partition("=")
    _deep(name)
    if not equals or not all(name.split(".")):
        raise ConfigError(f"override {shown(text)}: must read dotted.key=value")
    try:
        result = checked(filled_in(read_yaml(f"v: {shallow(value) or 'null'}"), value)["v"])
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(
            f"override {shown(text)}: the value is not YAML ({' '.join(str(error).split())[:160]})"
        ) from error
    return _nested(name, result)


def given(key: str, value: Any) -> Plain:
    """Turn a key, dotted or not, and its value into {a: {b: value}}.

    Raises:
        ConfigError: the key is none.
    """
    _check(key, value)
    return _nested(key, plain(value))


def given_texts(overrides: Mapping[str, Any]) -> list[str]:
    """Return values by dotted key as `dotted.key=value` texts.

    Raises:
        ConfigError: a key is none.
    """
    for key, value in overrides.items():
        _check(key, value)
    return as_texts(plain(overrides))


def _check(key: str, value: Any) -> None:
    if not isinstance(key, str) or not all(key.split(".")):
        raise ConfigError(f"{key!r} = {shown(value)}: must be a setting's key, such as 'seed' or 'client.method'")
    _deep(key)
    if "__" in key:
        block, _, name = key.replace("__", ".").partition(".")
        raise ConfigError(
            f"{key} = {shown(value)}: the parts of a key are joined by dots: **{{{f'{block}.{name}'!r}: ...}}, "
            f"or a block of settings, {block}={{{name!r}: ...}}"
        )


def _deep(key: str) -> None:
    if key.count(".") > MOST_DEPTH:
        raise ConfigError(f"{key!r}: is a key of {key.count('.') + 1:,} parts, more than {MOST_DEPTH}")


def _nested(key: str, value: Any) -> Plain:
    for name in reversed(key.split(".")):
        value = {name: value}
    return dict(value)


def plain(value: Any) -> Any:
    """Return a value as a scenario file holds it: NumPy's numbers as Python's, tuples as lists, paths as text."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(each) for each in value]
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def as_text(value: Any) -> str:
    """Return a plain value as YAML in a line, as it stands behind `dotted.key=`."""
    return write_yaml(value, default_flow_style=True, width=10**9).removesuffix("\n...\n").strip()


def as_texts(block: Mapping[str, Any]) -> list[str]:
    """Return a block of dotted keys as `dotted.key=value` texts.

    Raises:
        ConfigError: a value is neither a number, a text, a list nor a block.
    """
    try:
        return [f"{key}={as_text(value)}" for key, value in block.items()]
    except yaml.representer.RepresenterError as error:
        raise ConfigError(
            f"{shown(error.args[-1])}: a sweep takes numbers, texts, lists and blocks; name a part as "
            "'package.module:Name'"
        ) from error
