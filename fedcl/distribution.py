"""What fedcl is called where packages are installed, and which versions are there.

`fedcl` on the package index is a stranger's package: import name and command are fedcl, the distribution is not.
"""

from importlib import metadata

from fedcl import __version__

DISTRIBUTION = "fedcl-flower"


def install(*extras: str) -> str:
    """Return the command that installs fedcl with extras.

    pip takes the fedcl-flower that is there, also one from a checkout, and adds what the extras need.
    """
    return f"pip install '{DISTRIBUTION}[{','.join(extras)}]'" if extras else f"pip install {DISTRIBUTION}"


def installed(package: str) -> str | None:
    """Return the version of a distribution, None if it is not there; of fedcl that of the code which runs."""
    if package == "fedcl":
        return __version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
