"""The crops of one picture that student and teacher get in a run, and where they lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from dinoviz import figures
from training.config.pretrain import PretrainConfig
from training.data.dataset import squeezed
from training.dino import checks
from training.dino.block_masks import block_masks
from training.dino.distillation import CROPS, MASKS, first_backbone, generator
from training.dino.multicrop import GLOBALS, MultiCrop


@dataclass(frozen=True, eq=False)
class Crop:
    """One crop.

    pixels: (S, S, 3) uint8, after the colour augmentations. box: x0, y0, x1, y1 in pixels of the picture.
    teacher: whether the teacher gets it too; the student gets all. mask: (h, w) bool, the patches that are masked for
    the student; None for local crops and without iBOT.
    """

    pixels: np.ndarray
    box: tuple[float, float, float, float]
    mirrored: bool
    teacher: bool
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Crops:
    """globals: the two that student and teacher get. locals: those that only the student gets."""

    globals: tuple[Crop, ...]
    locals: tuple[Crop, ...]


def crops(image: Image.Image, config: PretrainConfig, seed: int = 0) -> Crops:
    """The crops that a run of this configuration makes of a picture (mode RGB); each seed draws others.

    With iBOT at least one global crop is masked here; in a run, a share `mask_probability` of all of them is.
    Raises DinovizError if the model to start from cannot be loaded or does not fit; only iBOT's masks need it.
    """
    cutter = MultiCrop(config, mean=(0, 0, 0), std=(1, 1, 1))  # no normalisation, for display
    draws = cutter.draw(1, generator(config, CROPS, seed))
    aspects = torch.tensor([image.width / image.height])
    stored = torch.tensor(squeezed(image, checks.store_size(config, max(image.size))))[None]
    views = [view for batch in cutter(stored, aspects, draws) for view in batch]
    boxes = _in_pixels(cutter.boxes(draws, aspects)[0], image.size)
    masks = _masks(config, seed)
    made = [
        Crop(_to_uint8(view), box, bool(mirrored), teacher=i < GLOBALS, mask=masks[i] if i < len(masks) else None)
        for i, (view, box, mirrored) in enumerate(zip(views, boxes, draws.flip[0], strict=True))
    ]
    return Crops(tuple(made[:GLOBALS]), tuple(made[GLOBALS:]))


def drawn(image: Image.Image, crops: Crops) -> Image.Image:
    """The picture with the boxes of the global crops (orange) and of the local crops above them (blue)."""
    picture = image.convert("RGB")
    draw = ImageDraw.Draw(picture)
    line = max(1, round(max(image.size) / 200))
    for colour, several in ((figures.ACCENT, crops.globals), (figures.QUIET, crops.locals)):
        for crop in several:
            left, top, right, bottom = (round(v) for v in crop.box)
            # The dark line makes the coloured one visible on any background.
            draw.rectangle((left, top, right - 1, bottom - 1), outline="black", width=line + max(1, line // 2))
            draw.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=line)
    return picture


def _in_pixels(boxes: torch.Tensor, size: tuple[int, int]) -> list[tuple[float, float, float, float]]:
    """boxes (C, 4): left, top, width, height in shares of the picture."""
    corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1).double() * torch.tensor([*size, *size])
    return [tuple(box) for box in corners.tolist()]


def _to_uint8(view: torch.Tensor) -> np.ndarray:
    return view.mul(255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def _masks(config: PretrainConfig, seed: int) -> list[np.ndarray]:
    """(h, w) bool for each global crop; none without iBOT."""
    if not config.ibot_weight or not config.mask_probability:
        return []
    patch = first_backbone(config)[0].config.patch_size if config.start else config.patch
    shape = (config.global_size // patch,) * 2
    share = max(config.mask_probability, 1 / GLOBALS)
    masks = block_masks(GLOBALS, shape, share, config.mask_ratio, generator(config, MASKS, seed))
    return [mask.reshape(shape) for mask in masks]
