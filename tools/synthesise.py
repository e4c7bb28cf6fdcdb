"""`visaged synthesise`: other views of the face in a photo, as a contact sheet, or the frontal one."""

from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console

from ..daemon.config import find_config
from ..pipelines.errors import PhotoError
from ..pipelines.learning.contact_sheet import contact_sheet, write_png
from ..pipelines.model_store import ModelStore
from ..pipelines.photo import read_photo
from ..pipelines.synthesis.admission import Admission, KnownFace, Verdict, build_admission
from ..pipelines.synthesis.ageing import aged
from ..pipelines.synthesis.expressions import EXPRESSIONS, bend
from ..pipelines.synthesis.generator import Generator
from ..pipelines.synthesis.renderer import FRONTALISED, Rendering, Source, View, frontalised, render

U8 = npt.NDArray[np.uint8]


SHOWN_CM = 14.0  # from the middle of a face to the sides of its cell
CELL_PX = 144


def synthesise(
    photo: Annotated[Path, typer.Argument(help="A photo; its largest face counts.")],
    out: Annotated[Path, typer.Option(help="The picture to write, a PNG.")] = Path("synthesis.png"),
    frontal: Annotated[
        bool, typer.Option("--frontal", help="Write the photo with the head turned to the front, no sheet.")
    ] = False,
    generator: Annotated[
        Path | None, typer.Option(help="An ONNX generator, of `visaged train-generator` or your own.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="The TOML file; only its folders count.")] = None,
) -> None:
    """Draw what can be made of one photo of a face: turned, lit, aged, with other expressions.

    Above each picture is how far its face is from the photo's, as dlib's network sees it; X means that it
    would be refused as training material. With --generator a row shows what that network draws.

    Examples:
      visaged synthesise ada.jpg --out sheet.png
      visaged synthesise ada-from-the-side.jpg --frontal --out ada-from-the-front.png
    """
    paths = find_config(config).paths
    drawer = Generator.load(generator) if generator else None
    admission = build_admission(ModelStore(paths.cache, paths.wheels))
    known = face_in(photo, admission)
    pose = known.source.pose
    said = f"{out}: a face at yaw {pose.yaw:.0f}, pitch {pose.pitch:.0f} degrees"
    if frontal:
        rendering = frontal_view(photo, known)
        verdict = admission.judge(known, rendering)
        write_png(rendering.photo, out)
        said += f", turned to the front; {verdict.reason or f'distance {verdict.distance:.2f}'}"
    else:
        rows = [draw(known, admission)]
        if drawer is not None:
            rows.append(draw_generated(known, drawer, admission))
        write_png(stacked(rows), out)
    Console().print(said, soft_wrap=True, highlight=False)


def frontal_view(photo: Path, known: KnownFace) -> Rendering:
    """Return the face turned to the front.

    Raises:
        PhotoError: it looks ahead already, or is turned too far.
    """
    rendering = frontalised(known.source)
    if rendering is None:
        low, high = FRONTALISED
        raise PhotoError(
            f"the face in {photo} is turned by {abs(known.source.pose.yaw):.0f} degrees; turning it back "
            f"works between {low:.0f} and {high:.0f}; take another photo"
        )
    return rendering


def face_in(photo: Path, admission: Admission) -> KnownFace:
    """Return the largest face in the file `photo`.

    Raises:
        PhotoError: not a picture, or no face in it.
    """
    try:
        return admission.known_face(read_photo(photo))
    except PhotoError as error:
        raise error if str(photo) in str(error) else PhotoError(f"{photo}: {error}") from error


def draw(known: KnownFace, admission: Admission) -> U8:
    """Return the sheet, `(H, W, 3)` RGB: a row for each kind of synthesis."""
    rows = []
    for label, made in renderings(known.source).items():
        cells, titles = [], []
        for name, rendering in made.items():
            verdict = admission.judge(known, rendering)
            titles.append(caption(name, verdict))
            cells.append(close_up(rendering.photo, known.source)[None])
        rows.append(contact_sheet(cells, titles, [label], CELL_PX))
    return np.concatenate(rows)


def draw_generated(known: KnownFace, generator: Generator, admission: Admission) -> U8:
    """Return a row of what a generator draws: the face as each of its classes."""
    cells, titles = [], []
    for label in generator.classes:
        picture, verdict = generator.draw(known, label, admission)
        titles.append(caption(label, verdict))
        cells.append(picture[None])
    return contact_sheet(cells, titles, ["generator"], CELL_PX)


def caption(name: str, verdict: Verdict) -> str:
    """Return the line above a picture."""
    known_by = f"{verdict.distance:.2f}" if verdict.is_found else "not found"
    return f"{name}: {known_by}{'' if verdict.is_admitted else ' X'}"


def stacked(rows: list[U8]) -> U8:
    """Return pictures of any width one above the other, on white."""
    width = max(row.shape[1] for row in rows)
    wide = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return np.concatenate(wide)


def renderings(source: Source) -> dict[str, dict[str, Rendering]]:
    """Return what the sheet shows, by row and name."""
    lights = {
        "left": (-1.0, -0.2, 0.4),
        "half left": (-0.7, -0.3, 1.0),
        "above": (0.0, -1.0, 0.5),
        "as it is": None,
        "below": (0.0, 1.0, 0.5),
        "half right": (0.7, -0.3, 1.0),
        "right": (1.0, -0.2, 0.4),
    }
    return {
        "turned": {f"{yaw:+d}": render(source, View(yaw=yaw)) for yaw in (-45, -30, -15, 0, 15, 30, 45)},
        "nodding": {
            f"{pitch:+d}": render(source, View(pitch=pitch)) for pitch in (-30, -20, -10, 0, 10, 20, 30)
        },
        "light": {name: render(source, View(light=light)) for name, light in lights.items()},
        "age": {f"{amount:+.1f}": aged(source, amount) for amount in (-0.9, -0.6, -0.3, 0, 0.4, 0.8, 1.2)},
        "expression": {
            "as it is": render(source, View()),
            **{name: render(source, View(bend=bend(pulls))) for name, pulls in EXPRESSIONS.items()},
            "half a smile": render(source, View(bend=bend(EXPRESSIONS["smile"], 0.5))),
        },
    }


def close_up(photo: U8, source: Source) -> U8:
    """Return the square around the source's face, cut from a rendering of it."""
    middle = source.landmarks.mean(axis=0)
    reach = SHOWN_CM * abs(source.pose.scale_roll)
    low, high = np.floor(middle - reach).astype(int), np.ceil(middle + reach).astype(int)
    side = int((high - low).max())
    rows = np.clip(np.arange(low[1], low[1] + side), 0, photo.shape[0] - 1)
    columns = np.clip(np.arange(low[0], low[0] + side), 0, photo.shape[1] - 1)
    square: U8 = photo[rows[:, None], columns]
    return square
