"""Read videos and folders of frames, and write videos, with one frame in memory at a time."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from dinoviz.errors import DinovizError
from dinoviz.images import SUFFIXES, ImageError, open_image

# Demuxers of plain files. FFmpeg also supports playlists, with which an uploaded video could make it read other files
# and network addresses.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,ogg,asf,flv,apng,m4v,h264,hevc,ivf"
MAX_FRAME_PIXELS = 36_000_000  # 8K, also in cinema formats
# Each decoding thread holds at least one frame, so large frames get fewer threads.
MAX_DECODED_PIXELS, MAX_THREADS = 64_000_000, 8
RATES = Fraction(1, 100), Fraction(1000)  # frames per second; other values are wrong headers
FOLDER_RATE = Fraction(25)  # frames per second if unknown; DAVIS has 24
# Share of frames that may be missing: edit lists hide a few, a truncated file lacks more.
MISSING = 0.1
CODECS = av.codecs_available
# What PyAV raises for damaged files: FFmpeg's errors, and its own for numbers out of range.
DAMAGE = (av.FFmpegError, OSError, ValueError, OverflowError, MemoryError, ZeroDivisionError)


class ClipError(DinovizError):
    """A video that cannot be used; the message names it and the reason."""


@dataclass(frozen=True)
class Clip:
    """A video file or a folder of frames, described by its header; made by `open_clip`.

    size: (W, H) of the frames, with rotation applied. rate: frames per second. count: expected number of frames, None
    if the header does not have it.
    """

    path: Path
    size: tuple[int, int]
    rate: Fraction
    count: int | None

    @property
    def files(self) -> list[Path]:
        """The video file, or the pictures in order."""
        return _folder_files(self.path) if self.path.is_dir() else [self.path]

    def frames(
        self, every: int = 1, on_skip: Callable[[DinovizError], None] | None = None
    ) -> Iterator[tuple[str, Image.Image]]:
        """Yield the name of every `every`-th frame, for its results, and the frame, upright RGB.

        Args:
            every: step between frames.
            on_skip: called with the error of an unreadable picture in a folder, which is then skipped; without it, the
                error is raised. The first picture must be readable, since the mask belongs to it.

        Raises:
            ImageError: for an unreadable picture in a folder.
            ClipError: after the last good frame, for a damaged or truncated video.
        """
        return _folder_frames(self.path, every, on_skip) if self.path.is_dir() else _video_frames(self.path, every)


def open_clip(path: str | os.PathLike) -> Clip:
    """Open a video file, or a folder of pictures in natural order of their names (frame9 before frame10).

    Raises ClipError if the file is missing, not a video, of an unknown codec or without frames; ImageError if the first
    picture of a folder cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        files = _folder_files(path)
        return Clip(path, open_image(files[0]).size, FOLDER_RATE, len(files))
    if not path.is_file():
        raise ClipError(f"{path.name}: there is no such file or folder.")
    if path.suffix.lower() in SUFFIXES and path.suffix.lower() != ".gif":
        raise ClipError(f"{path.name}: this is a picture, not a video: give the folder of the frames.")
    with _open(path) as container:
        rate, count = _rate(container.streams.video[0]), _expected(container)
    try:
        _, first = next(_video_frames(path, 1))
    except StopIteration:
        raise ClipError(f"{path.name}: the video has no frames.") from None
    return Clip(path, first.size, rate, count)


