"""One photo, other views: turned as asked, still the same person, whole, and untouched far from the face."""

import numpy as np
import numpy.typing as npt
import pytest
from visaged.pipelines.synthesis.admission import Admission, KnownFace
from visaged.pipelines.synthesis.pose import fit_pose
from visaged.pipelines.synthesis.renderer import Rendering, Source, View, frontalised, render

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

YAWS = (-30, -20, -10, 0, 10, 20, 30)


@pytest.fixture(scope="module")
def turned(known: KnownFace) -> list[Rendering]:
    return [render(known.source, View(yaw=yaw)) for yaw in YAWS]


def nose_share(landmarks: F32) -> float:
    """Where the nose is between the outer corners of the eyes: 0 at the left one, 1 at the right one."""
    right, left, nose = (landmarks[index].astype(np.float64) for index in (0, 2, 4))
    return float((nose - left) @ (right - left) / ((right - left) @ (right - left)))


def test_the_head_is_turned_further_the_more_is_asked(turned: list[Rendering], admission: Admission) -> None:
    found = [admission.known_face(rendering.photo).source.landmarks for rendering in turned]

    shares = [nose_share(landmarks) for landmarks in found]
    assert shares == sorted(shares)
    assert shares[-1] - shares[0] > 0.3
    assert [rendering.yaw for rendering in turned] == sorted(rendering.yaw for rendering in turned)


def test_landmarks_are_where_the_detector_finds_them(turned: list[Rendering], admission: Admission) -> None:
    for rendering in turned:
        found = admission.known_face(rendering.photo).source.landmarks
        apart = np.linalg.norm(found - rendering.landmarks, axis=1)
        assert apart.mean() < 0.1 * np.linalg.norm(found[0] - found[2])


def test_at_30_degrees_it_is_still_the_same_person(
    turned: list[Rendering], known: KnownFace, admission: Admission
) -> None:
    distances = [admission.judge(known, rendering).distance for rendering in turned]

    assert max(distances) < 0.6
    assert distances[3] < 0.02 < distances[0]


def test_hardly_a_pixel_is_made_up(turned: list[Rendering]) -> None:
    assert max(rendering.hole_share for rendering in turned) < 0.01


def test_a_view_that_asks_for_nothing_gives_the_photo_back(known: KnownFace) -> None:
    same = render(known.source, View()).photo

    assert np.abs(same.astype(int) - known.source.photo).max() <= 1


def test_what_is_far_from_the_face_stays_as_it_is(turned: list[Rendering], known: KnownFace) -> None:
    assert np.array_equal(turned[0].photo[320:], known.source.photo[320:])
    assert turned[0].photo.shape == known.source.photo.shape


def test_light_from_a_side_brightens_that_side_only(known: KnownFace) -> None:
    lit = render(known.source, View(light=(-1, 0, 0.5))).photo.astype(float)
    x, y = known.source.landmarks[[1, 3]].mean(axis=0).astype(int)
    cheeks = slice(y + 15, y + 35)
    left, right = np.s_[cheeks, x - 35 : x - 15], np.s_[cheeks, x + 15 : x + 35]

    before = known.source.photo.astype(float)
    assert lit[left].mean() / before[left].mean() > lit[right].mean() / before[right].mean() + 0.2


@pytest.mark.parametrize("yaw", [-30, -25, 25, 30])
def test_frontalising_a_turned_face_turns_it_back(known: KnownFace, admission: Admission, yaw: int) -> None:
    side = admission.known_face(render(known.source, View(yaw=yaw)).photo)

    frontal = frontalised(side.source)

    assert frontal is not None
    after = admission.known_face(frontal.photo)
    assert abs(nose_share(after.source.landmarks) - 0.5) < 0.6 * abs(nose_share(side.source.landmarks) - 0.5)
    assert np.linalg.norm(after.embedding - known.embedding) < 0.6


def test_a_face_that_looks_ahead_is_not_frontalised(known: KnownFace) -> None:
    assert frontalised(known.source) is None


def test_a_face_at_the_border_and_a_huge_one_are_rendered(known: KnownFace) -> None:
    photo = known.source.photo
    x, y = known.source.landmarks.mean(axis=0).astype(int)
    corner = np.ascontiguousarray(photo[y - 40 :, x - 40 :])
    landmarks = (known.source.landmarks - [x - 40, y - 40]).astype(np.float32)
    large = np.repeat(np.repeat(photo, 4, axis=0), 4, axis=1)

    cut = render(Source.of(corner, landmarks), View(yaw=20))
    huge = Source.of(large, known.source.landmarks * 4)

    assert cut.photo.shape == corner.shape and cut.hole_share < 0.01
    assert huge.photo.shape[0] < large.shape[0]
    assert fit_pose(huge.landmarks).yaw == known.source.pose.yaw


def test_what_is_no_photo_is_refused(known: KnownFace) -> None:
    with pytest.raises(ValueError, match="uint8"):
        Source.of(np.zeros((9, 9, 3)), known.source.landmarks)  # type: ignore[arg-type]
