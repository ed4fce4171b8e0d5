"""Files of our own, read back: whatever has happened to their bytes, one sentence names the file and what can be done.

Disks lose bits, copies break off, and a folder may be of another version of fedcl, or handed over by a stranger. So
nobody decodes such a file but here, and whoever computes with what it says does so inside `sound`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcl import files
from fedcl.errors import FederationError

if TYPE_CHECKING:
    from torch import Tensor

MOST_JSON = 1 << 30  # bytes of a results.json of very many clients
BACK = "put back a copy of it"
# What code raises that meets something else than it was promised.
WRONG = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, RuntimeError)


class Damaged(FederationError):
    """A file of our own is not what was written; the sentence names it."""


def damaged(path: Path, why: object, remedy: str = BACK) -> Damaged:
    """Return the error that says so in one sentence."""
    return Damaged(f"{path} is damaged ({' '.join(str(why).split())[:200]}): {remedy}")


@contextmanager
def sound(path: Path, remedy: str = BACK) -> Iterator[None]:
    """Take what goes wrong with a file's content for damage of the file.

    Raises:
        Damaged: something did.
    """
    try:
        yield
    except WRONG as error:
        said = f"no {error}" if isinstance(error, KeyError) else error
        raise damaged(path, said, remedy) from error


def read(path: Path, most: int = files.ARRAYS, remedy: str = BACK) -> bytes:
    """Return the bytes of a file of our own.

    Raises:
        Damaged: it is none that can be read, or a longer one.
    """
    try:
        return files.content(path, most)
    except files.Unfit as error:
        raise Damaged(f"{path}: {error}; {remedy}") from error


def read_json(path: Path, schema: int | None = None, remedy: str = BACK) -> dict[str, Any]:
    """Return the block that a JSON file of our own holds.

    Args:
        schema: the version that it must be of; None: such files have none.
        remedy: what its user can do where it is damaged.

    Raises:
        Damaged: it is no JSON, holds no block, or is of another version.
    """
    data = read(path, MOST_JSON, remedy)
    with sound(path, remedy):
        found: Any = json.loads(data)
        if not isinstance(found, dict):
            raise ValueError("it is no block of named values")
    if schema is not None and found.get("schema") != schema:
        said = repr(found.get("schema"))[:40]
        raise Damaged(f"{path} is of version {said}, and this fedcl reads version {schema}: {remedy}")
    return found


def tensors(data: bytes) -> "dict[str, Tensor]":
    """Return the tensors of a safetensors file's bytes.

    Raises:
        ValueError: it is none, or damaged.
    """
    import safetensors.torch

    try:
        return safetensors.torch.load(data)
    except Exception as error:  # of its own kind, and several of Python's, for headers that contradict themselves
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from error


def read_tensors(path: Path, remedy: str = BACK) -> "dict[str, Tensor]":
    """Return the tensors of a safetensors file of our own.

    Raises:
        Damaged: it is none, or damaged.
    """
    with sound(path, remedy):
        return tensors(read(path, remedy=remedy))
