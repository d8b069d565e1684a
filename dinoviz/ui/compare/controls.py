"""The Compare tab's components."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from dinoviz.attention import MEAN
from dinoviz.compare import LAST
from dinoviz.ui.compare.state import AS_A, ATTENTION, COLOURS, COMMON, SCALES, VIEWS
from dinoviz.ui.components.mark_canvas import MarkCanvas
from dinoviz.ui.image_bar import DEFAULT_RESOLUTION, RESOLUTIONS, Bar
from dinoviz.ui.shared import note, view_image
from dinoviz.ui.workbench import Workbench

CHOOSE = "Choose the two models. A run appears in the lists once it has exported its network."
KNN_NOTE = "k-NN accuracy on held-out crops of the built-in demo; takes minutes for a small model on a CPU."


@dataclass(frozen=True, eq=False)
class Controls:
    """The tab's components.

    drawn: what the tab shows: the inputs, and for each side the look's key or an error. pending: inputs that have to
    be encoded first; prepared: changes when they are. errors: why a side could not be encoded, by its inputs.
    """

    model_a: gr.Dropdown
    resolution_a: gr.Dropdown
    model_b: gr.Dropdown
    resolution_b: gr.Dropdown
    compare: gr.Button
    stop: gr.Button
    view: gr.Radio
    layer: gr.Dropdown
    heads: gr.Dropdown
    scale: gr.Radio
    colours: gr.Radio
    foreground: gr.Checkbox
    raw: gr.Checkbox
    opacity: gr.Slider
    clicks: gr.Column
    canvas: MarkCanvas
    agreement: gr.HTML
    results: gr.Column
    picture_a: gr.Image
    caption_a: gr.HTML
    picture_b: gr.Image
    caption_b: gr.HTML
    together: gr.Column
    slider: gr.ImageSlider
    knn: gr.Button
    knn_stop: gr.Button
    knn_table: gr.HTML
    api_marks: gr.Textbox
    drawn: gr.State
    pending: gr.State
    errors: gr.State
    prepared: gr.State

    @property
    def models(self) -> list:
        """The inputs of `Inputs` after the picture, in its order."""
        return [self.model_a, self.resolution_a, self.model_b, self.resolution_b]

    @property
    def settings(self) -> list:
        """The inputs of `ViewSettings`, in its order."""
        return [
            self.view, self.layer, self.heads, self.scale, self.colours, self.foreground, self.raw, self.opacity
        ]  # fmt: skip

    @property
    def outputs(self) -> list:
        """What shows a `Drawing`."""
        return [
            self.picture_a, self.picture_b, self.caption_a, self.caption_b, self.slider, self.together, self.agreement
        ]  # fmt: skip


def layout(bench: Workbench, bar: Bar) -> Controls:
    """Create the tab's components."""
    parts = _layout_models(bench) | _layout_settings() | _layout_canvas() | _layout_results() | _layout_knn()
    with bar.unseen:
        states = {
            "errors": gr.State({}), "drawn": gr.State(None), "pending": gr.State(None), "prepared": gr.State(None)
        }  # fmt: skip
    return Controls(**parts, **states, api_marks=gr.Textbox("[]", label="marks", visible=False))


def layer_names(layers: int) -> list[str]:
    """The offered layers of models with at most so many."""
    return [LAST, "2/3", "1/2", "1/3", *(str(i + 1) for i in range(layers))]


def head_names(heads: int) -> list[str]:
    """The offered attention maps of models with at most so many heads."""
    return [MEAN, *(f"head {i + 1}" for i in range(heads))]


# Each of the functions below creates a part of the tab and returns its components by their names in `Controls`.


def _layout_models(bench: Workbench) -> dict[str, gr.blocks.Block]:
    with gr.Row():
        model_a, resolution_a = _layout_side(bench, "A", bench.default_model)
        model_b, resolution_b = _layout_side(bench, "B", None)
        with gr.Column(min_width=150, scale=1):
            compare = gr.Button("Compare", size="sm", elem_id="compare-encode")
            stop = gr.Button("Stop", size="sm", elem_id="compare-stop", visible=False)
    return {
        "model_a": model_a, "resolution_a": resolution_a, "model_b": model_b, "resolution_b": resolution_b,
        "compare": compare, "stop": stop,
    }  # fmt: skip


