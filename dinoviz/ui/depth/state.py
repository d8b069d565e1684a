"""What the Depth tab's controls say, and what follows from it: depth, surfaces, what lies between two limits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
from PIL import Image

from dinoviz.depth import geometry as surfaces
from dinoviz.depth import middlebury as stereo
from dinoviz.depth.camera import Camera
from dinoviz.depth.probe import Depth
from dinoviz.errors import DinovizError, check_share
from dinoviz.grid import PatchGrid
from dinoviz.render import COLORMAPS
from dinoviz.ui.depth.probes import Reading
from dinoviz.ui.workbench import Look

DEPTH, NORMALS, SPREAD, CUTOUT = "depth", "surface normals", "uncertainty", "cut-out"
SHOWN = (DEPTH, NORMALS, SPREAD, CUTOUT)
MOST_POINTS = 30_000  # in the cloud: turning it stays smooth, and a page loads it in well below a megabyte


@dataclass(frozen=True)
class Choice:
    """What the controls say, in their order.

    by_itself: near and far, in the unit that is shown, are the picture's own. focal: in pixels of the picture, 0 for
    what the file says or else an assumption. anyway: metres also for a picture unlike the probe's training data. above:
    read at the resolution that is chosen above all tabs, rather than as the probe was trained.
    """

    shown: str = DEPTH
    colours: str = "viridis"
    opacity: float = 1.0
    raw: bool = False
    sharp: bool = False
    by_itself: bool = True
    near: float = 0.0
    far: float = 10.0
    focal: float = 0.0
    anyway: bool = False
    above: bool = False

    def __post_init__(self):
        for name, known in (("shown", SHOWN), ("colours", COLORMAPS)):
            if getattr(self, name) not in known:
                raise DinovizError(f"There is no {name} {getattr(self, name)!r}; there are {', '.join(known)}.")
        check_share("opacity", self.opacity)
        if not self.by_itself and not 0 <= self.near < self.far:
            raise DinovizError(f"Near lies before far: {self.near:g} is not less than {self.far:g}.")
        if self.focal < 0:
            raise DinovizError(f"The focal length is in pixels of the picture, 0 for unknown, not {self.focal:g}.")

    @property
    def heavy(self) -> Choice:
        """The same, whatever is shown in whichever colours: what decides points, limits and notes."""
        return replace(self, shown=DEPTH, colours="viridis", opacity=1.0)


@dataclass(frozen=True)
class Unit:
    """In what depth is told: metres, or multiples of the picture's median where metres would be false."""

    name: str
    metres: float  # that one of it has

    @property
    def relative(self) -> bool:
        return self.name != "m"


