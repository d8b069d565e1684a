"""The Patch PCA tab's components."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import gradio as gr

from dinoviz.ui.image_bar import Bar
from dinoviz.ui.pca_views import COMPONENTS, MAPS, RGB, SCORE
from dinoviz.ui.shared import download, note, view_image


class Drawn(NamedTuple):
    """What the tab shows. look: the key of the first one. layers: of the model.

    figures, maps: what the figures and the maps were drawn from.
    """

    look: Hashable = None
    layers: int = 12
    figures: Hashable = None
    maps: Hashable = None


@dataclass(frozen=True, eq=False)
class Controls:
    """The tab's components.

    drawn: a `Drawn`. pending: which pictures have to be encoded before the joint basis can be drawn; prepared: changes
    when they are. tried: the `pending` that was encoded last: what is missing now cannot be encoded.
    """

    main: gr.Image
    scatter: gr.Plot
    variance: gr.Plot
    joint: gr.Gallery
    caption: gr.HTML
    layer: gr.Slider
    shown: gr.Dropdown
    red: gr.Dropdown
    green: gr.Dropdown
    blue: gr.Dropdown
    steady: gr.Checkbox
    foreground: gr.Checkbox
    by_itself: gr.Checkbox
    threshold: gr.Slider
    opacity: gr.Slider
    raw: gr.Checkbox
    others: gr.File
    keep: gr.Button
    stop: gr.Button
    file_button: gr.Button
    file: gr.DownloadButton
    press_file: str
    drawn: gr.State
    pending: gr.State
    tried: gr.State
    prepared: gr.State

    @property
    def settings(self) -> list:
        """The inputs of `ViewSettings`, in its order."""
        return [
            self.layer, self.shown, self.red, self.green, self.blue, self.steady, self.foreground, self.by_itself,
            self.threshold, self.opacity, self.raw,
        ]  # fmt: skip

    @property
    def outputs(self) -> list:
        """The outputs of `draw`, in its order."""
        return [self.main, self.joint, self.scatter, self.variance, self.threshold, self.caption]


def layout(bar: Bar) -> Controls:
    """Create the tab's components."""
    with gr.Row():
        main = view_image("Principal components of the patches: similar colours, similar features", "pca-map")
        with gr.Column(min_width=300):
            gr.HTML('<div class="dv-title-of">All patches in the three components: drag to rotate</div>', padding=False)
            scatter = gr.Plot(show_label=False, elem_id="pca-scatter")
    caption = gr.HTML(note("Waiting for the picture …"), label="caption", elem_id="pca-caption")
    with gr.Row():
        settings = _layout_map() | _layout_colours() | _layout_foreground()
    with gr.Row():
        with gr.Column(min_width=260):
            others = gr.File(
                label="More pictures, for a joint basis with the one above", file_count="multiple", height=150,
                value=[], elem_id="pca-others",
            )  # fmt: skip
            with gr.Row():
                keep = gr.Button("Add the picture above", size="sm", elem_id="pca-keep")
                stop = gr.Button("Stop", size="sm", elem_id="pca-stop", visible=False)
        variance = gr.Plot(show_label=False, elem_id="pca-variance")
    joint = gr.Gallery(
        label="All pictures in the joint basis: the same colours for the same features", elem_id="pca-joint", columns=4,
        height="auto", object_fit="contain", visible=False, buttons=["fullscreen"],
    )  # fmt: skip
    file_button, file, press = download("pca-file")
    with bar.unseen:
        drawn, pending, tried, prepared = gr.State(Drawn()), gr.State(None), gr.State(None), gr.State(None)
    return Controls(
        main=main, scatter=scatter, caption=caption, others=others, keep=keep, stop=stop, variance=variance,
        joint=joint, file_button=file_button, file=file, press_file=press, drawn=drawn, pending=pending, tried=tried,
        prepared=prepared, **settings,
    )  # fmt: skip


def _layout_map() -> dict[str, gr.components.Component]:
    """Create the components that select the map, by their names in `Controls`."""
    labels = [("foreground score" if name == SCORE else name, name) for name in MAPS]
    with gr.Column(min_width=260):
        layer = gr.Slider(1, 12, value=12, step=1, label="Layer", elem_id="pca-layer")
        shown = gr.Dropdown(labels, value=RGB, label="Map", elem_id="pca-shown")
    return {"layer": layer, "shown": shown}


def _layout_colours() -> dict[str, gr.components.Component]:
    """Create the components that set the colours, by their names in `Controls`."""
    numbers = [str(number) for number in range(1, COMPONENTS + 1)]
    with gr.Column(min_width=260):
        with gr.Row():
            channels = {
                name: gr.Dropdown(numbers, value=str(i + 1), label=name, elem_id=f"pca-{name}", min_width=70)
                for i, name in enumerate(("red", "green", "blue"))
            }
        steady = gr.Checkbox(
            True,
            label="Stable colours",
            info="the three components are rotated to align across pictures; off: one component per channel",
            elem_id="pca-steady",
        )
        with gr.Row():
            raw = gr.Checkbox(False, label="Raw patch grid", elem_id="pca-raw", min_width=130)
            opacity = gr.Slider(0, 1, value=1, step=0.05, label="Opacity", elem_id="pca-opacity", min_width=140)
    return {**channels, "steady": steady, "raw": raw, "opacity": opacity}


def _layout_foreground() -> dict[str, gr.components.Component]:
    """Create the components that separate foreground from background, by their names in `Controls`."""
    with gr.Column(min_width=260):
        with gr.Row():
            foreground = gr.Checkbox(True, label="Foreground only", elem_id="pca-foreground", min_width=130)
            by_itself = gr.Checkbox(True, label="Automatic threshold", elem_id="pca-auto", min_width=130)
        threshold = gr.Slider(
            0, 1, value=0.5, step=0.01, label="Foreground threshold", elem_id="pca-threshold", interactive=False
        )
    return {"foreground": foreground, "by_itself": by_itself, "threshold": threshold}
