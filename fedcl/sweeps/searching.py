"""A search carried out: every combination of the grid tries as many settings, then its best are run to be compared.

The combinations go on beside each other, the trials of each one after another (`search.batch` at a time), and so do the
seeds of a trial: what is pruned with the first seed never begins the second. Afterwards the best settings of each run
with the sweep's own seeds, which no setting was chosen by.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fedcl.errors import ConfigError
from fedcl.journal import finished, read_results
from fedcl.sweeps.advice import Adviser, Told, Trial
from fedcl.sweeps.best import write_best
from fedcl.sweeps.folder import run_folder
from fedcl.sweeps.pruning import curve, floors
from fedcl.sweeps.sitting import Run, Sitting, describe
from fedcl.sweeps.space import Search, Study
from fedcl.sweeps.spec import Sweep
from fedcl.sweeps.state import DONE, FAILED, HOPELESS, PRUNED
from fedcl.sweeps.tables import value_of

OVER = (DONE, PRUNED, HOPELESS)


@dataclass(kw_only=True)
class Attempt:
    """A trial at work: one run a seed, one after another."""

    trial: Trial
    runs: list[Run]  # none: no scenario has these settings
    values: list[float] = field(default_factory=list)  # of the runs that are done
    status: str | None = None  # how the trial has ended


class Hunt:
    """One study on its way through its budget."""

    def __init__(self, study: Study, search: Search, adviser: Adviser, sitting: Sitting) -> None:
        self.study, self.adviser = study, adviser
        self._search, self._sitting = search, sitting
        self._attempts: list[Attempt] = []
        self.stuck = False  # something has failed that is no setting's fault; the next sitting tries it again

    @property
    def over(self) -> bool:
        """Whether the budget is used up."""
        return len(self.adviser.told) >= self._search.trials

    @property
    def to_come(self) -> int:
        """Runs, at most, that it has not begun yet."""
        left = self._search.trials - len(self.adviser.told)
        begun = sum(each.key in self._sitting.state.status for one in self._attempts for each in one.runs)
        return 0 if self.stuck else left * len(self._search.seeds) - begun

    def go_on(self) -> None:
        """Submit what is next, until something is in work or the study is over."""
        while not (self.over or self.stuck):
            for each in self._attempts:
                self._advance(each)
            if self.stuck or any(each.status is None for each in self._attempts):
                return
            for each in self._attempts:
                self._tell(each)
            left = self._search.trials - len(self.adviser.told)
            self._attempts = [self._attempt(self.adviser.ask()) for _ in range(min(self._search.batch, left))]

    def _attempt(self, trial: Trial) -> Attempt:
        settings = self.study.settings(trial.values)
        points = [self.study.point(settings, seed, trial.number) for seed in self._search.seeds]
        try:
            return Attempt(trial=trial, runs=[Run.of(point) for point in points])
        except ConfigError:  # each value is possible, not all of them together
            return Attempt(trial=trial, runs=[], status=HOPELESS)

    def _advance(self, attempt: Attempt) -> None:
        """Take what has come of a trial's runs so far, and submit the next one."""
        while attempt.status is None:
            run = attempt.runs[len(attempt.values)]
            status = DONE if finished(run.folder(self._sitting.out)) else self._sitting.state.status.get(run.key)
            if status == DONE:
                self._sitting.note(run, DONE)
                attempt.values.append(self._value(run))
                attempt.status = DONE if len(attempt.values) == len(attempt.runs) else None
            elif status in (PRUNED, HOPELESS):
                attempt.status = status
            else:
                self.stuck = self.stuck or status == FAILED
                if status is None:
                    self._sitting.submit(run, self._least(len(attempt.values)))
                return

    def _value(self, run: Run) -> float:
        """Return what a finished run is judged by.

        Raises:
            ConfigError: it has no such figure.
        """
        results = read_results(run.folder(self._sitting.out)) or {}
        value = value_of(results, self._search.metric)
        if value is None:
            why = results["absent"].get(self._search.metric, "unknown")
            raise ConfigError(f"search.metric = {self._search.metric!r}: {run.title} has none: {why}")
        return value

    def _least(self, place: int) -> dict[int, float]:
        """Return what a trial's run must reach, by round: the one with the seed at this place."""
        if not self._search.prune:
            return {}
        ended = [each for each in self.adviser.told if each.value is not None]
        return floors([curve(run_folder(self._sitting.out, each.keys[place])) for each in ended])

    def _tell(self, attempt: Attempt) -> None:
        """Write down what has come of a trial."""
        begun = attempt.runs[: len(attempt.values) + 1]
        value = sum(attempt.values) / len(attempt.values) if attempt.status == DONE else None
        reached = [curve(each.folder(self._sitting.out)).values() for each in begun] if attempt.status == PRUNED else []
        self.adviser.tell(
            attempt.trial, str(attempt.status), value, [each for one in reached for each in one],
            [each.key for each in begun],
        )  # fmt: skip


