"""fedcl: federated continual learning on Flower and Ray.

What is named here is the public surface; everything else is private. Names load their module at first use, so that
`import fedcl` stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedcl.errors import ConfigError, FederationError

if TYPE_CHECKING:
    from fedcl.api import Outcome, Run, load, resume, run
    from fedcl.config import Scenario

__version__ = "0.1.0"
__all__ = ["ConfigError", "FederationError", "Outcome", "Run", "Scenario", "__version__", "load", "resume", "run"]

_HOME = {"Scenario": "fedcl.config", **dict.fromkeys(("Outcome", "Run", "load", "resume", "run"), "fedcl.api")}


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'fedcl' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
