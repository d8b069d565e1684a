"""How a marked picture is shown, and in words: the Segment and the Compare tab share it."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from dinoviz import render, segment
from dinoviz.features import Features
from dinoviz.segment.segmentation import Segmentation

OVERLAY, CUTOUT, SCORE, RAW = "mask", "cut-out", "score", "raw patch score"
VIEWS = (OVERLAY, CUTOUT, SCORE, RAW)
SCORE_MEANING = "score: 0 is like the marked background, 1 like the marked object"


def draw(
    picture: Image.Image, features: Features, found: Segmentation | None, view: str = OVERLAY, opacity: float = 0.5
) -> Image.Image:
    """The picture in one of VIEWS, at its own size; the picture itself without a mask."""
    if found is None:
        return picture
    if view == OVERLAY:
        return render.overlay(picture, found.mask, opacity)
    if view == CUTOUT:
        return render.on_checkers(picture, found.mask)
    if view == RAW:
        style = {"colormap": "viridis", "opacity": opacity, "raw": True, "scale": (0, 1)}
        return render.map_picture(picture, features.grid, found.patch_score, **style)
    colours = Image.fromarray(render.colourise(found.score, (0, 1), "viridis"))
    return render.outline(Image.blend(picture, colours, opacity), found.mask)


def layers_in_words(layers: int, chosen: Sequence[int] | None = None) -> str:
    """The layers that are used, counted from 1: "layers 9 and 12 of 12"."""
    chosen = segment.layers_of(layers) if chosen is None else chosen
    return f"layers {' and '.join(str(layer % layers + 1) for layer in chosen)} of {layers}"
