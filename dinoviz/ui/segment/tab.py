"""The Segment tab: mark an object with clicks or strokes, and find it in other pictures and in a video."""

from __future__ import annotations

import gradio as gr

from dinoviz.ui.image_bar import Bar
from dinoviz.ui.segment import api, downloads, examples, video
from dinoviz.ui.segment.handlers import Handlers
from dinoviz.ui.segment.layout import Controls, layout
from dinoviz.ui.segment.targets import Targets
from dinoviz.ui.shared import ONCE, PRIVATE, WAITING
from dinoviz.ui.workbench import Workbench


def build(bench: Workbench, bar: Bar, is_open: gr.State) -> None:
    """Build the tab. is_open: whether it is the open one."""
    controls = layout(bar)
    wire(controls, bench, bar, is_open)


def wire(controls: Controls, bench: Workbench, bar: Bar, is_open: gr.State) -> None:
    """Connect the components' events to their handlers, and add the endpoints."""
    c, store = controls, Targets(bench)
    handlers = Handlers(bench, store)
    inputs = [*bar.inputs, *c.inputs]
    changes = [c.canvas.input, c.target.input, *(option.input for option in c.options)]
    video.wire(c.video, bench, store, bar, c.canvas, c.options)
    api.add_video(bench, store, bar, c.video, c.options)
    gr.on(
        [c.files.change, bar.ended.change, c.resume.click], handlers.encode_targets,
        [bar.ready, c.encoded, *bar.inputs, c.files], [c.progress, c.progress_row, c.stop, c.resume, c.encoded],
        **WAITING,
    )  # fmt: skip
    gr.on(
        [bar.ended.change, is_open.change, *changes], handlers.draw_reference, [is_open, bar.ready, c.drawn, *inputs],
        [c.canvas, c.caption, c.drawn], **PRIVATE,
    )  # fmt: skip
    # After the reference, and so no more often than that is drawn, however fast a slider moves.
    gr.on([c.drawn.change, c.encoded.change], handlers.draw_gallery, inputs, [c.gallery, c.gallery_caption], **WAITING)
    gr.on(
        [*changes, c.encoded.change, c.gallery.select], handlers.open_target, [c.gallery, *inputs],
        [c.target_column, c.target, c.target_caption], **PRIVATE,
    )  # fmt: skip
    auto, threshold, *_ = c.options
    auto.input(handlers.unlock_threshold, auto, threshold, **PRIVATE)
    c.stop.click(handlers.stop, queue=False, **ONCE)
    api.add_pictures(bench, store, bar, c)
    downloads.wire(c.download, handlers, inputs)
    instances = c.options[4]
    c.example.click(examples.pictures, None, [bar.image, c.canvas, c.files, instances], **ONCE)
