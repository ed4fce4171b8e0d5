"""What a node takes of a scenario that a server has sent: no foreign code, no file of the server's choice.

A scenario names parts (`package.module:Name`), and files and folders. Where its user has written it both are meant. A
node has it from a server that it need not trust, with every order:

    imports       fedcl's own parts and installed entry points; other packages where the node's operator names them
                  (`fedcl client --trust PACKAGE`, FEDCL_TRUST); `fedcl.registry`, which alone imports parts, asks here
    data          below the node's own FEDCL_DATA: `data.root` is the server's place and is left out, and no other text
                  may be a path that leads out of it
    environment   nothing of it is filled in (`${oc.env:NAME}`), since errors repeat values and leave the node
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import PurePosixPath
from typing import Any

from fedcl.errors import ConfigError, shown

PACKAGE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
# Texts that name a place on the server's machine, or none at all: a node looks at no file by them.
UNREAD = ("name", "data.root", "model.weights")

_TRUSTED: ContextVar[tuple[str, ...] | None] = ContextVar("fedcl_trusted", default=None)  # None: every package


@contextmanager
def trusting(packages: Sequence[str]) -> Iterator[None]:
    """Let scenarios bring in only these packages (and modules below them), beside fedcl's parts and entry points."""
    token = _TRUSTED.set(tuple(packages))
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def check_import(reference: str) -> None:
    """Check that what is named as `package.module:Name` may be imported here.

    Raises:
        ConfigError: the node's operator has not allowed it.
    """
    trusted, module = _TRUSTED.get(), reference.partition(":")[0]
    if trusted is None or any(module == each or module.startswith(f"{each}.") for each in trusted):
        return
    package = module.partition(".")[0]
    raise ConfigError(
        f"this node imports only what its operator trusts; package {package!r} is let in by fedcl client --trust "
        f"{package} (FEDCL_TRUST)"
    )


def packages(names: Sequence[str], said: str) -> tuple[str, ...]:
    """Return names of packages, checked.

    Args:
        said: where they stand, for the error: `FEDCL_TRUST`.

    Raises:
        ConfigError: one cannot be the name of a package.
    """
    for name in names:
        if not PACKAGE.fullmatch(name):
            raise ConfigError(f"{said} = {name!r}: must be the name of a package, as mylab or mylab.methods")
    return tuple(names)


def own_text(text: str) -> str:
    """Return the text of a server's scenario as a node may read it.

    Raises:
        ConfigError: it is not the text that a server sends, or holds what a node does not take.
    """
    try:
        plain = json.loads(text)
        if not isinstance(plain, dict):
            raise ValueError
        for key, value in _texts(plain):
            _check(key, value)
        if isinstance(plain.get("data"), dict):
            plain["data"]["root"] = None
        return json.dumps(plain, sort_keys=True)
    except (ValueError, RecursionError) as error:
        raise ConfigError("the run's configuration is not the JSON object that a server of fedcl sends") from error


def _texts(plain: Any) -> Iterator[tuple[str, str]]:
    """Yield every text in plain values with its dotted key."""
    ahead = [("", plain)]
    while ahead:
        key, value = ahead.pop()
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict | list):
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            ahead += [(f"{key}.{name}" if key else str(name), each) for name, each in inner]


def _check(key: str, value: str) -> None:
    if "${" in value:
        raise ConfigError(f"{key} = {shown(value)}: a node fills in nothing; a server sends every value as it is")
    out = value.startswith(("/", "~")) or ".." in PurePosixPath(value).parts
    if out and key not in UNREAD:
        raise ConfigError(
            f"{key} = {shown(value)}: a node reads only below its own data folder (FEDCL_DATA), by a path without "
            "'..', '~' or a '/' in front"
        )
