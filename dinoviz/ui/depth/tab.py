"""The Depth tab: how far away everything is, in metres where a probe knows them, and the picture in space."""

from __future__ import annotations

import html
import math
import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

import gradio as gr
from PIL import Image

from dinoviz import render
from dinoviz.depth import middlebury as stereo
from dinoviz.depth.camera import exif_focal
from dinoviz.errors import DinovizError, Stopped
from dinoviz.ui.components import live_figure
from dinoviz.ui.components.live_figure import LiveFigure
from dinoviz.ui.depth import probes as depth_probes
from dinoviz.ui.depth import views as depth_views
from dinoviz.ui.depth.state import DEPTH, SHOWN, Choice, Scene, parse_points
from dinoviz.ui.image_bar import Bar
from dinoviz.ui.shared import (
    DRAWING,
    EMPTY,
    EVERY,
    ONCE,
    PRIVATE,
    WAITING,
    LiveDropdown,
    api_only,
    download,
    encoded,
    follow,
    note,
    picture_point,
    stop_shown,
    told,
    view_image,
)
from dinoviz.ui.stale_answers import Overlap
from dinoviz.ui.workbench import Look, Workbench

STEP = 0.05  # of near and far, in metres or in times the median
AS_BEFORE = "What is drawn is what was told before."


