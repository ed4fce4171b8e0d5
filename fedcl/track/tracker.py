"""What a tracker is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fedcl import kept
from fedcl.journal import write_json

IDS = "trackers.json"  # in a run directory: tracker -> what it calls the run, by which a later sitting goes on with it


@dataclass(frozen=True, kw_only=True)
class About:
    """The run that is tracked."""

    folder: Path  # its run directory
    name: str  # its scenario's
    parameters: Mapping[str, str]  # dotted key of the configuration -> value

    @property
    def title(self) -> str:
        """How a tracker names the run: the last two folders of its run directory, which tell one run from another."""
        return "/".join(self.folder.parts[-2:])

    def known(self, tracker: str) -> str | None:
        """Return what a tracker calls the run, None in its first sitting."""
        return self._ids().get(tracker)

    def remember(self, tracker: str, run: str) -> None:
        """Keep what a tracker calls the run."""
        write_json(self.folder / IDS, self._ids() | {tracker: run})

    def _ids(self) -> dict[str, str]:
        path = self.folder / IDS
        return kept.read_json(path) if path.exists() else {}


class Tracker(Protocol):
    """Where the scalars of one run go. Made from an `About`; whatever goes wrong is raised."""

    def last(self, name: str) -> int:
        """Return the last round of which it has a scalar, -1: of none."""

    def log(self, round: int, values: Mapping[str, float]) -> None:
        """Take scalars of a round."""

    def close(self, status: str, round: int, figures: Mapping[str, float]) -> None:
        """End the sitting.

        Args:
            status: of the run: finished, diverged, stopped, failed, or died.
            figures: of results.json, where the run has finished; they follow its last round.
        """
