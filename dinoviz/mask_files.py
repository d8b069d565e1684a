"""Read and write masks as image files: label maps, palettes and colours."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from dinoviz.atomic_files import whole
from dinoviz.images import ImageError, open_image
from dinoviz.render import label_colours

MAX_COLOURS = 64  # of a mask file; a photograph has thousands
COLOUR = 1 << 24  # first class of a mask in colours, above all grey values


def read_mask(path: str | os.PathLike) -> np.ndarray:
    """Read a mask file as a label map (H, W) uint8: 0 for background, 1 to K for the objects, ordered by value.

    See `read_classes` for the accepted files and for errors.
    """
    values = read_classes(path)
    return np.searchsorted(np.unique(values[values > 0]), values, side="right").astype(np.uint8)


def read_classes(path: str | os.PathLike) -> np.ndarray:
    """Read a mask file as its class values (H, W) int32, 0 for background.

    Palette images: each index is a class. Grey images: each value is a class; but if the largest is 255 (or 65535), or
    there are more than MAX_COLOURS values, the image is a soft mask of one object, class 1 above half of the maximum.
    Colour images: black is the background, each other colour the class COLOUR + its 24 bits. Images with transparency:
    opaque pixels are class 1.

    Raises ImageError for files that cannot be read and pictures that are not masks.
    """
    path = Path(path)
    open_image(path)  # raises ImageError unless the file is an image
    with Image.open(path) as image:
        if image.mode in ("RGBA", "LA") and (alpha := np.asarray(image.getchannel("A"))).min() < 255:
            return (alpha > 127).astype(np.int32)
        values = np.asarray(
            image if image.mode in ("1", "L", "P") or image.mode.startswith("I") else image.convert("RGB")
        )
        palette = image.mode == "P"
    values = values.astype(np.int32)
    if values.min() < 0:
        raise ImageError(f"{path.name}: the values of a mask must be 0 or more, not {values.min()}.")
    if values.ndim == 3 and int(np.ptp(values, axis=2).max()) <= 8:  # grey, up to the rounding of JPEG
        values = values[..., 1]
    soft = values.ndim == 2 and not palette
    if values.ndim == 3:
        values = values @ np.array([65536, 256, 1], np.int32)
        values[values > 0] += COLOUR
    found = np.unique(values[values > 0])
    if soft and (values.max() in (255, 65535) or len(found) > MAX_COLOURS):
        return (values > values.max() / 2).astype(np.int32)
    if len(found) > MAX_COLOURS:
        raise ImageError(
            f"{path.name}: this is not a mask, it has {len(found):,} colours; at most {MAX_COLOURS} are accepted."
        )
    return values


def write_mask(path: Path, mask: np.ndarray, objects: int) -> None:
    """Write a label map (H, W) uint8 as PNG, atomically: 0 and 255 for one object, a palette image for several."""
    if objects == 1:
        image = Image.fromarray((mask > 0).astype(np.uint8) * 255)
    else:
        image = Image.fromarray(mask)
        image.putpalette(label_colours().tobytes())  # changes the mode to palette
    with whole(path) as part:
        image.save(part, format="PNG")


def read_labels(path: Path) -> np.ndarray:
    """Read the label map (H, W) uint8 that `write_mask` wrote. Raises ImageError if the file is damaged."""
    open_image(path)
    with Image.open(path) as image:
        return np.array(image) if image.mode == "P" else (np.asarray(image) > 0).astype(np.uint8)
