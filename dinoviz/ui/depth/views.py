"""The Depth tab's pictures, figures, captions and files."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from PIL import Image

from dinoviz import render
from dinoviz.depth import figures as depth_figures
from dinoviz.depth import geometry
from dinoviz.ui.depth.state import CUTOUT, NORMALS, SPREAD, Scene
from dinoviz.ui.shared import bundle, model_caption
from training.depth.rgbd import depth_errors

TICKS = 5
CLICK = "Click on the picture for the depth of a point, and on a second point for the distance between the two."


def draw(scene: Scene, points: Sequence[Sequence[float]] = ()) -> Image.Image:
    """The selected map over the picture on the page, with the clicked points."""
    shown = scene.look.picture.shown
    scale = np.divide(shown.size, scene.look.picture.size)
    labels = [f"{name}  {in_unit(scene, metres)}" for name, metres in zip("AB", scene.at(points), strict=False)]
    return depth_figures.marked(_map(scene, shown), [tuple(np.multiply(point, scale)) for point in points], labels)


def _map(scene: Scene, picture: Image.Image) -> Image.Image:
    settings = scene.settings
    if settings.shown == CUTOUT:
        return depth_figures.dimmed(picture, scene.between_limits(scene.metres(picture)))
    if settings.shown == NORMALS:
        colours = depth_figures.normals_colours(scene.normals(picture))
    elif settings.shown == SPREAD:
        colours = render.colourise(scene.spread(picture), spread_scale(scene), settings.colours)
    else:
        colours = render.colourise(scene.metres(picture) / scene.unit.metres, scene.limits, settings.colours)
    return depth_figures.overlaid(picture, colours, settings.opacity)


def ground_truth_picture(scene: Scene) -> Image.Image:
    """The ground truth in the colours of the map; black where unknown."""
    known = np.isfinite(scene.ground_truth)
    values = np.where(known, scene.ground_truth, 0) / scene.unit.metres
    colours = render.colourise(values, scene.limits, scene.settings.colours)
    return Image.fromarray(np.where(known[..., None], colours, 0).astype(np.uint8))


def spread_scale(scene: Scene) -> tuple[float, float]:
    """The least and the largest uncertainty of the picture, in the unit."""
    if scene.depth.spread is None:
        return 0.0, 1.0  # drawing the map raises the error
    return float(scene.depth.spread.min()) / scene.unit.metres, float(scene.depth.spread.max()) / scene.unit.metres


def histogram(scene: Scene) -> dict:
    """A figure of the distribution of depth over the picture."""
    values = scene.shown_metres / scene.unit.metres
    return depth_figures.histogram(values, scene.limits, scene.settings.colours, scene.unit.name)


def cloud(scene: Scene) -> tuple[int, dict]:
    """The number of points, and a figure of the point cloud in the picture's colours."""
    points, colours = scene.cloud(scene.look.picture.shown)
    revision = scene.look.picture.digest[:16]
    return len(points), depth_figures.cloud(points, colours, scene.unit.name, scene.unit.metres, revision)


def in_unit(scene: Scene, metres: float) -> str:
    """A distance with its unit: "2.31 m", or "0.84 x" the median depth where metres would be wrong."""
    return f"{metres / scene.unit.metres:.2f} x" if scene.unit.relative else f"{metres:.2f} m"


def readout(scene: Scene, points: Sequence[Sequence[float]]) -> str:
    """The measurements at the clicked points. HTML."""
    if not points:
        return CLICK
    parts = [f"<b>{name}</b> {in_unit(scene, metres)}" for name, metres in zip("AB", scene.at(points), strict=False)]
    if len(points) == 2:
        parts.append(f"from A to B <b>{in_unit(scene, scene.between(*points))}</b> (focal length {_focal(scene)})")
    else:
        parts.append("click on a second point for the distance between the two")
    if scene.unit.relative:
        parts.append("x: times the median depth of this picture, since the probe's metres are not reliable here")
    return " · ".join(parts)


def notice(scene: Scene) -> str:
    """A warning where the picture is unlike the probe's training data, else "". HTML."""
    if not scene.unfamiliar:
        return ""
    data = html.escape(str(scene.prediction.about.get("data", {}).get("folder", "unknown data")))
    text = (
        f"This picture is unlike the probe's training data ({data}): its feature distance to the nearest training "
        f"picture is {scene.depth.unfamiliarity:.1f} times the 99th percentile of similar pictures. "
    )
    if scene.settings.anyway:
        return text + "Metric values are unreliable here; the depth order may still be correct."
    return text + "Depth is therefore relative, without metres."


def caption(scene: Scene) -> str:
    """The model, the predictor, the meaning of the colours, and how the map was made. HTML."""
    lines = [f"{model_caption(scene.look, grid=scene.depth.grid)} · {scene.prediction.source}", _meaning(scene)]
    metres = scene.shown_metres / scene.unit.metres
    lines.append(
        f"{_interpolation(scene)} · from {metres.min():.2f} to {metres.max():.2f}, median {np.median(metres):.2f} "
        f"{scene.unit.name}"
    )
    return "<br>".join(line for line in (*lines, _resolution_note(scene)) if line)


