"""Draw depth as pictures and plotly figures (as plain dictionaries)."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dinoviz import render

GREY, LINE = "#808890", "rgba(128,128,128,.25)"
BARS = 48
FLAT = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "showlegend": False}
LABELS = "AB"


def overlaid(picture: Image.Image, colours: np.ndarray, opacity: float) -> Image.Image:
    """Blend colours (H, W, 3) uint8 over a picture of their size."""
    return Image.blend(picture, Image.fromarray(colours), opacity)


def normals_colours(normals: np.ndarray) -> np.ndarray:
    """Colour unit normals (H, W, 3), x right, y down, z forward, as normal maps -> uint8; facing the camera is blue."""
    return ((normals * (1, -1, -1) + 1) * 127.5).round().astype(np.uint8)


def dimmed(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    """The picture, in dark grey outside the mask (H, W)."""
    photo = np.asarray(picture)
    grey = np.asarray(picture.convert("L"))[..., None] * 0.25
    return Image.fromarray(np.where(mask[..., None], photo, grey.astype(np.uint8)))


def marked(picture: Image.Image, points: Sequence[Sequence[float]], labels: Sequence[str]) -> Image.Image:
    """The picture with a labelled cross at each point (x, y in pixels), and a line between two points."""
    if not points:
        return picture
    result = picture.copy()
    draw = ImageDraw.Draw(result)
    unit = max(1, round(max(picture.size) / 500))
    if len(points) == 2:
        for colour, width in (("black", 4 * unit), ("white", 2 * unit)):
            draw.line([(x, y) for x, y in points], fill=colour, width=width)
    font = ImageFont.load_default(size=max(12, max(picture.size) // 45))
    for (x, y), label in zip(points, labels, strict=True):
        for colour, reach, width in (("black", 9 * unit, 4 * unit), ("white", 8 * unit, 2 * unit)):
            draw.line((x - reach, y, x + reach, y), fill=colour, width=width)
            draw.line((x, y - reach, x, y + reach), fill=colour, width=width)
        left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
        box = right - left + 10, bottom - top + 8
        at_x = x + 12 * unit if x + 12 * unit + box[0] < picture.width else x - 12 * unit - box[0]
        at_y = min(max(y - box[1] / 2, 0), picture.height - box[1])
        draw.rectangle((at_x, at_y, at_x + box[0], at_y + box[1]), fill="black")
        draw.text((at_x + 5 - left, at_y + 4 - top), label, font=font, fill="white")
    return result


def histogram(values: np.ndarray, limits: tuple[float, float], colours: str, unit: str) -> dict:
    """Histogram of distances, with bars in the colours of the map and lines at near and far."""
    counts, edges = np.histogram(values, bins=BARS)
    middles = (edges[:-1] + edges[1:]) / 2
    near, far = limits
    table = render.colormap_table(colours)
    at = np.clip((middles - near) / max(far - near, 1e-9), 0, 1)
    inside = (middles >= near) & (middles <= far)
    bars = [
        "rgba({},{},{},{})".format(*table[round(float(255 * share))], 1 if kept else 0.25)
        for share, kept in zip(at, inside, strict=True)
    ]
    axis = {"gridcolor": LINE, "zeroline": False}
    return {
        "data": [{
            "type": "bar", "x": _rounded(middles), "y": _rounded(100 * counts / counts.sum()),
            "marker": {"color": bars, "line": {"width": 0}},
            "hovertemplate": f"%{{x:.2f}} {unit}: %{{y:.1f}} % of the picture<extra></extra>",
        }],
        "layout": {
            **FLAT, "height": 220, "margin": {"l": 42, "r": 10, "t": 8, "b": 40}, "bargap": 0.05,
            "font": {"family": "system-ui, sans-serif", "size": 11},
            "xaxis": {**axis, "title": {"text": f"distance ({unit})"}},
            "yaxis": {**axis, "title": {"text": "% of the picture"}, "rangemode": "tozero"},
            "shapes": [
                {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper",
                 "line": {"color": GREY, "width": 1.5, "dash": "dot"}}
                for x in limits
            ],
        },
    }  # fmt: skip


def cloud(points: np.ndarray, colours: np.ndarray, unit: str, unit_metres: float, revision: str) -> dict:
    """3D plot of points (n, 3), x right, y down, z forward, in metres, in their colours (n, 3) uint8.

    unit, unit_metres: name and length of the unit on hover. revision: the user's camera position is kept as long as
    this stays the same.
    """
    # A palette of 256 colours and an index per point: a CSS colour for each point would be three times the size.
    strip = Image.fromarray(colours[None]).quantize(256, dither=Image.Dither.NONE)
    palette = np.array(strip.getpalette()).reshape(-1, 3)
    index = np.asarray(strip)[0]
    last = max(1, len(palette) - 1)
    right, down, ahead = (points / unit_metres).T
    x, y, z = (np.ascontiguousarray(values, dtype=np.float32) for values in (right, ahead, -down))
    hidden = {"visible": False}
    return {
        "data": [{
            "type": "scatter3d", "mode": "markers", "x": _packed(x), "y": _packed(y), "z": _packed(z),
            "marker": {
                "size": 2.2, "color": _packed(index), "cmin": 0, "cmax": last,
                "colorscale": [[i / last, "rgb({},{},{})".format(*rgb)] for i, rgb in enumerate(palette)],
            },
            "hovertemplate": f"%{{y:.2f}} {unit} ahead, %{{x:.2f}} to the right, %{{z:.2f}} up<extra></extra>",
        }],
        "layout": {
            **FLAT, "height": 430, "margin": {"l": 0, "r": 0, "t": 0, "b": 0}, "uirevision": revision,
            "font": {"family": "system-ui, sans-serif", "size": 11},
            "scene": {
                "xaxis": hidden, "yaxis": hidden, "zaxis": hidden, "aspectmode": "data", "dragmode": "orbit",
                "camera": {"eye": {"x": 0.45, "y": -1.5, "z": 0.35}, "up": {"x": 0, "y": 0, "z": 1}},
            },
        },
    }  # fmt: skip


def _packed(values: np.ndarray) -> dict:
    """An array in plotly.js's binary format, which needs no parsing."""
    kind = {"float32": "f4", "uint8": "u1"}[values.dtype.name]
    return {"dtype": kind, "bdata": base64.b64encode(values.tobytes()).decode()}


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]
