"""The Attention tab: the attention of the CLS token or of any patch, in every head and layer."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace

import gradio as gr
import numpy as np
from PIL import Image

from dinoviz import models, render
from dinoviz.attention import MEAN, ROLLOUT, map_names
from dinoviz.ui.attention_controls import Controls, Drawn, layout
from dinoviz.ui.attention_views import (
    CLS,
    ViewSettings,
    draw,
    file,
    heads_figure,
    moved_query,
    rollout,
    rollout_key,
)
from dinoviz.ui.endpoints import takes_settings
from dinoviz.ui.image_bar import Bar
from dinoviz.ui.shared import (
    DRAWING,
    EMPTY,
    EVERY,
    ONCE,
    PRIVATE,
    WAITING,
    api_only,
    encoded,
    follow,
    note,
    picture_point,
    stop_shown,
    user_errors,
)
from dinoviz.ui.stale_answers import Requests, number
from dinoviz.ui.workbench import Look, Workbench

# Arrow keys send their step to the server while one of the two pictures has the focus.
ARROW_KEYS = """() => document.addEventListener('keydown', event => {
    const step = {ArrowLeft: '-1,0', ArrowRight: '1,0', ArrowUp: '0,-1', ArrowDown: '0,1'}[event.key]
    if (!step || !document.activeElement?.closest('#attention-photo, #attention-map')) return
    event.preventDefault()
    const field = document.querySelector('#attention-nudge textarea, #attention-nudge input')
    field.value = `${step},${Date.now()}`
    field.dispatchEvent(new Event('input', {bubbles: true}))
})"""


def build(bench: Workbench, bar: Bar, is_open: gr.State) -> None:
    """Build the tab. is_open: whether it is the open one."""
    controls = layout(bar)
    wire(controls, Handlers(bench, controls, Requests(controls.redraw, controls.stamp)), bar, is_open)


def wire(controls: Controls, handlers: Handlers, bar: Bar, is_open: gr.State) -> None:
    """Connect the tab's events."""
    c, inputs = controls, [*bar.inputs, *controls.settings]
    drawing, clicked = [c.stamp, is_open, bar.ready, c.drawn, *inputs], [c.stamp, *inputs]
    changes = [part.change for part in (bar.ended, is_open, c.redraw, c.prepared)]
    changes += [c.layer.input, c.shown.input, c.query.submit, c.colormap.input, c.opacity.input, c.raw.input]
    gr.on(
        [*changes, c.mass.input], handlers.draw_all, drawing,
        [c.drawn, c.pending, c.layer, c.shown, c.query, c.registers, c.redraw, c.stamp, *c.pictures],
        js=number(drawing), **PRIVATE,
    )  # fmt: skip
    c.pending.change(handlers.prepare, [c.pending, *bar.inputs], [c.caption, c.stop, c.prepared], **WAITING)
    # An event of its own, so that the map does not wait for the figure.
    c.drawn.change(handlers.draw_figure, [c.drawn, *bar.inputs], c.figure, **PRIVATE)
    api_only().click(handlers.attention, inputs, c.pictures, api_name="attention", concurrency_limit=2)
    answered = [c.query, c.shown, c.redraw, c.stamp, *c.pictures]
    for view in (c.photo, c.heat):
        view.select(handlers.click_patch, clicked, answered, js=number(clicked), **EVERY)
    c.sheet.select(handlers.click_head, clicked, answered, js=number(clicked), **EVERY)
    c.cls.click(handlers.click_cls, clicked, answered, js=number(clicked), **EVERY)
    nudged = [c.stamp, c.nudge, *inputs]
    c.nudge.change(handlers.move_query, nudged, answered, js=number(nudged), **EVERY)
    c.stop.click(handlers.stop, queue=False, **ONCE)
    c.file_button.click(
        handlers.attention_download, inputs, c.file, api_name="attention_download", concurrency_limit=2,
        show_progress="full", show_progress_on=c.caption,
    ).success(None, js=c.press_file)  # fmt: skip
    # Setting the model from here does not fire its own input event, so press the bar's button.
    c.registers.click(register_model, bar.model, bar.model, **ONCE).then(
        None, js="() => document.getElementById('encode').click()"
    )


