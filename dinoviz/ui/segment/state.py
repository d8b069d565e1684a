"""What the Segment tab computes from its controls: masks, the concept, and where it is found."""

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
from dinoviz.segment.prompts import Marks, mask_of, parse
from dinoviz.segment.segmentation import Segmentation
from dinoviz.ui.mask_views import OVERLAY, VIEWS
from dinoviz.ui.segment.targets import Target
from dinoviz.ui.workbench import Look

CLICKED, ALL = "what was clicked", "all instances"


@dataclass(frozen=True)
class Choice:
    """The options, in the order of their controls. auto: calibrate the threshold; smallest: percent of the picture."""

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
        """How a score becomes a mask, as `segment.apply` takes it."""
        threshold = None if self.auto else self.threshold
        return {"threshold": threshold, "refine": self.refine, "smallest": self.smallest / 100}

    @property
    def mask_key(self) -> tuple:
        """What a mask depends on."""
        return self.instances, *self.cut.values()


@dataclass(frozen=True)
class Query:
    """What to segment: the values of the controls, or the parameters of an endpoint.

    marks: JSON, of the page by picture, of an endpoint a list. targets: uploaded files.
    """

    image: str | None
    model: str
    resolution: str
    marks: str
    targets: Sequence[str] | None
    corrections: str
    choice: Choice

    @classmethod
    def of(cls, image, model, resolution, marks, targets, corrections, *options) -> Query:
        """From values in the order of the controls. Raises DinovizError for an option that cannot be."""
        return cls(image, model, resolution, marks, targets, corrections, Choice(*options))


def at_size(features: Features, size: tuple[int, int]) -> Features:
    """The same features of a copy of the picture that has another size (width, height)."""
    return replace(features, grid=features.grid.at(size))


def mark(features: Features, picture: Image.Image, marks: Marks, choice: Choice) -> Segmentation | None:
    """The mask of the marks by the chosen options, as `mask_of`."""
    return mask_of(marks, features, picture, all_instances=choice.instances == ALL, **choice.cut)


def find(
    concept: segment.Concept, features: Features, picture: Image.Image, marks: Marks, choice: Choice
) -> Segmentation:
    """The object in another picture, at the size of `picture`; marks: the corrections made there.

    A picture in which the object is marked counts as one that has it, whatever the presence score.
    """
    marks = marks.scaled(features.grid.image_size, picture.size)
    positive = marks.points[marks.labels == 1]
    at = positive if choice.instances == CLICKED and len(positive) else None
    clicks = {"points": marks.points, "labels": marks.labels}
    found = segment.apply(concept, at_size(features, picture.size), picture, at=at, **clicks, **choice.cut)
    marked = len(positive) > 0 or any(not stroke.erase for stroke in marks.strokes)
    return replace(found, mask=marks.paint(found.mask), present=found.present or marked)


def example(features: Features, marks: Marks, mask: np.ndarray | None = None) -> segment.Example:
    """Marks as an example to learn from. Without a mask, strokes count as clicks along them, one a patch."""
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
    """A reference with its marks, the targets with their corrections, and the options.

    cache: of masks and concepts. marks: as in JSON. corrections: the same by the digest of their target.
    """

    cache: OnceCache
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
    def reference(self) -> Segmentation | None:
        """The reference's mask at the size that is shown, computed once; None if no object is marked."""
        marks, look = self.parsed, self.look
        if not len(marks):
            return None
        key = "reference", look.key, json.dumps(self.marks), self.choice.mask_key
        return self.cache.get(key, lambda: (mark(look.features, look.picture.shown, marks, self.choice),))[0]

    @cached_property
    def concept(self) -> segment.Concept | None:
        """The model of the object, fitted once to the marks and corrections; None if no object is marked.

        Always from the reference at the size that is shown, so that downloads equal the page.
        """
        if self.reference is None:
            return None
        corrections = {target.digest: self.corrections[target.digest] for target in self.corrected}
        marks = json.dumps([self.marks, corrections])
        key = "concept", self.look.key, self.choice.mask_key, self.choice.method, marks

        def make() -> segment.Concept:
            picture = self.look.picture
            marks = self.parsed.scaled(picture.size, picture.shown.size)
            examples = [example(at_size(self.look.features, picture.shown.size), marks, self.reference.mask)]
            examples += [example(target.features, self.parsed_for(target)) for target in self.corrected]
            return segment.fit(examples, self.choice.method)

        return self.cache.get(key, make)

    @property
    def problem(self) -> str:
        """Why no concept can be fitted to the marks (everything is marked, say), in one sentence, or ""."""
        try:
            self.concept  # noqa: B018 - fitting may fail
        except DinovizError as error:
            return str(error)
        return ""

    def result(self, target: Target, picture: Image.Image) -> Segmentation | None:
        """The object in a target, at the size of `picture`, one of its copies; None if no object is marked."""
        if self.concept is None:
            return None
        return find(self.concept, target.features, picture, self.parsed_for(target), self.choice)
