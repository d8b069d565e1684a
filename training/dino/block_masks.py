"""Block-wise masks for iBOT: rectangles of patches that are masked for the student (Bao et al. 2022, algorithm 1)."""

from __future__ import annotations

import math

import numpy as np

ASPECT = (0.3, 1 / 0.3)  # of a block
MIN_BLOCK = 4  # patches; smaller blocks could be guessed from their neighbours
TRIES = 10


def block_masks(
    images: int, shape: tuple[int, int], probability: float, ratio: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """Masks (images, h * w) bool: a share `probability` of the images is masked, each by a share within `ratio`.

    The ratios are spread evenly over the masked images of a batch, as in DINOv2's collate function, so that batches
    differ less from each other, in random order.
    """
    h, w = shape
    masked = round(images * probability)
    edges = np.linspace(*ratio, masked + 1)
    masks = [block_mask(shape, round(h * w * rng.uniform(*edges[i : i + 2])), rng) for i in range(masked)]
    masks += [np.zeros(shape, bool)] * (images - masked)
    return np.stack([masks[i].ravel() for i in rng.permutation(images)]) if images else np.zeros((0, h * w), bool)


def block_mask(shape: tuple[int, int], patches: int, rng: np.random.Generator) -> np.ndarray:
    """One mask (h, w) bool of blocks with at most `patches` masked patches, and rarely fewer."""
    h, w = shape
    mask = np.zeros(shape, bool)
    tries = 0
    while (left := patches - mask.sum()) > 0 and tries < TRIES:
        area = rng.uniform(min(MIN_BLOCK, left), left)
        aspect = math.exp(rng.uniform(*map(math.log, ASPECT)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        tries += 1
        if 1 <= height <= h and 1 <= width <= w:
            top, left_edge = rng.integers(h - height + 1), rng.integers(w - width + 1)
            block = mask[top : top + height, left_edge : left_edge + width]
            if 0 < (~block).sum() <= left:
                block[:] = True
                tries = 0
    return mask
