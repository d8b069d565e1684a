"""The Compare tab's pictures and captions: both sides, and how far they agree."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from dinoviz import compare, render
from dinoviz.cache import OnceCache
from dinoviz.ui.compare.state import ATTENTION, COMMON, OWN, PCA, SEGMENTATION, SIDES, Pair, Panel, ViewSettings, panel
from dinoviz.ui.mask_views import OVERLAY, RAW, SCORE_MEANING, draw, layers_in_words
from dinoviz.ui.shared import colour_bar, jpeg_file, model_caption, note
from dinoviz.ui.workbench import Look

DENSITY = "times uniform attention"
CLICK = "Click on an object in the picture above: both models segment it from the same clicks."


class Drawing(NamedTuple):
    """Both sides drawn. files: of the two pictures for the slider, None unless there are both."""

    picture_a: Image.Image | None
    picture_b: Image.Image | None
    caption_a: str
    caption_b: str
    files: tuple[str, str] | None
    agreement: str


def draw_both(cache: OnceCache, looks: Sequence[Look | str], marks: Sequence, settings: ViewSettings) -> Drawing:
    """Both sides with their captions. looks: of A and of B; an error message in place of a missing one."""
    sides = [look if isinstance(look, str) else panel(cache, look, settings, marks) for look in looks]
    pair = None if any(isinstance(side, str) for side in sides) else Pair(*sides)
    scale = None
    if pair and settings.view == ATTENTION and settings.scale == COMMON:
        scale = render.scale_of(np.concatenate([side.density.ravel() for side in sides]))
    pictures, captions = [], []
    for i, (name, side) in enumerate(zip(SIDES, sides, strict=True)):
        if isinstance(side, str):
            pictures.append(None)
            captions.append(note(f"<b>{name}</b>: {html.escape(side)}", "caption dv-error"))
        else:
            colours = pair.joint_colours[i] if pair and settings.view == PCA and settings.colours != OWN else None
            pictures.append(_picture(side, scale, colours))
            captions.append(note(f"<b>{name}</b>: {_caption(side, scale)}"))
    files = tuple(jpeg_file(picture) for picture in pictures) if pair else None
    return Drawing(*pictures, *captions, files, note(_agreement(pair, settings) if pair else ""))


def _picture(side: Panel, scale: tuple[float, float] | None, colours: np.ndarray | None) -> Image.Image:
    """scale, colours: common to both sides, or None for the side's own."""
    look, settings = side.look, side.settings
    if settings.view == SEGMENTATION:
        view = RAW if settings.raw else OVERLAY
        return draw(look.picture.shown, look.features, side.segmentation, view, settings.opacity)
    values = side.density if settings.view == ATTENTION else side.own_colours if colours is None else colours
    return render.map_picture(
        look.picture.shown, look.features.grid, values, raw=settings.raw, opacity=settings.opacity, scale=scale
    )


def _caption(side: Panel, scale: tuple[float, float] | None) -> str:
    look, settings = side.look, side.settings
    if settings.view == SEGMENTATION:
        text = f"{model_caption(look)} · {layers_in_words(look.backbone.layers)}"
        if side.segmentation is None:
            return text
        text += f"<br>the mask covers {side.segmentation.mask.mean():.1%} of the picture"
        return text + (f"<br>{colour_bar((0, 1), 'viridis', SCORE_MEANING)}" if settings.raw else "")
    text = model_caption(look, side.layer + 1)
    if settings.view == PCA:
        return text
    own = scale or render.scale_of(side.density)
    text += f" · {html.escape(settings.heads)}<br>"
    return text + colour_bar(own, "inferno", DENSITY, clipped=side.density.max() > own[1])


def _agreement(pair: Pair, settings: ViewSettings) -> str:
    """How far A and B agree, and what the colours mean. HTML."""
    if settings.view == SEGMENTATION:
        if pair.a.segmentation is None or pair.b.segmentation is None:
            return CLICK
        iou = compare.iou(pair.a.segmentation.mask, pair.b.segmentation.mask)
        return f"IoU of the two masks <b>{iou:.2f}</b>."
    cka, patches = pair.cka
    similarity = (
        f"Linear CKA of the patch features <b>{cka:.2f}</b> over the {patches:,} patches of the coarser grid "
        "(Kornblith et al. 2019, debiased; 1: equal up to rotation and scale, 0: no similarity)."
    )
    if settings.view == ATTENTION:
        scale = "One colour scale for both" if settings.scale == COMMON else "Each on its own colour scale"
        return f"{scale}: CLS attention as a multiple of uniform attention over the patches. {similarity}"
    return f"{_colours(pair, settings)} {similarity}"


def _colours(pair: Pair, settings: ViewSettings) -> str:
    """What the colours of the patch PCA mean, and how much of them is common to both. HTML."""
    black = " Black is background." if settings.foreground else ""
    if settings.colours == OWN:
        return f"Each in its own colours, which cannot be compared.{black}"
    agreement = pair.joint_colours[2]
    method = {
        "aligned": "B's components rotated onto A's (Procrustes)",
        "joint": "Components of A and B together (consensus PCA)",
    }[settings.colours]
    correlations = ", ".join(f"{r:.2f}" for r in agreement.correlations)
    where = f"{agreement.compared:,} patches" + (" that are foreground in both" if settings.foreground else "")
    return (
        f"{method}: equal colours mean equal coordinates. <b>{agreement.shared:.0%}</b> of their variance is shared "
        f"over {where} (correlations {correlations}).{black}"
    )
