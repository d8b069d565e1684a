"""Patch PCA: the few directions in which the patches of one picture, or of several together, differ most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from scipy.ndimage import gaussian_filter
from skimage.filters import threshold_otsu

from dinoviz.errors import DinovizError
from dinoviz.features import Features

# The numbers below were chosen with tests/benchmarks/pca_stability.py; none is a distance of one model's features.
# A patch counts as background if it resembles this share of two sides of the border; 5 % to 15 % differ little.
SIDE_SHARE = 0.1
# Blur of the evidence, in short sides of the grid, so that it is the same at every resolution. None: the foreground
# moves with the resolution (IoU with itself 0.74 instead of 0.80); twice as much: thin objects suffer.
BLUR = 0.02
# Five textures stay below it (0.01 to 0.11) in the layers 9 and 12 at 392 to 672 px, nine objects above (0.12 to 6).
LEAST_SEPARATION = 0.115
# From z-score to colour by a sigmoid, as in DINOv3's PCA notebook: saturated, and no outlier takes the whole range.
GAIN = 2.0
# No foreground patch is so dark that it could be taken for background, which is black.
DARKEST = 0.12
# Variation below this share of the features' length is rounding, not content.
ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class PatchPCA:
    """One joint basis for the patches of all images, made by `fit`. K components.

    explained: (K,) the share of each component in the variance of the foreground patches, descending.
    coordinates: per image (h, w, K) float32, all patches on the components, 0 at the foreground's mean. The sign of a
        component is the one that agrees with `evidence`.
    foreground: per image (h, w) bool, the patches that the basis was fitted on, `score >= threshold`; all True where
        no foreground was asked for.
    score: per image (h, w) float32 in [0, 1], the evidence for foreground, from the lowest of the image to the highest.
        The image's own cut lies at 0.5; an image without two separable parts has no patch below 0.5.
    threshold: that was used on score.
    evidence: per image (h, w, 3) float32, what hangs on the picture and not on the algebra: score, height in the
        picture, likeness to the mean patch; mean 0 and variance 1 over the foreground.
    """

    explained: np.ndarray
    coordinates: list[np.ndarray]
    foreground: list[np.ndarray]
    score: list[np.ndarray]
    threshold: float
    evidence: list[np.ndarray]

    def colours(self, components: Sequence[int] = (0, 1, 2), *, turned: bool = True) -> list[np.ndarray]:
        """One to three components in colour -> per image (h, w, 3) float32 in [0, 1], background 0.

        turned: rotate the components among themselves so that red, green and blue follow the evidence (orthogonal
            Procrustes, Schönemann 1966). Components of similar variance swap and mix when the picture changes a
            little; the space they span does not, so colours hung on the picture stay. Nothing is lost, but red is
            no longer the first component. False: red, green and blue are the components in the order asked for.

        Raises DinovizError for components that do not exist or are not one to three.
        """
        chosen = list(components)
        if not 1 <= len(chosen) <= 3:
            raise DinovizError(f"A colour shows one to three components, not {len(chosen)}.")
        for index in chosen:
            self._check(index)
        coordinates = [c[..., chosen] for c in self.coordinates]
        axes = np.eye(len(chosen), 3)
        if turned:
            u, _, vt = np.linalg.svd(self._fitted(coordinates).T @ self._fitted(self.evidence), full_matrices=False)
            axes = u @ vt
        channels = [c @ axes for c in coordinates]
        scale = self._scale(channels)
        return [
            np.where(kept[..., None], DARKEST + (1 - DARKEST) * _sigmoid(c / scale), 0).astype(np.float32)
            for c, kept in zip(channels, self.foreground, strict=True)
        ]

    def component(self, index: int) -> list[np.ndarray]:
        """One component, as it is, for a heat map -> per image (h, w) float32 in [0, 1]; 0.5 is the foreground's mean.

        Background patches keep their value. Raises DinovizError for a component that does not exist.
        """
        self._check(index)
        coordinates = [c[..., index] for c in self.coordinates]
        scale = self._scale(coordinates)
        return [_sigmoid(c / scale).astype(np.float32) for c in coordinates]

    def _check(self, index: int) -> None:
        count = len(self.explained)
        if not 0 <= index < count:
            raise DinovizError(f"There are {count} components, 0 to {count - 1}, and no component {index}.")

    def _fitted(self, maps: list[np.ndarray]) -> np.ndarray:
        """The foreground patches of all images, (n, ...) float64."""
        return np.concatenate([m[kept] for m, kept in zip(maps, self.foreground, strict=True)]).astype(np.float64)

    def _scale(self, maps: list[np.ndarray]) -> np.ndarray:
        """One standard deviation of the foreground; 1 where there is no variation, which `fit` has set to 0 exactly."""
        deviation = self._fitted(maps).std(axis=0)
        return np.where(deviation > 0, deviation, 1)


def patch_pca(
    features: Sequence[Features],
    components: int = 3,
    foreground: bool = True,
    *,
    layer: int = -1,
    threshold: float | None = None,
) -> list[np.ndarray]:
    """The first one to three components in colour -> per image (h, w, 3) float32 in [0, 1], background 0.

    As `fit(...).colours(...)`, and raises what they raise.
    """
    fitted = fit(features, components=components, layer=layer, foreground=foreground, threshold=threshold)
    return fitted.colours(range(len(fitted.explained)))


def fit(
    features: Sequence[Features],
    *,
    components: int = 10,
    layer: int = -1,
    foreground: bool = True,
    threshold: float | None = None,
) -> PatchPCA:
    """Find the joint principal components of the patches of some images of one model; sizes may differ.

    components: how many; fewer come back if there are fewer patches or channels.
    layer: whose patches, as in a Python list. foreground: fit on the foreground alone.
    threshold: None takes each image's own cut; a number in [0, 1] cuts the foreground score there.

    Raises DinovizError for features of different models, a layer that was not captured, or numbers out of range.
    """
    if not features:
        raise DinovizError("PCA needs the features of at least one image.")
    if len({f.weights_id for f in features}) > 1:
        names = ", ".join(sorted({f.weights for f in features}))
        raise DinovizError(f"Images in one PCA must have been seen by one model, not by several ({names}).")
    if components < 1:
        raise DinovizError(f"PCA gives one component or more, not {components}.")
    if threshold is not None and not 0 <= threshold <= 1:
        raise DinovizError(f"The foreground threshold is a number in [0, 1], not {threshold}.")
    patches = [f.layer(layer) for f in features]
    score = [foreground_score(p) for p in patches]
    threshold = 0.5 if threshold is None else float(threshold)
    kept = [s >= threshold if foreground else np.ones(s.shape, bool) for s in score]

    fitted = np.concatenate([p[k] for p, k in zip(patches, kept, strict=True)]).astype(np.float64)
    mean = fitted.mean(axis=0)
    fitted -= mean
    channels = len(mean)
    count = min(components, channels, sum(k.size for k in kept))
    # D x D in float64 beats an SVD of the patches from a hundred patches on, and is exact to 1e-8 of the first.
    covariance = fitted.T @ fitted / len(fitted)
    variance, basis = eigh(covariance, subset_by_index=(channels - count, channels - 1))
    variance, basis = variance[::-1], basis[:, ::-1]
    noise = (ROUNDING * np.linalg.norm(mean)) ** 2
    real = variance > noise
    variance, basis = np.where(real, variance, 0), np.where(real, basis, 0)

    evidence = _evidence(patches, score, mean, kept)
    agreement = np.concatenate([e[k] for e, k in zip(evidence, kept, strict=True)]).sum(axis=1) @ fitted @ basis
    basis = np.where(agreement < 0, -basis, basis)
    return PatchPCA(
        explained=variance / max(np.trace(covariance), noise, np.finfo(np.float64).tiny),
        coordinates=[((p - mean) @ basis).astype(np.float32) for p in patches],
        foreground=kept,
        score=score,
        threshold=threshold,
        evidence=evidence,
    )


def foreground_score(patches: np.ndarray) -> np.ndarray:
    """How little each patch (h, w, D) looks like the border of the picture -> (h, w) float32 in [0, 1], cut at 0.5.

    Photographers put things inside the frame, so the border is a sample of the background (Zhu et al. 2014, boundary
    connectivity). What the frame cuts off, a head or a foot, touches one side of it; a background touches two: the
    evidence is the likeness to the two sides that a patch resembles most. (The likeness to the border as a whole
    beheads a cat that fills the picture.) It has no sign that could flip, which the first component has, needs no
    attention and no iteration, and agrees best with object masks: mean IoU 0.60 over 20 DAVIS frames, embedded
    weights, where Otsu's threshold on the first component gives 0.34 to 0.39 and two clusters 0.40. Where cutting in
    two is not justified, all get 0.5 or more.
    """
    h, w, _ = patches.shape
    length = np.linalg.norm(patches, axis=-1, keepdims=True)
    unit = (patches / np.maximum(length, np.finfo(np.float32).tiny)).astype(np.float32)
    sides = [_likeness(unit.reshape(h * w, -1), side) for side in (unit[0], unit[-1], unit[:, 0], unit[:, -1])]
    difference = 1 - np.sort(sides, axis=0)[-2:].mean(axis=0).reshape(h, w)
    smooth = gaussian_filter(difference, BLUR * min(h, w), mode="nearest").astype(np.float64)
    low, high = smooth.min(), smooth.max()
    if high - low < ROUNDING:
        return np.ones((h, w), np.float32)
    cut = threshold_otsu(smooth)
    if _separation(unit, difference, smooth > cut) < LEAST_SEPARATION:
        cut = low
    # Straight from the lowest to the cut and from the cut to the highest, so that 0.5 means the same in every image.
    score = np.interp(smooth, (low, cut, high), (0, 0.5, 1)) if cut > low else 0.5 + (smooth - low) / (high - low) / 2
    return score.astype(np.float32)


def _likeness(unit: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Mean cosine of each patch (n, D) to the patches of one side (m, D) that it resembles most -> (n,)."""
    nearest = max(1, round(SIDE_SHARE * len(side)))
    return np.partition(unit @ side.T, -nearest, axis=1)[:, -nearest:].mean(axis=1)


