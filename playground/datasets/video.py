"""Frames of a video by their time, as LeRobot finds them: decoded from the key frame before, and
the one whose time is nearest, no further away than `TOLERANCE_S`.
"""

from pathlib import Path

import av
import numpy as np

TOLERANCE_S = 1e-4
CODECS = ("av1", "libdav1d", "h264", "hevc")
# Frames up to this far ahead are reached by decoding on; further ones by a key frame.
_AHEAD_S = 1.0
_FAILURES = (av.FFmpegError, OSError, EOFError, IndexError)


class FrameError(ValueError):
    """A picture that cannot be had; the rest of its episode can."""


class Video:
    """One mp4, opened when the first frame is asked for. Not for several threads at once.

    name: what errors call it; size: (rows, columns) that its frames must have.
    """

    def __init__(self, path: Path, name: str, size: tuple[int, int]):
        self._path, self._name, self._size = path, name, size
        self._container = self._stream = self._frames = None
        self._at = None  # time of the frame decoded last, None after opening

    def frame(self, time_s: float) -> np.ndarray:
        """uint8 [rows, columns, 3] at a time from the file's start. Raises FrameError for a time
        without a frame, and for what cannot be decoded."""
        try:
            frame = self._find(time_s)
            return frame.to_ndarray(format="rgb24")
        except _FAILURES as error:
            self.close()
            raise FrameError(
                f"{self._name} is damaged: no frame at {time_s:.3f} s ({error})"
            ) from error

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
        self._container = self._stream = self._frames = self._at = None

    def _find(self, time_s: float) -> av.VideoFrame:
        if self._container is None:
            self._open()
        if self._at is None or not TOLERANCE_S < time_s - self._at < _AHEAD_S:
            self._seek(time_s)
        nearest = None
        for frame in self._frames:
            self._check(frame)
            self._at = frame.time
            if abs(frame.time - time_s) <= TOLERANCE_S:
                return frame
            nearest = frame.time
            if frame.time > time_s:
                break
        self.close()
        where = "it ends before" if nearest is None else f"the nearest is at {nearest:.4f} s"
        raise FrameError(f"{self._name} has no frame at {time_s:.4f} s: {where}")

    def _open(self) -> None:
        # The container's kind is given: a playlist under this name could open other files.
        self._container = av.open(str(self._path), format="mp4")
        if not self._container.streams.video:
            raise FrameError(f"{self._name} holds no video")
        self._stream = self._container.streams.video[0]
        codec = self._stream.codec_context.name
        if codec not in CODECS:
            raise FrameError(f"{self._name} is coded as {codec}; expected AV1, H.264 or HEVC")
        self._check_size(self._stream.height, self._stream.width)
        self._stream.thread_type = "AUTO"

    def _seek(self, time_s: float) -> None:
        ticks = round(time_s / self._stream.time_base)
        self._container.seek(ticks, stream=self._stream, backward=True, any_frame=False)
        self._frames = self._container.decode(self._stream)
        self._at = None

    def _check(self, frame: av.VideoFrame) -> None:
        self._check_size(frame.height, frame.width)
        if frame.time is None:
            raise FrameError(f"{self._name} has a frame without a time")

    def _check_size(self, height: int, width: int) -> None:
        if (height, width) != tuple(self._size):
            raise FrameError(
                f"{self._name} has frames of {height} x {width} (rows x columns), "
                f"meta/info.json says {self._size[0]} x {self._size[1]}"
            )
