"""A resolved configuration made concrete once a process: the scenario and its stream."""

import json
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache

from fedcl import config
from fedcl.config import ClientConfig, EngineConfig, Plain, Scenario
from fedcl.streams import Stream, build_stream


def as_text(scenario: Scenario) -> str:
    """Return a scenario as the text that travels with every order (JSON, which is YAML)."""
    return json.dumps(config.as_dict(scenario), sort_keys=True)


@lru_cache(maxsize=4)  # every message brings the text; nothing of a scenario is ever changed
def scenario_of(text: str) -> Scenario:
    """Return the scenario of a text from `as_text` (or of any YAML).

    Raises:
        ConfigError: it is not one.
    """
    return config.load(_plain(text))


def _plain(text: str) -> Plain:
    """Return the values of a text: JSON in a tenth of the time that YAML takes."""
    with suppress(ValueError, RecursionError):
        if isinstance(plain := json.loads(text), dict):
            return plain
    return config.parse(text, "the run's configuration")


def world(text: str) -> tuple[Scenario, Stream]:
    """Return a configuration's scenario and stream; server, inline clients and the command line share the stream."""
    scenario = scenario_of(text)
    # Engine and client settings have no part in the stream: leaving them out lets configurations share it.
    return scenario, _stream(as_text(replace(scenario, engine=EngineConfig(), client=ClientConfig())))


@lru_cache(maxsize=2)
def _stream(text: str) -> Stream:
    return build_stream(config.build(Scenario, json.loads(text)))
