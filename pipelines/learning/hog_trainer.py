"""Train dlib's HOG face detector on boxed photos, in a process of its own. The door to dlib's trainer.

HOG features in a pyramid, one window that slides over them, and a structural SVM that asks for the whole set
of boxes of a photo at once: nothing has to be said about where no face is.

Source: King, "Max-margin object detection", arXiv:1502.00046; features: Dalal and Triggs, "Histograms of
oriented gradients for human detection", CVPR 2005.
"""

import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np
import numpy.typing as npt

from ..dlib_faces import HOG_FACE_PX, with_digest
from ..engines.hardware import free_memory_bytes
from ..errors import SourceError
from .boxed_photos import FaceBoxes

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

BYTES_PER_PX = 20  # of a photo's pixels and features while dlib trains; measured
LEAST_OF_WINDOW = 0.8  # side of the smallest face learned from, in windows; its IoU with one is 0.64
PHOTOS, OUTPUT = "photos.xml", "detector.svm"

Progress = Callable[[int, float], None]
"""Called with the number of an iteration and how far the solution may still be from the best one."""


@dataclass(frozen=True, slots=True)
class HogSettings:
    """How the detector is trained."""

    epsilon: float  # distance from the best solution, in mean loss a photo, at which training ends
    mirror: bool  # also from every photo's mirror image
    threads: int


class HogTrainer:
    """Trains detectors on the same photos; use it in a `with` statement, which removes them again.

    dlib holds the interpreter while it trains, so Ctrl-C would wait for hours: hence the process.
    """

    def __init__(self, settings: HogSettings) -> None:
        """Make an empty folder that nobody else may read."""
        self.settings = settings
        self._folder = tempfile.TemporaryDirectory(prefix="visaged-detector-")
        self._entries: list[str] = []
        self._n_px = 0

    def add(self, name: str, grey: U8, boxes: FaceBoxes) -> None:
        """Learn from a photo, too.

        Args:
            name: for dlib's sentences.
            grey: `(H, W)` uint8, scaled so that the smallest face has 80 px.
            boxes: in px of `grey`.

        Raises:
            SourceError: no room for it.
        """
        file = f"{len(self._entries):05}-{name}.png"
        data = cv2.imencode(".png", grey, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
        try:
            (Path(self._folder.name) / file).write_bytes(data)
        except OSError as error:
            raise SourceError(f"no room for photos in {self._folder.name} ({error.strerror})") from error
        lines = [_box(box) for box in boxes.faces] + [_box(box, " ignore='1'") for box in boxes.ignored]
        self._entries.append(f"<image file={quoteattr(file)}>{''.join(lines)}</image>\n")
        self._n_px += grey.size

    def fit(self, c: float, on_progress: Progress = lambda iteration, gap: None) -> bytes:
        """Return a detector, as a file's content; the same one from the same photos.

        Args:
            c: how much a mistake costs against a large margin; the larger, the closer to these photos.
            on_progress: called after every iteration.

        Raises:
            SourceError: too little memory, or dlib refuses the photos; the sentence has its reason.
        """
        self._check_memory()
        folder = Path(self._folder.name)
        (folder / PHOTOS).write_text(f"<dataset><images>\n{''.join(self._entries)}</images></dataset>\n")
        settings = self.settings
        words = [folder, c, settings.epsilon, int(settings.mirror), settings.threads]
        line = [sys.executable, "-m", __name__, *map(str, words)]
        with (
            (folder / "errors").open("w+") as errors,
            subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
            ) as process,
        ):
            try:
                assert process.stdout is not None
                for iteration, gap in _progress(process.stdout):
                    on_progress(iteration, gap)
                code = process.wait()
            finally:
                process.kill()  # where it still runs, we are interrupted
            errors.seek(0)
            said = " ".join(errors.read().split())
        if code:
            raise SourceError(f"dlib cannot train on these photos: {said[-400:] or f'exit code {code}'}")
        return with_digest((folder / OUTPUT).read_bytes())

    def close(self) -> None:
        """Remove the photos."""
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_memory(self) -> None:
        need = self._n_px * BYTES_PER_PX * (2 if self.settings.mirror else 1)
        free = free_memory_bytes()
        if free and need > free:
            raise SourceError(
                f"training on {len(self._entries)} photos of {self._n_px / 1e6:.0f} megapixels needs about "
                f"{need / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; "
                "leave photos out, or ask for a larger --min-face-px"
            )


def scaled(boxes: FaceBoxes, scale: float) -> FaceBoxes:
    """Return the boxes of a photo that is resized by `scale`; faces too small to be learned are ignored."""
    faces, ignored = boxes.faces * np.float32(scale), boxes.ignored * np.float32(scale)
    is_small = np.prod(faces[:, 2:] - faces[:, :2], axis=1) < (LEAST_OF_WINDOW * HOG_FACE_PX) ** 2
    return FaceBoxes(faces[~is_small], np.concatenate([ignored, faces[is_small]]))


def _box(box: F32, more: str = "") -> str:
    left, top, right, bottom = np.rint(box).astype(int).tolist()
    return f"<box top='{top}' left='{left}' width='{right - left}' height='{bottom - top}'{more}/>"


_LINE = re.compile(r"(risk gap|iter):\s+(\S+)")


def _progress(lines: Iterable[str]) -> Iterable[tuple[int, float]]:
    """Yield iteration and gap of what dlib prints."""
    gap = float("inf")
    for line in lines:
        match = _LINE.match(line)
        if match and match[1] == "risk gap":
            gap = float(match[2])
        elif match:
            yield int(match[2]), gap


def _train(folder: str, c: str, epsilon: str, mirror: str, threads: str) -> None:
    """The child: train on what lies in `folder`, and tell every iteration."""
    import dlib

    # Ctrl-C ends it at once, and a parent that is gone with the next line that it would read.
    for number in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    options = dlib.simple_object_detector_training_options()
    options.C, options.epsilon = float(c), float(epsilon)
    options.add_left_right_image_flips = mirror == "1"
    options.num_threads = int(threads)
    options.detection_window_size = round(HOG_FACE_PX**2)
    options.upsample_limit = 0  # the photos have the size in which they are searched
    options.be_verbose = True
    try:
        dlib.train_simple_object_detector(f"{folder}/{PHOTOS}", f"{folder}/{OUTPUT}", options)
    except (RuntimeError, MemoryError) as error:
        sys.exit(str(error) or "no memory left")


if __name__ == "__main__":
    _train(*sys.argv[1:])
