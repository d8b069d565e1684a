"""Pictures with their depth: a folder with rgb/ID.jpg and depth/ID.png, 16 bits, in millimetres, 0 where unknown."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dinoviz.errors import DinovizError
from dinoviz.images import SUFFIXES, open_image

# Rows and columns of a 480 x 640 picture of NYU Depth v2 that are evaluated (Eigen et al. 2014).
EIGEN_ROWS, EIGEN_COLUMNS = (45 / 480, 471 / 480), (41 / 640, 601 / 640)


class DepthDataError(DinovizError):
    """A folder that is no RGB-D folder, or a file in it that cannot be used."""


@dataclass(frozen=True)
class Pair:
    """A picture and its depth, by where they are."""

    image: Path
    depth: Path

    def open(self) -> tuple[Image.Image, np.ndarray]:
        """The picture, mode RGB, and its depth (H, W) float32 in metres, 0 where unknown.

        Raises ImageError for the picture, DepthDataError for the depth.
        """
        picture = open_image(self.image)
        try:
            with Image.open(self.depth, formats=["PNG"]) as file:
                millimetres = np.asarray(file)
        except (OSError, ValueError, SyntaxError):
            raise DepthDataError(f"{self.depth.name}: this is not a PNG that can be read.") from None
        if millimetres.ndim != 2 or millimetres.dtype == np.uint8 or millimetres.dtype.kind not in "iu":
            raise DepthDataError(f"{self.depth.name}: depth is one channel of 16 bits, in millimetres.")
        if millimetres.shape != (picture.height, picture.width):
            raise DepthDataError(
                f"{self.depth.name} has {millimetres.shape[1]} x {millimetres.shape[0]} pixels, "
                f"its picture {picture.width} x {picture.height}; they must be the same."
            )
        return picture, millimetres.astype(np.float32) / 1000


def find_pairs(folder: str | os.PathLike, limit: int = 0) -> list[Pair]:
    """The pairs of a folder, sorted by name; limit: the first so many, 0 for all.

    Raises DepthDataError where there are none, or pictures lack their depth.
    """
    folder = Path(folder)
    if not (folder / "rgb").is_dir() or not (folder / "depth").is_dir():
        raise DepthDataError(f"{folder} is no RGB-D folder: it needs the folders rgb and depth.")
    images = sorted(path for path in (folder / "rgb").iterdir() if path.suffix.lower() in SUFFIXES)
    pairs = [Pair(image, folder / "depth" / f"{image.stem}.png") for image in images]
    lacking = [pair.image.name for pair in pairs if not pair.depth.is_file()]
    if lacking:
        more = ", ..." if len(lacking) > 3 else ""
        raise DepthDataError(
            f"{len(lacking)} of {len(pairs)} pictures in {folder} lack their depth: {', '.join(lacking[:3])}{more}."
        )
    if not pairs:
        raise DepthDataError(f"There are no images in {folder / 'rgb'}.")
    return pairs[:limit] if limit else pairs


def counts(depth: np.ndarray, crop: str, far: float) -> np.ndarray:
    """Which pixels (H, W) count: known, not beyond `far` metres, and within the crop ("eigen" or "none")."""
    valid = (depth > 0) & (depth <= far)
    if crop == "eigen":
        height, width = depth.shape
        inside = np.zeros_like(valid)
        rows, columns = (
            slice(*(round(edge * side) for edge in edges))
            for edges, side in ((EIGEN_ROWS, height), (EIGEN_COLUMNS, width))
        )
        inside[rows, columns] = True
        valid &= inside
    return valid


def depth_errors(predicted: np.ndarray, depth: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """Of one picture: rmse in metres, abs_rel, and delta1, the share of pixels within 25 % (Eigen et al. 2014)."""
    p, t = predicted[valid].astype(np.float64), depth[valid].astype(np.float64)
    ratio = np.maximum(p / t, t / p)
    return {
        "rmse": float(np.sqrt(((p - t) ** 2).mean())),
        "abs_rel": float((np.abs(p - t) / t).mean()),
        "delta1": float((ratio < 1.25).mean()),
    }