def build(bench: Workbench, bar: Bar, here: gr.State) -> gr.Dropdown:
    """Lay out the tab and wire it. here: whether it is open. Returns what chooses the probe."""
    overlap = Overlap()
    notice = gr.HTML("", label="notice", elem_id="depth-notice", padding=False)
    with gr.Row():
        view = view_image("How far away: click for a distance, and again for a length", "depth-map")
        with gr.Column(min_width=300):
            cloud = LiveFigure(elem_id="depth-cloud", padding=False)
            cloud_note = gr.HTML("", label="points", elem_id="depth-cloud-note", padding=False)
    with gr.Row():
        caption = gr.HTML(note("Waiting for the picture …"), label="caption", elem_id="depth-caption")
        stop_button = gr.Button("Stop", size="sm", visible=False, scale=0, elem_id="depth-stop")
    with gr.Row():
        readout = gr.HTML(note(depth_views.ASK), label="measured", elem_id="depth-readout")
        clear = gr.Button("Clear the points", size="sm", scale=0, min_width=150, elem_id="depth-clear")
    with gr.Row():
        with gr.Column(min_width=260):
            probe = LiveDropdown(
                [], label="Told by",
                info="a probe trained on these features" + ("" if bench.settings.public else ", or its file or run"),
                allow_custom_value=not bench.settings.public, elem_id="depth-probe",
            )  # fmt: skip
            shown = gr.Radio(list(SHOWN), value=DEPTH, label="Shown", elem_id="depth-shown")
            anyway = gr.Checkbox(
                False, label="Metres all the same", visible=False, elem_id="depth-anyway",
                info="although the probe was trained on other pictures",
            )  # fmt: skip
            above = gr.Checkbox(
                False, label="At the resolution above", elem_id="depth-above",
                info="off: at the one that the probe was trained at, where it errs least",
            )  # fmt: skip
        with gr.Column(min_width=260):
            with gr.Row():
                colours = gr.Dropdown(
                    list(render.COLORMAPS), value="viridis", label="Colours", elem_id="depth-colours", min_width=110
                )
                opacity = gr.Slider(0, 1, value=1, step=0.05, label="Opacity", elem_id="depth-opacity", min_width=140)
            with gr.Row():
                raw = gr.Checkbox(False, label="Raw patch grid", elem_id="depth-raw", min_width=130)
                sharp = gr.Checkbox(False, label="Edges of the picture", elem_id="depth-sharp", min_width=130)
            focal = gr.Number(
                0, label="Focal length in pixels of the picture", minimum=0, elem_id="depth-focal",
                info="0: what the file says, or else an assumption; it changes lengths, not distances",
            )  # fmt: skip
        with gr.Column(min_width=260):
            by_itself = gr.Checkbox(
                True, label="The whole range of the picture", elem_id="depth-auto",
                info="off: colours, cut-out and points from near to far",
            )  # fmt: skip
            near = gr.Slider(0, 10, value=0, step=STEP, label="Near", elem_id="depth-near")
            far = gr.Slider(0, 10, value=10, step=STEP, label="Far", elem_id="depth-far")
    with gr.Row():
        histogram = LiveFigure(elem_id="depth-histogram", padding=False)
        with gr.Column(min_width=300, elem_classes="dv-hidden") as measured_part:
            gr.HTML('<div class="dv-title-of">Measured: what stereo says of this example</div>', padding=False)
            measured = view_image("", "depth-measured", height=300)
            measured_note = gr.HTML("", label="measured", elem_id="depth-measured-note", padding=False)
    file_button, file, press = download("depth-file", "Download: 16-bit PNG, .npy, .ply, coloured PNG")
    with bar.unseen:
        seen = gr.State(Seen())  # what is drawn
        lacking = gr.State(None)  # the pass of a network that must be run before this can be drawn
        tried = gr.State(None)  # the one that was stopped or failed last
        prepared = gr.State(None)  # changes when a pass was run, and when one is asked for anew
        again = gr.State(None)  # changes when the tab has to be drawn once more, see `Overlap`
        points = gr.State(("", []))  # the picture that was clicked on, and where

    style = [shown, colours, opacity]
    options = [*style, raw, sharp, by_itself, near, far, focal, anyway, above]
    inputs = [*bar.inputs, points, probe, *options]
    light = [view, caption, readout, histogram, measured]
    heavy = [cloud, cloud_note, measured_part, measured_note, notice, anyway, near, far]
    marks = gr.Textbox(visible="hidden")

    def show_depth(
        image: str, model: str, resolution: str, points: str, probe: str, shown: str, colours: str, opacity: float,
        raw: bool, sharp: bool, by_itself: bool, near: float, far: float, focal: float, anyway: bool, above: bool,
    ) -> tuple[Image.Image, str, str]:  # fmt: skip
        """See how far away everything is.

        Args:
            image: the picture
            model: a name from the list
            resolution: the short side in model pixels
            points: up to two points to measure, as JSON [[x, y], ...] in pixels of the picture
            probe: which of those on offer tells depth; empty for the first
            shown: 'depth', 'surface normals', 'uncertainty' or 'cut-out'
            colours: the colours of the map
            opacity: of the map over the picture, 0 to 1
            raw: one flat square a patch instead of interpolation
            sharp: move the edges to those of the picture
            by_itself: colours over the whole range of the picture; else from near to far
            near: the nearest that is shown, in metres
            far: the farthest
            focal: the focal length in pixels of the picture; 0 for what the file says, or an assumption
            anyway: metres also for a picture unlike those that the probe was trained on
            above: read at the resolution given, rather than at the one that the probe was trained at
        Returns:
            the picture, what it means, and what is at the points
        """
        with told():
            look = bench.look(image, model, resolution)
            choice = Choice(shown, colours, opacity, raw, sharp, by_itself, near, far, focal or 0, anyway, above)
            scene = _scene(bench, look, image, probe or _first(bench, look), choice)
            where = parse_points(points)
            return (
                depth_views.draw(scene, where),
                note(depth_views.caption(scene)),
                note(depth_views.readout(scene, where)),
            )

    def download_depth(
        image: str, model: str, resolution: str, points: str, probe: str, shown: str, colours: str, opacity: float,
        raw: bool, sharp: bool, by_itself: bool, near: float, far: float, focal: float, anyway: bool, above: bool,
    ) -> str:  # fmt: skip
        """Get depth as a zip: coloured and 16-bit PNG, .npy in metres, .ply, and what they mean as JSON.

        Args: as for the depth endpoint.
        Returns:
            the zip
        """
        with told():
            look = bench.look(image, model, resolution)
            choice = Choice(shown, colours, opacity, raw, sharp, by_itself, near, far, focal or 0, anyway, above)
            return depth_views.file(_scene(bench, look, image, probe or _first(bench, look), choice))

    def save(image, model, resolution, points, probe, *values):
        with told():
            look = bench.peek(image, model, resolution)
            if not _ready(bench, look, probe, values):
                return gr.skip()
            return depth_views.file(_scene(bench, look, image, probe, _choice(values)))

    def prepare(lacking: Hashable, image, model, resolution, probe, above, request: gr.Request) -> Iterator[tuple]:
        """Run what has to run over the picture, once and with progress; every control is instant afterwards."""
        owner = (request.session_hash, "depth")
        look = bench.peek(image, model, resolution) if lacking else None
        if look is None or not probe or lacking != depth_probes.key(look, probe, above):
            bench.stop(owner, superseded=True)
            yield gr.skip(), stop_shown(False), gr.skip(), gr.skip()
            return
        job = bench.start(owner, lacking, lambda job: depth_probes.read(bench, look, probe, above, job))
        for sentence in follow(bench, owner, job):
            yield note(html.escape(sentence), "caption dv-busy"), stop_shown(True), gr.skip(), gr.skip()
        if job.superseded:
            return
        try:
            job.result()
            yield gr.skip(), stop_shown(False), None, time.monotonic()
        except Stopped:
            said = note(f"Stopped. Choose again what tells depth. {AS_BEFORE}")
            yield said, stop_shown(False), lacking, gr.skip()
        except DinovizError as error:
            said = note(f"{html.escape(str(error))} {AS_BEFORE}", "caption dv-error")
            yield said, stop_shown(False), lacking, gr.skip()

    def ask_anew() -> tuple:
        """A pass that was stopped or failed is run again when it is chosen again."""
        return None, None, time.monotonic()

    def draw_all(
        here: bool, ready: Hashable, seen: Seen, tried: Hashable, request: gr.Request, image, model, resolution,
        points, probe, *values,
    ):  # fmt: skip
        """What the controls say. All but clicks come here, one after the other: an older answer never comes last."""
        if not here and seen.look in (None, ready):
            return gr.skip()
        if not here or ready is None:
            why = EMPTY if here else DRAWING
            return Seen(limits=seen.limits), None, *[gr.skip()] * 4, *_nothing(note(why))
        look = encoded(bench, image, model, resolution, request)
        if look is None:
            return gr.skip()
        offers, fresh = gr.skip(), look.key != seen.look
        with told(), overlap.controls(request.session_hash) as once_more:
            if fresh or not probe:  # what is on offer may be something else
                probe = _chosen(bench, look, probe)
                offers = gr.update(choices=depth_probes.offers(bench, look), value=probe)
            if probe is None:
                none_here = note(depth_probes.none_here(look))
                return Seen(limits=seen.limits), None, offers, *[gr.skip()] * 3, *_nothing(none_here)
            choice = _choice(values, seen.limits)
            if not depth_probes.is_ready(bench, look, probe, choice.above):
                key = depth_probes.key(look, probe, choice.above)
                return replace(seen, light=None), gr.skip() if key == tried else key, offers, *[gr.skip()] * 16
            where, kept = _here(points, look), gr.skip()
            *_, whole, near, far, _, _, _ = values
            whole = gr.skip() if choice.by_itself == whole else choice.by_itself
            if points[0] != look.picture.digest:
                kept = look.picture.digest, []
            scene = _scene(bench, look, image, probe, choice)
            now = Seen(look.key, (probe, choice.heavy), (choice, where), _sliders(scene))
            if now == seen:
                return gr.skip()
            # A focal length belongs to a picture; it is kept for the next one of its size, most often of that camera.
            heavy = [gr.skip()] * 8 if not fresh and now.heavy == seen.heavy else _heavy(scene, (near, far))
            return now, None, offers, kept, whole, once_more(), *_light(scene, where), *heavy

    def click_point(event: gr.SelectData, request: gr.Request, seen: Seen, image, model, resolution, *rest):
        look = encoded(bench, image, model, resolution)
        if look is None:
            return gr.skip()
        point = [round(float(value), 1) for value in picture_point(look, event.index)]
        return answer(request.session_hash, seen, look, image, point, *rest)

    def clear_points(request: gr.Request, seen: Seen, image, model, resolution, *rest):
        look = encoded(bench, image, model, resolution)
        return gr.skip() if look is None else answer(request.session_hash, seen, look, image, None, *rest)

    def answer(session: str, seen: Seen, look: Look, image: str, point: list | None, points, probe, *values):
        """What a click says: the points, the picture with them, what is measured. Without a point there are none."""
        if not _ready(bench, look, probe, values):
            return gr.skip()
        where = _here(points, look)
        where = [] if point is None else [*(where if len(where) == 1 else []), point]
        with told(), overlap.click(session) as once_more:
            scene = _scene(bench, look, image, probe, _choice(values, seen.limits))
            readout = note(depth_views.readout(scene, where))
            points = look.picture.digest, where
            return points, replace(seen, light=None), once_more(), depth_views.draw(scene, where), readout

    def stop(request: gr.Request) -> None:
        bench.stop((request.session_hash, "depth"))

    changes = [part.change for part in (bar.ended, here, prepared, again)]
    changes += [part.input for part in (*style, raw, sharp, by_itself, near, far, anyway)]
    gr.on(
        [*changes, focal.submit, focal.blur], draw_all, [here, bar.ready, seen, tried, *inputs],
        [seen, lacking, probe, points, by_itself, again, *light, *heavy], **PRIVATE,
    )  # fmt: skip
    lacking.change(prepare, [lacking, *bar.inputs, probe, above], [caption, stop_button, tried, prepared], **WAITING)
    gr.on([probe.input, above.input], ask_anew, None, [lacking, tried, prepared], **PRIVATE)
    measuring = [seen, *inputs], [points, seen, again, view, readout]
    view.select(click_point, *measuring, **EVERY)
    clear.click(clear_points, *measuring, **EVERY)
    stop_button.click(stop, queue=False, **ONCE)
    typed = [*bar.inputs, marks, probe, *options]
    api_only().click(show_depth, typed, [view, caption, readout], api_name="depth", concurrency_limit=2)
    api_only().click(download_depth, typed, file, api_name="depth_download", concurrency_limit=2)
    file_button.click(
        save, inputs, file, concurrency_limit=2, api_visibility="private", show_progress="full",
        show_progress_on=caption,
    ).success(None, js=press)  # fmt: skip
    return probe


