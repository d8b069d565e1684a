"""What the Segment tab's controls say, and what follows from it: masks, concepts, pictures of them, words."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from dinoviz import export, render, segment
from dinoviz.errors import DinovizError
from dinoviz.features import Features
from dinoviz.marks import Marks
from dinoviz.segment import Segmentation
from dinoviz.ui.workbench import Look, Workbench

CLICKED, ALL = "what was clicked", "all instances"
OVERLAY, CUTOUT, SCORE, RAW = "mask", "cut-out", "score", "raw patch score"
VIEWS = (OVERLAY, CUTOUT, SCORE, RAW)
METHODS = ("evidence", "mean")


@dataclass(frozen=True)
class Choice:
    """What the controls say, in their order. smallest: percent of the picture."""

    auto: bool = True
    threshold: float = segment.THRESHOLD
    refine: bool = True
    smallest: float = 0.1
    instances: str = CLICKED
    method: str = "evidence"
    view: str = OVERLAY
    opacity: float = 0.5

    def __post_init__(self):
        for name, known in (("instances", (CLICKED, ALL)), ("method", METHODS), ("view", VIEWS)):
            if getattr(self, name) not in known:
                raise DinovizError(f"There is no {name} {getattr(self, name)!r}; there are {', '.join(known)}.")

    @property
    def cut(self) -> dict:
        """How a score becomes a mask, for `segment`."""
        threshold = None if self.auto else self.threshold
        return {"threshold": threshold, "refine": self.refine, "smallest": self.smallest / 100}


def at_size(features: Features, size: tuple[int, int]) -> Features:
    """The same features of a copy of the picture that has another size (width, height)."""
    return replace(features, grid=replace(features.grid, image_size=size))


def mark(features: Features, picture: Image.Image, marks: Marks, choice: Choice) -> Segmentation | None:
    """What was marked on one picture, at the size of `picture` (the upload or a copy); None if nothing was.

    Clicks first, then the strokes over it, in order: what is drawn stays as it was drawn.
    """
    original = features.grid.image_size
    features = at_size(features, picture.size)
    if marks.labels.any():
        points = marks.points * np.divide(picture.size, original)
        found = segment.from_points(
            features, points, marks.labels, picture, all_instances=choice.instances == ALL, **choice.cut
        )
        return replace(found, mask=marks.paint(found.mask, original))
    if not any(not stroke.erase for stroke in marks.strokes):
        return None
    mask = marks.paint(np.zeros(picture.size[::-1], dtype=bool), original)
    covered = features.grid.to_patches(mask)
    return Segmentation(mask.astype(np.float32), mask, covered, segment.THRESHOLD, True, 1.0)


def find(
    concept: segment.Concept, features: Features, picture: Image.Image, marks: Marks, choice: Choice
) -> Segmentation:
    """The thing in another picture, at the size of `picture`; marks: the corrections made there."""
    original = features.grid.image_size
    features = at_size(features, picture.size)
    positive = marks.points[marks.labels == 1] * np.divide(picture.size, original)
    at = positive if choice.instances == CLICKED and len(positive) else None
    found = concept.apply(features, picture, at=at, **choice.cut)
    shown_here = len(positive) > 0 or any(not stroke.erase for stroke in marks.strokes)
    return replace(found, mask=marks.paint(found.mask, original), present=found.present or shown_here)


def example(features: Features, marks: Marks, mask: np.ndarray | None = None) -> segment.Example:
    """What marks teach. Without a mask strokes count as clicks along them, one a patch."""
    points, labels = [marks.points], [marks.labels]
    if mask is None:
        for stroke in marks.strokes:
            inside = stroke.points[((stroke.points >= 0) & (stroke.points <= features.grid.image_size)).all(axis=1)]
            if len(inside):
                _, first = np.unique(features.grid.patch_at(inside), axis=0, return_index=True)
                points.append(inside[first])
                labels.append(np.full(len(first), int(not stroke.erase)))
    return segment.Example(features, mask, np.concatenate(points), np.concatenate(labels))


@dataclass(frozen=True, eq=False)
class Reference:
    """The picture one points at, with its marks (as JSON holds them, and parsed)."""

    look: Look
    raw: list
    marks: Marks

    def key(self, choice: Choice) -> Hashable:
        """What decides the mask."""
        return self.look.key, json.dumps(self.raw), choice.instances, *choice.cut.values()

    def segmentation(self, bench: Workbench, choice: Choice) -> Segmentation | None:
        """At the size that is shown; computed once."""
        if not len(self.marks):
            return None
        look = self.look

        def make() -> tuple:
            return (mark(look.features, look.picture.shown, self.marks, choice),)

        return bench.derived(("marked", self.key(choice)), make)[0]


def draw(picture: Image.Image, features: Features, found: Segmentation | None, choice: Choice) -> Image.Image:
    """The picture as the chosen view shows it, at its size."""
    if found is None:
        return picture
    if choice.view == OVERLAY:
        return export.overlay(picture, found.mask, choice.opacity)
    if choice.view == CUTOUT:
        return export.on_checkers(picture, found.mask)
    if choice.view == RAW:
        return render.map_picture(
            picture,
            features.grid,
            found.patch_score,
            colormap="viridis",
            opacity=choice.opacity,
            raw=True,
            scale=(0, 1),
        )
    colours = render.colourise(found.score, (0, 1), "viridis")
    return export.outline(Image.blend(picture, Image.fromarray(colours), choice.opacity), found.mask)


def in_words(marks: Marks) -> str:
    """How much is marked: "2 clicks, 1 beside, 3 strokes"."""
    positive = int(marks.labels.sum())
    counts = ((positive, "click"), (len(marks.clicks) - positive, "click beside it"), (len(marks.strokes), "stroke"))
    return ", ".join(f"{n} {_plural(word, n)}" for n, word in counts if n)


def _plural(word: str, count: int) -> str:
    first, *rest = word.split(" ", 1)
    return " ".join([first if count == 1 else f"{first}s", *rest])


def layers_in_words(layers: int, chosen: Sequence[int] = segment.LAYERS) -> str:
    """The layers that are read, counted from 1: "layers 9 and 12 of 12"."""
    return f"layers {' and '.join(str(layer % layers + 1) for layer in chosen)} of {layers}"