@dataclass(frozen=True, eq=False)
class Scene:
    """A look as a probe reads it and as the controls want it seen.

    exif_focal: in pixels of the picture, if its file tells. measured: (H, W) metres where they were measured (NaN where
    not), see `stereo`. kept: what `metres` gave for the copy on the page, where it is at hand.
    """

    look: Look
    reading: Reading
    choice: Choice
    exif_focal: float | None = None
    measured: np.ndarray | None = None
    kept: np.ndarray | None = None

    def with_metres(self, kept: np.ndarray) -> Scene:
        """The same, with what `metres` gave for the copy on the page."""
        return replace(self, kept=kept)

    @property
    def depth(self) -> Depth:
        return self.reading.depth

    @property
    def unfamiliar(self) -> bool:
        """Whether the picture is unlike what the probe was trained on."""
        return (self.depth.unfamiliarity or 0) > 1

    @cached_property
    def unit(self) -> Unit:
        if self.unfamiliar and not self.choice.anyway:
            return Unit("x the median distance", float(np.median(self.depth.metres)))
        return Unit("m", 1.0)

    @cached_property
    def limits(self) -> tuple[float, float]:
        """Near and far in the unit: chosen, or the nearest and the farthest of the picture."""
        if not self.choice.by_itself:
            return self.choice.near, self.choice.far
        values = self.depth.metres / self.unit.metres
        return float(values.min()), float(values.max())

    @cached_property
    def farthest(self) -> float:
        """What the controls for near and far should reach."""
        return float(np.ceil(max(self.depth.metres.max(), self.reading.range[1]) / self.unit.metres))

    @cached_property
    def camera(self) -> Camera:
        """Of the picture at its own size."""
        if self.measured is not None and not self.choice.focal:
            return stereo.CAMERA
        return Camera.of(self.look.picture.size, self.choice.focal or None, self.exif_focal)

    def grid(self, picture: Image.Image) -> PatchGrid:
        """The look's grid over a copy of the picture."""
        return self.look.features.grid.at(picture.size)

    def metres(self, picture: Image.Image) -> np.ndarray:
        """(H, W) float32 at the size of a copy of the picture: bilinear, of flat patches, or with its edges."""
        if picture is self.look.picture.shown and self.kept is not None:
            return self.kept
        if self.choice.raw:
            return self.grid(picture).resize(self.depth.patches, "image", "nearest")
        if self.choice.sharp:
            return surfaces.sharpened(self.depth.metres, picture, self.grid(picture))
        return self.grid(picture).resize(self.depth.metres, "image")

    def spread(self, picture: Image.Image) -> np.ndarray:
        """(H, W) float32 in the unit. Raises DinovizError for what has no bins."""
        if self.depth.spread is None:
            raise DinovizError("This one tells no uncertainty: that takes a head that weighs depths.")
        if self.choice.raw:
            height, width = self.depth.patches.shape
            flat = cv2.resize(self.depth.spread, (width, height), interpolation=cv2.INTER_AREA)
            return self.grid(picture).resize(flat, "image", "nearest") / self.unit.metres
        return self.grid(picture).resize(self.depth.spread, "image") / self.unit.metres

    def normals(self, picture: Image.Image) -> np.ndarray:
        """(H, W, 3) of length 1, or 0 where nobody knows, towards the camera: x right, y down, z forward."""
        # Of the map as it is told: between its points there are only the interpolation's own planes.
        surface = self.metres(picture) if self.choice.sharp and not self.choice.raw else self._told
        camera = self.camera.scaled(self.look.picture.size, surface.shape[::-1])
        half_patch = round(surface.shape[1] / self.depth.patches.shape[1] / 2)
        found = np.nan_to_num(surfaces.normals(surfaces.points(surface, camera), max(1, half_patch)))
        drawn = self.grid(picture).resize(found, "image", "nearest" if self.choice.raw else "bilinear")
        return drawn / np.maximum(np.linalg.norm(drawn, axis=2, keepdims=True), 1e-6)

    @property
    def _told(self) -> np.ndarray:
        return self.depth.patches if self.choice.raw else self.depth.metres

    def between_limits(self, metres: np.ndarray) -> np.ndarray:
        """Which of the depths lie between near and far."""
        near, far = self.limits
        slack = 0 if not self.choice.by_itself else 1e-4 * far  # interpolation may round beyond the farthest
        values = metres / self.unit.metres
        return (values >= near - slack) & (values <= far + slack)

    def cloud(self, picture: Image.Image, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
        """(n, 3) float32 points in metres and their colours (n, 3) uint8, between the limits, without flying ones."""
        metres = self.metres(picture)
        camera = self.camera.scaled(self.look.picture.size, picture.size)
        points = surfaces.points(metres, camera)
        kept = self.between_limits(metres) & ~surfaces.jumps(points)
        kept = surfaces.thin(kept, most)
        return points[kept], np.asarray(picture)[kept]

    @cached_property
    def shown_metres(self) -> np.ndarray:
        """`metres` of the copy on the page."""
        return self.metres(self.look.picture.shown)

    def at(self, points: Sequence[Sequence[float]]) -> list[float]:
        """Depth in metres at points of the uploaded picture, x first. Raises DinovizError outside of it."""
        return [float(surfaces.at(self.shown_metres, self._on_page(point))) for point in points]

    def between(self, a: Sequence[float], b: Sequence[float]) -> float:
        """The straight distance in metres of what is seen at two points of the picture. Raises as `at` does."""
        shown = self.look.picture.shown
        places = surfaces.points(self.shown_metres, self.camera.scaled(self.look.picture.size, shown.size))
        return surfaces.between(places, self._on_page(a), self._on_page(b))

    def _on_page(self, point: Sequence[float]) -> np.ndarray:
        picture = self.look.picture
        return np.multiply(point, picture.shown.size) / picture.size


def parse_points(text: str) -> list[list[float]]:
    """At most two points x, y, as the page keeps them in JSON. Raises DinovizError."""
    try:
        points = [[float(x), float(y)] for x, y in json.loads(text or "[]")]
    except (ValueError, TypeError, OverflowError, RecursionError):
        points = [[]] * 3
    if len(points) > 2 or not np.isfinite(points).all():
        raise DinovizError("Points are at most two [x, y] in pixels of the picture.")
    return points
