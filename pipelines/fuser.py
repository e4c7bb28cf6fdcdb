"""One answer per face out of what the members say."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from ..kernels import fusion
from .ensemble import Outputs

F32 = npt.NDArray[np.float32]

RULES = {"sum": fusion.fuse_sum, "vote": fusion.fuse_vote, "max": fusion.fuse_max}


class Fuser:
    """Decision-level fusion of the emotion members by one rule and the weights of the registry."""

    def __init__(self, rule: Literal["sum", "vote", "max"]) -> None:
        self._rule = RULES[rule]

    def fuse(self, outputs: Outputs) -> tuple[F32, F32]:
        """Return `(N, K)` fused probabilities and the members' `(N,)` disagreement in [0, 1]."""
        p = fusion.probabilities(outputs.logits, outputs.knows)
        return self._rule(p, outputs.knows, outputs.weights), fusion.disagreement(p, outputs.knows)
