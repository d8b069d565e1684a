"""What `python -m dinoviz segment` looks for: read from the arguments, learnt once, applied to each target."""

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
class Wanted:
    """The marks that were given, checked as far as that goes without a network.

    pictures: the references; masks: of each, (H, W) uint8, 0 or the number of a class, none if clicks are to make it.
    points: (P, 2) x first, labels: (P,) bool, on the reference, or on each target if there is none.
    names: of the classes, by their number in 1 to 255.
    """

    pictures: Sequence[Image.Image]
    masks: Sequence[np.ndarray]
    points: np.ndarray
    labels: np.ndarray
    names: dict[int, str]

    def digest(self) -> str:
        """A hash of all of it."""
        parts = [*map(image_digest, self.pictures), *(hashlib.sha256(mask).hexdigest() for mask in self.masks)]
        return hashlib.sha256(
            repr((parts, self.points.tolist(), self.labels.tolist(), self.names)).encode()
        ).hexdigest()


def read(options: argparse.Namespace) -> Wanted:
    """What the arguments mark. Raises DinovizError and ImageError where that cannot be."""
    given = [*options.point, *options.negative]
    points = np.array([common.numbers(text, 2, float) for text in given], dtype=float).reshape(-1, 2)
    labels = np.arange(len(given)) < len(options.point)
    if options.negative and not options.point:
        raise DinovizError("--negative says what is beside the thing; a --point on it is needed as well.")
    if options.mask and options.point:
        raise DinovizError("A reference is marked by its --mask or by --point, not by both.")
    if not options.reference:
        if options.mask:
            raise DinovizError("--mask belongs to a --reference, which is missing.")
        if not options.point:
            raise DinovizError("Nothing says what to look for: give --reference with --mask, or --point.")
        if options.debias or options.method != METHODS[0]:
            raise DinovizError("--debias and --method are about what a --reference teaches, which is missing.")
    elif options.point and len(options.reference) > 1:
        raise DinovizError(f"--point marks one reference, not {len(options.reference)}: give each its --mask.")
    elif not options.point and len(options.reference) != len(options.mask):
        many, masks = len(options.reference), len(options.mask)
        raise DinovizError(f"Each --reference needs its --mask: there are {many} and {masks}.")
    if options.all_instances and not options.point:
        raise DinovizError("--all-instances is about --point, which is missing; a mask finds all of them anyway.")
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
    masks, names = _numbered(values) if values else ([], {1: "thing"})
    return Wanted(pictures, masks, points, labels, names)


def _numbered(values: Sequence[np.ndarray]) -> tuple[list[np.ndarray], dict[int, str]]:
    """Masks whose classes have numbers up to 255, their own where that can be, and their names."""
    found = sorted({int(value) for mask in values for value in np.unique(mask)} - {0})
    if not found:
        raise DinovizError("The mask is empty: what is not 0 is the thing.")
    if len(found) == 1 and all(mask.all() for mask in values):
        raise DinovizError("The mask covers the whole picture: leave some background, so that there is a difference.")
    if len(found) == 1:
        return [(mask > 0).astype(np.uint8) for mask in values], {1: "thing"}
    numbers = found if found[-1] <= 255 else range(1, len(found) + 1)
    if len(found) > 255:
        raise DinovizError(f"The masks hold {len(found)} classes; at most 255 can be told apart.")
    names = [f"#{value - mask_files.COLOUR:06x}" if value >= mask_files.COLOUR else str(value) for value in found]
    table = np.array([0, *numbers], np.uint8)
    return [table[np.searchsorted([0, *found], mask)] for mask in values], dict(zip(numbers, names, strict=True))


def check_points(points: np.ndarray, size: tuple[int, int]) -> None:
    """Raises DinovizError if one of the points (P, 2) is outside a picture of this (width, height)."""
    for x, y in points.tolist():
        if not (0 <= x <= size[0] and 0 <= y <= size[1]):
            raise DinovizError(f"The point {x:g}, {y:g} is outside the picture of {size[0]} x {size[1]}.")


class Finder:
    """Finds in the features of any number of targets what was learnt once; nothing is kept of them."""

    def __init__(self, options: argparse.Namespace, wanted: Wanted, backbone: Backbone):
        """Encodes the references. Raises DinovizError where nothing can be learnt from them."""
        self.wanted, self.keep_absent, self.coco = wanted, options.keep_absent, options.format == "coco"
        self.layers = segment.layers_of(backbone.layers)
        self._everywhere = options.all_instances
        self._cut = {
            "threshold": options.threshold, "refine": not options.no_refine, "smallest": options.smallest / 100
        }  # fmt: skip
        self._concepts: dict[int, segment.Concept] = {}
        features = [backbone.encode(picture, options.resolution, self.layers) for picture in wanted.pictures]
        if features:
            bias = _bias(backbone, options.resolution, features[0].grid) if options.debias else None
            for number in wanted.names:
                self._concepts[number] = segment.fit(self._examples(features, number), options.method, bias)

    def check(self, size: tuple[int, int]) -> None:
        """Raises DinovizError if a target of this (width, height) cannot hold the points that are meant for it."""
        if not self.wanted.pictures:
            check_points(self.wanted.points, size)

    def find(self, features: Features, picture: Image.Image) -> tuple[np.ndarray, list[dict]]:
        """The label map (H, W) uint8 of a target, and what to note of each class.

        Where two classes claim a pixel, the one that is further above its threshold has it, as `segment.disjoint`
        does; here one class is in memory at a time.
        """
        labels = np.zeros(picture.size[::-1], np.uint8)
        best = np.full(labels.shape, -np.inf, np.float32)
        notes = []
        for number in self.wanted.names:
            found = self._find(number, features, picture)
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

    def _find(self, number: int, features: Features, picture: Image.Image) -> segment.Segmentation:
        if self._concepts:
            return segment.apply(self._concepts[number], features, picture, **self._cut)
        return self._clicked(features, picture)

    def _clicked(self, features: Features, picture: Image.Image) -> segment.Segmentation:
        points, labels = self.wanted.points, self.wanted.labels
        return segment.from_points(features, points, labels, picture, all_instances=self._everywhere, **self._cut)

    def _examples(self, features: Sequence[Features], number: int) -> list[segment.Example]:
        if self.wanted.masks:
            return [segment.Example(f, mask == number) for f, mask in zip(features, self.wanted.masks, strict=True)]
        mask = self._clicked(features[0], self.wanted.pictures[0]).mask
        return [segment.Example(features[0], mask, self.wanted.points, self.wanted.labels)]


def _bias(backbone: Backbone, resolution: int, grid: PatchGrid) -> Bias:
    layers = segment.layers_of(backbone.layers)
    return positional_bias([backbone.encode(blank, resolution, layers) for blank in content_free(grid.model_size)])
