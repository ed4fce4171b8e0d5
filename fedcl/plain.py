"""Plain values: what YAML text says, as dicts, lists, numbers and strings."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedcl.errors import ConfigError, shown
from fedcl.yamltext import read_yaml, unwritten

Plain = dict[str, Any]


def mapping(value: Any, path: str) -> Plain:
    """Return a block of named settings; a ConfigError that names its path if it is none."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{path or 'the scenario'} = {shown(value)}: must be a block of named settings")
    return dict(value)


def parse(text: str, source: str) -> Plain:
    """Read YAML text as plain values; a ConfigError that names `source` if it is no block of named settings."""
    try:
        found = read_yaml(text)
        return mapping({} if found is None else filled_in(found, text), source)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{source} is not a readable YAML scenario: {' '.join(str(error).split())[:200]}") from error


def filled_in(value: Any, text: str) -> Any:
    """Return the value of a text with what it names otherwise (`${seed}`, `${oc.env:HOME}`) in its place."""
    if "${" not in text:
        return value
    return OmegaConf.to_container(OmegaConf.create(unwritten(value)), resolve=True)


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
