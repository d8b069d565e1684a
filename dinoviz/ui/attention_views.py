"""The Attention tab's maps, captions and files."""

from __future__ import annotations

import html
import io
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dinoviz import attention, figures, render
from dinoviz.attention import MEAN, NORMS, ROLLOUT
from dinoviz.errors import DinovizError
from dinoviz.ui.jobs import Job
from dinoviz.ui.shared import bundle, colour_bar, model_caption, note
from dinoviz.ui.workbench import Look, Workbench

if TYPE_CHECKING:
    import plotly.graph_objects as go

CLS = "CLS"
MEANINGS = {
    MEAN: "attention, softmax over all tokens, mean of the heads",
    ROLLOUT: "attention rollout from CLS through all layers",
    NORMS: "L2 norm of the patch token before the final layer norm",
}


@dataclass(frozen=True)
class ViewSettings:
    """The values of the tab's controls, in the order of the API's parameters.

    layer: from 1. shown: a name of `attention.map_names`. query: "CLS", or "x, y" in pixels of the picture.
    mass: the share of the attention to keep, 1 for all.
    """

    layer: int
    shown: str
    query: str
    colormap: str
    opacity: float
    raw: bool
    mass: float

    @property
    def has_query(self) -> bool:
        """Whether the map depends on the query."""
        return self.shown not in (ROLLOUT, NORMS)

    @property
    def style(self) -> dict:
        """Options for `render`."""
        return {"colormap": self.colormap, "raw": self.raw, "opacity": self.opacity}


@dataclass(frozen=True, eq=False)
class NamedMap:
    """A map (h, w), the ends of its colour scale, and what its numbers mean."""

    values: np.ndarray
    scale: tuple[float, float]
    meaning: str


def draw(bench: Workbench, look: Look, settings: ViewSettings) -> tuple[Image.Image, Image.Image, Image.Image, str]:
    """The picture with the query, the map over it, the sheet of all heads, and the caption. Raises DinovizError."""
    patch = parse_query(look, settings.query)
    heads = attention.head_maps(look.features, patch, settings.layer - 1)
    chosen = _named_map(bench, look, settings, patch)
    picture, grid = look.picture.shown, look.features.grid
    large = render.map_picture(
        picture, grid, chosen.values, mask=_mask(chosen.values, settings), scale=chosen.scale,
        marker=patch if settings.has_query else None, **settings.style,
    )  # fmt: skip
    sheet = render.heads_sheet(picture, grid, heads, _mass_mask(heads, settings.mass), **settings.style)
    photo = render.mark_patch(picture, grid, patch)
    return photo, large, sheet, note(_caption(look, settings, patch, chosen))


def heads_figure(bench: Workbench, look: Look, layer: int) -> go.Figure:
    """Attention distance and entropy of every head of every layer; `layer` (from 1) is highlighted."""

    def measure() -> list[attention.HeadStatistics]:
        return [attention.head_statistics(look.features, i) for i in range(look.backbone.layers)]

    return figures.heads_figure(bench.derived(("heads", look.key), measure), layer - 1)


def rollout_key(look: Look) -> Hashable:
    """The key of a picture's rollout in `Workbench.derived`."""
    return "rollout", look.key


def rollout(bench: Workbench, look: Look, job: Job | None = None) -> np.ndarray:
    """The attention rollout (h, w), computed once. job: reports the progress. Raises Stopped."""

    def report(done: int, layers: int) -> None:
        if job:
            job.report("Attention rollout", done / layers)

    return bench.derived(rollout_key(look), lambda: attention.rollout(look.features, report))


def parse_query(look: Look, text: str) -> tuple[int, int] | None:
    """The patch (row, column) at "x, y" in pixels of the picture; None for CLS. Raises DinovizError."""
    if text.strip().upper() in ("", CLS):
        return None
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise DinovizError(f"query {text!r}: give CLS, or x, y in pixels of the picture.") from None
    row, column = look.features.grid.patch_at((x, y))
    return int(row), int(column)


