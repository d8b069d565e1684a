"""The Depth tab: depth in metres where a probe predicts them, and the picture as a point cloud."""

from __future__ import annotations

import gradio as gr

from dinoviz.ui.depth.controls import Controls, layout
from dinoviz.ui.depth.handlers import Handlers
from dinoviz.ui.image_bar import Bar
from dinoviz.ui.shared import EVERY, ONCE, PRIVATE, WAITING, api_only
from dinoviz.ui.stale_answers import Requests, number
from dinoviz.ui.workbench import Workbench


def build(bench: Workbench, bar: Bar, is_open: gr.State) -> gr.Dropdown:
    """Build the tab -> the control that selects the depth probe. is_open: whether the tab is the open one."""
    controls = layout(bench, bar)
    wire(controls, Handlers(bench, controls, Requests(controls.redraw, controls.stamp)), bar, is_open)
    return controls.probe


def wire(controls: Controls, handlers: Handlers, bar: Bar, is_open: gr.State) -> None:
    """Connect the tab's events."""
    c, inputs = controls, [*bar.inputs, controls.points, controls.probe, *controls.settings]
    changes = [part.change for part in (bar.ended, is_open, c.prepared, c.redraw)]
    moved = c.shown, c.colours, c.opacity, c.raw, c.sharp, c.by_itself, c.near, c.far, c.anyway
    drawing = [c.stamp, is_open, bar.ready, c.drawn, c.tried, *inputs]
    gr.on(
        [*changes, *(part.input for part in moved), c.focal.submit, c.focal.blur], handlers.draw_all, drawing,
        [c.drawn, c.pending, c.probe, c.points, c.by_itself, c.redraw, c.stamp, *c.map_outputs, *c.scene_outputs],
        js=number(drawing), **PRIVATE,
    )  # fmt: skip
    c.pending.change(
        handlers.prepare, [c.pending, *bar.inputs, c.probe, c.above], [c.caption, c.stop, c.tried, c.prepared],
        **WAITING,
    )  # fmt: skip
    gr.on([c.probe.input, c.above.input], handlers.predict_again, None, [c.pending, c.tried, c.prepared], **PRIVATE)
    clicked, measured = [c.stamp, c.drawn, *inputs], [c.points, c.drawn, c.redraw, c.stamp, c.view, c.readout]
    c.view.select(handlers.click_point, clicked, measured, js=number(clicked), **EVERY)
    c.clear.click(handlers.clear_points, clicked, measured, js=number(clicked), **EVERY)
    c.stop.click(handlers.stop, queue=False, **ONCE)
    typed = [*bar.inputs, c.api_points, c.probe, *c.settings]
    api_only().click(handlers.depth, typed, [c.view, c.caption, c.readout], api_name="depth", concurrency_limit=2)
    api_only().click(handlers.depth_download, typed, c.file, api_name="depth_download", concurrency_limit=2)
    c.file_button.click(
        handlers.save, inputs, c.file, concurrency_limit=2, api_visibility="private", show_progress="full",
        show_progress_on=c.caption,
    ).success(None, js=c.press_file)  # fmt: skip
