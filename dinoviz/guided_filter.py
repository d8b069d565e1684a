"""Edges: from scores on a patch grid to a border that follows the picture, by the guided filter (He et al. 2010).

Around each pixel the score is fitted as a linear function of the colours, so that it changes where they do. It needs no
more than box filters, and is computed on a smaller copy of large pictures (He and Sun 2015).
"""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from dinoviz.grid import PatchGrid

# The window is as wide as a patch: what the grid cannot tell lies within it. Chosen on DAVIS, where windows of half and
# of twice the width, and 1e-3 and 1e-2, did a little worse; see tests/benchmarks/video.py.
SMOOTHNESS = 1e-4
WORKING_SIDE = 480  # the short side on which the fit is made; the colours that it is applied to stay whole


class EdgeFilter:
    """Made for one picture, applied to any number of score maps."""

    def __init__(self, picture: Image.Image | np.ndarray, grid: PatchGrid):
        """picture: (H, W, 3) of grid.image_size."""
        self._picture = np.asarray(picture)
        height, width = self._picture.shape[:2]
        scale = min(1.0, WORKING_SIDE / min(height, width))
        self._size = max(1, round(width * scale)), max(1, round(height * scale))
        small = cv2.resize(self._picture, self._size, interpolation=cv2.INTER_AREA) if scale < 1 else self._picture
        patch = max(side / count for side, count in zip(self._size, grid.size("patch"), strict=True))
        self._window = (2 * max(1, round(patch / 2)) + 1,) * 2
        self._colours = _channels(small)
        self._means = [self._mean(colour) for colour in self._colours]
        covariance = {
            (i, j): self._mean(self._colours[i] * self._colours[j]) - self._means[i] * self._means[j]
            for i in range(3)
            for j in range(i, 3)
        }
        self._inverse = _inverse(covariance)

    def apply(self, score: np.ndarray) -> np.ndarray:
        """(H, W) float32 scores of the picture's size -> the same, with the picture's edges."""
        small = (
            score if score.shape == self._size[::-1] else cv2.resize(score, self._size, interpolation=cv2.INTER_AREA)
        )
        mean = self._mean(small)
        shared = [self._mean(c * small) - m * mean for c, m in zip(self._colours, self._means, strict=True)]
        slopes = [sum(self._inverse[min(i, j), max(i, j)] * shared[j] for j in range(3)) for i in range(3)]
        offset = mean - sum(slope * m for slope, m in zip(slopes, self._means, strict=True))
        result = self._large(self._mean(offset))
        for slope, colour in zip(slopes, _channels(self._picture), strict=True):
            result += self._large(self._mean(slope)) * colour
        return result

    def _mean(self, values: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(values, -1, self._window, borderType=cv2.BORDER_REFLECT)

    def _large(self, values: np.ndarray) -> np.ndarray:
        size = self._picture.shape[1::-1]
        return values if size == self._size else cv2.resize(values, size, interpolation=cv2.INTER_LINEAR)


def _channels(picture: np.ndarray) -> list[np.ndarray]:
    return [np.ascontiguousarray(picture[..., i], dtype=np.float32) / 255 for i in range(3)]


def _inverse(of: dict[tuple[int, int], np.ndarray]) -> dict[tuple[int, int], np.ndarray]:
    """The inverse of the symmetric 3 x 3 matrix at each pixel, SMOOTHNESS added to its diagonal, by cofactors."""
    # In float64: in a grey picture the matrix is nearly singular, and single precision loses a tenth of it.
    wide = {at: value.astype(np.float64) + SMOOTHNESS * (at[0] == at[1]) for at, value in of.items()}
    a, b, c, d, e, f = (wide[at] for at in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)))
    cofactors = {
        (0, 0): d * f - e * e, (0, 1): c * e - b * f, (0, 2): b * e - c * d,
        (1, 1): a * f - c * c, (1, 2): b * c - a * e, (2, 2): a * d - b * b,
    }  # fmt: skip
    determinant = a * cofactors[0, 0] + b * cofactors[0, 1] + c * cofactors[0, 2]
    return {at: (value / determinant).astype(np.float32) for at, value in cofactors.items()}
