"""Label propagation: a mask of the first frame follows its objects through a video, by the likeness of patches.

Each patch looks for the patches most like it in the first frame and in the frames just before, not far from where it is
itself, and takes over their labels (Jabri et al. 2020, as DINO and DINOv3 evaluate with it). Frames come one by one and
leave one by one: what is kept does not grow with the length of the video.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from dinoviz.atomic_files import whole
from dinoviz.errors import DinovizError
from dinoviz.features import Features, layer_index, part_layer
from dinoviz.grid import PatchGrid
from dinoviz.guided_filter import EdgeFilter
from dinoviz.images import ImageSource, open_image
from dinoviz.json_files import parse_json
from dinoviz.video.label_propagation import propagate_labels

if TYPE_CHECKING:
    from dinoviz.backbone import Backbone

MAX_OBJECTS = 255  # a label map is uint8


@dataclass(frozen=True)
class Settings:
    """How labels travel. The defaults did best in tests/benchmarks/video.py; PUBLISHED is what the papers report.

    context: how many frames before this one are looked at, beside the first.
    radius: how many rows and columns away a patch may look, in patches.
    top: from how many patches, over all these frames together, a label is taken.
    temperature: of the softmax over their cosine similarities.
    layers: whose patches are compared, as in a Python list; of several, each counts the same. None: the one at two
        thirds of the depth, see `part_layer`.
    covered: the first labels are the covered share of each patch; False: the mask's value at the patch's centre.
    stretch: each object's labels are stretched to [0, 1] over the frame before the largest wins, as DINO does it. Then
        every object is somewhere in every frame, even when it has left.
    edges: masks follow the edges of the picture within a patch (see `EdgeFilter`); labels are propagated without.
    """

    context: int = 7
    radius: int = 12
    top: int = 5
    temperature: float = 0.1
    layers: tuple[int, ...] | None = None
    covered: bool = True
    stretch: bool = False
    edges: bool = True

    def __post_init__(self):
        for name, least in (("context", 0), ("radius", 0), ("top", 1)):
            value = getattr(self, name)
            if value != int(value) or value < least:
                raise DinovizError(f"The {name} of the propagation is a whole number from {least}, not {value}.")
        if not 0 < self.temperature < float("inf"):
            raise DinovizError(f"The temperature of the propagation is above 0, not {self.temperature}.")
        if self.layers is not None and not self.layers:
            raise DinovizError("The propagation needs at least one layer.")


# DINO (Caron et al. 2021), eval_video_segmentation: first frame and 7 before, neighbourhood 12, 5 nearest, 0.1.
PUBLISHED = Settings(layers=(-1,), covered=False, stretch=True, edges=False)


@dataclass(frozen=True, eq=False)
class Tracked:
    """One frame with its objects.

    index: of the frame, from 0. picture: the frame, upright RGB.
    mask: (H, W) uint8 at the frame's own size, 0 for background and 1 to K for the objects.
    soft: (h, w, 1 + K) float32, the share that background and each object have in each patch; sums to 1.
    grid: where the patches lie in the frame.
    state: what is remembered up to this frame, to save and to go on from; it moves on with the next one.
    """

    index: int
    picture: Image.Image
    mask: np.ndarray
    soft: np.ndarray
    grid: PatchGrid
    state: Propagator

    @property
    def area(self) -> np.ndarray:
        """(K,) pixels of each object."""
        return np.bincount(self.mask.ravel(), minlength=self.soft.shape[2])[1:]

    def score(self, label: int) -> np.ndarray:
        """(H, W) float32 in [0, 1]: how much the object `label` (1 to K; 0 is the background) is at each pixel."""
        if not 0 <= label < self.soft.shape[2]:
            raise DinovizError(f"The objects are 1 to {self.soft.shape[2] - 1}; there is no object {label}.")
        return self.grid.resize(self.soft[..., label], "image")


class Propagator:
    """What is remembered of a video: the first frame and the few before, their patches and their labels.

    index: how many frames it has seen. note: whatever its owner wants to find again in a saved state.
    Save it, load it, and go on with the next frame.
    """

    def __init__(
        self,
        features: Features,
        mask: np.ndarray,
        settings: Settings = Settings(),
        device: torch.device | str = "cpu",
    ):
        """features, mask: of the first frame, see `check_mask`. device: where the patches are compared.

        Raises DinovizError for a mask that is empty, full or of another size.
        """
        mask = check_mask(mask, features.grid.image_size)
        self.settings, self.device = settings, torch.device(device)
        self.grid, self.weights_id = features.grid, features.weights_id
        self.objects, self.note = int(mask.max()), ""
        labels = torch.from_numpy(self._first_labels(mask)).to(self.device)
        # Frames seen; the patches and the labels that are looked at; the labels of the last frame. In one assignment a
        # step, so that a Ctrl-C, wherever it falls, leaves a state that can be saved.
        self._memory = 1, [self._descriptors(features)], [labels], labels

    @property
    def index(self) -> int:
        """How many frames it has seen."""
        return self._memory[0]

    @property
    def soft(self) -> np.ndarray:
        """(h, w, 1 + K) float32, the labels of the frame that was seen last."""
        return self._memory[3].cpu().numpy()

    def step(self, features: Features) -> np.ndarray:
        """The labels (h, w, 1 + K) float32 of the next frame, which is remembered.

        Raises DinovizError for a frame of another size, or seen with other weights.
        """
        if features.weights_id != self.weights_id:
            raise DinovizError(f"The first frame was not seen with {features.weights}: features cannot be compared.")
        if features.grid != self.grid:
            raise DinovizError(
                f"Frame {self.index} has {_by(features.grid.image_size)} pixels at {_by(features.grid.model_size)}, "
                f"the first {_by(self.grid.image_size)} at {_by(self.grid.model_size)}: they must be the same."
            )
        patches = self._descriptors(features)
        index, sources, known, _ = self._memory
        labels = propagate_labels(
            patches, torch.stack(sources), torch.stack(known),
            radius=self.settings.radius, top=self.settings.top, temperature=self.settings.temperature,
        )  # fmt: skip
        # The first frame stays: its labels are the only ones that were given, not inferred.
        oldest = max(1, len(sources) + 1 - self.settings.context)
        sources = [sources[0], *[*sources, patches][oldest:]]
        known = [known[0], *[*known, labels][oldest:]]
        self._memory = index + 1, sources, known, labels
        return self.soft

    def mask(self, soft: np.ndarray, picture: Image.Image) -> np.ndarray:
        """Labels (h, w, 1 + K) of a picture -> (H, W) uint8 at its own size: the largest label of each pixel."""
        edges = EdgeFilter(picture, self.grid) if self.settings.edges else None
        best, mask = None, np.zeros(self.grid.image_size[::-1], np.uint8)
        for label in range(soft.shape[2]):  # one by one: all at once, twenty objects in a large frame are gigabytes
            score = self.grid.resize(soft[..., label], "image")
            if self.settings.stretch and score.max() > 0:
                score -= score.min()
                score /= max(float(score.max()), np.finfo(np.float32).tiny)
            if edges:
                score = edges.apply(score)
            if best is None:
                best = score
            else:
                better = score > best
                mask[better] = label
                np.maximum(best, score, out=best)
        return mask

    def save(self, path: str | os.PathLike) -> None:
        """Write all that is remembered to an .npz file, whole or not at all."""
        path = Path(path)
        index, *tensors = self._memory
        about = {
            "settings": asdict(self.settings), "weights_id": self.weights_id, "index": index,
            "objects": self.objects, "note": self.note, "image_size": self.grid.image_size,
            "model_size": self.grid.model_size, "patch_size": self.grid.patch_size,
        }  # fmt: skip
        with whole(path) as part, part.open("wb") as file:
            patches, known, soft = (torch.stack(list(tensor)).cpu().numpy() for tensor in tensors)
            np.savez(file, about=json.dumps(about), patches=patches, labels=known, soft=soft)

    @classmethod
    def load(cls, path: str | os.PathLike, device: torch.device | str = "cpu") -> Propagator:
        """What `save` wrote. Raises DinovizError if the file is not that."""
        self = cls.__new__(cls)
        try:
            _check_archive(path)
            with np.load(path, allow_pickle=False) as arrays:
                about = parse_json(str(arrays["about"]), f"{path}: what it says of itself")
                self.device = torch.device(device)
                patches, known, soft = (torch.from_numpy(arrays[n]).to(device) for n in ("patches", "labels", "soft"))
            settings = about["settings"]
            settings["layers"] = settings["layers"] and tuple(settings["layers"])
            self.settings = Settings(**settings)
            self.grid = PatchGrid(tuple(about["image_size"]), tuple(about["model_size"]), about["patch_size"])
            self.weights_id, self.objects, self.note = about["weights_id"], about["objects"], about["note"]
            self._memory = about["index"], list(patches), list(known), soft
        except DinovizError:
            raise
        except Exception:  # zip, JSON and numpy each have their own words for a damaged file
            raise DinovizError(f"{path}: this is not the saved state of a propagation.") from None
        return self

    def _descriptors(self, features: Features) -> torch.Tensor:
        """(h, w, D * layers), of length 1."""
        layers = _layers(self.settings, features.layers)
        parts = [torch.from_numpy(features.layer(layer)).to(self.device) for layer in layers]
        return torch.cat([torch.nn.functional.normalize(p, dim=-1) for p in parts], dim=-1) / len(parts) ** 0.5

    def _first_labels(self, mask: np.ndarray) -> np.ndarray:
        if self.settings.covered:
            shares = [self.grid.to_patches(mask == label) for label in range(self.objects + 1)]
            return np.stack(shares, axis=-1)
        h, w = self.grid.shape
        centres = self.grid.at(mask.shape[::-1]).resize(mask, "patch", "nearest")
        return np.eye(self.objects + 1, dtype=np.float32)[centres].reshape(h, w, -1)


def propagate(
    frames: Iterable[ImageSource],
    first_mask: np.ndarray | None,
    backbone: Backbone,
    *,
    resolution: int = 518,
    settings: Settings = Settings(),
    state: Propagator | None = None,
    batch: int | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Iterator[Tracked]:
    """Follow the objects of the first frame through a video, frame by frame.

    frames: pictures of one size, whatever `open_image` takes; read one by one, as they are needed.
    first_mask: (H, W) of the first frame, bool or 0 for background and 1 to K for the objects, see `check_mask`.
    resolution: the short side in model pixels.
    state: to go on where an earlier propagation stopped: `frames` are then those after the first `state.index`, and
        mask and settings are the state's. It moves on with every frame that is yielded.
    batch: how many frames pass the network at once; by default 1 on a CPU, where more gain nothing, else 8.
    on_progress: called with the frames done, in fractions of a frame while the network runs; what it raises, Stopped
        say, ends the propagation.

    Yields a Tracked for each frame. Raises ImageError and DinovizError for no frames, frames and masks that cannot be
    used, and frames that change in size.
    """
    if state is None and first_mask is None:
        raise DinovizError("The propagation needs a mask of the first frame, or a state to go on from.")
    settings = state.settings if state else settings
    layers = _layers(settings, backbone.layers)
    captured = tuple(layer for layer in layers if layer != backbone.layers - 1)  # the last comes by itself
    batch = batch or (1 if backbone.device.type == "cpu" else 8)
    done = state.index if state else 0
    for pictures in _batches(_pictures(frames, done, state.grid.image_size if state else None), batch):

        def on_block(block: int, blocks: int, first: int = done, count: int = len(pictures)) -> None:
            on_progress(first + count * block / blocks)

        encoded = backbone.encode_batch(pictures, resolution, captured, on_block=on_block if on_progress else None)
        for picture, features in zip(pictures, encoded, strict=True):
            if state is None:
                state = Propagator(features, first_mask, settings, backbone.device)
                soft, mask = state.soft, check_mask(first_mask, picture.size)
            else:
                soft = state.step(features)
                mask = state.mask(soft, picture)
            yield Tracked(state.index - 1, picture, mask, soft, state.grid, state)
        done += len(pictures)
    if not done:
        raise DinovizError("There are no frames to follow anything through.")


def _check_archive(path: str | os.PathLike) -> None:
    """Raises ValueError unless each array in an .npz file is as large as its header says: numpy believes headers."""
    size = Path(path).stat().st_size
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.file_size > size or info.compress_type != zipfile.ZIP_STORED:  # as `save` writes them
                raise ValueError(info.filename)
            with archive.open(info) as member:
                version = np.lib.format.read_magic(member)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, _, dtype = read[version](member)
                if member.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
                    raise ValueError(info.filename)


def _layers(settings: Settings, layers: int) -> tuple[int, ...]:
    if settings.layers is None:
        return (part_layer(layers),)
    return tuple(layer_index(layer, layers) for layer in settings.layers)


def _pictures(
    frames: Iterable[ImageSource], first: int, size: tuple[int, int] | None
) -> Iterator[Image.Image | DinovizError]:
    """The frames decoded, all of one size; an error as the last if there is one, so that those before it are done."""
    try:
        for index, frame in enumerate(frames, first):
            path = isinstance(frame, str | os.PathLike)
            picture = open_image(frame, name=None if path else f"Frame {index}")
            size = size or picture.size
            if picture.size != size:
                name = Path(frame).name if path else f"Frame {index}"
                raise DinovizError(
                    f"{name} has {_by(picture.size)} pixels, the frames before it {_by(size)}: they must be the same."
                )
            yield picture
    except DinovizError as error:
        yield error


def _batches(pictures: Iterator[Image.Image | DinovizError], count: int) -> Iterator[list[Image.Image]]:
    while several := list(islice(pictures, count)):
        error = several.pop() if isinstance(several[-1], DinovizError) else None
        if several:
            yield several
        if error:
            raise error


def check_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask of a picture of `size` (W, H) as a label map (H, W) uint8: 0 for background, 1 to K for the objects.

    Raises DinovizError for another size, nothing marked, everything marked, or other numbers.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.shape != size[::-1]:
        raise DinovizError(
            f"The mask has {_by(mask.shape[::-1])} pixels, the first frame {_by(size)}: they must agree."
        )
    if mask.dtype.kind not in "bui" or mask.min() < 0 or mask.max() > MAX_OBJECTS:
        raise DinovizError(f"A mask holds whole numbers: 0 for background, and 1 to {MAX_OBJECTS} for the objects.")
    if mask.dtype != bool and mask.max() == 255 and not ((mask > 0) & (mask < 255)).any():
        mask = mask == 255  # a black and white picture of a mask
    if not mask.any():
        raise DinovizError("The mask is empty: mark what is to be followed.")
    if mask.all():
        raise DinovizError("The mask covers the whole frame: leave the background unmarked.")
    return mask.astype(np.uint8)


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))
