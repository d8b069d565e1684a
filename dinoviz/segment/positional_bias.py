"""Bias: what the patches tell of their own position, whatever the picture shows, and how to take it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dinoviz.features import Features, part_layer


def layers_of(count: int) -> tuple[int, ...]:
    """The layers that are read of a model with `count` layers, from 0: one at two thirds, and the last.

    Of 12 layers the 8th, which knows parts, and the 12th, which knows things.
    """
    return tuple(sorted({part_layer(count), count - 1}))


def unit_patches(features: Features, layer: int) -> np.ndarray:
    """One layer's patches (h, w, D), each of length 1."""
    return _unit(features.layer(layer))


@dataclass(frozen=True, eq=False)
class Bias:
    """Directions that tell where a patch lies and not what it shows, by layer: (K, D), orthonormal."""

    directions: dict[int, np.ndarray]

    def removed(self, layer: int, patches: np.ndarray) -> np.ndarray:
        """A layer's patches (h, w, D) of length 1 without those directions, of length 1 again."""
        basis = self.directions[layer]
        return _unit(patches - (patches @ basis.T) @ basis)


def positional_bias(blanks: Sequence[Features], directions: int = 10) -> Bias:
    """Directions of the position, from features of content-free pictures (plain colours; see `content_free`).

    What differs between the patches of a plain picture is their position: the leading right singular vectors of the
    mean over the pictures, centred, as INSID3 found them for DINOv3. On DINOv2's patches removing them changes little.
    """
    bases = {}
    for layer in layers_of(blanks[0].layers):
        shown = np.stack([unit_patches(features, layer) for features in blanks]).mean(0)
        flat = shown.reshape(-1, shown.shape[-1])
        bases[layer] = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:directions]
    return Bias(bases)


def content_free(size: tuple[int, int]) -> list[np.ndarray]:
    """Plain pictures (H, W, 3) uint8 of a size (width, height), to encode for `positional_bias`."""
    greys = [(v, v, v) for v in (0, 64, 128, 192, 255)]
    return [
        np.full((size[1], size[0], 3), colour, np.uint8)
        for colour in (*greys, (200, 60, 60), (60, 160, 60), (60, 60, 200))
    ]


def _unit(patches: np.ndarray) -> np.ndarray:
    return patches / np.maximum(np.linalg.norm(patches, axis=-1, keepdims=True), 1e-6)
