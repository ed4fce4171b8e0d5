"""The file `clients.json` of a run directory: which number each client has, for good, and which the operator has freed.

Names come from the nodes (`fedcl.names`); a number that a node has asked for itself is bound to that node's key, where
nodes prove who they are. The round loop writes the file (`server.names`); `fedcl server nodes free` takes out of it who
will not come back.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedcl import kept
from fedcl.errors import ConfigError, nearest
from fedcl.journal import read_events, write_json

FILE = "clients.json"
LAST_COPY = "put back its last copy: nodes refuse a client under another number than before"


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Whose each number is."""

    names: Mapping[str, int] = field(default_factory=dict)
    fixed: Mapping[int, str] = field(default_factory=dict)  # came without a name -> key's name of its node, "" = none
    freed: frozenset[str] = frozenset()  # names that have no number any more, and get none
    anew: Mapping[int, int] = field(default_factory=dict)  # number that was freed -> last round of whom it was before

    def plain(self) -> dict[str, Any]:
        """Return what the file says."""
        keys = {str(number): key for number, key in sorted(self.fixed.items()) if key}
        anew = {str(number): round for number, round in sorted(self.anew.items())}
        more = {"keys": keys, "freed": sorted(self.freed), "anew": anew}
        return {"names": dict(self.names), "numbers": sorted(self.fixed), **{k: v for k, v in more.items() if v}}


def read(folder: Path, clients: int) -> Numbers:
    """Return what stands in the file of a run directory, nothing if there is none.

    Raises:
        kept.Damaged: the file is not what was written.
    """
    path = folder / FILE
    if not os.path.lexists(path):
        return Numbers()
    found = kept.read_json(path, remedy=LAST_COPY)
    with kept.sound(path, LAST_COPY):
        names = {str(name): int(number) for name, number in found["names"].items()}
        keys, numbers = found.get("keys", {}), [int(number) for number in found["numbers"]]
        fixed = {number: str(keys.get(str(number), "")) for number in numbers}
        anew = {int(number): int(round) for number, round in found.get("anew", {}).items()}
        if len({*names.values(), *fixed} & set(range(clients))) != len(names) + len(numbers):
            raise ValueError(f"a number stands there twice, or is none of the {clients} clients'")
        return Numbers(names=names, fixed=fixed, freed=frozenset(map(str, found.get("freed", []))), anew=anew)


def write(folder: Path, numbers: Numbers) -> None:
    """Write the file whole or not at all and force it onto the disk."""
    write_json(folder / FILE, numbers.plain())


def answered(folder: Path) -> tuple[dict[int, int], int]:
    """Return the last round in which each client's training answer counted, and the last round of all, 0 = none."""
    found, last = dict[int, int](), 0
    for event in read_events(folder):
        if event["event"] == "round":
            last = int(event["round"])
            found |= dict.fromkeys(event["clients"], last)
    return found, last


def checkpointed(folder: Path) -> int:
    """Return the newest round that a run directory has a checkpoint of, 0 = none."""
    names = [path.stem.removeprefix("r") for path in (folder / "checkpoints").glob("r*.safetensors")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def unseen(numbers: Numbers, folder: Path, rounds: int) -> list[str]:
    """Return the clients, by name or number, whose answer counted in none of the last so many rounds."""
    seen, last = answered(folder)
    every = {**numbers.names, **{str(number): number for number in numbers.fixed}}
    return [name for name, number in every.items() if seen.get(number, 0) <= last - rounds]


def without(numbers: Numbers, gone: Collection[str], round: int) -> Numbers:
    """Return the numbers of those that stay.

    Args:
        gone: clients by their names, or by the numbers that they asked for.
        round: the last that is checkpointed: whoever has a freed number later begins behind it.

    Raises:
        ConfigError: one has no number.
    """
    known = {**numbers.names, **{str(number): number for number in numbers.fixed}}
    for name in gone:
        if name not in known:
            raise ConfigError(f"client {name!r} has no number{nearest(name, known)}")
    return replace(
        numbers,
        names={name: number for name, number in numbers.names.items() if name not in gone},
        fixed={number: key for number, key in numbers.fixed.items() if str(number) not in gone},
        freed=numbers.freed | (set(gone) & set(numbers.names)),
        anew={**numbers.anew, **{known[name]: round for name in gone}},
    )