class Searching:
    """All studies of a sweep, and the comparison of what they find."""

    def __init__(self, sweep: Sweep, search: Search, sitting: Sitting, command: str) -> None:
        """Take up the search in the sweep's folder.

        Raises:
            ConfigError: Optuna is not installed.
        """
        self._sweep, self._search, self._sitting, self._command = sweep, search, sitting, command
        self._hunts = [
            Hunt(study, search, Adviser(sitting.out, sweep.name, study, search), sitting) for study in sweep.studies
        ]
        self._compared: dict[str, list[Run]] = {}  # study -> runs with its best settings

    def carry_out(self) -> None:
        """Search and compare.

        Raises:
            ConfigError: a run has no such figure as is asked for.
            Stopped: somebody asked for it; everything can be resumed.
        """
        self._go_on()
        self._sitting.work_off(lambda key: self._go_on())

    def _go_on(self) -> None:
        """Submit what is next in every study."""
        for hunt in self._hunts:
            hunt.go_on()
            if hunt.over and hunt.study.title not in self._compared:
                self._compare(hunt)
        left = sum(hunt.study.title not in self._compared and not hunt.stuck for hunt in self._hunts)
        self._sitting.state.to_come = sum(hunt.to_come for hunt in self._hunts) + left * len(self._sweep.seeds)
        self._describe()

    def _compare(self, hunt: Hunt) -> None:
        """Submit the runs of a study's best settings with the seeds of the comparison."""
        best, study = hunt.adviser.best, hunt.study
        points = [study.point(study.settings(best.values), seed, None) for seed in self._sweep.seeds] if best else []
        self._compared[study.title] = runs = [Run.of(point) for point in points]
        if best is None:
            self._sitting.state.errors[study.title] = "no trial has gone to its end"
        for run in runs:
            self._sitting.take(run)

    def _describe(self) -> None:
        """Write what the sweep is and what the search has found, for tables, reports and other runs."""
        out = self._sitting.out
        runs = [run for hunt in self._hunts for run in self._compared.get(hunt.study.title, [])]
        found = [_found(hunt) for hunt in self._hunts]
        budget = {name: getattr(self._search, name) for name in ("trials", "seeds", "metric", "higher", "prune")}
        describe(out, self._sweep.name, self._command, runs, {**budget, "studies": found})
        write_best(out, self._sweep, self._search, [(hunt.study, hunt.adviser.best) for hunt in self._hunts])


def _found(hunt: Hunt) -> dict[str, Any]:
    """Return what a study has come to, as sweep.json has it."""
    told = hunt.adviser.told
    counts = {status: sum(each.status == status for each in told) for status in OVER}
    return {"labels": dict(hunt.study.labels), **counts, "best": _plain(hunt.study, hunt.adviser.best)}


def _plain(study: Study, best: Told | None) -> dict[str, Any] | None:
    if best is None:
        return None
    settings: Sequence[str] = study.settings(best.values)
    return {"trial": best.number, "value": best.value, "settings": list(settings), "runs": list(best.keys)}
