"""The slot for a generator: a network that draws a face again as another class, as an ONNX file.

Ours (`vae_gan.py`) and a user's own keep one contract:

    input  `pictures`  (N, 3, S, S) float32, RGB in 0..255, chips cut by dlib's template with padding 0.25
    input  `classes`   (N, K) float32, one-hot: what to draw it as
    output `made`      (N, 3, S, S) float32, RGB in 0..255
    metadata `classes` names of the K classes, separated by commas

Shape letters: N faces, S side of a chip, K classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ...kernels.chips import cut_chip
from ..engines.ort_engine import open_session
from ..errors import ConfigError, ModelError
from .admission import Admission, KnownFace, Verdict
from .synthesiser import enlarged

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

CONTRACT = (
    "a generator takes pictures (N, 3, S, S) and classes (N, K), gives made (N, 3, S, S), all float32 with "
    "RGB in 0..255, and names its K classes, separated by commas, in its metadata under 'classes'"
)
PADDING = 0.25
MIN_SIDE, MAX_SIDE = 32, 512
SLACK = 64.0  # grey levels that an output may go beyond 0..255; what is further is no picture


@dataclass(frozen=True, slots=True)
class Generator:
    """A generator, loaded and tried once. Owned by one thread."""

    session: Any
    size: int
    classes: tuple[str, ...]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return the generator in an ONNX file.

        Raises:
            ModelError: no ONNX file, or one that does not keep the contract; the sentence says where.
        """
        session = open_session(path, remedy="give the ONNX file of a generator")
        size, classes = _checked(session, path)
        generator = cls(session, size, classes)
        try:
            made = generator.run(np.full((2, 3, size, size), 127, np.float32), classes[0])
        except Exception as error:  # onnxruntime has one exception class per status and no common base
            raise _broken(path, f"it does not run ({str(error).splitlines()[0]})") from error
        if made.shape != (2, 3, size, size):
            raise _broken(path, f"its output is {made.shape} for pictures of (2, 3, {size}, {size})")
        if not np.isfinite(made).all():
            raise _broken(path, "a grey picture gives numbers that are not finite")
        if made.min() < -SLACK or made.max() > 255 + SLACK or np.abs(made).max() <= 1:
            raise _broken(path, f"a grey picture gives pixels in {made.min():.2g}..{made.max():.2g}")
        return generator

    def run(self, pictures: F32, label: str) -> F32:
        """Return `(N, 3, S, S)` what the network draws of `(N, 3, S, S)` pictures as class `label`.

        Raises:
            ConfigError: it knows no such class.
        """
        if label not in self.classes:
            raise ConfigError(f"the generator knows no class {label!r}; it knows {', '.join(self.classes)}")
        wanted = np.zeros((len(pictures), len(self.classes)), np.float32)
        wanted[:, self.classes.index(label)] = 1
        made: F32 = self.session.run(["made"], {"pictures": pictures, "classes": wanted})[0]
        return made

    def draw(self, known: KnownFace, label: str, admission: Admission) -> tuple[U8, Verdict]:
        """Return the face as class `label`, `(S, S, 3)`, and whether it may be used: who it is decides."""
        chip = cut_chip(known.source.photo, known.source.landmarks, self.size, PADDING)
        made = self.run(chip.transpose(2, 0, 1)[None].astype(np.float32), label)[0]
        picture: U8 = np.clip(made.transpose(1, 2, 0), 0, 255).round().astype(np.uint8)
        return picture, admission.judge_generated(known, enlarged(picture, PADDING)[0])


def _checked(session: Any, path: Path) -> tuple[int, tuple[str, ...]]:
    """Return side and classes of a session's generator; raise what is wrong with its inputs and outputs."""
    inputs = {node.name: node for node in session.get_inputs()}
    outputs = {node.name: node for node in session.get_outputs()}
    if set(inputs) != {"pictures", "classes"}:
        raise _broken(path, f"its inputs are {', '.join(inputs) or 'none'}")
    if "made" not in outputs:
        raise _broken(path, f"its outputs are {', '.join(outputs) or 'none'}")
    for node in (inputs["pictures"], inputs["classes"], outputs["made"]):
        if node.type != "tensor(float)":
            raise _broken(path, f"{node.name} is {node.type}")
    shape = inputs["pictures"].shape
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or not isinstance(shape[2], int):
        raise _broken(path, f"its pictures are {shape}")
    if not MIN_SIDE <= shape[2] <= MAX_SIDE:
        raise _broken(path, f"its pictures have a side of {shape[2]} px, not {MIN_SIDE} to {MAX_SIDE}")
    named = session.get_modelmeta().custom_metadata_map.get("classes", "")
    classes = tuple(name.strip() for name in named.split(",") if name.strip())
    if not classes or len(set(classes)) != len(classes) or inputs["classes"].shape[1:] != [len(classes)]:
        raise _broken(path, f"its metadata name the classes {named!r} for an input {inputs['classes'].shape}")
    return shape[2], classes


def _broken(path: Path, what: str) -> ModelError:
    return ModelError(f"{path} cannot be used as a generator: {what}; {CONTRACT}")
