"""The Compare tab: any two models or runs on the same picture, side by side."""

from __future__ import annotations

import gradio as gr

from dinoviz.ui.compare.controls import Controls, layout
from dinoviz.ui.compare.handlers import Handlers, show_settings
from dinoviz.ui.image_bar import Bar
from dinoviz.ui.shared import ONCE, PRIVATE, WAITING, api_only
from dinoviz.ui.workbench import Workbench


def build(bench: Workbench, bar: Bar, is_open: gr.State) -> None:
    """Build the tab. is_open: whether it is the open one."""
    controls = layout(bench, bar)
    wire(controls, Handlers(bench, controls), bar, is_open)


def wire(controls: Controls, handlers: Handlers, bar: Bar, is_open: gr.State) -> None:
    """Connect the tab's events."""
    c, inputs = controls, [bar.image, *controls.models]
    changes = [part.change for part in (bar.ended, is_open, c.prepared)]
    changes += [part.input for part in (*c.models, c.canvas, *c.settings)]
    gr.on(
        changes, handlers.draw_all, [is_open, c.drawn, c.errors, *inputs, c.canvas, *c.settings],
        [c.drawn, c.pending, c.heads, c.layer, c.canvas, c.results, *c.outputs], **PRIVATE,
    )  # fmt: skip
    c.pending.change(handlers.prepare, c.pending, [c.agreement, c.stop, c.errors, c.prepared], **WAITING)
    c.compare.click(handlers.try_again, None, [c.errors, c.prepared], **PRIVATE)
    shown_by_view = [c.layer, c.heads, c.scale, c.colours, c.foreground, c.clicks]
    c.view.change(show_settings, c.view, shown_by_view, **PRIVATE)
    gr.on([c.model_a.focus, c.model_b.focus], handlers.list_models, None, [c.model_a, c.model_b], **PRIVATE)
    c.stop.click(handlers.stop, queue=False, **ONCE)
    api_only().click(
        handlers.compare, [*inputs, *c.settings, c.api_marks],
        [c.picture_a, c.picture_b, c.caption_a, c.caption_b, c.agreement], api_name="compare", concurrency_limit=2,
    )  # fmt: skip
    c.knn.click(handlers.measure_knn, [c.model_a, c.model_b], [c.knn_table, c.knn_stop], **WAITING)
    c.knn_stop.click(handlers.stop_knn, queue=False, **ONCE)
