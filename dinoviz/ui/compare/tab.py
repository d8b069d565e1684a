"""The Compare tab: any two models or runs on the same picture, side by side."""

from __future__ import annotations

import html
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import gradio as gr
from PIL import Image

from dinoviz.attention import MEAN
from dinoviz.cache import OnceCache
from dinoviz.compare import LAST
from dinoviz.errors import DinovizError, Stopped
from dinoviz.segment import prompts as marking
from dinoviz.ui.compare import knn as compare_knn
from dinoviz.ui.compare.state import ATTENTION, COLOURS, COMMON, PCA, SCALES, SEGMENTATION, SIDES, VIEWS, Choice
from dinoviz.ui.compare.views import paint
from dinoviz.ui.components.mark_canvas import MarkCanvas
from dinoviz.ui.image_bar import DEFAULT_RESOLUTION, RESOLUTIONS, Bar
from dinoviz.ui.shared import (
    DRAWING,
    ONCE,
    PRIVATE,
    WAITING,
    api_only,
    follow,
    jpeg_file,
    note,
    stop_shown,
    told,
    view_image,
)
from dinoviz.ui.workbench import Look, Workbench

logger = logging.getLogger(__name__)

AS_A = "as A"
KEPT = 32  # what was computed lately: a few pictures in each view
FORGOTTEN = "There is not enough memory to keep it: take a lower resolution."
NO_PICTURE = "There is nothing to see until there is a picture."
CHOOSE = "Choose the two models. A run appears in the lists once it has exported its network."


@dataclass(frozen=True)
class Asked:
    """What is to be looked at, as the page says it: a picture, and of each side model and resolution."""

    image: str | None
    model_a: str | None
    resolution_a: str
    model_b: str | None
    resolution_b: str

    @property
    def sides(self) -> tuple[tuple[str | None, str], tuple[str | None, str]]:
        """Model and resolution of A and of B."""
        other = self.resolution_a if self.resolution_b == AS_A else self.resolution_b
        return (self.model_a, self.resolution_a), (self.model_b, other)

    @property
    def complete(self) -> bool:
        """Whether there is something to compare."""
        return bool(self.image and self.model_a and self.model_b)


