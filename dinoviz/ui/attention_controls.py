"""The Attention tab's components."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import gradio as gr

from dinoviz import render
from dinoviz.attention import MEAN, map_names
from dinoviz.ui.attention_views import CLS
from dinoviz.ui.image_bar import Bar
from dinoviz.ui.shared import download, note, view_image
from dinoviz.ui.stale_answers import stamp

HEADS_NOTE = (
    "Each dot is one head; the selected layer is highlighted. Left: mean distance between a query patch and the "
    "patches it attends to. Right: entropy of its attention, as log2 of the number of tokens it is spread over."
)


class Drawn(NamedTuple):
    """What the tab shows. look: its key. picture: its digest. layers: of the model. layer: the selected one."""

    look: Hashable = None
    picture: str | None = None
    layers: int = 12
    layer: int = 12


@dataclass(frozen=True, eq=False)
class Controls:
    """The tab's components.

    drawn: a `Drawn`. redraw: changes when the tab has to be drawn once more, see `stale_answers`.
    stamp: counts the answers on the page, see there.
    pending: key of what has to be computed before the selected map can be drawn. prepared: changes when that is done.
    """

    photo: gr.Image
    heat: gr.Image
    sheet: gr.Image
    caption: gr.HTML
    stop: gr.Button
    figure: gr.Plot
    layer: gr.Slider
    shown: gr.Dropdown
    query: gr.Textbox
    cls: gr.Button
    raw: gr.Checkbox
    mass: gr.Slider
    opacity: gr.Slider
    colormap: gr.Dropdown
    registers: gr.Button
    file_button: gr.Button
    file: gr.DownloadButton
    press_file: str
    nudge: gr.Textbox
    drawn: gr.State
    redraw: gr.State
    stamp: gr.Textbox
    pending: gr.State
    prepared: gr.State

    @property
    def settings(self) -> list:
        """The inputs of `ViewSettings`, in its order."""
        return [self.layer, self.shown, self.query, self.colormap, self.opacity, self.raw, self.mass]

    @property
    def pictures(self) -> list:
        """The outputs of `draw`, in its order."""
        return [self.photo, self.heat, self.sheet, self.caption]


def layout(bar: Bar) -> Controls:
    """Create the tab's components."""
    with gr.Row():
        photo = view_image("Click a patch to see its attention; arrow keys move the query", "attention-photo")
        heat = view_image("Attention map; a click here moves the query as well", "attention-map")
    with gr.Row():
        caption = gr.HTML(note("Waiting for the picture …"), label="caption", elem_id="attention-caption")
        stop = gr.Button("Stop", size="sm", visible=False, scale=0, elem_id="attention-stop")
    settings = _layout_settings()
    with gr.Row():
        file_button, file, press = download("attention-file")
        registers = gr.Button("Use the register model", size="sm", elem_id="attention-registers")
    sheet = view_image("All heads, each on its own scale: click one to enlarge it", "attention-heads", height=480)
    figure = gr.Plot(show_label=False, elem_id="attention-figure")
    gr.HTML(note(HEADS_NOTE))
    nudge = gr.Textbox(visible="hidden", elem_id="attention-nudge")
    with bar.unseen:
        drawn, redraw, pending, prepared = gr.State(Drawn()), gr.State(None), gr.State(None), gr.State(None)
        counter = stamp()
    return Controls(
        photo=photo, heat=heat, sheet=sheet, caption=caption, stop=stop, figure=figure, registers=registers,
        file_button=file_button, file=file, press_file=press, nudge=nudge, drawn=drawn, redraw=redraw,
        stamp=counter, pending=pending, prepared=prepared, **settings,
    )  # fmt: skip


def _layout_settings() -> dict[str, gr.components.Component]:
    """Create the components that select what is shown and how, by their names in `Controls`."""
    with gr.Row():
        with gr.Column(min_width=260):
            layer = gr.Slider(1, 12, value=12, step=1, label="Layer", elem_id="attention-layer")
            shown = gr.Dropdown(map_names(6), value=MEAN, label="Map", elem_id="attention-shown")
        with gr.Column(min_width=260):
            query = gr.Textbox(
                CLS, label="Query", info="CLS, or x, y in pixels of the picture", elem_id="attention-query"
            )
            with gr.Row():
                cls = gr.Button("CLS token", size="sm", elem_id="attention-cls")
                raw = gr.Checkbox(False, label="Raw patch grid", elem_id="attention-raw", min_width=130)
        with gr.Column(min_width=260):
            mass = gr.Slider(
                0.05, 1, value=1, step=0.05, label="Attention mass to keep (1: all; DINO figures: 0.6)",
                elem_id="attention-mass",
            )  # fmt: skip
            with gr.Row():
                opacity = gr.Slider(
                    0, 1, value=0.7, step=0.05, label="Opacity", elem_id="attention-opacity", min_width=140
                )
                colormap = gr.Dropdown(
                    list(render.COLORMAPS), value="inferno", label="Colours", elem_id="attention-colours", min_width=110
                )
    return {
        "layer": layer, "shown": shown, "query": query, "cls": cls, "raw": raw, "mass": mass, "opacity": opacity,
        "colormap": colormap,
    }  # fmt: skip
