"""The nodes that may take part: their public keys in the server's folder, registered with the SuperLink."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedcl import certs, files, kept, writing
from fedcl.errors import ConfigError, nearest
from fedcl.journal import write_json
from fedcl.real.flower import Link


@dataclass(frozen=True, kw_only=True)
class Member:
    """A node that may take part."""

    name: str  # of its file, hospital-a
    key: str  # the name that it has by its key (`fedcl.names`)


@dataclass(frozen=True)
class Nodes:
    """`nodes/NAME.pub` are those that may take part; `registered.json` has Flower's ids of those that it knows."""

    state: Path  # the server's folder

    @property
    def _folder(self) -> Path:
        return self.state / "nodes"

    @property
    def registered(self) -> dict[str, str]:
        """Flower's id by name."""
        path = self._folder / "registered.json"
        return kept.read_json(path) if path.exists() else {}

    @property
    def names(self) -> list[str]:
        """Those that may take part."""
        return sorted(path.stem for path in self._folder.glob("*.pub"))

    @property
    def keys(self) -> dict[str, str]:
        """The name that each of them has by its key (`fedcl.names`), by the name of its file."""
        return {name: self._key(name) for name in self.names}

    def _key(self, name: str) -> str:
        return certs.node_name(certs.load_node_public((self._folder / f"{name}.pub").read_bytes()))

    def member(self, flower_id: int) -> Member | None:
        """Return who has an id of Flower's, None if nobody here has."""
        found = [name for name, known in self.registered.items() if known == str(flower_id)]
        try:
            return Member(name=found[0], key=self._key(found[0])) if found else None
        except (OSError, ValueError):  # taken away meanwhile
            return None

    def add(self, keys: Sequence[Path]) -> list[str]:
        """Take public keys in, by the names of their files, and return the names.

        Raises:
            ConfigError: a file is no public key, or another key has its name already; nothing is taken in.
        """
        held = {key: _checked(key, self._folder / key.name) for key in keys}
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for key, data in held.items():
            writing.write(self._folder / key.name, data)
        return [key.stem for key in keys]

    def remove(self, names: Sequence[str], link: Link | None) -> None:
        """Let nodes in no more.

        Args:
            link: the SuperLink that runs; None: it does not.

        Raises:
            ConfigError: a name is not known, or the SuperLink that knows it does not run.
        """
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise ConfigError(f"node {unknown[0]!r} is not known{nearest(unknown[0], self.names)}")
        ids = self.registered
        for name in names:
            if name in ids and link is None:
                raise ConfigError(f"node {name!r} is registered with a SuperLink: start fedcl server, then remove it")
            if name in ids and link is not None:
                link.unregister(ids.pop(name))
                write_json(self._folder / "registered.json", ids)
            (self._folder / f"{name}.pub").unlink()

    def register(self, link: Link) -> list[str]:
        """Tell a SuperLink of those that it does not know yet, and return their names."""
        ids, fresh = self.registered, []
        for name in self.names:
            if name not in ids:
                ids[name] = link.register(self._folder / f"{name}.pub")
                write_json(self._folder / "registered.json", ids)
                fresh.append(name)
        return fresh


def _checked(key: Path, kept: Path) -> bytes:
    data = files.named(key, "nodes add", files.KEY)
    if key.suffix != ".pub":
        raise ConfigError(f"{str(key)!r}: name the public key, NAME.pub, which fedcl certs has made beside NAME.key")
    certs.checked_name(key.stem)
    try:
        certs.load_node_public(data)
    except ValueError as error:
        raise ConfigError(f"{str(key)!r} is no public key of a node ({error})") from error
    if kept.exists() and kept.read_bytes() != data:
        raise ConfigError(f"node {key.stem!r} has another key already: fedcl server nodes remove {key.stem} first")
    return data


def read_link(state: Path) -> Link:
    """Return the SuperLink of a server's folder, as it was started last.

    Raises:
        ConfigError: none was.
    """
    try:
        facts = kept.read_json(state / "server.json")
        tls = Path(facts["tls"]) if facts["tls"] else None
        return link_of(state, host=facts["host"], port=facts["port"], tls=tls, auth=facts["auth"])
    except (kept.Damaged, KeyError, TypeError) as error:
        what = f"--state {str(state)!r} is no folder of a server (server.json: {error})"
        raise ConfigError(f"{what}: fedcl server SCENARIO --state makes one") from error


def link_of(state: Path, *, host: str, port: int, tls: Path | None, auth: bool) -> Link:
    """Return the SuperLink of a server's folder."""
    return Link(host=host, port=port, database=state / "superlink.db", home=state / "flwr", tls=tls, auth=auth)


def write_link(state: Path, link: Link) -> None:
    """Remember how the SuperLink is reached, for `fedcl server nodes`."""
    tls = str(link.tls) if link.tls else None
    write_json(state / "server.json", {"host": link.host, "port": link.port, "tls": tls, "auth": link.auth})