def _layout_side(bench: Workbench, name: str, model: str | None) -> tuple[gr.Dropdown, gr.Dropdown]:
    """Model and resolution of A or of B."""
    sizes = [(f"{size} px", str(size)) for size in RESOLUTIONS]
    with gr.Column(min_width=300, scale=3), gr.Row():
        model = gr.Dropdown(
            bench.model_choices(snapshots=True),
            value=model,
            label=name,
            allow_custom_value=not bench.settings.public,
            elem_id=f"compare-model-{name.lower()}",
            min_width=180,
            scale=2,
        )
        resolution = gr.Dropdown(
            sizes if name == "A" else [(AS_A, AS_A), *sizes],
            value=str(DEFAULT_RESOLUTION) if name == "A" else AS_A,
            label=f"Resolution of {name}",
            elem_id=f"compare-resolution-{name.lower()}",
            min_width=130,
        )
    return model, resolution


def _layout_settings() -> dict[str, gr.blocks.Block]:
    with gr.Row():
        with gr.Column(min_width=300):
            view = gr.Radio(list(VIEWS), value=ATTENTION, label="View", elem_id="compare-view")
        with gr.Column(min_width=280), gr.Row():
            raw = gr.Checkbox(False, label="Raw patch grid", elem_id="compare-raw", min_width=130)
            opacity = gr.Slider(0, 1, value=0.8, step=0.05, label="Opacity", elem_id="compare-opacity", min_width=140)
    with gr.Row():
        with gr.Column(min_width=280), gr.Row():
            layer = gr.Dropdown(
                layer_names(12), value=LAST, label="Layer", elem_id="compare-layer", min_width=130,
                allow_custom_value=True,
            )  # fmt: skip
            heads = gr.Dropdown(
                head_names(6), value=MEAN, label="Heads", elem_id="compare-heads", min_width=150,
                allow_custom_value=True,
            )  # fmt: skip
            foreground = gr.Checkbox(
                True, label="Foreground only", elem_id="compare-foreground", min_width=130, visible=False
            )
        with gr.Column(min_width=280):
            scale = gr.Radio(list(SCALES), value=COMMON, label="Colour scale", elem_id="compare-scale")
            colours = gr.Radio(
                list(COLOURS), value="aligned", label="Colours: B aligned to A, both together, or each its own",
                elem_id="compare-colours", visible=False,
            )  # fmt: skip
    return {
        "view": view, "raw": raw, "opacity": opacity, "layer": layer, "heads": heads, "foreground": foreground,
        "scale": scale, "colours": colours,
    }  # fmt: skip


def _layout_canvas() -> dict[str, gr.blocks.Block]:
    # Hidden by a class: with `visible=False` the canvas would lose its marks, and a column cannot begin as "hidden".
    with gr.Column(elem_id="compare-clicks", elem_classes="dv-hidden") as clicks:
        canvas = MarkCanvas(
            title="Click on an object: both models segment it from the same clicks", elem_id="compare-canvas"
        )
    return {"clicks": clicks, "canvas": canvas}


def _layout_results() -> dict[str, gr.blocks.Block]:
    agreement = gr.HTML(note(CHOOSE), label="agreement", elem_id="compare-figures")
    with gr.Column(visible=False, elem_id="compare-results") as results:
        with gr.Row():
            with gr.Column(min_width=300):
                picture_a = view_image("A", "compare-a")
                caption_a = gr.HTML(label="caption of A", elem_id="compare-caption-a")
            with gr.Column(min_width=300):
                picture_b = view_image("B", "compare-b")
                caption_b = gr.HTML(label="caption of B", elem_id="compare-caption-b")
        with gr.Column(visible=False) as together:
            gr.HTML('<div class="dv-title-of">A on the left of the line, B on the right: drag it</div>', padding=False)
            slider = gr.ImageSlider(
                label="A and B", show_label=False, interactive=False, elem_id="compare-slider",
                buttons=["fullscreen"], max_height=480,
            )  # fmt: skip
    return {
        "agreement": agreement, "results": results, "picture_a": picture_a, "caption_a": caption_a,
        "picture_b": picture_b, "caption_b": caption_b, "together": together, "slider": slider,
    }  # fmt: skip


def _layout_knn() -> dict[str, gr.blocks.Block]:
    with gr.Row():
        knn = gr.Button("Compare k-NN", size="sm", elem_id="compare-knn", scale=0, min_width=150)
        stop = gr.Button("Stop", size="sm", elem_id="compare-knn-stop", visible=False, scale=0, min_width=90)
    table = gr.HTML(note(KNN_NOTE), label="k-NN", elem_id="compare-knn-table")
    return {"knn": knn, "knn_stop": stop, "knn_table": table}
