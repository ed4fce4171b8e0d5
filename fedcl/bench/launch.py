"""Start one measurement in a process of its own and read what it tells."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedcl.bench.spec import ENVIRONMENT, Spec
from fedcl.errors import FederationError


def launch(name: str, spec: Spec) -> dict[str, Any]:
    """Run a comparator, wait for it, and return what it has told.

    Raises:
        FederationError: it has failed; says with what.
    """
    folder = Path(spec.folder)
    folder.mkdir(parents=True)
    file, log = folder / "spec.json", folder / "log.txt"
    command = [sys.executable, "-m", "fedcl.bench.process", name, str(file)]
    with open(log, "wb") as output:
        replace(spec, started=time.time()).write(file)
        done = subprocess.run(
            command, env={**os.environ, **ENVIRONMENT}, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    told = folder / "told.json"
    if done.returncode or not told.is_file():
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise FederationError(
            f"{name} has failed (exit {done.returncode}): {lines[-1] if lines else 'it said nothing'}"
        )
    found: dict[str, Any] = json.loads(told.read_text())
    return found
