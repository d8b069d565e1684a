"""The mask of the first frame of a video, propagated to all frames: an overlay video, masks and areas as files."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dinoviz import render, video
from dinoviz.cache import image_digest
from dinoviz.errors import DinovizError
from dinoviz.segment.segmentation import Segmentation
from dinoviz.ui.segment.state import Search, mark
from dinoviz.ui.shared import write_about
from dinoviz.ui.temporary_files import fresh_folder, session_folder
from dinoviz.ui.workbench import Look, Workbench
from dinoviz.video import io as clips

MAX_FRAMES = 3000  # an hour's work for a laptop; the command line can resume
NOT_MARKED = "No object is marked in the first frame: click on it, or draw over it."
NO_VIDEO = "There is no video yet: drop one."
Report = Callable[[str, float], None]
Turn = Callable[[], AbstractContextManager]


@dataclass(frozen=True)
class Tracked:
    """The files of one video. areas: of the mask in each frame, as a share; problem: why it ended early, or ""."""

    overlay: str
    archive: str
    areas: list[float]
    rate: float
    problem: str


def first_frame(clip: str | None) -> str:
    """Write the first frame as a PNG file of the session; returns the path. Raises DinovizError."""
    if not clip:
        raise DinovizError(NO_VIDEO)
    picture = _first(clip)
    folder = session_folder() / image_digest(picture)
    folder.mkdir(exist_ok=True)
    path = folder / f"{Path(clip).stem}-first-frame.png"
    path.write_bytes(render.to_png(picture))
    return str(path)


def _first(clip: str) -> Image.Image:
    return next(clips.open_clip(clip).frames())[1]


def check_first(clip: str | None, search: Search) -> None:
    """Raises DinovizError unless an object is marked on the first frame of the clip."""
    if not clip:
        raise DinovizError(NO_VIDEO)
    if image_digest(_first(clip)) != search.look.picture.digest:
        raise DinovizError("The picture on the left is not the first frame of this video: press Mark the first frame.")
    if search.reference is None:
        raise DinovizError(NOT_MARKED)


def turns(bench: Workbench, look: Look) -> Turn:
    """A turn of the network for each step of a clip, so that other users need not wait for the whole clip."""
    at_once = 1 if look.backbone.device.type == "cpu" else 8  # frames, as `video.propagate` takes them
    return lambda: bench.pass_turn(look.backbone, at_once * look.features.grid.patches)


def track(
    search: Search, clip_path: str, every: int = 1, report: Report = lambda *_: None, turn: Turn = nullcontext
) -> Tracked:
    """Propagate the mask of the first frame to every n-th frame.

    Args:
        search: the first frame with its marks.
        clip_path: the video.
        every: n.
        report: called with the progress.
        turn: the right to run the network over the next frames.

    Raises:
        DinovizError: if nothing is marked, or not one frame can be read.
    """
    look = search.look
    found = mark(look.features, look.picture.image, search.parsed, search.choice)
    if found is None:
        raise DinovizError(NOT_MARKED)
    clip = clips.open_clip(clip_path)
    folder = fresh_folder()
    archive, rate = folder / "video-masks.zip", clip.rate / every
    with (
        zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as files,
        clips.VideoWriter(folder / "overlay", clip.size, rate) as writer,
    ):
        steps = _steps(search, found, clip, every, report)
        areas, problem = _write_frames(steps, files, writer, search.choice.opacity, turn)
        files.writestr("areas.csv", _table(areas))
        about = {
            "clip": {"name": Path(clip_path).name, "frames_a_second": float(rate), "every": every},
            "marks": search.marks,
            "options": asdict(search.choice),
            "propagation": asdict(video.Settings()),
            "trouble": problem,
        }
        write_about(files, {"view": "video", **look.about(), **about})
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_STORED) as files:
        files.write(writer.path, writer.path.name)
    return Tracked(str(writer.path), str(archive), areas, float(rate), problem)


def _steps(
    search: Search, found: Segmentation, clip: clips.Clip, every: int, report: Report
) -> Iterator[video.Tracked]:
    """The frames with their masks, one by one, with the progress reported."""
    expected = min(MAX_FRAMES, -(-clip.count // every)) if clip.count else None

    def on_progress(done: float) -> None:
        frame = f"Tracking, frame {int(done) + 1}" + (f" of {expected}" if expected else "")
        report(frame, min(done / expected, 0.999) if expected else 0)

    def pictures() -> Iterator[Image.Image]:
        for number, (_, picture) in enumerate(clip.frames(every)):
            if number == MAX_FRAMES:
                raise DinovizError(
                    f"Only the first {MAX_FRAMES:,} frames are tracked here; use `python -m dinoviz video` for more."
                )
            yield picture

    look = search.look
    return video.propagate(pictures(), found.mask, look.backbone, resolution=look.resolution, on_progress=on_progress)


def _write_frames(
    steps: Iterator[video.Tracked], files: zipfile.ZipFile, writer: clips.VideoWriter, opacity: float, turn: Turn
) -> tuple[list[float], str]:
    """Write the mask and the overlay of each frame; returns the areas, and why the video ended early, or ""."""
    areas: list[float] = []
    try:
        while step := _next(steps, turn):
            mask = step.mask > 0
            files.writestr(f"masks/{step.index:06d}.png", render.to_png(mask.astype(np.uint8) * 255))
            writer.add(render.overlay(step.picture, mask, opacity))
            areas.append(float(mask.mean()))
    except DinovizError as error:  # a damaged video: the frames before are good
        if not areas:
            raise
        return areas, str(error)
    return areas, ""


def _next(steps: Iterator[video.Tracked], turn: Turn) -> video.Tracked | None:
    with turn():
        return next(steps, None)


def _table(areas: list[float]) -> str:
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["frame", "share of the frame"])
    rows.writerows((i, f"{area:.6f}") for i, area in enumerate(areas))
    return text.getvalue()
