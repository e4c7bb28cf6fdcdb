"""The keys of the daemon and of its clients on other machines: who may connect, and what they may ask.

    KEYS/server.key          the server's pair, mode 0600 (or the systemd credential `visaged-server-key`)
    KEYS/clients/NAME.toml   public key and roles of a client; revoking keeps the file and says when
    NAME.key                 what the operator hands over: the client's pair and the server's public key, 0600

All are small TOML files. The folder is read again when it changed, so a revoked client need not wait.
"""

import contextlib
import os
import secrets
import stat
import time
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated, TypeVar

from msgspec import Meta, Struct, structs

from ..pipelines.cache_files import write_atomically
from ..pipelines.errors import ConfigError, VisagedError
from . import toml_file
from .curve import KEY, ClientKey, KeyPair, new_pair, public_of

CREDENTIAL = "visaged-server-key"
SERVER_FILE = "server.key"

Key = Annotated[str, Meta(pattern=f"^{KEY.pattern}$")]
ClientName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class Role(Enum):
    """What a client may do."""

    SUBSCRIBE = "subscribe"  # receive results, ask for the status
    FLAG = "flag"  # say that an answer was wrong
    ENROL = "enrol"  # give names to faces
    ADMIN = "admin"  # everything


class Client(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A client that the daemon knows."""

    name: ClientName
    public: Key
    roles: tuple[Role, ...]
    added_at: str
    revoked_at: str = ""

    def may(self, role: Role) -> bool:
        """Whether the client has `role` now."""
        return not self.revoked_at and (role in self.roles or Role.ADMIN in self.roles)


class _ServerFile(Struct, frozen=True, forbid_unknown_fields=True):
    public: Key
    secret: str  # without a pattern: an error would show what it found


class _ClientFile(Struct, frozen=True, forbid_unknown_fields=True):
    name: ClientName
    public: Key
    secret: str
    server: Key


FileT = TypeVar("FileT", _ServerFile, _ClientFile)


class KeyStore:
    """What is in the folder of keys. Owned by the thread that made it."""

    def __init__(self, folder: Path) -> None:
        """Read `folder`.

        Raises:
            ConfigError: no server key, or one that others can read.
        """
        self._folder = folder
        self._seen: object = None
        self._clients: dict[str, Client] = {}
        self.problems: list[str] = []
        self.server = read_server(folder)
        self.refresh()

    def refresh(self) -> bool:
        """Read the folder again if it changed; return whether it says something else now.

        What cannot be read admits nobody and is a sentence in `problems`; the server keeps its old key.
        """
        before = self.server, self._clients, self.problems
        try:
            seen = [_stamp(path) for path in (server_file(self._folder), *client_files(self._folder))]
            if seen == self._seen:
                return False
            clients, self.problems = read_clients(self._folder)
        except OSError as error:  # no file descriptor left: a flood must not keep a revoked client in
            seen, clients, self.problems = [], [], [f"{self._folder} cannot be read ({error})"]
        try:
            self.server = read_server(self._folder)
        except ConfigError as error:
            self.problems = [*self.problems, f"the server key is not replaced: {error}"]
        self._clients = {client.public: client for client in clients}
        self._seen = None if self.problems else seen  # what failed is tried again
        return (self.server, self._clients, self.problems) != before

    def find(self, public: str) -> Client | None:
        """Return the client with this public key, revoked or not."""
        return self._clients.get(public)

    def having(self, role: Role) -> set[str]:
        """Return the public keys that have `role` now."""
        return {public for public, client in self._clients.items() if client.may(role)}


def server_file(folder: Path) -> Path:
    """Return where the server's pair is: the systemd credential if there is one, else in `folder`."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    if credentials and (credential := Path(credentials) / CREDENTIAL).exists():
        return credential
    return folder / SERVER_FILE


def read_server(folder: Path) -> KeyPair:
    """Return the server's pair.

    Raises:
        ConfigError: missing, readable by others, or no key file.
    """
    path = server_file(folder)
    if not path.exists():
        raise ConfigError(f"there is no server key {path}; make one with `visaged keys init`")
    file = _read_secret(path, _ServerFile)
    return KeyPair(file.public, file.secret)


def read_client(path: Path) -> ClientKey:
    """Return the client's pair and server key in `path`, as `visaged keys add` wrote it.

    Raises:
        ConfigError: missing, readable by others, or no key file.
    """
    file = _read_secret(path, _ClientFile)
    return ClientKey(file.name, KeyPair(file.public, file.secret), file.server)


def client_files(folder: Path) -> list[Path]:
    """Return the file of every client, revoked ones too."""
    return sorted((folder / "clients").glob("[!.]*.toml"))


def read_clients(folder: Path) -> tuple[list[Client], list[str]]:
    """Return the clients, and a sentence for every file that cannot be used."""
    clients, problems = [], []
    for path in client_files(folder):
        try:
            clients.append(toml_file.decode(toml_file.read_file(path), Client, str(path)))
        except ConfigError as error:
            problems.append(str(error))
    return clients, problems


def create_server(folder: Path) -> KeyPair:
    """Write a new pair for the server and return it.

    Raises:
        VisagedError: there is one already, or the folder cannot be written.
    """
    if server_file(folder).exists():
        raise VisagedError(
            f"{server_file(folder)} exists; `visaged keys rotate` replaces it, and every client needs to know"
        )
    _make_folder(folder)
    pair = new_pair()
    _write_secret(folder / SERVER_FILE, server_lines(pair))
    return pair


def rotate_server(folder: Path) -> KeyPair:
    """Replace the pair of the server and return the new one; clients must then be given its public key.

    Raises:
        VisagedError: there is none, it is a credential of systemd, or the folder cannot be written.
    """
    path = server_file(folder)
    read_server(folder)
    if path.parent != folder:
        raise VisagedError(f"{path} is a credential of systemd; replace it there and restart the daemon")
    pair = new_pair()
    _write_secret(path, server_lines(pair), may_replace=True)
    return pair


def add_client(folder: Path, name: str, roles: Iterable[Role], to: Path) -> Client:
    """Make a pair for `name`: its public key is kept in `folder`, the secret goes to the file `to` only.

    Raises:
        VisagedError: the name is taken or malformed, or a file exists or cannot be written.
        ConfigError: there is no server key yet.
    """
    server = read_server(folder)
    path = folder / "clients" / f"{name}.toml"
    known, _ = read_clients(folder)
    if any(client.name == name and not client.revoked_at for client in known):
        raise VisagedError(f"there is a client {name} already; revoke it first, or choose another name")
    pair = new_pair()
    values = {
        "name": name,
        "public": pair.public,
        "roles": [role.value for role in roles],
        "added_at": _now(),
    }
    client = toml_file.decode(values, Client, f"client {name}")
    _make_folder(folder)
    _write_secret(to, client_key_lines(ClientKey(name, pair, server.public)))
    try:
        write_atomically(path, client_lines(client).encode())
    except OSError as error:
        to.unlink(missing_ok=True)
        raise VisagedError(f"{path} cannot be written ({error.strerror}); check the folder") from error
    return client


def revoke_client(folder: Path, name: str) -> Client:
    """Take all rights from `name`, at once, and return what is known of it.

    Raises:
        VisagedError: there is no such client, or it is revoked already.
    """
    known, _ = read_clients(folder)
    client = next((client for client in known if client.name == name), None)
    if client is None or client.revoked_at:
        others = ", ".join(c.name for c in known if not c.revoked_at) or "none"
        raise VisagedError(f"there is no client {name} to revoke; those that may connect: {others}")
    client = structs.replace(client, revoked_at=_now())
    try:
        write_atomically(folder / "clients" / f"{name}.toml", client_lines(client).encode())
    except OSError as error:
        raise VisagedError(f"{name} is NOT revoked: {folder} cannot be written ({error.strerror})") from error
    return client


def server_lines(pair: KeyPair) -> str:
    """Return the text of a server key file."""
    return (
        f"# visaged: whoever has this file can pretend to be this daemon\n"
        f'public = "{pair.public}"\nsecret = "{pair.secret}"\n'
    )


def client_key_lines(key: ClientKey) -> str:
    """Return the text of the file that is handed to a client."""
    return (
        f"# visaged: whoever has this file may do what {key.name} may; hand it over and keep no copy\n"
        f'name = "{key.name}"\npublic = "{key.pair.public}"\nsecret = "{key.pair.secret}"\n'
        f"# the daemon's public key; changes when its operator runs `visaged keys rotate`\n"
        f'server = "{key.server}"\n'
    )


def client_lines(client: Client) -> str:
    """Return the text of the file that the daemon keeps of a client."""
    roles = ", ".join(f'"{role.value}"' for role in client.roles)
    return (
        f'name = "{client.name}"\npublic = "{client.public}"\nroles = [{roles}]\n'
        f'added_at = "{client.added_at}"\nrevoked_at = "{client.revoked_at}"\n'
    )


def _read_secret(path: Path, kind: type[FileT]) -> FileT:
    document = toml_file.read_file(path)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ConfigError(f"the key file {path} can be read by others; run  chmod 600 {path}")
    file = toml_file.decode(document, kind, str(path))
    if not KEY.fullmatch(file.secret) or public_of(file.secret) != file.public:
        raise ConfigError(f"public and secret key in {path} are no pair; write the file anew")
    return file


def _make_folder(folder: Path) -> None:
    try:
        (folder / "clients").mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise VisagedError(f"cannot make {folder} ({error.strerror}); set [remote] keys") from error


def _write_secret(path: Path, text: str, *, may_replace: bool = False) -> None:
    """Write `path`, mode 0600, whole or not at all."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if may_replace:
            draft.replace(path)
        else:
            os.link(draft, path)
    except FileExistsError as error:
        raise VisagedError(f"{path} exists and is left as it is; move it away or choose another") from error
    except OSError as error:
        raise VisagedError(f"{path} cannot be written ({error.strerror}); check the folder") from error
    finally:
        draft.unlink(missing_ok=True)


def _stamp(path: Path) -> tuple[str, int, int]:
    with contextlib.suppress(OSError):
        status = path.stat()
        return str(path), status.st_ino, status.st_mtime_ns
    return str(path), 0, 0


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
