"""Masks as files: label maps and pictures in colours -> classes, and back."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from dinoviz.atomic_files import whole
from dinoviz.images import ImageError, open_image
from dinoviz.render import label_colours

MAX_COLOURS = 64  # of a mask's picture; a photograph has thousands
COLOUR = 1 << 24  # above all grey values: the classes of a mask in colours begin here


def read_mask(path: str | os.PathLike) -> np.ndarray:
    """A mask file as a label map (H, W) uint8: 0 for background, 1 to K for the objects, in the order of their values.

    What counts as an object, and what is raised: see `read_classes`.
    """
    values = read_classes(path)
    return np.searchsorted(np.unique(values[values > 0]), values, side="right").astype(np.uint8)


def read_classes(path: str | os.PathLike) -> np.ndarray:
    """A mask file as the values (H, W) int32 that its author gave to the classes: 0 for background.

    Palette pictures: each index is a class, the background is 0. Grey: each value beside 0 is a class, but where there
    is 255 (or 65535) the picture is a mask of one thing, soft ones are cut at half, and that is class 1. Colours: black
    is the background, each other colour a class, COLOUR + its 24 bits. A transparent picture: what is opaque is 1.

    Raises ImageError for what cannot be read and for a picture that is no mask.
    """
    path = Path(path)
    open_image(path)  # says in one sentence what is wrong with a file that is no picture
    with Image.open(path) as image:
        if image.mode in ("RGBA", "LA") and image.getchannel("A").getextrema()[0] < 255:
            return (np.asarray(image.getchannel("A")) > 127).astype(np.int32)
        values = np.asarray(
            image if image.mode in ("1", "L", "P") or image.mode.startswith("I") else image.convert("RGB")
        )
        palette = image.mode == "P"
    values = values.astype(np.int32)
    if values.min() < 0:
        raise ImageError(f"{path.name}: the values of a mask are classes from 0, not {values.min()}.")
    if values.ndim == 3 and int(np.ptp(values, axis=2).max()) <= 8:  # grey but for JPEG's rounding
        values = values[..., 1]
    soft = values.ndim == 2 and not palette
    if values.ndim == 3:
        values = values @ np.array([65536, 256, 1], np.int32)
        values[values > 0] += COLOUR
    found = np.unique(values[values > 0])
    if soft and (values.max() in (255, 65535) or len(found) > MAX_COLOURS):
        return (values > values.max() / 2).astype(np.int32)
    if len(found) > MAX_COLOURS:
        raise ImageError(f"{path.name}: a picture of {len(found):,} colours is no mask.")
    return values


def write_mask(path: Path, mask: np.ndarray, objects: int) -> None:
    """A label map (H, W) uint8 as PNG, whole or not at all: 0 and 255 for one object, a palette picture for several."""
    if objects == 1:
        image = Image.fromarray((mask > 0).astype(np.uint8) * 255)
    else:
        image = Image.fromarray(mask)
        image.putpalette(label_colours().tobytes())  # which makes it a palette picture
    with whole(path) as part:
        image.save(part, format="PNG")


def read_labels(path: Path) -> np.ndarray:
    """What `write_mask` wrote, as the label map (H, W) uint8. Raises ImageError for a file that is damaged."""
    open_image(path)
    with Image.open(path) as image:
        return np.array(image) if image.mode == "P" else (np.asarray(image) > 0).astype(np.uint8)
