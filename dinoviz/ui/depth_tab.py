"""The Depth tab: how far away everything is, in metres where a probe knows them, and the picture in space."""

from __future__ import annotations

import html
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import gradio as gr
from PIL import Image

from dinoviz import render, stereo
from dinoviz.camera import exif_focal
from dinoviz.errors import DinovizError, Stopped
from dinoviz.ui import depth_probes, depth_views, live_figure
from dinoviz.ui.bar import Bar
from dinoviz.ui.depth_state import DEPTH, SHOWN, Choice, Scene, parse_points
from dinoviz.ui.live_figure import LiveFigure
from dinoviz.ui.parts import (
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
from dinoviz.ui.workbench import Look, Workbench

STEP = 0.05  # of near and far, in metres or in times the median
EMPTY = "There is nothing to see until a picture is encoded."
AS_BEFORE = "What is drawn is what was told before."


def build(bench: Workbench, bar: Bar, here: gr.State) -> gr.Dropdown:
    """Lay out the tab and wire it. here: whether it is open. Returns what chooses the probe."""
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
    last = gr.State(0)  # the focal length that was drawn
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

    def prepare(here: bool, image, model, resolution, probe: str | None, above, request: gr.Request) -> Iterator[tuple]:
        """Run what has to run over the picture, once and with progress; every control is instant afterwards."""
        look = bench.peek(image, model, resolution) if here and image else None
        probe = look and _chosen(bench, look, probe)
        with told():
            if not probe or depth_probes.is_ready(bench, look, probe, above):
                return
        owner = (request.session_hash, "depth")
        job = bench.start(
            owner,
            depth_probes.key(look, probe, above),
            lambda job: depth_probes.read(bench, look, probe, above, job),
        )
        for sentence in follow(bench, owner, job):
            yield note(html.escape(sentence), "caption dv-busy"), stop_shown(True)
        if job.superseded:
            return
        said = gr.skip()
        try:
            job.result()
        except Stopped:
            said = note(f"Stopped. Choose again what tells depth. {AS_BEFORE}")
        except DinovizError as error:
            said = note(f"{html.escape(str(error))} {AS_BEFORE}", "caption dv-error")
        yield said, stop_shown(False)

    def refresh(here: bool, ready: Hashable, image, model, resolution, points, probe, *values):
        """Everything, for another picture or another model: what is on offer may be something else."""
        if not here:
            return gr.skip()
        if ready is None:
            return (gr.skip(), gr.skip(), *_nothing(EMPTY))
        look = bench.peek(image, model, resolution)
        if look is None:  # the page has gone on to another one
            return gr.skip()
        choices, probe = depth_probes.offers(bench, look), _chosen(bench, look, probe)
        if probe is None:
            return (gr.update(choices=choices, value=None), points, *_nothing(depth_probes.none_here(look)))
        if not _ready(bench, look, probe, values):  # stopped or failed, which is said
            return gr.update(choices=choices, value=probe), *[gr.skip()] * (len(everything) - 1)
        points = points if points[0] == look.picture.digest else (look.picture.digest, [])
        with told():
            # A focal length belongs to a picture; it is kept for the next one of its size, most often of that camera.
            scene = _scene(bench, look, image, probe, _choice(values))
            return gr.update(choices=choices, value=probe), points, *_light(scene, points[1]), *_heavy(scene)

    def repaint(image, model, resolution, points, probe, *values):
        look = bench.peek(image, model, resolution)
        if not _ready(bench, look, probe, values):
            return gr.skip()
        with told():
            scene = _scene(bench, look, image, probe, _choice(values))
            return *_light(scene, _here(points, look)), *_heavy(scene)

    def refocus(last: float, focal: float, *rest):
        """A field that is left as it was changes nothing, and must not come in the way of a click."""
        if (focal or 0) == last:
            return gr.skip()
        drawn = repaint(*rest)
        return (focal or 0, *drawn) if isinstance(drawn, tuple) else drawn

    def narrow(moved: gr.Slider, *values):
        """Near or far was moved: both count from now on, and the one that is in the way is pushed on."""
        at = {part: inputs.index(part) for part in (by_itself, near, far)}
        values = list(values)
        values[at[by_itself]] = False
        if values[at[near]] > values[at[far]] - STEP:
            other = far if moved is near else near
            values[at[other]] = max(values[at[moved]] + (STEP if moved is near else -STEP), 0)
        drawn = repaint(*values)
        return (False, *drawn) if isinstance(drawn, tuple) else drawn

    def restyle(image, model, resolution, points, probe, *values):
        look = bench.peek(image, model, resolution)
        if not _ready(bench, look, probe, values):
            return gr.skip()
        with told():
            return _light(_scene(bench, look, image, probe, _choice(values)), _here(points, look))

    def click_point(event: gr.SelectData, image, model, resolution, points, probe, *values):
        look = bench.peek(image, model, resolution)
        if not _ready(bench, look, probe, values):
            return gr.skip()
        where = _here(points, look)
        where = [*(where if len(where) == 1 else []), [round(float(v), 1) for v in picture_point(look, event.index)]]
        with told():
            scene = _scene(bench, look, image, probe, _choice(values))
            drawn = depth_views.draw(scene, where)
            return (look.picture.digest, where), drawn, note(depth_views.readout(scene, where))

    def clear_points(image, model, resolution, points, probe, *values):
        look = bench.peek(image, model, resolution)
        if not _ready(bench, look, probe, values):
            return gr.skip()
        with told():
            scene = _scene(bench, look, image, probe, _choice(values))
            return ("", []), depth_views.draw(scene), note(depth_views.readout(scene, []))

    def stop(request: gr.Request) -> None:
        bench.stop((request.session_hash, "depth"))

    everything = [probe, points, *light, *heavy]
    prepared = [here, *bar.inputs, probe, above], [caption, stop_button]
    whole = [here, bar.ready, *inputs], everything
    gr.on([here.change, bar.ready.change], prepare, *prepared, **WAITING).success(refresh, *whole, **PRIVATE)
    gr.on([probe.input, above.input], prepare, *prepared, **WAITING).success(
        repaint, inputs, [*light, *heavy], **PRIVATE
    )
    gr.on(
        [part.input for part in (raw, sharp, by_itself, anyway)],
        repaint, inputs, [*light, *heavy], **PRIVATE,
    )  # fmt: skip
    gr.on([focal.submit, focal.blur], refocus, [last, focal, *inputs], [last, *light, *heavy], **PRIVATE)
    for limit in (near, far):
        limit.input(partial(narrow, limit), inputs, [by_itself, *light, *heavy], **PRIVATE)
    gr.on([part.input for part in style], restyle, inputs, light, **PRIVATE)
    view.select(click_point, inputs, [points, view, readout], **EVERY)
    clear.click(clear_points, inputs, [points, view, readout], **PRIVATE)
    stop_button.click(stop, queue=False, **ONCE)
    typed = [*bar.inputs, marks, probe, *options]
    api_only().click(show_depth, typed, [view, caption, readout], api_name="depth", concurrency_limit=2)
    api_only().click(download_depth, typed, file, api_name="depth_download", concurrency_limit=2)
    file_button.click(
        save, inputs, file, concurrency_limit=2, api_visibility="private", show_progress="full",
        show_progress_on=caption,
    ).success(None, js=press)  # fmt: skip
    return probe


def _choice(values: Sequence) -> Choice:
    *rest, focal, anyway, above = values
    return Choice(*rest, focal or 0, anyway, above)


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
    focal = exif_focal(image, look.picture.image.size)
    scene = Scene(look, reading, choice, focal, stereo.measured(look.picture.image))
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


def _heavy(scene: Scene) -> tuple:
    count, figure = depth_views.cloud(scene)
    near, far = scene.limits
    notice = depth_views.notice(scene)
    return (
        live_figure.drawn("In space: turn it, zoom with the wheel", figure, "the picture as points in space"),
        note(depth_views.cloud_note(scene, count)),
        gr.Column(elem_classes="dv-hidden" if scene.measured is None else ""),
        "" if scene.measured is None else note(depth_views.measured_note(scene)),
        note(notice, "warning") if notice else "",
        gr.Checkbox(visible=scene.unfamiliar),
        gr.Slider(value=round(near, 2), label=f"Near ({scene.unit.name})", maximum=scene.farthest),
        gr.Slider(value=round(far, 2), label=f"Far ({scene.unit.name})", maximum=scene.farthest),
    )


def _nothing(why: str) -> tuple:
    """The outputs of `_light` and `_heavy` where there is no depth."""
    figure = live_figure.drawn()
    hidden = gr.Column(elem_classes="dv-hidden")
    return (
        None,
        note(why),
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
