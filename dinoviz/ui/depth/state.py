"""What the Depth tab computes: depth, surface normals, uncertainty, points in space, distances."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import cv2
import numpy as np
from PIL import Image

from dinoviz.depth import geometry, middlebury
from dinoviz.depth.camera import Camera
from dinoviz.depth.probe import Depth
from dinoviz.errors import DinovizError, check_share
from dinoviz.grid import PatchGrid
from dinoviz.render import COLORMAPS
from dinoviz.ui.depth.probes import Prediction
from dinoviz.ui.workbench import Look

DEPTH, NORMALS, SPREAD, CUTOUT = "depth", "surface normals", "uncertainty", "cut-out"
SHOWN = (DEPTH, NORMALS, SPREAD, CUTOUT)
STEP = 0.05  # of the controls for near and far, in the unit
MOST_POINTS = 30_000  # in the cloud: rotating it stays smooth, and a page loads it in well below a megabyte


@dataclass(frozen=True)
class ViewSettings:
    """The values of the tab's controls, in the order of the API's parameters. Raises DinovizError.

    by_itself: near and far (in the unit that is shown) are the picture's own. focal: in pixels of the picture, 0 for
    the file's EXIF data or else an assumption. anyway: metres also for a picture unlike the probe's training data.
    above: read the features at the bar's resolution, rather than at the one that the probe was trained at.
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
                raise DinovizError(f"{name} {getattr(self, name)!r}: choose {', '.join(known)}.")
        check_share("opacity", self.opacity)
        if not self.by_itself and not 0 <= self.near < self.far:
            raise DinovizError(f"near {self.near:g}, far {self.far:g}: near must be at least 0 and less than far.")
        if self.focal < 0:
            raise DinovizError(f"focal length {self.focal:g}: give pixels of the picture, or 0 for unknown.")

    @property
    def scene_settings(self) -> ViewSettings:
        """The settings that point cloud, limits and notes depend on; the others have their defaults."""
        return replace(self, shown=DEPTH, colours="viridis", opacity=1.0)


def settings_of(values: Sequence, limits: tuple[float, float] | None = None) -> ViewSettings:
    """The settings from the values of the controls. Raises DinovizError.

    limits: the values that near and far were given by the app. They count once the user has moved one of them.
    """
    settings = named(values)
    settings["focal"] = settings["focal"] or 0  # None from an emptied field
    near, far = settings["near"], settings["far"]
    if limits not in (None, (near, far)):
        settings["by_itself"] = False
        if near > far - STEP:  # push the other one on
            near, far = (near, near + STEP) if near != limits[0] else (max(far - STEP, 0), max(far, STEP))
            settings |= {"near": near, "far": far}
    return ViewSettings(**settings)


def named(values: Sequence) -> dict:
    """The values of the controls by their names in `ViewSettings`, unchecked."""
    return dict(zip((each.name for each in fields(ViewSettings)), values, strict=True))


@dataclass(frozen=True)
class Unit:
    """The unit of the depth shown: metres, or the picture's median depth where metres would be wrong."""

    name: str
    metres: float  # of one unit

    @property
    def relative(self) -> bool:
        return self.name != "m"


