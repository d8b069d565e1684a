"""Surfaces: from a depth map to points in space, the way that they face, and files that other programs open.

Depth is the distance along the optical axis in metres, as RGB-D cameras and probes tell it, not along the ray; unknown
where it is NaN, infinite, or not above 0. Points are X right, Y down, Z away from the camera. Coordinates in a picture
are those of `PatchGrid`: x first, the pixel in column i covers [i, i + 1).
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from dinoviz.depth.camera import Camera
from dinoviz.errors import DinovizError
from dinoviz.grid import PatchGrid
from dinoviz.guided_filter import EdgeFilter

# Hardly anything that is seen is tilted by more than 85 degrees from face on: a floor is, from the height of the eyes,
# beyond 17 m. Depth that is interpolated between two things is, if it changes by a third within a patch.
STEEPEST = math.radians(85)


def known(metres: np.ndarray) -> np.ndarray:
    """Which depths there are: bool of the same shape."""
    return np.isfinite(metres) & (metres > 0)


def points(metres: np.ndarray, camera: Camera) -> np.ndarray:
    """Where the pixels are: depth (H, W) in metres -> (H, W, 3) float32 in metres, NaN where it is unknown.

    camera: that of a picture of this size, see `Camera.scaled`.
    """
    height, width = metres.shape
    z = np.where(known(metres), metres, np.nan).astype(np.float32)
    x = ((np.arange(width) + 0.5 - camera.cx) / camera.fx).astype(np.float32)
    y = ((np.arange(height) + 0.5 - camera.cy) / camera.fy).astype(np.float32)
    return np.stack([x * z, y[:, None] * z, z], axis=2)


def jumps(points: np.ndarray) -> np.ndarray:
    """Where depth jumps, and points between the near and the far would hang in the air: (H, W, 3) -> (H, W) bool.

    From such a pixel to one of its four neighbours the way is within 5 degrees of the line of sight. As an angle, the
    limit is the same at every distance, focal length and size of the map. What is unknown is no jump.
    """
    found = np.zeros(points.shape[:2], bool)
    for turned, steep in ((found, _steep(points)), (found.T, _steep(points.swapaxes(0, 1)))):
        turned[:-1] |= steep
        turned[1:] |= steep
    return found


def normals(points: np.ndarray, reach: int = 1) -> np.ndarray:
    """Which way the surface at each point faces: (H, W, 3) -> (H, W, 3) float32 of length 1, NaN where nobody knows.

    They face the camera: no normal has a positive product with its point. Each is perpendicular to the ways from the
    point `reach` pixels above to the one below, and from the left to the right. Where depth jumps on one side, the
    other side counts alone, so that nothing far bleeds into what is near; where it does on both, the reach is halved,
    and at last the jump is a surface. A large reach smooths what is not flat: half a patch hides the folds of
    interpolated depth.
    """
    down, across = _way(points, reach), _way(points.swapaxes(0, 1), reach).swapaxes(0, 1)
    normal = np.cross(down, across)
    with np.errstate(invalid="ignore", divide="ignore"):
        normal /= np.copysign(np.sqrt(_dot(normal, normal)), -_dot(normal, points))[..., None]
    unknown = np.isnan(normal[..., 2]) & ~np.isnan(points[..., 2])
    if reach > 0 and unknown.any():
        normal[unknown] = normals(points, reach // 2)[unknown]
    return normal


def _steep(points: np.ndarray) -> np.ndarray:
    """Whether depth jumps from each row to the next, (H - 1, W) bool."""
    step, sight = points[1:] - points[:-1], points[1:] + points[:-1]
    with np.errstate(invalid="ignore"):
        along = _dot(step, sight)
        return along * along > math.sin(STEEPEST) ** 2 * _dot(step, step) * _dot(sight, sight)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ijk,ijk->ij", a, b)


def _way(points: np.ndarray, reach: int) -> np.ndarray:
    """The way from the point `reach` rows above to that below, or half of it, (H, W, 3); zero where there is none.

    Not over jumps; with a reach of 0 over them as well, one row away.
    """
    way = np.zeros_like(points)
    far = min(max(1, reach), len(points) - 1)
    if far > 0:
        step = points[far:] - points[:-far]
        step[np.isnan(step[..., 2])] = 0
        if reach > 0:
            before = np.cumsum(_steep(points), axis=0, dtype=np.int32)  # jumps from the first row to the next one
            before = np.concatenate([np.zeros_like(before[:1]), before])
            step[before[far:] > before[:-far]] = 0
        way[:-far] += step
        way[far:] += step
    return way


def at(values: np.ndarray, xy: Sequence[float]) -> np.ndarray:
    """What a map (H, W) or (H, W, C) says at the point x, y in pixels of it. Raises DinovizError outside of it.

    Nothing is interpolated: between the near and the far there is nothing.
    """
    height, width = values.shape[:2]
    x, y = xy
    if not (0 <= x <= width and 0 <= y <= height):
        raise DinovizError(f"The point {x:g}, {y:g} is outside the picture of {width} x {height}.")
    return values[min(int(y), height - 1), min(int(x), width - 1)]


def between(points: np.ndarray, a_xy: Sequence[float], b_xy: Sequence[float]) -> float:
    """Metres between what is seen at two points x, y of the map (H, W, 3), in a straight line; NaN if unknown.

    Raises as `at` does.
    """
    return float(np.linalg.norm(at(points, a_xy) - at(points, b_xy)))


def thin(mask: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` pixels of a mask (H, W), spread evenly: those on the finest regular grid that leaves so few.

    Every n-th pixel of every n-th row, or those of a chessboard of such squares.
    """
    rows, columns = np.indices(mask.shape, sparse=True)
    for step in itertools.count(1):
        square = mask & (rows % step == 0) & (columns % step == 0)
        for kept in (square, square & ((rows // step + columns // step) % 2 == 0)):
            if np.count_nonzero(kept) <= limit:
                return kept


def sharpened(metres: np.ndarray, picture: Image.Image | np.ndarray, grid: PatchGrid) -> np.ndarray:
    """A head's depth (a, b) drawn at the picture's size with the picture's edges, (H, W) float32 metres.

    By the guided filter, see `EdgeFilter`. It follows colours, and so could tell depths that the head did not: within a
    patch of each pixel, the result is kept between the least and the most that bilinear interpolation gives.
    """
    smooth = grid.resize(metres, "image")
    sharp = EdgeFilter(picture, grid).apply(smooth)
    around = np.ones([2 * math.ceil(side / count) + 1 for side, count in zip(smooth.shape, grid.shape, strict=True)])
    kernel = around.astype(np.uint8)
    return np.clip(sharp, cv2.erode(smooth, kernel), cv2.dilate(smooth, kernel))


def to_ply(points: np.ndarray, colours: np.ndarray, normals: np.ndarray | None = None) -> bytes:
    """A cloud as the bytes of a .ply file, binary: points (..., 3), colours (..., 3) uint8, normals (..., 3).

    Points that are unknown are left out; unknown normals are zero.
    """
    fields = [(name, "<f4") for name in "xyz"]
    fields += [] if normals is None else [(name, "<f4") for name in ("nx", "ny", "nz")]
    fields += [(name, "u1") for name in ("red", "green", "blue")]
    there = np.isfinite(points).all(axis=-1)
    parts = [points, colours] if normals is None else [points, np.nan_to_num(normals), colours]
    vertices = np.empty(np.count_nonzero(there), fields)
    for (name, _), values in zip(fields, (v for part in parts for v in np.moveaxis(part[there], -1, 0)), strict=True):
        vertices[name] = values
    kinds = {"<f4": "float", "u1": "uchar"}
    header = [
        "ply", "format binary_little_endian 1.0", "comment metres: x right, y down, z away from the camera",
        f"element vertex {len(vertices)}", *(f"property {kinds[kind]} {name}" for name, kind in fields), "end_header\n",
    ]  # fmt: skip
    return "\n".join(header).encode() + vertices.tobytes()


def depth_png(metres: np.ndarray) -> bytes:
    """Depth (H, W) as the bytes of a PNG of 16 bits in millimetres, 0 where unknown, at most 65.535 m."""
    there = known(metres)
    millimetres = np.zeros(metres.shape, np.uint16)
    millimetres[there] = np.clip(np.rint(metres[there] * 1000), 1, 65535)
    return cv2.imencode(".png", millimetres)[1].tobytes()


def depth_npy(metres: np.ndarray) -> bytes:
    """Depth (H, W) as the bytes of a .npy file, float32 metres."""
    buffer = io.BytesIO()
    np.save(buffer, metres.astype(np.float32))
    return buffer.getvalue()
