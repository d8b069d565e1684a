"""Clips: video files and folders of frames in, masks and overlay videos out; one frame in memory at a time."""

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

# Demuxers of plain files. FFmpeg knows playlists as well, which name other files and addresses, and whoever uploads a
# video should not choose what else is read.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,ogg,asf,flv,apng,m4v,h264,hevc,ivf"
MAX_FRAME_PIXELS = 36_000_000  # 8K, also of cinemas
# Each thread that decodes holds a frame or more, so for large frames there are fewer of them.
MAX_DECODED_PIXELS, MAX_THREADS = 64_000_000, 8
RATES = Fraction(1, 100), Fraction(1000)  # frames a second; beyond, the header is wrong
FOLDER_RATE = Fraction(25)  # frames a second, where nobody says; DAVIS is shown at 24
# Headers may promise a few frames that an edit list hides; a file that was cut off lacks more.
MISSING = 0.1
CODECS = av.codecs_available
# What PyAV raises for damaged files: FFmpeg's errors, and its own for numbers that fit nowhere.
DAMAGE = (av.FFmpegError, OSError, ValueError, OverflowError, MemoryError, ZeroDivisionError)


class ClipError(DinovizError):
    """A video that cannot be used; the message names it and says why in one sentence."""


@dataclass(frozen=True)
class Clip:
    """A video file or a folder of frames, as its header tells; made by `open_clip`.

    size: (W, H) of the frames as they are shown, rotation applied. rate: frames a second. count: how many frames are
    expected, None where only counting would tell.
    """

    path: Path
    size: tuple[int, int]
    rate: Fraction
    count: int | None

    @property
    def files(self) -> list[Path]:
        """What it is made of: the video, or the pictures in their order."""
        return _folder_files(self.path) if self.path.is_dir() else [self.path]

    def frames(
        self, every: int = 1, on_skip: Callable[[DinovizError], None] | None = None
    ) -> Iterator[tuple[str, Image.Image]]:
        """Each `every`-th frame, upright RGB, with a name for its results: the file's, or the number from 000000.

        on_skip: told of a picture of a folder that cannot be read, which is left out; without it, that is raised. The
            first must be readable: the mask is its.

        Raises ImageError for such a picture; ClipError, after the last good frame, for a damaged or truncated video.
        """
        return _folder_frames(self.path, every, on_skip) if self.path.is_dir() else _video_frames(self.path, every)


def open_clip(path: str | os.PathLike) -> Clip:
    """Look at a video file, or a folder of pictures in the order of their names, numbers by their value.

    Raises ClipError if there is no such file, it is no video, its codec is unknown, or it has no frames; ImageError if
    the first picture of a folder cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        files = _folder_files(path)
        return Clip(path, open_image(files[0]).size, FOLDER_RATE, len(files))
    if not path.is_file():
        raise ClipError(f"{path.name}: there is no such file or folder.")
    if path.suffix.lower() in SUFFIXES and path.suffix.lower() != ".gif":
        raise ClipError(f"{path.name}: this is a picture, not a video; give the folder that holds the frames.")
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
        # Titles in other encodings than UTF-8 are no reason to refuse the pictures.
        container = av.open(str(path), options=options, metadata_errors="replace")
    except DAMAGE:
        empty = path.stat().st_size == 0
        why = "the file is empty" if empty else "this is not a video that can be read, or its end is missing"
        raise ClipError(f"{path.name}: {why}.") from None
    video = container.streams.video
    if not video or video[0].codec_context is None:
        container.close()
        why = "its codec is unknown" if video else "there is only sound in it"
        raise ClipError(f"{path.name}: the video cannot be read, {why}.")
    size = video[0].width, video[0].height
    if math.prod(size) > MAX_FRAME_PIXELS:
        container.close()
        raise ClipError(_too_large(path, size))
    context = video[0].codec_context
    context.thread_type = "AUTO"
    context.thread_count = min(MAX_THREADS, os.cpu_count() or 1, MAX_DECODED_PIXELS // max(1, math.prod(size)))
    context.options = {"max_pixels": options["max_pixels"]}  # a stream may tell another size than its container
    return container


def _too_large(path: Path, size: tuple[int, int]) -> str:
    return (
        f"{path.name}: {size[0]} x {size[1]} pixels a frame are too many; at most {MAX_FRAME_PIXELS / 1e6:g} million "
        "are accepted."
    )


def _rate(stream: av.VideoStream) -> Fraction:
    """Frames a second by the header, or FOLDER_RATE where that is none that a camera or a program has."""
    rate = Fraction(stream.average_rate or stream.guessed_rate or FOLDER_RATE)
    return rate.limit_denominator(1001) if RATES[0] <= rate <= RATES[1] else FOLDER_RATE


def _expected(container: av.container.InputContainer) -> int | None:
    """How many frames there should be, by the header; None where it tells none, or more than its file has bytes."""
    stream = container.streams.video[0]
    count = stream.frames
    alone = len(container.streams) == 1  # else the length may be that of the sound
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
            reason = "is damaged or cut off" if seen else "cannot be decoded"
            raise ClipError(f"{path.name}: the video {reason} after {seen} frames.") from None
        expected = _expected(container)
        # QuickTime's index is in front and tells where each frame lies; its edit lists hide frames that are counted.
        indexed = "mov" in container.format.name
        beyond = indexed and any(e.pos + e.size > path.stat().st_size for e in stream.index_entries)
        if beyond or (expected and not indexed and seen < (1 - MISSING) * expected - 1):
            raise ClipError(f"{path.name}: the video is cut off, it has {seen} of {expected} frames.")


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
    """A video that browsers play, written frame by frame: H.264 in .mp4, or VP9 in .webm where there is no H.264.

    A context manager: the file is there under its name when all went well, and not at all otherwise.
    path: as it was given, with the ending that fits.
    """

    def __init__(self, path: str | os.PathLike, size: tuple[int, int], rate: Fraction):
        """size: (W, H) of the frames; odd sides are repeated by one pixel, for H.264 halves the colours' sides."""
        h264 = "libx264" in CODECS
        self.path = Path(path).with_suffix(".mp4" if h264 else ".webm")
        self._part = self.path.with_name(f"{self.path.name}.part")
        # The index in front, so that a browser shows the first frame before it has the last.
        self._container = av.open(
            str(self._part), "w", format="mp4" if h264 else "webm",
            options={"movflags": "+faststart"} if h264 else {},
        )  # fmt: skip
        self._stream = self._container.add_stream("libx264" if h264 else "libvpx-vp9", rate=rate)
        self._stream.width, self._stream.height = (side + side % 2 for side in size)
        self._stream.pix_fmt = "yuv420p"
        # 20 is visually lossless or nearly; "veryfast" costs a tenth of a frame's pass through the network.
        self._stream.options = {"crf": "20", "preset": "veryfast"} if h264 else {"crf": "30", "b": "0", "cpu-used": "5"}

    def add(self, picture: Image.Image | np.ndarray) -> None:
        """Append a frame (H, W, 3) uint8 of the size that was promised."""
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
                self._container.close()  # which writes the index, and fails where the disk is full
            if kind is None:
                self._part.replace(self.path)
        finally:
            self._part.unlink(missing_ok=True)
