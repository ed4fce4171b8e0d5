"""The app that a SuperLink ships to its nodes: a name and a version, no code.

Flower packs an app's folder (a FAB), sends it to every node and runs what is in it. fedcl's holds nothing but the two
names `server.app:app` and `clients.app:app`, which each machine finds in its own installation. A node takes exactly
this bundle (`problem`): who controls the server does not thereby choose the code that reads a hospital's data.
"""

import hashlib
import io
import zipfile
from pathlib import Path

from fedcl import __version__, writing
from fedcl.names import WARDS

MOST = 1 << 16  # bytes; Flower allows 10 MB
MANIFEST = ".info/CONTENT"  # Flower's list of the files, with their hashes
FILE = "pyproject.toml"
TEXT = f"""\
[project]
name = "fedcl"
version = "{__version__}"
dependencies = []

[tool.flwr.app]
publisher = "fedcl"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "clients.app:app"

[tool.flwr.app.config]
directory = ""
nodes = ""
wards = {WARDS}
"""


def write(folder: Path) -> Path:
    """Write the app that is submitted, and return its folder."""
    app = folder / "fedcl"
    app.mkdir(parents=True, exist_ok=True)
    writing.write(app / FILE, TEXT)
    return app


def problem(bundle: bytes, who: str = "the server sends") -> str | None:
    """Return why a bundle is not the one of the fedcl that is installed here, in a sentence; None: it is.

    Args:
        who: how the sentence begins.
    """
    shown = hashlib.sha256(bundle).hexdigest()[:12]
    what = f"{who} an app (sha256 {shown}...) that is not fedcl {__version__} as it is installed here"
    if len(bundle) > MOST:
        return f"{what}: it has {len(bundle):,} bytes, more than {MOST:,}"
    try:
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            # What an entry unpacks to is bounded before it is read.
            large = [each.filename for each in archive.infolist() if each.file_size > MOST]
            names = {each.filename for each in archive.infolist()}
            strange = sorted(names - {FILE, MANIFEST})
            text = b"" if large or FILE not in names else archive.read(FILE)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError) as error:
        return f"{what}: it cannot be read ({error})"
    if strange:
        return f"{what}: it brings the file {strange[0][:80]!r}"
    if text != TEXT.encode():
        return f"{what}: its {FILE} differs; server and nodes must run the same version of fedcl"
    return None
