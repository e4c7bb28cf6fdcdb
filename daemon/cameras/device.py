"""V4L2 cameras, which OpenCV reads."""

from pathlib import Path

import cv2
import numpy as np

from ...pipelines.errors import SourceError
from ..camera import U8, Broken, CameraConfig

CAPTURE_BUFFERS = 2  # frames a device driver may queue: more is only latency


class DeviceCamera:
    """An open V4L2 device."""

    def __init__(self, config: CameraConfig) -> None:
        """Open the device and ask it for the size and frame rate of `config`.

        Raises:
            SourceError: there is no such device, or it does not open.
        """
        be_quiet()
        self._where = f"camera {config.name}: {config.source}"
        if not Path(config.source).exists():
            present = sorted(str(path) for path in Path("/dev").glob("video*"))
            raise SourceError(
                f"{self._where} does not exist (present: {', '.join(present) or 'none'}); "
                f"plug the camera in or correct `source`"
            )
        self._capture = cv2.VideoCapture(config.source, cv2.CAP_V4L2, _options(config))
        if not self._capture.isOpened():
            raise SourceError(
                f"{self._where} cannot be opened; check that it is a camera, that this user may read it "
                f"and that no other program uses it"
            )
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.fps = fps if 0.1 <= fps <= 1000 else 0.0

    def read(self) -> U8 | Broken:
        """Return the next frame.

        Raises:
            SourceError: the device is gone.
        """
        if not self._capture.grab():
            raise SourceError(f"{self._where} delivers no more frames; check the camera and its cable")
        is_good, bgr = self._capture.retrieve()
        if not is_good or bgr is None or bgr.size == 0:
            return Broken("the device delivered data that cannot be decoded")
        return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)

    def close(self) -> None:
        """Let go of the device."""
        self._capture.release()


def be_quiet() -> None:
    """Stop OpenCV from writing to stderr: what is wrong is said by our errors."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _options(config: CameraConfig) -> list[int]:
    options = [cv2.CAP_PROP_BUFFERSIZE, CAPTURE_BUFFERS]
    if config.width * config.height > 640 * 480:  # raw formats do not fit through USB 2 at full rate
        options += [cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG")]
    if config.width and config.height:
        options += [cv2.CAP_PROP_FRAME_WIDTH, config.width, cv2.CAP_PROP_FRAME_HEIGHT, config.height]
    if config.fps:
        options += [cv2.CAP_PROP_FPS, round(config.fps)]
    return options