def _separation(unit: np.ndarray, difference: np.ndarray, inside: np.ndarray) -> float:
    """Whether a cut divides two things, not a texture: Fisher's ratio times the coherence of the evidence.

    The ratio is the squared distance of the two means by the variances around them. The coherence is the share of a
    patch's evidence that its neighbour tells (squared correlation): scattered specks differ, but make no object.
    """
    if inside.all() or not inside.any():
        return 0.0
    parts = unit[inside], unit[~inside]
    distance = np.sum((parts[0].mean(axis=0) - parts[1].mean(axis=0)) ** 2)
    spread = sum(part.var(axis=0).sum() for part in parts)
    here = np.concatenate([difference[1:].ravel(), difference[:, 1:].ravel()])
    there = np.concatenate([difference[:-1].ravel(), difference[:, :-1].ravel()])
    return float(distance / max(spread, ROUNDING) * np.corrcoef(here, there)[0, 1] ** 2)


def _evidence(
    patches: list[np.ndarray], score: list[np.ndarray], mean: np.ndarray, kept: list[np.ndarray]
) -> list[np.ndarray]:
    """Three maps that mirror with the picture and keep with the resolution, so that what is hung on them does too.

    Any three that do gave stable colours, as long as height was among them; these need nothing but the patches.
    """
    maps = []
    for p, s in zip(patches, score, strict=True):
        height = np.broadcast_to(0.5 - (np.arange(len(s))[:, None] + 0.5) / len(s), s.shape)
        maps.append(np.stack([s, height, p @ mean], axis=-1))
    fitted = np.concatenate([m[k] for m, k in zip(maps, kept, strict=True)])
    centre, deviation = fitted.mean(axis=0), fitted.std(axis=0)
    # A map that says nothing (rounding aside) has no say.
    weight = np.where(deviation > ROUNDING * np.abs(fitted).max(axis=0), 1 / np.maximum(deviation, 1e-12), 0)
    return [((m - centre) * weight).astype(np.float32) for m in maps]


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(GAIN / 2 * z)
