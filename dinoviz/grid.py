"""PatchGrid: coordinates of the uploaded picture, of the network's input, and of the patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

from dinoviz.errors import DinovizError

MIN_RESOLUTION, MAX_RESOLUTION = 32, 1792
# A square at 1792 px with 14 px patches: the limit for attention, whose cost is quadratic in the number of patches.
MAX_PATCHES = 128 * 128

Frame = Literal["image", "model", "patch"]
Patch = Sequence[int] | np.ndarray  # (row, column)


@dataclass(frozen=True)
class PatchGrid:
    """The three coordinate frames of a picture, and the conversions between them.

    image_size: (W, H), the uploaded picture, in pixels.
    model_size: (W, H), the input of the network, in pixels; multiples of patch_size.
    patch_size: pixels of the model frame.

    Coordinates are continuous, x first, with 0 at the left (top) edge of the picture and the frame's width (height)
    at the right (bottom) edge: the pixel in column i covers [i, i + 1), its centre is i + 0.5. The "patch" frame counts
    patches the same way, so the patch in column j covers [j, j + 1). The frames differ by one scale for x and one
    for y.
    """

    image_size: tuple[int, int]
    model_size: tuple[int, int]
    patch_size: int

    def __post_init__(self):
        if min(*self.image_size, *self.model_size, self.patch_size) < 1:
            raise DinovizError(f"Sizes must be positive, got {self}.")
        if any(side % self.patch_size for side in self.model_size):
            raise DinovizError(
                f"The model size {self.model_size} is not a multiple of the patch size {self.patch_size}."
            )

    @classmethod
    def fit(
        cls, image_size: tuple[int, int], resolution: int, patch_size: int, max_patches: int = MAX_PATCHES
    ) -> PatchGrid:
        """The grid of an image whose short side becomes `resolution` model pixels, aspect ratio kept.

        Both sides are rounded to the nearest multiple of patch_size; nothing is cropped.
        Raises DinovizError if the resolution is outside 32 to 1792 or the grid would exceed max_patches.
        """
        if not MIN_RESOLUTION <= resolution <= MAX_RESOLUTION:
            raise DinovizError(
                f"The resolution (short side in model pixels) must be {MIN_RESOLUTION} to {MAX_RESOLUTION}, "
                f"not {resolution}."
            )
        grid = cls._fit(image_size, resolution, patch_size)
        if grid.patches > max_patches:
            largest = cls.largest_resolution(image_size, patch_size, max_patches)
            hint = f"choose {largest} px or less" if largest else "the picture is too long and narrow"
            raise DinovizError(
                f"{image_size[0]} x {image_size[1]} pixels at {resolution} px would be {grid.shape[0]} x "
                f"{grid.shape[1]} patches; at most {max_patches:,} are supported: {hint}."
            )
        return grid

    @classmethod
    def _fit(cls, image_size: tuple[int, int], resolution: int, patch_size: int) -> PatchGrid:
        scale = resolution / min(image_size)
        width, height = (patch_size * max(1, math.floor(side * scale / patch_size + 0.5)) for side in image_size)
        return cls((image_size[0], image_size[1]), (width, height), patch_size)

    @classmethod
    def largest_resolution(
        cls, image_size: tuple[int, int], patch_size: int, max_patches: int = MAX_PATCHES
    ) -> int | None:
        """The largest multiple of patch_size that `fit` accepts as resolution, or None."""
        for resolution in range(MAX_RESOLUTION // patch_size * patch_size, MIN_RESOLUTION - 1, -patch_size):
            if cls._fit(image_size, resolution, patch_size).patches <= max_patches:
                return resolution
        return None

    def at(self, size: tuple[int, int]) -> PatchGrid:
        """The same grid over a copy of the picture that has another size (W, H)."""
        return replace(self, image_size=size)

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w): rows and columns of patches."""
        return self.model_size[1] // self.patch_size, self.model_size[0] // self.patch_size

    @property
    def patches(self) -> int:
        """h * w."""
        return self.shape[0] * self.shape[1]

    def size(self, frame: Frame) -> tuple[float, float]:
        """(width, height) of a frame in its own unit."""
        if frame == "image":
            return self.image_size
        if frame == "model":
            return self.model_size
        if frame == "patch":
            return self.shape[::-1]
        raise DinovizError(f"A frame is 'image', 'model' or 'patch', not {frame!r}.")

    def points(self, xy: np.ndarray | Sequence, source: Frame, target: Frame) -> np.ndarray:
        """Convert points (..., 2), x first, from one frame to another; float64."""
        xy = np.asarray(xy, dtype=np.float64)
        if xy.shape[-1:] != (2,):
            raise DinovizError(f"Points are (..., 2), x first, not {xy.shape}.")
        # Multiplied first, so that points on a border stay there: 51.5 * 10 / 515 is 1, 51.5 * (10 / 515) is less.
        return xy * self.size(target) / self.size(source)

    def boxes(self, xyxy: np.ndarray | Sequence, source: Frame, target: Frame) -> np.ndarray:
        """Convert boxes (..., 4), left, top, right, bottom, from one frame to another; float64."""
        xyxy = np.asarray(xyxy, dtype=np.float64)
        if xyxy.shape[-1:] != (4,):
            raise DinovizError(f"Boxes are (..., 4), left, top, right, bottom, not {xyxy.shape}.")
        return self.points(xyxy.reshape(*xyxy.shape[:-1], 2, 2), source, target).reshape(xyxy.shape)

    def patch_at(self, xy: np.ndarray | Sequence, source: Frame = "image") -> np.ndarray:
        """The patches (..., 2), row first, that contain the points (..., 2), x first.

        The far edges belong to the last patch. Raises DinovizError for a point outside the picture.
        """
        xy = np.asarray(xy, dtype=np.float64)
        width, height = self.size(source)
        if not np.isfinite(xy).all() or (xy < 0).any() or (xy > (width, height)).any():
            raise DinovizError(f"The point {xy.tolist()} is outside the picture of {width} x {height}.")
        columns_rows = np.floor(self.points(xy, source, "patch")).astype(int)
        return np.minimum(columns_rows, np.subtract(self.shape[::-1], 1))[..., ::-1]

    def patch_box(self, yx: Patch, target: Frame = "image") -> np.ndarray:
        """The box (4,) of the patch in row y and column x in a frame."""
        y, x = yx
        return self.boxes((x, y, x + 1, y + 1), "patch", target)

    def resize(
        self, values: np.ndarray, target: Frame, mode: Literal["nearest", "bilinear"] = "bilinear"
    ) -> np.ndarray:
        """Resize a map (a, b) or (a, b, C) of any frame to the size of the target frame.

        "nearest" keeps values and dtype (the raw patch grid); "bilinear" interpolates between the centres of the cells
        and returns float32. To average a map over larger cells, see `to_patches`.
        """
        values = np.asarray(values)
        width, height = map(int, self.size(target))
        if mode == "nearest":
            # The cell that contains the centre of the pixel, in integers, since centres may lie on borders.
            rows = (2 * np.arange(height) + 1) * values.shape[0] // (2 * height)
            columns = (2 * np.arange(width) + 1) * values.shape[1] // (2 * width)
            return values[rows[:, None], columns]
        if mode != "bilinear":
            raise DinovizError(f"A map is resized by 'nearest' or 'bilinear', not {mode!r}.")
        channels = values.astype(np.float32).reshape(*values.shape[:2], -1)
        # OpenCV accepts at most 128 channels, and drops the axis of a single one.
        drawn = [
            cv2.resize(channels[..., i : i + 64], (width, height), interpolation=cv2.INTER_LINEAR).reshape(
                height, width, -1
            )
            for i in range(0, channels.shape[2], 64)
        ]
        return np.concatenate(drawn, axis=2).reshape(height, width, *values.shape[2:])

    def to_patches(self, mask: np.ndarray) -> np.ndarray:
        """Average a mask or map (H, W) of the image or model frame over each patch -> (h, w) float32.

        For a mask of zeros and ones this is the share of the patch that it covers. Raises DinovizError for other sizes.
        """
        mask = np.asarray(mask)
        if mask.shape not in (self.image_size[::-1], self.model_size[::-1]):
            raise DinovizError(
                f"The mask has {mask.shape[::-1]} pixels, the picture {self.image_size}: they must be the same."
            )
        h, w = self.shape
        return _cell_means(_cell_means(mask.astype(np.float64), h).T, w).T.astype(np.float32)


def _cell_means(values: np.ndarray, cells: int) -> np.ndarray:
    """Mean of (n, m) over `cells` equal intervals of the first axis, with fractions of rows -> (cells, m)."""
    n = len(values)
    integral = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    edges = np.linspace(0, n, cells + 1)
    below = np.minimum(edges.astype(int), n - 1)
    at_edges = integral[below] + (edges - below)[:, None] * values[below]
    return np.diff(at_edges, axis=0) / (n / cells)
