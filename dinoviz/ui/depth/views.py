"""The Depth tab's pictures, figures, captions and files."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from PIL import Image

from dinoviz import render
from dinoviz.depth import figures as depth_figures
from dinoviz.depth import geometry as surfaces
from dinoviz.ui.depth.state import CUTOUT, NORMALS, SPREAD, Scene
from dinoviz.ui.shared import bundle, through
from training.depth.rgbd import depth_errors

TICKS = 5
ASK = "Click on the picture for the distance of a point, and on a second one for the length between them."


def draw(scene: Scene, points: Sequence[Sequence[float]] = ()) -> Image.Image:
    """The picture on the page as it should be seen, with its points."""
    shown = scene.look.picture.shown
    scale = np.divide(shown.size, scene.look.picture.size)
    labels = [f"{name}  {figure(scene, metres)}" for name, metres in zip("AB", scene.at(points), strict=False)]
    return depth_figures.marked(_map(scene, shown), [tuple(np.multiply(point, scale)) for point in points], labels)


def _map(scene: Scene, picture: Image.Image) -> Image.Image:
    choice = scene.choice
    if choice.shown == CUTOUT:
        return depth_figures.dimmed(picture, scene.between_limits(scene.metres(picture)))
    if choice.shown == NORMALS:
        colours = depth_figures.normals_colours(scene.normals(picture))
    elif choice.shown == SPREAD:
        colours = render.colourise(scene.spread(picture), spread_scale(scene), choice.colours)
    else:
        colours = render.colourise(scene.metres(picture) / scene.unit.metres, scene.limits, choice.colours)
    return depth_figures.overlaid(picture, colours, choice.opacity)


def measured_picture(scene: Scene) -> Image.Image:
    """What was measured, in the colours of the map; black where unknown."""
    measured = scene.measured
    known = np.isfinite(measured)
    values = np.where(known, measured, 0) / scene.unit.metres
    colours = render.colourise(values, scene.limits, scene.choice.colours)
    return Image.fromarray(np.where(known[..., None], colours, 0).astype(np.uint8))


def spread_scale(scene: Scene) -> tuple[float, float]:
    """The least and the largest uncertainty of the picture."""
    if scene.depth.spread is None:
        return 0.0, 1.0  # asking for the map itself says that there is none
    return float(scene.depth.spread.min()) / scene.unit.metres, float(scene.depth.spread.max()) / scene.unit.metres


def histogram(scene: Scene) -> dict:
    """How much of the picture lies how far away."""
    values = scene.shown_metres / scene.unit.metres
    return depth_figures.histogram(values, scene.limits, scene.choice.colours, scene.unit.name)


def cloud(scene: Scene) -> tuple[int, dict]:
    """How many points there are, and they in space in the picture's colours."""
    points, colours = scene.cloud(scene.look.picture.shown)
    revision = scene.look.picture.digest[:16]
    return len(points), depth_figures.cloud(points, colours, scene.unit.name, scene.unit.metres, revision)


def figure(scene: Scene, metres: float) -> str:
    """A distance in words: "2.31 m", or "0.84 x" the median where metres would be false."""
    return f"{metres / scene.unit.metres:.2f} x" if scene.unit.relative else f"{metres:.2f} m"


def readout(scene: Scene, points: Sequence[Sequence[float]]) -> str:
    """What was measured, as HTML."""
    if not points:
        return ASK
    parts = [f"<b>{name}</b> {figure(scene, metres)}" for name, metres in zip("AB", scene.at(points), strict=False)]
    if len(points) == 2:
        parts.append(f"from A to B <b>{figure(scene, scene.between(*points))}</b> (focal length {_focal(scene)})")
    else:
        parts.append("click on a second point for the length between them")
    if scene.unit.relative:
        parts.append("x is times the median distance of this picture, since the probe would not know metres here")
    return " · ".join(parts)


def notice(scene: Scene) -> str:
    """Said above all where the picture is unlike what the probe was trained on; else nothing. HTML."""
    if not scene.unfamiliar:
        return ""
    data = html.escape(str(scene.reading.about.get("data", {}).get("folder", "its data")))
    far = f"{scene.depth.unfamiliarity:.1f} times as far from the nearest as 99 in 100 of pictures like them are"
    said = f"This picture is unlike those that the probe was trained on ({data}): {far}. "
    if scene.choice.anyway:
        return said + "What it says in metres below is not to be trusted; nearer and farther may still be right."
    return said + "So it tells no metres here, only what is nearer and what is farther."


