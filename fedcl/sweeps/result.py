"""What a sweep has come to, read from its folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcl.journal import finished
from fedcl.result import Result, read
from fedcl.sweeps import tables
from fedcl.sweeps.folder import planned_folders, read_plan
from fedcl.sweeps.state import FAILED
from fedcl.sweeps.tables import METRIC, Found, Row


@dataclass(frozen=True)
class SweepResult:
    """A sweep's folder, read when something of it is asked for."""

    directory: Path

    @property
    def plan(self) -> list[dict[str, Any]]:
        """What the sweep asks for: labels, seed, overrides and key of each run; several may come to one key."""
        points: list[dict[str, Any]] = read_plan(self.directory)["points"]
        return points

    @property
    def results(self) -> list[Result]:
        """The runs that have begun, in the order of the sweep."""
        folders = planned_folders(self.directory).values()
        return [read(folder) for folder in folders if (folder / "config.yaml").is_file()]

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The runs that have failed when they were last tried: run (in words), error, directory."""
        from fedcl.sweeps.sitting import outcomes  # with the engine, which reading does not need

        last, found = outcomes(self.directory), []
        for key, folder in planned_folders(self.directory).items():
            event = last.get(key)
            if event and event["status"] == FAILED and not finished(folder):
                found.append({"run": event["title"], "error": event["error"], "directory": folder})
        return found

    @property
    def table(self) -> list[dict[str, Any]]:
        """The rows of `rows()` for the accuracy after the last task."""
        return self.rows()

    def rows(self, metric: str = METRIC) -> list[dict[str, Any]]:
        """Return a figure over seeds, a plain dict for each scenario with one setting of every axis.

        Its keys: scenario and the axes of the grid; seeds, mean, std, low, high (95 % interval), iqm; difference to the
        first row of the scenario, with difference_low, difference_high and p (adjusted by Holm); values by seed.

        Args:
            metric: a name of `Result.metrics`, or a dotted path in `Result.results` such as clients.acc.worst.

        Raises:
            ConfigError: there is no such figure.
        """
        return [_plain(row) for row in self.found(metric).rows]

    def found(self, metric: str = METRIC) -> Found:
        """Return the figures with their tests and ranks, as `fedcl.sweeps.tables` writes them."""
        return tables.collect(self.directory, metric)


def _plain(row: Row) -> dict[str, Any]:
    """Return a row as names and numbers: None where nothing is known, or nothing is compared."""
    spread, versus = row.spread, row.versus
    gap = versus.difference if versus else None
    return {
        **row.labels,
        "seeds": len(row.values),
        **{name: getattr(spread, name, None) for name in ("mean", "std", "low", "high", "iqm")},
        "difference": gap.mean if gap else None,
        "difference_low": gap.low if gap else None,
        "difference_high": gap.high if gap else None,
        "p": versus.adjusted if versus else None,
        "values": dict(row.values),
    }
