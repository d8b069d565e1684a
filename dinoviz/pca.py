"""Patch PCA: the main directions in which the patches of one picture, or of several together, differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from skimage.filters import threshold_otsu

from dinoviz.errors import DinovizError
from dinoviz.features import Features


@dataclass(frozen=True, eq=False)
class PatchPCA:
    """One joint basis for the patches of all images.

    explained: (K,), the share of variance of each component, of the patches it was fitted on.
    coordinates: per image (h, w, K) float32, all patches projected.
    foreground: per image (h, w) bool, the patches it was fitted on; all True where no foreground was asked for.
    score: per image (h, w) float32 in [0, 1], the evidence for foreground.
    threshold: patches with a score above it are foreground.
    """

    explained: np.ndarray
    coordinates: list[np.ndarray]
    foreground: list[np.ndarray]
    score: list[np.ndarray]
    threshold: float

    def colours(self, components: Sequence[int] = (0, 1, 2)) -> list[np.ndarray]:
        """Three components as red, green and blue -> per image (h, w, 3) float32 in [0, 1], background 0.

        Raises DinovizError for a component that does not exist.
        """
        maps = [self.component(i) for i in components]
        if len(maps) != 3:
            raise DinovizError(f"A colour needs three components, not {len(maps)}.")
        return [
            np.where(fg[..., None], np.stack(channels, axis=-1), 0).astype(np.float32)
            for fg, *channels in zip(self.foreground, *maps, strict=True)
        ]

    def component(self, index: int) -> list[np.ndarray]:
        """One component as a heat map -> per image (h, w) float32 in [0, 1]; background patches are kept.

        Raises DinovizError for a component that does not exist.
        """
        if not 0 <= index < len(self.explained):
            raise DinovizError(f"There are {len(self.explained)} components, 0 to {len(self.explained) - 1}, not {index}.")
        fitted = np.concatenate([c[fg, index] for c, fg in zip(self.coordinates, self.foreground, strict=True)])
        scale = max(float(fitted.std()), 1e-12)
        return [1 / (1 + np.exp(-2 * c[..., index] / scale)) for c in self.coordinates]


def patch_pca(
    features: Sequence[Features],
    components: int = 3,
    foreground: bool = True,
    *,
    layer: int = -1,
    threshold: float | None = None,
) -> list[np.ndarray]:
    """The first three components as colours -> per image (h, w, 3) in [0, 1], one joint basis, background black.

    As `fit(...).colours()`; with fewer components than three the remaining channels are 0. Raises as `fit`.
    """
    fitted = fit(features, components=components, layer=layer, foreground=foreground, threshold=threshold)
    return fitted.colours()


def fit(
    features: Sequence[Features],
    *,
    components: int = 10,
    layer: int = -1,
    foreground: bool = True,
    threshold: float | None = None,
) -> PatchPCA:
    """Find the joint principal components of the patches of some images of one model.

    components: how many; fewer are given where the patches have fewer dimensions.
    layer: whose patches, as in a Python list. foreground: fit on foreground patches only.
    threshold: None decides it from the data; a number in [0, 1] is applied to the foreground score instead.

    Raises DinovizError for features of different models, a layer that was not captured, or bad numbers.
    """
    if not features:
        raise DinovizError("PCA needs the features of at least one image.")
    if len({f.weights_id for f in features}) > 1:
        names = ", ".join(sorted({f.weights for f in features}))
        raise DinovizError(f"One PCA needs features of one model, not of several ({names}).")
    if components < 1:
        raise DinovizError(f"At least one component is needed, not {components}.")
    if threshold is not None and not 0 <= threshold <= 1:
        raise DinovizError(f"The foreground threshold is a number in [0, 1], not {threshold}.")
    patches = [f.layer(layer).astype(np.float64) for f in features]
    score, cut = _foreground_score(patches)
    threshold = cut if threshold is None else threshold
    kept = [s > threshold if foreground else np.ones(s.shape, bool) for s in score]
    if not any(k.any() for k in kept):
        kept = [np.ones(s.shape, bool) for s in score]
    fitted = np.concatenate([p[k] for p, k in zip(patches, kept, strict=True)])
    mean = fitted.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(fitted.T, bias=True))
    count = min(components, len(values))
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1][:, :count]
    return PatchPCA(
        explained=values[:count] / max(values.sum(), 1e-12),
        coordinates=[((p - mean) @ vectors).astype(np.float32) for p in patches],
        foreground=kept,
        score=score,
        threshold=float(threshold),
    )


def _foreground_score(patches: list[np.ndarray]) -> tuple[list[np.ndarray], float]:
    """Position along the first component, turned so that the border of the picture is low -> scores and Otsu's cut."""
    flat = np.concatenate([p.reshape(-1, p.shape[-1]) for p in patches])
    direction = np.linalg.eigh(np.cov(flat.T))[1][:, -1]
    along = [(p - flat.mean(axis=0)) @ direction for p in patches]
    border = np.concatenate([np.concatenate([a[0], a[-1], a[:, 0], a[:, -1]]) for a in along])
    everything = np.concatenate([a.ravel() for a in along])
    sign = 1 if border.mean() < everything.mean() else -1
    low, high = np.percentile(sign * everything, (1, 99))
    score = [np.clip((sign * a - low) / max(high - low, 1e-12), 0, 1).astype(np.float32) for a in along]
    values = np.concatenate([s.ravel() for s in score])
    return score, float(threshold_otsu(values)) if np.ptp(values) > 0 else 0.0
