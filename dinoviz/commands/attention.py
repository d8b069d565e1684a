"""`python -m dinoviz attention`: attention maps of the CLS token or a patch, as pictures and arrays."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoviz.commands import common
from dinoviz.errors import DinovizError

if TYPE_CHECKING:
    from PIL import Image


def add(commands, options: argparse.ArgumentParser) -> None:
    """Add the parser of the command."""
    parser = commands.add_parser("attention", parents=[options], help="attention maps of the CLS token or a patch")
    common.add_pictures(parser)
    parser.add_argument("--map", default="mean of heads", help="'mean of heads' (default), 'head 1' and so on, "
                        "'rollout of all layers', 'patch norms'")  # fmt: skip
    parser.add_argument("--query", default="CLS", help="CLS (default), or the patch at x,y in pixels of the picture")
    parser.add_argument("--mass", type=float, default=1.0, help="attention mass to keep (DINO's figures: 0.6)")
    parser.add_argument("--colormap", default="inferno", help="inferno (default), viridis, magma, turbo, ...")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Draw the maps of every picture."""
    import numpy as np

    from dinoviz import attention, render
    from dinoviz.grid import PatchGrid

    if not 0 < options.mass <= 1:
        raise DinovizError(f"The attention mass must be above 0 and at most 1, not {options.mass}.")
    render.colormap_table(options.colormap)
    point = None if options.query.upper() == "CLS" else common.numbers(options.query, 2, float)
    common.check_pictures(options)
    backbone, layer = common.load(options)
    names = attention.map_names(backbone.heads)
    if options.map not in names:
        raise DinovizError(f"There is no map {options.map!r}: choose one of {', '.join(names)}.")

    def process(picture: Image.Image, target: Callable[[str], Path]) -> None:
        grid = PatchGrid.fit(picture.size, options.resolution, backbone.patch_size)
        query = None if point is None else grid.patch_at(point)
        features = backbone.encode(picture, options.resolution, "all" if "rollout" in options.map else (layer,))
        values = attention.named_map(features, options.map, query, layer)
        heads = attention.head_maps(features, query, layer)
        norms = options.map == attention.NORMS
        masks = attention.mass_mask(np.stack([values, *heads]), options.mass) if options.mass < 1 else None
        style = {
            "colormap": options.colormap,
            "opacity": 0.7 if options.opacity is None else options.opacity,
            "raw": options.raw,
        }
        drawn = render.map_picture(
            picture, grid, values, marker=query, mask=None if masks is None or norms else masks[0],
            scale=(values.min(), values.max()) if norms else None, **style,
        )  # fmt: skip
        target("attention.png").write_bytes(render.to_png(drawn))
        sheet = render.heads_sheet(picture, grid, heads, None if masks is None else masks[1:], **style)
        target("heads.png").write_bytes(render.to_png(sheet))
        arrays: dict[str, Any] = {"map": values, "heads": heads, "norms": features.tokens(layer).norms}
        np.savez_compressed(target("attention.npz"), **arrays, **common.about(features, layer))

    return common.each(options, process)
