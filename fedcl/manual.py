"""The manual of settings: one of them in a few lines, a whole block, all as a page (docs/settings.md)."""

import json
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from fedcl import registry
from fedcl.catalogue import KINDS, Entry, Option, about, named
from fedcl.errors import ConfigError, close
from fedcl.overrides import as_text
from fedcl.schema import Key, known, nearest_key

WIDTH = 80  # of what `explain` tells
LINE = 100  # of what `list` tells
COMMAND = "fedcl explain --markdown > docs/settings.md"


def _keys() -> tuple[Key, ...]:
    from fedcl.config import Scenario

    return known(Scenario)


def blocks() -> dict[str, str]:
    """Return the blocks of a scenario by key, each with what it is."""
    from fedcl.config import Scenario

    made: dict[str, Any] = {each.name: each.default_factory for each in fields(Scenario)}
    return {name: about(block) for name, block in made.items() if isinstance(block, type) and is_dataclass(block)}


def meanings(plain: dict[str, Any]) -> dict[str, str]:
    """Return what each setting of a resolved scenario is for, by whole key."""
    from fedcl.plain import leaves

    present = dict(leaves(plain))
    found = dict(blocks())
    for each in _keys():
        where = each.key.rpartition(".")[0]
        chosen = {present.get(f"{where}.{name}") for name in ("name", "kind", "policy", "order")}
        if not each.part or each.part in chosen:
            found.setdefault(each.key, each.meaning)
        if each.kind:
            word = registry.chooser(each.kind)
            found[f"{each.key}.{word}"] = f"see fedcl explain {each.key}"
    return found


def shown_default(value: Any) -> str:
    """Return a default as it is typed."""
    return "null (none)" if value is None else as_text(value)


def _describe(option: Option) -> str:
    default = "" if option.type == "group" else f" = {json.dumps(option.default, default=str)}"
    return f"{option.name}{default}" + (f"  {option.help}" if option.help else "")


def _evidence(entry: Entry) -> str:
    """Return paper, needs and verification in a sentence; "" where there is nothing to say."""
    kinds = ", ".join(dict.fromkeys(each.kind for each in entry.verified or ()))
    facts = {
        f"paper {entry.paper.replace('; ', ' and ')}": entry.paper,
        f"needs {', '.join(entry.needs)}": entry.needs,
        f"verified by {kinds}" if kinds else "not verified": entry.verified is not None,
    }
    return "; ".join(fact for fact, known in facts.items() if known)


def entry_lines(entry: Entry) -> Iterator[str]:
    """Yield the lines of an entry: name and what it is, then paper, needs and verification, then each setting."""
    said = [entry.name + (f": {entry.about}" if entry.about else ""), _evidence(entry), *map(_describe, entry.settings)]
    lines = textwrap.TextWrapper(LINE, subsequent_indent=" " * 6, break_long_words=False, break_on_hyphens=False)
    for number, text in enumerate(said):
        lines.initial_indent = "    " if number else "  "
        yield from lines.wrap(text)


def told(entries: Iterable[tuple[str, Entry]]) -> str:
    """Return the lines of entries, each below its topic and the setting that chooses it."""
    lines = []
    for topic, entry in entries:
        chosen = [each.key for each in _keys() if each.kind and each.kind == KINDS.get(topic)]
        lines += [topic + (f" ({chosen[0]}={entry.name})" if chosen else ""), *entry_lines(entry)]
    return "\n".join(lines)


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"  {head:9}", subsequent_indent=" " * 11, break_on_hyphens=False)


def _one(alike: list[Key]) -> Iterator[str]:
    """Yield the lines that explain one setting, which several parts may have alike."""
    each, parts = alike[0], [other.part for other in alike if other.part]
    yield each.key
    yield from _wrapped("meaning", each.meaning or "(none given)")
    yield from _wrapped("type", each.type)
    yield from _wrapped("default", shown_default(each.default))
    if each.choices:
        yield from _wrapped("one of", ", ".join(each.choices))
    if parts:
        yield from _wrapped("of", ", ".join(dict.fromkeys(parts)))
    yield from _wrapped("example", each.example)


def _brief(each: Key) -> list[str]:
    head = f"{each.key} = {shown_default(each.default)}"
    return [head, *textwrap.wrap(each.meaning, WIDTH - 2, initial_indent="    ", subsequent_indent="    ")]


def _block(key: str) -> list[str]:
    """Return the settings of a block, a few lines each; those of parts are named by the part."""
    own = [each for each in _keys() if each.key.startswith(f"{key}.") and not each.part]
    head = textwrap.wrap(f"{key}: {blocks()[key]}", WIDTH) if key in blocks() else [f"{key}:"]
    return [*head, *(f"  {line}" for each in own for line in _brief(each))] if own else []