@dataclass(frozen=True)
class Seen:
    """What is drawn. look: its key. heavy, light: what decides how. limits: what near and far were set to.

    light is None where something else than `draw_all` wrote since: a click, or what says how far a pass is.
    """

    look: Hashable = None
    heavy: Hashable = None
    light: Hashable = None
    limits: tuple[float, float] = (0, 10)


def _choice(values: Sequence, limits: tuple[float, float] | None = None) -> Choice:
    """What the controls say. Near and far count once one was moved from the limits that they were set to."""
    *style, by_itself, near, far, focal, anyway, above = values
    if limits not in (None, (near, far)):
        by_itself = False
        if near > far - STEP:  # the one that is in the way is pushed on
            near, far = (near, near + STEP) if near != limits[0] else (max(far - STEP, 0), far)
    return Choice(*style, by_itself, near, far, focal or 0, anyway, above)


def _here(points: tuple[str, list], look: Look) -> list:
    """The points, if they were clicked on this picture."""
    return points[1] if points[0] == look.picture.digest else []


def _first(bench: Workbench, look: Look) -> str:
    choices = depth_probes.offers(bench, look)
    if not choices:
        raise depth_probes.ProbeError(f"There is no depth probe for {look.backbone.name}.")
    return choices[0][1]


def _chosen(bench: Workbench, look: Look, probe: str | None) -> str | None:
    """The probe that was chosen, if it can read this look, else the first that can; None where there is none."""
    known = [value for _, value in depth_probes.offers(bench, look)]
    typed = probe and not bench.settings.public and depth_probes.fits(bench, look, probe)
    if probe in known or typed:
        return probe
    # A published network takes a download and a pass: it waits to be asked.
    return next((value for value in known if not depth_probes.is_published(value)), None)


