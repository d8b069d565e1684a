"""Arrays -> pictures and plotly figures. No mathematics of its own: what a number means is decided in the views."""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dinoviz.errors import DinovizError
from dinoviz.grid import PatchGrid

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from dinoviz.attention import HeadStatistics

COLORMAPS = ("inferno", "viridis", "magma", "plasma", "turbo", "cividis", "bone")
# A handful of artefact patches must not turn the rest of the map black; the caption tells the true maximum.
CLIP_PERCENTILE = 99.5


@cache
def colormap_table(name: str) -> np.ndarray:
    """The colour map as (256, 3) uint8, RGB. Raises DinovizError for an unknown name."""
    if name not in COLORMAPS:
        raise DinovizError(f"There is no colour map {name!r}; known are {', '.join(COLORMAPS)}.")
    code = getattr(cv2, f"COLORMAP_{name.upper()}")
    return cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], code)[:, 0, ::-1].copy()


def scale_of(values: np.ndarray) -> tuple[float, float]:
    """The interval that is drawn as the whole colour map: minimum to the 99.5th percentile."""
    low, high = float(np.min(values)), float(np.percentile(values, CLIP_PERCENTILE))
    return low, high if high > low else float(np.max(values))


def colourise(values: np.ndarray, scale: tuple[float, float], colormap: str = "inferno") -> np.ndarray:
    """(H, W) numbers -> (H, W, 3) uint8; what lies outside the scale gets its end's colour."""
    low, high = scale
    span = high - low
    unit = (values - low) / span if span > 0 else np.zeros_like(values, dtype=np.float32)
    return colormap_table(colormap)[(np.clip(unit, 0, 1) * 255).round().astype(np.uint8)]


def display_copy(picture: Image.Image, shortest: int, longest: int) -> Image.Image:
    """The picture with its long side brought into [shortest, longest] pixels.

    Small pictures are enlarged so that a map drawn over them has pixels enough for its patches.
    """
    side = max(picture.size)
    scale = np.clip(side, shortest, longest) / side
    if scale == 1:
        return picture
    size = tuple(max(1, round(s * scale)) for s in picture.size)
    return picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=2 if scale < 1 else None)


