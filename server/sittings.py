"""How often the server of a run directory was started, so that nodes know an order of one that has died.

The file `sittings` holds the number and the federation's name: the scenario's, and a few digits of its own that tell
two runs of one scenario apart.
"""

import json
import secrets
from pathlib import Path

from fedcl.errors import FederationError
from fedcl.journal import write_json

FILE = "sittings"


def sit(folder: Path, name: str) -> tuple[str, int]:
    """Count one more start, for good, before anything is sent; return the federation's name and the number.

    Args:
        name: the scenario's.

    Raises:
        FederationError: the file is damaged.
    """
    path = folder / FILE
    federation, sitting = f"{name}-{secrets.token_hex(4)}", 0
    try:
        found = json.loads(path.read_text())
        federation, sitting = str(found["federation"]), int(found["sitting"])
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError) as error:
        what = "put back its last copy: nodes refuse orders of a smaller number than they have seen"
        raise FederationError(f"{path} is damaged ({error}); {what}") from error
    write_json(path, {"federation": federation, "sitting": sitting + 1})
    return federation, sitting + 1
