"""Segmentation without training: point at a thing, or mark it in one picture, and find it there and in others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from dinoviz.errors import DinovizError
from dinoviz.features import Features

Method = Literal["evidence", "mean"]

LAYERS = (-4, -1)  # the layers that are read: encode with these, or with "all"
THRESHOLD = 0.5


@dataclass(frozen=True, eq=False)
class Example:
    """What a person marked on one picture.

    features: of the picture, with LAYERS captured.
    mask: (H, W) bool at the picture's size, True on the object; all else counts as background. None: only points.
    points: (P, 2) x first, in pixels of the picture; labels: (P,), 1 on the object and 0 beside it.
    """

    features: Features
    mask: np.ndarray | None = None
    points: np.ndarray | Sequence = ()
    labels: np.ndarray | Sequence = ()


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The object in one picture.

    score: (H, W) float32 in [0, 1] at the picture's size; mask: (H, W) bool, what is kept of score >= threshold.
    patch_score: (h, w) float32 in [0, 1], the same before it met the pixels: the raw patch grid.
    present: whether the object is in the picture at all; presence: the evidence for it in [0, 1], present from 0.5.
    """

    score: np.ndarray
    mask: np.ndarray
    patch_score: np.ndarray
    threshold: float
    present: bool
    presence: float


@dataclass(frozen=True, eq=False)
class Concept:
    """What was learnt from the examples; applying it costs the same however many there were."""

    weights: np.ndarray
    bias: float

    def patch_scores(self, features: Features) -> np.ndarray:
        """(h, w) float32 in [0, 1]."""
        x = _stack(features)
        return (1 / (1 + np.exp(-(x @ self.weights + self.bias)))).astype(np.float32)

    def apply(
        self,
        features: Features,
        image: Image.Image | np.ndarray | None = None,
        *,
        threshold: float | None = None,
        refine: bool = True,
        smallest: float = 0.0,
        at: Sequence | np.ndarray | None = None,
    ) -> Segmentation:
        """Find the object in a picture.

        image: the picture (H, W, 3), whose edges the mask follows if `refine`; without it the mask is bilinear.
        threshold: of the score in [0, 1]; None is the calibrated one.
        smallest: components below this share of the picture are dropped. at: (P, 2), keep only components that hold
        one of these points.
        """
        patch_score = self.patch_scores(features)
        score = np.clip(features.grid.resize(patch_score, "image"), 0, 1)
        threshold = THRESHOLD if threshold is None else threshold
        mask = components(score >= threshold, smallest=smallest, at=at)
        presence = float(patch_score.max())
        return Segmentation(score, mask, patch_score, threshold, presence >= 0.5, presence)


def fit(examples: Sequence[Example], method: Method = "evidence") -> Concept:
    """Learn a thing from examples. Raises DinovizError where nothing, or everything, is marked."""
    from sklearn.linear_model import LogisticRegression

    xs, ys = [], []
    for example in examples:
        x = _stack(example.features)
        if example.mask is not None:
            covered = example.features.grid.to_patches(example.mask).ravel()
            sure = (covered > 0.5) | (covered < 0.1)
            xs.append(x.reshape(-1, x.shape[-1])[sure])
            ys.append(covered[sure] > 0.5)
        if len(example.points):
            rows, columns = example.features.grid.patch_at(example.points).T
            xs.append(x[rows, columns])
            ys.append(np.asarray(example.labels) > 0)
    x, y = np.concatenate(xs), np.concatenate(ys)
    if y.all() or not y.any():
        raise DinovizError("Nothing is marked as the object." if not y.any() else "Everything is marked.")
    model = LogisticRegression(C=1.0, max_iter=200).fit(x, y)
    return Concept(model.coef_[0].astype(np.float32), float(model.intercept_[0]))


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
    """Segment what was clicked: points (P, 2) x first in pixels of the picture, labels (P,) 1 on the thing, 0 beside it.

    No forward pass. all_instances: keep everything alike, not only what is connected with a positive click.
    """
    x = _stack(features)
    rows, columns = features.grid.patch_at(points).T
    positive = np.asarray(labels) > 0
    clicked = x[rows, columns]
    near = (x @ clicked[positive].T).max(axis=-1)
    far = (x @ clicked[~positive].T).max(axis=-1) if (~positive).any() else np.full(near.shape, 0.5 * x.shape[-1] ** 0)
    patch_score = (1 / (1 + np.exp(-10 * (near - far)))).astype(np.float32)
    score = np.clip(features.grid.resize(patch_score, "image"), 0, 1)
    threshold = THRESHOLD if threshold is None else threshold
    at = None if all_instances else np.asarray(points)[positive]
    return Segmentation(
        score, components(score >= threshold, smallest=smallest, at=at), patch_score, threshold, True, 1
    )


def from_reference(
    target: Features,
    references: Features | Sequence[Features],
    masks: np.ndarray | Sequence[np.ndarray],
    image: Image.Image | np.ndarray | None = None,
    *,
    method: Method = "evidence",
    **options,
) -> Segmentation:
    """Find in `target` what `masks` (H, W) mark in `references`; options as `Concept.apply` takes them."""
    if isinstance(references, Features):
        references, masks = [references], [masks]
    return fit([Example(f, m) for f, m in zip(references, masks, strict=True)], method).apply(target, image, **options)


def components(mask: np.ndarray, *, smallest: float = 0.0, at: np.ndarray | Sequence | None = None) -> np.ndarray:
    """(H, W) bool without its small components, or with only those that hold one of the points `at` (P, 2), x first.

    smallest: share of the picture.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= smallest * mask.size
    keep[0] = False
    if at is not None:
        h, w = mask.shape
        xy = np.asarray(at, dtype=float).reshape(-1, 2).astype(int)
        held = np.unique(labels[np.clip(xy[:, 1], 0, h - 1), np.clip(xy[:, 0], 0, w - 1)])
        keep &= np.isin(np.arange(count), held)
    return keep[labels]


def _stack(features: Features) -> np.ndarray:
    """(h, w, len(LAYERS) * D), every layer's patch of length 1 before they are joined."""
    parts = [features.layer(layer) for layer in LAYERS]
    joined = np.concatenate([p / np.linalg.norm(p, axis=-1, keepdims=True) for p in parts], axis=-1)
    return joined / len(LAYERS) ** 0.5
