"""The warm worker of a node: imports, model, data and accelerator outlive the process that Flower starts per message.

    python -m clients.warm --socket PATH [--parent-pid N]

listens on a Unix socket that its user alone can reach; `hand_over` is the other side, in the ClientApp, and imports
nothing that computes. One frame (clients.frames) goes in, one comes back, one message at a time. The answer is that of
`clients.node`, which the ClientApp would call itself. Whoever hands over must be ready to do so: a worker may end at
any moment, and records are versions by round (clients.versions), so what is done twice counts once.

SIGTERM ends the worker after the message in hand; the death of the process that started it ends it at once.
"""

import argparse
import fcntl
import os
import selectors
import signal
import socket
import stat
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from flwr.app import RecordDict

from clients import frames
from clients.frames import BadFrame, Frame
from fedcl import writing
from fedcl.errors import ConfigError

PATIENCE = 30  # seconds that a sender or a reader may pause
LONGEST = 107  # bytes of a socket's path
LOOK = 1.0  # seconds between two looks at whether the parent lives
Answer = Callable[[str, RecordDict, Mapping[str, Any], RecordDict], RecordDict]  # clients.node.answer


class Failed(Exception):
    """What a message asked for failed in the worker; the text is the worker's traceback."""


def hand_over(path: Path, kind: str, content: RecordDict, settings: Mapping[str, Any]) -> RecordDict:
    """Return the content of the answer to a message, as the worker gives it.

    Args:
        kind: Flower's message type.
        settings: Flower's node-config, with `state`.

    Raises:
        ConnectionError, FileNotFoundError, BadFrame: there is no worker, it has ended, or it cannot take the message.
        Failed: the work itself failed.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(path))
        _check_user(connection)
        frames.send(connection, frames.encode({"kind": kind, "settings": dict(settings)}, content))
        facts, answer = frames.receive(connection)  # waits as long as training takes
    if "refused" in facts:
        raise BadFrame(f"it refused the message: {facts['refused']}")
    if "error" in facts:
        raise Failed(facts["error"])
    return answer


def _check_user(connection: socket.socket) -> None:
    """Make sure that this user is at the other end, where the system tells."""
    if not hasattr(socket, "SO_PEERCRED"):
        return
    credentials = struct.Struct("iII")  # process, user, group
    _, user, _ = credentials.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size))
    if user != os.getuid():
        raise PermissionError(f"user {user} is at the other end of the worker's socket, not user {os.getuid()}")


# The worker.


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Listen at a path, this user's alone; the file a dead worker has left there is replaced.

    Raises:
        ConfigError: another worker listens there, or others could.
    """
    if len(os.fsencode(path)) > LONGEST:
        raise ConfigError(f"--socket={path}: has {len(os.fsencode(path))} bytes, a socket's path at most {LONGEST}")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = path.parent.stat()
    if folder.st_uid != os.getuid() or stat.S_IMODE(folder.st_mode) & 0o077:
        mode = stat.S_IMODE(folder.st_mode)
        raise ConfigError(f"--socket={path}: its folder (mode {mode:o}) must be this user's alone: chmod 700")
    with _alone(path), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        _bind(listener, path)
        try:
            listener.listen()
            yield listener
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock beside a socket; the system frees it however its holder ends."""
    opened = writing.descriptor(f"{path}.lock", os.O_RDWR | os.O_CREAT, writing.OWN)
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"--socket={path}: a worker listens there already") from error
        yield
    finally:
        os.close(opened)


def _bind(listener: socket.socket, path: Path) -> None:
    if path.is_socket():
        path.unlink()
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        raise ConfigError(f"--socket={path}: {error.strerror}") from error
    finally:
        os.umask(before)


def serve(listener: socket.socket) -> None:
    """Answer messages, one after another, until SIGTERM or SIGINT."""
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: asked.append(number))
    from clients import node, site  # torch and all that computes; who connects meanwhile waits

    awake, wake = socket.socketpair()
    with awake, wake, selectors.DefaultSelector() as either:
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno())  # a signal between the look at `asked` and `select` is not slept through
        for each in (listener, awake):
            either.register(each, selectors.EVENT_READ)
        _say("listening")
        while not asked:
            if any(key.fileobj is listener for key, _ in either.select()) and not asked:
                with listener.accept()[0] as connection:
                    _say(f"{_serve(connection, node.answer)}; sites built so far: {site.site.cache_info().misses}")
                _check_accelerator()
        signal.set_wakeup_fd(-1)
    _say("asked to end")


def _serve(connection: socket.socket, answer: Answer) -> str:
    """Answer the message of a connection; return what was done, in words."""
    for way in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, way, struct.pack("ll", PATIENCE, 0))
    try:
        _check_user(connection)
        done, frame = _answered(connection, answer)
        frames.send(connection, frame)
    except (OSError, MemoryError) as error:  # whoever handed over does the work itself, or is gone
        return f"a message lost: {type(error).__name__}: {error}"
    return done


def _answered(connection: socket.socket, answer: Answer) -> tuple[str, Frame]:
    """Return what was done with the next message, in words, and the frame to send back."""
    try:
        facts, content = frames.receive(connection)
        kind, settings = facts.get("kind"), facts.get("settings")
        if not isinstance(kind, str) or not isinstance(settings, dict) or not settings.get("state"):
            raise BadFrame("a message without kind, settings and a folder for the clients' records")
    except BadFrame as error:
        return f"refused: {error}", frames.encode({"refused": str(error)}, RecordDict())
    began = time.perf_counter()
    try:
        frame = frames.encode({}, answer(kind, content, settings, RecordDict()))
    except Exception as error:
        what = f"failed after {time.perf_counter() - began:.3f} s: {type(error).__name__}: {error}"
        return f"{kind} {what}", frames.encode({"error": traceback.format_exc()}, RecordDict())
    return f"{kind} in {time.perf_counter() - began:.3f} s", frame


def _check_accelerator() -> None:
    """Fail if the accelerator has: it stays failed for this process, and the next worker's is sound."""
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def _end_with(parent: int) -> NoReturn:
    """End this process at once when its parent is gone; what is half done counts for nothing."""
    while os.getppid() == parent:
        time.sleep(LOOK)
    _say(f"process {parent}, which started this one, is gone")
    os._exit(1)


def _say(text: str) -> None:
    print(f"fedcl worker {os.getpid()}: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the worker."""
    parser = argparse.ArgumentParser(prog="python -m clients.warm", description="The warm worker of a node.")
    parser.add_argument("--socket", type=Path, required=True, help="where to listen, in a folder of mode 700")
    parser.add_argument("--parent-pid", type=int, help="the process that started this one, and whose end ends it")
    asked = parser.parse_args(arguments)
    if asked.parent_pid is not None:
        threading.Thread(target=_end_with, args=(asked.parent_pid,), daemon=True).start()
    try:
        with listening(asked.socket.absolute()) as listener:
            serve(listener)
    except ConfigError as error:
        _say(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
