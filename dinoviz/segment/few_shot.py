"""Few-shot segmentation: learn an object from marked images, and score patches of other images.

A ridge regression from patch features to +1 (object) and -1 (background), with equal weight for both. It has a closed
form, so any number of references costs one small system of linear equations. In other scenes the same object scores
lower; the similarity of the target to the references decides how far their threshold applies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from dinoviz.errors import DinovizError
from dinoviz.features import Features
from dinoviz.grid import PatchGrid
from dinoviz.segment.positional_bias import Bias, layers_of, unit_patches

Method = Literal["evidence", "mean"]
METHODS = ("evidence", "mean")

# The constants below were chosen on DAVIS and NYU with the embedded weights, see tests/benchmarks/segmentation.py.
# Weights of examples sum to 1, so the constants do not depend on the resolution or the number of pictures.
RIDGE, RIDGE_ADAPTED = 0.001, 0.015
CLICK = 0.02  # weight of one click; all masks together have 1
# Median cosine of target patches to their nearest reference patch, minus the same within a reference: near 0 it is the
# same scene; below FAR the threshold is estimated on the target alone.
NEAR, FAR = -0.08, -0.16
PRESENT_AT, PRESENT_WIDTH = 0.785, 0.02  # see `Concept.presence`
BANK, SAMPLE = 2500, 500  # sizes of the samples of patches for pairwise comparisons


@dataclass(frozen=True, eq=False)
class Example:
    """The marks on one picture.

    features: of the picture, with the layers of `layers_of` captured.
    mask: (H, W) bool at the picture's size, True on the object; the rest is background. None: only points.
    points: (P, 2) x first, in pixels of the picture; labels: (P,), 1 for object and 0 for background.
    """

    features: Features
    mask: np.ndarray | None = None
    points: np.ndarray | Sequence = ()
    labels: np.ndarray | Sequence = ()


def joined(features: Features, bias: Bias | None = None) -> np.ndarray:
    """Concatenate the normalised patches of the layers -> (h, w, layers * D) float32, of length 1."""
    layers = layers_of(features.layers)
    parts = []
    for layer in layers:
        patches = unit_patches(features, layer)
        parts.append(patches if bias is None else bias.removed(layer, patches))
    return (np.concatenate(parts, axis=-1) / len(layers) ** 0.5).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Moments:
    """Sufficient statistics of a ridge regression: weighted sums of x x^T (D, D), x y (D,), x (D,), y, and weight.

    Statistics of several pictures are added, so that their patches need not be kept.
    """

    xx: np.ndarray
    xy: np.ndarray
    x: np.ndarray
    y: float
    weight: float

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.xx + other.xx, self.xy + other.xy, self.x + other.x, self.y + other.y, self.weight + other.weight
        )

    def ridge(self, strength: float) -> tuple[np.ndarray, float]:
        """Weights (D,) and intercept of the regression."""
        mean, mean_y = self.x / self.weight, self.y / self.weight
        covariance = self.xx - np.outer(self.x, mean)
        covariance[np.diag_indices_from(covariance)] += strength
        weights = np.linalg.solve(covariance, self.xy - self.x * mean_y).astype(np.float32)
        return weights, float(mean_y - mean @ weights)


def moments(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> Moments:
    """Moments of patches x (N, D) with targets y (N,) and weights (N,)."""
    y, weight = y.astype(np.float32), weight.astype(np.float32)
    weighted = x * weight[:, None]
    return Moments(weighted.T @ x, weighted.T @ y, weighted.sum(0), float(weight @ y), float(weight.sum()))


def ridge(x: np.ndarray, y: np.ndarray, weight: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    """Weights (D,) and intercept of the weighted ridge regression of y (N,) on x (N, D), in its N x N dual form."""
    x, y, weight = (values.astype(np.float32) for values in (x, y, weight))
    mean, mean_y = weight @ x / weight.sum(), float(weight @ y / weight.sum())
    root = np.sqrt(weight)
    centred = (x - mean) * root[:, None]
    gram = centred @ centred.T
    gram[np.diag_indices_from(gram)] += strength
    weights = centred.T @ np.linalg.solve(gram, (y - mean_y) * root)
    return weights, mean_y - float(mean @ weights)


@dataclass(frozen=True, eq=False)
class Concept:
    """An object learnt from examples; the cost of applying it does not depend on their number.

    prototype: (D,) mean of the object's patches in the last layer, of length 1.
    object_patches: (M, D'), a sample of the object's patches. bank: (K, D'), a sample of all patches.
    likeness: median cosine of patches to their nearest distant patch within a reference.
    marked: grid, last layer and mask of each example with a mask, to recognise the same picture.
    moments: sufficient statistics of the regression.
    """

    method: Method
    bias: Bias | None
    prototype: np.ndarray
    object_patches: np.ndarray
    bank: np.ndarray
    likeness: float
    marked: tuple[tuple[PatchGrid, np.ndarray, np.ndarray], ...] = field(repr=False)
    moments: Moments = field(repr=False)

    @cached_property
    def _ridge(self) -> tuple[np.ndarray, float]:
        return self.moments.ridge(RIDGE)

    def find(self, features: Features) -> tuple[np.ndarray, float, float]:
        """Scores (h, w) from -1 (background of the references) to 1 (object), threshold, and presence score."""
        x = joined(features, self.bias)
        flat = x.reshape(-1, x.shape[-1])
        presence = self.presence(flat)
        if self.method == "mean":
            score = unit_patches(features, -1) @ self.prototype
            return score.astype(np.float32), otsu(score), presence
        weights, bias = self._ridge
        score = flat @ weights + bias
        threshold = 0.0
        distance = self.distance(flat)
        if distance > 0:
            score = self._adapted(flat, score, distance)
            threshold = _own_threshold(score, distance)
        return score.reshape(x.shape[:2]).astype(np.float32), threshold, presence

    def mark_on(self, features: Features) -> np.ndarray | None:
        """The mask (H, W) bool that was given for this same picture, or None."""
        for grid, patches, mask in self.marked:
            if grid == features.grid and (patches is features.patches or np.array_equal(patches, features.patches)):
                return as_mask(mask)
        return None

    def presence(self, x: np.ndarray) -> float:
        """Presence score in [0, 1]: how certain it is that the object is among the patches (N, D').

        The median over the object's patches of the cosine similarity to their nearest patch, through a sigmoid centred
        at 0.785.
        """
        similarity = float(np.median((self.object_patches @ x.T).max(axis=1)))
        return float(1 / (1 + np.exp(-(similarity - PRESENT_AT) / PRESENT_WIDTH)))

    def distance(self, x: np.ndarray) -> float:
        """Distance of the picture from the references, from 0, the same scene, to 1, too far for their threshold."""
        sample = x[spread(len(x), SAMPLE)]
        nearness = float(np.median((sample @ self.bank.T).max(axis=1))) - self.likeness
        return float(np.clip((NEAR - nearness) / (NEAR - FAR), 0, 1))

    def _adapted(self, x: np.ndarray, score: np.ndarray, distance: float) -> np.ndarray:
        """Scores after one round of self-training: the most confident patches of the target join the examples."""
        threshold = _own_threshold(score, distance)
        high, low = np.sort(score)[-12:].mean(), np.quantile(score, 0.2)
        object_, rest = score > (threshold + high) / 2, score < (threshold + low) / 2
        if min(object_.sum(), rest.sum()) < 3:
            return score
        confident = object_ | rest
        target = moments(x[confident], np.where(object_[confident], 1, -1), distance * balanced(object_[confident]))
        weights, bias = (self.moments + target).ridge(RIDGE_ADAPTED)
        return x @ weights + bias


def fit(examples: Sequence[Example], method: Method = "evidence", bias: Bias | None = None) -> Concept:
    """Learn an object from examples.

    Args:
        examples: marked pictures.
        method: "evidence" for the ridge regression, or "mean" for the baseline: cosine similarity to the object's mean
            feature, and Otsu's threshold.
        bias: directions to remove first, from `positional_bias`.

    Raises:
        DinovizError: if nothing or everything is marked, and for masks and points that do not fit their picture.
    """
    if method not in METHODS:
        raise DinovizError(f"There is no method {method!r}: choose {' or '.join(METHODS)}.")
    patches, covered, prototypes, clicked, labels, likeness = [], [], [], [], [], []
    for example in examples:
        x = joined(example.features, bias)
        flat = x.reshape(-1, x.shape[-1])
        last = unit_patches(example.features, -1).reshape(len(flat), -1)
        if example.mask is not None:
            share = covered_share(example.features, example.mask)
            patches.append(flat)
            covered.append(share)
            prototypes.append(last[share > 0.5])
            likeness.append(_likeness(x))
        if len(example.points):
            rows, columns = example.features.grid.patch_at(example.points).T
            clicked.append(x[rows, columns])
            labels.append(np.asarray(example.labels) > 0)
            prototypes.append(last.reshape(*x.shape[:2], -1)[rows, columns][labels[-1]])
    marked = np.concatenate([*(share > 0.5 for share in covered), *labels]) if covered or labels else np.zeros(0, bool)
    if not marked.any():
        raise DinovizError("Nothing is marked as the object: click on it, or draw over it.")
    if marked.all():
        raise DinovizError("Everything is marked as the object: leave some background unmarked.")
    everything = np.concatenate([*patches, *clicked])
    statistics = []
    if patches:
        share = np.concatenate(covered)
        statistics.append(moments(np.concatenate(patches), 2 * share - 1, balanced(share)))
    if clicked:
        sides = np.concatenate(labels)
        # Without masks the clicks are the only examples, and object and background get equal weight.
        weight = np.full(len(sides), CLICK, np.float32) if patches else balanced(sides)
        statistics.append(moments(np.concatenate(clicked), np.where(sides, 1, -1), weight))
    prototype = np.concatenate(prototypes).mean(0)
    object_ = everything[marked]
    return Concept(
        method=method,
        bias=bias,
        prototype=(prototype / max(float(np.linalg.norm(prototype)), 1e-6)).astype(np.float32),
        object_patches=object_[spread(len(object_), SAMPLE)],
        bank=everything[spread(len(everything), BANK)],
        likeness=float(np.mean(likeness)) if likeness else 1.0,
        # Not the whole features: their queries and keys would stay in memory beyond the cache.
        marked=tuple((e.features.grid, e.features.patches, e.mask) for e in examples if e.mask is not None),
        moments=sum(statistics[1:], statistics[0]),
    )


def covered_share(features: Features, mask: np.ndarray) -> np.ndarray:
    """Share of each patch that the mask covers -> (h * w,) float32, scaled so that the largest is 1.

    The scaling keeps objects smaller than a patch. Raises DinovizError for a mask of another size.
    """
    share = features.grid.to_patches(as_mask(mask)).ravel()
    return share / share.max() if 0 < share.max() < 1 else share


def as_mask(mask: np.ndarray) -> np.ndarray:
    """Convert a mask to (H, W) bool: above 0.5 up to 1, above 127 up to 255, or labels other than 0."""
    mask = np.asarray(mask)
    if mask.dtype == bool:
        return mask
    largest = mask.max(initial=0)
    return mask > (0.5 if largest <= 1 else 127 if largest > 127 else 0)


def otsu(values: np.ndarray) -> float:
    """Otsu's threshold (Otsu 1979), also for constant values."""
    from skimage.filters import threshold_otsu

    return float(threshold_otsu(values)) if values.min() < values.max() else float(values.min())


def _own_threshold(score: np.ndarray, distance: float) -> float:
    """The threshold, from that of the references (0) at distance 0 to the picture's own (Otsu) at distance 1."""
    return distance * min(0.0, otsu(np.clip(score, -1, 1)))


def balanced(share: np.ndarray) -> np.ndarray:
    """Weights that sum to 1, half for the object and half for the background."""
    share = share.astype(np.float32)
    object_, rest = share.sum(), (1 - share).sum()
    return (share / max(object_, 1e-6) + (1 - share) / max(rest, 1e-6)) / (int(object_ > 0) + int(rest > 0))


def _likeness(x: np.ndarray) -> float:
    """Median cosine of patches (h, w, D) to their most similar patch more than three patches away."""
    h, w, _ = x.shape
    flat = x.reshape(h * w, -1)
    sample = spread(h * w, SAMPLE)
    cosine = flat[sample] @ flat.T
    rows, columns = np.divmod(np.arange(h * w), w)
    near = (abs(rows[sample][:, None] - rows) <= 3) & (abs(columns[sample][:, None] - columns) <= 3)
    cosine[near] = -1
    return float(np.median(cosine.max(axis=1)))


def spread(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` indices, evenly spaced."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)
