"""What the Segment tab's controls say, and what follows from it: masks, the concept, and where it is found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from PIL import Image

from dinoviz import segment
from dinoviz.cache import OnceCache
from dinoviz.errors import DinovizError
from dinoviz.features import Features
from dinoviz.segment.few_shot import METHODS
from dinoviz.segment.prompts import Marks, parse
from dinoviz.segment.segmentation import Segmentation
from dinoviz.ui.segment.targets import Target
from dinoviz.ui.workbench import Look

CLICKED, ALL = "what was clicked", "all instances"
OVERLAY, CUTOUT, SCORE, RAW = "mask", "cut-out", "score", "raw patch score"
VIEWS = (OVERLAY, CUTOUT, SCORE, RAW)


@dataclass(frozen=True)
class Choice:
    """What the controls say, in their order. auto: the calibrated threshold; smallest: percent of the picture."""

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
        for name, most in (("threshold", 1), ("smallest", 100), ("opacity", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise DinovizError(f"The {name} is a number from 0 to {most}, not {getattr(self, name)}.")

    @property
    def cut(self) -> dict:
        """How a score becomes a mask, for `segment`."""
        threshold = None if self.auto else self.threshold
        return {"threshold": threshold, "refine": self.refine, "smallest": self.smallest / 100}

    @property
    def mask_key(self) -> tuple:
        """What decides a mask."""
        return self.instances, *self.cut.values()


def at_size(features: Features, size: tuple[int, int]) -> Features:
    """The same features of a copy of the picture that has another size (width, height)."""
    return replace(features, grid=features.grid.at(size))


def mark(features: Features, picture: Image.Image, marks: Marks, choice: Choice) -> Segmentation | None:
    """What was marked on one picture, at the size of `picture` (the upload or a copy); None if nothing was.

    Clicks first, then the strokes over it, in order: what is drawn stays as it was drawn.
    """
    marks = marks.scaled(features.grid.image_size, picture.size)
    features = at_size(features, picture.size)
    if marks.labels.any():
        everywhere = choice.instances == ALL
        found = segment.from_points(
            features, marks.points, marks.labels, picture, all_instances=everywhere, **choice.cut
        )
        return replace(found, mask=marks.paint(found.mask))
    if not any(not stroke.erase for stroke in marks.strokes):
        return None
    mask = marks.paint(np.zeros(picture.size[::-1], dtype=bool))
    covered = features.grid.to_patches(mask)
    return Segmentation(mask.astype(np.float32), mask, covered, segment.THRESHOLD, True, 1.0)


def find(
    concept: segment.Concept, features: Features, picture: Image.Image, marks: Marks, choice: Choice
) -> Segmentation:
    """The thing in another picture, at the size of `picture`; marks: the corrections made there.

    Who marks the thing in a picture knows that it is there.
    """
    marks = marks.scaled(features.grid.image_size, picture.size)
    positive = marks.points[marks.labels == 1]
    at = positive if choice.instances == CLICKED and len(positive) else None
    clicks = {"points": marks.points, "labels": marks.labels}
    found = segment.apply(concept, at_size(features, picture.size), picture, at=at, **clicks, **choice.cut)
    marked = len(positive) > 0 or any(not stroke.erase for stroke in marks.strokes)
    return replace(found, mask=marks.paint(found.mask), present=found.present or marked)


def example(features: Features, marks: Marks, mask: np.ndarray | None = None) -> segment.Example:
    """What marks teach. Without a mask strokes count as clicks along them, one a patch."""
    points, labels = [marks.points], [marks.labels]
    for stroke in marks.strokes if mask is None else ():
        inside = stroke.points[((stroke.points >= 0) & (stroke.points <= features.grid.image_size)).all(axis=1)]
        if len(inside):
            _, first = np.unique(features.grid.patch_at(inside), axis=0, return_index=True)
            points.append(inside[first])
            labels.append(np.full(len(first), int(not stroke.erase)))
    return segment.Example(features, mask, np.concatenate(points), np.concatenate(labels))


@dataclass(frozen=True, eq=False)
class Search:
    """One reference and its marks, the corrections by the digest of their target, and what the controls say.

    kept: what was computed lately, for all who look. marks, corrections: as JSON holds them.
    """

    kept: OnceCache
    look: Look
    marks: list
    choice: Choice
    targets: Sequence[Target] = ()
    corrections: Mapping[str, list] = field(default_factory=dict)

    @cached_property
    def parsed(self) -> Marks:
        """The marks of the reference. Raises DinovizError."""
        return parse(self.marks, self.look.picture.size)

    def parsed_for(self, target: Target) -> Marks:
        """The corrections of a target. Raises DinovizError."""
        return parse(self.corrections.get(target.digest, []), target.size)

    @property
    def corrected(self) -> list[Target]:
        """The targets with corrections, in their order, each picture once."""
        once = {target.digest: target for target in self.targets}
        return [target for digest, target in once.items() if self.corrections.get(digest)]

    @cached_property
    def marked(self) -> Segmentation | None:
        """The reference's mask at the size that is shown, computed once; None if nothing is marked as the thing."""
        marks, look = self.parsed, self.look
        if not len(marks):
            return None
        key = "marked", look.key, json.dumps(self.marks), self.choice.mask_key
        return self.kept.get(key, lambda: (mark(look.features, look.picture.shown, marks, self.choice),))[0]

    @cached_property
    def concept(self) -> segment.Concept | None:
        """What is looked for, learnt once from the marks and the corrections; None if nothing is marked as the thing.

        Always from the reference at the size that is shown, so that downloads hold what the page showed.
        """
        if self.marked is None:
            return None
        taught = {target.digest: self.corrections[target.digest] for target in self.corrected}
        key = "concept", self.look.key, self.choice.mask_key, self.choice.method, json.dumps([self.marks, taught])

        def make() -> segment.Concept:
            picture = self.look.picture
            marks = self.parsed.scaled(picture.size, picture.shown.size)
            examples = [example(at_size(self.look.features, picture.shown.size), marks, self.marked.mask)]
            examples += [example(target.features, self.parsed_for(target)) for target in self.corrected]
            return segment.fit(examples, self.choice.method)

        return self.kept.get(key, make)

    @property
    def trouble(self) -> str:
        """Why nothing can be learnt from the marks (everything is marked, say), in one sentence, or ""."""
        try:
            self.concept  # noqa: B018 - it is the learning that may fail
        except DinovizError as error:
            return str(error)
        return ""

    def result(self, target: Target, picture: Image.Image) -> Segmentation | None:
        """The thing in a target, at the size of `picture`, one of its copies; None if there is nothing to look for."""
        if self.concept is None:
            return None
        return find(self.concept, target.features, picture, self.parsed_for(target), self.choice)
