"""The Patch PCA tab: the principal components of the patches of one picture, or of several together."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace

import gradio as gr
import plotly.graph_objects as go
from PIL import Image

from dinoviz.ui.endpoints import takes_settings
from dinoviz.ui.image_bar import Bar
from dinoviz.ui.pca_controls import Controls, Drawn, layout
from dinoviz.ui.pca_views import Looks, ViewSettings, draw, file, open_looks
from dinoviz.ui.shared import (
    DRAWING,
    EMPTY,
    ONCE,
    PRIVATE,
    WAITING,
    api_only,
    encoded,
    follow,
    note,
    stop_shown,
    user_errors,
)
from dinoviz.ui.workbench import Look, Workbench


def build(bench: Workbench, bar: Bar, is_open: gr.State) -> None:
    """Build the tab. is_open: whether it is the open one."""
    controls = layout(bar)
    wire(controls, Handlers(bench, controls), bar, is_open)


def wire(controls: Controls, handlers: Handlers, bar: Bar, is_open: gr.State) -> None:
    """Connect the tab's events."""
    c, inputs = controls, [*bar.inputs, controls.others, *controls.settings]
    changes = [part.change for part in (bar.ended, is_open, c.others, c.prepared)]
    gr.on(
        [*changes, *(setting.input for setting in c.settings)], handlers.draw_all,
        [is_open, bar.ready, c.drawn, c.tried, *inputs], [c.drawn, c.pending, c.layer, *c.outputs], **PRIVATE,
    )  # fmt: skip
    c.pending.change(handlers.prepare, c.pending, [c.caption, c.stop, c.tried, c.prepared], **WAITING)
    api_only().click(handlers.patch_pca, inputs, c.outputs, api_name="patch_pca", concurrency_limit=2)
    gr.on([c.foreground.input, c.by_itself.input], lock_threshold, [c.foreground, c.by_itself], c.threshold, **PRIVATE)
    c.keep.click(keep_picture, [bar.image, c.others], c.others, **PRIVATE)
    c.stop.click(handlers.stop, queue=False, **ONCE)
    c.file_button.click(
        handlers.pca_download, inputs, c.file, api_name="pca_download", concurrency_limit=2,
        show_progress="full", show_progress_on=c.caption,
    ).success(None, js=c.press_file)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Handlers:
    """The functions behind the tab's events, for all sessions."""

    bench: Workbench
    controls: Controls

    @takes_settings(ViewSettings)
    def patch_pca(
        self, image: str, model: str, resolution: str, others: list[str] | None, *values
    ) -> tuple[Image.Image, list, go.Figure, go.Figure, float, str]:
        """Show the principal components of the patches, of one picture or of several in one joint basis.

        Args:
            image: the picture
            model: a name from the list
            resolution: the short side in model pixels
            others: more pictures for the joint basis
            layer: from 1
            shown: 'three components as RGB', 'component 1' to 'component 10', or 'foreground evidence', a score
            red: the component shown as red, from 1
            green: the component shown as green
            blue: the component shown as blue
            steady: rotate the three components for stable colours across pictures; else one component per channel
            foreground: fit and colour foreground patches only
            by_itself: compute the foreground threshold from the data
            threshold: the foreground threshold otherwise, 0 to 1
            opacity: of the map over the picture, 0 to 1
            raw: one flat square per patch instead of interpolation
        Returns:
            the map of the picture, those of all pictures, the patches in three components, the explained variance,
            the threshold, and a caption
        """
        with user_errors():
            found = self._looks(self.bench.look, image, model, resolution, others)
            return draw(self.bench, found.looks, found.errors, ViewSettings(*values))

    @takes_settings(ViewSettings)
    def pca_download(self, image: str, model: str, resolution: str, others: list[str] | None, *values) -> str:
        """Download the patch PCA as a zip: full-size maps, the coordinates as .npz, and a description as JSON.

        Args: as for the patch_pca endpoint.
        Returns:
            the zip
        """
        with user_errors():
            looks = self._looks(self.bench.look, image, model, resolution, others).looks
            return file(self.bench, looks, ViewSettings(*values))

    def draw_all(
        self, is_open: bool, ready: Hashable, drawn: Drawn, tried: tuple | None, request: gr.Request,
        image, model, resolution, others, *values,
    ):  # fmt: skip
        """Draw the tab. All events come here, one at a time, so that an older answer never comes last."""
        c = self.controls
        if not is_open and drawn.look in (None, ready):
            return gr.skip()
        if not is_open or ready is None:
            empty = dict.fromkeys((c.main, c.scatter, c.variance, c.joint))
            caption = note(EMPTY if is_open else DRAWING)
            return {c.drawn: Drawn(layers=drawn.layers), c.pending: None, **empty, c.caption: caption}
        look = encoded(self.bench, image, model, resolution, request)
        if look is None:
            return gr.skip()
        with user_errors():
            found = self._looks(self.bench.peek, image, model, resolution, others)
            wanted = tuple(others or []), model, resolution
            if found.missing and tried != wanted:  # the caption goes to the progress of the encoding
                return {c.drawn: drawn._replace(maps=None), c.pending: wanted}
            return self._drawn(drawn, look, found, ViewSettings(*values), gallery=bool(others))

    def _drawn(self, drawn: Drawn, look: Look, found: Looks, settings: ViewSettings, *, gallery: bool):
        """The updates of what has changed. gallery: whether all pictures are shown, beside the first."""
        c, layers, updates = self.controls, look.backbone.layers, {}
        if drawn.layers != layers:
            settings = replace(settings, layer=layers)
            updates[c.layer] = gr.Slider(maximum=layers, value=layers)
        figures_key = tuple(each.key for each in found.looks), settings.figures_key
        now = Drawn(look.key, layers, figures_key, (found.errors, settings.maps_key))
        if now == drawn:
            return gr.skip()
        picture, pictures, scatter, variance, threshold, caption = draw(self.bench, found.looks, found.errors, settings)
        updates |= {c.drawn: now, c.pending: None, c.main: picture, c.caption: caption}
        updates[c.joint] = gr.Gallery(pictures, visible=gallery)
        if now.figures != drawn.figures:
            updates |= {c.scatter: scatter, c.variance: variance}
        if settings.by_itself:  # otherwise the user may be moving it
            updates[c.threshold] = threshold
        return updates

    def prepare(self, pending: tuple | None, request: gr.Request) -> Iterator[dict]:
        """Encode the pictures of the joint basis, with progress."""
        c, owner = self.controls, (request.session_hash, "pca")
        if pending is None:
            self.bench.stop(owner, superseded=True)
            yield {c.stop: stop_shown(False)}
            return
        # Pictures that cannot be read are left out here; the caption names them.
        job = self.bench.start_encode(owner, *pending, skip_bad=True)
        for progress in follow(self.bench, owner, job):
            yield {c.caption: note(html.escape(progress), "caption dv-busy"), c.stop: stop_shown(True)}
        if job.superseded:
            return
        if job.stopped:
            caption = note("Stopped. Change the pictures to begin again.")
            yield {c.caption: caption, c.stop: stop_shown(False), c.tried: pending}
            return
        with user_errors():
            job.result()
        yield {c.stop: stop_shown(False), c.tried: pending, c.prepared: time.monotonic()}

    def stop(self, request: gr.Request) -> None:
        """Stop encoding the pictures of the joint basis."""
        self.bench.stop((request.session_hash, "pca"))

    def _looks(self, open_look: Callable, image: str, model: str, resolution: str, others: list[str] | None) -> Looks:
        return open_looks(self.bench, open_look, [image, *(others or [])], model, resolution)


def lock_threshold(foreground: bool, by_itself: bool) -> gr.Slider:
    """The threshold, which can be set where it is used and not computed."""
    return gr.Slider(interactive=foreground and not by_itself)


def keep_picture(image: str | None, others: list[str] | None) -> list[str] | None:
    """The pictures of the joint basis with the current one added."""
    return [*(others or []), image] if image and image not in (others or []) else others
