"""A preview of images before training: their number, sizes and classes, broken ones, thumbnails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from dinoviz.images import ImageError
from dinoviz.render import display_copy
from training.data.sources import Pictures

MOST = 400  # pictures that are decoded, evenly spaced
SHOWN = 24
THUMBNAIL = 160  # pixels


@dataclass
class Preview:
    """Statistics of a set of pictures.

    count: of all pictures. looked: of those that were decoded. sizes: (width, height) of each readable one.
    classes: number of pictures of each class. broken: (name, reason) of those that cannot be read.
    thumbnails: (picture, label) of some, evenly spaced.
    """

    count: int
    looked: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    broken: list[tuple[str, str]] = field(default_factory=list)
    thumbnails: list[tuple[Image.Image, str]] = field(default_factory=list)

    @property
    def side(self) -> int:
        """The median of the short sides in pixels; 0 if no picture can be read."""
        return int(np.median([min(size) for size in self.sizes])) if self.sizes else 0


def preview(
    pictures: Pictures, *, most: int = MOST, progress: Callable[[str, float], None] = lambda what, share: None
) -> Preview:
    """Decode at most `most` of the pictures and summarise them.

    progress: called with a sentence and the share that is done; it may raise to end the preview.
    """
    found = Preview(len(pictures))
    if pictures.labels is not None:
        counted = Counter(pictures.labels.tolist())
        found.classes = {name: counted[i] for i, name in enumerate(pictures.classes)}
    places = np.unique(np.linspace(0, len(pictures) - 1, min(most, len(pictures))).astype(int))
    every = -(-len(places) // SHOWN)
    for number, i in enumerate(places):
        progress(f"Reading picture {number + 1} of {len(places)}", number / len(places))
        try:
            picture = pictures.open(i)
        except ImageError as error:
            found.broken.append((pictures.names[i], str(error)))
        else:
            found.sizes.append(picture.size)
            if number % every == 0:
                label = pictures.names[i] if pictures.labels is None else pictures.classes[pictures.labels[i]]
                found.thumbnails.append((display_copy(picture, THUMBNAIL, THUMBNAIL), label))
        found.looked += 1
    return found
