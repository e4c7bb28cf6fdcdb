"""Which distance should name a face at this site, by what people said of its faces. Changes nothing itself.

The embedder stays; the threshold is a number of the configuration, `[identity] known_distance`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import beta

from .person import Templates

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

SAME_BITS = 1e-6  # a face is no evidence about the template that was made of it
MIN_GENUINE, MIN_IMPOSTOR = 20, 100
LOWEST, HIGHEST, STEP = 0.35, 0.60, 0.01  # thresholds that are considered; dlib's author uses 0.6
MAX_FALSE = 0.01  # share of faces of others that may be named wrongly, at the upper end of the interval
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Said:
    """A face that people spoke of: `embedding` `(D,)`, who it is ("" if not said) and who it is not."""

    embedding: F32
    person: str = ""
    not_people: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Distances:
    """Distances to the nearest template: of the right person `(N,)`, and of somebody else `(M,)`."""

    genuine: F64
    impostor: F64


@dataclass(frozen=True, slots=True)
class Share:
    """How many of how many, and where the share lies with 95 % confidence."""

    n: int
    of: int

    @property
    def interval(self) -> tuple[float, float]:
        """Return both ends, in 0..1.

        Source: Clopper & Pearson, "The use of confidence or fiducial limits", Biometrika 26, 1934.
        """
        tail = (1 - LEVEL) / 2
        low = float(beta.ppf(tail, self.n, self.of - self.n + 1)) if self.n else 0.0
        high = float(beta.ppf(1 - tail, self.n + 1, self.of - self.n)) if self.n < self.of else 1.0
        return low, high

    def __str__(self) -> str:
        """Return it for people, with its interval in percent."""
        low, high = self.interval
        return f"{self.n} of {self.of} ({100 * low:.1f} .. {100 * high:.1f} %)"


@dataclass(frozen=True, slots=True)
class Errors:
    """What a threshold does: faces that would not be named, and faces that would get another's name."""

    threshold: float
    unnamed: Share
    misnamed: Share


def distances_of(templates: Templates, said: Iterable[Said]) -> Distances:
    """Return how near faces are to their own and to other people's templates.

    Every template is a face too, compared with the others. A face that was made a template itself does not
    count against that template. Names are compared without case.
    """
    owners = np.array([name.casefold() for name in templates.names])[templates.owners]
    genuine: list[float] = []
    impostor: list[float] = []
    faces = [Said(e, str(owner)) for e, owner in zip(templates.embeddings, owners, strict=True)]
    for face in (*faces, *(one for one in said if not _is_template(one, templates))):
        gaps = np.linalg.norm(templates.embeddings - face.embedding, axis=1).astype(np.float64)
        is_other = gaps > SAME_BITS
        person, not_people = face.person.casefold(), {name.casefold() for name in face.not_people}
        if person and (own := gaps[is_other & (owners == person)]).size:
            genuine.append(float(own.min()))
        strange = np.isin(owners, list(not_people)) if not person else owners != person
        if (others := gaps[is_other & strange]).size:
            impostor.append(float(others.min()))
    return Distances(np.array(genuine), np.array(impostor))


def errors_at(distances: Distances, threshold: float) -> Errors:
    """Return what `threshold` does to these faces."""
    return Errors(
        threshold,
        Share(int((distances.genuine >= threshold).sum()), len(distances.genuine)),
        Share(int((distances.impostor < threshold).sum()), len(distances.impostor)),
    )


def suggest(distances: Distances) -> Errors | None:
    """Return the largest threshold that surely misnames few, with what it does; None on too little evidence.

    Surely: the upper end of the interval is below 1 %; where no threshold is so safe on so few faces, the
    largest that misnames none.
    """
    if len(distances.genuine) < MIN_GENUINE or len(distances.impostor) < MIN_IMPOSTOR:
        return None
    steps: Sequence[float] = np.arange(LOWEST, HIGHEST + STEP / 2, STEP).round(3).tolist()
    found = [errors_at(distances, threshold) for threshold in steps]
    safe = [errors for errors in found if errors.misnamed.interval[1] <= MAX_FALSE]
    clean = [errors for errors in found if errors.misnamed.n == 0]
    return (safe or clean or found[:1])[-1]


def _is_template(face: Said, templates: Templates) -> bool:
    """Whether the gallery has learned this very face: it is among the templates already."""
    if not len(templates.embeddings):
        return False
    gaps = np.linalg.norm(templates.embeddings - face.embedding, axis=1)
    return bool(face.person and gaps.min() <= SAME_BITS)
