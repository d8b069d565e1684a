"""The video part of the Segment tab: mark the first frame, and track the object through the video."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass

import gradio as gr
import numpy as np
import plotly.graph_objects as go

from dinoviz import figures
from dinoviz.errors import DinovizError
from dinoviz.segment import prompts
from dinoviz.ui.components.mark_canvas import MarkCanvas
from dinoviz.ui.image_bar import Bar
from dinoviz.ui.segment import examples
from dinoviz.ui.segment.state import Choice, Search
from dinoviz.ui.segment.targets import Targets
from dinoviz.ui.segment.tracking import Tracked, check_first, first_frame, track, turns
from dinoviz.ui.shared import ONCE, follow, note, user_errors
from dinoviz.ui.workbench import Look, Workbench

START = "Drop a video, mark the object in its first frame, and track it to the last."


@dataclass(frozen=True, eq=False)
class Controls:
    """The components."""

    clip: gr.File
    example: gr.Button
    first: gr.Button
    start: gr.Button
    stop: gr.Button
    every: gr.Slider
    note: gr.HTML
    results: gr.Column
    overlay: gr.Video
    figure: gr.Plot
    archive: gr.File


def layout() -> Controls:
    """Create the components."""
    with gr.Row():
        clip = gr.File(label="Drop a video", height=110, elem_id="segment-clip", scale=3, min_width=200)
        example = gr.Button("Try an example", size="sm", elem_id="segment-clip-example", scale=1, min_width=110)
    with gr.Row():
        first = gr.Button("1. Mark the first frame", size="sm", elem_id="segment-first", min_width=130)
        start = gr.Button("2. Track the object", size="sm", variant="primary", elem_id="segment-follow", min_width=130)
        stop = gr.Button("Stop", size="sm", interactive=False, elem_id="segment-follow-stop", min_width=70)
    every = gr.Slider(1, 10, value=1, step=1, label="Only every n-th frame", elem_id="segment-every")
    status = gr.HTML(note(START), label="video", elem_id="segment-video-note")
    with gr.Column(visible=False) as results:
        overlay = gr.Video(label="The object in every frame", elem_id="segment-video", interactive=False, loop=True)
        figure = gr.Plot(show_label=False, elem_id="segment-areas")
        archive = gr.File(label="Masks of all frames, areas and the overlay video", elem_id="segment-video-zip")
    return Controls(clip, example, first, start, stop, every, status, results, overlay, figure, archive)


def wire(controls: Controls, bench: Workbench, store: Targets, bar: Bar, canvas: MarkCanvas, options: list) -> None:
    """Connect the events. canvas: has the marks of the first frame. options: in the order of `Choice`."""
    c, handlers = controls, _Handlers(bench, store)
    c.first.click(handlers.load_first, c.clip, [bar.image, c.note], **ONCE)
    c.example.click(examples.clip, None, [bar.image, canvas, c.clip, c.note], **ONCE)
    outputs = [c.note, c.stop, c.results, c.overlay, c.figure, c.archive]
    inputs = [*bar.inputs, canvas, c.clip, c.every, *options]
    c.start.click(handlers.track, inputs, outputs, **{**ONCE, "concurrency_limit": None})
    c.stop.click(handlers.stop, queue=False, **ONCE)


class _Handlers:
    def __init__(self, bench: Workbench, store: Targets):
        self.bench, self.store = bench, store

    def load_first(self, clip: str | None):
        """Put the first frame into the bar, as the picture to mark."""
        with user_errors():
            return first_frame(clip), note("Mark the object in the picture on the left, then track it.")

    def track(self, request: gr.Request, image, model, resolution, marks, clip, every, *options) -> Iterator[tuple]:
        """Track the object, with progress, remaining time and Stop."""
        owner = (request.session_hash, "video")
        with user_errors():
            look = self.bench.peek(image, model, resolution)
            if look is None:
                raise DinovizError("The picture is not encoded yet: wait for it, or press Encode.")
            raw = prompts.by_picture(marks).get(look.picture.digest, [])
            search = Search(self.store.derived, look, raw, Choice(*options))
            check_first(clip, search)
        job = self.bench.start(
            owner, object(), lambda job: track(search, clip, int(every), job.report, turns(self.bench, look))
        )
        unchanged = (gr.skip(),) * 4
        for progress in follow(self.bench, owner, job):
            yield note(html.escape(progress), "caption dv-busy"), gr.Button(interactive=True), *unchanged
        off = gr.Button(interactive=False)
        if job.stopped:
            yield note("Stopped."), off, *unchanged
            return
        try:
            tracked = job.result()
        except DinovizError as error:
            yield note(html.escape(str(error)), "caption dv-error"), off, *unchanged
            return
        files = tracked.overlay, areas_figure(tracked), tracked.archive
        yield note(_caption(look, tracked)), off, gr.Column(visible=True), *files

    def stop(self, request: gr.Request) -> None:
        """Stop tracking."""
        self.bench.stop((request.session_hash, "video"))


def areas_figure(tracked: Tracked) -> go.Figure:
    """The share of the frame that the object covers, over time."""
    return figures.areas_figure(np.arange(len(tracked.areas)) / tracked.rate, np.array(tracked.areas) * 100)


def _caption(look: Look, tracked: Tracked) -> str:
    text = (
        f"{len(tracked.areas)} frames, <b>{html.escape(look.backbone.name)}</b> at {look.resolution} px: masks are "
        "propagated from the first and the seven previous frames, between similar patches that are near each other."
    )
    return text + (f'<br><span class="dv-error">{html.escape(tracked.problem)}</span>' if tracked.problem else "")
