"""The video part of the Segment tab: mark the first frame, and follow the thing through the clip."""

from __future__ import annotations

import csv
import html
import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import gradio as gr
import numpy as np
import plotly.graph_objects as go
from PIL import Image

from dinoviz import figures, render, video
from dinoviz.cache import image_digest
from dinoviz.errors import DinovizError
from dinoviz.segment import prompts as marking
from dinoviz.ui.image_bar import Bar
from dinoviz.ui.segment import examples as segment_examples
from dinoviz.ui.segment.state import Choice, Search, mark
from dinoviz.ui.segment.targets import Targets
from dinoviz.ui.shared import ONCE, api_only, follow, note, told, write_about
from dinoviz.ui.temporary_files import fresh_folder, session_folder
from dinoviz.ui.workbench import Look, Workbench
from dinoviz.video import io as clips

START = "Drop a video, mark the thing in its first frame, and follow it to the last."
MAX_FRAMES = 3000  # an hour's work for a laptop; the command line goes on where it was stopped
Tell = Callable[[str, float], None]
Turn = Callable[[], AbstractContextManager]


@dataclass(frozen=True)
class Followed:
    """What came of one clip. areas: of each frame, as shares of it; trouble: why it ended early, in one sentence."""

    overlay: str
    archive: str
    areas: list[float]
    rate: float
    trouble: str


def build(bench: Workbench, bar: Bar, store: Targets, canvas: gr.HTML, options: list) -> None:
    """Lay out the part and wire it."""
    with gr.Row():
        clip = gr.File(label="Drop a video", height=110, elem_id="segment-clip", scale=3, min_width=200)
        example = gr.Button("Try an example", size="sm", elem_id="segment-clip-example", scale=1, min_width=110)
    with gr.Row():
        first = gr.Button("1. Mark its first frame", size="sm", elem_id="segment-first", min_width=130)
        start = gr.Button("2. Follow it", size="sm", variant="primary", elem_id="segment-follow", min_width=130)
        stop_button = gr.Button("Stop", size="sm", interactive=False, elem_id="segment-follow-stop", min_width=70)
    every = gr.Slider(1, 10, value=1, step=1, label="Only every n-th frame", elem_id="segment-every")
    said = gr.HTML(note(START), label="video", elem_id="segment-video-note")
    with gr.Column(visible=False) as results:
        overlay = gr.Video(label="The thing in every frame", elem_id="segment-video", interactive=False, loop=True)
        figure = gr.Plot(show_label=False, elem_id="segment-areas")
        archive = gr.File(label="Masks of all frames, areas and the overlay video", elem_id="segment-video-zip")
    inputs = [*bar.inputs, canvas, clip, every, *options]
    outputs = [said, stop_button, results, overlay, figure, archive]

    def load_first(clip: str | None):
        """The first frame as the picture that one marks."""
        with told():
            return first_frame(clip), note("Now mark the thing in the picture on the left, then follow it.")

    def run(request: gr.Request, image, model, resolution, marks, clip, every, *chosen) -> Iterator[tuple]:
        """Follow the thing, with progress, estimate and Stop."""
        owner = (request.session_hash, "video")
        with told():
            look = bench.peek(image, model, resolution)
            if look is None:
                raise DinovizError("The picture is not encoded yet: wait for it, or press Encode.")
            raw = marking.by_picture(marks).get(look.picture.digest, [])
            search = Search(store.derived, look, raw, Choice(*chosen))
            check_first(clip, search)
        job = bench.start(
            owner, object(), lambda job: follow_through(search, clip, int(every), job.tell, turns(bench, look))
        )
        keep = (gr.skip(),) * 4
        for sentence in follow(bench, owner, job):
            yield note(html.escape(sentence), "caption dv-busy"), gr.Button(interactive=True), *keep
        off = gr.Button(interactive=False)
        if job.stopped:
            yield note("Stopped."), off, *keep
            return
        try:
            done = job.result()
        except DinovizError as error:
            yield note(html.escape(str(error)), "caption dv-error"), off, *keep
            return
        yield (
            note(_told(search.look, done)),
            off,
            gr.Column(visible=True),
            done.overlay,
            areas_figure(done),
            done.archive,
        )

    def stop(request: gr.Request) -> None:
        bench.stop((request.session_hash, "video"))

    def segment_video(
        model: str, resolution: str, clip: str | None, marks: str, every: int, auto: bool, threshold: float,
        refine: bool, smallest: float, instances: str, method: str, view: str, opacity: float,
    ) -> tuple[str, dict, str]:  # fmt: skip
        """Point at a thing in the first frame of a video, and get its mask in every frame.

        Args:
            model: a name from the list
            resolution: the short side in model pixels
            clip: the video
            marks: JSON as for the segment endpoint, in pixels of the first frame
            every: only every n-th frame
            auto: as for the segment endpoint, for the first frame; and so are the next five
            view: not used here
            opacity: of the mask in the overlay video, 0 to 1
        Returns:
            the overlay video, the areas as shares of the frame, and a zip of the masks
        """
        with told():
            choice = Choice(auto, threshold, refine, smallest, instances, method, view, opacity)
            look = bench.look(first_frame(clip), model, int(resolution))
            search = Search(store.derived, look, marking.listed(marks), choice)
            done = follow_through(search, clip, int(every), turn=turns(bench, look))
            said = {"areas": done.areas, "frames_a_second": done.rate, "trouble": done.trouble}
            return done.overlay, said, done.archive

    first.click(load_first, clip, [bar.image, said], **ONCE)
    example.click(segment_examples.clip, None, [bar.image, canvas, clip, said], **ONCE)
    start.click(run, inputs, outputs, **{**ONCE, "concurrency_limit": None})
    stop_button.click(stop, queue=False, **ONCE)
    marks = gr.Textbox("[]", label="marks", visible=False)
    areas = gr.JSON(label="areas", visible=False)
    api_only().click(
        segment_video, [bar.model, bar.resolution, clip, marks, every, *options], [overlay, areas, archive],
        api_name="segment_video", concurrency_limit=1,
    )  # fmt: skip


