"""Segmentation without training: point at a thing, or mark it in one picture, and find it there and in others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from PIL import Image

from dinoviz.errors import DinovizError, check_share
from dinoviz.features import Features
from dinoviz.grid import PatchGrid
from dinoviz.guided_filter import EdgeFilter
from dinoviz.segment.few_shot import CLICK, Concept, Example, Method, fit, joined, otsu, ridge, spread
from dinoviz.segment.positional_bias import Bias, layers_of

__all__ = [
    "THRESHOLD", "Concept", "Example", "Segmentation", "apply", "classes_from_reference", "components", "fit",
    "from_points", "from_reference", "layers_of",
]  # fmt: skip

THRESHOLD = 0.5  # half way between what the references' background and their object score
MAX_POINTS = 1000

# For clicks, chosen by simulated clicks on DAVIS with the embedded weights (tests/benchmarks/segmentation.py).
LIKENESS, REACH, ANYWHERE = 3.0, 0.15, 0.2
NOISE = 0.02
ROUNDS, SURE, TEACHERS = 2, 0.3, 400
RIDGE = 0.015


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The object in one picture.

    score: (H, W) float32 in [0, 1] at the picture's size, from 0, like the references' background, to 1, like their
    object; mask: (H, W) bool, what is kept of score >= threshold.
    patch_score: (h, w) float32 in [0, 1], the same before it met the pixels: the raw patch grid.
    threshold: the calibrated one, or the one that was asked for.
    present: whether the object is in the picture at all; presence: the evidence for it in [0, 1], present from 0.5.
    The mask does not depend on `present`: it is where the object would be.
    """

    score: np.ndarray
    mask: np.ndarray
    patch_score: np.ndarray
    threshold: float
    present: bool
    presence: float


def apply(
    concept: Concept,
    features: Features,
    image: Image.Image | np.ndarray | None = None,
    *,
    threshold: float | None = None,
    refine: bool = True,
    smallest: float = 0.0,
    at: np.ndarray | Sequence | None = None,
    points: np.ndarray | Sequence = (),
    labels: np.ndarray | Sequence = (),
) -> Segmentation:
    """Find in a picture what `fit` learnt. No forward pass.

    image: the picture (H, W, 3), whose edges the mask follows if `refine`; without it the mask is bilinear.
    threshold: of the score in [0, 1]; None is the calibrated one.
    smallest: components below this share of the picture are dropped. at: (P, 2), keep only components that hold one of
    these points. points (P, 2), labels (P,): what was clicked on this picture, which the score then agrees with.

    A picture that was itself given with a mask keeps that mask, unless a threshold or points ask for more; its score
    is the evidence.
    Raises DinovizError for features without the layers, an image of another size, and points outside the picture.
    """
    score, calibrated, presence = concept.find(features)
    marked = concept.mark_on(features) if threshold is None and not len(points) else None
    if len(points):
        rows, columns, labels = _clicks(features.grid, points, labels)
        covariance = _covariance(joined(features, concept.bias), rows, columns)
        score = _agree(score, covariance, rows, columns, labels)
    found = _finish(score, calibrated, presence, features, image, threshold, refine, smallest, at)
    return found if marked is None else replace(found, mask=components(marked, smallest=smallest, at=at))


