"""Transforms of images for classifiers: centre crops for evaluation, random crops for training."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from dinoviz.images import ImageError
from training.data.dataset import cores

if TYPE_CHECKING:
    from training.data.sources import Pictures

SHARE = 224 / 256
"""Centre crop as a share of the short side: DINO resizes to 256 pixels and crops 224 (eval_knn.py, eval_linear.py)."""


def short_side(size: int, share: float = SHARE) -> int:
    """Short side to resize a picture to before the centre crop of `size`.

    Their difference is even, because torchvision and transformers round a margin of half a pixel differently.
    """
    short = max(size, round(size / share))
    return short + (short - size) % 2


def centre_square(picture: Image.Image, size: int, share: float = SHARE) -> Image.Image:
    """The centre crop of a picture, size x size pixels, that covers `share` of its short side (bicubic)."""
    width, height = picture.size
    if max(width, height) > 4 * min(width, height):  # avoids resizing a long strip that is cut off
        half = 2 * min(width, height)
        left, top = max(0, width // 2 - half), max(0, height // 2 - half)
        picture = picture.crop((left, top, min(width, left + 2 * half), min(height, top + 2 * half)))
        width, height = picture.size
    short = short_side(size, share)
    resized = (short, short * height // width) if width <= height else (short * width // height, short)
    picture = picture.resize(resized, Image.Resampling.BICUBIC)
    left, top = round((resized[0] - size) / 2), round((resized[1] - size) / 2)
    return picture.crop((left, top, left + size, top + size))


def centre_squares(
    pictures: Pictures, size: int, batch: int, broken: list[tuple[str, str]], share: float = SHARE
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Centre crops in order, decoded ahead by a few threads.

    Yields (indices, uint8 (B, 3, size, size)) of readable pictures; (name, reason) of the others is added to `broken`.
    """

    def decode(i: int) -> torch.Tensor | str:
        try:
            with pictures.opened(i) as picture:
                square = np.asarray(centre_square(picture, size, share))
        except ImageError as error:
            return str(error)
        return torch.from_numpy(square.copy()).permute(2, 0, 1)

    waiting: deque = deque()
    indices: list[int] = []
    squares: list[torch.Tensor] = []
    with ThreadPoolExecutor(min(8, cores())) as pool:
        try:
            for i in range(len(pictures) + 2 * batch):  # two batches ahead; after the last, their results are collected
                if i < len(pictures):
                    waiting.append((i, pool.submit(decode, i)))
                if i < 2 * batch or not waiting:
                    continue
                index, future = waiting.popleft()
                square = future.result()
                if isinstance(square, str):
                    broken.append((pictures.names[index], square))
                    continue
                indices.append(index)
                squares.append(square)
                if len(squares) == batch:
                    yield indices, torch.stack(squares)
                    indices, squares = [], []
        finally:  # a consumer that stops early does not wait for them
            for _, future in waiting:
                future.cancel()
    if squares:
        yield indices, torch.stack(squares)


def centre_of(images: torch.Tensor, size: int, share: float = SHARE) -> torch.Tensor:
    """The same crop of decoded squares: uint8 (B, 3, S, S) -> float32 (B, 3, size, size) in [0, 1]."""
    side = images.shape[-1]
    kept = side * size / short_side(size, share)
    margin = round((side - kept) / 2)
    pixels = images[..., margin : side - margin, margin : side - margin].float().div_(255)
    if pixels.shape[-1] == size:
        return pixels
    return F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp_(0, 1)


def random_crops(
    images: torch.Tensor,
    aspects: torch.Tensor,
    size: int,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.4, 1.0),
    flip: float = 0.5,
) -> torch.Tensor:
    """A random resized crop of each picture, mirrored with probability `flip`.

    images: uint8 (B, 3, S, S), resized to squares. aspects: (B,) width / height of the originals, so that the aspect of
    a crop, 3/4 to 4/3 as usual, is that in the original. scale: smallest and largest share of the area.
    Returns float32 (B, 3, size, size) in [0, 1] on the images' device. The generator is on the CPU, so that all devices
    draw the same crops.
    """
    count = len(images)
    area, ratio, x, y, mirror = torch.rand(5, count, generator=generator)
    area = scale[0] + (scale[1] - scale[0]) * area
    ratio = torch.exp((2 * ratio - 1) * np.log(4 / 3))
    aspects = aspects.cpu()
    width = (area * ratio / aspects).sqrt().clamp(max=1)  # in shares of the picture's sides
    height = (area / ratio * aspects).sqrt().clamp(max=1)
    boxes = torch.stack([x * (1 - width), y * (1 - height), width, height], dim=1)
    return cut(images.float().div_(255), boxes, mirror < flip, size)


def cut(pixels: torch.Tensor, boxes: torch.Tensor, mirrored: torch.Tensor, size: int) -> torch.Tensor:
    """Crop one box of each picture and resize it, antialiased bicubic: (B, 3, S, S) -> (B, 3, size, size) in [0, 1].

    boxes: (B, 4) left, top, width, height in shares of the picture. mirrored: (B,) bool.
    Equals PIL's `resize` with a `box` up to its rounding to 8 bits, for any reduction of width and height. Two matrix
    products, which take 4 to 6 % of a training step on a CPU.
    """
    left, top, width, height = boxes.to(pixels.device).unbind(1)
    across, down = (_weights(*ends, size, pixels.shape[-1]) for ends in ((left, width), (top, height)))
    across = torch.where(mirrored.to(pixels.device)[:, None, None], across.flip(1), across)
    return (down[:, None] @ pixels @ across.mT[:, None]).clamp_(0, 1)


def _weights(start: torch.Tensor, length: torch.Tensor, size: int, side: int) -> torch.Tensor:
    """Interpolation weights (B, size, side) of `side` pixels in `size` pixels that cover `length` from `start`.

    start, length: (B,), in shares of the side.
    Source: Keys 1981, equation 4, a = -0.5; widened by the reduction, so that no frequency is aliased.
    """
    step = (length * (side / size))[:, None, None]
    pixel, out = (torch.arange(count, device=start.device) + 0.5 for count in (side, size))
    centre = (start * side)[:, None, None] + out[:, None] * step
    x = ((pixel - centre) / step.clamp_min(1)).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    weights = torch.where(x < 1, near, far.where(x < 2, 0.0))
    return weights / weights.sum(-1, keepdim=True)
