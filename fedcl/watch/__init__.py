"""`fedcl watch`: a run or a sweep that another process carries out, seen from its folder alone.

Nothing is written and no lock is held, so it does no harm to watch, from another terminal or, where the folder lies on
a shared path, from another machine.
"""

from pathlib import Path

from fedcl.errors import ConfigError
from fedcl.journal import EVENTS
from fedcl.sweeps.folder import is_sweep
from fedcl.watch.pulse import Pulse
from fedcl.watch.run import RunWatch
from fedcl.watch.sweep import SweepWatch

RUNS = Path("runs")


def watch(directory: Path, *, once: bool = False) -> RunWatch | SweepWatch:
    """Return what shows a run directory, a sweep's folder, or the folder of `fedcl server --state`.

    Args:
        once: for a single look.

    Raises:
        ConfigError: it is none of them.
    """
    directory = directory.absolute()
    if is_sweep(directory):
        return SweepWatch(directory, Pulse([directory], patient=not once))
    for folder, others in ((directory, []), (directory / "run", [directory])):
        if any((folder / name).is_file() for name in ("config.yaml", EVENTS)):
            supervisor = others or ([folder.parent] if (folder.parent / "server.json").is_file() else [])
            return RunWatch(folder, Pulse([folder, *supervisor], patient=not once))
    what = "nothing is there" if not directory.exists() else "it has no config.yaml, no sweep.json and no run/"
    raise ConfigError(f"{str(directory)!r} is no run directory and no sweep: {what}{_newest(directory)}")


def _newest(directory: Path) -> str:
    """Return "; the newest run in RUNS is ..." for the run or sweep below a folder, or below runs/, that wrote last."""
    for base in (directory, RUNS):
        found = [path for depth in ("*", "*/*", "*/*/*") for path in base.glob(f"{depth}/{EVENTS}")]
        if found:
            return f"; the newest below {base} is {max(found, key=lambda path: path.stat().st_mtime).parent}"
    return ""
