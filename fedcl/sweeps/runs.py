"""A sweep carried out: what is finished stays, what was interrupted goes on, what fails is noted and stops nobody.

DIR/sweep.json says what the sweep is, DIR/events.jsonl what has happened to its runs, DIR/runs/KEY holds one each.
"""

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from fedcl import config, track
from fedcl.config import Scenario
from fedcl.errors import ConfigError
from fedcl.interrupt import listening
from fedcl.journal import Journal, clear, finished
from fedcl.lock import Lock
from fedcl.streams.stream import load_dataset
from fedcl.sweeps.axes import AXIS
from fedcl.sweeps.sitting import Listener, Run, Sitting, describe
from fedcl.sweeps.spec import Sweep, checked
from fedcl.sweeps.state import WAITING, State


def planned(sweep: Sweep) -> dict[str, Run]:
    """Return the runs of a sweep by key, in its order; of a search, which chooses them on the way, none.

    Raises:
        ConfigError: a combination is impossible.
    """
    found: dict[str, Run] = {}
    for point, scenario in zip(sweep.points, checked(sweep), strict=True):
        run = Run.of(point, scenario)
        known = found.get(run.key)
        found[run.key] = replace(known, points=(*known.points, point)) if known else run
    return found


def _with_data(scenarios: Iterable[Scenario]) -> None:
    """Load the data of some scenarios once, so that what is missing is told before anything runs.

    Raises:
        ConfigError: some are not there.
    """
    for scenario in {repr((each.data, each.stream.dataset)): each for each in scenarios}.values():
        load_dataset(scenario)


def carry_out(
    sweep: Sweep, out: Path, *, command: str = "", address: str | None = None, nodes: int = 1,
    retry_failed: bool = False, listeners: Iterable[Listener] = (),
) -> State:  # fmt: skip
    """Run what of a sweep is not finished.

    Args:
        out: the sweep's folder; one of an earlier sitting goes on.
        address: of a Ray cluster; None: this machine.
        nodes: that the cluster has to have before it begins.
        retry_failed: run again what has failed before.
        listeners: are told whenever something has changed, and every half second.

    Raises:
        ConfigError: a combination is impossible, its data are missing, a tracker or Optuna is not installed, another
            process works in the folder, or a node cannot take part.
        FederationError: no cluster answers at the address, or no node of it is left that is large enough.
        Stopped: somebody asked for it; everything can be resumed.
    """
    runs, state = planned(sweep), State(runs={}, status={}, errors={}, began=time.monotonic())
    studied = [config.load(study.labels[AXIS], (*study.fixed, *study.chosen)) for study in sweep.studies]
    for scenario in (*studied, *(run.scenario for run in runs.values())):
        track.check(scenario.track)
    if not address:  # the data of a cluster lies on its machines
        _with_data([*studied, *(run.scenario for run in runs.values() if not finished(run.folder(out)))])
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {str(out)!r}: cannot be made ({error.strerror})") from error
    with Lock(out), Journal(out) as journal, listening() as stop:
        clear(out)
        sitting = Sitting(
            out, state, journal, sweep.limits, address=address, nodes=nodes, command=command,
            retry_failed=retry_failed, listeners=tuple(listeners), check=stop.check,
        )  # fmt: skip
        if sweep.search:
            from fedcl.sweeps.searching import Searching

            searching = Searching(sweep, sweep.search, sitting, command)
            journal.write({"event": "sweep", "name": sweep.name, "studies": len(sweep.studies), "command": command})
            searching.carry_out()
        else:
            describe(out, sweep.name, command, runs.values())
            for run in runs.values():
                sitting.take(run)
            todo = state.counts[WAITING]
            journal.write({"event": "sweep", "name": sweep.name, "runs": len(runs), "todo": todo, "command": command})
            sitting.work_off()
        sitting.tell()
    return state
