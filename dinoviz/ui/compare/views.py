"""The Compare tab's pictures and captions: both sides drawn, and in numbers how far they agree."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
from PIL import Image

from dinoviz import compare, render
from dinoviz.cache import OnceCache
from dinoviz.ui.compare.state import ATTENTION, COMMON, OWN, PCA, SEGMENTATION, SIDES, Choice, Pair, Panel, panel
from dinoviz.ui.mask_views import OVERLAY, RAW, SCORE_MEANING, draw, layers_in_words
from dinoviz.ui.shared import colour_bar, jpeg_file, note, through
from dinoviz.ui.workbench import Look

DENSITY = "times an even spread over the picture"
CLICK = "Click on a thing in the picture above: the same clicks go through both models."


def paint(kept: OnceCache, looks: Sequence[Look | str], marks: Sequence, choice: Choice) -> tuple:
    """Pictures of A and B, their captions, the slider's two files, what they have in common.

    looks: of A and of B, or a sentence in place of one that cannot be looked through.
    """
    sides = [look if isinstance(look, str) else panel(kept, look, choice, marks) for look in looks]
    pair = None if any(isinstance(side, str) for side in sides) else Pair(*sides)
    scale = None
    if pair and choice.view == ATTENTION and choice.scale == COMMON:
        scale = render.scale_of(np.concatenate([side.density.ravel() for side in sides]))
    pictures, captions = [], []
    for i, (name, side) in enumerate(zip(SIDES, sides, strict=True)):
        if isinstance(side, str):
            pictures.append(None)
            captions.append(note(f"<b>{name}</b>: {html.escape(side)}", "caption dv-error"))
        else:
            colours = pair.coloured[i] if pair and choice.view == PCA and choice.colours != OWN else None
            pictures.append(_picture(side, scale, colours))
            captions.append(note(f"<b>{name}</b>: {_caption(side, scale)}"))
    files = tuple(jpeg_file(picture) for picture in pictures) if pair else None
    return *pictures, *captions, files, note(_in_common(pair, choice) if pair else "")


def _picture(side: Panel, scale: tuple[float, float] | None, colours: np.ndarray | None) -> Image.Image:
    """scale: of both, or None for its own. colours: of both, or None for its own."""
    look, choice = side.look, side.choice
    if choice.view == SEGMENTATION:
        view = RAW if choice.raw else OVERLAY
        return draw(look.picture.shown, look.features, side.found, view, choice.opacity)
    values = side.density if choice.view == ATTENTION else side.own_colours if colours is None else colours
    return render.map_picture(
        look.picture.shown, look.features.grid, values, raw=choice.raw, opacity=choice.opacity, scale=scale
    )


def _caption(side: Panel, scale: tuple[float, float] | None) -> str:
    look, choice = side.look, side.choice
    if choice.view == SEGMENTATION:
        text = f"{through(look)} · {layers_in_words(look.backbone.layers)}"
        if side.found is None:
            return text
        text += f"<br>the mask covers {side.found.mask.mean():.1%} of the picture"
        return text + (f"<br>{colour_bar((0, 1), 'viridis', SCORE_MEANING)}" if choice.raw else "")
    text = through(look, side.layer + 1)
    if choice.view == PCA:
        return text
    own = scale or render.scale_of(side.density)
    text += f" · {html.escape(choice.heads)}<br>"
    return text + colour_bar(own, "inferno", DENSITY, clipped=side.density.max() > own[1])


def _in_common(pair: Pair, choice: Choice) -> str:
    """How far A and B agree, and what the colours mean."""
    if choice.view == SEGMENTATION:
        if pair.a.found is None or pair.b.found is None:
            return CLICK
        return f"IoU of the two masks <b>{compare.iou(pair.a.found.mask, pair.b.found.mask):.2f}</b>."
    cka, places = pair.cka
    alike = (
        f"Linear CKA of the patches <b>{cka:.2f}</b> over the {places:,} places of the coarser grid "
        "(Kornblith et al. 2019, debiased; 1: the same up to rotation and scale, 0: nothing in common)."
    )
    if choice.view == ATTENTION:
        scale = "One scale of colours for both" if choice.scale == COMMON else "Each on its own scale of colours"
        return f"{scale}: attention of CLS as a multiple of an even spread, whatever the number of patches. {alike}"
    black = " Black is background." if choice.foreground else ""
    if choice.colours == OWN:
        return f"Each in colours of its own, which are not to be compared.{black} {alike}"
    agreement = pair.coloured[2]
    how = {
        "aligned": "B's components turned onto A's (Procrustes)",
        "joint": "Components of A and B together, of each its own part (consensus PCA)",
    }[choice.colours]
    correlations = ", ".join(f"{r:.2f}" for r in agreement.correlations)
    where = f"{agreement.compared:,} places" + (" that are foreground to both" if choice.foreground else "")
    return (
        f"{how}: the same colour, the same coordinates. They share <b>{agreement.shared:.0%}</b> of their variance "
        f"over {where} (correlations {correlations}).{black} {alike}"
    )
