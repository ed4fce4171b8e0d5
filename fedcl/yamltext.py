"""YAML as fedcl reads and writes it, in scenarios, sweeps, groups, manifests and typed settings alike.

YAML 1.1, which PyYAML reads, takes `no` for False, `0123` for 83, `12:30` for 750 and `2024_01_15` for 20240115. Here a
word is a word, as in YAML 1.2: null, true, false and decimal numbers are what they say, everything else is text. What
would be an octal or a sexagesimal number there is refused, for nobody can tell which was meant. A number remembers how
it was written, so that a setting that takes text has it as typed (`fedcl.leaves`): `name: 1e3` is called "1e3".
"""

import re
from typing import Any, ClassVar

import yaml

MOST_NODES = 1_000_000  # values of a text, those that aliases repeat counted each time

NULL, BOOL, INT, FLOAT, TEXT = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str"))
LIST, MAP, MERGE, DOUBTFUL = (f"tag:yaml.org,2002:{name}" for name in ("seq", "map", "merge", "doubtful"))
WORDS = (
    (DOUBTFUL, r"[-+]?0[0-9_]+(\.[0-9_]*)?|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?", "-+0123456789"),
    (NULL, r"~|null|Null|NULL|", ("~", "n", "N", "")),
    (BOOL, r"true|True|TRUE|false|False|FALSE", "tTfF"),
    (INT, r"[-+]?[0-9]+", "-+0123456789"),
    (
        FLOAT,
        r"[-+]?([0-9]+\.[0-9]*([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.[0-9]+([eE][-+]?[0-9]+)?)",
        "-+.0123456789",
    ),
    (FLOAT, r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    (MERGE, r"<<", "<"),
)


class Ambiguous(yaml.YAMLError):
    """A word that is a number in one reading and text in another."""


class WrittenInt(int):
    """A whole number and how it was written."""

    text: str


class WrittenFloat(float):
    """A number and how it was written."""

    text: str


Written = (WrittenInt, WrittenFloat)


def unwritten(value: Any) -> Any:
    """Return a plain value without the memory of how its numbers were written."""
    if isinstance(value, dict):
        return {unwritten(key): unwritten(each) for key, each in value.items()}
    if isinstance(value, list):
        return [unwritten(each) for each in value]
    if isinstance(value, Written):
        return int(value) if isinstance(value, int) else float(value)
    return value


class _Loader(yaml.SafeLoader):
    """Reads words as YAML 1.2 does, and no tags but those of plain values."""

    yaml_constructors: ClassVar[dict[Any, Any]] = {}

    def number(self, node: yaml.ScalarNode) -> int | float:
        """Return a number that, where it is not written as Python would, remembers how it was."""
        text = str(self.construct_scalar(node))
        plain = int(text) if node.tag == INT else float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
        if str(plain) == text:
            return plain
        written = WrittenInt(plain) if isinstance(plain, int) else WrittenFloat(plain)
        written.text = text
        return written

    def truth(self, node: yaml.ScalarNode) -> bool:
        """Return true or false.

        Raises:
            yaml.constructor.ConstructorError: it is neither, though its tag says so.
        """
        text = str(self.construct_scalar(node)).lower()
        if text not in ("true", "false"):
            raise yaml.constructor.ConstructorError(None, None, f"{text[:40]!r} is neither true nor false")
        return text == "true"

    def doubtful(self, node: yaml.ScalarNode) -> Any:
        """Refuse a word.

        Raises:
            Ambiguous: always.
        """
        text = str(self.construct_scalar(node))
        kind = "a sexagesimal number" if ":" in text else "an octal number"
        raise Ambiguous(
            f"{text[:40]} could be {kind} or text: quote it, '{text[:40]}', or write the number that is meant"
        )

    def block(self, node: yaml.MappingNode) -> dict[Any, Any]:
        """Return a block, whose keys must differ."""
        seen: dict[Any, Any] = {}
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is not None and key.tag != MERGE and seen.setdefault((key.tag, name), key) is not key:
                raise yaml.constructor.ConstructorError(
                    None, None, f"found duplicate key {name[:40]!r}", key.start_mark
                )
        self.flatten_mapping(node)
        return self.construct_mapping(node, deep=True)

    def unknown(self, node: yaml.Node) -> Any:
        """Refuse a tag."""
        raise yaml.constructor.ConstructorError(
            None, None, f"the tag {node.tag[:60]!r} is not read; leave it out", node.start_mark
        )


class _Dumper(yaml.SafeDumper):
    """Quotes text that either reading would take for something else."""


_Loader.yaml_implicit_resolvers = {}  # none of YAML 1.1
for reading in (_Loader, _Dumper):
    for tag, pattern, first in WORDS:
        reading.add_implicit_resolver(tag, re.compile(rf"^(?:{pattern})$"), list(first))
READERS: dict[str | None, Any] = {
    NULL: lambda loader, node: None,
    BOOL: _Loader.truth,
    INT: _Loader.number,
    FLOAT: _Loader.number,
    DOUBTFUL: _Loader.doubtful,
    TEXT: lambda loader, node: loader.construct_scalar(node),
    LIST: lambda loader, node: loader.construct_sequence(node, deep=True),
    MAP: _Loader.block,
    None: _Loader.unknown,
}
_Loader.yaml_constructors |= READERS
_Dumper.add_representer(WrittenInt, lambda dumper, value: dumper.represent_scalar(INT, value.text))
_Dumper.add_representer(WrittenFloat, lambda dumper, value: dumper.represent_scalar(FLOAT, value.text))


def read_yaml(text: str) -> Any:
    """Return what YAML text says: None, truths, numbers, text, lists and blocks.

    Raises:
        yaml.YAMLError: it is no YAML, a word of it is ambiguous, a tag is not read, or aliases make it too large.
        RecursionError: it is nested too deeply, or in itself.
        ValueError: a number has too many digits.
    """
    value = yaml.load(text, _Loader)
    _bounded(value)
    return value


def _bounded(value: Any) -> None:
    """Count values.

    Raises:
        yaml.YAMLError: there are too many; aliases of aliases can make millions of a few lines.
    """
    left, n = [value], 0
    while left:
        each, n = left.pop(), n + 1
        if n > MOST_NODES:
            raise yaml.YAMLError(f"it has more than {MOST_NODES:,} values")
        if isinstance(each, dict | list):
            left += each.values() if isinstance(each, dict) else each


def write_yaml(value: Any, **style: Any) -> str:
    """Return plain values as YAML that reads back as they are, here and by YAML 1.1.

    Args:
        value: None, truths, numbers, text, lists and blocks.
        style: of PyYAML's dumper (`width`, `default_flow_style`).

    Raises:
        yaml.representer.RepresenterError: a value is none of these.
    """
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, **style))
