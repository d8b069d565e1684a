"""`python -m dinoviz compare`: the same picture with two models, as pictures, arrays and metrics."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoviz import __version__, hub, models
from dinoviz.atomic_files import writing
from dinoviz.commands import common
from dinoviz.errors import DinovizError

if TYPE_CHECKING:
    from PIL import Image

    from dinoviz.backbone import Backbone
    from dinoviz.features import Features

SIDES = "ab"


def add(commands, _: argparse.ArgumentParser) -> None:
    """Add the parser of the command, which has its own options for two models."""
    parser = commands.add_parser("compare", help="compare two models on the same pictures")
    common.add_pictures(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--models", nargs=2, required=True, metavar=("A", "B"),
                        help="names listed by `models`, Hub ids or folders, also of runs and snapshots")  # fmt: skip
    parser.add_argument("--resolution", nargs="+", type=int, default=[common.DEFAULT_RESOLUTION], metavar="PIXELS",
                        help="short side in model pixels (default: 518), or one for A and one for B")  # fmt: skip
    parser.add_argument("--layer", nargs="+", default=["last"], metavar="LAYER",
                        help="last (default), a share of the depth such as 2/3, or a number; or one each")  # fmt: skip
    parser.add_argument("--device", help="cpu, cuda or mps (default: the fastest available)")
    parser.add_argument("--map", default="mean of heads", help="attention map: 'mean of heads' (default), 'head 1' ...")
    parser.add_argument("--own-scale", action="store_true", help="scale the colours of each attention map separately")
    parser.add_argument("--colours", default="aligned", help="aligned (default): B's components rotated onto A's; "
                        "joint: components of both together; own: separate components")  # fmt: skip
    parser.add_argument("--background", action="store_true", help="fit and colour the background as well")
    parser.add_argument(
        "--point", action="append", default=[], metavar="X,Y", help="segment the object at this point, in pixels"
    )
    parser.add_argument("--not-point", action="append", default=[], metavar="X,Y", help="a point on the background")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Draw every picture with both models, and measure their agreement."""
    from dinoviz import compare

    common.check_pictures(options)
    resolutions, wanted = _two(options.resolution, "--resolution"), _two(options.layer, "--layer")
    for resolution in resolutions:
        common.check_resolution(resolution)
    if options.colours not in (*compare.METHODS, "own"):
        raise DinovizError(f"There are no colours {options.colours!r}: choose {', '.join(compare.METHODS)} or own.")
    if options.not_point and not options.point:
        raise DinovizError("--not-point marks background: a --point on the object is needed as well.")
    points = [common.numbers(text, 2, float) for text in (*options.point, *options.not_point)]
    labels = [1] * len(options.point) + [0] * len(options.not_point)
    hub.quiet_transformers()
    with writing(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    backbones = [models.load(name, device=options.device) for name in options.models]
    layers = [compare.layer_at(layer, b.layers) for layer, b in zip(wanted, backbones, strict=True)]
    for side, backbone, layer in zip(SIDES, backbones, layers, strict=True):
        _check_map(options.map, backbone)
        print(f"dinoviz: {side} is {backbone.name}, layer {layer + 1} of {backbone.layers}: {backbone.source}")

    def process(picture: Image.Image, target: Callable[[str], Path]) -> None:
        features = [
            b.encode(picture, resolution, _needed(b, layer, bool(points)))
            for b, resolution, layer in zip(backbones, resolutions, layers, strict=True)
        ]
        _write(options, picture, features, layers, (points, labels), target)

    return common.each(options, process)


def _two(values: Sequence, option: str) -> list:
    if len(values) > 2:
        raise DinovizError(f"{option} needs one value for both models or two, not {len(values)}.")
    return [values[0], values[-1]]


def _check_map(name: str, backbone: Backbone) -> None:
    from dinoviz.attention import MEAN

    names = [MEAN, *(f"head {i + 1}" for i in range(backbone.heads))]
    if name not in names:
        raise DinovizError(f"{backbone.name} has no map {name!r}: choose one of {', '.join(names)}.")


def _needed(backbone: Backbone, layer: int, segmented: bool) -> tuple[int, ...]:
    from dinoviz.segment.segmentation import layers_of

    return (layer, *(layers_of(backbone.layers) if segmented else ()))


def _write(
    options: argparse.Namespace, picture: Image.Image, features: Sequence[Features], layers: Sequence[int],
    marked: tuple[list, list], target: Callable[[str], Path],
) -> None:  # fmt: skip
    import numpy as np

    from dinoviz import compare, pca, render, segment

    densities = [compare.density(f, options.map, layer) for f, layer in zip(features, layers, strict=True)]
    foreground = not options.background
    method: compare.Method = "aligned" if options.colours == "own" else options.colours
    *colours, agreement = compare.joint_colours(*features, method=method, layers=layers, foreground=foreground)
    if options.colours == "own":
        colours = [
            pca.patch_pca([f], layer=layer, foreground=foreground)[0] for f, layer in zip(features, layers, strict=True)
        ]
    scale = None if options.own_scale else render.scale_of(np.concatenate([d.ravel() for d in densities]))
    cka, places = compare.patch_cka(*features, layers=layers)
    metrics: dict[str, Any] = {"cka_debiased": cka, "places": places}
    if options.colours != "own":
        metrics |= {"colours_shared": agreement.shared, "colours_correlations": agreement.correlations,
                    "colours_compared": agreement.compared}  # fmt: skip
    if marked[0]:
        found = [segment.from_points(f, *marked, picture) for f in features]
        metrics["segment_iou"] = compare.iou(*(each.mask for each in found))
    arrays: dict[str, Any] = {}
    for i, (side, f) in enumerate(zip(SIDES, features, strict=True)):
        style = {"raw": options.raw, "opacity": 0.7 if options.opacity is None else options.opacity}
        drawn = render.map_picture(picture, f.grid, densities[i], scale=scale, **style)
        target(f"attention-{side}.png").write_bytes(render.to_png(drawn))
        style["opacity"] = 1.0 if options.opacity is None else options.opacity
        drawn = render.map_picture(picture, f.grid, colours[i], **style)
        target(f"pca-{side}.png").write_bytes(render.to_png(drawn))
        if marked[0]:
            over = render.overlay(picture, found[i].mask, 0.5 if options.opacity is None else options.opacity)
            target(f"segment-{side}.png").write_bytes(render.to_png(over))
            arrays[f"mask_{side}"] = found[i].mask
        arrays |= {f"attention_{side}": densities[i], f"colours_{side}": colours[i]}
        arrays |= {f"{key}_{side}": value for key, value in common.about(f, layers[i]).items()}
    np.savez_compressed(target("compare.npz"), **arrays)
    about = {
        "dinoviz": __version__,
        **{side: common.about(f, layer) for side, f, layer in zip(SIDES, features, layers, strict=True)},
        "attention": f"{options.map}, as a multiple of uniform attention",
        "attention_scale": "own" if scale is None else scale,
        "colours": options.colours,
        **metrics,
    }
    target("compare.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
