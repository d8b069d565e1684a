"""`python -m dinoviz pca`: principal components of the patches as colours, as pictures and arrays."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dinoviz.commands import common
from dinoviz.errors import DinovizError, check_share

if TYPE_CHECKING:
    from PIL import Image


def add(commands, options: argparse.ArgumentParser) -> None:
    """Add the parser of the command."""
    parser = commands.add_parser("pca", parents=[options], help="principal components of the patches as colours")
    common.add_pictures(parser)
    parser.add_argument("--components", default="1,2,3", help="three for red, green and blue, or one for a heat map")
    parser.add_argument("--plain", action="store_true", help="show the components themselves as red, green and "
                        "blue, without the rotation that keeps colours stable between pictures")  # fmt: skip
    parser.add_argument("--joint", action="store_true", help="fit one basis for all pictures, so that colours agree")
    parser.add_argument("--background", action="store_true", help="fit and colour the background as well")
    parser.add_argument("--threshold", type=float, help="of the foreground score, 0 to 1 (default: from the data)")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Draw the components of every picture, with one basis each or a joint one."""
    components = [i - 1 for i in common.numbers(options.components, None, int)]
    if len(components) not in (1, 3):
        raise DinovizError(f"--components needs one number or three, not {len(components)}.")
    if options.threshold is not None:
        check_share("threshold", options.threshold)
    common.check_pictures(options)
    backbone, layer = common.load(options)
    _check_components(components, backbone.dim)
    encoded: list[tuple] = []

    def process(picture: Image.Image, target: Callable[[str], Path]) -> None:
        encoded.append((picture, backbone.encode(picture, options.resolution, (layer,)), target))
        if not options.joint:
            _draw(options, components, layer, [encoded.pop()])

    def draw_jointly() -> None:
        if encoded:
            _draw(options, components, layer, encoded)

    return common.each(options, process, draw_jointly)


def _check_components(components: Sequence[int], count: int) -> None:
    """Raise DinovizError for indices out of range, with components numbered from 1 as in the options."""
    for index in components:
        if not 0 <= index < count:
            raise DinovizError(f"There is no component {index + 1}: the components are 1 to {count}.")


def _draw(options: argparse.Namespace, components: list[int], layer: int, encoded: list[tuple]) -> None:
    import numpy as np

    from dinoviz import pca, render

    pictures, features, targets = zip(*encoded, strict=True)
    fitted = pca.fit(
        features, components=max(10, *(c + 1 for c in components)), layer=layer, foreground=not options.background,
        threshold=options.threshold,
    )  # fmt: skip
    _check_components(
        components, len(fitted.explained)
    )  # a small grid has fewer components than the model has channels
    maps = (
        fitted.colours(components, turned=not options.plain)
        if len(components) == 3
        else fitted.component(components[0])
    )
    opacity = 1.0 if options.opacity is None else options.opacity
    for i, (picture, values) in enumerate(zip(pictures, maps, strict=True)):
        drawn = render.map_picture(
            picture, features[i].grid, values, raw=options.raw, opacity=opacity, colormap="viridis", scale=(0, 1)
        )
        targets[i]("pca.png").write_bytes(render.to_png(drawn))
        np.savez_compressed(
            targets[i]("pca.npz"), coordinates=fitted.coordinates[i], foreground=fitted.foreground[i],
            score=fitted.score[i], explained=fitted.explained, threshold=fitted.threshold,
            **common.about(features[i], layer),
        )  # fmt: skip