def first_frame(clip: str | None) -> str:
    """The first frame as a PNG file. Raises DinovizError."""
    if not clip:
        raise DinovizError("There is no video yet: drop one.")
    picture = _first(clip)
    folder = session_folder() / image_digest(picture)
    folder.mkdir(exist_ok=True)
    path = folder / f"{Path(clip).stem}-first-frame.png"
    path.write_bytes(render.to_png(picture))
    return str(path)


def _first(clip: str) -> Image.Image:
    return next(clips.open_clip(clip).frames())[1]


def check_first(clip: str | None, search: Search) -> None:
    """Raises DinovizError unless something is marked on the first frame of the clip."""
    if not clip:
        raise DinovizError("There is no video yet: drop one.")
    if image_digest(_first(clip)) != search.look.picture.digest:
        raise DinovizError(
            "The picture on the left is not the first frame of this video: press 'Mark its first frame'."
        )
    if search.marked is None:
        raise DinovizError("Nothing is marked in the first frame: click on the thing, or draw over it.")


def turns(bench: Workbench, look: Look) -> Turn:
    """A turn for each step of a clip, so that whoever encodes one picture need not wait for the whole of it."""
    at_once = 1 if look.backbone.device.type == "cpu" else 8  # frames, as `video.propagate` takes them
    return lambda: bench.pass_turn(look.backbone, at_once * look.features.grid.patches)


def follow_through(
    search: Search, clip_path: str, every: int = 1, tell: Tell = lambda *_: None, turn: Turn = nullcontext
) -> Followed:
    """Propagate the marks of the first frame. Raises DinovizError if not one frame could be done.

    turn: gives the right to run the network over the next frames.
    """
    look = search.look
    found = mark(look.features, look.picture.image, search.parsed, search.choice)
    if found is None:
        raise DinovizError("Nothing is marked in the first frame: click on the thing, or draw over it.")
    clip = clips.open_clip(clip_path)
    expected = min(MAX_FRAMES, -(-clip.count // every)) if clip.count else None
    folder = fresh_folder()
    archive, areas, trouble = folder / "video-masks.zip", [], ""

    def on_progress(done: float) -> None:
        frame = f"Following, frame {int(done) + 1}" + (f" of {expected}" if expected else "")
        tell(frame, min(done / expected, 0.999) if expected else 0)

    def pictures() -> Iterator[Image.Image]:
        for _, picture in clip.frames(every):
            if len(areas) == MAX_FRAMES:
                raise DinovizError(
                    f"Only the first {MAX_FRAMES:,} frames are followed here; see `python -m dinoviz video`."
                )
            yield picture

    rate = clip.rate / every
    with (
        zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as files,
        clips.VideoWriter(folder / "overlay", clip.size, rate) as writer,
    ):
        try:
            steps = video.propagate(
                pictures(), found.mask, look.backbone, resolution=look.resolution, on_progress=on_progress
            )
            while tracked := _next(steps, turn):
                mask = tracked.mask > 0
                files.writestr(f"masks/{tracked.index:06d}.png", render.to_png(mask.astype(np.uint8) * 255))
                writer.add(render.overlay(tracked.picture, mask, search.choice.opacity))
                areas.append(float(mask.mean()))
        except DinovizError as error:  # a clip that is cut off: what was done up to here is good
            if not areas:
                raise
            trouble = str(error)
        files.writestr("areas.csv", _table(areas))
        write_about(
            files,
            {
                "view": "video",
                **look.about(),
                "clip": {"name": Path(clip_path).name, "frames_a_second": float(rate), "every": every},
                "marks": search.marks,
                "options": asdict(search.choice),
                "propagation": asdict(video.Settings()),
                "trouble": trouble,
            },
        )
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_STORED) as files:
        files.write(writer.path, writer.path.name)
    return Followed(str(writer.path), str(archive), areas, float(rate), trouble)


def _next(steps: Iterator[video.Tracked], turn: Turn) -> video.Tracked | None:
    with turn():
        return next(steps, None)


def _table(areas: list[float]) -> str:
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["frame", "share of the frame"])
    rows.writerows((i, f"{area:.6f}") for i, area in enumerate(areas))
    return text.getvalue()


def areas_figure(done: Followed) -> go.Figure:
    """The share of the frame that the thing covers, over time."""
    return figures.areas_figure(np.arange(len(done.areas)) / done.rate, np.array(done.areas) * 100)


def _told(look: Look, done: Followed) -> str:
    text = f"{len(done.areas)} frames through <b>{html.escape(look.backbone.name)}</b> at {look.resolution} px: "
    text += "labels travel from the first frame and the seven before, among patches that are alike and near."
    return text + (f'<br><span class="dv-error">{html.escape(done.trouble)}</span>' if done.trouble else "")
