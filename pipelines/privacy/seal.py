"""Seal what is stored of people (AES-256-GCM), and sign receipts (Ed25519). The door to cryptography.

A key file holds one 256-bit key per line as hex digits; the last line seals or signs, all lines open, so a
key is rotated by appending one. A sealed value is `key id (4) | nonce (12) | ciphertext and tag`.
"""

import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import Self, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Struct

from ..cache_files import sync_folder
from ..errors import StoreError

KEY_BYTES, KEY_ID_BYTES, NONCE_BYTES = 32, 4, 12
Record = TypeVar("Record", bound=Struct)


def credential(name: str) -> Path | None:
    """Return the file of the credential that systemd gave us as `name`, or None."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return path if folder and (path := Path(folder, name)).exists() else None


class Sealer:
    """Seals and opens bytes; a value opens only under the place (`context`) it was sealed for."""

    def __init__(self, keys: list[bytes]) -> None:
        self._ciphers = {key_id(key): AESGCM(key) for key in keys}
        self._active = key_id(keys[-1])

    @property
    def key_id(self) -> str:
        """Name of the key that seals, as hex digits; says nothing about the key."""
        return self._active.hex()

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read the keys in `path`: a file of mode 0600 or a systemd credential.

        Raises:
            StoreError: missing, readable by others, or no key file.
        """
        return cls(read_keys(path))

    def seal(self, plain: bytes, context: str) -> bytes:
        """Return `plain` sealed for `context`, which is not stored but needed to open it."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        cipher = self._ciphers[self._active]
        return self._active + nonce + cipher.encrypt(nonce, plain, context.encode())

    def open(self, sealed: bytes, context: str) -> bytes:
        """Return what was sealed for `context`.

        Raises:
            StoreError: sealed with another key, for another place, or changed since.
        """
        key_id, nonce = sealed[:KEY_ID_BYTES], sealed[KEY_ID_BYTES:][:NONCE_BYTES]
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise StoreError(
                f"{context} was sealed with key {key_id.hex()}, which the key file does not have"
            )
        try:
            return cipher.decrypt(nonce, sealed[KEY_ID_BYTES + NONCE_BYTES :], context.encode())
        except (InvalidTag, ValueError) as error:
            raise StoreError(f"{context} was altered or moved; restore a backup") from error


class Signer:
    """Signs what others shall be able to check without a secret."""

    def __init__(self, keys: list[bytes]) -> None:
        self._keys = [Ed25519PrivateKey.from_private_bytes(key) for key in keys]

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read the keys in `path`, a file of mode 0600.

        Raises:
            StoreError: missing, readable by others, or no key file.
        """
        return cls(read_keys(path))

    @property
    def public(self) -> str:
        """The public key of what `sign` returns, as 64 hex digits."""
        return self.publics[-1]

    @property
    def publics(self) -> list[str]:
        """The public keys of all keys, the oldest first."""
        return [key.public_key().public_bytes_raw().hex() for key in self._keys]

    def sign(self, data: bytes) -> str:
        """Return the signature of `data` as hex digits."""
        return self._keys[-1].sign(data).hex()


def open_signer(state: Path) -> Signer:
    """Return what signs receipts, with the key in `receipts.key`; the key is made when there is none.

    Raises:
        StoreError: it cannot be made or read.
    """
    path = receipts_key(state)
    create_key_file(path)
    return Signer.from_file(path)


def receipts_key(state: Path) -> Path:
    """Return where the key is that signs receipts, and what was cut off the audit log."""
    return state / "receipts.key"


def signed(record: Record, signer: Signer) -> Record:
    """Return a record with its `signature`, of everything else in it; its `key` is `signer.public`."""
    return msgspec.structs.replace(record, signature=signer.sign(_signed_part(record)))


def is_genuine(record: Struct, signature: str, public: str) -> bool:
    """Return whether a record is as it was when it got its signature with that key, both hex."""
    return is_signed(_signed_part(record), signature, public)


def _signed_part(record: Struct) -> bytes:
    return msgspec.json.encode(msgspec.structs.replace(record, signature=""))


def is_signed(data: bytes, signature: str, public: str) -> bool:
    """Return whether `signature` of `data` was made with the key whose public half is `public`, both hex."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), data)
    except (InvalidSignature, ValueError):
        return False
    return True


def read_keys(path: Path) -> list[bytes]:
    """Return the keys in `path`, the oldest first: a file of mode 0600 or a systemd credential.

    Raises:
        StoreError: missing, readable by others, or no key file.
    """
    try:
        mode, text = path.stat().st_mode, path.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"the key file {path} cannot be read ({error}); restore it") from error
    # systemd lets our user read a credential by an access list, whose mask shows as the group's bits
    if stat.S_IMODE(mode) & (0o037 if path == credential(path.name) else 0o077):
        raise StoreError(f"the key file {path} can be read by others; run `chmod 600 {path}`")
    try:
        keys = [bytes.fromhex(line) for line in text.split()]
    except ValueError:
        keys = []
    if not keys or any(len(key) != KEY_BYTES for key in keys):
        raise StoreError(f"{path} is not a key file (a line of 64 hex digits per key); restore it")
    return keys


def create_key_file(path: Path) -> None:
    """Write a new random key to `path`, mode 0600, whole or not at all; an existing file is left alone.

    Raises:
        StoreError: the folder cannot be written.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        _write_private(draft, secrets.token_hex(KEY_BYTES) + "\n")
        try:
            os.link(draft, path)  # fails if there is one: two processes starting at once agree on one key
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"no key can be written to {path} ({error.strerror}); check the folder") from error


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def key_id(key: bytes) -> bytes:
    """Return the name of a key, which a sealed value begins with."""
    return hashlib.sha256(b"visaged key id" + key).digest()[:KEY_ID_BYTES]
