"""What the machine denies a run, a full disk above all, told in one sentence; the run goes on once it is put right."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedcl.errors import FederationError


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Turn an error of the operating system into one of the run.

    Raises:
        FederationError: a file could not be written or read; what was committed before is whole.
    """
    try:
        yield
    except ConnectionError:  # nobody reads the console any more, or nobody answers
        raise
    except OSError as error:
        what = " ".join(str(error).split())
        on = f"fedcl run --resume {folder} goes on from the last complete round"
        raise FederationError(f"{folder}: {what}; once that is put right, {on}") from error