def from_points(
    features: Features,
    points: np.ndarray | Sequence,
    labels: np.ndarray | Sequence,
    image: Image.Image | np.ndarray | None = None,
    *,
    threshold: float | None = None,
    refine: bool = True,
    smallest: float = 0.0,
    all_instances: bool = False,
) -> Segmentation:
    """Segment what was clicked. No forward pass.

    points: (P, 2) x first in pixels of the picture; labels: (P,), 1 on the thing and 0 beside it. Other options as
    `apply` takes them. all_instances: keep everything alike, not only what is connected with a positive click.

    A Gaussian process with the clicks as observations gives the first scores: its covariance is likeness of features
    times nearness, its prior mean follows from Otsu's threshold on the likeness to the positive clicks. The surest
    patches then teach a ridge regression, and where it disagrees with a click, the process corrects it around there.

    Raises DinovizError without a positive click, and as `apply` does.
    """
    rows, columns, labels = _clicks(features.grid, points, labels)
    if not labels.any():
        raise DinovizError("A click on the thing itself is needed; so far there are only clicks beside it.")
    x = joined(features)
    flat = x.reshape(-1, x.shape[-1])
    clicked = rows * x.shape[1] + columns
    observed = np.where(labels, 1.0, -1.0)
    covariance = _covariance(x, rows, columns)
    alike = covariance[:, labels].max(axis=1)
    cut = min(otsu(alike), 0.99)
    prior = -cut / (1 - cut)  # where the likeness is at the cut, one click alone gives 0
    score = prior + covariance @ _solved(covariance[clicked], observed - prior)
    for _ in range(ROUNDS):
        object_ = np.flatnonzero(score > SURE * score.max())
        rest = np.flatnonzero(score < SURE * min(np.quantile(score, 0.1), -1e-3))
        if min(len(object_), len(rest)) < 2:
            break
        # Of each side as many as are needed, so that a click stays instant on any grid.
        object_, rest = (side[spread(len(side), TEACHERS)] for side in (object_, rest))
        chosen = np.concatenate([object_, rest, clicked])
        target = np.concatenate([np.ones(len(object_)), -np.ones(len(rest)), observed])
        shares = (0.5 / len(object_), 0.5 / len(rest), CLICK)
        weight = np.repeat(shares, (len(object_), len(rest), len(clicked)))
        weights, bias = ridge(flat[chosen], target, weight, RIDGE)
        score = np.clip(flat @ weights + bias, -1.5, 1.5)
    score = _agree(score.reshape(x.shape[:2]), covariance, rows, columns, labels)
    at = None if all_instances else np.reshape(points, (-1, 2))[labels]
    return _finish(score, 0.0, 1.0, features, image, threshold, refine, smallest, at)


def from_reference(
    target: Features,
    references: Features | Sequence[Features],
    masks: np.ndarray | Sequence[np.ndarray],
    image: Image.Image | np.ndarray | None = None,
    *,
    method: Method = "evidence",
    bias: Bias | None = None,
    **options,
) -> Segmentation:
    """Find in `target` what `masks` (H, W) mark in `references`.

    image: the target's picture. method and bias as `fit` takes them, options as `apply` does. For many targets call
    `fit` once and `apply` for each. Raises DinovizError as they do.
    """
    return apply(fit(_examples(references, masks), method, bias), target, image, **options)


def classes_from_reference(
    target: Features,
    references: Features | Sequence[Features],
    labels: np.ndarray | Sequence[np.ndarray],
    image: Image.Image | np.ndarray | None = None,
    *,
    method: Method = "evidence",
    **options,
) -> dict[int, Segmentation]:
    """Find several classes at once: labels (H, W) integers, 0 is background -> Segmentation by class, masks disjoint.

    Where two classes claim a pixel, the one that is further above its threshold has it.
    """
    examples = _examples(references, labels)
    classes = sorted({int(c) for example in examples for c in np.unique(example.mask)} - {0})
    if not classes:
        raise DinovizError("The label maps mark nothing: all their pixels are 0.")
    found = {}
    for number in classes:
        marked = [replace(example, mask=np.asarray(example.mask) == number) for example in examples]
        found[number] = apply(fit(marked, method), target, image, **options)
    return disjoint(found)


def disjoint(found: Mapping[int, Segmentation]) -> dict[int, Segmentation]:
    """The same segmentations with each pixel in at most one mask."""
    excess = np.stack([np.where(f.mask, f.score - f.threshold, -np.inf) for f in found.values()])
    winner = excess.argmax(axis=0)
    return {key: replace(f, mask=f.mask & (winner == i)) for i, (key, f) in enumerate(found.items())}


def components(mask: np.ndarray, *, smallest: float = 0.0, at: np.ndarray | Sequence | None = None) -> np.ndarray:
    """(H, W) bool without its small components, or with only those that hold one of the points `at` (P, 2), x first.

    smallest: share of the picture.
    """
    if at is None and smallest <= 0:
        return mask
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= smallest * mask.size
    keep[0] = False
    if at is not None:
        h, w = mask.shape
        xy = np.asarray(at, dtype=float).reshape(-1, 2).astype(int)
        held = np.unique(labels[np.clip(xy[:, 1], 0, h - 1), np.clip(xy[:, 0], 0, w - 1)])
        keep &= np.isin(np.arange(count), held)
    return keep[labels]


