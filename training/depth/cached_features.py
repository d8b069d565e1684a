"""Views (augmentations) of pictures with depth, and their features, encoded once and stored in a file."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageEnhance

from dinoviz.atomic_files import whole
from dinoviz.backbone import Backbone
from dinoviz.depth.probe import ProbeError, descriptor_layer
from dinoviz.grid import PatchGrid
from training.config.tasks import ProbeConfig
from training.depth.rgbd import Pair, counts

FINER = 4  # target depth values to a side of a patch: the finest that a head predicts
KNOWN = 0.5  # share of a target's area whose depth must be known


@dataclass(frozen=True)
class View:
    """An augmentation of a picture: flip, enlarged crop, colours.

    zoom: enlargement of the crop to the picture's size; depth is divided by it, as if the camera were nearer.
    at: place of the crop, as shares of the free space to its left and above it.
    colour: factors of brightness, contrast and saturation.
    """

    flip: bool = False
    zoom: float = 1.0
    at: tuple[float, float] = (0.0, 0.0)
    colour: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def show(
        self, picture: Image.Image, depth: np.ndarray, valid: np.ndarray, grid: PatchGrid
    ) -> tuple[torch.Tensor, np.ndarray]:
        """Pixels (3, H, W) in [0, 1] at model size, and target depth (4 h, 4 w) in metres, 0 where unknown."""
        width, height = (side / self.zoom for side in picture.size)
        x, y = (share * (side - part) for share, side, part in zip(self.at, picture.size, (width, height), strict=True))
        box = (x, y, x + width, y + height)
        for enhance, factor in zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), self.colour,
                                   strict=True):  # fmt: skip
            picture = enhance(picture).enhance(factor) if factor != 1 else picture
        pixels = np.asarray(picture.resize(grid.model_size, Image.Resampling.BICUBIC, box), dtype=np.float32) / 255
        part = slice(round(y), round(y + height)), slice(round(x), round(x + width))
        size = (FINER * grid.shape[1], FINER * grid.shape[0])
        share = cv2.resize(valid[part].astype(np.float32), size, interpolation=cv2.INTER_AREA)
        total = cv2.resize(np.where(valid, depth, 0)[part].astype(np.float32), size, interpolation=cv2.INTER_AREA)
        target = np.where(share >= KNOWN, total / np.maximum(share, KNOWN) / self.zoom, 0)
        if self.flip:
            pixels, target = pixels[:, ::-1], target[:, ::-1]
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1), target


def views_of(config: ProbeConfig, number: int) -> list[View]:
    """The views of a training picture by its number; the first is the picture itself."""
    views = [View(), View(flip=True)] if config.flip else [View()]
    for i in range(config.crops):
        rng = np.random.default_rng([config.seed, number, i])
        colour = 1 + config.colour * rng.uniform(-1, 1, 3)
        flip = config.flip and bool(rng.integers(2))
        views.append(View(flip, rng.uniform(1, config.zoom), tuple(rng.uniform(size=2)), tuple(colour)))
    return views


class Encoded:
    """Features and depth of views in half precision, one after the other in a file, and an index in a second file.

    An encoding that was killed continues where it ended. The index has a line for each picture with, of each view, its
    offset, the grid (h, w) and the shape (a, b) of its depth.
    """

    def __init__(self, file: Path, channels: int):
        """channels: of all layers together."""
        self.file, self.channels = file, channels
        self._list = file.with_suffix(".jsonl")
        self._data = np.empty(0, np.float16)
        self.pictures: list[list[dict]] = self._whole()

    def _whole(self) -> list[list[dict]]:
        """The lines of the index up to the first that is damaged, or whose data is not in the file."""
        found, at = [], 0
        if not self._list.is_file() or not self.file.is_file():
            return found
        size = self.file.stat().st_size // 2
        for line in self._list.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
            try:
                views = json.loads(line)
                for view in views:
                    sides = [*view["grid"], *view["depth"]]
                    if view["at"] != at or len(sides) != 4 or not all(isinstance(n, int) and n > 0 for n in sides):
                        return found
                    at += self._length(view)
                    if at > size:
                        return found
            except (ValueError, KeyError, TypeError, RecursionError):
                return found
            if not views:
                return found
            found.append(views)
        return found

    @property
    def end(self) -> int:
        """The end of the last view, in values of half precision."""
        if not self.pictures:
            return 0
        last = self.pictures[-1][-1]
        return last["at"] + self._length(last)

    def _length(self, view: dict) -> int:
        return (math.prod(view["grid"]) + 1) * self.channels + math.prod(view["depth"])

    def encode(
        self,
        pairs: Sequence[Pair],
        views: Callable[[int], list[View]],
        backbone: Backbone,
        layers: Sequence[int],
        config: ProbeConfig,
        crop: str,
        done: Callable[[int], None],
    ) -> None:
        """Encode the pairs that are missing; `done` is called with the number of encoded pairs after each.

        crop: "eigen" to use only depth within the Eigen crop, or "none". Raises ProbeError for a full disk.
        """
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.touch()
            with whole(self._list) as part:  # without a partial line at the end
                part.write_text("".join(json.dumps(each) + "\n" for each in self.pictures), encoding="utf-8")
            with self.file.open("r+b") as data, self._list.open("a", encoding="utf-8") as lines:
                data.truncate(2 * self.end)
                data.seek(2 * self.end)
                for i in range(len(self.pictures), len(pairs)):
                    found = self._encode(pairs[i], views(i), backbone, layers, config, crop, data)
                    data.flush()
                    lines.write(json.dumps(found) + "\n")
                    lines.flush()
                    self.pictures.append(found)
                    self._check_room(len(pairs) - i - 1)
                    done(i + 1)
        except OSError as error:
            raise ProbeError(
                f"The features cannot be stored in {self.file.parent}: {error.strerror or error}."
            ) from None

    def _check_room(self, left: int) -> None:
        needed, free = 2 * self.end / len(self.pictures) * left, shutil.disk_usage(self.file.parent).free
        if needed > free:
            raise ProbeError(
                f"The features of {left} more images need {needed / 2**30:.1f} GB, and the disk has "
                f"{free / 2**30:.1f} GB left: lower resolution, layers, crops or limit."
            )

    def _encode(self, pair, views, backbone, layers, config, crop, data) -> list[dict]:
        picture, depth = pair.open(config.border)
        grid = PatchGrid.fit(picture.size, config.resolution, backbone.patch_size)
        valid = counts(depth, crop, config.depth[1], config.border)
        shown = [view.show(picture, depth, valid, grid) for view in views]
        found = []
        for pixels, target in shown:
            tokens = torch.cat(backbone.tokens(pixels[None], layers), dim=2)[0].half().cpu().numpy()
            at = data.tell() // 2
            for part in (tokens[1 + backbone.registers :], tokens[0], target.astype(np.float16)):
                data.write(part.tobytes())
            found.append({"at": at, "grid": grid.shape, "depth": target.shape})
        return found

    def open(self, memory: float) -> None:
        """Prepare for `get`: load the file if it has at most `memory` bytes, else map it."""
        if 2 * self.end <= memory:
            self._data = np.fromfile(self.file, np.float16, self.end)
        else:
            self._data = np.memmap(self.file, np.float16, "r", shape=self.end)

    def batches(self, size: int, rng: np.random.Generator | None = None) -> list[list[tuple[int, int]]]:
        """(picture, view) in batches of equal grids: with rng every picture in one random view, in random order.

        Without rng, pictures are in order and unaugmented.
        """
        chosen = [(i, 0) for i in range(len(self.pictures))]
        if rng is not None:
            chosen = [(i, int(rng.integers(len(self.pictures[i])))) for i in rng.permutation(len(self.pictures))]
        by_grid: dict[tuple, list[tuple[int, int]]] = {}
        for i, j in chosen:
            by_grid.setdefault(tuple(self.pictures[i][j]["grid"]), []).append((i, j))
        found = [same[i : i + size] for same in by_grid.values() for i in range(0, len(same), size)]
        return found if rng is None else [found[i] for i in rng.permutation(len(found))]

    def get(
        self, batch: Sequence[tuple[int, int]], device: torch.device | str = "cpu"
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Patches (B, h, w, C), CLS tokens (B, C) and depth (B, 4 h, 4 w) in metres, 0 where unknown, all float32."""
        parts = [self._read(self.pictures[i][j]) for i, j in batch]
        return tuple(torch.from_numpy(np.stack(each)).to(device).float() for each in zip(*parts, strict=True))

    def _read(self, view: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        patches = int(np.prod(view["grid"])) * self.channels
        data = self._data[view["at"] : view["at"] + self._length(view)]
        parts = np.split(data, [patches, patches + self.channels])
        return parts[0].reshape(*view["grid"], self.channels), parts[1], parts[2].reshape(view["depth"])

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation (C,) of the patch features of all unaugmented pictures."""
        total, squares, count = 0.0, 0.0, 0
        for views in self.pictures:
            patches = self._read(views[0])[0].reshape(-1, self.channels).astype(np.float64)
            total, squares, count = total + patches.sum(0), squares + (patches**2).sum(0), count + len(patches)
        mean = total / count
        return torch.from_numpy(mean), torch.from_numpy(np.sqrt(np.maximum(squares / count - mean**2, 0)))

    def descriptors(self, layers: int) -> np.ndarray:
        """Descriptors (n, D) of length 1, see `dinoviz.depth.descriptor`. layers: number of concatenated layers."""
        dim = self.channels // layers
        first = dim * descriptor_layer(range(layers))
        means = [
            self._read(views[0])[0][..., first : first + dim].astype(np.float32).mean((0, 1)) for views in self.pictures
        ]
        return np.stack([mean / np.linalg.norm(mean) for mean in means])
