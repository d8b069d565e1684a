"""Evidence: which patches are the thing that was marked elsewhere, learnt on the spot and without a network.

A ridge regression from patch features to +1 (object) and -1 (all else), in which object and background weigh the same.
It has a closed form, so that any number of references costs one small system of equations. In another place the
same thing scores lower; how much of the target was seen in the references tells how far to trust their scale.
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

# The numbers below were chosen on DAVIS and NYU with the embedded weights; tests/benchmarks/segmentation.py measures
# what they are worth. Weights of examples sum to 1, so none of them depends on resolution or on the number of pictures.
RIDGE, RIDGE_ADAPTED = 0.001, 0.015
CLICK = 0.02  # the weight of one click beside the examples' 1
# The median cosine of target patches to their nearest reference patch, less the same within a reference: 0 is the same
# place, and from FAR on the scale of the scores is the target's own.
NEAR, FAR = -0.08, -0.16
PRESENT_AT, PRESENT_WIDTH = 0.785, 0.02  # see `Concept.presence`
BANK, SAMPLE = 2500, 500  # patches that are compared one by one


@dataclass(frozen=True, eq=False)
class Example:
    """What a person marked on one picture.

    features: of the picture, with the layers of `layers_of` captured.
    mask: (H, W) bool at the picture's size, True on the object; all else counts as background. None: only points.
    points: (P, 2) x first, in pixels of the picture; labels: (P,), 1 on the object and 0 beside it.
    """

    features: Features
    mask: np.ndarray | None = None
    points: np.ndarray | Sequence = ()
    labels: np.ndarray | Sequence = ()


def joined(features: Features, bias: Bias | None = None) -> np.ndarray:
    """(h, w, layers * D) float32 of length 1: the layers' patches, each of length 1 before they are joined."""
    layers = layers_of(features.layers)
    parts = []
    for layer in layers:
        patches = unit_patches(features, layer)
        parts.append(patches if bias is None else bias.removed(layer, patches))
    return (np.concatenate(parts, axis=-1) / len(layers) ** 0.5).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Moments:
    """Weighted sums over patches, all that a ridge regression needs: x x^T (D, D), x y (D,), x (D,), y, and weight.

    Of more patches they are the sums of both: pictures come and go, and nothing is kept of them.
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
        """Weights (D,) and bias of the regression with an intercept."""
        mean, mean_y = self.x / self.weight, self.y / self.weight
        covariance = self.xx - np.outer(self.x, mean)
        covariance[np.diag_indices_from(covariance)] += strength
        weights = np.linalg.solve(covariance, self.xy - self.x * mean_y).astype(np.float32)
        return weights, float(mean_y - mean @ weights)


def moments(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> Moments:
    """The sums over patches x (N, D) with targets y (N,) and weights (N,)."""
    y, weight = y.astype(np.float32), weight.astype(np.float32)
    weighted = x * weight[:, None]
    return Moments(weighted.T @ x, weighted.T @ y, weighted.sum(0), float(weight @ y), float(weight.sum()))


def ridge(x: np.ndarray, y: np.ndarray, weight: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    """Weights (D,) and bias of the weighted ridge regression of y (N,) on few patches x (N, D), by its dual: N x N."""
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
    """What was learnt from the examples; applying it costs the same however many there were.

    prototype: (D,) mean of the object's patches in the last layer, of length 1. object_patches: (M, D'), a sample.
    bank: (K, D'), a sample of all patches; likeness: the median cosine within a reference between patches apart.
    marked: of each example with a mask its grid, its last layer and its mask, to know the picture again.
    """

    method: Method
    bias: Bias | None
    prototype: np.ndarray
    object_patches: np.ndarray
    bank: np.ndarray
    likeness: float
    marked: tuple[tuple[PatchGrid, np.ndarray, np.ndarray], ...] = field(repr=False)
    seen: Moments = field(repr=False)

    @cached_property
    def _ridge(self) -> tuple[np.ndarray, float]:
        return self.seen.ridge(RIDGE)

    def find(self, features: Features) -> tuple[np.ndarray, float, float]:
        """(h, w) scores from -1 (the references' background) to 1 (their object), the threshold, and the presence."""
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
        """The mask (H, W) bool that a person gave to this very picture, or None."""
        for grid, patches, mask in self.marked:
            if grid == features.grid and (patches is features.patches or np.array_equal(patches, features.patches)):
                return as_mask(mask)
        return None

    def presence(self, x: np.ndarray) -> float:
        """How surely the object is among the patches (N, D'), in [0, 1].

        Each part of the object looks for what is most like it: the median over the object's patches of the cosine to
        their nearest patch, through a sigmoid around 0.785.
        """
        found = float(np.median((self.object_patches @ x.T).max(axis=1)))
        return float(1 / (1 + np.exp(-(found - PRESENT_AT) / PRESENT_WIDTH)))

    def distance(self, x: np.ndarray) -> float:
        """How far the picture is from the references, from 0, the same place, to 1, where their scale says nothing."""
        sample = x[spread(len(x), SAMPLE)]
        nearness = float(np.median((sample @ self.bank.T).max(axis=1))) - self.likeness
        return float(np.clip((NEAR - nearness) / (NEAR - FAR), 0, 1))

    def _adapted(self, x: np.ndarray, score: np.ndarray, distance: float) -> np.ndarray:
        """Scores after one round of self-training: the target's surest patches join the examples."""
        threshold = _own_threshold(score, distance)
        high, low = np.sort(score)[-12:].mean(), np.quantile(score, 0.2)
        object_, rest = score > (threshold + high) / 2, score < (threshold + low) / 2
        if min(object_.sum(), rest.sum()) < 3:
            return score
        sure = object_ | rest
        target = moments(x[sure], np.where(object_[sure], 1, -1), distance * balanced(object_[sure]))
        weights, bias = (self.seen + target).ridge(RIDGE_ADAPTED)
        return x @ weights + bias


def fit(examples: Sequence[Example], method: Method = "evidence", bias: Bias | None = None) -> Concept:
    """Learn a thing from examples.

    method: "evidence", or "mean", the textbook: cosine similarity to the object's mean feature and Otsu's threshold.
    bias: directions to remove first, from `positional_bias`.

    Raises DinovizError where nothing, or everything, is marked, and for masks and points that do not fit the picture.
    """
    if method not in METHODS:
        raise DinovizError(f"There is no method {method!r}; there are {', '.join(METHODS)}.")
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
        raise DinovizError("Everything is marked as the object: leave some background, so that there is a difference.")
    everything = np.concatenate([*patches, *clicked])
    seen = None
    if patches:
        share = np.concatenate(covered)
        seen = moments(np.concatenate(patches), 2 * share - 1, balanced(share))
    if clicked:
        sides = np.concatenate(labels)
        # Clicks alone have to speak for the background as well, so both sides weigh the same.
        weight = np.full(len(sides), CLICK, np.float32) if patches else balanced(sides)
        points = moments(np.concatenate(clicked), np.where(sides, 1, -1), weight)
        seen = seen + points if seen else points
    prototype = np.concatenate(prototypes).mean(0)
    object_ = everything[marked]
    return Concept(
        method=method,
        bias=bias,
        prototype=(prototype / max(float(np.linalg.norm(prototype)), 1e-6)).astype(np.float32),
        object_patches=object_[spread(len(object_), SAMPLE)],
        bank=everything[spread(len(everything), BANK)],
        likeness=float(np.mean(likeness)) if likeness else 1.0,
        # Not the features as a whole: their queries and keys would outlive the cache that counts them.
        marked=tuple((e.features.grid, e.features.patches, e.mask) for e in examples if e.mask is not None),
        seen=seen,
    )


def covered_share(features: Features, mask: np.ndarray) -> np.ndarray:
    """(h * w,) float32: how much of each patch the mask covers, 1 for the patches that it covers most.

    So that a thing that is smaller than a patch is still an object. Raises DinovizError for a mask of another size.
    """
    share = features.grid.to_patches(as_mask(mask)).ravel()
    return share / share.max() if 0 < share.max() < 1 else share


def as_mask(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool of what people call a mask: of numbers, ones, the upper half of 0 to 255, or labels other than 0."""
    mask = np.asarray(mask)
    if mask.dtype == bool:
        return mask
    largest = mask.max(initial=0)
    return mask > (0.5 if largest <= 1 else 127 if largest > 127 else 0)


def otsu(values: np.ndarray) -> float:
    """The threshold that best separates numbers in two (Otsu 1979)."""
    from skimage.filters import threshold_otsu

    return float(threshold_otsu(values)) if values.min() < values.max() else float(values.min())


def _own_threshold(score: np.ndarray, distance: float) -> float:
    """The references' threshold, 0, or as much of the picture's own as its distance from them asks for."""
    return distance * min(0.0, otsu(np.clip(score, -1, 1)))


def balanced(share: np.ndarray) -> np.ndarray:
    """Weights that sum to 1, half of it for the object and half for the rest."""
    share = share.astype(np.float32)
    object_, rest = share.sum(), (1 - share).sum()
    return (share / max(object_, 1e-6) + (1 - share) / max(rest, 1e-6)) / (int(object_ > 0) + int(rest > 0))


def _likeness(x: np.ndarray) -> float:
    """The median cosine of patches (h, w, D) to the most alike one that is more than three patches away."""
    h, w, _ = x.shape
    flat = x.reshape(h * w, -1)
    sample = spread(h * w, SAMPLE)
    cosine = flat[sample] @ flat.T
    rows, columns = np.divmod(np.arange(h * w), w)
    near = (abs(rows[sample][:, None] - rows) <= 3) & (abs(columns[sample][:, None] - columns) <= 3)
    cosine[near] = -1
    return float(np.median(cosine.max(axis=1)))


def spread(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` indices, evenly spread."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)
