"""`fedcl bench --tune SCENARIO`: which engine settings are fastest for a scenario on this machine.

Each alternative runs for some rounds in a process of its own, all of them in turn, twice; what is printed is a line for
the scenario. A run never does this by itself: `engine.stack` has a part in the arithmetic (within roundings), so it is
for the user to write down.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from fedcl import config
from fedcl.bench.ours import Listener
from fedcl.bench.spec import ENVIRONMENT, Watch
from fedcl.config import Scenario
from fedcl.engine import choice
from fedcl.errors import ConfigError, FederationError

STACKS = (1, 8, 16, 32, 64, 128)
ROUNDS, TURNS = 16, 2  # rounds of a run, and how often every alternative runs
MODULE = "fedcl.bench.tune"


@dataclass(frozen=True)
class Alternative:
    """Settings of the engine that a scenario could have."""

    kind: str
    stack: int

    @property
    def overrides(self) -> list[str]:
        """The settings as a user writes them."""
        return [f"engine.kind={self.kind}", f"engine.stack={self.stack}", "engine.cohort=auto"]


def chosen(scenario: Scenario) -> Alternative:
    """Return what "auto" stands for on this machine."""
    settled, _ = choice.resolve(scenario)
    stack = settled.engine.stack
    return Alternative(choice.kind(settled), stack if isinstance(stack, int) else 1)


def alternatives(scenario: Scenario) -> list[Alternative]:
    """Return what is tried: what auto stands for, then every stack that a round can fill, inline and on Ray."""
    asked = scenario.server.clients_per_round or scenario.stream.clients
    kinds = ["inline", "ray"] if choice.workers(scenario)[0] > 1 else ["inline"]
    every = [Alternative(kind, stack) for kind in kinds for stack in STACKS if stack <= asked]
    return list(dict.fromkeys([chosen(scenario), *every]))


def tune(name: str, overrides: Sequence[str], rounds: int | None, note: Callable[[str], None]) -> str:
    """Measure the alternatives and return the table and the line.

    Raises:
        ConfigError: the scenario is none, or there are too few rounds.
        FederationError: a run has failed.
    """
    rounds = rounds or ROUNDS
    if rounds < 4:
        raise ConfigError(f"--rounds {rounds}: must be at least 4, the first half of them is not counted")
    scenario = config.load(name, overrides)
    tried = alternatives(scenario)
    rates: dict[Alternative, list[float]] = {each: [] for each in tried}
    for turn in range(TURNS):
        for each in tried:
            note(f"{each.kind}, stack {each.stack}: turn {turn + 1} of {TURNS}")
            rates[each].append(measured(name, [*overrides, *each.overrides], rounds))
    return told(rates, tried[0])


def told(rates: dict[Alternative, list[float]], auto: Alternative) -> str:
    """Return the table of updates a second, and the line for the scenario."""
    best = max(rates, key=lambda each: statistics.median(rates[each]))
    ratio = statistics.median(rates[auto]) / statistics.median(rates[best])
    lines = ["engine.kind  engine.stack  updates/s"]
    for each, found in rates.items():
        mark = "".join([" (auto)" if each == auto else "", " (fastest)" if each == best else ""])
        lines.append(f"{each.kind:<11}  {each.stack:>12}  {min(found):,.0f}-{max(found):,.0f}{mark}")
    lines += [f"auto reaches {ratio:.2f} of the fastest; for the scenario:", line(best)]
    return "\n".join(lines)


def line(best: Alternative) -> str:
    """Return the line that makes a scenario take these settings."""
    return f"engine: {{kind: {best.kind}, stack: {best.stack}}}"


def measured(name: str, overrides: Sequence[str], rounds: int) -> float:
    """Return the client updates a second of a run in a process of its own, the first half of its rounds left out.

    Raises:
        FederationError: it has failed; says with what.
    """
    with TemporaryDirectory(prefix="fedcl-tune-", ignore_cleanup_errors=True) as folder:
        short = [f"stream.schedule.rounds={rounds}", "evaluate.every=0", "evaluate.clients=0"]
        done = subprocess.run(
            [sys.executable, "-m", MODULE, folder, name, *overrides, *short], env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
        )  # fmt: skip
        out = Path(folder) / "told.json"
        if done.returncode or not out.is_file():
            said = [each for each in done.stderr.splitlines() if each.strip()] or ["it said nothing"]
            raise FederationError(f"{' '.join(overrides)}: the run has failed: {said[-1]}")
        found = json.loads(out.read_text())
    half = len(found["seconds"]) // 2
    return float(sum(found["updates"][half:]) / sum(found["seconds"][half:]))


def main(folder: str, name: str, *overrides: str) -> None:
    """Run one alternative and write how long its rounds took."""
    from fedcl import api

    listener = Listener(Watch(None))
    outcome = api.run(config.load(name, overrides), out=Path(folder) / "run", listeners=[listener], check=False)
    if outcome.code:
        sys.exit(outcome.error or f"fedcl run ended with {outcome.code}")
    marks = listener.watch.marks
    seconds = [after - before for before, after in zip([0.0, *marks], marks, strict=False)]
    (Path(folder) / "told.json").write_text(json.dumps({"seconds": seconds, "updates": listener.updates}))


if __name__ == "__main__":
    main(*sys.argv[1:])
