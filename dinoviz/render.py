"""Draw maps, masks and contact sheets as pictures. Computes nothing: the values come from the views."""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dinoviz.errors import DinovizError
from dinoviz.grid import Patch, PatchGrid

COLORMAPS = ("inferno", "viridis", "magma", "plasma", "turbo", "cividis", "bone")
# A few artefact patches must not turn the rest of the map black; captions state the true maximum.
CLIP_PERCENTILE = 99.5


@cache
def colormap_table(name: str) -> np.ndarray:
    """A colour map as (256, 3) uint8, RGB. Raises DinovizError for an unknown name."""
    if name not in COLORMAPS:
        raise DinovizError(f"There is no colour map {name!r}: choose one of {', '.join(COLORMAPS)}.")
    code = getattr(cv2, f"COLORMAP_{name.upper()}")
    return cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], code)[:, 0, ::-1].copy()


def scale_of(values: np.ndarray) -> tuple[float, float]:
    """The interval that the colour map covers: minimum to 99.5th percentile."""
    low, high = float(np.min(values)), float(np.percentile(values, CLIP_PERCENTILE))
    return low, high if high > low else float(np.max(values))


def colourise(values: np.ndarray, scale: tuple[float, float], colormap: str = "inferno") -> np.ndarray:
    """Colour (H, W) numbers -> (H, W, 3) uint8; values outside the scale are clipped to it."""
    low, high = scale
    span = high - low
    unit = (values - low) / span if span > 0 else np.zeros_like(values, dtype=np.float32)
    return colormap_table(colormap)[(np.clip(unit, 0, 1) * 255).round().astype(np.uint8)]


def display_copy(picture: Image.Image, shortest: int, longest: int) -> Image.Image:
    """The picture resized so that its long side is within [shortest, longest] pixels.

    Small pictures are enlarged so that each patch of a map over them covers several pixels.
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
    marker: Patch | None = None,
) -> Image.Image:
    """Blend a map of patch values over the picture, at the picture's size.

    Args:
        picture: the uploaded image or a resized copy.
        grid: of the picture.
        values: (h, w) numbers, coloured by `colormap`, or (h, w, 3) colours in [0, 1].
        colormap: one of COLORMAPS.
        opacity: of the map, 0 to 1.
        raw: draw each patch as one flat square; else interpolate bilinearly between patch centres.
        scale: interval that the colour map covers; None for `scale_of(values)`.
        mask: (h, w) bool; patches outside it are dimmed and its border is drawn.
        marker: patch (row, column) to frame.
    """
    grid = grid.at(picture.size)
    mode: Literal["nearest", "bilinear"] = "nearest" if raw else "bilinear"
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
        if picture.width >= 14 * grid.shape[1]:  # on smaller patches the lines would cover their contents
            contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(result, contours, -1, (255, 255, 255), max(1, round(min(picture.size) / 400)))
    return mark_patch(Image.fromarray(result), grid, marker)


def mark_patch(picture: Image.Image, grid: PatchGrid, patch: Patch | None) -> Image.Image:
    """The picture with a frame around one patch (row, column), visible on light and dark."""
    if patch is None:
        return picture
    marked = picture.copy()
    left, top, right, bottom = grid.at(picture.size).patch_box(patch)
    # The pixels that `PatchGrid.resize` assigns to the patch; Pillow includes the last one.
    left, top, right, bottom = (math.ceil(edge - 0.5) for edge in (left, top, right, bottom))
    line = max(1, round(min(picture.size) / 250))
    draw = ImageDraw.Draw(marked)
    for colour, out in (("black", 2 * line), ("white", line)):
        draw.rectangle((left - out, top - out, right + out - 1, bottom + out - 1), outline=colour, width=line)
    return marked


@cache
def label_colours() -> np.ndarray:
    """Colours of 256 labels as (256, 3) uint8: black for the background, then well separated hues."""
    # Steps of the golden ratio stay away from all earlier hues; the first, a blue, is rare in photographs.
    colours = [colorsys.hsv_to_rgb((0.57 + 0.618034 * i) % 1, 0.85 - 0.25 * (i // 8 % 2), 1) for i in range(255)]
    return (np.array([(0, 0, 0), *colours]) * 255).round().astype(np.uint8)


def labels_picture(picture: Image.Image, mask: np.ndarray, opacity: float = 0.5) -> Image.Image:
    """The picture with the objects of a label map (H, W) uint8 tinted and outlined, each in its colour."""
    photo, colours = np.asarray(picture), label_colours()
    result = np.where((mask > 0)[..., None], cv2.addWeighted(colours[mask], opacity, photo, 1 - opacity, 0), photo)
    line = max(1, round(min(picture.size) / 240))
    for label in np.flatnonzero(np.bincount(mask.ravel())[1:]) + 1:
        contours, _ = cv2.findContours((mask == label).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(result, contours, -1, colours[label].tolist(), line)
    return Image.fromarray(result)


@dataclass(frozen=True)
class Sheet:
    """A contact sheet: `count` tiles of one size (width, height) in `columns` columns, with a gap between them."""

    count: int
    columns: int
    tile: tuple[int, int]
    GAP: ClassVar[int] = 6

    @classmethod
    def fit(cls, count: int, picture_size: tuple[int, int], width: int = 960) -> Sheet:
        """A layout for tiles of a picture's shape: about `width` pixels wide, half as high, few empty places."""
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
        # A grey that is unobtrusive on light and dark pages.
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
        """The index of the tile at a point of the sheet, or None."""
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
    """Encode a picture as JPEG, without chroma subsampling, which would blur raw patches."""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=90, subsampling=0)
    return buffer.getvalue()


def to_png(image: Image.Image | np.ndarray) -> bytes:
    """Encode a picture as PNG."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


# A blue that is rare in photographs, and that colour-blind users can tell from the red and green of the markers.
TINT = (30, 144, 255)


def overlay(picture: Image.Image, mask: np.ndarray, opacity: float = 0.5) -> Image.Image:
    """The picture (W, H) with the mask (H, W) tinted and outlined."""
    photo = np.asarray(picture)
    tinted = cv2.addWeighted(np.full_like(photo, TINT), opacity, photo, 1 - opacity, 0)
    return Image.fromarray(_outlined(np.where(mask[..., None], tinted, photo), mask))


def outline(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    """The picture with the outline of the mask."""
    return Image.fromarray(_outlined(np.array(picture), mask))


def _outlined(photo: np.ndarray, mask: np.ndarray) -> np.ndarray:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    line = max(1, round(min(photo.shape[:2]) / 300))
    cv2.drawContours(photo, contours, -1, (0, 0, 0), 2 * line + 1)  # dark below light: visible on any background
    cv2.drawContours(photo, contours, -1, (255, 255, 255), line)
    return photo


def cutout(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    """The masked object: RGBA at the picture's size, transparent outside the mask (H, W)."""
    result = picture.convert("RGBA")
    result.putalpha(Image.fromarray(mask.astype(np.uint8) * 255))
    return result


def on_checkers(picture: Image.Image, mask: np.ndarray, square: int = 12) -> Image.Image:
    """The masked object on a grey checkerboard, to show the transparency of a cut-out."""
    h, w = mask.shape
    board = ((np.arange(h)[:, None] // square + np.arange(w) // square) % 2 * 28 + 200).astype(np.uint8)
    return Image.fromarray(np.where(mask[..., None], np.asarray(picture), board[..., None]))
