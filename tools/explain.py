"""`visaged explain`: a picture of where the emotion network looks on a face, and of what its layers see."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cv2
import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console

from ..daemon.config import find_config
from ..kernels.chips import cut_chip, to_input
from ..pipelines.detector import build_photo_detector
from ..pipelines.errors import ConfigError, PhotoError
from ..pipelines.importers.dlib_dat import read_face_resnet
from ..pipelines.importers.emotion_head import read_head
from ..pipelines.model_store import HEAD_PATH, ModelStore
from ..pipelines.photo import read_photo
from ..pipelines.registry import FACE_RESNET

if TYPE_CHECKING:
    from ..pipelines.learning.explainer import Explanation

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

WEIGHTS = "dlib_face_recognition_resnet_model_v1.dat"
TILE_PX, BAND_PX, GAP_PX = 240, 26, 8
WHITE, DARK = (255, 255, 255), (40, 40, 40)


def explain(
    photo: Annotated[Path, typer.Argument(help="A photo; its largest face counts.")],
    emotion: Annotated[
        str, typer.Option(help="The emotion to explain; the one that is seen when left out.")
    ] = "",
    out: Annotated[Path, typer.Option(help="The picture to write, a PNG.")] = Path("explain.png"),
    config: Annotated[Path | None, typer.Option(help="The TOML file; only its folders count.")] = None,
) -> None:
    """Draw what makes the emotion network see an emotion in a face.

    The picture shows the face as the network gets it; where it looks (Grad-CAM); what speaks for the emotion,
    green, and against it, red (integrated gradients); its first filters; what four of its stages see.

    Examples:
      visaged explain ada.jpg
      visaged explain ada.jpg --emotion sadness --out why-not-sad.png
    """
    from ..pipelines.learning.contact_sheet import write_png
    from ..pipelines.learning.explainer import EmotionNetwork, filters_of
    from ..pipelines.learning.explainer import explain as explain_chip

    paths = find_config(config).paths
    models = ModelStore(paths.cache, paths.wheels)
    head = read_head(HEAD_PATH)
    if emotion and emotion not in head.classes:
        raise ConfigError(f"--emotion {emotion!r} is unknown; known are {', '.join(head.classes)}")
    chip = face_chip(photo, models)
    network = EmotionNetwork(read_face_resnet(models.weights_file(WEIGHTS)), head)
    recipe = FACE_RESNET.recipe
    inputs = to_input(chip[None], recipe.mean, recipe.scale, grey=False)[0]
    found = explain_chip(network, inputs, head.classes.index(emotion) if emotion else None)
    write_png(draw(chip, found, filters_of(network), head.classes), out)
    share = found.probabilities[found.target]
    Console().print(f"{out}: {head.classes[found.target]} {share:.0%}", soft_wrap=True, highlight=False)


def face_chip(photo: Path, models: ModelStore) -> U8:
    """Return the `(150, 150, 3)` chip of the largest face of a photo.

    Raises:
        PhotoError: not a picture, or no face in it.
    """
    rgb = read_photo(photo)
    faces = build_photo_detector(models).detect(rgb)
    if not faces:
        raise PhotoError(f"no face was found in {photo}; take one that looks into the camera")
    largest = max(faces, key=lambda face: float(np.prod(face.box[2:] - face.box[:2])))
    return cut_chip(rgb, largest.landmarks, FACE_RESNET.recipe.size, FACE_RESNET.recipe.padding)


def draw(chip: U8, found: "Explanation", filters: F32, classes: tuple[str, ...]) -> U8:
    """Return the whole picture, `(H, W, 3)` RGB: two rows of four tiles, each with a line of text."""
    heat = cv2.applyColorMap((found.where * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    grey = np.repeat(cv2.cvtColor(chip, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2).astype(np.float32)
    signed = np.stack([-found.pixels, found.pixels, np.zeros_like(found.pixels)], axis=2).clip(0, 1)
    over = grey * 0.4 + 255 * 0.9 * signed
    order = np.argsort(-found.probabilities)[:2]
    seen = ", ".join(f"{classes[index]} {found.probabilities[index]:.0%}" for index in order)
    tiles = [
        tile(chip, seen),
        tile(np.clip(0.55 * chip + 0.6 * heat, 0, 255).astype(np.uint8), f"where: {classes[found.target]}"),
        tile(np.clip(over, 0, 255).astype(np.uint8), "pixels: green for, red against"),
        tile((_grid(filters) * 255).astype(np.uint8), "first filters"),
    ]
    for name, maps in found.maps.items():
        coloured = cv2.applyColorMap((maps * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1]
        tiles.append(tile(np.ascontiguousarray(coloured, dtype=np.uint8), f"strongest maps of {name}"))
    rows = [np.concatenate(tiles[at : at + 4], axis=1) for at in (0, 4)]
    return np.concatenate(rows, axis=0)


def tile(picture: U8, text: str) -> U8:
    """Return `picture` as a square of `TILE_PX` with `text` above and white around."""
    square = cv2.resize(picture, (TILE_PX, TILE_PX), interpolation=cv2.INTER_NEAREST).astype(np.uint8)
    band = np.full((BAND_PX, TILE_PX, 3), WHITE, np.uint8)
    cv2.putText(band, text, (2, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.45, DARK, 1, cv2.LINE_AA)
    framed = np.concatenate([band, square], axis=0)
    return cv2.copyMakeBorder(
        framed, GAP_PX, GAP_PX, GAP_PX, GAP_PX, cv2.BORDER_CONSTANT, value=WHITE
    ).astype(np.uint8)


def _grid(filters: F32) -> F32:
    """Return `(n, h, w, 3)` filters as a square with lines between, filled up with black."""
    a_row = math.ceil(math.sqrt(len(filters)))
    padded = np.pad(filters, ((0, -len(filters) % a_row), (1, 1), (1, 1), (0, 0)))
    rows = [np.concatenate(list(padded[at : at + a_row]), axis=1) for at in range(0, len(padded), a_row)]
    grid = np.concatenate(rows, axis=0)
    side = max(grid.shape[:2])
    return np.pad(grid, ((0, side - grid.shape[0]), (0, side - grid.shape[1]), (0, 0)))
