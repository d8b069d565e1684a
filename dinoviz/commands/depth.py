"""`python -m dinoviz depth`: how far away everything is, as pictures, arrays and point clouds."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dinoviz import models
from dinoviz.commands import common
from dinoviz.errors import DinovizError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from dinoviz.depth.camera import Camera
    from dinoviz.depth.probe import Depth, Probe

CLOUD_SIDE = 1600  # pixels on the long side of what becomes points: up to 2.5 million, many times what a head tells


@dataclass(frozen=True)
class Reader:
    """What tells the depth. name, story: of it, in words. range: the nearest and the farthest that it says, in metres.

    read: from a picture to its depth, and what an array file should tell of its origin.
    """

    name: str
    story: str
    range: tuple[float, float]
    read: Callable[[Image.Image], tuple[Depth, dict]]


def add(commands, looking: argparse.ArgumentParser) -> None:
    """Add the parser of the command; which layers are looked at is the probe's to say."""
    parser = commands.add_parser(
        "depth", parents=[common.looking(layer=False, resolution=None)], help="how far away everything is"
    )
    common.add_pictures(parser)
    parser.add_argument("--probe", help="a .safetensors file, a run of `python -m training probe`, or a published "
                        "head such as facebook/dpt-dinov2-small-nyu; else the shipped one (embedded)")  # fmt: skip
    parser.add_argument("--sharp", action="store_true", help="with the picture's edges (guided filter)")
    parser.add_argument("--near", type=float, help="metres at the lower end of the colours; points nearer are left out")
    parser.add_argument("--far", type=float, help="metres at the upper end; points farther are left out")
    parser.add_argument("--ply", action="store_true", help="write a point cloud as well")
    parser.add_argument("--focal", type=float, help="focal length in pixels of the picture, for the point cloud; "
                        "by default from its EXIF data, else as of a phone")  # fmt: skip
    parser.add_argument("--colormap", default="viridis", help="of the map, from near to far")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Tell the depth of every picture."""
    from dinoviz.render import colormap_table

    common.check_pictures(options)
    colormap_table(options.colormap)
    near, far = options.near or 0.0, math.inf if options.far is None else options.far
    if not 0 <= near < far:
        raise DinovizError(f"--near lies before --far, and neither below 0: {near:g} and {far:g} m do not.")
    if options.raw and options.sharp:
        raise DinovizError("--raw shows the patches as they are, --sharp the picture's edges: take one of them.")
    reader = _published(options) if _is_published(options.probe) else _probe(options)
    print(f"dinoviz: depth by {reader.name}, {reader.story}; it tells {reader.range[0]:g} to {reader.range[1]:g} m")

    def look(picture: Image.Image, target: Callable[[str], Path]) -> None:
        _write(options, reader, picture, target)

    return common.each(options, look)


def _is_published(probe: str | None) -> bool:
    from dinoviz import depth
    from dinoviz.depth import dpt as published_depth

    if probe is None or depth.probe_file(probe).is_file():  # a run has a config.json of its own
        return False
    return probe in published_depth.PUBLISHED or (Path(probe) / "config.json").is_file()


def _published(options: argparse.Namespace) -> Reader:
    from dinoviz.depth import dpt as published_depth
    from dinoviz.depth.probe import Depth
    from dinoviz.grid import PatchGrid

    if options.model:
        raise DinovizError(f"{options.probe} is a network of its own: leave --model out.")
    common.prepare(options)
    network = published_depth.load(options.probe, device=options.device)
    resolution = options.resolution or network.trained.short_side

    def read(picture: Image.Image) -> tuple[Depth, dict]:
        grid = PatchGrid.fit(picture.size, resolution, network.patch_size)
        metres = network.predict(picture, resolution)
        about = {"weights": network.name, "image_size": grid.image_size, "model_size": grid.model_size}
        return Depth(metres, None, grid.to_patches(metres), None, grid), about

    return Reader(network.name, network.source, network.range, read)


def _probe(options: argparse.Namespace) -> Reader:
    from dinoviz import depth

    if options.probe and not Path(options.probe).exists():
        raise DinovizError(f"{options.probe}: there is no such file, run or published depth head.")
    probe = depth.open_probe(options.probe or depth.SHIPPED)
    reads = probe.about["backbone"]
    if not options.model and reads not in models.KNOWN and "/" not in reads:
        raise DinovizError(f"{probe.name} reads the features of {reads}: say with --model where that network is.")
    backbone = common.load_backbone(argparse.Namespace(**{**vars(options), "model": options.model or reads}))
    if not options.probe and probe.about["weights_id"] != backbone.weights_id:
        raise DinovizError(_none_for(backbone.name))
    probe.check(backbone.weights_id, backbone.name)
    print(f"dinoviz: looking through {backbone.name}: {backbone.source}")

    resolution = options.resolution or probe.about["resolution"]

    def read(picture: Image.Image) -> tuple[Depth, dict]:
        features = backbone.encode(picture, resolution, probe.layers)
        return depth.look(features, probe), common.about(features, probe.layers)

    return Reader(probe.name, _story(probe), probe.range, read)


def _none_for(model: str) -> str:
    from dinoviz.depth import dpt as published_depth

    published = published_depth.names_for(model)
    instead = f", or take --probe {published[0]}, which Meta published" if published else ""
    return (
        f"There is no depth probe for {model} here: train one on pictures with depth (python -m training probe DATA "
        f"--model {model}) and name it with --probe{instead}."
    )


def _story(probe: Probe) -> str:
    """On what a probe was trained and how well it does, as far as its file says."""
    about, data = probe.about, probe.about.get("data", {})
    layers = ", ".join(str(layer + 1) for layer in probe.layers)
    pictures = f"{data['train']} pictures" if "train" in data else "pictures"
    story = f"a {about['head']} probe on layers {layers}, trained on {pictures} of {data.get('folder', 'unknown data')}"
    story += f" at {about['resolution']} px"
    for part, words in (("test", "held out"), ("validation", "for validation")):
        errors = about.get("metrics", {}).get(part, {})
        if "rmse" in errors:
            return f"{story}, on those {words} {errors['rmse']:.2f} m off (RMSE)"
    return f"{story}, of unknown error"


def _write(options: argparse.Namespace, reader: Reader, picture: Image.Image, target: Callable[[str], Path]) -> None:
    import numpy as np
    from PIL import Image
    from tqdm import tqdm

    from dinoviz import render
    from dinoviz.depth import geometry as surfaces
    from dinoviz.depth.camera import Camera, exif_focal

    camera = Camera.of(picture.size, options.focal, exif_focal(picture, picture.size))
    found, origin = reader.read(picture)
    metres = _drawn(options, found, picture)
    near = float(metres.min()) if options.near is None else options.near
    scale = near, max(near, float(metres.max())) if options.far is None else options.far
    colours = render.colourise(metres, scale, options.colormap)
    opacity = 1.0 if options.opacity is None else options.opacity
    file = target("depth.png")
    file.write_bytes(render.to_png(Image.blend(picture, Image.fromarray(colours), opacity)))
    target("depth-mm.png").write_bytes(surfaces.depth_png(metres))
    unknown = {} if found.spread is None else {"spread": found.grid.resize(found.spread, "image")}
    if found.unfamiliarity is not None:
        unknown["unfamiliarity"] = found.unfamiliarity
    np.savez_compressed(
        target("depth.npz"), metres=metres, patches=found.patches, scale=scale, probe=reader.name, trained=reader.story,
        camera=(camera.fx, camera.fy, camera.cx, camera.cy), camera_source=camera.source, **unknown, **origin,
    )  # fmt: skip
    if options.ply:
        target("points.ply").write_bytes(_cloud(options, found, picture, camera))
    tqdm.write(f"dinoviz: {file.name}: {scale[0]:.2f} to {scale[1]:.2f} m in {options.colormap}; "
               f"focal length {camera.fx:.0f} px, {camera.source}")  # fmt: skip
    if (found.unfamiliarity or 0) > 1:
        tqdm.write(
            f"dinoviz: {file.name}: the picture is unlike all that the probe was trained on ({found.unfamiliarity:.1f} "
            "times the limit); do not trust its metres.", file=sys.stderr,
        )  # fmt: skip


def _drawn(options: argparse.Namespace, found: Depth, picture: Image.Image) -> np.ndarray:
    """(H, W) metres at the size of the picture or of a copy of it, as asked for."""
    from dinoviz.depth import geometry as surfaces

    grid = found.grid.at(picture.size)
    if options.sharp:
        return surfaces.sharpened(found.metres, picture, grid)
    return grid.resize(found.patches, "image", "nearest") if options.raw else grid.resize(found.metres, "image")


def _cloud(options: argparse.Namespace, found: Depth, picture: Image.Image, camera: Camera) -> bytes:
    """The bytes of a .ply file: what lies between near and far, without the points that hang between two things."""
    import numpy as np

    from dinoviz import render
    from dinoviz.depth import geometry as surfaces

    small = render.display_copy(picture, 1, CLOUD_SIDE)
    metres = _drawn(options, found, small)
    points = surfaces.points(metres, camera.scaled(picture.size, small.size))
    half_a_patch = min(side // (2 * count) for side, count in zip(small.size, found.grid.size("patch"), strict=True))
    normals = surfaces.normals(points, max(1, half_a_patch))
    far = math.inf if options.far is None else options.far
    kept = (metres >= (options.near or 0)) & (metres <= far) & ~surfaces.jumps(points)
    return surfaces.to_ply(points[kept], np.asarray(small)[kept], normals[kept])
