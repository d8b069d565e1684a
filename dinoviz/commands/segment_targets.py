"""The query of `python -m dinoviz segment`, read from the arguments, and its segmentation in each target."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dinoviz import mask_files, segment
from dinoviz.cache import image_digest
from dinoviz.commands import common
from dinoviz.errors import DinovizError
from dinoviz.features import Features
from dinoviz.grid import PatchGrid
from dinoviz.images import open_image
from dinoviz.segment import coco
from dinoviz.segment.few_shot import METHODS
from dinoviz.segment.positional_bias import Bias, content_free, positional_bias

if TYPE_CHECKING:
    from PIL import Image

    from dinoviz.backbone import Backbone


@dataclass(frozen=True, eq=False)
class Query:
    """What to segment, checked as far as possible without a network.

    pictures: the references. masks: (H, W) uint8 of each, 0 or the number of a class; empty if points are given.
    points: (P, 2) x first, labels: (P,) bool, on the reference, or without one on each target.
    names: of the classes, by their number from 1 to 255.
    """

    pictures: Sequence[Image.Image]
    masks: Sequence[np.ndarray]
    points: np.ndarray
    labels: np.ndarray
    names: dict[int, str]

    def digest(self) -> str:
        """A hash of the whole query."""
        parts = [
            *map(image_digest, self.pictures),
            *(hashlib.sha256(mask.tobytes()).hexdigest() for mask in self.masks),
        ]
        return hashlib.sha256(
            repr((parts, self.points.tolist(), self.labels.tolist(), self.names)).encode()
        ).hexdigest()


def read_query(options: argparse.Namespace) -> Query:
    """Read the query from the arguments. Raises DinovizError and ImageError if they are not valid."""
    given = [*options.point, *options.negative]
    points = np.array([common.numbers(text, 2, float) for text in given], dtype=float).reshape(-1, 2)
    labels = np.arange(len(given)) < len(options.point)
    if options.negative and not options.point:
        raise DinovizError("--negative marks background: a --point on the object is needed as well.")
    if options.mask and options.point:
        raise DinovizError("Give either --mask or --point for a --reference, not both.")
    if not options.reference:
        if options.mask:
            raise DinovizError("--mask needs a --reference.")
        if not options.point:
            raise DinovizError("Give the object to segment with --reference and --mask, or with --point.")
        if options.debias or options.method != METHODS[0]:
            raise DinovizError("--debias and --method need a --reference.")
    elif options.point and len(options.reference) > 1:
        raise DinovizError(f"--point works with one --reference, not {len(options.reference)}: give each a --mask.")
    elif not options.point and len(options.reference) != len(options.mask):
        counts = f"{len(options.reference)} references and {len(options.mask)} masks"
        raise DinovizError(f"Each --reference needs one --mask: got {counts}.")
    if options.all_instances and not options.point:
        raise DinovizError("--all-instances needs --point; with a mask, all instances are found anyway.")
    pictures = [open_image(path, name=str(path)) for path in options.reference]
    if pictures and options.point:
        check_points(points, pictures[0].size)
    values = [mask_files.read_classes(path) for path in options.mask]
    for path, value, picture in zip(options.mask, values, pictures, strict=False):
        if value.shape != picture.size[::-1]:
            h, w = value.shape
            raise DinovizError(
                f"{path}: the mask has {w} x {h} pixels, its reference {picture.width} x {picture.height}."
            )
    masks, names = _numbered(values) if values else ([], {1: "object"})
    return Query(pictures, masks, points, labels, names)


def _numbered(values: Sequence[np.ndarray]) -> tuple[list[np.ndarray], dict[int, str]]:
    """Masks with classes numbered up to 255, by their own values if possible, and the names of the classes."""
    found = sorted({int(value) for mask in values for value in np.unique(mask)} - {0})
    if not found:
        raise DinovizError("The mask is empty: the object must not be 0.")
    if len(found) == 1 and all(mask.all() for mask in values):
        raise DinovizError("The mask covers the whole picture: leave some background unmarked.")
    if len(found) == 1:
        return [(mask > 0).astype(np.uint8) for mask in values], {1: "object"}
    numbers = found if found[-1] <= 255 else range(1, len(found) + 1)
    if len(found) > 255:
        raise DinovizError(f"The masks have {len(found)} classes; at most 255 are supported.")
    names = [f"#{value - mask_files.COLOUR:06x}" if value >= mask_files.COLOUR else str(value) for value in found]
    table = np.array([0, *numbers], np.uint8)
    return [table[np.searchsorted([0, *found], mask)] for mask in values], dict(zip(numbers, names, strict=True))


def check_points(points: np.ndarray, size: tuple[int, int]) -> None:
    """Raise DinovizError if one of the points (P, 2) is outside a picture of this (width, height)."""
    for x, y in points.tolist():
        if not (0 <= x <= size[0] and 0 <= y <= size[1]):
            raise DinovizError(f"The point {x:g}, {y:g} is outside the picture of {size[0]} x {size[1]}.")


class Segmenter:
    """Segments the object of a query in any number of targets."""

    def __init__(self, options: argparse.Namespace, query: Query, backbone: Backbone):
        """Encode the references and learn from them. Raises DinovizError as `segment.fit` does."""
        self.query, self.keep_absent, self.coco = query, options.keep_absent, options.format == "coco"
        self.layers = segment.layers_of(backbone.layers)
        self._all_instances = options.all_instances
        self._options = {
            "threshold": options.threshold, "refine": not options.no_refine, "smallest": options.smallest / 100
        }  # fmt: skip
        self._concepts: dict[int, segment.Concept] = {}
        features = [backbone.encode(picture, options.resolution, self.layers) for picture in query.pictures]
        if features:
            bias = _bias(backbone, options.resolution, features[0].grid) if options.debias else None
            for number in query.names:
                self._concepts[number] = segment.fit(self._examples(features, number), options.method, bias)

    def check(self, size: tuple[int, int]) -> None:
        """Raise DinovizError if the points of the query are outside a target of this (width, height)."""
        if not self.query.pictures:
            check_points(self.query.points, size)

    def label_map(self, features: Features, picture: Image.Image) -> tuple[np.ndarray, list[dict]]:
        """The label map (H, W) uint8 of a target, and the log entry of each class.

        A pixel above the thresholds of several classes goes to the class whose threshold it exceeds most, as in
        `segment.disjoint`, but with one class in memory at a time.
        """
        labels = np.zeros(picture.size[::-1], np.uint8)
        best = np.full(labels.shape, -np.inf, np.float32)
        notes: list[dict] = []
        for number in self.query.names:
            found = self._segment(number, features, picture)
            if found.present or self.keep_absent:
                excess = found.score - found.threshold
                won = found.mask & (excess > best)
                labels[won], best[won] = number, excess[won]
            notes.append(
                {"number": number, "present": bool(found.present), "presence": float(found.presence),
                 "threshold": float(found.threshold)}
            )  # fmt: skip
        for note in notes:
            mask = labels == note["number"]
            note["area"] = int(mask.sum())
            if self.coco and note["area"]:
                note["annotation"] = coco.annotation(mask, note["presence"])
        return labels, notes

    def _segment(self, number: int, features: Features, picture: Image.Image) -> segment.Segmentation:
        if self._concepts:
            return segment.apply(self._concepts[number], features, picture, **self._options)
        return self._clicked(features, picture)

    def _clicked(self, features: Features, picture: Image.Image) -> segment.Segmentation:
        points, labels, every = self.query.points, self.query.labels, self._all_instances
        return segment.from_points(features, points, labels, picture, all_instances=every, **self._options)

    def _examples(self, features: Sequence[Features], number: int) -> list[segment.Example]:
        if self.query.masks:
            return [segment.Example(f, mask == number) for f, mask in zip(features, self.query.masks, strict=True)]
        mask = self._clicked(features[0], self.query.pictures[0]).mask
        return [segment.Example(features[0], mask, self.query.points, self.query.labels)]


def _bias(backbone: Backbone, resolution: int, grid: PatchGrid) -> Bias:
    layers = segment.layers_of(backbone.layers)
    return positional_bias([backbone.encode(blank, resolution, layers) for blank in content_free(grid.model_size)])
