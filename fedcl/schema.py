"""Every setting by its whole key, read from the dataclasses that declare it: type, default, range, meaning, example."""

from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from fedcl import registry
from fedcl.errors import ConfigError, close, folded

# What other programs call a setting. Names that stand in the tree, or nearly so, need no line here.
ALIASES = {
    "batch_size": "client.batch",
    "bs": "client.batch",
    "num_clients": "stream.clients",
    "n_clients": "stream.clients",
    "learning_rate": "client.optimizer.lr",
    "local_epochs": "client.epochs",
    "rounds": "stream.schedule.rounds_per_task",
    "num_rounds": "stream.schedule.rounds_per_task",
    "num_server_rounds": "stream.schedule.rounds_per_task",
    "fraction_fit": "server.clients_per_round",
    "buffer": "client.memory",
    "buffer_size": "client.memory.size",
    "memory_size": "client.memory.size",
    "strategy": "server.method",
    "algorithm": "client.method",
    "net": "model",
    "architecture": "model",
}
# Settings whose other values cannot be guessed from type and range, by their own name.
SAMPLES: dict[str, Any] = {
    "name": "mine", "root": "/data", "folder": "my-data", "label": "species", "path": "/data/scans",
    "classes": ["cat", "dog"], "shape": [28, 28, 1], "columns": ["age", "weight"], "personal": ["head"],
    "weights": "runs/mine/model.safetensors", "dropout": [0.2], "epsilons": {"head.weight": 0.9}, "address": "auto",
    "track": ["tensorboard"],
}  # fmt: skip
WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false", NoneType: "null"}
BOUNDS = (("low", "at least"), ("above", "above"), ("high", "at most"), ("below", "below"))


@dataclass(frozen=True, kw_only=True)
class Key:
    """One setting: its whole key, the field that declares it, and the part that brings it ("": it is always there)."""

    key: str
    field: Field[Any]
    part: str = ""

    @property
    def kind(self) -> str:
        """The registry's kind of what is chosen here by name; "" for a value."""
        return str(self.field.metadata.get("part", ""))

    @property
    def choices(self) -> list[str]:
        """What it can be, where that is a list of names."""
        if self.kind:
            return registry.names(self.kind)
        return [str(each) for each in _literals(self.field.type)]

    @property
    def type(self) -> str:
        """What it must be, in words, with its range."""
        if self.kind:
            return f"name of one of the {self.kind.replace('_', ' ')}, or a block with its settings"
        return ", ".join([_words(self.field.type), *self._range()])

    def _range(self) -> list[str]:
        bounds = self.field.metadata
        if "low" in bounds and "high" in bounds:
            return [f"{number(bounds['low'])} to {number(bounds['high'])}"]
        return [f"{word} {number(bounds[name])}" for name, word in BOUNDS if name in bounds]

    @property
    def default(self) -> Any:
        """What it is where nobody sets it, as a plain value."""
        made = default(self.field)
        return registry.name_of(self.kind, made) if self.kind and is_dataclass(made) else made

    @property
    def meaning(self) -> str:
        """What it is for."""
        return str(self.field.metadata.get("help", ""))

    @property
    def example(self) -> str:
        """The setting as it is typed, with another value than its default."""
        from fedcl.overrides import as_text

        return f"{self.key}={as_text(self._another())}"

    def _another(self) -> Any:
        now = self.default
        if others := [each for each in self.choices if each != now]:
            return others[0]
        if isinstance(now, bool):
            return not now
        number = _number(now, self.field)
        return SAMPLES.get(self.field.name, now) if number is None else number


def default(each: Field[Any]) -> Any:
    """Return a field's default; None where it has none."""
    made = each.default_factory() if callable(each.default_factory) else each.default
    return None if made is MISSING else made


def number(value: float) -> str:
    """Write a bound without an exponent where it is whole."""
    return f"{int(value):,}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:g}"


