"""Prompts on a picture: an ordered list of clicks and brush strokes, in pixels of the uploaded picture.

Strokes are vectors and are rasterised here, so a drawn mask is exact at any size of the picture and of the window.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from PIL import Image

from dinoviz.errors import DinovizError
from dinoviz.features import Features
from dinoviz.segment.segmentation import THRESHOLD, Segmentation, from_points

MAX_TEXT = 8_000_000  # characters; hours of drawing have less
MAX_PICTURES = 1000
MAX_ACTIONS = 1000
MAX_STROKE_POINTS = 50_000  # of all strokes on one picture: ten minutes of continuous drawing
MAX_LEVELS = 8  # of nested JSON; marks by picture have six
# Pixels that the strokes of one picture may fill, counted for each point: a few tenths of a second. A brush of a tenth
# of a picture of 50 million pixels reaches this after 500 points, one of the app's default size after 20,000.
MAX_FILLED = 1_000_000_000
FAR = 4  # times the long side: how far from the origin a stroke may leave the picture
SHIFT = 6  # binary digits after the point in OpenCV's coordinates
UNTOUCHED = 2  # value of pixels without a stroke, beside 0 and 1


@dataclass(frozen=True)
class Point:
    """A click; label 1: on the object, 0: on the background."""

    x: float
    y: float
    label: int


@dataclass(frozen=True, eq=False)
class Stroke:
    """A line (n, 2), x first, drawn with a round brush or eraser."""

    points: np.ndarray
    radius: float
    erase: bool


@dataclass(frozen=True, eq=False)
class Marks:
    """All marks on one picture, in the order of drawing."""

    actions: tuple[Point | Stroke, ...] = ()

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def clicks(self) -> list[Point]:
        """The clicks, in order."""
        return [action for action in self.actions if isinstance(action, Point)]

    @property
    def strokes(self) -> list[Stroke]:
        """The strokes, in order."""
        return [action for action in self.actions if isinstance(action, Stroke)]

    @property
    def points(self) -> np.ndarray:
        """Positions of the clicks (P, 2), x first."""
        return np.array([(click.x, click.y) for click in self.clicks], dtype=float).reshape(-1, 2)

    @property
    def labels(self) -> np.ndarray:
        """Labels of the clicks (P,), 1 or 0."""
        return np.array([click.label for click in self.clicks], dtype=int)

    def scaled(self, source: tuple[int, int], target: tuple[int, int]) -> Marks:
        """Scale the marks from one size (width, height) of the picture to another."""
        scale = np.divide(target, source)

        def moved(action: Point | Stroke) -> Point | Stroke:
            if isinstance(action, Point):
                return Point(action.x * scale[0], action.y * scale[1], action.label)
            return Stroke(action.points * scale, action.radius * float(np.sqrt(scale.prod())), action.erase)

        return Marks(tuple(map(moved, self.actions)))

    def paint(self, mask: np.ndarray) -> np.ndarray:
        """Draw the strokes over a mask (H, W) bool: the brush sets True, the eraser False.

        Strokes that would fill more than MAX_FILLED pixels are drawn on a smaller copy, which is then enlarged.
        """
        h, w = mask.shape
        filled = sum(_filled(stroke, (w, h)) for stroke in self.strokes)
        if filled <= MAX_FILLED:
            canvas = mask.astype(np.uint8)
            self._draw_on(canvas)
            return canvas.astype(bool)
        scale = math.sqrt(MAX_FILLED / filled)
        small = max(1, round(w * scale)), max(1, round(h * scale))
        canvas = np.full(small[::-1], UNTOUCHED, np.uint8)
        self.scaled((w, h), small)._draw_on(canvas)
        drawn = cv2.resize(canvas, (w, h), interpolation=cv2.INTER_NEAREST)
        return np.where(drawn == UNTOUCHED, mask, drawn.astype(bool))

    def _draw_on(self, canvas: np.ndarray) -> None:
        for stroke in self.strokes:
            _draw(canvas, stroke.points, stroke.radius, int(not stroke.erase))


def mask_of(
    marks: Marks,
    features: Features,
    picture: Image.Image,
    *,
    all_instances: bool = False,
    threshold: float | None = None,
    refine: bool = True,
    smallest: float = 0.001,
) -> Segmentation | None:
    """The mask of what is marked: `from_points` of the clicks, then the strokes over it, which stay as drawn.

    Args:
        marks: in pixels of the uploaded picture.
        features: of the uploaded picture.
        picture: the upload or a copy of another size; the mask has its size.
        all_instances: as `from_points` takes it, and so are the next three.

    Returns:
        None without a positive click or a brush stroke.
    """
    marks = marks.scaled(features.grid.image_size, picture.size)
    features = replace(features, grid=features.grid.at(picture.size))
    if marks.labels.any():
        found = from_points(
            features, marks.points, marks.labels, picture, all_instances=all_instances, threshold=threshold,
            refine=refine, smallest=smallest,
        )  # fmt: skip
        return replace(found, mask=marks.paint(found.mask))
    if all(stroke.erase for stroke in marks.strokes):
        return None
    mask = marks.paint(np.zeros(picture.size[::-1], dtype=bool))
    return Segmentation(mask.astype(np.float32), mask, features.grid.to_patches(mask), THRESHOLD, True, 1.0)


def parse(text: str | Sequence | None, size: tuple[int, int]) -> Marks:
    """Parse marks from JSON, or from the parsed JSON.

    Args:
        text: a list of {"kind": "point", "x": .., "y": .., "label": 1 or 0} and
            {"kind": "stroke", "points": [[x, y], ..], "radius": .., "erase": true or false}.
        size: (width, height) of the picture.

    Raises:
        DinovizError: for anything else, clicks outside the picture, and more marks than the limits above.
    """
    actions = _json(text) if isinstance(text, str) else text
    if actions is None:
        return Marks()
    if not isinstance(actions, Sequence) or isinstance(actions, str):
        raise DinovizError("Marks must be a list of points and strokes.")
    if len(actions) > MAX_ACTIONS:
        raise DinovizError(f"There are {len(actions):,} marks on one picture; at most {MAX_ACTIONS:,} are accepted.")
    marks = Marks(tuple(_action(action, size) for action in actions))
    drawn = sum(len(stroke.points) for stroke in marks.strokes)
    if drawn > MAX_STROKE_POINTS:
        raise DinovizError(f"The strokes have {drawn:,} points; at most {MAX_STROKE_POINTS:,} are accepted.")
    return marks


def listed(text: str | None) -> list:
    """Decode the JSON of a list of marks, without checking the marks. Raises DinovizError."""
    found = _json(text or "[]")
    if not isinstance(found, list):
        raise DinovizError("Marks must be a list of points and strokes.")
    return found


def by_picture(text: str | None) -> dict[str, list]:
    """Decode the JSON of lists of marks by picture, without checking the marks. Raises DinovizError."""
    found = _json(text or "{}")
    if not isinstance(found, dict) or not all(isinstance(value, list) for value in found.values()):
        raise DinovizError("Marks must be an object with a list for each picture.")
    if len(found) > MAX_PICTURES:
        raise DinovizError(f"There are marks on {len(found):,} pictures; at most {MAX_PICTURES:,} are accepted.")
    return found


def _json(text: object) -> object:
    if not isinstance(text, str):
        raise DinovizError(f"Marks must be JSON text, not {_short(text)}.")
    if len(text) > MAX_TEXT:
        raise DinovizError(f"The marks are {len(text):,} characters long; at most {MAX_TEXT:,} are accepted.")
    try:
        found = json.loads(text or "[]")
    except (ValueError, RecursionError):
        raise DinovizError("The marks are not valid JSON.") from None
    level = [found]
    for _ in range(MAX_LEVELS):
        level = [inner for outer in level if isinstance(outer, list | dict) for inner in _inside(outer)]
    if level:
        raise DinovizError(f"The marks are nested too deep: at most {MAX_LEVELS} levels are accepted.")
    return found


def _inside(outer: list | dict) -> Iterable:
    return outer.values() if isinstance(outer, dict) else outer


def _action(action: object, size: tuple[int, int]) -> Point | Stroke:
    if not isinstance(action, dict):
        raise DinovizError(f"A mark must be a point or a stroke, not {_short(action)}.")
    kind = action.get("kind")
    if kind == "point":
        x, y = _number(action, "x"), _number(action, "y")
        if not (0 <= x <= size[0] and 0 <= y <= size[1]):
            raise DinovizError(f"The point {x:g}, {y:g} is outside the picture of {size[0]} x {size[1]}.")
        if isinstance(action.get("label"), bool) or action.get("label") not in (0, 1):
            raise DinovizError(f"The label of a point must be 1 or 0, not {_short(action.get('label'))}.")
        return Point(x, y, int(action["label"]))
    if kind == "stroke":
        radius = _number(action, "radius")
        if not 0 < radius <= max(size):
            raise DinovizError(f"The radius of a stroke must be between 0 and {max(size)} pixels, not {radius:g}.")
        erase = action.get("erase", False)
        if not isinstance(erase, bool):
            raise DinovizError(f"erase must be true or false, not {_short(erase)}.")
        return Stroke(_line(action.get("points"), FAR * max(size)), radius, erase)
    raise DinovizError(f"A mark must be a point or a stroke, not {_short(kind)}.")


def _number(action: dict, name: str) -> float:
    value = action.get(name)
    # Not with isfinite, which raises for integers above the largest float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise DinovizError(f"The {name} of a {action['kind']} must be a number of pixels, not {_short(value)}.")
    return float(value)


def _line(points: object, far: float) -> np.ndarray:
    if isinstance(points, list) and len(points) > MAX_STROKE_POINTS:
        raise DinovizError(f"A stroke has {len(points):,} points; at most {MAX_STROKE_POINTS:,} are accepted.")
    # NumPy would also convert strings, and true to 1.
    numbers = isinstance(points, list) and all(
        isinstance(point, list) and len(point) == 2 and {*map(type, point)} <= {int, float} for point in points
    )
    try:
        line = np.array(points, dtype=float) if numbers else np.empty(0)
    except OverflowError:  # an integer above the largest float
        line = np.empty(0)
    if not len(line) or not (np.abs(line) <= far).all():
        raise DinovizError("The points of a stroke must be a list of x, y in pixels.")
    return line


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _filled(stroke: Stroke, size: tuple[int, int]) -> float:
    """Number of pixel writes of `_draw` for a stroke on a picture of this size (width, height)."""
    disc = math.prod(min(2 * stroke.radius + 1, side) for side in size)
    lengths = np.hypot(*np.diff(stroke.points, axis=0).T)
    bars = np.minimum((2 * stroke.radius + 1) * lengths, math.prod(size))
    return disc * len(stroke.points) + float(bars.sum())


def _draw(canvas: np.ndarray, line: np.ndarray, radius: float, value: int) -> None:
    """Set the pixels whose centres lie within `radius` of the line, with an error below one pixel."""
    fixed = np.rint((line - 0.5) * 2**SHIFT).astype(np.int32)  # in OpenCV the centre of pixel 0 is at 0
    radius = max(radius - 0.5, 0)  # OpenCV adds a border line of one pixel
    for centre in np.unique(fixed, axis=0).tolist():
        cv2.circle(canvas, centre, round(radius * 2**SHIFT), value, cv2.FILLED, cv2.LINE_8, SHIFT)
    steps = np.diff(line, axis=0)
    lengths = np.hypot(*steps.T)
    start, step, length = line[:-1][lengths > 0], steps[lengths > 0], lengths[lengths > 0, None]
    side = np.stack([-step[:, 1], step[:, 0]], axis=1) / length * radius
    corners = np.stack([start + side, start + step + side, start + step - side, start - side], axis=1) - 0.5
    for bar in np.rint(corners * 2**SHIFT).astype(np.int32):
        cv2.fillConvexPoly(canvas, bar, value, cv2.LINE_8, SHIFT)
