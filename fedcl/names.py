"""Names of clients on real machines: NODE for a node's one client, NODE/WARD for each of several.

NODE is 16 hexadecimal digits: of the SHA-256 of the public key by which the node proves who it is (`fedcl.certs`), so
that it outlives the node's disk, or of the node's own secret where it has no key. A name says nothing of either.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fedcl.errors import ConfigError

DIGITS = 16  # of NODE: 64 bits, which nobody finds a second key for
MOST = 1024  # clients that one node names
WARDS = 16  # of these, how many get a number, unless the server's operator says otherwise
WARD = re.compile(r"(?![0-9]+\Z)[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
NODE = re.compile(rf"[0-9a-f]{{{DIGITS}}}", re.ASCII)


def of_key(public: bytes) -> str:
    """Return the name of a node with a public key, as SSH's wire format has it."""
    return hashlib.sha256(public).hexdigest()[:DIGITS]


def of_secret(secret: bytes) -> str:
    """Return the name of a node without a key; the prefix keeps apart what the secret is hashed for."""
    return hashlib.sha256(b"fedcl node name\0" + secret).hexdigest()[:DIGITS]


def named(node: str, wards: Sequence[str]) -> list[str]:
    """Return the names of a node's clients: one a ward, or the node's own where it has none."""
    return [f"{node}/{ward}" for ward in wards] or [node]


def node_of(name: str) -> str:
    """Return the node of a client's name."""
    return name.partition("/")[0]


def ward_of(name: str) -> str:
    """Return the ward of a client's name, "" where it has none."""
    return name.partition("/")[2]


def problem(names: Sequence[str]) -> str | None:
    """Return why these cannot be the names of one node's clients, None if they can: a node's word is not trusted."""
    if len(names) > MOST or len(set(names)) != len(names):
        return f"{len(names)} names: must be at most {MOST}, each once"
    for name in names:
        node, slash, ward = name.partition("/")
        if not NODE.fullmatch(node) or (slash and not WARD.fullmatch(ward)):
            return f"the name {name[:100]!r}: must be {DIGITS} hexadecimal digits, and a ward behind a slash if any"
    if len({node_of(name) for name in names}) > 1 or (len(names) > 1 and not all(map(ward_of, names))):
        return f"the names {', '.join(names[:3])}: must be those of the wards of one node"
    return None


@dataclass(frozen=True, kw_only=True)
class Hosted:
    """Which clients live on a node: fixed numbers of the scenario's, or else those that it names itself."""

    numbers: tuple[int, ...] = ()
    wards: tuple[str, ...] = ()  # none, and no numbers: one client with the node's own name

    def settings(self, node: str) -> dict[str, str]:
        """Return the node-config that says so; `node`: the name by the node's key, "" without one."""
        if self.numbers:
            return {"clients": ",".join(map(str, self.numbers))}
        return {**({"node": node} if node else {}), "wards": ",".join(self.wards)}

    def __str__(self) -> str:
        """Return them in words."""
        if not self.numbers and not self.wards:
            return "one client"
        return f"client{'s' * (len(self.numbers or self.wards) > 1)} {', '.join(map(str, self.numbers or self.wards))}"


def hosted(words: Sequence[str]) -> Hosted:
    """Return which clients a command line asks for: digits are numbers, anything else is a ward's name.

    Raises:
        ConfigError: both are there, or a name cannot be one.
    """
    numbers = [word for word in words if re.fullmatch("[0-9]{1,9}", word)]
    wards = [word for word in words if word not in numbers]
    if numbers and wards:
        raise ConfigError(
            f"--client {numbers[0]} --client {wards[0]}: give all of a node's clients numbers, or all of them names"
        )
    return Hosted(numbers=tuple(sorted({int(each) for each in numbers})), wards=tuple(checked(wards)))


def checked(wards: Sequence[str]) -> list[str]:
    """Return the names of wards as they are.

    Raises:
        ConfigError: one cannot be a name, or stands there twice.
    """
    for ward in wards:
        if not WARD.fullmatch(ward):
            what = "a number, or up to 64 letters, digits, - _ . and first a letter or digit"
            raise ConfigError(f"--client {ward[:100]!r}: must be {what}")
        if wards.count(ward) > 1:
            raise ConfigError(f"--client {ward!r} stands there twice: every ward of a node has its own name")
    if len(wards) > MOST:
        raise ConfigError(f"--client: {len(wards)} names, more than {MOST}, the most for one node")
    return list(wards)
