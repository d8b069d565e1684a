"""`python -m dinoviz depth`: metric depth, as pictures, arrays and point clouds."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoviz import models
from dinoviz.commands import common
from dinoviz.errors import DinovizError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from dinoviz.depth.camera import Camera
    from dinoviz.depth.probe import Depth, Probe

CLOUD_SIDE = (
    1600  # long side of the picture for point clouds: up to 2.5 million points, far above the head's resolution
)


@dataclass(frozen=True)
class Predictor:
    """A depth probe or published head.

    name, description: for messages. range: smallest and largest predicted depth, in metres.
    predict: from a picture to its depth, and the origin of the result for array files.
    """

    name: str
    description: str
    range: tuple[float, float]
    predict: Callable[[Image.Image], tuple[Depth, dict]]


def add(commands, _: argparse.ArgumentParser) -> None:
    """Add the parser of the command, without --layer: the probe determines the layers."""
    options = common.view_options(layer=False, resolution=None)
    parser = commands.add_parser("depth", parents=[options], help="metric depth maps and point clouds")
    common.add_pictures(parser)
    parser.add_argument("--probe", help="a .safetensors file, a run of `python -m training probe`, or a published "
                        "head such as facebook/dpt-dinov2-small-nyu (default: the one for embedded)")  # fmt: skip
    parser.add_argument("--sharp", action="store_true", help="refine along the edges of the picture (guided filter)")
    parser.add_argument("--near", type=float, help="lower end of the colours in metres; nearer points are left out")
    parser.add_argument("--far", type=float, help="upper end of the colours in metres; farther points are left out")
    parser.add_argument("--ply", action="store_true", help="write a point cloud as well")
    parser.add_argument("--focal", type=float, help="focal length in pixels of the picture, for the point cloud "
                        "(default: from its EXIF data, else typical of phones)")  # fmt: skip
    parser.add_argument("--colormap", default="viridis", help="colour map, from near to far (default: viridis)")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Predict the depth of every picture."""
    from dinoviz.render import colormap_table

    common.check_pictures(options)
    colormap_table(options.colormap)
    near, far = options.near or 0.0, math.inf if options.far is None else options.far
    if not 0 <= near < far:
        raise DinovizError(f"--near must be at least 0 and below --far, not {near:g} and {far:g} m.")
    if options.raw and options.sharp:
        raise DinovizError("--raw and --sharp exclude each other: raw patches have no edges to refine.")
    predictor = _published(options) if _is_published(options.probe) else _probe(options)
    near, far = predictor.range
    print(f"dinoviz: depth by {predictor.name}, {predictor.description}; it predicts {near:g} to {far:g} m")

    def process(picture: Image.Image, target: Callable[[str], Path]) -> None:
        _write(options, predictor, picture, target)

    return common.each(options, process)


def _is_published(probe: str | None) -> bool:
    from dinoviz import depth
    from dinoviz.depth import dpt

    if probe is None or depth.probe_file(probe).is_file():  # a run has a config.json as well
        return False
    return probe in dpt.PUBLISHED or (Path(probe) / "config.json").is_file()


def _published(options: argparse.Namespace) -> Predictor:
    from dinoviz.depth import dpt
    from dinoviz.depth.probe import Depth
    from dinoviz.grid import PatchGrid

    if options.model:
        raise DinovizError(f"{options.probe} has its own backbone: omit --model.")
    common.prepare(options)
    network = dpt.load(options.probe, device=options.device)
    resolution = options.resolution or network.trained.short_side

    def predict(picture: Image.Image) -> tuple[Depth, dict]:
        grid = PatchGrid.fit(picture.size, resolution, network.patch_size)
        metres = network.predict(picture, resolution)
        about = {"weights": network.name, "image_size": grid.image_size, "model_size": grid.model_size}
        return Depth(metres, None, grid.to_patches(metres), None, grid), about

    return Predictor(network.name, network.source, network.range, predict)


def _probe(options: argparse.Namespace) -> Predictor:
    from dinoviz import depth

    if options.probe and not Path(options.probe).exists():
        raise DinovizError(f"{options.probe}: there is no such file, run or published depth head.")
    probe = depth.open_probe(options.probe or depth.SHIPPED)
    reads = probe.about["backbone"]
    if not options.model and reads not in models.KNOWN and "/" not in reads:
        raise DinovizError(f"{probe.name} reads the features of {reads}: give the folder of that network with --model.")
    backbone = common.load_backbone(argparse.Namespace(**{**vars(options), "model": options.model or reads}))
    if not options.probe and probe.about["weights_id"] != backbone.weights_id:
        raise DinovizError(_none_for(backbone.name))
    probe.check(backbone.weights_id, backbone.name)
    print(f"dinoviz: using {backbone.name}: {backbone.source}")

    resolution = options.resolution or probe.about["resolution"]

    def predict(picture: Image.Image) -> tuple[Depth, dict]:
        features = backbone.encode(picture, resolution, probe.layers)
        return depth.look(features, probe), common.about(features, probe.layers)

    return Predictor(probe.name, _description(probe), probe.range, predict)


