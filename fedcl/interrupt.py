"""SIGTERM and Ctrl-C as a request: finish what is consistent, checkpoint, exit 75. A second signal is final."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED = 75  # exit code: stopped, resumable (EX_TEMPFAIL)
LOOK = 0.2  # seconds between two looks at whether somebody has asked


class Stopped(Exception):
    """The run was asked to stop; its last checkpoint resumes it."""


class StopRequest:
    """Whether somebody has asked the run to stop."""

    def __init__(self) -> None:
        self.asked = False

    def check(self) -> None:
        """Leave the round if a stop was asked for.

        Raises:
            Stopped: it was.
        """
        if self.asked:
            raise Stopped

    def pause(self, seconds: float) -> None:
        """Wait so many seconds.

        Raises:
            Stopped: somebody asked for it meanwhile.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.check()
            time.sleep(LOOK)


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Turn the first SIGTERM or SIGINT of the block into a request; outside the main thread nothing is caught."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if request.asked:
            raise KeyboardInterrupt
        request.asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
