"""Forget a person wherever something is stored of them, and sign a receipt that does not say who it was.

The order is: ids of the samples into the releases' list, samples, gallery, receipt. Whoever is interrupted
asks again by the name; the second receipt says what was left to do.
"""

import hashlib
import hmac
import secrets
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from ..cache_files import sync_folder, write_atomically
from ..errors import StoreError
from ..identity.gallery import Gallery
from ..identity.person import Removed
from ..loop.lineage import Erased, note_erased
from ..loop.sample_store import SampleStore
from .audit import note
from .seal import is_genuine, open_signer, signed

CODE_BYTES = 16
PRIVATE = 0o600


class Receipt(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was erased of one person: counts of each store, and the releases that had learned from them.

    `at` is in seconds since 1970. `person` is the name under a code (`name_hash`) that is told once and kept
    nowhere. `checkpoints` are unfinished rounds of learning. `is_scrubbed`: no byte was left in a log.
    `key` is the public key of `signature`, both hex.
    """

    id: str
    at: float
    person: str
    templates: int
    negatives: int
    merges: int
    samples: int
    checkpoints: int
    releases: tuple[str, ...]
    is_scrubbed: bool
    key: str
    signature: str = ""

    @property
    def is_genuine(self) -> bool:
        """Whether it is as it was when it was signed with `key`."""
        return is_genuine(self, self.signature, self.key)


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Who was forgotten, under which names, the signed receipt, its file, and the code for the person."""

    names: tuple[str, ...]
    receipt: Receipt
    path: Path
    code: str


def forget(name: str, gallery: Gallery, samples: SampleStore, state: Path) -> Forgotten:
    """Erase everything in the folder `state` about a person or stranger, and everyone merged into them.

    Raises:
        GalleryError: nobody has that name, and no sample either.
        StoreError: something cannot be written; asking again goes on from there.
    """
    signer, number = open_signer(state), gallery.number_of(name)
    exact = gallery.name_of(name)
    aliases = next((person.aliases for person in gallery.people() if person.name == exact), ())
    erased, releases = Erased(secrets.token_hex(6), gallery.now()), list[str]()
    n_samples, is_scrubbed = samples.forget(
        [exact, *aliases], lambda ids: releases.extend(note_erased(state, ids, erased))
    )
    n_checkpoints = _drop_checkpoints(state) if n_samples else 0
    if n_samples and not gallery.has(name):
        removed = Removed(person=exact, aliases=(), templates=0, negatives=0, merges=0, is_scrubbed=True)
    else:
        removed = gallery.forget(name)
    code = secrets.token_hex(CODE_BYTES)
    unsigned = Receipt(
        id=erased.receipt,
        at=erased.at,
        person=name_hash(removed.person, code),
        templates=removed.templates,
        negatives=removed.negatives,
        merges=removed.merges,
        samples=n_samples,
        checkpoints=n_checkpoints,
        releases=tuple(releases),
        is_scrubbed=is_scrubbed and removed.is_scrubbed,
        key=signer.public,
    )
    receipt = signed(unsigned, signer)
    note(state, "forget", person=number, detail=f"receipt {receipt.id}")
    names = (removed.person, *removed.aliases)
    return Forgotten(names, receipt, write_receipt(receipt, state / "receipts"), code)


def name_hash(name: str, code: str) -> str:
    """Return the HMAC-SHA256 of a name, however it is capitalised, under a code of hex digits."""
    plain = unicodedata.normalize("NFC", " ".join(name.split())).casefold()
    return hmac.new(code.encode(), plain.encode(), hashlib.sha256).hexdigest()


def write_receipt(receipt: Receipt, folder: Path) -> Path:
    """Keep a receipt in `folder` and return its file.

    Raises:
        StoreError: it cannot be written.
    """
    path = folder / f"{receipt.id}.json"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        write_atomically(path, msgspec.json.format(msgspec.json.encode(receipt)), PRIVATE)
        sync_folder(folder)
    except OSError as error:
        raise StoreError(
            f"all is erased, but the receipt {path} cannot be written ({error.strerror}); free space"
        ) from error
    return path


def read_receipt(path: Path) -> Receipt:
    """Return the receipt in `path`, whether or not it is genuine.

    Raises:
        StoreError: there is none, or it is no receipt.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Receipt)
    except (OSError, msgspec.DecodeError) as error:
        raise StoreError(f"{path} is no receipt that can be read ({error})") from error


def _drop_checkpoints(state: Path) -> int:
    """Remove unfinished rounds of learning, which may hold what was learned from the samples."""
    found = list((state / "learning").glob("checkpoint-*"))
    for path in found:
        path.unlink(missing_ok=True)
    return len({path.stem.split("-")[1] for path in found})  # a round has one for each network and stage
