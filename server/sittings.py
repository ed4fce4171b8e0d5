"""How often the server of a run directory was started, so that nodes know an order of one that has died.

The file `sittings` holds the number and the federation's name: the scenario's, and a few digits of its own that tell
two runs of one scenario apart.
"""

import os
import secrets
from pathlib import Path

from fedcl import kept
from fedcl.journal import write_json

FILE = "sittings"
LAST_COPY = "put back its last copy: nodes refuse orders of a smaller number than they have seen"


def sit(folder: Path, name: str) -> tuple[str, int]:
    """Count one more start, for good, before anything is sent; return the federation's name and the number.

    Args:
        name: the scenario's.

    Raises:
        kept.Damaged: the file is not what was written.
    """
    path = folder / FILE
    federation, sitting = f"{name}-{secrets.token_hex(4)}", 0
    if os.path.lexists(path):
        found = kept.read_json(path, remedy=LAST_COPY)
        with kept.sound(path, LAST_COPY):
            federation, sitting = str(found["federation"]), int(found["sitting"])
    write_json(path, {"federation": federation, "sitting": sitting + 1})
    return federation, sitting + 1
