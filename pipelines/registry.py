"""The networks visaged knows: what goes in, what comes out, where the weights come from, who may use them."""

from enum import Enum

from msgspec import Struct


class Colour(Enum):
    """Channels of a chip."""

    RGB = "rgb"
    GREY = "grey"


class Light(Enum):
    """Light normalisation of a chip before mean and scale."""

    NONE = "none"
    CLAHE = "clahe"


class ChipRecipe(Struct, frozen=True, kw_only=True):
    """How a face becomes a network's input: `(N, C, S, S)` float32, `(pixel - mean) / scale`.

    The chip is cut by the similarity that takes the 5 landmarks to dlib's mean face with `padding`
    around it (in units of the face's size; dlib's own chips have 0.25), as `dlib.get_face_chip` does.
    `size` is the side S in px. `mean` has one entry per channel, in pixel units 0..255.
    """

    size: int
    padding: float
    colour: Colour
    light: Light = Light.NONE
    mean: tuple[float, ...]
    scale: float


class Output(Struct, frozen=True, kw_only=True):
    """One named output of a network; `classes` and `temperature` only for logits."""

    name: str
    kind: str  # "embedding" | "logits" | "features"
    dim: int
    classes: tuple[str, ...] = ()
    temperature: float = 1.0


class Network(Struct, frozen=True, kw_only=True):
    """One row of the registry: everything needed to run a network and to say where it is from."""

    name: str
    recipe: ChipRecipe
    outputs: tuple[Output, ...]
    source: str
    licence: str
    licence_note: str
    trained_on: str