def _ready(bench: Workbench, look: Look | None, probe: str | None, values: Sequence) -> bool:
    """Whether a control can answer: it never runs a network."""
    with told():
        return look is not None and bool(probe) and depth_probes.is_ready(bench, look, probe, values[-1])


def _scene(bench: Workbench, look: Look, image: str, probe: str, choice: Choice) -> Scene:
    reading = depth_probes.read(bench, look, probe, choice.above)
    focal = exif_focal(image, look.picture.size)
    measured = stereo.measured(look.picture.image) if look.picture.size == stereo.SIZE else None
    scene = Scene(look, reading, choice, focal, measured)
    # Not the scene itself: it would keep the features in memory.
    metres = bench.derived(
        ("depth-map", depth_probes.key(look, probe, choice.above), choice.raw, choice.sharp),
        lambda: scene.metres(look.picture.shown),
    )
    return scene.with_metres(metres)


def _light(scene: Scene, points: list) -> tuple:
    return (
        depth_views.draw(scene, points),
        note(depth_views.caption(scene)),
        note(depth_views.readout(scene, points)),
        live_figure.drawn("How much lies how far away", depth_views.histogram(scene)),
        None if scene.measured is None else depth_views.measured_picture(scene),
    )


def _heavy(scene: Scene, given: tuple[float, float]) -> tuple:
    """given: what near and far say by now; a slider that is on the move is left alone."""
    count, figure = depth_views.cloud(scene)
    sliders = [
        gr.update(label=f"{name} ({scene.unit.name})", maximum=scene.farthest, **({"value": to} if to != now else {}))
        for name, now, to in zip(("Near", "Far"), given, _sliders(scene), strict=True)
    ]
    notice = depth_views.notice(scene)
    return (
        live_figure.drawn("In space: turn it, zoom with the wheel", figure, "the picture as points in space"),
        note(depth_views.cloud_note(scene, count)),
        gr.Column(elem_classes="dv-hidden" if scene.measured is None else ""),
        "" if scene.measured is None else note(depth_views.measured_note(scene)),
        note(notice, "warning") if notice else "",
        gr.Checkbox(visible=scene.unfamiliar),
        *sliders,
    )


def _sliders(scene: Scene) -> tuple[float, float]:
    """What the two say: the limits, those of the picture itself on the sliders' steps around it."""
    near, far = scene.limits
    if scene.choice.by_itself:
        near, far = math.floor(near / STEP) * STEP, math.ceil(far / STEP) * STEP
    return round(near, 2), round(far, 2)


def _nothing(why: str) -> tuple:
    """The outputs of `_light` and `_heavy` where there is no depth."""
    figure = live_figure.drawn()
    hidden = gr.Column(elem_classes="dv-hidden")
    return (
        None,
        why,
        "",
        figure,
        None,
        figure,
        "",
        hidden,
        "",
        "",
        gr.Checkbox(visible=False),
        gr.skip(),
        gr.skip(),
    )