def _meaning(scene: Scene) -> str:
    """What the colours of the map mean. HTML."""
    settings, unit = scene.settings, scene.unit.name
    if settings.shown == NORMALS:
        return f"Surface normals: blue faces the camera, green faces up, red faces right. Focal length {_focal(scene)}."
    if settings.shown == CUTOUT:
        near, far = scene.limits
        return f"Undimmed: depth between {near:.2f} and {far:.2f} {unit}."
    if settings.shown == SPREAD:
        deviation = "standard deviation of the head's distribution over depth bins"
        return colour_bar(spread_scale(scene), settings.colours, unit) + deviation
    return colour_bar(scene.limits, settings.colours, unit)


def _interpolation(scene: Scene) -> str:
    (h, w), (height, width) = scene.depth.patches.shape, scene.depth.metres.shape
    if scene.settings.raw:
        return f"one flat square for each of {h} x {w} patches"
    if scene.settings.sharp:
        return f"predicted at {height} x {width} points, aligned to the picture's edges by a guided filter"
    return f"predicted at {height} x {width} points, bilinear between them"


def _resolution_note(scene: Scene) -> str:
    """Why the probe read other patches than the look has; "" where it did not."""
    grid, (h, w) = scene.depth.grid, scene.depth.patches.shape
    trained = scene.prediction.about.get("resolution")
    if (h, w) != grid.shape:
        return (
            f"The probe read {h} x {w} averaged patches, as many as at the {trained} px of its training: its error "
            "grows with more."
        )
    if min(grid.model_size) != min(scene.look.features.grid.model_size):
        return f"Encoded again at {trained} px, the probe's training resolution, where its error is smallest."
    return ""


def colour_bar(scale: tuple[float, float], colours: str, unit: str) -> str:
    """The colour map as a strip with distances below it. HTML."""
    stops = render.colormap_table(colours)[::17]
    gradient = ", ".join("#{:02x}{:02x}{:02x}".format(*stop) for stop in stops)
    ticks = "".join(f"<span>{value:.2f}</span>" for value in np.linspace(*scale, TICKS))
    return (
        f'<span class="dv-metres"><i style="background:linear-gradient(90deg,{gradient})"></i>'
        f"<span>{ticks}</span></span> {html.escape(unit)} "
    )


def cloud_note(scene: Scene, count: int) -> str:
    """The note below the point cloud. HTML."""
    left_out = "without points at depth jumps" + ("" if scene.settings.by_itself else " and out of range")
    return f"{count:,} points · focal length {_focal(scene)} · {left_out}"


def _focal(scene: Scene) -> str:
    return f"{scene.camera.fx:.0f} px, {html.escape(scene.camera.source)}"


def ground_truth_note(scene: Scene) -> str:
    """The errors of the prediction against the ground truth, with and without median scaling. HTML."""
    truth = scene.ground_truth
    known = np.isfinite(truth)
    predicted = scene.metres(scene.look.picture.image)
    plain = depth_errors(predicted, truth, known)
    scaled = depth_errors(predicted, truth, known, median_scaled=True)

    def words(errors: dict) -> str:
        return f"AbsRel {errors['abs_rel']:.2f}, RMSE {errors['rmse']:.2f} m, within 25 %: {errors['delta1']:.0%}"

    return (
        f"Ground truth from stereo with its published calibration, for {known.mean():.0%} of the pixels: median "
        f"{np.median(truth[known]):.2f} m, in the same colours. By this calibration a wheel has two thirds of its real "
        "size, so compare shapes rather than metres."
        f"<br>Error of the prediction, median-scaled: {words(scaled)}; unscaled: {words(plain)}."
    )


def file(scene: Scene) -> str:
    """A zip of the coloured map, depth as 16-bit PNG and .npy, the point cloud and about.json -> its path."""
    picture = scene.look.picture.image
    metres = scene.metres(picture)
    points, colours = scene.cloud(picture, most=2_000_000)
    files = {
        "depth.png": render.to_png(_map(scene, picture)),
        "depth-mm.png": geometry.depth_png(metres),
        "depth.npy": geometry.depth_npy(metres),
        "points.ply": geometry.to_ply(points, colours),
    }
    return bundle("depth", files, _about(scene))


def _about(scene: Scene) -> dict:
    camera = scene.camera
    return {
        "view": "depth",
        **scene.look.about(),
        "probe": scene.prediction.about,
        **asdict(scene.settings),
        "unfamiliarity": scene.depth.unfamiliarity,
        "warning": "The picture is unlike the probe's training data: these metres are not to be trusted."
        if scene.unfamiliar
        else None,
        "camera": {"fx": camera.fx, "fy": camera.fy, "cx": camera.cx, "cy": camera.cy, "source": camera.source},
        "files": {
            "depth.png": f"{scene.settings.shown}, as on the page",
            "depth-mm.png": "(H, W) 16 bits, millimetres",
            "depth.npy": "(H, W) float32, metres",
            "points.ply": "x right, y down, z forward, metres, between near and far",
        },
    }