@dataclass(frozen=True, eq=False)
class Scene:
    """A look with its predicted depth and the settings of the tab.

    exif_focal: in pixels of the picture, from its EXIF data. ground_truth: (H, W) metres, NaN where unknown, see
    `middlebury`. cached_metres: the result of `metres` for the copy on the page, where it is at hand.
    """

    look: Look
    prediction: Prediction
    settings: ViewSettings
    exif_focal: float | None = None
    ground_truth: np.ndarray | None = None
    cached_metres: np.ndarray | None = None

    def with_metres(self, metres: np.ndarray) -> Scene:
        """The same scene with the result of `metres` for the copy on the page."""
        return replace(self, cached_metres=metres)

    @property
    def depth(self) -> Depth:
        return self.prediction.depth

    @property
    def unfamiliar(self) -> bool:
        """Whether the picture is unlike the probe's training data."""
        return (self.depth.unfamiliarity or 0) > 1

    @cached_property
    def unit(self) -> Unit:
        if self.unfamiliar and not self.settings.anyway:
            return Unit("x the median depth", float(np.median(self.depth.metres)))
        return Unit("m", 1.0)

    @cached_property
    def limits(self) -> tuple[float, float]:
        """Near and far in the unit: as set, or the least and the largest depth of the picture."""
        if not self.settings.by_itself:
            return self.settings.near, self.settings.far
        values = self.depth.metres / self.unit.metres
        return float(values.min()), float(values.max())

    @cached_property
    def farthest(self) -> float:
        """The upper end of the controls for near and far, in the unit."""
        return float(np.ceil(max(self.depth.metres.max(), self.prediction.range[1]) / self.unit.metres))

    @cached_property
    def camera(self) -> Camera:
        """Of the picture at its own size."""
        if self.ground_truth is not None and not self.settings.focal:
            return middlebury.CAMERA
        return Camera.of(self.look.picture.size, self.settings.focal or None, self.exif_focal)

    def grid(self, picture: Image.Image) -> PatchGrid:
        """The look's grid over a copy of the picture."""
        return self.look.features.grid.at(picture.size)

    def metres(self, picture: Image.Image) -> np.ndarray:
        """(H, W) float32 at the size of a copy of the picture: bilinear, flat patches, or aligned to its edges."""
        if picture is self.look.picture.shown and self.cached_metres is not None:
            return self.cached_metres
        if self.settings.raw:
            return self.grid(picture).resize(self.depth.patches, "image", "nearest")
        if self.settings.sharp:
            return geometry.sharpened(self.depth.metres, picture, self.grid(picture))
        return self.grid(picture).resize(self.depth.metres, "image")

    def spread(self, picture: Image.Image) -> np.ndarray:
        """(H, W) float32 standard deviation in the unit. Raises DinovizError for a head without depth bins."""
        if self.depth.spread is None:
            raise DinovizError("This depth head gives no uncertainty: only heads with depth bins do.")
        if self.settings.raw:
            height, width = self.depth.patches.shape
            flat = cv2.resize(self.depth.spread, (width, height), interpolation=cv2.INTER_AREA)
            return self.grid(picture).resize(flat, "image", "nearest") / self.unit.metres
        return self.grid(picture).resize(self.depth.spread, "image") / self.unit.metres

    def normals(self, picture: Image.Image) -> np.ndarray:
        """(H, W, 3) unit vectors towards the camera (x right, y down, z forward), or 0 where undefined."""
        # On the map as predicted: between its points there are only the planes of the interpolation.
        surface = self.metres(picture) if self.settings.sharp and not self.settings.raw else self._predicted
        camera = self.camera.scaled(self.look.picture.size, surface.shape[::-1])
        half_patch = round(surface.shape[1] / self.depth.patches.shape[1] / 2)
        found = np.nan_to_num(geometry.normals(geometry.points(surface, camera), max(1, half_patch)))
        drawn = self.grid(picture).resize(found, "image", "nearest" if self.settings.raw else "bilinear")
        return drawn / np.maximum(np.linalg.norm(drawn, axis=2, keepdims=True), 1e-6)

    @property
    def _predicted(self) -> np.ndarray:
        return self.depth.patches if self.settings.raw else self.depth.metres

    def between_limits(self, metres: np.ndarray) -> np.ndarray:
        """Which of the depths lie between near and far."""
        near, far = self.limits
        slack = 0 if not self.settings.by_itself else 1e-4 * far  # interpolation may round beyond the farthest
        values = metres / self.unit.metres
        return (values >= near - slack) & (values <= far + slack)

    def cloud(self, picture: Image.Image, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
        """(n, 3) float32 points in metres and (n, 3) uint8 colours: between the limits, without depth jumps."""
        metres = self.metres(picture)
        camera = self.camera.scaled(self.look.picture.size, picture.size)
        points = geometry.points(metres, camera)
        kept = self.between_limits(metres) & ~geometry.jumps(points)
        kept = geometry.thin(kept, most)
        return points[kept], np.asarray(picture)[kept]

    @cached_property
    def shown_metres(self) -> np.ndarray:
        """`metres` of the copy on the page."""
        return self.metres(self.look.picture.shown)

    def at(self, points: Sequence[Sequence[float]]) -> list[float]:
        """Depth in metres at points of the uploaded picture, x first. Raises DinovizError outside the picture."""
        return [float(geometry.at(self.shown_metres, self._on_page(point))) for point in points]

    def between(self, a: Sequence[float], b: Sequence[float]) -> float:
        """The distance in metres between the surface points at two points of the picture. Raises as `at` does."""
        shown = self.look.picture.shown
        points = geometry.points(self.shown_metres, self.camera.scaled(self.look.picture.size, shown.size))
        return geometry.between(points, self._on_page(a), self._on_page(b))

    def _on_page(self, point: Sequence[float]) -> np.ndarray:
        picture = self.look.picture
        return np.multiply(point, picture.shown.size) / picture.size


def parse_points(text: str) -> list[list[float]]:
    """At most two points x, y from JSON. Raises DinovizError."""
    try:
        points = [[float(x), float(y)] for x, y in json.loads(text or "[]")]
    except (ValueError, TypeError, OverflowError, RecursionError):
        points = [[]] * 3
    if len(points) > 2 or not np.isfinite(points).all():
        raise DinovizError("points: give a JSON list of at most two [x, y] in pixels of the picture.")
    return points
