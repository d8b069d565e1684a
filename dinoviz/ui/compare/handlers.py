"""The functions behind the Compare tab's events."""

from __future__ import annotations

import html
import logging
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field, replace

import gradio as gr
from PIL import Image

from dinoviz.attention import MEAN
from dinoviz.cache import OnceCache
from dinoviz.compare import LAST
from dinoviz.errors import DinovizError, Stopped
from dinoviz.segment import prompts
from dinoviz.ui.compare import knn
from dinoviz.ui.compare.controls import CHOOSE, Controls, head_names, layer_names
from dinoviz.ui.compare.state import ATTENTION, PCA, SEGMENTATION, SIDES, Inputs, ViewSettings
from dinoviz.ui.compare.views import draw_both
from dinoviz.ui.shared import DRAWING, follow, jpeg_file, note, stop_shown, user_errors
from dinoviz.ui.workbench import Look, Workbench

logger = logging.getLogger(__name__)

CACHED = 32  # results: a few pictures in each view
EVICTED = "There is not enough memory to keep its features: choose a lower resolution."
NO_PICTURE = "Choose a picture first."


@dataclass(frozen=True, eq=False)
class Handlers:
    """The functions behind the tab's events, for all sessions."""

    bench: Workbench
    controls: Controls
    cache: OnceCache = field(default_factory=lambda: OnceCache(CACHED))

    def compare(
        self, image: str, model_a: str, resolution_a: str, model_b: str, resolution_b: str, view: str, layer: str,
        heads: str, scale: str, colours: str, foreground: bool, raw: bool, opacity: float, marks: str = "[]",
    ) -> tuple[Image.Image, Image.Image, str, str, str]:  # fmt: skip
        """Show one picture with two models.

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
            colours: of the PCA: 'aligned' (components of B rotated onto those of A), 'joint' (components of both
                together), or each its 'own'
            foreground: of the PCA: fit and colour foreground patches only
            raw: one flat square per patch instead of interpolation
            opacity: of the maps over the picture, 0 to 1
            marks: for the segmentation, JSON of a list of {"kind": "point", "x": .., "y": .., "label": 1 or 0}, in
                pixels of the picture
        Returns:
            the picture with A, with B, a caption for each, and how far they agree
        """
        with user_errors():
            if not (model_a and model_b):
                raise DinovizError("Choose two models to compare: A and B.")
            inputs = Inputs(image, model_a, resolution_a, model_b, resolution_b)
            settings = ViewSettings(view, layer, heads, scale, colours, foreground, raw, opacity)
            looks = [self.bench.look(image, model, resolution) for model, resolution in inputs.sides]
            drawing = draw_both(self.cache, looks, prompts.listed(marks), settings)
            return *drawing[:4], drawing.agreement

    def draw_all(
        self, is_open: bool, drawn: tuple | None, errors: dict, image, model_a, resolution_a, model_b, resolution_b,
        marks, *values,
    ):  # fmt: skip
        """Draw the tab. All events come here, one at a time, so that an older answer never comes last."""
        c, inputs = self.controls, Inputs(image, model_a, resolution_a, model_b, resolution_b)
        if not is_open and (drawn is None or drawn[0] == inputs):
            return gr.skip()
        if not is_open or not inputs.complete:
            why = NO_PICTURE if not image else CHOOSE if is_open else DRAWING
            empty = {c.drawn: None, c.pending: None, c.canvas: gr.update(picture="", image="")}
            return {**empty, c.results: gr.Column(visible=False), c.agreement: note(why)}
        looks = self._looks(inputs, errors)
        if None in looks:
            return {c.pending: astuple(inputs)}
        now = inputs, tuple(look.key if isinstance(look, Look) else look for look in looks)
        with user_errors():
            settings, updates = ViewSettings(*values), {}
            if now != drawn:
                settings, updates = self._fitted(looks, settings)
            return {c.drawn: now, c.pending: None, **updates, **self._drawn(looks, marks, settings)}

    def _looks(self, inputs: Inputs, errors: dict) -> list[Look | str | None]:
        """For each side the look, an error message, or None while it is not encoded."""
        looks: list[Look | str | None] = []
        for model, resolution in inputs.sides:
            try:
                look = self.bench.peek(inputs.image, model, resolution) if model else "Choose a model."
            except DinovizError as error:
                look = str(error)
            looks.append(look or errors.get((inputs.image, model, resolution)))
        return looks

    def _fitted(self, looks: list[Look | str], settings: ViewSettings) -> tuple[ViewSettings, dict]:
        """The settings as they apply to these two models, and the updates of the controls."""
        c, found = self.controls, [look for look in looks if isinstance(look, Look)]
        heads = head_names(max((look.backbone.heads for look in found), default=12))
        layers = layer_names(max((look.backbone.layers for look in found), default=12))
        head = settings.heads if settings.heads in heads else MEAN
        layer = settings.layer if not settings.layer.isdecimal() or settings.layer in layers else LAST
        canvas = gr.update(picture="", image="")
        if found:
            picture = found[0].picture
            canvas = gr.update(image=jpeg_file(picture.shown), picture=picture.digest, size=list(picture.size))
        updates = {
            c.heads: gr.Dropdown(choices=heads, value=head),
            c.layer: gr.Dropdown(choices=layers, value=layer),
            c.canvas: canvas,
            c.results: gr.Column(visible=True),
        }
        return replace(settings, heads=head, layer=layer), updates

    def _drawn(self, looks: list[Look | str], marks: str, settings: ViewSettings) -> dict:
        c, digest = self.controls, next((look.picture.digest for look in looks if isinstance(look, Look)), None)
        drawing = draw_both(self.cache, looks, prompts.by_picture(marks).get(digest, []), settings)
        return {
            c.picture_a: drawing.picture_a,
            c.picture_b: drawing.picture_b,
            c.caption_a: drawing.caption_a,
            c.caption_b: drawing.caption_b,
            c.slider: drawing.files,
            c.together: gr.Column(visible=drawing.files is not None),
            c.agreement: drawing.agreement,
        }

    def prepare(self, pending: tuple | None, request: gr.Request) -> Iterator[dict]:
        """Encode the picture with A, then with B, with progress."""
        c, owners = self.controls, _owners(request)
        if pending is None:
            for owner in owners.values():
                self.bench.stop(owner, superseded=True)
            yield {c.stop: stop_shown(False)}
            return
        inputs, errors = Inputs(*pending), {}
        for name, (model, resolution) in zip(SIDES, inputs.sides, strict=True):
            job = self.bench.start_encode(owners[name], [inputs.image], model, resolution)
            for progress in follow(self.bench, owners[name], job):
                busy = note(f"{name}: {html.escape(progress)}", "caption dv-busy")
                yield {c.agreement: busy, c.stop: stop_shown(True)}
            if job.superseded:
                return
            try:
                job.result()
            except Stopped:
                stopped = "Stopped. Press Compare to begin again."
                errors = {(inputs.image, *side): stopped for side in inputs.sides}
                break
            except DinovizError as error:
                errors[inputs.image, model, resolution] = str(error)
            except Exception as error:  # a bug, or out of memory: report it, and clear the maps of an earlier picture
                logger.exception("comparing failed")
                first_line = (str(error) or type(error).__name__).splitlines()[0]
                errors[inputs.image, model, resolution] = f"Encoding failed: {first_line}"
        for side in inputs.sides:
            if (inputs.image, *side) not in errors and self.bench.peek(inputs.image, *side) is None:
                errors[inputs.image, *side] = EVICTED
        yield {c.stop: stop_shown(False), c.errors: errors, c.prepared: time.monotonic()}

    def try_again(self) -> tuple[dict, float]:
        """Forget why a side could not be encoded."""
        return {}, time.monotonic()

    def list_models(self) -> tuple[gr.Dropdown, gr.Dropdown]:
        """Both lists of models, with the runs of now."""
        choices = self.bench.model_choices(snapshots=True)
        return gr.Dropdown(choices=choices), gr.Dropdown(choices=choices)

    def measure_knn(self, model_a: str | None, model_b: str | None, request: gr.Request) -> Iterator[tuple]:
        """Measure the k-NN accuracy of both models, with progress."""
        if not (model_a and model_b):
            yield note("Choose the two models first."), gr.skip()
            return
        owner, names = (request.session_hash, "k-NN"), (model_a, model_b)
        job = self.bench.start(owner, names, lambda job: knn.measure(self.bench, self.cache, names, job))
        for progress in follow(self.bench, owner, job):
            yield note(html.escape(progress), "caption dv-busy"), stop_shown(True)
        if job.superseded:
            return
        if job.stopped:
            yield note("Stopped."), stop_shown(False)
            return
        with user_errors():
            yield knn.table(names, job.result()), stop_shown(False)

    def stop(self, request: gr.Request) -> None:
        """Stop encoding."""
        for owner in _owners(request).values():
            self.bench.stop(owner)

    def stop_knn(self, request: gr.Request) -> None:
        """Stop measuring."""
        self.bench.stop((request.session_hash, "k-NN"))


def show_settings(view: str) -> tuple:
    """The settings that a view has, and the canvas."""
    of_attention, of_pca = (gr.update(visible=view == each) for each in (ATTENTION, PCA))
    canvas = gr.Column(elem_classes=[] if view == SEGMENTATION else ["dv-hidden"])
    return gr.update(visible=view != SEGMENTATION), of_attention, of_attention, of_pca, of_pca, canvas


def _owners(request: gr.Request) -> dict[str, tuple]:
    """To whom the encoding of A and of B belongs."""
    return {name: (request.session_hash, "compare", name) for name in SIDES}
