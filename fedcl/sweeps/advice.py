"""What Optuna makes of a search: the next settings, from those that have been tried (TPE, Bergstra et al., NIPS 2011).

A study lies in the sweep's folder, in Optuna's own journal (lines of JSON; `optuna-dashboard` reads it). The sampler is
made anew for every trial, seeded by the names of sweep and study and the trial's number, so what it advises depends
only on what it has been told: a search that is stopped in between advises the same as one that is not. A trial that was
not told when a sitting ended is forgotten, and advised again.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcl.distribution import install
from fedcl.errors import ConfigError
from fedcl.sweeps.space import Parameter, Search, Study, Within

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from optuna.trial import Trial as OptunaTrial

STORE = "optuna.jsonl"
RANDOM = 5  # trials drawn at random before the first that is advised; budgets are small here
KEYS, STATUS, NUMBER = "runs", "status", "number"  # of a trial, besides what Optuna keeps


@dataclass(frozen=True)
class Trial:
    """Settings to be tried."""

    number: int  # among those of its study, from 0
    values: Mapping[str, Any]  # parameter -> value, or label of a choice
    asked: "OptunaTrial"


@dataclass(frozen=True)
class Told:
    """A trial that is over."""

    number: int
    values: Mapping[str, Any]
    status: str
    value: float | None  # what it is judged by; None: it has not gone to its end
    keys: tuple[str, ...]  # of its runs


class Adviser:
    """Optuna's study of one combination of the grid."""

    def __init__(self, out: Path, sweep: str, study: Study, search: Search) -> None:
        """Open the study, or create it.

        Raises:
            ConfigError: Optuna is not installed.
        """
        optuna = _optuna()
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sign, self._seed = 1 if search.higher else -1, f"{sweep}/{study.title}"
        self._space = {each.name: _distribution(each) for each in study.space}
        self._study = optuna.create_study(
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(out / STORE))), load_if_exists=True,
            study_name=f"{study.title} {study.fingerprint(search)}",
            direction="maximize" if search.higher else "minimize",
        )  # fmt: skip
        for each in self._study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
            self._study.tell(each.number, state=optuna.trial.TrialState.FAIL)
        self._asked = len(self.told)

    @property
    def told(self) -> list[Told]:
        """Trials that are over, in their order."""
        from optuna.trial import TrialState

        over = self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])
        return sorted((_told(each) for each in over), key=lambda each: each.number)

    @property
    def best(self) -> Told | None:
        """The best trial that has gone to its end, the first of equal ones; None if none has."""
        ended = [(self._sign * each.value, -each.number, each) for each in self.told if each.value is not None]
        return max(ended)[-1] if ended else None

    def ask(self) -> Trial:
        """Return the next settings to try."""
        from optuna.samplers import TPESampler

        number, self._asked = self._asked, self._asked + 1
        self._study.sampler = TPESampler(n_startup_trials=RANDOM, seed=zlib.crc32(f"{self._seed}/{number}".encode()))
        asked = self._study.ask(self._space)
        asked.set_user_attr(NUMBER, number)
        return Trial(number, dict(asked.params), asked)

    def tell(
        self, trial: Trial, status: str, value: float | None, reached: Sequence[float], keys: Sequence[str]
    ) -> None:
        """Write down what has come of a trial.

        Args:
            value: its figure; None if it has not gone to its end.
            reached: its any-time accuracies, by which it is ranked among those that have not; without any the worst.
            keys: of its runs.
        """
        from optuna.trial import TrialState

        for name, said in ((STATUS, status), (KEYS, list(keys))):
            trial.asked.set_user_attr(name, said)
        for place, accuracy in enumerate(reached):
            trial.asked.report(self._sign * accuracy, place)
        ended = TrialState.PRUNED if value is None else TrialState.COMPLETE
        self._study.tell(trial.asked, value, state=ended)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(f"search: needs the package optuna, which is not installed; {install('search')}") from error
    return optuna


def _distribution(parameter: Parameter) -> Any:
    """Return a parameter as Optuna has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(parameter, Within):
        return CategoricalDistribution(parameter.ends)
    if parameter.whole:
        return IntDistribution(
            int(parameter.low), int(parameter.high), log=parameter.log, step=int(parameter.step or 1)
        )
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def _told(trial: "FrozenTrial") -> Told:
    said, ended = trial.user_attrs, trial.state.name == "COMPLETE"
    value = trial.value if ended else None
    return Told(said[NUMBER], dict(trial.params), said[STATUS], value, tuple(said[KEYS]))
