"""The built-in demo data set, from the pictures of scikit-image and scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from dinoviz.demo_pictures import demo_path
from dinoviz.images import ImageError, open_image
from training.data.sources import DataError, Pictures

# Pictures in the wheels of scikit-image and scikit-learn, the same in all versions that are allowed.
DEMO = (
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coffee.png", "coins.png", "grass.png"),
    *("gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png", "retina.jpg"),
    *("rocket.jpg", "china.jpg", "flower.jpg"),
)


DEMO_SIZE = 96
DEMO_HELD_OUT = 0.3  # of a picture's width, at its right: no held-out pixel is trained on
DEMO_CROPS = {"train": 40, "held-out": 12}  # of each picture


def demo(part: Literal["train", "held-out"] = "train") -> Pictures:
    """A small labelled data set without a download: square crops of 96 px of 18 pictures, one class for each picture.

    The crops of "train" (40 a class) are from the left 70 % of each picture, those of "held-out" (12) from the right
    30 %; their sides are 50 to 90 % of the right part's, so that both have the same scale. The crops are always the
    same. Raises DataError for another part, or if a picture is missing.
    """
    if part not in DEMO_CROPS:
        raise DataError(f"The parts of the demo are 'train' and 'held-out', not {part!r}.")
    names, crops = [], []
    for index, file in enumerate(DEMO):
        random = np.random.default_rng([index, list(DEMO_CROPS).index(part)])
        picture = demo_picture(file)
        border = round(picture.width * (1 - DEMO_HELD_OUT))
        largest = min(picture.width - border, picture.height)
        left, right = (0, border) if part == "train" else (border, picture.width)
        for number in range(DEMO_CROPS[part]):
            side = int(random.uniform(0.5, 0.9) * largest)
            x, y = int(random.integers(left, right - side + 1)), int(random.integers(0, picture.height - side + 1))
            # Cropped first: resize with a box would use pixels beyond the border.
            crop = picture.crop((x, y, x + side, y + side)).resize((DEMO_SIZE, DEMO_SIZE), Image.Resampling.BICUBIC)
            names.append(f"{Path(file).stem}/{part}-{number:02}")
            crops.append(np.asarray(crop))
    labels = np.repeat(np.arange(len(DEMO)), DEMO_CROPS[part])
    return Pictures(tuple(names), labels, tuple(Path(file).stem for file in DEMO), tuple(crops))


def demo_probes() -> list[Image.Image]:
    """Whole pictures of the demo for snapshots."""
    return [demo_picture(file) for file in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")]


def demo_picture(file: str) -> Image.Image:
    """A picture that is part of scikit-image or scikit-learn. Raises DataError if it is missing."""
    try:
        return open_image(demo_path(file) or file)
    except ImageError as error:
        raise DataError(
            f"A picture of the demo, which is part of scikit-image and scikit-learn, is missing: {error}"
        ) from None
