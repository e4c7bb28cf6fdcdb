"""How well boxes are found: precision, recall and average precision against boxes that people drew.

Shape letters: N found boxes, T true ones, M ignored ones.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from ...kernels.boxes import iou
from .boxed_photos import MIN_OVERLAP, FaceBoxes

F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

Found = tuple[F32, F32]
"""`(N, 4)` boxes and `(N,)` scores in a photo, most confident first."""


class DetectionFigures(Struct, frozen=True, kw_only=True):
    """What a detector finds of the faces in some photos.

    `precision` is the share of found boxes that are faces, `recall` of faces that are found, both of boxes
    above the threshold. `average_precision` is over all thresholds that were searched with.
    """

    n_faces: int
    n_found: int
    n_false: int
    precision: float
    recall: float
    average_precision: float


def judge(found: Sequence[Found], truth: Sequence[FaceBoxes], threshold: float = 0.0) -> DetectionFigures:
    """Return how well boxes were found in some photos, photo by photo the same in both arguments.

    A found box is a face when its IoU with a true box, that no surer one has taken, is at least 0.5. What
    otherwise lies on an ignored box counts neither way.

    Args:
        found: in each photo, also below `threshold`: the deeper, the more of the curve is seen.
        truth: in each photo.
        threshold: score from which a box counts in precision and recall.

    Source: Everingham et al., "The PASCAL visual object classes challenge", IJCV 2010; the average as in
    dlib: the mean over true boxes of the best precision at their recall or beyond.
    """
    hits: list[Bool] = []
    scores: list[F32] = []
    for (boxes, confidences), true in zip(found, truth, strict=True):
        is_hit, counts = match(boxes, true)
        hits.append(is_hit[counts])
        scores.append(confidences[counts])
    is_hit, score = np.concatenate(hits), np.concatenate(scores)
    order = np.argsort(-score, kind="stable")
    n_faces = sum(len(true.faces) for true in truth)
    is_above = score > threshold
    n_found = int(is_hit[is_above].sum())
    n_false = int(is_above.sum()) - n_found
    return DetectionFigures(
        n_faces=n_faces,
        n_found=n_found,
        n_false=n_false,
        precision=n_found / max(1, n_found + n_false),
        recall=n_found / max(1, n_faces),
        average_precision=average_precision(is_hit[order], n_faces),
    )


def match(boxes: F32, truth: FaceBoxes) -> tuple[Bool, Bool]:
    """Return `(N,)` whether each found box is a face, and `(N,)` whether it counts at all."""
    is_hit, counts = np.zeros(len(boxes), bool), np.ones(len(boxes), bool)
    overlap = iou(boxes, truth.faces)
    on_ignored = iou(boxes, truth.ignored)
    for index in range(len(boxes)):
        best = int(overlap[index].argmax()) if overlap.shape[1] else 0
        if overlap.shape[1] and overlap[index, best] >= MIN_OVERLAP:
            is_hit[index] = True
            overlap[:, best] = 0  # taken
        elif on_ignored.shape[1]:
            counts[index] = on_ignored[index].max() < MIN_OVERLAP
    return is_hit, counts


def average_precision(is_hit: Bool, n_faces: int) -> float:
    """Return the area below the curve of precision over recall, with the best precision to the right.

    Args:
        is_hit: `(N,)` of found boxes, most confident first.
        n_faces: how many there were to find; 0: nothing can be missed.
    """
    if n_faces == 0:
        return 1.0
    precisions = (np.cumsum(is_hit) / np.arange(1, len(is_hit) + 1))[is_hit]
    best = np.maximum.accumulate(precisions[::-1])
    return float(best.sum() / n_faces)
