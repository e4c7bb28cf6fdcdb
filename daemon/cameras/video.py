"""Videos, and the door to FFmpeg, which PyAV opens: RTSP and HTTP streams, and files.

Every frame comes in the size it was sent in, so a camera may change its size without a new connection.
FFmpeg says nothing on stderr: PyAV drops its log unless it is asked for it.
"""

from collections.abc import Generator, Iterable
from pathlib import Path

import av
import numpy as np
from av.codec.context import ThreadType
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from ...pipelines.errors import SourceError
from ..camera import U8, Broken, CameraConfig, shown_source

# FFmpeg's own timeout, 5 s in us, for the connection and for whatever is read. Not PyAV's, which asks Python
# every 0.1 s: a thread that asks while the process ends takes it down with SIGSEGV.
STREAM_OPTIONS = {"rtsp_flags": "prefer_tcp", "timeout": "5000000"}
STREAM_THREADS, FILE_THREADS = 1, 2  # decoder threads; each more costs a frame of delay and memory
# A decoder counts px of rounded sizes, as 1920x1088. What it lets through, capture measures and skips.
MAX_ROUNDING = 2
# A container's frame count is an estimate for some encoders; a shortfall above this is a cut file.
COUNT_TOLERANCE = 0.02


class VideoCamera:
    """A video that FFmpeg demuxes and decodes, answered in RGB. What is wrong with it is said clearly."""

    def __init__(self, config: CameraConfig, url: str, options: dict[str, str], n_threads: int) -> None:
        """Open `url` with options of FFmpeg's protocols and demuxers.

        Raises:
            SourceError: nobody answers within some seconds, or what comes is no video.
        """
        self._shown = shown_source(config.source)
        self._where = f"camera {config.name}: {self._shown}"
        self._max_pixels = MAX_ROUNDING * config.max_pixels
        try:
            self._container = av.open(url, options=options, metadata_errors="ignore")
            stream = self._container.streams.best("video")
            if not isinstance(stream, VideoStream) or stream.codec_context is None:
                raise SourceError(f"{self._where} holds no video that FFmpeg decodes; correct `source`")
            self._decoder = self._open_decoder(stream, n_threads)
        except av.FFmpegError as error:
            raise SourceError(
                f"{self._where} cannot be opened ({error.strerror}); check that it exists, is reachable "
                f"and is a format that FFmpeg reads"
            ) from None  # its own text has the password in it
        self._items = self._decode(self._container.demux(stream))
        self._reformatter = VideoReformatter()
        fps = float(stream.guessed_rate or 0)
        self.fps = fps if 0.1 <= fps <= 1000 else 0.0
        duration_s = (self._container.duration or 0) / av.time_base
        count = stream.frames or round(duration_s * fps)
        self._announced = count if 0 < count < 1e9 else 0  # 0: a live source, without end
        self._n_read = 0

    def read(self) -> U8 | Broken | None:
        """Return the next frame; None after the last of a video that a web server holds.

        Raises:
            SourceError: no more frames, though there should be.
        """
        try:
            item = next(self._items, None)
        except av.FFmpegError:  # lost, or silent for too long
            item = None
        if item is None:
            return self._end()
        self._n_read += 1
        return item if isinstance(item, Broken) else self._rgb(item)

    def close(self) -> None:
        """Let go of the source."""
        self._items.close()
        self._container.close()

    def _end(self) -> Broken | None:
        if self._announced and not self._is_cut():
            return None
        raise SourceError(f"{self._where} delivers no more frames; check the source")

    def _is_cut(self) -> bool:
        return self._announced - self._n_read > max(2, COUNT_TOLERANCE * self._announced)

    def _open_decoder(self, stream: VideoStream, n_threads: int) -> VideoCodecContext:
        decoder = stream.codec_context
        decoder.thread_count, decoder.thread_type = n_threads, ThreadType.AUTO
        decoder.options = {"max_pixels": str(self._max_pixels)}
        if decoder.width * decoder.height > self._max_pixels:
            decoder.width = decoder.height = 0  # opened all the same: the frames may get smaller
        decoder.open()
        return decoder

    def _decode(self, packets: "Iterable[Packet[VideoStream]]") -> Generator[VideoFrame | Broken]:
        """Yield frames and what is none. A last packet that cannot be decoded is cut off: the end says so."""
        is_bad = False
        for packet in packets:
            if is_bad and packet.size:  # a packet of no bytes comes at the end
                yield Broken(f"{self._shown} delivered data that cannot be decoded")
            is_bad = False
            try:
                yield from self._decoder.decode(packet)
            except av.FFmpegError:
                if 0 < self._decoder.width * self._decoder.height <= self._max_pixels:
                    is_bad = True
                    continue
                self._decoder.flush_buffers()  # else it goes on to refuse frames that have got smaller
                yield Broken(
                    f"{self._shown} delivered a frame of more than {self._max_pixels / 1e6:.1f} megapixels; "
                    f"make it smaller or raise max_pixels"
                )

    def _rgb(self, frame: VideoFrame) -> U8:
        """Return the frame upright; matrix and range of its colours are those it names."""
        rgb = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        if frame.rotation:
            rgb = np.rot90(rgb, round(frame.rotation / 90))
        return np.ascontiguousarray(rgb, np.uint8)


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
        super().__init__(config, f"file:{path}", {}, FILE_THREADS)
        if config.fps:
            self.fps = config.fps
        self._is_at_end = False

    def _end(self) -> Broken | None:
        """Return one `Broken` where the file has been cut, then None."""
        if self._is_at_end or not self._is_cut():
            return None
        self._is_at_end = True
        return Broken(
            f"{self._shown} announces {self._announced} frames and ends after {self._n_read}; "
            f"the file is cut off or damaged"
        )


def open_stream(config: CameraConfig) -> VideoCamera:
    """Return an open RTSP or HTTP stream.

    Raises:
        SourceError: nobody answers within some seconds, or what comes is no video.
    """
    return VideoCamera(config, config.source, STREAM_OPTIONS, STREAM_THREADS)
