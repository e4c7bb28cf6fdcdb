"""What a candidate says of faces that it never learned from: each network that learned, and all together."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ...kernels.fusion import probabilities
from ..ensemble import Outputs, over_emotions
from ..fuser import Fuser, Fusion
from ..registry import Output
from .pupil import Pupil
from .replay_memory import Remembered
from .report import FUSED, Evidence, compare

F32 = npt.NDArray[np.float32]


def examine(
    part: str, pupils: Sequence[Pupil], faces: Mapping[str, Remembered], fusion: Fusion
) -> tuple[Evidence, ...]:
    """Return the evidence of one part, before against after.

    Args:
        part: its name.
        pupils: all members that say emotions.
        faces: the same faces as the trunk of each pupil sees them, by its name; where one is missing, nothing
            can be said of all together.
        fusion: how the members are combined.
    """
    asked = [(pupil, pupil.answers(faces[pupil.name])) for pupil in pupils if pupil.name in faces]
    found: list[Evidence] = []
    for pupil, (before, after) in asked:
        if pupil.learned:
            said = _alone(pupil.before, before), _alone(pupil.after, after)
            found += compare(part, pupil.name, faces[pupil.name], *said)
    if len(asked) == len(pupils):
        before = _fused(fusion, [(p.name, p.before, logits) for p, (logits, _) in asked])
        after = _fused(fusion, [(p.name, p.after, logits) for p, (_, logits) in asked])
        found += compare(part, FUSED, faces[pupils[0].name], before, after)
    return tuple(found)


def _alone(output: Output, logits: F32) -> F32:
    """Return `(N, K)` probabilities of one network."""
    spread, known = over_emotions(output, logits)
    p: F32 = probabilities(spread[None], known[None])[0]
    return p


def _fused(fusion: Fusion, members: Sequence[tuple[str, Output, F32]]) -> F32:
    """Return `(N, K)` probabilities of all members together."""
    spread, knows = zip(*(over_emotions(output, logits) for _, output, logits in members), strict=True)
    names = tuple(name for name, _, _ in members)
    outputs = Outputs(np.zeros((0, 0), np.float32), np.stack(spread), np.stack(knows), names, {})
    return Fuser(fusion).fuse(outputs).probabilities
