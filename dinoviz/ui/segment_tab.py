"""The Segment tab: point at a thing or draw over it, and find it in other pictures and in a video."""

from __future__ import annotations

from collections.abc import Hashable

import gradio as gr
from gradio.utils import get_upload_folder

from dinoviz import marks as marking
from dinoviz.ui.bar import Bar
from dinoviz.ui.mark_canvas import MarkCanvas
from dinoviz.ui.parts import colour_bar, encoded, jpeg_file, note, through, told
from dinoviz.ui.segment_state import (
    ALL,
    CLICKED,
    METHODS,
    OVERLAY,
    RAW,
    SCORE,
    VIEWS,
    Choice,
    Reference,
    draw,
    in_words,
    layers_in_words,
)
from dinoviz.ui.workbench import Look, Workbench

EMPTY = "Click on the thing you want, or choose Draw and paint over it."


def build(bench: Workbench, bar: Bar) -> None:
    """Lay out the tab and wire it."""
    with gr.Row(), gr.Column(min_width=320):
        gr.HTML('<div class="dv-title-of">What you want: click on it, or draw over it</div>', padding=False)
        canvas = MarkCanvas(elem_id="segment-reference", label="marks")
        caption = gr.HTML(note("Waiting for the picture …"), label="caption", elem_id="segment-caption")
    with gr.Row():
        with gr.Column(min_width=260):
            with gr.Row():
                auto = gr.Checkbox(True, label="Calibrated threshold", elem_id="segment-auto", min_width=130)
                refine = gr.Checkbox(True, label="Follow edges", elem_id="segment-refine", min_width=130)
            threshold = gr.Slider(
                0, 1, value=0.5, step=0.01, label="Threshold of the score", elem_id="segment-threshold",
                interactive=False,
            )  # fmt: skip
        with gr.Column(min_width=260):
            instances = gr.Radio([CLICKED, ALL], value=CLICKED, label="Keep", elem_id="segment-instances")
            smallest = gr.Slider(
                0, 5, value=0.1, step=0.05, label="Smallest area, % of the picture", elem_id="segment-smallest"
            )
        with gr.Column(min_width=260):
            view = gr.Radio(list(VIEWS), value=OVERLAY, label="Show", elem_id="segment-view")
            opacity = gr.Slider(0, 1, value=0.5, step=0.05, label="Opacity", elem_id="segment-opacity")
            method = gr.Radio(list(METHODS), value="evidence", label="Method", elem_id="segment-method")
    options = [auto, threshold, refine, smallest, instances, method, view, opacity]
    inputs = [*bar.inputs, canvas, *options]

    def repaint(image, model, resolution, marks, *chosen):
        look = encoded(bench, image, model, resolution)
        if look is None:
            return gr.skip(), gr.skip()
        with told():
            return _paint(bench, _reference(look, marks), Choice(*chosen))

    def refresh(ready: Hashable, image, model, resolution, marks, *chosen):
        if ready is None:
            return MarkCanvas(picture="", image=""), note("There is nothing to see until a picture is encoded.")
        look = bench.peek(image, model, resolution)
        if look is None:  # the page has gone on to another one
            return gr.skip(), gr.skip()
        with told():
            return _paint(bench, _reference(look, marks), Choice(*chosen))

    def unlock_threshold(auto: bool):
        return gr.Slider(interactive=not auto)

    quiet = {"show_progress": "hidden", "concurrency_limit": 8}
    private = {**quiet, "api_visibility": "private"}
    bar.ready.change(refresh, [bar.ready, *inputs], [canvas, caption], **private)
    gr.on(
        [canvas.input, *(option.input for option in options)], repaint, inputs, [canvas, caption],
        trigger_mode="always_last", **private,
    )  # fmt: skip
    auto.input(unlock_threshold, auto, threshold, **private)


def _reference(look: Look, text: str) -> Reference:
    raw = marking.by_picture(text).get(look.picture.digest, [])
    return Reference(look, raw, marking.parse(raw, look.picture.image.size))


def _paint(bench: Workbench, reference: Reference, choice: Choice) -> tuple:
    """The canvas with the mask, and the caption."""
    look = reference.look
    found = reference.segmentation(bench, choice)
    picture = draw(look.picture.shown, look.features, found, choice)
    canvas = gr.update(
        image=jpeg_file(picture, get_upload_folder()),
        picture=look.picture.digest,
        size=list(look.picture.image.size),
        answered=len(reference.marks),
    )
    return canvas, note(_caption(reference, found, choice))


def _caption(reference: Reference, found, choice: Choice) -> str:
    look = reference.look
    text = f"{through(look)} · {layers_in_words(look.backbone.layers)}<br>"
    if found is None:
        return text + EMPTY
    area = found.mask.mean()
    text += f"{in_words(reference.marks)} · mask {area:.1%} of the picture"
    if choice.view in (SCORE, RAW):
        text += "<br>" + colour_bar((0, 1), "viridis", "score")
    return text