def caption(scene: Scene) -> str:
    """What one looks through, what the colours mean, and what is assumed. HTML."""
    choice, grid = scene.choice, scene.depth.grid
    lines = [f"{through(scene.look, grid=grid)} · {scene.reading.source}"]
    (h, w), (a, b) = scene.depth.patches.shape, scene.depth.metres.shape
    how = f"told at {a} x {b} points, bilinear between them"
    if choice.raw:
        how = f"one flat square for each of {h} x {w} patches"
    if choice.sharp and not choice.raw:
        how = f"told at {a} x {b} points, its edges moved to the picture's (guided filter: sharper, knows no more)"
    if choice.shown == NORMALS:
        lines.append("Which way surfaces face: blue towards the camera, green up, red to the right. "
                     f"Focal length {_focal(scene)}.")  # fmt: skip
    elif choice.shown == CUTOUT:
        near, far = scene.limits
        lines.append(f"In the light: what lies between {near:.2f} and {far:.2f} {scene.unit.name}.")
    elif choice.shown == SPREAD:
        lines.append(bar(spread_scale(scene), choice.colours, scene.unit.name)
                     + "standard deviation of the depths that the head weighs")  # fmt: skip
    else:
        lines.append(bar(scene.limits, choice.colours, scene.unit.name))
    metres = scene.shown_metres / scene.unit.metres
    lines.append(f"{how} · from {metres.min():.2f} to {metres.max():.2f}, median {np.median(metres):.2f} "
                 f"{scene.unit.name}")  # fmt: skip
    trained = scene.reading.about.get("resolution")
    if (h, w) != grid.shape:
        lines.append(f"Of these patches the probe was given {h} x {w} means, as many as at the {trained} px of its "
                     "training: with more it errs more.")  # fmt: skip
    elif min(grid.model_size) != min(scene.look.features.grid.model_size):
        lines.append(f"Encoded once more, at the {trained} px that the probe was trained at: there it errs least.")
    return "<br>".join(lines)


def bar(scale: tuple[float, float], colours: str, unit: str) -> str:
    """The colours as a strip with distances below it, as HTML."""
    stops = render.colormap_table(colours)[::17]
    gradient = ", ".join("#{:02x}{:02x}{:02x}".format(*stop) for stop in stops)
    ticks = "".join(f"<span>{value:.2f}</span>" for value in np.linspace(*scale, TICKS))
    return (
        f'<span class="dv-metres"><i style="background:linear-gradient(90deg,{gradient})"></i>'
        f"<span>{ticks}</span></span> {html.escape(unit)} "
    )


def cloud_note(scene: Scene, count: int) -> str:
    """What the point cloud is, below it. HTML."""
    left_out = "points at jumps of depth are left out" + (
        "" if scene.choice.by_itself else ", and what is not in range"
    )
    return f"{count:,} points · focal length {_focal(scene)} · {left_out}"


def _focal(scene: Scene) -> str:
    return f"{scene.camera.fx:.0f} px, {html.escape(scene.camera.source)}"


def measured_note(scene: Scene) -> str:
    """How far the prediction is from what was measured, with and without its scale. HTML."""
    measured = scene.measured
    known = np.isfinite(measured)
    predicted = scene.metres(scene.look.picture.image)
    plain = depth_errors(predicted, measured, known)
    scaled = depth_errors(predicted, measured, known, median_scaled=True)

    def words(errors: dict) -> str:
        return f"AbsRel {errors['abs_rel']:.2f}, RMSE {errors['rmse']:.2f} m, within 25 %: {errors['delta1']:.0%}"

    return (
        f"Measured by stereo, by its published calibration, for {known.mean():.0%} of the pixels: median "
        f"{np.median(measured[known]):.2f} m, in the same colours. A wheel is two thirds of its real size by it, so "
        "look at shapes rather than at metres."
        f"<br>The prediction against it, once its median is set right: {words(scaled)}; as it is: {words(plain)}."
    )


def file(scene: Scene) -> str:
    """All of it as a zip: coloured, 16 bits, arrays, points."""
    picture = scene.look.picture.image
    metres = scene.metres(picture)
    camera = scene.camera
    points, colours = scene.cloud(picture, most=2_000_000)
    files = {
        "depth.png": render.to_png(_map(scene, picture)),
        "depth-mm.png": surfaces.depth_png(metres),
        "depth.npy": surfaces.depth_npy(metres),
        "points.ply": surfaces.to_ply(points, colours),
    }
    about = {
        "view": "depth",
        **scene.look.about(),
        "probe": scene.reading.about,
        **asdict(scene.choice),
        "unfamiliarity": scene.depth.unfamiliarity,
        "warning": "The picture is unlike the probe's training data: these metres are not to be trusted."
        if scene.unfamiliar
        else None,
        "camera": {"fx": camera.fx, "fy": camera.fy, "cx": camera.cx, "cy": camera.cy, "source": camera.source},
        "files": {
            "depth.png": f"{scene.choice.shown}, as on the page",
            "depth-mm.png": "(H, W) 16 bits, millimetres",
            "depth.npy": "(H, W) float32, metres",
            "points.ply": "x right, y down, z forward, metres, between near and far",
        },
    }
    return bundle("depth", files, about)
