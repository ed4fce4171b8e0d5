"""The secret by which a SuperLink or a SuperNode knows the processes of its machine: a file that its user alone reads.

Whoever serves makes a new one at each start, once nobody else can listen at its port (`fedcl.real.superlink`). So a
process that finds one sends it to the server that made it, not to an impostor who took the port first; one that was
left by a server that was killed opens nothing any more.
"""

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedcl import writing
from fedcl.errors import FederationError
from fedcl.journal import replace_file
from fedcl.real.access import SECRET_HEADER

NAME = "secret"
LONGEST = 256  # bytes of the file


def make_secret(folder: Path) -> str:
    """Write a new secret into a folder in one step, whatever stands at its name, and return it."""
    secret = secrets.token_hex(32)
    replace_file(folder / NAME, [secret.encode()], sync=False, mode=writing.OWN)
    return secret


def read_secret(folder: Path) -> str:
    """Return the secret of a folder.

    Raises:
        FederationError: there is none, or somebody else could have written or read it.
    """
    path = folder / NAME
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise FederationError(f"{str(path)!r} cannot be read ({error.strerror}): does the server run?") from error
    with open(opened, "rb") as file:
        found = os.fstat(opened)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise FederationError(f"{str(path)!r} is not this user's alone (mode 0600): start the server anew")
        return file.read(LONGEST).decode(errors="replace")


def is_secret_there(folder: Path) -> bool:
    """Return whether whoever serves from a folder holds its port."""
    return (folder / NAME).is_file()


def forget_secret(folder: Path) -> None:
    """Take away what an earlier start has left."""
    (folder / NAME).unlink(missing_ok=True)


class Bearer:
    """Shows the secret with each request of one of Flower's clients (an interceptor of Flower's)."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def intercept(self, context: Any, call_next: Callable[[Any], Any]) -> Any:
        """Add the header to a request and send it."""
        context.request.headers[SECRET_HEADER.decode()] = self._secret
        return call_next(context)


def show_secret(client: type[Any], folder: Path) -> None:
    """Let all that a class of Flower's clients sends from now on show the secret of a folder.

    It is read when a client is made: the command may not need it (`--help`).
    """
    begin = client.__init__

    def begin_with_secret(self: Any, *given: Any, **named: Any) -> None:
        begin(self, *given, **{**named, "interceptors": (*named.get("interceptors", ()), Bearer(read_secret(folder)))})

    client.__init__ = begin_with_secret
