"""Consent: what a note says, and that a name without one is neither learned nor published."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from visaged.pipelines.errors import GalleryError
from visaged.pipelines.identity.consent import check_note, has_consent
from visaged.pipelines.identity.gallery import Gallery
from visaged.pipelines.identity.identity import Identifier, IdentityConfig

NOON = 1_795_608_000.0  # 2026-11-25, 12:00 UTC
DAY_S = 86_400.0
FACE = np.full((1, 128), 0.05, np.float32)


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    with Gallery(tmp_path, now=lambda: NOON) as gallery:
        yield gallery


def test_a_note_holds_to_the_end_of_its_last_day() -> None:
    note = "signed form 2025-11-25, expires 2026-11-25"

    assert has_consent(note, NOON) and not has_consent(note, NOON + DAY_S)
    assert has_consent("form 7", NOON) and not has_consent(" ", NOON)


@pytest.mark.parametrize("note", ["form, expires 25.11.2027", "Expires never", "expires 2026-02-30"])
def test_an_end_that_nobody_would_heed_is_refused(note: str) -> None:
    with pytest.raises(GalleryError, match="as `expires 2027-11-25`"):
        check_note(note)


def test_where_it_is_required_nobody_is_enrolled_without(gallery: Gallery) -> None:
    identifier = Identifier(gallery, "s", IdentityConfig(require_consent=True), lambda: NOON)

    with pytest.raises(GalleryError, match="Ada is not enrolled without a consent"):
        identifier.enrol("Ada", FACE, source="track")
    assert not gallery.has("Ada")
    assert identifier.enrol("Ada", FACE, source="track", consent="form, expires 2026-11-25") == 1
    assert identifier.enrol("ada", FACE + 0.01, source="track") == 2, "the note is there already"


def test_a_name_is_published_while_consent_holds_and_not_a_day_longer(gallery: Gallery) -> None:
    now = NOON
    gallery.enrol("Ada", FACE, space="s", consent="form, expires 2026-11-25")
    gallery.enrol("Eve", -FACE, space="s")
    required = Identifier(gallery, "s", IdentityConfig(require_consent=True), lambda: now)
    ones = np.ones(1, np.float32)

    assert required.identify("door", [1], FACE, ones, 0)[0].person == "Ada"
    assert required.identify("door", [2], -FACE, ones, 0)[0].state == "unknown"
    free = Identifier(gallery, "s", IdentityConfig(), lambda: now)
    assert free.identify("door", [2], -FACE, ones, 0)[0].person == "Eve"
    now += DAY_S
    assert required.refresh() and not free.refresh()
    assert required.identify("door", [1], FACE, ones, 0)[0].state == "unknown"
