"""Kills at any line of what the server does between the last reply of a round and its commit."""

import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from flwr.app import Message

from fedcl.config import Plain
from tests.nodes import Death, Nodes

ROOT = Path(__file__).parent.parent
WHERE = tuple(str(ROOT / each) for each in ("server/", "fedcl/state.py", "fedcl/journal.py"))


Place = tuple[str, int]  # file and line
Aim = int | Place


class Killer:
    """Counts the lines of `WHERE` that run in that time, and kills at one of them."""

    def __init__(self) -> None:
        self.at: Aim = 0
        self.lines, self.most, self.before = 0, 0, 0
        self.seen, self.places = set[Place](), list[Place]()

    def aim(self, at: "Aim" = 0) -> None:
        """Kill at a line from now on, in this round or a later one: the n-th that runs, or the first in a place."""
        self.at, self.lines = at, 0

    def begin(self) -> None:
        """Watch: the last reply is there. What runs already is watched too."""
        self.before = self.lines
        frame: FrameType | None = sys._getframe()
        while frame:
            if frame.f_code.co_filename.startswith(WHERE):
                frame.f_trace = self._line
            frame = frame.f_back
        sys.settrace(self._call)

    def told(self, event: Plain) -> None:
        """Stop watching when the round is committed (a listener of the journal)."""
        if event["event"] == "checkpoint" and sys.gettrace() == self._call:
            sys.settrace(None)
            self.most = max(self.most, self.lines - self.before)

    def _call(self, frame: FrameType, event: str, _: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(WHERE) else None

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            place = Path(frame.f_code.co_filename).name, frame.f_lineno
            self.lines += 1
            self.seen.add(place)
            if self.at in (self.lines, place):
                sys.settrace(None)
                self.places.append(place)
                raise Death
        return self._line


class Watched(Nodes):
    """Nodes that tell a killer when the last training answer of a round is handed over."""

    def __init__(self, killer: Killer, nodes: int, state: Path | None = None) -> None:
        super().__init__(nodes, state=state)
        self._killer, self._awaited = killer, 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self._awaited = sum(message.metadata.message_type == "train" for message in messages)
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        trained = sum(reply.metadata.message_type == "train" for reply in replies)
        self._awaited -= trained
        if trained and not self._awaited:
            self._killer.begin()
        return replies
