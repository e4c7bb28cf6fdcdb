"""Stable numbers for people nobody enrolled: whoever comes back gets the old one."""

import logging

import numpy as np
import numpy.typing as npt

from ..errors import GalleryError
from .gallery import Gallery
from .matcher import IdentityConfig

F32 = npt.NDArray[np.float32]

log = logging.getLogger(__name__)

MAX_TEMPLATES = 5  # per stranger
NEWS = 0.25  # distance from all its templates at which a look is worth another one
TOUCH_EVERY_NS = 60 * 10**9
SWEEP_EVERY_NS = 60 * 10**9
NEVER_NS = -(10**18)


class Strangers:
    """The strangers of one embedding space: a copy in memory, written through. Owned by one thread."""

    def __init__(self, gallery: Gallery, space: str, config: IdentityConfig) -> None:
        self._gallery, self._space, self._config = gallery, space, config
        self._templates: dict[str, list[F32]] = {}
        self._touched_ns: dict[str, int] = {}
        self._swept_ns = NEVER_NS

    def load(self) -> None:
        """Read the strangers from the gallery again."""
        stored = self._gallery.templates(self._space, strangers=True)
        self._templates = {name: [] for name in stored.names}
        for owner, embedding in zip(stored.owners, stored.embeddings, strict=True):
            self._templates[stored.names[owner]].append(embedding)

    def __contains__(self, name: str) -> bool:
        return name in self._templates

    def recognise(self, embedding: F32) -> str:
        """Return the stranger nearest to `embedding` `(D,)`, if near enough, or an empty name."""
        nearest = sorted(
            (float(np.linalg.norm(np.stack(templates) - embedding, axis=1).min()), name)
            for name, templates in self._templates.items()
            if templates
        )[:2]
        if not nearest or nearest[0][0] >= self._config.stranger_distance:
            return ""
        return nearest[0][1]

    def meet(self, embedding: F32, quality: float) -> str:
        """Return the name of a new stranger who looks like `embedding`; empty when it cannot be stored."""
        try:
            name = self._gallery.add_stranger(embedding, space=self._space, quality=quality)
        except GalleryError as error:  # the face stays unknown without a number; the next look tries again
            log.warning("a stranger was not stored: %s", error)
            return ""
        self._templates[name] = [embedding]
        return name

    def see(self, name: str, embedding: F32, quality: float, captured_ns: int) -> None:
        """Note that a stranger is here, and how they look if that is news."""
        templates = self._templates[name]
        is_news = len(templates) < MAX_TEMPLATES and quality >= self._config.stranger_quality
        is_news = is_news and min(float(np.linalg.norm(t - embedding)) for t in templates) >= NEWS
        if not is_news and captured_ns - self._touched_ns.get(name, NEVER_NS) < TOUCH_EVERY_NS:
            return
        self._touched_ns[name] = captured_ns
        try:
            self._gallery.touch_stranger(
                name, embedding if is_news else None, space=self._space, quality=quality
            )
        except GalleryError as error:
            log.warning("a stranger was not updated: %s", error)
            return
        if is_news:
            templates.append(embedding)

    def drop(self, name: str) -> None:
        """Take back a number that turned out to belong to somebody else."""
        self._templates.pop(name, None)
        try:
            self._gallery.drop_stranger(name)
        except GalleryError as error:
            log.warning("a stranger was not taken back: %s", error)

    def sweep(self, captured_ns: int) -> None:
        """Now and then, delete those who have not been seen for too long."""
        if captured_ns - self._swept_ns < SWEEP_EVERY_NS:
            return
        self._swept_ns = captured_ns
        try:
            expired = self._gallery.expire_strangers(self._config.stranger_ttl_s)
        except GalleryError as error:
            log.warning("strangers were not expired: %s", error)
            return
        if expired:
            log.info("deleted %d strangers not seen for %.0f s", expired, self._config.stranger_ttl_s)