def _settings_of(key: str, kind: str) -> list[str]:
    """Return, of a setting that is chosen by name, what each choice brings."""
    lines = []
    for name in registry.names(kind):
        own = [each.key.rpartition(".")[2] for each in _keys() if each.part == name and each.key.startswith(f"{key}.")]
        lines += textwrap.wrap(
            f"{name}: {', '.join(own) or 'no settings'}", WIDTH, initial_indent="    ", subsequent_indent=" " * 8
        )
    return ["  settings of each:", *lines] if lines else []


def _all() -> list[str]:
    lines = [f"{name}: {about}" for name, about in blocks().items()]
    lines += ["", *(line for each in _keys() if not each.part and "." not in each.key for line in _brief(each))]
    return [*lines, "", "fedcl explain BLOCK or KEY tells more; docs/settings.md has them all."]


def explained(key: str | None) -> str:
    """Return what there is to say about a setting, a block, or a name that can be chosen.

    Raises:
        ConfigError: there is nothing of this name; says what is near.
    """
    if key is None:
        return "\n".join(_all())
    key = key.partition("=")[0]
    found: dict[str, list[Key]] = {}  # settings of several parts under one key, those that are alike together
    for each in _keys():
        if each.key == key:
            found.setdefault(_facts(each), []).append(each)
    if found:
        lines = [line for alike in found.values() for line in _one(alike)]
        first = next(iter(found.values()))[0]
        return "\n".join([*lines, *(_settings_of(key, first.kind) if first.kind else [])])
    if lines := _block(key):
        return "\n".join(lines)
    try:
        return told(named(key))
    except ConfigError as error:
        near = _near(key)
        hint = f"; did you mean {near!r}?" if near else f", and {error}"
        raise ConfigError(f"{key!r} is no setting{hint}") from error


def _near(key: str) -> str:
    from fedcl.config import Scenario

    return close(key, blocks(), cutoff=0.7) or nearest_key(Scenario, key, path=key.rpartition(".")[0])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _table(rows: Iterable[Key]) -> Iterator[str]:
    yield "| setting | type | default | meaning | example |"
    yield "|---|---|---|---|---|"
    for each in rows:
        kinds = f"one of {', '.join(each.choices)}" if each.kind else each.type
        cells = (f"`{each.key}`", kinds, f"`{shown_default(each.default)}`", each.meaning, f"`{each.example}`")
        yield "| " + " | ".join(map(_cell, cells)) + " |"


def page() -> str:
    """Return the page of all settings: the blocks, then what each built-in part brings."""
    built_in = {name for names in registry.BUILT_IN.values() for name in names}
    keys = [each for each in _keys() if not each.part or each.part in built_in]
    lines = [
        "# Every setting", "",
        f"<!-- {COMMAND} -->", "",
        "A scenario file holds any of these, and any can be typed behind `fedcl run SCENARIO`. What is not named has",
        "its default. `fedcl explain KEY` tells the same of one setting; `fedcl show SCENARIO` prints one with all.",
    ]  # fmt: skip
    own = [each for each in keys if not each.part]
    lines += ["", "## The scenario", "", *_table(each for each in own if "." not in each.key)]
    for name, what in blocks().items():
        lines += ["", f"## {name}", "", what, "", *_table(each for each in own if each.key.startswith(f"{name}."))]
    for chosen in [each for each in own if each.kind]:
        lines += _parts(chosen, keys)
    return "\n".join(lines) + "\n"


def _parts(chosen: Key, keys: list[Key]) -> list[str]:
    """Return the section of what can be chosen at one key: the common settings once, then those of each name."""
    below = [each for each in keys if each.part and each.key.rpartition(".")[0] == chosen.key]
    names = list(registry.BUILT_IN[chosen.kind])
    by_name = {name: [each for each in below if each.part == name] for name in names}
    common = [each for each in by_name[names[0]] if all(_has(rows, each) for rows in by_name.values())]
    lines = ["", f"## What `{chosen.key}` can be"]
    if common:
        lines += ["", "All of them have:", "", *_table(common)]
    for name, rows in by_name.items():
        own = [each for each in rows if not _has(common, each)]
        lines += ["", f"**`{chosen.key}={name}`**: {about(registry.find(chosen.kind, name))}"]
        lines += ["", *_table(own)] if own else []
    return lines


def _has(rows: list[Key], wanted: Key) -> bool:
    return any(each.key == wanted.key and _facts(each) == _facts(wanted) for each in rows)


def _facts(each: Key) -> str:
    return json.dumps([each.type, each.default, each.meaning], default=str)
