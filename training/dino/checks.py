"""Checks of the settings against the images: the size to store them at, and warnings."""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from dinoviz.errors import DinovizError
from training.config.pretrain import PretrainConfig
from training.data.sources import Pictures
from training.dino.multicrop import GLOBALS

SAMPLED = 32  # pictures whose sizes are read


def typical_side(pictures: Pictures) -> int:
    """The median long side of a sample of the pictures in pixels; 0 if none of them can be read."""
    sides = []
    for i in np.linspace(0, len(pictures) - 1, min(SAMPLED, len(pictures))).astype(int):
        with suppress(DinovizError):  # broken ones are counted when all are decoded
            sides.append(max(pictures.open(i).size))
    return int(np.median(sides)) if sides else 0


def store_size(config: PretrainConfig, side: int) -> int:
    """The size in pixels of the squares that images are stored as: twice the global crops, or less for small images.

    Twice, so that a crop of a quarter of the image is not enlarged.
    """
    return config.store_size or min(2 * config.global_size, max(side, config.global_size // 2))


def warnings(config: PretrainConfig, side: int, images: int) -> list[str]:
    """Warnings about settings that are valid but rarely make sense. images: number of training images."""
    found = []
    if 0 < side < config.global_size:
        found.append(
            f"The images are smaller ({side} px) than the global crops ({config.global_size} px), and are enlarged: a "
            "lower global_size, and local_size with it, is faster and loses nothing."
        )
    if config.prototypes > GLOBALS * images:
        found.append(
            f"There are more prototypes ({config.prototypes}) than the teacher has crops in an epoch "
            f"({GLOBALS * images}), and many will not be used: lower prototypes."
        )
    return found