def _none_for(model: str) -> str:
    from dinoviz.depth import dpt

    published = dpt.names_for(model)
    instead = f", or use the published head --probe {published[0]}" if published else ""
    return (
        f"There is no depth probe for {model}: train one on pictures with depth (python -m training probe DATA "
        f"--model {model}) and give it with --probe{instead}."
    )


def _description(probe: Probe) -> str:
    """The training data and the error of a probe, from its file."""
    about, data = probe.about, probe.about.get("data", {})
    layers = ", ".join(str(layer + 1) for layer in probe.layers)
    pictures = f"{data['train']} pictures" if "train" in data else "pictures"
    folder = data.get("folder", "unknown data")
    text = f"a {about['head']} probe on layers {layers}, trained on {pictures} of {folder} at {about['resolution']} px"
    for part, words in (("test", "held-out"), ("validation", "validation")):
        errors = about.get("metrics", {}).get(part, {})
        if "rmse" in errors:
            return f"{text}, RMSE {errors['rmse']:.2f} m on {words} pictures"
    return f"{text}, of unknown error"


def _write(
    options: argparse.Namespace, predictor: Predictor, picture: Image.Image, target: Callable[[str], Path]
) -> None:
    import numpy as np
    from PIL import Image
    from tqdm import tqdm

    from dinoviz import render
    from dinoviz.depth import geometry
    from dinoviz.depth.camera import Camera, exif_focal

    camera = Camera.of(picture.size, options.focal, exif_focal(picture, picture.size))
    found, origin = predictor.predict(picture)
    metres = _drawn(options, found, picture)
    near = float(metres.min()) if options.near is None else options.near
    scale = near, max(near, float(metres.max())) if options.far is None else options.far
    colours = render.colourise(metres, scale, options.colormap)
    opacity = 1.0 if options.opacity is None else options.opacity
    file = target("depth.png")
    file.write_bytes(render.to_png(Image.blend(picture, Image.fromarray(colours), opacity)))
    target("depth-mm.png").write_bytes(geometry.depth_png(metres))
    uncertainty: dict[str, Any] = {}
    if found.spread is not None:
        uncertainty["spread"] = found.grid.resize(found.spread, "image")
    if found.unfamiliarity is not None:
        uncertainty["unfamiliarity"] = found.unfamiliarity
    np.savez_compressed(
        target("depth.npz"), metres=metres, patches=found.patches, scale=scale, probe=predictor.name,
        trained=predictor.description, camera=(camera.fx, camera.fy, camera.cx, camera.cy), camera_source=camera.source,
        **uncertainty, **origin,
    )  # fmt: skip
    if options.ply:
        target("points.ply").write_bytes(_cloud(options, found, picture, camera))
    tqdm.write(f"dinoviz: {file.name}: {scale[0]:.2f} to {scale[1]:.2f} m in {options.colormap}; "
               f"focal length {camera.fx:.0f} px, {camera.source}")  # fmt: skip
    if (found.unfamiliarity or 0) > 1:
        tqdm.write(
            f"dinoviz: {file.name}: the picture is unlike the training data of the probe ({found.unfamiliarity:.1f} "
            "times the limit): the metres are unreliable.", file=sys.stderr,
        )  # fmt: skip


def _drawn(options: argparse.Namespace, found: Depth, picture: Image.Image) -> np.ndarray:
    """Depth (H, W) in metres at the size of the picture or a copy of it, raw, smooth or sharp by the options."""
    from dinoviz.depth import geometry

    grid = found.grid.at(picture.size)
    if options.sharp:
        return geometry.sharpened(found.metres, picture, grid)
    return grid.resize(found.patches, "image", "nearest") if options.raw else grid.resize(found.metres, "image")


def _cloud(options: argparse.Namespace, found: Depth, picture: Image.Image, camera: Camera) -> bytes:
    """The bytes of a .ply file with the points between near and far, without those at depth edges."""
    import numpy as np

    from dinoviz import render
    from dinoviz.depth import geometry

    small = render.display_copy(picture, 1, CLOUD_SIDE)
    metres = _drawn(options, found, small)
    points = geometry.points(metres, camera.scaled(picture.size, small.size))
    half_a_patch = min(side // (2 * count) for side, count in zip(small.size, found.grid.shape[::-1], strict=True))
    normals = geometry.normals(points, max(1, half_a_patch))
    far = math.inf if options.far is None else options.far
    kept = (metres >= (options.near or 0)) & (metres <= far) & ~geometry.jumps(points)
    return geometry.to_ply(points[kept], np.asarray(small)[kept], normals[kept])