def _examples(references: Features | Sequence[Features], masks: np.ndarray | Sequence[np.ndarray]) -> list[Example]:
    if isinstance(references, Features):
        references, masks = [references], [masks]
    if len(references) != len(masks):
        raise DinovizError(f"Each reference needs its mask: there are {len(references)} and {len(masks)}.")
    return [Example(features, mask) for features, mask in zip(references, masks, strict=True)]


def _clicks(
    grid: PatchGrid, points: np.ndarray | Sequence, labels: np.ndarray | Sequence
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clicks as rows (P,) and columns (P,) of patches and labels (P,) bool.

    points: (P, 2) x first, in pixels of the picture. labels: (P,), above 0 on the object.
    Raises DinovizError for other shapes, too many points, and points outside the picture.
    """
    points = np.asarray(points, dtype=float).reshape(-1, 2)
    labels = np.asarray(labels) > 0
    if labels.shape != (len(points),):
        raise DinovizError(f"Each point needs its label: there are {len(points)} and {labels.size}.")
    if len(points) > MAX_POINTS:
        raise DinovizError(f"At most {MAX_POINTS} points are taken, not {len(points)}.")
    rows, columns = grid.patch_at(points).T
    return rows, columns, labels


def _covariance(x: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(h * w, P): covariance of the score at each patch with the score at each click; similarity times nearness."""
    h, w = x.shape[:2]
    cosine = x.reshape(h * w, -1) @ x[rows, columns].T
    centres = np.stack(np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5), axis=-1).reshape(-1, 1, 2)
    squared = ((centres - centres.reshape(h, w, 2)[rows, columns]) ** 2).sum(axis=-1) / max(h, w) ** 2
    return np.exp(LIKENESS * (cosine - 1)) * (ANYWHERE + (1 - ANYWHERE) * np.exp(-squared / (2 * REACH**2)))


def _solved(between_clicks: np.ndarray, residual: np.ndarray) -> np.ndarray:
    return np.linalg.solve(between_clicks + NOISE * np.eye(len(residual)), residual)


def _agree(
    score: np.ndarray, covariance: np.ndarray, rows: np.ndarray, columns: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Scores (h, w) corrected to agree with the clicks: the error at each click spreads to similar patches near it."""
    error = np.where(labels, 1.0, -1.0) - np.clip(score[rows, columns], -1, 1)
    clicked = rows * score.shape[1] + columns
    return score + (covariance @ _solved(covariance[clicked], error)).reshape(score.shape)


def _finish(
    score: np.ndarray,
    calibrated: float,
    presence: float,
    features: Features,
    image: Image.Image | np.ndarray | None,
    threshold: float | None,
    refine: bool,
    smallest: float,
    at: np.ndarray | Sequence | None,
) -> Segmentation:
    """From scores (h, w) in [-1, 1] to the mask of the picture."""
    if threshold is not None:
        check_share("threshold", threshold)
    if not 0 <= smallest <= 1:
        raise DinovizError(f"The smallest area is a share from 0 to 1, not {smallest}.")
    patch_score = np.clip((score + 1) / 2, 0, 1).astype(np.float32)
    full = features.grid.resize(patch_score, "image")
    if refine and image is not None:
        picture = np.asarray(image)
        if picture.shape[:2] != full.shape:
            raise DinovizError(
                f"The picture has {picture.shape[1]} x {picture.shape[0]} pixels, its features are of "
                f"{full.shape[1]} x {full.shape[0]}."
            )
        full = EdgeFilter(picture, features.grid).apply(full)
    full = np.clip(full, 0, 1)
    threshold = (calibrated + 1) / 2 if threshold is None else threshold
    mask = components(full >= threshold, smallest=smallest, at=at)
    return Segmentation(full, mask, patch_score, float(threshold), presence >= 0.5, presence)
