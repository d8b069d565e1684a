"""Segmentation without training: segment a clicked object, or find a marked object in other pictures."""

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

THRESHOLD = 0.5  # half way between the scores of the references' background and object
MAX_POINTS = 1000

# For clicks, chosen by simulated clicks on DAVIS with the embedded weights (tests/benchmarks/segmentation.py).
LIKENESS, REACH, ANYWHERE = 3.0, 0.15, 0.2
NOISE = 0.02
ROUNDS, SURE, TEACHERS = 2, 0.3, 400
RIDGE = 0.015


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The object in one picture.

    score: (H, W) float32 in [0, 1] at the picture's size, from 0, like the background, to 1, like the object.
    mask: (H, W) bool, score >= threshold, without the components that were filtered out.
    patch_score: (h, w) float32 in [0, 1], the score on the raw patch grid.
    threshold: the given or the calibrated one.
    present: whether the object is in the picture: presence >= 0.5. presence: the presence score in [0, 1]. The mask
    does not depend on them: it is where the object would be.
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
    """Segment the object that `fit` learnt in a picture, without a forward pass.

    A picture that was itself an example with a mask keeps that mask, unless a threshold or points are given.

    Args:
        concept: from `fit`.
        features: of the picture, with the layers of `layers_of` captured.
        image: the picture (H, W, 3), whose edges the mask follows if `refine`; without it the mask is bilinear.
        threshold: of the score in [0, 1]; None for the calibrated one.
        refine: follow the edges of `image`.
        smallest: drop components below this share of the picture.
        at: (P, 2), keep only the components that contain one of these points.
        points: (P, 2) clicks on this picture, x first, to correct the score with.
        labels: (P,) of the clicks, 1 for object and 0 for background.

    Raises:
        DinovizError: for features without the layers, an image of another size, and points outside the picture.
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
    """Segment the clicked object, without a forward pass.

    A Gaussian process with the clicks as observations gives initial scores: its covariance is the similarity of the
    features times spatial proximity, its prior mean follows from Otsu's threshold on the similarity to the positive
    clicks. The most confident patches are the training set of a ridge regression, whose scores the process then
    corrects around clicks that they disagree with.

    Args:
        features: of the picture, with the layers of `layers_of` captured.
        points: (P, 2) x first, in pixels of the picture.
        labels: (P,), 1 for object and 0 for background.
        image: as for `apply`, like `threshold`, `refine` and `smallest`.
        all_instances: keep all similar components, not only those that contain a positive click.

    Raises:
        DinovizError: without a positive click, and as `apply` does.
    """
    rows, columns, labels = _clicks(features.grid, points, labels)
    if not labels.any():
        raise DinovizError("Click on the object: so far there are only background clicks.")
    x = joined(features)
    flat = x.reshape(-1, x.shape[-1])
    clicked = rows * x.shape[1] + columns
    observed = np.where(labels, 1.0, -1.0)
    covariance = _covariance(x, rows, columns)
    alike = covariance[:, labels].max(axis=1)
    cut = min(otsu(alike), 0.99)
    prior = -cut / (1 - cut)  # so that with one click, patches at the threshold get score 0
    score = prior + covariance @ _solved(covariance[clicked], observed - prior)
    for _ in range(ROUNDS):
        object_ = np.flatnonzero(score > SURE * score.max())
        rest = np.flatnonzero(score < SURE * min(np.quantile(score, 0.1), -1e-3))
        if min(len(object_), len(rest)) < 2:
            break
        # A sample of each side, so that a click takes the same time on any grid.
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
    """Segment the object that `masks` (H, W) mark in `references` in the picture of `target`.

    image: the target's picture. method and bias as for `fit`, options as for `apply`. For many targets call `fit` once
    and `apply` for each. Raises DinovizError as they do.
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
    """Segment several classes: labels (H, W) integers, 0 for background -> Segmentation by class, with disjoint masks.

    A pixel above the thresholds of several classes goes to the class whose threshold it exceeds most.
    """
    examples = _examples(references, labels)
    classes = sorted({int(c) for example in examples for c in np.unique(np.asarray(example.mask))} - {0})
    if not classes:
        raise DinovizError("The label maps are empty: all their pixels are 0.")
    found = {}
    for number in classes:
        marked = [replace(example, mask=np.asarray(example.mask) == number) for example in examples]
        found[number] = apply(fit(marked, method), target, image, **options)
    return disjoint(found)


def disjoint(found: Mapping[int, Segmentation]) -> dict[int, Segmentation]:
    """Make the masks disjoint: each pixel goes to the class whose threshold it exceeds most."""
    excess = np.stack([np.where(f.mask, f.score - f.threshold, -np.inf) for f in found.values()])
    winner = excess.argmax(axis=0)
    return {key: replace(f, mask=f.mask & (winner == i)) for i, (key, f) in enumerate(found.items())}


def components(mask: np.ndarray, *, smallest: float = 0.0, at: np.ndarray | Sequence | None = None) -> np.ndarray:
    """Filter the connected components of a mask (H, W) bool.

    smallest: drop components below this share of the picture. at: (P, 2) x first, keep only components that contain one
    of these points.
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
        references, masks = [references], [np.asarray(masks)]
    if len(references) != len(masks):
        raise DinovizError(f"Each reference needs one mask: got {len(references)} references and {len(masks)} masks.")
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
        raise DinovizError(f"Each point needs one label: got {len(points)} points and {labels.size} labels.")
    if len(points) > MAX_POINTS:
        raise DinovizError(f"At most {MAX_POINTS} points are accepted, not {len(points)}.")
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
    """Make the Segmentation of a picture from scores (h, w) in [-1, 1]."""
    if threshold is not None:
        check_share("threshold", threshold)
    if not 0 <= smallest <= 1:
        raise DinovizError(f"The smallest area must be a share from 0 to 1, not {smallest}.")
    patch_score = np.clip((score + 1) / 2, 0, 1).astype(np.float32)
    full = features.grid.resize(patch_score, "image")
    if refine and image is not None:
        picture = np.asarray(image)
        if picture.shape[:2] != full.shape:
            raise DinovizError(
                f"The picture has {picture.shape[1]} x {picture.shape[0]} pixels, but its features are of a picture of "
                f"{full.shape[1]} x {full.shape[0]}."
            )
        full = EdgeFilter(picture, features.grid).apply(full)
    full = np.clip(full, 0, 1)
    threshold = (calibrated + 1) / 2 if threshold is None else threshold
    mask = components(full >= threshold, smallest=smallest, at=at)
    return Segmentation(full, mask, patch_score, float(threshold), presence >= 0.5, presence)
