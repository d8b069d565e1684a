"""The Depth tab's components."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import gradio as gr

from dinoviz import render
from dinoviz.ui.components.live_figure import LiveFigure
from dinoviz.ui.depth.state import DEPTH, SHOWN, STEP
from dinoviz.ui.depth.views import CLICK
from dinoviz.ui.image_bar import Bar
from dinoviz.ui.shared import LiveDropdown, download, note, view_image
from dinoviz.ui.stale_answers import stamp
from dinoviz.ui.workbench import Workbench


@dataclass(frozen=True)
class Drawn:
    """What the tab shows. look: its key. scene, map: what the scene's parts and the map were drawn from.

    map is None where another handler than `draw_all` wrote since: a click, or the progress of a pass.
    limits: the values that near and far were given.
    """

    look: Hashable = None
    scene: Hashable = None
    map: Hashable = None
    limits: tuple[float, float] = (0, 10)


@dataclass(frozen=True, eq=False)
class Controls:
    """The tab's components.

    drawn: a `Drawn`. redraw: changes when the tab has to be drawn once more, see `stale_answers`.
    stamp: counts the answers on the page, see there.
    points: the digest of the picture that was clicked, and the points.
    pending: the key of a prediction for which a network has to run first. prepared: changes when it has run, and when
    it is wanted again. tried: the `pending` that was stopped or failed last.
    """

    notice: gr.HTML
    view: gr.Image
    cloud: LiveFigure
    cloud_note: gr.HTML
    caption: gr.HTML
    stop: gr.Button
    readout: gr.HTML
    clear: gr.Button
    probe: gr.Dropdown
    shown: gr.Radio
    anyway: gr.Checkbox
    above: gr.Checkbox
    colours: gr.Dropdown
    opacity: gr.Slider
    raw: gr.Checkbox
    sharp: gr.Checkbox
    focal: gr.Number
    by_itself: gr.Checkbox
    near: gr.Slider
    far: gr.Slider
    histogram: LiveFigure
    truth_part: gr.Column
    truth: gr.Image
    truth_note: gr.HTML
    file_button: gr.Button
    file: gr.DownloadButton
    press_file: str
    api_points: gr.Textbox
    drawn: gr.State
    pending: gr.State
    tried: gr.State
    prepared: gr.State
    redraw: gr.State
    stamp: gr.Textbox
    points: gr.State

    @property
    def settings(self) -> list:
        """The inputs of `ViewSettings`, in its order."""
        return [
            self.shown, self.colours, self.opacity, self.raw, self.sharp, self.by_itself, self.near, self.far,
            self.focal, self.anyway, self.above,
        ]  # fmt: skip

    @property
    def map_outputs(self) -> list:
        """What every change of the settings draws anew."""
        return [self.view, self.caption, self.readout, self.histogram, self.truth]

    @property
    def scene_outputs(self) -> list:
        """What only a change of the scene draws anew."""
        return [
            self.cloud, self.cloud_note, self.truth_part, self.truth_note, self.notice, self.anyway, self.near, self.far
        ]  # fmt: skip


def layout(bench: Workbench, bar: Bar) -> Controls:
    """Create the tab's components."""
    parts = _layout_pictures()
    with gr.Row():
        parts |= _layout_probe(bench) | _layout_style() | _layout_range()
    parts |= _layout_histogram()
    file_button, file, press = download("depth-file", "Download: 16-bit PNG, .npy, .ply, coloured PNG")
    with bar.unseen:
        states = {
            "drawn": gr.State(Drawn()), "pending": gr.State(None), "tried": gr.State(None), "prepared": gr.State(None),
            "redraw": gr.State(None), "stamp": stamp(), "points": gr.State(("", [])),
        }  # fmt: skip
    api_points = gr.Textbox(visible="hidden")
    return Controls(**parts, **states, file_button=file_button, file=file, press_file=press, api_points=api_points)


# Each of the functions below creates a part of the tab and returns its components by their names in `Controls`.