def build(bench: Workbench, bar: Bar, here: gr.State) -> None:
    """Lay out the tab and wire it. here: whether it is open."""
    kept = OnceCache(KEPT)
    with gr.Row():
        model_a, resolution_a = _side(bench, "A", bench.default_model)
        model_b, resolution_b = _side(bench, "B", None)
        with gr.Column(min_width=150, scale=1):
            compare_button = gr.Button("Compare", size="sm", elem_id="compare-encode")
            stop_button = gr.Button("Stop", size="sm", elem_id="compare-stop", visible=False)
    with gr.Row():
        with gr.Column(min_width=300):
            view = gr.Radio(list(VIEWS), value=ATTENTION, label="View", elem_id="compare-view")
        with gr.Column(min_width=280), gr.Row():
            raw = gr.Checkbox(False, label="Raw patch grid", elem_id="compare-raw", min_width=130)
            opacity = gr.Slider(0, 1, value=0.8, step=0.05, label="Opacity", elem_id="compare-opacity", min_width=140)
    with gr.Row():
        with gr.Column(min_width=280), gr.Row():
            layer = gr.Dropdown(
                _layers(12), value=LAST, label="Layer of each", elem_id="compare-layer", min_width=130,
                allow_custom_value=True,
            )  # fmt: skip
            heads = gr.Dropdown(
                _heads(6), value=MEAN, label="Heads", elem_id="compare-heads", min_width=150, allow_custom_value=True
            )
            foreground = gr.Checkbox(
                True, label="Foreground only", elem_id="compare-foreground", min_width=130, visible=False
            )
        with gr.Column(min_width=280):
            scale = gr.Radio(list(SCALES), value=COMMON, label="Scale of the colours", elem_id="compare-scale")
            colours = gr.Radio(
                list(COLOURS), value="aligned", label="Colours: B's turned onto A's, both together, or each its own",
                elem_id="compare-colours", visible=False,
            )  # fmt: skip
    # Not by `visible`: what is taken out of the page forgets the marks, and a column cannot begin as "hidden".
    with gr.Column(elem_id="compare-clicks", elem_classes="dv-hidden") as clicks:
        canvas = MarkCanvas(title="Click on a thing: the same clicks go through both", elem_id="compare-canvas")
    figures = gr.HTML(note(CHOOSE), label="in common", elem_id="compare-figures")
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
    with gr.Row():
        knn_button = gr.Button("Compare k-NN", size="sm", elem_id="compare-knn", scale=0, min_width=150)
        knn_stop = gr.Button("Stop", size="sm", elem_id="compare-knn-stop", visible=False, scale=0, min_width=90)
    knn_said = gr.HTML(
        note("How well each tells held-out crops of the built-in demo: minutes for a small model on a CPU."),
        label="k-NN", elem_id="compare-knn-table",
    )  # fmt: skip
    with bar.unseen:
        troubles = gr.State({})  # why a side cannot be looked through, in a sentence, by what was asked
        seen = gr.State(None)  # what is drawn: what was asked for, and the looks or why there is none
        lacking = gr.State(None)  # what was asked for and has to be encoded first
        prepared = gr.State(None)  # changes when that was tried
    api_marks = gr.Textbox("[]", label="marks", visible=False)

    asked = [bar.image, model_a, resolution_a, model_b, resolution_b]
    options = [view, layer, heads, scale, colours, foreground, raw, opacity]
    outputs = [picture_a, picture_b, caption_a, caption_b, slider, together, figures]

    def compare(
        image: str, model_a: str, resolution_a: str, model_b: str, resolution_b: str, view: str, layer: str, heads: str,
        scale: str, colours: str, foreground: bool, raw: bool, opacity: float, marks: str = "[]",
    ) -> tuple[Image.Image, Image.Image, str, str, str]:  # fmt: skip
        """See one picture through two models.

        Args:
            image: the picture
            model_a: a name from the list; on a local app also a Hub id, a folder or a run
            resolution_a: the short side in model pixels
            model_b: as model_a
            resolution_b: 'as A', or the short side in model pixels
            view: 'attention', 'patch PCA' or 'segmentation'
            layer: 'last', a share of each model's depth such as '2/3', or a number from 1
            heads: of the attention: 'mean of heads', 'head 1' and so on
            scale: of the attention: 'common' to both, or each its 'own'
            colours: of the PCA: 'aligned' (those of B turned onto those of A), 'joint' (components of both together),
                or each its 'own'
            foreground: of the PCA: fit and colour foreground patches only
            raw: one flat square a patch instead of interpolation
            opacity: of the maps over the picture, 0 to 1
            marks: for the segmentation, JSON of a list of {"kind": "point", "x": .., "y": .., "label": 1 or 0}, in
                pixels of the picture
        Returns:
            the picture through A, through B, what one looks through in each, and how far they agree
        """
        with told():
            wanted = Asked(image, model_a, resolution_a, model_b, resolution_b)
            if not (model_a and model_b):
                raise DinovizError("Comparing takes two models: A and B.")
            choice = Choice(view, layer, heads, scale, colours, foreground, raw, opacity)
            looks = [bench.look(image, model, resolution) for model, resolution in wanted.sides]
            shown = paint(kept, looks, marking.listed(marks), choice)
            return *shown[:4], shown[-1]

    def prepare(lacking: tuple | None, request: gr.Request) -> Iterator[tuple]:
        """Encode through A, then through B, with progress, so that every control is instant."""
        owners = {name: (request.session_hash, "compare", name) for name in SIDES}
        if lacking is None:
            for owner in owners.values():
                bench.stop(owner, superseded=True)
            yield gr.skip(), stop_shown(False), gr.skip(), gr.skip()
            return
        wanted, image = Asked(*lacking), lacking[0]
        found: dict[tuple, str] = {}
        for name, (model, resolution) in zip(SIDES, wanted.sides, strict=True):
            job = bench.start_encode(owners[name], [image], model, resolution)
            for sentence in follow(bench, owners[name], job):
                busy = note(f"{name}: {html.escape(sentence)}", "caption dv-busy")
                yield busy, stop_shown(True), gr.skip(), gr.skip()
            if job.superseded:
                return
            try:
                job.result()
            except Stopped:
                found = {(image, *side): "Stopped. Press Compare to begin again." for side in wanted.sides}
                break
            except DinovizError as error:
                found[image, model, resolution] = str(error)
            except Exception as error:  # a defect, or memory: say it, and let no older map pass for this picture's
                logger.exception("comparing failed")
                found[image, model, resolution] = f"It failed: {(str(error) or type(error).__name__).splitlines()[0]}"
        for side in wanted.sides:
            if (image, *side) not in found and bench.peek(image, *side) is None:
                found[image, *side] = FORGOTTEN
        yield gr.skip(), stop_shown(False), found, time.monotonic()

    def looks_of(wanted: Asked, troubles: dict) -> list[Look | str | None]:
        """Of each side the look, a sentence where there cannot be one, or None while it is not encoded."""
        looks: list[Look | str | None] = []
        for model, resolution in wanted.sides:
            try:
                look = bench.peek(wanted.image, model, resolution) if model else "Choose a model."
            except DinovizError as error:
                look = str(error)
            looks.append(look or troubles.get((wanted.image, model, resolution)))
        return looks

    def draw_all(
        here: bool, seen: tuple | None, troubles: dict, image, model_a, resolution_a, model_b, resolution_b, marks,
        *chosen,
    ):  # fmt: skip
        """What the controls say. All of them come here, one after the other: an older answer never comes last."""
        asked = image, model_a, resolution_a, model_b, resolution_b
        wanted = Asked(*asked)
        if not here and (seen is None or seen[0] == asked):
            return gr.skip()
        if not here or not wanted.complete:
            why = NO_PICTURE if not image else CHOOSE if here else DRAWING
            hidden = gr.Column(visible=False)
            return (
                None,
                None,
                gr.skip(),
                gr.skip(),
                gr.update(picture="", image=""),
                hidden,
                *[gr.skip()] * 6,
                note(why),
            )
        looks = looks_of(wanted, troubles)
        if None in looks:
            return gr.skip(), asked, *[gr.skip()] * 11
        now = asked, tuple(look.key if isinstance(look, Look) else look for look in looks)
        with told():
            choice, controls = Choice(*chosen), [gr.skip()] * 4
            if now != seen:
                choice, *controls = fitted(looks, choice)
            return now, None, *controls, *painted_of(looks, marks, choice)

    def fitted(looks: list[Look | str], choice: Choice) -> tuple:
        """The choice as these two can be seen; the lists of heads and layers, the canvas, and where results are."""
        there = [look for look in looks if isinstance(look, Look)]
        heads, layers = (
            listed(max((getattr(look.backbone, of) for look in there), default=12))
            for listed, of in ((_heads, "heads"), (_layers, "layers"))
        )
        name = choice.heads if choice.heads in heads else MEAN
        layer = choice.layer if not choice.layer.isdecimal() or choice.layer in layers else LAST
        canvas = gr.update(picture="", image="")
        if there:
            picture = there[0].picture
            canvas = gr.update(
                image=jpeg_file(picture.shown),
                picture=picture.digest,
                size=list(picture.size),
            )
        controls = gr.Dropdown(choices=heads, value=name), gr.Dropdown(choices=layers, value=layer)
        return replace(choice, heads=name, layer=layer), *controls, canvas, gr.Column(visible=True)

    def painted_of(looks: list[Look | str], marks: str, choice: Choice) -> tuple:
        digest = next((look.picture.digest for look in looks if isinstance(look, Look)), None)
        *shown, files, said = paint(kept, looks, marking.by_picture(marks).get(digest, []), choice)
        return *shown, files, gr.Column(visible=files is not None), said

    def show_options(view: str):
        of_attention, of_pca = (gr.update(visible=view == each) for each in (ATTENTION, PCA))
        marking = gr.Column(elem_classes=[] if view == SEGMENTATION else ["dv-hidden"])
        return gr.update(visible=view != SEGMENTATION), of_attention, of_attention, of_pca, of_pca, marking

    def list_models():
        choices = bench.model_choices(snapshots=True)
        return gr.Dropdown(choices=choices), gr.Dropdown(choices=choices)

    def compare_knn_of(model_a: str | None, model_b: str | None, request: gr.Request) -> Iterator[tuple]:
        """Measure both in the background."""
        if not (model_a and model_b):
            yield note("Choose the two models first."), gr.skip()
            return
        owner, names = (request.session_hash, "k-NN"), (model_a, model_b)
        job = bench.start(owner, names, lambda job: compare_knn.measure(bench, kept, names, job))
        for sentence in follow(bench, owner, job):
            yield note(html.escape(sentence), "caption dv-busy"), stop_shown(True)
        if job.superseded:
            return
        if job.stopped:
            yield note("Stopped."), stop_shown(False)
            return
        with told():
            yield compare_knn.table(names, job.result()), stop_shown(False)

    def try_again() -> tuple[dict, float]:
        return {}, time.monotonic()

    def stop(request: gr.Request) -> None:
        for name in SIDES:
            bench.stop((request.session_hash, "compare", name))

    def stop_knn(request: gr.Request) -> None:
        bench.stop((request.session_hash, "k-NN"))

    changes = [part.change for part in (bar.ended, here, prepared)]
    changes += [part.input for part in (*asked[1:], canvas, *options)]
    gr.on(
        changes, draw_all, [here, seen, troubles, *asked, canvas, *options],
        [seen, lacking, heads, layer, canvas, results, *outputs], **PRIVATE,
    )  # fmt: skip
    lacking.change(prepare, lacking, [figures, stop_button, troubles, prepared], **WAITING)
    compare_button.click(try_again, None, [troubles, prepared], **PRIVATE)
    view.change(show_options, view, [layer, heads, scale, colours, foreground, clicks], **PRIVATE)
    gr.on([model_a.focus, model_b.focus], list_models, None, [model_a, model_b], **PRIVATE)
    stop_button.click(stop, queue=False, **ONCE)
    api_only().click(
        compare, [*asked, *options, api_marks], [picture_a, picture_b, caption_a, caption_b, figures],
        api_name="compare", concurrency_limit=2,
    )  # fmt: skip
    knn_button.click(
        compare_knn_of, [model_a, model_b], [knn_said, knn_stop], **WAITING,
    )  # fmt: skip
    knn_stop.click(stop_knn, queue=False, **ONCE)


def _side(bench: Workbench, name: str, model: str | None) -> tuple[gr.Dropdown, gr.Dropdown]:
    """Model and resolution of A or of B."""
    sizes = [(f"{size} px", str(size)) for size in RESOLUTIONS]
    with gr.Column(min_width=300, scale=3), gr.Row():
        which = gr.Dropdown(
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
    return which, resolution


def _layers(count: int) -> list[str]:
    return [LAST, "2/3", "1/2", "1/3", *(str(i + 1) for i in range(count))]


def _heads(count: int) -> list[str]:
    return [MEAN, *(f"head {i + 1}" for i in range(count))]
