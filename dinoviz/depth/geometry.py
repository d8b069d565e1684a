"""From depth maps to points, normals and depth edges, and files that other programs open.

Depth is the distance along the optical axis in metres, as from RGB-D cameras and probes, not along the ray; unknown
where it is NaN, infinite, or not above 0. Points are X right, Y down, Z away from the camera. Coordinates in a picture
are those of `PatchGrid`: x first, the pixel in column i covers [i, i + 1).
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from dinoviz.depth.camera import Camera
from dinoviz.errors import DinovizError
from dinoviz.grid import PatchGrid
from dinoviz.guided_filter import EdgeFilter

# Visible surfaces are rarely tilted by more than 85 degrees from facing the camera: a floor is beyond 17 m, from eye
# height. Depth interpolated between two objects is, if it changes by a third within a patch.
STEEPEST = math.radians(85)


def known(metres: np.ndarray) -> np.ndarray:
    """Which depths are known: bool of the same shape."""
    return np.isfinite(metres) & (metres > 0)


def points(metres: np.ndarray, camera: Camera) -> np.ndarray:
    """Back-project depth (H, W) in metres to points (H, W, 3) float32 in metres, NaN where it is unknown.

    camera: for a picture of this size, see `Camera.scaled`.
    """
    height, width = metres.shape
    z = np.where(known(metres), metres, np.nan).astype(np.float32)
    x = ((np.arange(width) + 0.5 - camera.cx) / camera.fx).astype(np.float32)
    y = ((np.arange(height) + 0.5 - camera.cy) / camera.fy).astype(np.float32)
    return np.stack([x * z, y[:, None] * z, z], axis=2)


def jumps(points: np.ndarray) -> np.ndarray:
    """Depth edges, whose interpolated points would lie between two objects: (H, W, 3) -> (H, W) bool.

    At such a pixel the direction to one of its four neighbours is within 5 degrees of the line of sight. As an angle,
    the limit does not depend on distance, focal length and size of the map. Unknown depth is no edge.
    """
    found = np.zeros(points.shape[:2], bool)
    for turned, steep in ((found, _steep(points)), (found.T, _steep(points.swapaxes(0, 1)))):
        turned[:-1] |= steep
        turned[1:] |= steep
    return found


def normals(points: np.ndarray, reach: int = 1) -> np.ndarray:
    """Surface normals of points (H, W, 3) -> (H, W, 3) float32 of length 1, NaN where unknown.

    They face the camera: no normal has a positive dot product with its point. Each is the cross product of the vectors
    between the points `reach` pixels above and below, and left and right. Next to a depth edge, only the other side is
    used, so that far surfaces do not influence near ones; with edges on both sides the reach is halved, and with a
    reach of 0 edges are ignored. A larger reach smooths curved surfaces: half a patch hides the creases of interpolated
    depth.
    """
    down, across = _difference(points, reach), _difference(points.swapaxes(0, 1), reach).swapaxes(0, 1)
    normal = np.cross(down, across)
    with np.errstate(invalid="ignore", divide="ignore"):
        normal /= np.copysign(np.sqrt(_dot(normal, normal)), -_dot(normal, points))[..., None]
    unknown = np.isnan(normal[..., 2]) & ~np.isnan(points[..., 2])
    if reach > 0 and unknown.any():
        normal[unknown] = normals(points, reach // 2)[unknown]
    return normal


def _steep(points: np.ndarray) -> np.ndarray:
    """Whether there is a depth edge from each row to the next, (H - 1, W) bool."""
    step, sight = points[1:] - points[:-1], points[1:] + points[:-1]
    with np.errstate(invalid="ignore"):
        along = _dot(step, sight)
        return along * along > math.sin(STEEPEST) ** 2 * _dot(step, step) * _dot(sight, sight)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ijk,ijk->ij", a, b)


def _difference(points: np.ndarray, reach: int) -> np.ndarray:
    """Vectors from the points `reach` rows above to those below (H, W, 3); half of it or zero at depth edges.

    With a reach of 0, edges are ignored and the points are one row away.
    """
    difference = np.zeros_like(points)
    far = min(max(1, reach), len(points) - 1)
    if far > 0:
        step = points[far:] - points[:-far]
        step[np.isnan(step[..., 2])] = 0
        if reach > 0:
            before = np.cumsum(_steep(points), axis=0, dtype=np.int32)  # edges from the first row to each next one
            before = np.concatenate([np.zeros_like(before[:1]), before])
            step[before[far:] > before[:-far]] = 0
        difference[:-far] += step
        difference[far:] += step
    return difference


def at(values: np.ndarray, xy: Sequence[float]) -> np.ndarray:
    """The value of a map (H, W) or (H, W, C) at the point x, y in its pixels. Raises DinovizError outside the map.

    Without interpolation, which would give depths between two objects where there is nothing.
    """
    height, width = values.shape[:2]
    x, y = xy
    if not (0 <= x <= width and 0 <= y <= height):
        raise DinovizError(f"The point {x:g}, {y:g} is outside the picture of {width} x {height}.")
    return values[min(int(y), height - 1), min(int(x), width - 1)]


def between(points: np.ndarray, a_xy: Sequence[float], b_xy: Sequence[float]) -> float:
    """Straight-line distance in metres between the points at two positions x, y of a map (H, W, 3); NaN if unknown.

    Raises as `at` does.
    """
    return float(np.linalg.norm(at(points, a_xy) - at(points, b_xy)))


def thin(mask: np.ndarray, limit: int) -> np.ndarray:
    """Thin out a mask (H, W) to at most `limit` pixels, on the finest regular grid that does so.

    The grid has every n-th pixel of every n-th row, or those of a chessboard of such squares.
    """
    rows, columns = np.arange(mask.shape[0])[:, None], np.arange(mask.shape[1])
    step = 1
    while True:
        square = mask & (rows % step == 0) & (columns % step == 0)
        for kept in (square, square & ((rows // step + columns // step) % 2 == 0)):
            if np.count_nonzero(kept) <= limit:
                return kept
        step += 1


def sharpened(metres: np.ndarray, picture: Image.Image | np.ndarray, grid: PatchGrid) -> np.ndarray:
    """Upsample predicted depth (a, b) to the picture's size, along the picture's edges -> (H, W) float32 metres.

    With the guided filter, see `EdgeFilter`. It extrapolates with colours, so the result is clipped to the range of the
    bilinearly interpolated depth within a patch of each pixel.
    """
    smooth = grid.resize(metres, "image")
    sharp = EdgeFilter(picture, grid).apply(smooth)
    around = np.ones([2 * math.ceil(side / count) + 1 for side, count in zip(smooth.shape, grid.shape, strict=True)])
    kernel = around.astype(np.uint8)
    return np.clip(sharp, cv2.erode(smooth, kernel), cv2.dilate(smooth, kernel))


def to_ply(points: np.ndarray, colours: np.ndarray, normals: np.ndarray | None = None) -> bytes:
    """Encode a point cloud as binary .ply: points (..., 3), colours (..., 3) uint8, normals (..., 3).

    Unknown points are left out; unknown normals are zero. Not with trimesh: it fails on an empty cloud, adds alpha and
    an empty list of faces, drops the comment with the unit, and is no faster.
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
    """Encode depth (H, W) as a 16-bit PNG in millimetres, 0 where unknown, at most 65.535 m."""
    there = known(metres)
    millimetres = np.zeros(metres.shape, np.uint16)
    millimetres[there] = np.clip(np.rint(metres[there] * 1000), 1, 65535)
    return cv2.imencode(".png", millimetres)[1].tobytes()


def depth_npy(metres: np.ndarray) -> bytes:
    """Encode depth (H, W) as .npy, float32 metres."""
    buffer = io.BytesIO()
    np.save(buffer, metres.astype(np.float32))
    return buffer.getvalue()
