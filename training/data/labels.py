"""Checks of labels: present, enough images in each class, the same classes in train and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dinoviz.errors import DinovizError
from training.data.dataset import split
from training.data.sources import Pictures


class LabelError(DinovizError):
    """Labels that a classifier cannot be trained on; the message says what was found and what is needed."""


def labelled(pictures: Pictures, who: str) -> Pictures:
    """The pictures, if they have at least two classes. who: the task, for the message. Raises LabelError."""
    if pictures.labels is None:
        raise LabelError(
            f"{who} needs labelled images, one folder for each class or a list with labels; "
            f"these {len(pictures)} images have no labels."
        )
    present = np.unique(pictures.labels)
    if len(present) < 2:
        name = pictures.classes[present[0]] if len(present) else "none"
        raise LabelError(f"{who} needs at least two classes; there is one, {name!r}.")
    return pictures


def aligned(pictures: Pictures, classes: Sequence[str]) -> Pictures:
    """Held-out pictures with label numbers of the training set's classes. Raises LabelError for other classes."""
    if pictures.labels is None:
        raise LabelError(f"The {len(pictures)} held-out images have no labels.")
    others = sorted(set(pictures.classes) - set(classes))
    if others:
        raise LabelError(
            f"The held-out images have classes that are not in the training images: {_some(others)}; "
            f"these have {_some(classes)}."
        )
    place = np.array([classes.index(name) for name in pictures.classes], dtype=np.int64)
    return replace(pictures, labels=place[pictures.labels], classes=tuple(classes))


def halves(pictures: Pictures, share: float, seed: int) -> tuple[Pictures, Pictures]:
    """The rest, and `share` of each class. Raises LabelError for classes with a single image."""
    counts = np.bincount(pictures.labels, minlength=len(pictures.classes))
    if (counts == 1).any():
        single = [pictures.classes[i] for i in np.flatnonzero(counts == 1)]
        raise LabelError(
            f"Each class needs at least two images, one of them held out; there is one for {_some(single)}."
        )
    return split(pictures, share, seed)


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
