"""The server of a federation on real machines: a SuperLink, and runs of the ServerApp until the federation is done.

The ServerApp keeps everything that counts in the run directory and can be killed at any instruction; so can the
SuperLink, and this supervisor. Whatever dies is started again and the run goes on from its last checkpoint, as another
run of Flower's. The ServerApp holds the lock of the run directory, which tells this process whether it lives.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcl import foreign, lock
from fedcl.errors import Diverged, FederationError
from fedcl.interrupt import LOOK, Stopped, StopRequest
from fedcl.journal import ERRORS, EVENTS, failure, finished, read_events
from fedcl.log import collect
from fedcl.names import WARDS
from fedcl.real import bundle
from fedcl.real.flower import Link
from fedcl.real.nodes import Nodes, write_link
from fedcl.real.processes import Child
from fedcl.real.tail import Tail

START = 120.0  # seconds that a SuperLink or a ServerApp has to come up
EXPOSED = 20  # looks at a port that somebody listens at before there is a secret
FAILURES = 5  # runs of Flower's in a row that end without a new round: then it is no accident
LONGEST = 60.0  # seconds between two attempts

Event = dict[str, Any]


@dataclass(kw_only=True)
class Server:
    """The supervisor. `say` is told in a line what it does, `listener` of the run's events."""

    state: Path
    folder: Path  # the run directory
    link: Link
    say: Callable[[str], None]
    listener: Callable[[Event], None]
    wards: int = WARDS  # clients that one node may have at most
    _superlink: Child | None = None

    def __post_init__(self) -> None:
        """Take the journal as it stands for known."""
        self._journal = Tail(self.folder / EVENTS)

    def serve(self, stop: StopRequest) -> None:
        """Run the federation to its end.

        Raises:
            Stopped: somebody asked for it; the run can go on later.
            FederationError: it cannot go on.
            Diverged: its weights have come to nothing; it would again.
        """
        self.link.write_connection()
        write_link(self.state, self.link)
        app = bundle.write(self.state / "app")
        (self.state / "log").mkdir(exist_ok=True)
        failures = 0
        try:
            while not finished(self.folder):
                before = self._rounds()
                problem = self._sitting(app, stop)
                failures = 0 if self._rounds() > before else failures + 1
                if problem and collect(read_events(self.folder)).status == "diverged":
                    raise Diverged(problem)
                if problem and failures >= FAILURES:
                    raise FederationError(f"{failures} attempts in a row came to nothing; the last one: {problem}")
                if problem:
                    seconds = min(2.0**failures, LONGEST)
                    self.say(f"{problem}; going on from the last checkpoint in {seconds:.0f} s")
                    stop.pause(seconds)
        finally:
            self._end()

    def _sitting(self, app: Path, stop: StopRequest) -> str:
        """Run the ServerApp once and return what went wrong, "" if nothing did."""
        try:
            self._bring_up(stop)
            fresh = Nodes(self.state).register(self.link) if self.link.auth else []
            if fresh:
                self.say(f"registered: {', '.join(fresh)}")
            failed = (self.folder / ERRORS).stat().st_size if (self.folder / ERRORS).exists() else 0
            self.link.submit(app, self.folder, self.state if self.link.auth else None, self.wards)
        except FederationError as error:
            return str(error)
        return self._follow(stop, failed)

    @property
    def _log(self) -> Path:
        return self.state / "log" / "superlink.log"

    def _bring_up(self, stop: StopRequest) -> None:
        """Start the SuperLink if it does not run, and wait until it listens."""
        if self._superlink and self._superlink.alive:
            return
        if self.link.listens():
            raise FederationError(f"somebody else listens at {self.link.reached}: stop that, or choose another --port")
        log = self._log
        self.link.forget_secret()
        self._superlink = Child("SuperLink", self.link.start_command(), self.link.environment, log)
        end = time.monotonic() + START
        exposed = 0
        while not self.link.is_up():
            stop.check()
            exposed += self.link.listens()  # then its secret is there at once, unless it is not ours, or has no gate
            time.sleep(LOOK)
            if exposed > EXPOSED and not self.link.is_up():
                self._superlink.stop()
                raise FederationError(f"what listens at {self.link.reached} is not behind fedcl's gate (see {log})")
            if not self._superlink.alive or time.monotonic() > end:
                self._superlink.stop()
                raise FederationError(f"the SuperLink did not start: {_last_line(self._superlink.said())} (see {log})")
        how = "TLS" if self.link.tls else "plain text"
        self.say(f"SuperLink at {self.link.reached}, {how}, process {self._superlink.pid}")

    def _follow(self, stop: StopRequest, failed: int) -> str:
        """Tell of events while the ServerApp lives and return why it ended too early, "" if it did not."""
        came, end = False, time.monotonic() + START
        while True:
            if stop.asked:
                self._stop_app()
                raise Stopped
            self._tell()
            alive = lock.holder(self.folder) is not None
            came |= alive
            if finished(self.folder):
                return ""
            if came and not alive:
                return self._why(failed)
            if self._superlink and not self._superlink.alive:
                return "the SuperLink died"
            if not came and time.monotonic() > end:
                return f"the ServerApp did not start within {START:.0f} s (see {self._log})"
            if not came and (problem := self._why(failed, unless="")):
                return problem
            time.sleep(LOOK)

    def _why(self, failed: int, unless: str = "the ServerApp died") -> str:
        """Return the last failure in error.log behind byte `failed`, or `unless`."""
        return failure(self.folder, failed) or unless

    def _stop_app(self) -> None:
        """Ask the ServerApp for a checkpoint and wait until it is gone."""
        process, end = lock.holder(self.folder), time.monotonic() + START
        if process:
            os.kill(process, signal.SIGTERM)
        while lock.holder(self.folder) is not None and time.monotonic() < end:
            time.sleep(LOOK)
        self._tell()

    def _tell(self) -> None:
        """Hand the listener what the journal has that it does not know."""
        for event in self._journal.fresh():
            self.listener(event)

    def _rounds(self) -> int:
        """Return the round of the newest checkpoint."""
        found = [path.stem for path in (self.folder / "checkpoints").glob("r*.safetensors")]
        return max((int(name[1:]) for name in found if name[1:].isdecimal()), default=0)

    def _end(self) -> None:
        self._tell()
        if self._superlink:
            self._superlink.stop()


def _last_line(text: str) -> str:
    return foreign.line(([line for line in text.splitlines() if line.strip()] or ["it said nothing"])[-1])[:300]
