"""Plain values: what YAML text says, as dicts, lists, numbers and strings."""

from collections.abc import Mapping
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedcl.errors import ConfigError, shown

Plain = dict[str, Any]


def mapping(value: Any, path: str) -> Plain:
    """Return a block of named settings; a ConfigError that names its path if it is none."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{path or 'the scenario'} = {shown(value)}: must be a block of named settings")
    return dict(value)


def parse(text: str, source: str) -> Plain:
    """Read YAML text as plain values; a ConfigError that names `source` if it is no block of named settings."""
    try:
        return mapping(OmegaConf.to_container(OmegaConf.create(text), resolve=True), source)
    except AssertionError as error:  # OmegaConf's answer to a lone number
        raise ConfigError(f"{source} is not a readable YAML scenario: it must be a block of named settings") from error
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{source} is not a readable YAML scenario: {' '.join(str(error).split())[:200]}") from error