def _open(path: Path) -> av.container.InputContainer:
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file", "max_pixels": str(MAX_FRAME_PIXELS)}
    try:
        # Do not fail on titles that are not UTF-8.
        container = av.open(str(path), options=options, metadata_errors="replace")
    except DAMAGE:
        empty = path.stat().st_size == 0
        why = "the file is empty" if empty else "this is not a readable video, or its end is missing"
        raise ClipError(f"{path.name}: {why}.") from None
    video = container.streams.video
    if not video or video[0].codec_context is None:
        container.close()
        why = "its codec is unknown" if video else "it contains only sound"
        raise ClipError(f"{path.name}: the video cannot be read: {why}.")
    size = video[0].width, video[0].height
    if math.prod(size) > MAX_FRAME_PIXELS:
        container.close()
        raise ClipError(_too_large(path, size))
    context = video[0].codec_context
    context.thread_type = "AUTO"
    context.thread_count = min(MAX_THREADS, os.cpu_count() or 1, MAX_DECODED_PIXELS // max(1, math.prod(size)))
    context.options = {"max_pixels": options["max_pixels"]}  # a stream may have another size than its container
    return container


def _too_large(path: Path, size: tuple[int, int]) -> str:
    return (
        f"{path.name}: frames of {size[0]} x {size[1]} pixels are too large; at most "
        f"{MAX_FRAME_PIXELS / 1e6:g} million pixels are accepted."
    )


def _rate(stream: av.VideoStream) -> Fraction:
    """Frames per second from the header, or FOLDER_RATE if that is implausible."""
    rate = Fraction(stream.average_rate or stream.guessed_rate or FOLDER_RATE)
    return rate.limit_denominator(1001) if RATES[0] <= rate <= RATES[1] else FOLDER_RATE


def _expected(container: av.container.InputContainer) -> int | None:
    """Number of frames from the header; None if it is missing or larger than the file in bytes."""
    stream = container.streams.video[0]
    count = stream.frames
    alone = len(container.streams) == 1  # otherwise the duration may be that of the sound
    if not count and alone and container.duration and stream.average_rate:
        count = round(container.duration * stream.average_rate / av.time_base)
    return count if 0 < count <= container.size else None


def _video_frames(path: Path, every: int) -> Iterator[tuple[str, Image.Image]]:
    with _open(path) as container:
        stream = container.streams.video[0]
        seen = 0
        try:
            for frame in container.decode(stream):
                if frame.width * frame.height > MAX_FRAME_PIXELS:
                    raise ClipError(_too_large(path, (frame.width, frame.height)))
                if seen % every == 0:
                    upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                    yield f"{seen:06d}", Image.fromarray(np.ascontiguousarray(upright))
                seen += 1
        except ClipError:
            raise
        except DAMAGE:
            reason = "is damaged or truncated" if seen else "cannot be decoded"
            raise ClipError(f"{path.name}: the video {reason} after {seen} frames.") from None
        expected = _expected(container)
        # QuickTime files have an index with the position of each frame; their edit lists hide frames that are counted.
        indexed = "mov" in container.format.name
        beyond = indexed and any(e.pos + e.size > path.stat().st_size for e in stream.index_entries)
        if beyond or (expected and not indexed and seen < (1 - MISSING) * expected - 1):
            raise ClipError(f"{path.name}: the video is truncated: it has {seen} of {expected} frames.")


def _folder_files(folder: Path) -> list[Path]:
    files = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not files:
        raise ClipError(f"{folder}: there are no pictures in this folder.")
    # frame10 comes after frame9
    return sorted(files, key=lambda path: [(p.zfill(20) if p.isdigit() else p) for p in re.split(r"(\d+)", path.name)])


def _folder_frames(
    folder: Path, every: int, on_skip: Callable[[DinovizError], None] | None
) -> Iterator[tuple[str, Image.Image]]:
    taken: set[str] = set()
    for path in _folder_files(folder)[::every]:
        try:
            picture = open_image(path)
        except ImageError as error:
            if on_skip is None or not taken:
                raise
            on_skip(error)
            continue
        name = path.name if path.stem in taken else path.stem  # 1.jpg beside 1.png
        taken.add(name)
        yield name, picture


class VideoWriter:
    """Write a video for browsers frame by frame: H.264 in .mp4, or VP9 in .webm if H.264 is not available.

    A context manager: the file appears under its name at the end, and not at all after an exception.
    path: the given one, with the suffix of the format.
    """

    def __init__(self, path: str | os.PathLike, size: tuple[int, int], rate: Fraction):
        """size: (W, H) of the frames; odd sides are padded by one pixel, since chroma has half the resolution."""
        h264 = "libx264" in CODECS
        self.path = Path(path).with_suffix(".mp4" if h264 else ".webm")
        self._part = self.path.with_name(f"{self.path.name}.part")
        # The index first, so that a browser can play the video while it loads.
        self._container = av.open(
            str(self._part), "w", format="mp4" if h264 else "webm",
            options={"movflags": "+faststart"} if h264 else {},
        )  # fmt: skip
        self._stream = self._container.add_stream("libx264" if h264 else "libvpx-vp9", rate=rate)
        self._stream.width, self._stream.height = (side + side % 2 for side in size)
        self._stream.pix_fmt = "yuv420p"
        # crf 20 is nearly lossless visually; "veryfast" takes a tenth of the time of a frame's forward pass.
        self._stream.options = {"crf": "20", "preset": "veryfast"} if h264 else {"crf": "30", "b": "0", "cpu-used": "5"}

    def add(self, picture: Image.Image | np.ndarray) -> None:
        """Append a frame (H, W, 3) uint8 of the size given at the start."""
        array = np.asarray(picture)
        array = np.pad(array, ((0, array.shape[0] % 2), (0, array.shape[1] % 2), (0, 0)), mode="edge")
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            try:
                if kind is None:
                    self._container.mux(self._stream.encode())
            finally:
                self._container.close()  # writes the index, and fails if the disk is full
            if kind is None:
                self._part.replace(self.path)
        finally:
            self._part.unlink(missing_ok=True)
