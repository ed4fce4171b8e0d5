"""MLflow: one run of the experiment named by the scenario (or MLFLOW_EXPERIMENT_NAME), at MLFLOW_TRACKING_URI.

A server keeps what it has: a later sitting goes on with the same run and leaves out the rounds that are there.
"""

import os
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from fedcl.track.tracker import About

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

MOST = 100  # parameters, and metrics, of one request: what its servers take
LONGEST = 500  # characters of a parameter: what the oldest of them take
STATUS = {"finished": "FINISHED", "failed": "FAILED", "diverged": "FAILED"}


class MLflow:
    """A run of MLflow's."""

    def __init__(self, about: About) -> None:
        self._client = MlflowClient()
        known = about.known("mlflow")
        self._last: dict[str, int] = {}
        if known:
            self._run = known
            self._client.update_run(known, status="RUNNING")
            for name in self._client.get_run(known).data.metrics:
                self._last[name] = max(each.step for each in self._client.get_metric_history(known, name))
        else:
            self._run = self._created(about)
            about.remember("mlflow", self._run)

    def _created(self, about: About) -> str:
        """Create the run with its parameters."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or about.name
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        tags = {"fedcl.directory": str(about.folder)}
        run: str = self._client.create_run(experiment, run_name=about.title, tags=tags).info.run_id
        for some in _parts(about.parameters):
            self._client.log_batch(run, params=[Param(key, value[:LONGEST]) for key, value in some.items()])
        return run

    def last(self, name: str) -> int:
        """Return the last round of which the run has a scalar."""
        return self._last.get(name, -1)

    def log(self, round: int, values: Mapping[str, float]) -> None:
        """Log scalars of a round."""
        now = int(time.time() * 1000)
        for some in _parts(values):
            self._client.log_batch(self._run, metrics=[Metric(name, value, now, round) for name, value in some.items()])

    def close(self, status: str, round: int, figures: Mapping[str, float]) -> None:
        """Log the figures and end the run."""
        self.log(round, {f"figure/{name}": value for name, value in figures.items()})
        self._client.set_terminated(self._run, STATUS.get(status, "KILLED"))


def _parts(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    ahead = iter(values.items())
    while some := dict(islice(ahead, MOST)):
        yield some
