"""When the daemon learns from its samples, and how much: pure, no clock and no disk."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct


class LearningConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the networks learn emotions from labelled samples, beside the daemon. See docs/loop.md."""

    enabled: bool = False
    """Learn in a process of its own, at the lowest priority. Needs the extra `learn` (torch). What is learned
    is a candidate: it serves when it is promoted, not before."""
    after_samples: Annotated[int, Meta(ge=1, le=100_000)] = 20
    """New labels since the last round after which the next one begins."""
    every_h: Annotated[float, Meta(ge=0, le=8760)] = 24.0
    """Hours after which a round begins with fewer new labels, if there is one; 0: never for that reason."""
    min_samples: Annotated[int, Meta(ge=1, le=100_000)] = 10
    """Corrected samples that a round needs to learn from, besides those it is measured on."""
    max_steps: Annotated[int, Meta(ge=20, le=10_000)] = 200
    """Steps of training at most, of 32 new faces and 32 remembered ones each: for every network that
    learns, and once more for its end part."""
    end_part: bool = False
    """After its dense layers, let the last convolutions of a network learn too; never those of the one that
    embeds faces. Needs a base memory that was made with this on. In trials it brought nothing
    (docs/learning.md)."""
    losses: dict[
        Literal["cross_entropy", "generalised_cross_entropy", "centre", "island", "tuplet_clusters"],
        Annotated[float, Meta(ge=0)],
    ] = msgspec.field(default_factory=lambda: {"cross_entropy": 1.0})
    """What is minimised on new faces, and how much each counts; by default `cross_entropy = 1.0` alone.
    Beside few faces of few people losses on features rarely help (docs/learning.md)."""
    restyled: Annotated[float, Meta(ge=0, le=10)] = 1.0
    """How much remembered faces count that were moved to where the site's faces lie, which carries a change
    of light or camera over to every expression; 0: they are not made. Needs a base memory."""
    augmented_views: Annotated[int, Meta(ge=0, le=16)] = 0
    """Altered copies of each corrected face to learn from as well."""
    augmentation: Literal["face", "slides", "base"] = "face"
    """How these copies are altered: a preset of docs/learning.md."""
    rendered_view: bool = False
    """One more copy of each corrected face, turned, lit or aged by a 3D model of it."""
    pause_above_ms: Annotated[float, Meta(gt=0, le=60_000)] = 150.0
    """Age of the published frames (99 of 100 are younger) in ms beyond which learning waits."""


def is_due(config: LearningConfig, n_new: int, since_s: float | None) -> bool:
    """Return whether a round should begin.

    Args:
        config: when it should.
        n_new: labels that the last round did not know.
        since_s: seconds since the last round; None when there was none.
    """
    if n_new >= config.after_samples:
        return True
    return bool(n_new and config.every_h and since_s is not None and since_s >= config.every_h * 3600)
