"""What the pictures show, read back from their pixels."""

import numpy as np
import numpy.typing as npt
import pytest
from visaged.pipelines.message import EMOTIONS, Emotion, Face, FaceFrame, Identity
from visaged.tools.drawing import (
    EMOTION_COLOURS,
    PEOPLE,
    STRANGER,
    Moment,
    annotate,
    colour_of,
    contact_sheet,
    emotion_strip,
    name_of,
)

GREY = 90


def frame_of(*faces: Face) -> FaceFrame:
    return FaceFrame(
        camera="door", run="r", seq=1, frame_seq=7, captured_ns=0, captured_at=0.0, published_ns=1,
        width=1280, height=720, release="", embedding_space="", embedding_dim=0, faces=list(faces),
    )  # fmt: skip


def plain(height: int = 720, width: int = 1280) -> npt.NDArray[np.uint8]:
    return np.full((height, width, 3), GREY, dtype=np.uint8)


def share_of(colour: tuple[int, int, int], pixels: npt.NDArray[np.uint8], tolerance: int = 40) -> float:
    near = np.abs(pixels.astype(int) - np.array(colour)).max(axis=-1) <= tolerance
    return float(near.mean())


def test_a_box_lies_where_the_face_is_after_scaling() -> None:
    ann = Face(track=1, box=(400, 300, 600, 500), identity=Identity(state="known", person="Ann"))

    picture = annotate(plain(), frame_of(ann), width=640)

    left_edge = picture[170:230, 200]  # frame px (400, 340..460)
    assert picture.shape == (360, 640, 3)
    assert share_of(colour_of(ann), left_edge) > 0.9
    assert (picture[200:240, 220:280] == GREY).all(), "the face itself stays uncovered"


def test_the_frame_given_is_not_changed() -> None:
    rgb = plain(360, 640)

    annotate(rgb, frame_of(Face(track=1, box=(100, 100, 300, 300))), width=640)

    assert (rgb == GREY).all()


def test_a_coasting_face_has_a_dashed_box() -> None:
    box = (400.0, 300.0, 800.0, 700.0)

    seen = annotate(plain(), frame_of(Face(track=1, box=box)))
    coasting = annotate(plain(), frame_of(Face(track=1, box=box, is_visible=False)))

    assert share_of(STRANGER, seen[160:340, 200]) > 0.9
    assert 0.3 < share_of(STRANGER, coasting[160:340, 200]) < 0.8


@pytest.mark.parametrize("box", [(-50, -40, 60, 50), (1240, 680, 1400, 800), (0, 0, 1280, 720), (5, 5, 6, 6)])
def test_faces_at_the_border_do_not_break_the_drawing(box: tuple[float, float, float, float]) -> None:
    emotion = Emotion(label="happiness", probability=0.9)

    picture = annotate(plain(), frame_of(Face(track=123456, box=box, emotion=emotion)))

    assert (picture != GREY).any()


def test_a_person_keeps_a_colour_and_strangers_are_grey() -> None:
    known = [Face(track=t, box=(0, 0, 9, 9), identity=Identity(state="known", person="Ann")) for t in (1, 99)]
    stranger = Face(track=3, box=(0, 0, 9, 9), identity=Identity(state="unknown", person="unknown-4"))

    assert colour_of(known[0]) == colour_of(known[1])
    assert colour_of(known[0]) in PEOPLE
    assert colour_of(stranger) == STRANGER


def test_doubt_is_written_with_a_question_mark() -> None:
    box = (0.0, 0.0, 9.0, 9.0)

    assert name_of(Face(track=3, box=box, identity=Identity(state="uncertain", person="Ann"))) == "Ann?"
    assert name_of(Face(track=3, box=box)) == "track 3"


def test_a_sheet_holds_every_moment() -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]
    moments = [Moment(np.full((90, 160, 3), c, dtype=np.uint8), f"{i} s") for i, c in enumerate(colours)]

    sheet = contact_sheet("demo", moments, columns=3, tile_width=160)

    shares = [share_of(c, sheet, 5) * sheet.shape[0] * sheet.shape[1] for c in colours]
    assert shares == pytest.approx([160 * 90] * 5, rel=0.01)


def test_a_sheet_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one moment"):
        contact_sheet("demo", [])


def test_the_strip_shows_each_emotion_at_its_time_and_gaps_dark() -> None:
    def only(label: str) -> list[float]:
        return [1.0 if label == name else 0.0 for name in EMOTIONS]

    samples = [(t / 10, only("sadness")) for t in range(80)]
    samples += [(t / 10, only("happiness")) for t in range(120, 200)]

    strip = emotion_strip("door", samples, 20.0, size=(800, 120))

    band = strip[40:90]  # below the legend, above the seconds
    assert share_of(EMOTION_COLOURS["sadness"], band[:, 20:300], 5) == 1.0
    assert share_of(EMOTION_COLOURS["happiness"], band[:, 500:780], 5) == 1.0
    assert share_of((24, 26, 31), band[:, 350:450], 5) == 1.0


def test_an_empty_strip_is_dark() -> None:
    strip = emotion_strip("door", [], 20.0, size=(800, 120))

    assert share_of((24, 26, 31), strip[40:90], 5) == 1.0
