"""The Segment tab's components."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from dinoviz.segment.few_shot import METHODS
from dinoviz.ui.components.mark_canvas import MarkCanvas
from dinoviz.ui.image_bar import Bar
from dinoviz.ui.mask_views import OVERLAY, VIEWS
from dinoviz.ui.segment import downloads, video
from dinoviz.ui.segment.state import ALL, CLICKED
from dinoviz.ui.segment.target_gallery import TargetGallery
from dinoviz.ui.segment.views import gallery_caption
from dinoviz.ui.shared import note


@dataclass(frozen=True, eq=False)
class Controls:
    """The tab's components.

    options: in the order of `Choice`. encoded: a State that changes with the targets that are encoded. drawn: a State
    with what the reference was drawn from: look, marks, corrections, options.
    """

    canvas: MarkCanvas
    caption: gr.HTML
    options: list
    download: downloads.Controls
    files: gr.File
    example: gr.Button
    progress_row: gr.Row
    progress: gr.HTML
    stop: gr.Button
    resume: gr.Button
    gallery_caption: gr.HTML
    gallery: TargetGallery
    target_column: gr.Column
    target: MarkCanvas
    target_caption: gr.HTML
    video: video.Controls
    encoded: gr.State
    drawn: gr.State

    @property
    def inputs(self) -> list:
        """The inputs of `Query` that are not in the bar."""
        return [self.canvas, self.files, self.target, *self.options]


def layout(bar: Bar) -> Controls:
    """Create the tab's components."""
    with gr.Row():
        with gr.Column(min_width=320):
            reference = {
                "canvas": MarkCanvas(title="The object: click on it, or draw over it", elem_id="segment-reference"),
                "caption": gr.HTML(note("Waiting for the picture …"), label="caption", elem_id="segment-caption"),
                "options": _layout_options(),
                "download": downloads.layout(),
            }
        with gr.Column(min_width=320), gr.Tabs():
            with gr.Tab("In other pictures", id="segment-pictures"):
                targets = _layout_targets()
            with gr.Tab("In a video", id="segment-clips"):
                clip = video.layout()
    with bar.unseen:
        encoded, drawn = gr.State(None), gr.State(None)
    return Controls(**reference, **targets, video=clip, encoded=encoded, drawn=drawn)


def _layout_options() -> list:
    """The options, in the order of `Choice`."""
    with gr.Row():
        view = gr.Radio(list(VIEWS), value=OVERLAY, label="Show", elem_id="segment-view", min_width=250)
        instances = gr.Radio([CLICKED, ALL], value=CLICKED, label="Keep", elem_id="segment-instances", min_width=200)
    with gr.Row():
        auto = gr.Checkbox(True, label="Calibrated threshold", elem_id="segment-auto", min_width=130)
        refine = gr.Checkbox(True, label="Follow edges", elem_id="segment-refine", min_width=110)
    with gr.Row():
        threshold = gr.Slider(
            0, 1, value=0.5, step=0.01, label="Threshold", elem_id="segment-threshold", interactive=False, min_width=140
        )
        smallest = gr.Slider(
            0, 5, value=0.1, step=0.05, label="Smallest area, %", elem_id="segment-smallest", min_width=140
        )
    with gr.Row():
        opacity = gr.Slider(0, 1, value=0.5, step=0.05, label="Opacity", elem_id="segment-opacity", min_width=140)
        method = gr.Dropdown(list(METHODS), value="evidence", label="Method", elem_id="segment-method", min_width=140)
    return [auto, threshold, refine, smallest, instances, method, view, opacity]


def _layout_targets() -> dict:
    """The other pictures: fields of `Controls`."""
    with gr.Row():
        files = gr.File(
            label="Drop pictures", file_count="multiple", height=130, value=[], elem_id="segment-files", scale=3,
            min_width=200,
        )  # fmt: skip
        example = gr.Button("Try an example", size="sm", elem_id="segment-example", scale=1, min_width=110)
    with gr.Row(visible=False, elem_id="segment-progress") as progress_row:
        progress = gr.HTML(label="progress", elem_id="segment-encoding")
        stop = gr.Button("Stop", size="sm", scale=0, min_width=90, elem_id="segment-stop")
        resume = gr.Button("Resume", size="sm", scale=0, min_width=90, elem_id="segment-resume", visible=False)
    found = gr.HTML(note(gallery_caption([], None)), label="found", elem_id="segment-found")
    gallery = TargetGallery(elem_id="segment-gallery")
    with gr.Column(visible=False, elem_id="segment-open") as target_column:
        target = MarkCanvas(title="Correct the mask here: all results are updated", elem_id="segment-target")
        target_caption = gr.HTML(label="target", elem_id="segment-target-caption")
    return {
        "files": files, "example": example, "progress_row": progress_row, "progress": progress, "stop": stop,
        "resume": resume, "gallery_caption": found, "gallery": gallery, "target_column": target_column,
        "target": target, "target_caption": target_caption,
    }  # fmt: skip