@dataclass(frozen=True, eq=False)
class Handlers:
    """The functions behind the tab's events, for all sessions."""

    bench: Workbench
    controls: Controls
    requests: Requests

    @takes_settings(ViewSettings)
    def attention(
        self, image: str, model: str, resolution: str, *values
    ) -> tuple[Image.Image, Image.Image, Image.Image, str]:
        """Show the attention of the CLS token or of one patch.

        Args:
            image: the picture
            model: a name from the list
            resolution: the short side in model pixels
            layer: from 1
            shown: 'mean of heads', 'head 1' and so on, 'rollout of all layers', or 'patch norms'
            query: 'CLS', or 'x, y' in pixels of the picture
            colormap: the colours of the map
            opacity: of the map over the picture, 0 to 1
            raw: one flat square per patch instead of interpolation
            mass: keep the fewest patches that hold this share of the map's sum
        Returns:
            the picture with the query, the map over it, all heads on a sheet, and a caption
        """
        with user_errors():
            return draw(self.bench, self.bench.look(image, model, resolution), ViewSettings(*values))

    @takes_settings(ViewSettings)
    def attention_download(self, image: str, model: str, resolution: str, *values) -> str:
        """Download the attention maps as a zip: full-size pictures, the arrays as .npz, and a description as JSON.

        Args: as for the attention endpoint.
        Returns:
            the zip
        """
        with user_errors():
            return file(self.bench, self.bench.look(image, model, resolution), ViewSettings(*values))

    def draw_all(
        self, stamp: str, is_open: bool, ready: Hashable, drawn: Drawn, request: gr.Request, image, model, resolution,
        *values,
    ):  # fmt: skip
        """Draw the tab. All events but clicks come here, one at a time, so that an older answer never comes last."""
        c = self.controls
        if not is_open and drawn.look in (None, ready):
            return gr.skip()
        answering = self.requests.controls(request.session_hash, stamp, ready)
        if not is_open or ready is None:
            why = note(EMPTY if is_open else DRAWING)
            values = {c.drawn: drawn._replace(look=None), c.pending: None}
            return answering.answer(values, {**dict.fromkeys(c.pictures), c.caption: why})
        look = encoded(self.bench, image, model, resolution, request)
        if look is None:
            return gr.skip()
        with user_errors():
            settings, updates = ViewSettings(*values), {}
            if drawn.look != look.key:
                settings, updates = self._fitted(look, settings, drawn)
            if settings.shown == ROLLOUT and not self.bench.is_derived(rollout_key(look)):
                return {c.pending: rollout_key(look)}
            pictures = dict(zip(c.pictures, draw(self.bench, look, settings), strict=True))
            now = Drawn(look.key, look.picture.digest, look.backbone.layers, settings.layer)
            return answering.answer({c.drawn: now, c.pending: None, **updates}, pictures)

    def _fitted(self, look: Look, settings: ViewSettings, drawn: Drawn) -> tuple[ViewSettings, dict]:
        """The settings as they apply to another look, and the updates of the controls."""
        c, layers, names = self.controls, look.backbone.layers, map_names(look.backbone.heads)
        settings = replace(
            settings,
            query=settings.query if drawn.picture == look.picture.digest else CLS,
            layer=settings.layer if drawn.layers == layers else layers,
            shown=settings.shown if settings.shown in names else MEAN,
        )
        updates = {
            c.layer: gr.Slider(maximum=layers, value=settings.layer),
            c.shown: gr.Dropdown(choices=names, value=settings.shown),
            c.query: settings.query,
            c.registers: register_button(self.bench, look.backbone.name),
        }
        return settings, updates

    def prepare(self, pending: Hashable, image, model, resolution, request: gr.Request) -> Iterator[dict]:
        """Compute the rollout, with progress: it needs the full attention of every layer."""
        c, owner = self.controls, (request.session_hash, "attention")
        look = self.bench.peek(image, model, resolution) if pending else None
        if look is None or pending != rollout_key(look):
            self.bench.stop(owner, superseded=True)
            yield {c.stop: stop_shown(False)}
            return
        job = self.bench.start(owner, pending, lambda job: rollout(self.bench, look, job))
        for progress in follow(self.bench, owner, job):
            yield {c.caption: note(progress, "caption dv-busy"), c.stop: stop_shown(True)}
        if job.superseded:
            return
        if job.stopped:
            yield {c.caption: note("Stopped. Choose another map."), c.stop: stop_shown(False)}
            return
        with user_errors():
            job.result()
        yield {c.stop: stop_shown(False), c.prepared: time.monotonic()}

    def draw_figure(self, drawn: Drawn, image, model, resolution):
        """Draw the statistics of all heads."""
        if drawn.look is None:
            return None
        with user_errors():
            look = self.bench.peek(image, model, resolution)
            return heads_figure(self.bench, look, drawn.layer) if look and look.key == drawn.look else gr.skip()

    def click_patch(self, stamp: str, event: gr.SelectData, request: gr.Request, image, model, resolution, *values):
        """Make the clicked patch the query."""
        look = encoded(self.bench, image, model, resolution)
        if look is None:
            return gr.skip()
        x, y = np.floor(picture_point(look, event.index))
        return self._query(request, stamp, look, replace(ViewSettings(*values), query=f"{x:.0f}, {y:.0f}"))

    def click_cls(self, stamp: str, request: gr.Request, image, model, resolution, *values):
        """Make the CLS token the query."""
        look = encoded(self.bench, image, model, resolution)
        return (
            gr.skip() if look is None else self._query(request, stamp, look, replace(ViewSettings(*values), query=CLS))
        )

    def click_head(self, stamp: str, event: gr.SelectData, request: gr.Request, image, model, resolution, *values):
        """Enlarge the clicked head."""
        look = encoded(self.bench, image, model, resolution)
        if look is None:
            return gr.skip()
        settings = ViewSettings(*values)
        head = render.Sheet.fit(look.backbone.heads, look.picture.shown.size).tile_at(event.index)
        return self._answer(
            request, stamp, look, settings if head is None else replace(settings, shown=f"head {head + 1}")
        )

    def move_query(self, stamp: str, nudge: str, request: gr.Request, image, model, resolution, *values):
        """Move the query by an arrow key."""
        look, settings = self.bench.peek(image, model, resolution), ViewSettings(*values)
        if look is None or not settings.has_query:
            return gr.skip()
        with user_errors():
            query = moved_query(look, settings.query, nudge)
        return self._answer(request, stamp, look, replace(settings, query=query))

    def stop(self, request: gr.Request) -> None:
        """Stop computing the rollout."""
        self.bench.stop((request.session_hash, "attention"))

    def _query(self, request: gr.Request, stamp: str, look: Look, settings: ViewSettings) -> dict:
        """The answer to another query; a map without one gives way to the mean of the heads."""
        return self._answer(request, stamp, look, settings if settings.has_query else replace(settings, shown=MEAN))

    def _answer(self, request: gr.Request, stamp: str, look: Look, settings: ViewSettings) -> dict:
        """The answer to a click: query, map and pictures."""
        c = self.controls
        answering = self.requests.click(request.session_hash, stamp, look.key)
        with user_errors():
            pictures = dict(zip(c.pictures, draw(self.bench, look, settings), strict=True))
            return answering.answer({c.query: settings.query, c.shown: settings.shown}, pictures)


def register_model(model: str) -> str:
    """The counterpart with registers; the model itself where there is none."""
    return _register_model(model) or model


def register_button(bench: Workbench, model: str) -> gr.Button:
    """The button that switches to the counterpart with registers."""
    other = _register_model(model)
    available = other is not None and (bench.hub_answers or models.is_cached(other))
    text = f"Artefacts? Use {other}" + ("" if available else " (needs the Hugging Face Hub)")
    return gr.Button(visible=other is not None, interactive=available, value=text)


def _register_model(model: str) -> str | None:
    """The model of the same size with registers; the small one for the embedded weights, which are small too."""
    if "registers" in model or not model.startswith(("dinov2-", "embedded")):
        return None
    other = f"dinov2-with-registers-{model.removeprefix('dinov2-').replace('embedded', 'small')}"
    return other if other in models.KNOWN else None
