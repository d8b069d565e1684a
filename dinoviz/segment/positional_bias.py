"""Estimate the positional component of patch features, and remove it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dinoviz.features import Features, part_layer


def layers_of(count: int) -> tuple[int, ...]:
    """The layers, from 0, that segmentation uses of a model with `count` layers: one at two thirds, and the last.

    Of 12 layers the 8th, which distinguishes parts, and the 12th, which distinguishes objects.
    """
    return tuple(sorted({part_layer(count), count - 1}))


def unit_patches(features: Features, layer: int) -> np.ndarray:
    """One layer's patches (h, w, D), each of length 1."""
    return _unit(features.layer(layer))


@dataclass(frozen=True, eq=False)
class Bias:
    """Directions in feature space that encode position, not content, by layer: (K, D), orthonormal."""

    directions: dict[int, np.ndarray]

    def removed(self, layer: int, patches: np.ndarray) -> np.ndarray:
        """Project the directions out of a layer's patches (h, w, D), and normalise them to length 1."""
        basis = self.directions[layer]
        return _unit(patches - (patches @ basis.T) @ basis)


def positional_bias(blanks: Sequence[Features], directions: int = 10) -> Bias:
    """Estimate positional directions from features of content-free images (plain colours, see `content_free`).

    The patches of a plain image differ only in their position: the directions are the leading right singular vectors of
    the centred mean over the images, as in INSID3 for DINOv3. Removing them from DINOv2's patches changes little.
    """
    bases = {}
    for layer in layers_of(blanks[0].layers):
        mean = np.stack([unit_patches(features, layer) for features in blanks]).mean(0)
        flat = mean.reshape(-1, mean.shape[-1])
        bases[layer] = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:directions]
    return Bias(bases)


def content_free(size: tuple[int, int]) -> list[np.ndarray]:
    """Images of plain colours (H, W, 3) uint8 of a size (width, height), to encode for `positional_bias`."""
    greys = [(v, v, v) for v in (0, 64, 128, 192, 255)]
    return [
        np.full((size[1], size[0], 3), colour, np.uint8)
        for colour in (*greys, (200, 60, 60), (60, 160, 60), (60, 60, 200))
    ]


def _unit(patches: np.ndarray) -> np.ndarray:
    return patches / np.maximum(np.linalg.norm(patches, axis=-1, keepdims=True), 1e-6)
