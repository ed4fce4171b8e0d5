"""Plain values: what YAML text says, as dicts, lists, numbers and strings."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedcl.errors import ConfigError, shown
from fedcl.yamltext import read_yaml, unwritten

Plain = dict[str, Any]
MOST_DEPTH = 50  # blocks and lists within one another
BRACKETS = re.compile(r"[\[\]{}]")


def mapping(value: Any, path: str) -> Plain:
    """Return a block of named settings; a ConfigError that names its path if it is none."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{path or 'the scenario'} = {shown(value)}: must be a block of named settings")
    return dict(value)


def parse(text: str, source: str) -> Plain:
    """Read YAML text as plain values; a ConfigError that names `source` if it is no block of named settings."""
    try:
        found = read_yaml(shallow(text))
        return mapping({} if found is None else checked(filled_in(found, text)), source)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{source} is not a readable YAML scenario: {' '.join(str(error).split())[:200]}") from error


def filled_in(value: Any, text: str) -> Any:
    """Return the value of a text with what it names otherwise (`${seed}`, `${oc.env:HOME}`) in its place."""
    if "${" not in text:
        return value
    return OmegaConf.to_container(OmegaConf.create(unwritten(value)), resolve=True)


def shallow(text: str) -> str:
    """Return YAML text that is not nested too deep for its parser, which goes down with it.

    Raises:
        ValueError: it is.
    """
    depth = 0
    for bracket in BRACKETS.findall(text):
        depth += 1 if bracket in "[{" else -1
        if depth > MOST_DEPTH:
            raise ValueError(f"blocks and lists are nested more than {MOST_DEPTH} deep")
    return text


def checked(value: Any, key: str = "", depth: int = 0) -> Any:
    """Return a value of nothing but blocks, lists, numbers, texts, true, false and null, not nested too deep.

    Raises:
        ValueError: something else is in it (YAML's tags make dates, sets, pairs); names its key.
    """
    if depth > MOST_DEPTH:
        raise ValueError(f"{key[:40]}... is nested more than {MOST_DEPTH} deep")
    if isinstance(value, Mapping):
        for name, each in value.items():
            checked(each, f"{key}.{name}" if key else str(name), depth + 1)
    elif isinstance(value, list):
        for place, each in enumerate(value):
            checked(each, f"{key}[{place}]", depth + 1)
    elif not (value is None or isinstance(value, str | bool | int | float)):
        raise ValueError(f"{key} = {shown(value)}: must be a number, text, list or block; put quotes around a date")
    return value


def leaves(plain: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested blocks by dotted key; an empty block is a value."""
    for name, value in plain.items():
        key = f"{above}.{name}" if above else str(name)
        if isinstance(value, Mapping) and value:
            yield from leaves(value, key)
        else:
            yield key, value


def flat_texts(plain: Mapping[str, Any]) -> dict[str, str]:
    """Return nested blocks as dotted keys with their values as text."""
    return {key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in leaves(plain)}