def map_picture(
    picture: Image.Image,
    grid: PatchGrid,
    values: np.ndarray,
    *,
    colormap: str = "inferno",
    opacity: float = 0.6,
    raw: bool = False,
    scale: tuple[float, float] | None = None,
    mask: np.ndarray | None = None,
    marker: tuple[int, int] | None = None,
) -> Image.Image:
    """A map over the patches, laid over the picture it was made from, at the picture's size.

    picture: the uploaded image or a copy of another size. values: (h, w) numbers, coloured by `colormap` over
    `scale`; or (h, w, 3) colours in [0, 1]. raw: one flat square a patch; else bilinear between patch centres.
    mask: (h, w) bool, patches outside it are dimmed and its border is drawn. marker: the patch (row, column) to frame.
    """
    grid = replace(grid, image_size=picture.size)
    mode = "nearest" if raw else "bilinear"
    if values.ndim == 3:
        colours = (np.clip(grid.resize(values, "image", mode), 0, 1) * 255).round().astype(np.uint8)
    else:
        colours = colourise(grid.resize(values, "image", mode), scale or scale_of(values), colormap)
    photo = np.asarray(picture)
    result = cv2.addWeighted(colours, opacity, photo, 1 - opacity, 0)
    if mask is not None:
        inside = grid.resize(mask, "image", "nearest")
        grey = cv2.cvtColor(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        result = np.where(inside[..., None], result, (grey * 0.35).astype(np.uint8))
        if picture.width >= 14 * grid.shape[1]:  # on smaller patches the lines would cover what they enclose
            contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(result, contours, -1, (255, 255, 255), max(1, round(min(picture.size) / 400)))
    return mark_patch(Image.fromarray(result), grid, marker)


def mark_patch(picture: Image.Image, grid: PatchGrid, patch: tuple[int, int] | None) -> Image.Image:
    """The picture with a frame around one patch (row, column), readable on light and dark."""
    if patch is None:
        return picture
    marked = picture.copy()
    left, top, right, bottom = replace(grid, image_size=picture.size).patch_box(patch)
    # The pixels that `PatchGrid.resize` gives to the patch; Pillow counts the last one in.
    left, top, right, bottom = (math.ceil(edge - 0.5) for edge in (left, top, right, bottom))
    line = max(1, round(min(picture.size) / 250))
    draw = ImageDraw.Draw(marked)
    for colour, out in (("black", 2 * line), ("white", line)):
        draw.rectangle((left - out, top - out, right + out - 1, bottom + out - 1), outline=colour, width=line)
    return marked


@cache
def label_colours() -> np.ndarray:
    """The colours of 256 labels as (256, 3) uint8: black for the background, then hues as far apart as can be."""
    # Steps of the golden ratio never come close to a hue that was there before; the first, a blue, is rare in nature.
    colours = [colorsys.hsv_to_rgb((0.57 + 0.618034 * i) % 1, 0.85 - 0.25 * (i // 8 % 2), 1) for i in range(255)]
    return (np.array([(0, 0, 0), *colours]) * 255).round().astype(np.uint8)


def labels_picture(picture: Image.Image, mask: np.ndarray, opacity: float = 0.5) -> Image.Image:
    """The picture with the objects of a label map (H, W) uint8 of its size in colour, each with its outline."""
    photo, colours = np.asarray(picture), label_colours()
    result = np.where((mask > 0)[..., None], cv2.addWeighted(colours[mask], opacity, photo, 1 - opacity, 0), photo)
    line = max(1, round(min(picture.size) / 240))
    for label in np.flatnonzero(np.bincount(mask.ravel())[1:]) + 1:
        contours, _ = cv2.findContours((mask == label).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(result, contours, -1, colours[label].tolist(), line)
    return Image.fromarray(result)


@dataclass(frozen=True)
class Sheet:
    """A contact sheet: `count` tiles of one size (width, height) in rows of `columns`, with a gap between them."""

    count: int
    columns: int
    tile: tuple[int, int]
    GAP: ClassVar[int] = 6

    @classmethod
    def fit(cls, count: int, picture_size: tuple[int, int], width: int = 960) -> Sheet:
        """For tiles of a picture's shape: about `width` pixels wide, half as high, few places empty."""
        aspect = picture_size[0] / picture_size[1]

        def cost(columns: int) -> float:
            rows = math.ceil(count / columns)
            return abs(math.log(columns * aspect / rows / 2)) + 2 * (rows * columns - count) / count

        columns = min(range(1, count + 1), key=cost)
        tile = max(48, width // columns)
        return cls(count, columns, (tile, max(1, round(tile / aspect))))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the whole sheet."""
        rows = math.ceil(self.count / self.columns)
        return self.columns * (self.tile[0] + self.GAP) - self.GAP, rows * (self.tile[1] + self.GAP) - self.GAP

    def compose(self, tiles: Sequence[Image.Image], labels: Sequence[str]) -> Image.Image:
        """The sheet as a picture, with a label in each tile's corner."""
        # A grey that is quiet on light and on dark pages.
        sheet = Image.new("RGB", self.size, (128, 134, 142))
        draw = ImageDraw.Draw(sheet)
        font = ImageFont.load_default(size=max(11, min(self.tile) // 12))
        for i, (tile, label) in enumerate(zip(tiles, labels, strict=True)):
            row, column = divmod(i, self.columns)
            x, y = column * (self.tile[0] + self.GAP), row * (self.tile[1] + self.GAP)
            sheet.paste(tile, (x, y))
            box = draw.textbbox((x + 6, y + 4), label, font=font)
            draw.rectangle((box[0] - 4, box[1] - 3, box[2] + 4, box[3] + 3), fill="black")
            draw.text((x + 6, y + 4), label, font=font, fill="white")
        return sheet

    def tile_at(self, xy: Sequence[float]) -> int | None:
        """Which tile a point of the sheet lies on, or None where there is none."""
        column, row = (int(xy[i] // (self.tile[i] + self.GAP)) for i in (0, 1))
        index = row * self.columns + column
        return index if 0 <= column < self.columns and 0 <= index < self.count else None


def heads_sheet(
    picture: Image.Image, grid: PatchGrid, heads: np.ndarray, masks: np.ndarray | None = None, **style
) -> Image.Image:
    """All heads (heads, h, w) on one sheet, each on its own scale; masks and style as in `map_picture`."""
    sheet = Sheet.fit(len(heads), picture.size)
    tile = picture.resize(sheet.tile, Image.Resampling.LANCZOS, reducing_gap=2)
    maps = [
        map_picture(tile, grid, head, mask=None if masks is None else masks[i], **style) for i, head in enumerate(heads)
    ]
    return sheet.compose(maps, [f"head {i + 1}" for i in range(len(heads))])


def to_jpeg(picture: Image.Image) -> bytes:
    """A picture as the bytes of a JPEG file; subsampled colour would blur the raw patches."""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=90, subsampling=0)
    return buffer.getvalue()


def to_png(image: Image.Image | np.ndarray) -> bytes:
    """A picture as the bytes of a PNG file, lossless."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


# Colours that are told apart on light and dark pages and by colour-blind eyes (Okabe & Ito 2008).
ACCENT, QUIET = "#E69F00", "#56B4E9"


def _figure(height: int, **layout) -> go.Figure:
    import plotly.graph_objects as go

    # The page's own light or dark background shows through; mid grey text is readable on both.
    return go.Figure(
        layout={
            "height": height,
            "margin": {"l": 50, "r": 10, "t": 30, "b": 42},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "system-ui, sans-serif", "color": "#808890"},
            "showlegend": False,
            **layout,
        }
    )


def heads_figure(statistics: Sequence[HeadStatistics], layer: int) -> go.Figure:
    """Mean attention distance and entropy of every head against the layer; one layer (from 0) stands out."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(cols=2, rows=1, figure=_figure(280), horizontal_spacing=0.16)
    for column, (field, unit) in enumerate((("distance", "patches"), ("entropy", "bits")), start=1):
        values = np.array([getattr(s, field) for s in statistics])  # (layers, heads)
        layers, heads = values.shape
        x, head = np.divmod(np.arange(layers * heads), heads)
        here = x == layer
        for chosen, colour, size in ((~here, QUIET, 6), (here, ACCENT, 10)):
            figure.add_trace(
                go.Scatter(
                    x=x[chosen] + 1,
                    y=values.ravel()[chosen],
                    customdata=head[chosen] + 1,
                    mode="markers",
                    marker={"color": colour, "size": size, "opacity": 0.85},
                    hovertemplate=f"layer %{{x}}, head %{{customdata}}<br>{field} %{{y:.2f}} {unit}<extra></extra>",
                ),
                row=1,
                col=column,
            )
        grid = {"gridcolor": "rgba(128,128,128,.25)", "zeroline": False}
        figure.update_xaxes(title="layer", row=1, col=column, **grid)
        figure.update_yaxes(title=f"{'mean ' if column == 1 else ''}{field} ({unit})", row=1, col=column, **grid)
    return figure


def variance_figure(explained: np.ndarray) -> go.Figure:
    """Bars of the share of variance of each component, with the running sum when hovered."""
    import plotly.graph_objects as go

    figure = _figure(280, bargap=0.25)
    figure.add_trace(
        go.Bar(
            x=np.arange(1, len(explained) + 1),
            y=explained * 100,
            customdata=np.cumsum(explained) * 100,
            marker={"color": [ACCENT if i < 3 else QUIET for i in range(len(explained))]},
            hovertemplate="component %{x}: %{y:.1f} %<br>up to here %{customdata:.1f} %<extra></extra>",
        )
    )
    figure.update_xaxes(title="component", dtick=1)
    figure.update_yaxes(title="explained variance (%)", gridcolor="rgba(128,128,128,.25)")
    return figure


def areas_figure(seconds: np.ndarray, percent: np.ndarray) -> go.Figure:
    """How much of each frame a thing covers, over the time of a video."""
    import plotly.graph_objects as go

    figure = _figure(200)
    figure.add_trace(
        go.Scatter(
            x=seconds,
            y=percent,
            mode="lines",
            line={"color": ACCENT, "width": 2},
            hovertemplate="%{x:.2f} s: %{y:.1f} % of the frame<extra></extra>",
        )
    )
    figure.update_xaxes(title="seconds", gridcolor="rgba(128,128,128,.25)", zeroline=False)
    figure.update_yaxes(title="area (% of the frame)", gridcolor="rgba(128,128,128,.25)", rangemode="tozero")
    return figure


def scatter_figure(points: np.ndarray, colours: np.ndarray, axes: Sequence[int], hover: Sequence[str]) -> go.Figure:
    """Patches (n, 3) in three components, each in its colour (n, 3) in [0, 1]; axes: the components, from 0."""
    import plotly.graph_objects as go

    figure = _figure(420, margin={"l": 0, "r": 0, "t": 0, "b": 0})
    figure.add_trace(
        go.Scatter3d(
            x=points[:, 0],
            y=points[:, 1],
            z=points[:, 2],
            text=hover,
            mode="markers",
            marker={"size": 3, "color": ["rgb({},{},{})".format(*c) for c in (colours * 255).round().astype(int)]},
            hovertemplate="%{text}<extra></extra>",
        )
    )
    titles = [f"component {i + 1}" for i in axes]
    # uirevision keeps the camera where the user turned it when the points change.
    figure.update_layout(
        scene={
            f"{axis}axis": {"title": title, "backgroundcolor": "rgba(0,0,0,0)", "gridcolor": "rgba(128,128,128,.3)"}
            for axis, title in zip("xyz", titles, strict=True)
        },
        scene_camera={"eye": {"x": 1.7, "y": 1.7, "z": 1.0}, "center": {"x": 0, "y": 0, "z": -0.15}},
        uirevision="patches",
    )
    return figure
