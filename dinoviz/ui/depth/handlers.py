"""The functions behind the Depth tab's events."""

from __future__ import annotations

import html
import math
import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

import gradio as gr
from PIL import Image

from dinoviz.depth import middlebury
from dinoviz.depth.camera import exif_focal
from dinoviz.errors import DinovizError, Stopped
from dinoviz.ui.components import live_figure
from dinoviz.ui.depth import probes, views
from dinoviz.ui.depth.controls import Controls, Drawn
from dinoviz.ui.depth.state import STEP, Scene, ViewSettings, named, parse_points, settings_of
from dinoviz.ui.endpoints import takes_settings
from dinoviz.ui.shared import DRAWING, EMPTY, encoded, follow, note, picture_point, stop_shown, user_errors
from dinoviz.ui.stale_answers import Request, Requests
from dinoviz.ui.workbench import Look, Workbench

PREVIOUS = "The map shown is the previous one."


@dataclass(frozen=True, eq=False)
class Handlers:
    """The functions behind the tab's events, for all sessions."""

    bench: Workbench
    controls: Controls
    requests: Requests

    @takes_settings(ViewSettings)
    def depth(
        self, image: str, model: str, resolution: str, points: str, probe: str, *values
    ) -> tuple[Image.Image, str, str]:
        """Predict the depth of a picture.

        Args:
            image: the picture
            model: a name from the list
            resolution: the short side in model pixels
            points: up to two points to measure, as JSON [[x, y], ...] in pixels of the picture
            probe: a depth probe from the list; empty for the first
            shown: 'depth', 'surface normals', 'uncertainty' or 'cut-out'
            colours: the colours of the map
            opacity: of the map over the picture, 0 to 1
            raw: one flat square per patch instead of interpolation
            sharp: align the map to the picture's edges
            by_itself: colours over the full depth range of the picture; else from near to far
            near: the least depth shown, in metres
            far: the largest
            focal: the focal length in pixels of the picture; 0 for the file's EXIF data, or an assumption
            anyway: metres also for a picture unlike the probe's training data
            above: read the features at the given resolution, rather than at the probe's training resolution
        Returns:
            the picture, a caption, and the measurements at the points
        """
        with user_errors():
            scene, where = self._typed_scene(image, model, resolution, probe, values), parse_points(points)
            return views.draw(scene, where), note(views.caption(scene)), note(views.readout(scene, where))

    @takes_settings(ViewSettings)
    def depth_download(self, image: str, model: str, resolution: str, points: str, probe: str, *values) -> str:
        """Download depth as a zip: coloured and 16-bit PNG, .npy in metres, .ply, and a description as JSON.

        Args: as for the depth endpoint.
        Returns:
            the zip
        """
        with user_errors():
            return views.file(self._typed_scene(image, model, resolution, probe, values))

    def _typed_scene(self, image: str, model: str, resolution: str, probe: str, values: Sequence) -> Scene:
        """The scene for a client, for whom networks run at once. Raises DinovizError."""
        look = self.bench.look(image, model, resolution)
        return open_scene(self.bench, look, image, probe or probes.first(self.bench, look), settings_of(values))

    def save(self, image, model, resolution, points, probe, *values):
        """Download what the page shows."""
        with user_errors():
            look = self.bench.peek(image, model, resolution)
            if not self._is_ready(look, probe, values):
                return gr.skip()
            return views.file(open_scene(self.bench, look, image, probe, settings_of(values)))

    def draw_all(
        self, stamp: str, is_open: bool, ready: Hashable, drawn: Drawn, tried: Hashable, request: gr.Request, image,
        model, resolution, points, probe, *values,
    ):  # fmt: skip
        """Draw the tab. All events but clicks come here, one at a time, so that an older answer never comes last."""
        c = self.controls
        if not is_open and drawn.look in (None, ready):
            return gr.skip()
        answering = self.requests.controls(request.session_hash, stamp, ready)
        empty = {c.drawn: Drawn(limits=drawn.limits), c.pending: None}
        if not is_open or ready is None:
            return answering.answer(empty, self._nothing(note(EMPTY if is_open else DRAWING)))
        look = encoded(self.bench, image, model, resolution, request)
        if look is None:
            return gr.skip()
        with user_errors():
            updates = {}
            if look.key != drawn.look or not probe:  # the list of probes may be another one
                probe = probes.selected(self.bench, look, probe)
                updates[c.probe] = gr.update(choices=probes.choices(self.bench, look), value=probe)
            if probe is None:
                return answering.answer({**empty, **updates}, self._nothing(note(probes.no_probe(look))))
            settings = settings_of(values, drawn.limits)
            if not probes.is_ready(self.bench, look, probe, settings.above):
                key = probes.key(look, probe, settings.above)
                pending = gr.skip() if key == tried else key
                return {c.drawn: replace(drawn, map=None), c.pending: pending, **updates}
            scene = open_scene(self.bench, look, image, probe, settings)
            changes = self._changes(drawn, scene, probe, points, values)
            return answering.answer(updates, changes) if changes else gr.skip()

    def _changes(self, drawn: Drawn, scene: Scene, probe: str, points: tuple[str, list], values: Sequence) -> dict:
        """The updates of what has changed. values: of the controls."""
        c, look, settings, shown = self.controls, scene.look, scene.settings, named(values)
        where = points_on(points, look)
        now = Drawn(look.key, (probe, settings.scene_settings), (settings, where), slider_values(scene))
        if now == drawn:
            return {}
        updates = {c.drawn: now, c.pending: None, **self._map(scene, where)}
        if settings.by_itself != shown["by_itself"]:
            updates[c.by_itself] = settings.by_itself
        if points[0] != look.picture.digest:
            updates[c.points] = look.picture.digest, []
        # A focal length belongs to a picture; it is kept for the next one of its size, most often of the same camera.
        if (now.look, now.scene) != (drawn.look, drawn.scene):
            updates |= self._scene(scene, (shown["near"], shown["far"]))
        return updates

    def _map(self, scene: Scene, points: list) -> dict:
        """The updates of the map and what belongs to it."""
        c = self.controls
        return {
            c.view: views.draw(scene, points),
            c.caption: note(views.caption(scene)),
            c.readout: note(views.readout(scene, points)),
            c.histogram: live_figure.drawn("Histogram of the depth", views.histogram(scene)),
            c.truth: None if scene.ground_truth is None else views.ground_truth_picture(scene),
        }

    def _scene(self, scene: Scene, shown: tuple[float, float]) -> dict:
        """The updates of the point cloud, the notes and the sliders. shown: near and far on the page."""
        c, (count, figure), notice = self.controls, views.cloud(scene), views.notice(scene)
        sliders = {
            slider: gr.update(
                label=f"{name} ({scene.unit.name})",
                maximum=scene.farthest,
                **({"value": value} if value != now else {}),  # leave a slider alone while the user moves it
            )
            for slider, name, now, value in zip(
                (c.near, c.far), ("Near", "Far"), shown, slider_values(scene), strict=True
            )
        }
        return {
            c.cloud: live_figure.drawn("Point cloud: drag to rotate, zoom with the wheel", figure, "the point cloud"),
            c.cloud_note: note(views.cloud_note(scene, count)),
            c.truth_part: gr.Column(elem_classes="dv-hidden" if scene.ground_truth is None else ""),
            c.truth_note: "" if scene.ground_truth is None else note(views.ground_truth_note(scene)),
            c.notice: note(notice, "warning") if notice else "",
            c.anyway: gr.Checkbox(visible=scene.unfamiliar),
            **sliders,
        }

    def _nothing(self, why: str) -> dict:
        """The updates that show no depth, and why."""
        c, no_figure = self.controls, live_figure.drawn()
        return {
            c.view: None,
            c.caption: why,
            c.readout: "",
            c.histogram: no_figure,
            c.truth: None,
            c.cloud: no_figure,
            c.cloud_note: "",
            c.truth_part: gr.Column(elem_classes="dv-hidden"),
            c.truth_note: "",
            c.notice: "",
            c.anyway: gr.Checkbox(visible=False),
        }

    def prepare(self, pending: Hashable, image, model, resolution, probe, above, request: gr.Request) -> Iterator[dict]:
        """Run the network that the prediction needs, with progress."""
        c, owner = self.controls, (request.session_hash, "depth")
        look = self.bench.peek(image, model, resolution) if pending else None
        if look is None or not probe or pending != probes.key(look, probe, above):
            self.bench.stop(owner, superseded=True)
            yield {c.stop: stop_shown(False)}
            return
        job = self.bench.start(owner, pending, lambda job: probes.predict(self.bench, look, probe, above, job))
        for progress in follow(self.bench, owner, job):
            yield {c.caption: note(html.escape(progress), "caption dv-busy"), c.stop: stop_shown(True)}
        if job.superseded:
            return
        done = {c.stop: stop_shown(False)}
        try:
            job.result()
            yield {**done, c.tried: None, c.prepared: time.monotonic()}
        except Stopped:
            stopped = note(f"Stopped. Choose a depth probe to begin again. {PREVIOUS}")
            yield {**done, c.caption: stopped, c.tried: pending}
        except DinovizError as error:
            failed = note(f"{html.escape(str(error))} {PREVIOUS}", "caption dv-error")
            yield {**done, c.caption: failed, c.tried: pending}

    def predict_again(self) -> tuple:
        """Run a pass that was stopped or failed once more, since it was selected again."""
        return None, None, time.monotonic()

    def click_point(
        self, stamp: str, event: gr.SelectData, request: gr.Request, drawn: Drawn, image, model, resolution, points,
        probe, *values,
    ):  # fmt: skip
        """Measure at the clicked point; a third one begins anew."""
        look = encoded(self.bench, image, model, resolution)
        if look is None:
            return gr.skip()
        before = points_on(points, look)
        point = [round(float(value), 1) for value in picture_point(look, event.index)]
        where = [*(before if len(before) == 1 else []), point]
        answering = self.requests.click(request.session_hash, stamp, look.key)
        return self._measured(answering, drawn, look, image, where, probe, values)

    def clear_points(
        self, stamp: str, request: gr.Request, drawn: Drawn, image, model, resolution, points, probe, *values
    ):
        """Remove the points."""
        look = encoded(self.bench, image, model, resolution)
        if look is None:
            return gr.skip()
        answering = self.requests.click(request.session_hash, stamp, look.key)
        return self._measured(answering, drawn, look, image, [], probe, values)

    def _measured(
        self, answering: Request, drawn: Drawn, look: Look, image: str, where: list, probe: str, values: Sequence
    ):
        """The updates after a click: the picture with the points, and the measurements."""
        if not self._is_ready(look, probe, values):
            return gr.skip()
        c = self.controls
        with user_errors():
            scene = open_scene(self.bench, look, image, probe, settings_of(values, drawn.limits))
            return answering.answer(
                {c.points: (look.picture.digest, where), c.drawn: replace(drawn, map=None)},
                {c.readout: note(views.readout(scene, where)), c.view: views.draw(scene, where)},
            )

    def stop(self, request: gr.Request) -> None:
        """Stop the pass."""
        self.bench.stop((request.session_hash, "depth"))

    def _is_ready(self, look: Look | None, probe: str | None, values: Sequence) -> bool:
        """Whether a click or a download can be answered: neither ever runs a network."""
        with user_errors():
            return look is not None and bool(probe) and probes.is_ready(self.bench, look, probe, named(values)["above"])


def open_scene(bench: Workbench, look: Look, image: str, probe: str, settings: ViewSettings) -> Scene:
    """The look with its predicted depth. image: the uploaded file, for its EXIF data. Raises DinovizError."""
    prediction = probes.predict(bench, look, probe, settings.above)
    focal = exif_focal(image, look.picture.size)
    truth = middlebury.measured(look.picture.image) if look.picture.size == middlebury.SIZE else None
    scene = Scene(look, prediction, settings, focal, truth)
    # Cache not the scene itself, which would keep the features in memory.
    metres = bench.derived(
        ("depth-map", probes.key(look, probe, settings.above), settings.raw, settings.sharp),
        lambda: scene.metres(look.picture.shown),
    )
    return scene.with_metres(metres)


def points_on(points: tuple[str, list], look: Look) -> list:
    """The clicked points, if they are on this picture."""
    return points[1] if points[0] == look.picture.digest else []


def slider_values(scene: Scene) -> tuple[float, float]:
    """Near and far for the sliders: the limits; those of the picture itself rounded outwards to the sliders' steps."""
    near, far = scene.limits
    if scene.settings.by_itself:
        near, far = math.floor(near / STEP) * STEP, math.ceil(far / STEP) * STEP
    return round(near, 2), round(far, 2)