def _number(now: Any, each: Field[Any]) -> int | float | None:
    """Return another number in the field's range; None where it takes no numbers."""
    kinds = _members(each.type)
    if not {int, float} & set(kinds):
        return None
    bounds = each.metadata
    low = bounds.get("low", bounds.get("above", 0))
    for tried in (now * 2 if isinstance(now, int | float) and now else 0, now / 2 if isinstance(now, float) else 0,
                  10, 5, 2, 1, 0.5, 0.1, low):  # fmt: skip
        whole = int(tried) if int in kinds and float(tried).is_integer() else tried
        if (isinstance(whole, int) or float in kinds) and whole != now and not _outside(whole, bounds):
            return float(whole) if int not in kinds else whole
    return None


def _outside(value: float, bounds: Any) -> bool:
    return bool(
        value < bounds.get("low", value) or value > bounds.get("high", value)
        or value <= bounds.get("above", value - 1) or value >= bounds.get("below", value + 1)
    )  # fmt: skip


def _members(declared: Any) -> tuple[Any, ...]:
    if get_origin(declared) in (Union, UnionType):
        return tuple(each for member in get_args(declared) for each in _members(member))
    return (declared,)


def _literals(declared: Any) -> tuple[Any, ...]:
    """Return the words that a declared type lists."""
    return tuple(word for each in _members(declared) if get_origin(each) is Literal for word in get_args(each))


def _words(declared: Any) -> str:
    """Return a declared type in words."""
    members, said = _members(declared), []
    for each in members:
        inner = get_args(each)
        if get_origin(each) is Literal:
            said.append(" or ".join(map(str, inner)))
        elif get_origin(each) is list:
            said.append(f"list ({_words(inner[0])})")
        elif get_origin(each) is dict:
            said.append(f"block ({_words(inner[0])}: {_words(inner[1])})")
        else:
            said.append(WORDS.get(each, getattr(each, "__name__", str(each))))
    return " or ".join(said)


def walk(cls: Any, path: str = "", part: str = "") -> Iterator[Key]:
    """Yield the settings of a block, of the blocks in it and of every part that can be chosen, by whole key.

    Settings that several parts bring under one key come once for each. A part that cannot be imported is passed over:
    `fedcl list` names it with the reason.
    """
    for each in fields(cls):
        key = f"{path}.{each.name}" if path else each.name
        block: Any = each.default_factory
        if isinstance(block, type) and is_dataclass(block):
            yield from walk(block, key, part)
            continue
        yield Key(key=key, field=each, part=part)
        kind = str(each.metadata.get("part", ""))
        for name in registry.names(kind) if kind else ():
            try:
                chosen = registry.find(kind, name)
            except ConfigError:
                continue
            yield from walk(chosen, key, name)


@cache
def known(cls: Any) -> tuple[Key, ...]:
    """Return what `walk` yields, read once."""
    return tuple(walk(cls))


def nearest_key(cls: Any, word: str, value: Any = "", path: str = "") -> str:
    """Return the whole key that somebody will have meant by `word` in the block `path`; "" where none is near.

    What stands elsewhere under the same name comes first, then what other programs call so, then similar names; each
    time the settings of the block before all others. A lone number for a part means a setting of the part.
    """
    last = word.rpartition(".")[2]
    keys = list(dict.fromkeys(each.key for each in known(cls)))
    keys.sort(key=lambda key: not (path and key.startswith(f"{path}.")))
    names = {key: key.rpartition(".")[2] for key in keys}
    same = (key for key in keys if folded(names[key]) == folded(last))
    found = next(same, ALIASES.get(last.lower(), ""))
    if found not in names:
        similar = close(last, names.values(), cutoff=0.65)
        found = next((key for key in keys if names[key] == similar), "")
    return number_of(cls, found, value) or found


def number_of(cls: Any, key: str, value: Any) -> str:
    """Return the setting of a part that a lone number at the part's key will mean: client.memory=200; "" for none."""
    kinds = {each.key: each.kind for each in known(cls)}
    if not kinds.get(key) or isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    for each in known(cls):
        if each.key.rpartition(".")[0] == key and {int, float} & set(_members(each.field.type)):
            return each.key
    return ""
