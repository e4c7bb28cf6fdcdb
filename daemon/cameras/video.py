"""Cameras that OpenCV reads: V4L2 devices, RTSP and HTTP streams, video files."""

import os
from pathlib import Path

import cv2
import numpy as np

from ...pipelines.errors import SourceError
from ..camera import U8, Broken, CameraConfig, shown_source

OPEN_TIMEOUT_MS = 5000
READ_TIMEOUT_MS = 5000
CAPTURE_BUFFERS = 2  # frames a device driver may queue: more is only latency
FILE_THREADS = 2  # decoder threads; each costs a frame of delay and memory, so streams get one
# A container's frame count is an estimate for some encoders; a shortfall above this is a cut file.
COUNT_TOLERANCE = 0.02


class VideoCamera:
    """A `cv2.VideoCapture` that answers in RGB and says clearly when its source is gone."""

    def __init__(self, config: CameraConfig, source: str, backend: int, options: list[int]) -> None:
        """Open `source` with an OpenCV backend and its `CAP_PROP_*` options.

        Raises:
            SourceError: it does not open.
        """
        be_quiet()
        self._shown = shown_source(source)
        self._name = config.name
        self._capture = cv2.VideoCapture(source, backend, options)
        if not self._capture.isOpened():
            raise SourceError(
                f"camera {config.name}: {self._shown} cannot be opened; check that it exists, is reachable, "
                f"is not in use by another program and is a format that FFmpeg or V4L2 reads"
            )
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.fps = fps if 0.1 <= fps <= 1000 else 0.0
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self._announced = int(count) if 0 < count < 1e9 else 0  # 0: a live source, without end
        self._n_read = 0

    def read(self) -> U8 | Broken | None:
        """Return the next frame; None after the last of a video that a web server holds.

        Raises:
            SourceError: no more frames, though there should be.
        """
        if self._capture.grab():
            self._n_read += 1
            return self._decode()
        if self._announced and not self._is_cut():
            return None
        raise SourceError(f"camera {self._name}: {self._shown} delivers no more frames; check the source")

    def close(self) -> None:
        """Let go of the source."""
        self._capture.release()

    def _is_cut(self) -> bool:
        return self._announced - self._n_read > max(2, COUNT_TOLERANCE * self._announced)

    def _decode(self) -> U8 | Broken:
        is_good, bgr = self._capture.retrieve()
        if not is_good or bgr is None or bgr.size == 0:
            return Broken(f"{self._shown} delivered data that cannot be decoded")
        return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


class FileCamera(VideoCamera):
    """A video file, from its first frame to its last."""

    def __init__(self, config: CameraConfig, path: Path) -> None:
        """Open the file.

        Raises:
            SourceError: it is empty, cut off before its index, or no video.
        """
        if not path.is_file():  # opening a named pipe would wait for ever
            raise SourceError(f"camera {config.name}: {path} is no regular file; name a video or a folder")
        try:
            n_bytes = path.stat().st_size
            with path.open("rb"):
                pass
        except OSError as error:
            raise SourceError(f"camera {config.name}: {path} cannot be read ({error.strerror})") from error
        if n_bytes == 0:
            raise SourceError(f"camera {config.name}: {path} is empty; bring the file again")
        super().__init__(config, str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, FILE_THREADS])
        if config.fps:
            self.fps = config.fps
        self._is_at_end = False

    def read(self) -> U8 | Broken | None:
        """Return the next frame, one `Broken` where the file has been cut, and None at the end."""
        if self._is_at_end:
            return None
        if self._capture.grab():
            self._n_read += 1
            return self._decode()
        self._is_at_end = True
        if self._is_cut():
            return Broken(
                f"{self._shown} announces {self._announced} frames and ends after {self._n_read}; "
                f"the file is cut off or damaged"
            )
        return None


def open_device(config: CameraConfig) -> VideoCamera:
    """Return an open V4L2 device.

    Raises:
        SourceError: there is no such device, or it does not open.
    """
    if not Path(config.source).exists():
        present = sorted(str(path) for path in Path("/dev").glob("video*"))
        raise SourceError(
            f"camera {config.name}: {config.source} does not exist (present: "
            f"{', '.join(present) or 'none'}); plug the camera in or correct `source`"
        )
    options = [cv2.CAP_PROP_BUFFERSIZE, CAPTURE_BUFFERS]
    if config.width * config.height > 640 * 480:  # raw formats do not fit through USB 2 at full rate
        options += [cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG")]
    if config.width and config.height:
        options += [cv2.CAP_PROP_FRAME_WIDTH, config.width, cv2.CAP_PROP_FRAME_HEIGHT, config.height]
    if config.fps:
        options += [cv2.CAP_PROP_FPS, round(config.fps)]
    return VideoCamera(config, config.source, cv2.CAP_V4L2, options)


def open_stream(config: CameraConfig) -> VideoCamera:
    """Return an open RTSP or HTTP stream; RTSP goes over TCP.

    Raises:
        SourceError: nobody answers within some seconds, or what comes is no video.
    """
    options = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT_MS]
    options += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT_MS]
    options += [cv2.CAP_PROP_N_THREADS, 1]
    return VideoCamera(config, config.source, cv2.CAP_FFMPEG, options)


def be_quiet() -> None:
    """Stop OpenCV and FFmpeg from writing to stderr: what is wrong is said by our errors."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