def moved_query(look: Look, text: str, nudge: str) -> str:
    """The query one patch further, for an arrow key's "dx,dy,..."; CLS moves to the central patch."""
    h, w = look.features.grid.shape
    dx, dy = (int(part) for part in nudge.split(",")[:2])
    patch = parse_query(look, text)
    y, x = (h // 2, w // 2) if patch is None else np.clip((patch[0] + dy, patch[1] + dx), 0, (h - 1, w - 1))
    left, top, right, bottom = look.features.grid.patch_box((y, x))
    return f"{(left + right) // 2:.0f}, {(top + bottom) // 2:.0f}"


def file(bench: Workbench, look: Look, settings: ViewSettings) -> str:
    """A zip of the maps at the picture's own size, the arrays and about.json -> its path. Raises DinovizError."""
    patch = parse_query(look, settings.query)
    heads = attention.head_maps(look.features, patch, settings.layer - 1)
    chosen = _named_map(bench, look, settings, patch)
    full, grid = look.picture.image, look.features.grid
    large = render.map_picture(
        full, grid, chosen.values, mask=_mask(chosen.values, settings), scale=chosen.scale, **settings.style
    )
    files = {"map.png": render.to_png(large)}
    for i, head in enumerate(heads):
        picture = render.map_picture(full, grid, head, mask=_mass_mask(head, settings.mass), **settings.style)
        files[f"heads/head-{i + 1:02d}.png"] = render.to_png(picture)
    files["heads.png"] = render.to_png(render.heads_sheet(full, grid, heads, **settings.style))
    arrays = io.BytesIO()
    norms = look.features.tokens(settings.layer - 1).norms
    np.savez_compressed(arrays, map=chosen.values, heads=heads, norms=norms)
    files["attention.npz"] = arrays.getvalue()
    return bundle("attention", files, _about(look, settings, patch, chosen))


def _named_map(bench: Workbench, look: Look, settings: ViewSettings, patch: tuple[int, int] | None) -> NamedMap:
    if settings.shown == ROLLOUT:
        values = rollout(bench, look)
    else:
        values = attention.named_map(look.features, settings.shown, patch, settings.layer - 1)
    # Artefacts have the largest norms of all, so that scale is not clipped.
    scale = (values.min(), values.max()) if settings.shown == NORMS else render.scale_of(values)
    meaning = MEANINGS.get(settings.shown, "attention, softmax over all tokens")
    return NamedMap(values, (float(scale[0]), float(scale[1])), meaning)


def _mask(values: np.ndarray, settings: ViewSettings) -> np.ndarray | None:
    """The patches of the chosen map to show; norms are no distribution, so that all of theirs are shown."""
    return None if settings.shown == NORMS else _mass_mask(values, settings.mass)


def _mass_mask(values: np.ndarray, mass: float) -> np.ndarray | None:
    return attention.mass_mask(values, mass) if mass < 1 else None


def _caption(look: Look, settings: ViewSettings, patch: tuple[int, int] | None, chosen: NamedMap) -> str:
    text = model_caption(look, None if settings.shown == ROLLOUT else settings.layer)
    if settings.has_query:
        query = CLS if patch is None else f"patch in row {patch[0] + 1}, column {patch[1] + 1}"
        text += f" · query: {query}"
    text += f" · {html.escape(settings.shown)}<br>"
    values = chosen.values
    text += colour_bar(chosen.scale, settings.colormap, chosen.meaning, clipped=values.max() > chosen.scale[1])
    if settings.shown != NORMS:
        text += f" · sum over the patches {values.sum():.2f}, maximum {values.max():.3g}"
    return text


def _about(look: Look, settings: ViewSettings, patch: tuple[int, int] | None, chosen: NamedMap) -> dict:
    return {
        "view": "attention",
        **look.about(),
        "layer": settings.layer,
        "query": CLS if patch is None else {"row": patch[0], "column": patch[1], "counted_from": 0},
        "map": settings.shown,
        "map_means": chosen.meaning,
        "arrays": {
            "map": "(h, w), as map.png",
            "heads": "(heads, h, w), softmax over all tokens",
            "norms": "(h, w), token norms before the final layer norm",
        },
        "mass_kept": settings.mass,
        "colour_map": settings.colormap,
        "colour_scale": chosen.scale,
    }
