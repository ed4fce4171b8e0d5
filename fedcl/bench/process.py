"""One measurement in a process of its own: python -m fedcl.bench.process NAME SPEC.json."""

import importlib
import sys
from pathlib import Path

from fedcl.bench.spec import Spec, Watch, tell

COMPARATORS = {
    "fedcl": "fedcl.bench.ours:run",
    "finetune": "fedcl.bench.ours:run_plain",
    "fedavg": "fedcl.bench.ours:run_plain",
    "flower": "fedcl.bench.rival_flower:run",
    "pfl": "fedcl.bench.rival_pfl:run",
    "loop": "fedcl.bench.loop:run",
    "loop2": "fedcl.bench.loop:run_shared",
    "limit": "fedcl.bench.limit:run",
}
SUMS = {"fedcl": "fedcl.bench.sums:run", "flower": "fedcl.bench.sums:run_flower"}  # where only sums are measured


def main(name: str, path: str) -> None:
    """Run what has the name as the file says, and write what came out into its folder."""
    import torch

    spec = Spec.read(Path(path))
    watch = Watch(spec.started)
    torch.set_num_threads(1)
    known = SUMS if spec.workload == "sums" else COMPARATORS
    module, _, function = known[name].partition(":")
    told = getattr(importlib.import_module(module), function)(spec, watch)
    print(tell(spec, name, watch, told))


if __name__ == "__main__":
    main(*sys.argv[1:])