def _layout_pictures() -> dict[str, gr.blocks.Block]:
    notice = gr.HTML("", label="notice", elem_id="depth-notice", padding=False)
    with gr.Row():
        view = view_image("Depth: click for a point's depth, and again for the distance between two", "depth-map")
        with gr.Column(min_width=300):
            cloud = LiveFigure(elem_id="depth-cloud", padding=False)
            cloud_note = gr.HTML("", label="points", elem_id="depth-cloud-note", padding=False)
    with gr.Row():
        caption = gr.HTML(note("Waiting for the picture …"), label="caption", elem_id="depth-caption")
        stop = gr.Button("Stop", size="sm", visible=False, scale=0, elem_id="depth-stop")
    with gr.Row():
        readout = gr.HTML(note(CLICK), label="measured", elem_id="depth-readout")
        clear = gr.Button("Clear the points", size="sm", scale=0, min_width=150, elem_id="depth-clear")
    return {
        "notice": notice, "view": view, "cloud": cloud, "cloud_note": cloud_note, "caption": caption, "stop": stop,
        "readout": readout, "clear": clear,
    }  # fmt: skip


def _layout_probe(bench: Workbench) -> dict[str, gr.blocks.Block]:
    with gr.Column(min_width=260):
        probe = LiveDropdown(
            [], label="Depth probe",
            info="trained on this model's features" + ("" if bench.settings.public else ", or its file or run"),
            allow_custom_value=not bench.settings.public, elem_id="depth-probe",
        )  # fmt: skip
        shown = gr.Radio(list(SHOWN), value=DEPTH, label="Map", elem_id="depth-shown")
        anyway = gr.Checkbox(
            False, label="Metres anyway", visible=False, elem_id="depth-anyway",
            info="although the picture is unlike the probe's training data",
        )  # fmt: skip
        above = gr.Checkbox(
            False, label="Use the resolution above", elem_id="depth-above",
            info="off: the probe's training resolution, where its error is smallest",
        )  # fmt: skip
    return {"probe": probe, "shown": shown, "anyway": anyway, "above": above}


def _layout_style() -> dict[str, gr.blocks.Block]:
    with gr.Column(min_width=260):
        with gr.Row():
            colours = gr.Dropdown(
                list(render.COLORMAPS), value="viridis", label="Colours", elem_id="depth-colours", min_width=110
            )
            opacity = gr.Slider(0, 1, value=1, step=0.05, label="Opacity", elem_id="depth-opacity", min_width=140)
        with gr.Row():
            raw = gr.Checkbox(False, label="Raw patch grid", elem_id="depth-raw", min_width=130)
            sharp = gr.Checkbox(False, label="Align to edges", elem_id="depth-sharp", min_width=130)
        focal = gr.Number(
            0, label="Focal length in pixels of the picture", minimum=0, elem_id="depth-focal",
            info="0: from the file's EXIF data, else assumed; affects distances between points, not depth",
        )  # fmt: skip
    return {"colours": colours, "opacity": opacity, "raw": raw, "sharp": sharp, "focal": focal}


def _layout_range() -> dict[str, gr.blocks.Block]:
    with gr.Column(min_width=260):
        by_itself = gr.Checkbox(
            True, label="Full range of the picture", elem_id="depth-auto",
            info="off: colours, cut-out and points from near to far",
        )  # fmt: skip
        near = gr.Slider(0, 10, value=0, step=STEP, label="Near", elem_id="depth-near")
        far = gr.Slider(0, 10, value=10, step=STEP, label="Far", elem_id="depth-far")
    return {"by_itself": by_itself, "near": near, "far": far}


def _layout_histogram() -> dict[str, gr.blocks.Block]:
    with gr.Row():
        histogram = LiveFigure(elem_id="depth-histogram", padding=False)
        with gr.Column(min_width=300, elem_classes="dv-hidden") as truth_part:
            gr.HTML('<div class="dv-title-of">Ground truth of this example, from stereo</div>', padding=False)
            truth = view_image("", "depth-measured", height=300)
            truth_note = gr.HTML("", label="measured", elem_id="depth-measured-note", padding=False)
    return {"histogram": histogram, "truth_part": truth_part, "truth": truth, "truth_note": truth_note}
