"""Refine score maps along the edges of the picture with the guided filter (He et al. 2010).

Around each pixel the score is fitted as a linear function of the colours, so that it changes where they do. The fit
needs only box filters, and is computed on a smaller copy of large pictures (He and Sun 2015).

Not kornia's guided_blur: it subsamples by whole factors only (results differ by up to 0.29), repeats the statistics of
the picture for each map, and takes 5 to 16 times as long on a CPU (600 x 400: 109 ms against 7 ms a map).
"""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from dinoviz.grid import PatchGrid

# The window is as wide as a patch, the resolution of the scores. Chosen on DAVIS, where windows of half and twice the
# width, and a smoothness of 1e-3 and 1e-2, were slightly worse; see tests/benchmarks/video.py.
SMOOTHNESS = 1e-4
WORKING_SIDE = 480  # short side of the copy for the fit, which is then applied to the colours at full size


class EdgeFilter:
    """A guided filter for one picture, to apply to any number of score maps."""

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
        """Align scores (H, W) float32 of the picture's size with the picture's edges."""
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
    """Invert the symmetric 3 x 3 matrix at each pixel, with SMOOTHNESS added to its diagonal, by cofactors."""
    # In float64: for a grey picture the matrix is nearly singular, and float32 has errors of 10 %.
    wide = {at: value.astype(np.float64) + SMOOTHNESS * (at[0] == at[1]) for at, value in of.items()}
    a, b, c, d, e, f = (wide[at] for at in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)))
    cofactors = {
        (0, 0): d * f - e * e, (0, 1): c * e - b * f, (0, 2): b * e - c * d,
        (1, 1): a * f - c * c, (1, 2): b * c - a * e, (2, 2): a * d - b * b,
    }  # fmt: skip
    determinant = a * cofactors[0, 0] + b * cofactors[0, 1] + c * cofactors[0, 2]
    return {at: (value / determinant).astype(np.float32) for at, value in cofactors.items()}
