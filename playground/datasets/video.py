"""Frames of a video by their time, as LeRobot finds them: decoded from the key frame before, and
the one whose time is nearest, no further away than `TOLERANCE_S`.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

TOLERANCE_S = 1e-4
CODECS = ("av1", "libdav1d", "h264", "hevc")
# Frames up to this far ahead are reached by decoding on; further ones by a key frame.
_AHEAD_S = 1.0
# Decoded for one picture: 3,400 frames of 640 x 480. Between key frames there are a few hundred.
MOST_PIXELS = 1 << 30
_FAILURES = (av.error.FFmpegError, OSError, EOFError, IndexError)


class FrameError(ValueError):
    """A picture that cannot be had; the rest of its episode can."""


@dataclasses.dataclass(slots=True)
class _Open:
    """A file being decoded. at: the time of the frame decoded last, None after a seek."""

    container: InputContainer
    stream: VideoStream
    frames: Iterator[av.VideoFrame]
    at: float | None = None


class Video:
    """One mp4, opened when the first frame is asked for. Not for several threads at once.

    name: what errors call it; size: (rows, columns) that its frames must have.
    """

    def __init__(self, path: Path, name: str, size: tuple[int, int]):
        self._path, self._name, self._size = path, name, size
        self._file: _Open | None = None

    def frame(self, time_s: float) -> np.ndarray:
        """uint8 [rows, columns, 3] at a time from the file's start. Raises FrameError for a time
        without a frame, and for what cannot be decoded."""
        try:
            return self._find(time_s).to_ndarray(format="rgb24")
        except _FAILURES as error:
            self.close()
            raise FrameError(
                f"{self._name} is damaged: no frame at {time_s:.3f} s ({error})"
            ) from error

    def close(self) -> None:
        if self._file is not None:
            self._file.container.close()
        self._file = None

    def _find(self, time_s: float) -> av.VideoFrame:
        file = self._file = self._file or self._open()
        if file.at is None or not TOLERANCE_S < time_s - file.at < _AHEAD_S:
            self._seek(file, time_s)
        nearest = None
        for decoded, frame in enumerate(file.frames, start=1):
            self._check_size(frame.height, frame.width)
            if decoded * frame.height * frame.width > MOST_PIXELS:
                self.close()
                raise FrameError(f"{self._name} has no key frame for long before {time_s:.4f} s")
            if frame.time is None:
                raise FrameError(f"{self._name} has a frame without a time")
            file.at = nearest = frame.time
            if abs(nearest - time_s) <= TOLERANCE_S:
                return frame
            if nearest > time_s:
                break
        self.close()
        where = "it ends before" if nearest is None else f"the nearest is at {nearest:.4f} s"
        raise FrameError(f"{self._name} has no frame at {time_s:.4f} s: {where}")

    def _open(self) -> _Open:
        # The container's kind is given: a playlist under this name could open other files.
        container = av.open(str(self._path), format="mp4")
        if not container.streams.video:
            raise FrameError(f"{self._name} holds no video")
        stream = container.streams.video[0]
        codec = stream.codec_context.name
        if codec not in CODECS:
            raise FrameError(f"{self._name} is coded as {codec}; expected AV1, H.264 or HEVC")
        self._check_size(stream.height, stream.width)
        # A frame in the middle may be larger; what is decoded is a little more than what is shown.
        stream.codec_context.options = {"max_pixels": str(4 * stream.height * stream.width + 65536)}
        stream.thread_type = "AUTO"
        return _Open(container, stream, iter(()))

    @staticmethod
    def _seek(file: _Open, time_s: float) -> None:
        assert file.stream.time_base is not None
        ticks = round(time_s / float(file.stream.time_base))
        file.container.seek(ticks, stream=file.stream, backward=True, any_frame=False)
        file.frames, file.at = file.container.decode(file.stream), None

    def _check_size(self, height: int, width: int) -> None:
        if (height, width) != tuple(self._size):
            raise FrameError(
                f"{self._name} has frames of {height} x {width} (rows x columns), "
                f"meta/info.json says {self._size[0]} x {self._size[1]}"
            )
