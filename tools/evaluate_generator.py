"""What a generator makes of faces: is a face found in it, whose, and what does the ensemble read there?

The table of `visaged evaluate-synthesis --generator`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from rich.table import Table

from ..kernels.chips import cut_chip
from ..pipelines.cropper import Cropper
from ..pipelines.message import EMOTIONS
from ..pipelines.registry import SAME_PERSON
from ..pipelines.releases.release import LoadedRelease
from ..pipelines.synthesis.admission import Admission, KnownFace, Verdict
from ..pipelines.synthesis.generator import PADDING, Generator
from ..pipelines.synthesis.synthesiser import enlarged

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

PHOTO, CHIP, REDRAWN = "not at all", "its chip", "as it is"
Read = Callable[[Sequence[tuple[U8, F32]]], list[str]]
"""Frames `(H, W, 3)` with the landmarks `(5, 2)` of a face to the emotion that is read in each."""


@dataclass(slots=True)
class Drawn:
    """What became of faces that were drawn in one way.

    `l1s` are distances from the chip that was drawn again, in shares of the range; `read` the emotions.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    l1s: list[float] = field(default_factory=list)
    read: list[str] = field(default_factory=list)

    def add(self, verdict: Verdict, l1: float, emotion: str) -> None:
        """Count one face."""
        self.verdicts.append(verdict)
        self.l1s.append(l1)
        self.read.append(emotion)


def reader(asked: LoadedRelease) -> Read:
    """Return how a release reads faces: chips, engines and fusion as live."""

    def read(faces: Sequence[tuple[U8, F32]]) -> list[str]:
        chips = Cropper().crop_all([(rgb, marks[None]) for rgb, marks in faces], asked.ensemble.recipes)
        said = asked.fuser.fuse(asked.ensemble.infer(chips)).probabilities
        return [EMOTIONS[index] for index in said.argmax(axis=1)]

    return read


def try_generator(
    generator: Generator, faces: Iterable[KnownFace], admission: Admission, read: Read
) -> dict[str, Drawn]:
    """Return what became of `faces`, by row: untouched, as a chip, drawn as themselves and as each class.

    A face is drawn as itself with the class that leaves it most alike: nobody says which one it is of.
    """
    rows = {name: Drawn() for name in (PHOTO, CHIP, REDRAWN, *generator.classes)}
    for known in faces:
        chip = cut_chip(known.source.photo, known.source.landmarks, generator.size, PADDING)
        drawn = [generator.draw(known, label, admission) for label in generator.classes]
        small = enlarged(chip, PADDING)
        pictures = [small, *(enlarged(picture, PADDING) for picture, _ in drawn)]
        photo = (known.source.photo, known.source.landmarks)
        emotions = read([photo, *pictures])
        rows[PHOTO].add(Verdict("", 0.0), 0.0, emotions[0])
        rows[CHIP].add(admission.judge_generated(known, small[0]), 0.0, emotions[1])
        l1s = [float(np.abs(picture.astype(int) - chip).mean()) / 255 for picture, _ in drawn]
        for label, (_, verdict), l1, emotion in zip(generator.classes, drawn, l1s, emotions[2:], strict=True):
            rows[label].add(verdict, l1, emotion)
        nearest = int(np.argmin(l1s))
        rows[REDRAWN].add(drawn[nearest][1], l1s[nearest], emotions[2 + nearest])
    return rows


def table_of(rows: dict[str, Drawn], generator: Generator, title: str) -> Table:
    """Return the figures, for people; shares are per cent."""
    read = [label for label in generator.classes if label in EMOTIONS]
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("drawn", no_wrap=True)
    for heading in ("found", "distance", "same", "admitted", "L1", *(f"read {label}" for label in read)):
        table.add_column(heading, justify="right", min_width=11 if heading == "distance" else None)
    for name, row in rows.items():
        distances = np.array([verdict.distance for verdict in row.verdicts if verdict.is_found])
        shares = [row.read.count(label) / len(row.read) for label in read]
        table.add_row(
            name if name in (PHOTO, CHIP, REDRAWN) else f"as {name}",
            _percent(len(distances) / len(row.verdicts)),
            f"{np.median(distances):.2f} ≤ {distances.max():.2f}" if len(distances) else "–",
            _percent(float((distances < SAME_PERSON).mean())) if len(distances) else "–",
            _percent(sum(verdict.is_admitted for verdict in row.verdicts) / len(row.verdicts)),
            f"{np.mean(row.l1s):.3f}",
            *map(_percent, shares),
        )
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"
