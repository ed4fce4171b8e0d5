"""fedcl: federated continual learning on Flower and Ray.

What is named here is the public surface; everything else is private. Names load their module at first use, so that
`import fedcl` stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedcl.errors import ConfigError, FederationError
from fedcl.interrupt import Stopped

if TYPE_CHECKING:
    from fedcl.api import load, resume, run, sweep
    from fedcl.config import Scenario
    from fedcl.result import Result
    from fedcl.sweeps.result import SweepResult

__version__ = "0.1.0"
__all__ = [
    "ConfigError", "FederationError", "Result", "Scenario", "Stopped", "SweepResult", "__version__", "load", "resume",
    "run", "sweep",
]  # fmt: skip

_HOME = {
    "Result": "fedcl.result",
    "Scenario": "fedcl.config",
    "SweepResult": "fedcl.sweeps.result",
    **dict.fromkeys(("load", "resume", "run", "sweep"), "fedcl.api"),
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'fedcl' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
