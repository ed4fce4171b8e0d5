"""Weights & Biases: one run of the project `fedcl` (or WANDB_PROJECT), its files in `wandb` of the run directory.

WANDB_MODE=offline writes the files alone, for `wandb sync`: a later sitting then writes them anew from the journal.
"""

import os
import shutil
from collections.abc import Mapping

import wandb

from fedcl.errors import LOSSY
from fedcl.interrupt import STOPPED
from fedcl.track.tracker import About


class WandB:
    """A run of Weights & Biases'."""

    def __init__(self, about: About) -> None:
        known = about.known("wandb")
        for earlier in about.folder.glob(f"wandb/offline-run-*-{known}") if known else ():
            shutil.rmtree(earlier)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "fedcl", group=about.name, name=about.title,
            config=dict(about.parameters), dir=str(about.folder), id=known, resume="allow" if known else None,
            reinit="create_new", settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip
        if not known:
            about.remember("wandb", self._run.id)
        # Its own steps only grow, and an evaluation may follow the next round: rounds are an axis of ours.
        self._run.define_metric("round")
        self._run.define_metric("*", step_metric="round")
        self._last = int(self._run.summary.get("round", -1)) if self._run.resumed else -1

    def last(self, name: str) -> int:
        """Return the last round that the run has."""
        return self._last

    def log(self, round: int, values: Mapping[str, float]) -> None:
        """Log scalars of a round."""
        self._run.log({**values, "round": round})

    def close(self, status: str, round: int, figures: Mapping[str, float]) -> None:
        """Write the figures into the summary and end the run."""
        self._run.summary.update({f"figure/{name}": value for name, value in figures.items()})
        self._run.finish(exit_code={"finished": 0, "diverged": LOSSY, "stopped": STOPPED}.get(status, 1))
