"""What the pictures themselves say about the settings: the size to keep them at, and what is worth a warning."""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from dinoviz.errors import DinovizError
from training.config.pretrain import PretrainConfig
from training.data.sources import Pictures
from training.dino.multicrop import GLOBALS

LOOKED_AT = 32  # pictures; their sizes say enough about all


def typical_side(pictures: Pictures) -> int:
    """The median of the pictures' long sides in pixels, from a few of them; 0 if none of those can be read."""
    sides = []
    for i in np.linspace(0, len(pictures) - 1, min(LOOKED_AT, len(pictures))).astype(int):
        with suppress(DinovizError):  # broken ones are counted when all are decoded
            sides.append(max(pictures.open(i).size))
    return int(np.median(sides)) if sides else 0


def store_size(config: PretrainConfig, side: int) -> int:
    """Pixels of the squares that images are kept as: twice the global crops, or what they have if that is less.

    Twice, because then a crop of a quarter of the image is not enlarged.
    """
    return config.store_size or min(2 * config.global_size, max(side, config.global_size // 2))


def warnings(config: PretrainConfig, side: int, images: int) -> list[str]:
    """What a run can be done with but rarely should, a sentence each. images: how many there are to train on."""
    found = []
    if 0 < side < config.global_size:
        found.append(
            f"The images are smaller ({side} px) than the global crops ({config.global_size} px), which enlarges them "
            "and shows nothing more: a lower global_size, and local_size with it, is faster."
        )
    if config.prototypes > GLOBALS * images:
        found.append(
            f"There are more prototypes ({config.prototypes}) than the teacher has crops in an epoch "
            f"({GLOBALS * images}), so that many will never be used: lower prototypes."
        )
    return found
