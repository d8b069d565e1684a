"""Video object segmentation by label propagation: a mask of the first frame is propagated by patch similarity.

Each patch takes over the labels of its most similar patches nearby in the first frame and in the previous frames (Jabri
et al. 2020, as in the evaluations of DINO and DINOv3). Frames are processed one by one, in memory that does not grow
with the length of the video.
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
    """Parameters of the propagation. The defaults did best in tests/benchmarks/video.py; PUBLISHED has the papers'.

    context: number of previous frames to take labels from, beside the first.
    radius: largest distance of a source patch, in rows and columns of patches.
    top: number of source patches of a label, over all these frames together.
    temperature: of the softmax over their cosine similarities.
    layers: whose patches are compared, numbered as in a Python list, with equal weight. None: the layer at two thirds
        of the depth, see `part_layer`.
    covered: the first labels are the share of each patch that the mask covers; False: the mask at the patch's centre.
    stretch: stretch the labels of each object to [0, 1] over the frame before the argmax, as in DINO. Then every object
        is somewhere in every frame, even after it has left.
    edges: refine masks along the edges of the picture within a patch (see `EdgeFilter`); labels stay unrefined.
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
                raise DinovizError(
                    f"The {name} of the propagation must be a whole number of at least {least}, not {value}."
                )
        if not 0 < self.temperature < float("inf"):
            raise DinovizError(f"The temperature of the propagation must be above 0, not {self.temperature}.")
        if self.layers is not None and not self.layers:
            raise DinovizError("The propagation needs at least one layer.")


# DINO (Caron et al. 2021), eval_video_segmentation: first frame and 7 before, neighbourhood 12, 5 nearest, 0.1.
PUBLISHED = Settings(layers=(-1,), covered=False, stretch=True, edges=False)


@dataclass(frozen=True, eq=False)
class Tracked:
    """One frame with its objects.

    index: of the frame, from 0. picture: the frame, upright RGB.
    mask: (H, W) uint8 at the frame's own size, 0 for background and 1 to K for the objects.
    soft: (h, w, 1 + K) float32, the shares of background and objects in each patch, which sum to 1.
    grid: where the patches lie in the frame.
    state: the propagator after this frame, to save and resume from; the next frame updates it.
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
        """Soft mask (H, W) float32 in [0, 1] of the object `label` (1 to K; 0 is the background)."""
        if not 0 <= label < self.soft.shape[2]:
            raise DinovizError(f"There is no object {label}: the objects are 1 to {self.soft.shape[2] - 1}.")
        return self.grid.resize(self.soft[..., label], "image")


class Propagator:
    """The state of a propagation: patches and labels of the first frame and of the previous ones.

    It can be saved, loaded, and continued with the next frame. note: free text that is saved with it.
    """

    def __init__(
        self,
        features: Features,
        mask: np.ndarray,
        settings: Settings = Settings(),
        device: torch.device | str = "cpu",
    ):
        """Start with the features and the mask of the first frame, see `check_mask`.

        device: where the patches are compared. Raises DinovizError for a mask that is empty, full or of another size.
        """
        mask = check_mask(mask, features.grid.image_size)
        self.settings, self.device = settings, torch.device(device)
        self.grid, self.weights_id = features.grid, features.weights_id
        self.objects, self.note = int(mask.max()), ""
        labels = torch.from_numpy(self._first_labels(mask)).to(self.device)
        # Number of frames so far; patches and labels of the source frames; labels of the last frame. One assignment per
        # step, so that the state is consistent after a Ctrl-C at any time.
        self._memory = 1, [self._descriptors(features)], [labels], labels

    @property
    def index(self) -> int:
        """Number of frames so far."""
        return self._memory[0]

    @property
    def soft(self) -> np.ndarray:
        """Labels (h, w, 1 + K) float32 of the last frame."""
        return self._memory[3].cpu().numpy()

    def step(self, features: Features) -> np.ndarray:
        """Propagate labels to the next frame -> (h, w, 1 + K) float32.

        Raises DinovizError for a frame of another size, and features of other weights.
        """
        if features.weights_id != self.weights_id:
            raise DinovizError(
                f"The first frame was not encoded with {features.weights}: the features cannot be compared."
            )
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
        # The first frame always stays: only its labels are given, not predicted.
        oldest = max(1, len(sources) + 1 - self.settings.context)
        sources = [sources[0], *[*sources, patches][oldest:]]
        known = [known[0], *[*known, labels][oldest:]]
        self._memory = index + 1, sources, known, labels
        return self.soft

    def mask(self, soft: np.ndarray, picture: Image.Image) -> np.ndarray:
        """The argmax of labels (h, w, 1 + K), upsampled to the picture -> mask (H, W) uint8."""
        edges = EdgeFilter(picture, self.grid) if self.settings.edges else None
        best, mask = None, np.zeros(self.grid.image_size[::-1], np.uint8)
        for label in range(soft.shape[2]):  # one by one: twenty objects in a large frame would take gigabytes at once
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
        """Write the state to an .npz file, atomically."""
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
        """Read a state that `save` wrote. Raises DinovizError for any other file."""
        self = cls.__new__(cls)
        try:
            _check_archive(path)
            with np.load(path, allow_pickle=False) as arrays:
                about = parse_json(str(arrays["about"]), f"{path}: its header")
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
        except Exception:  # zip, JSON and numpy raise different types for a damaged file
            raise DinovizError(f"{path}: this is not a saved state of a propagation.") from None
        return self

    def _descriptors(self, features: Features) -> torch.Tensor:
        """Concatenated normalised patches of the layers (h, w, D * layers), of length 1."""
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
    """Track the objects of the first frame through a video, frame by frame.

    Args:
        frames: pictures of one size that `open_image` accepts; read one by one, when they are needed.
        first_mask: (H, W) of the first frame, bool or 0 for background and 1 to K for the objects, see `check_mask`.
        backbone: encodes the frames.
        resolution: short side in model pixels.
        settings: of the propagation.
        state: to resume an earlier propagation: `frames` are then those after the first `state.index`, and mask and
            settings are those of the state, which each frame updates.
        batch: number of frames per forward pass; by default 1 on a CPU, where more are not faster, else 8.
        on_progress: called with the number of frames done, with fractions during a forward pass; an exception from it,
            for example Stopped, ends the propagation.

    Yields:
        A Tracked for each frame.

    Raises:
        ImageError: for a frame that cannot be read.
        DinovizError: without frames, for a mask that cannot be used, and frames that change in size.
    """
    if state is None and first_mask is None:
        raise DinovizError("The propagation needs a mask of the first frame, or a state to resume from.")
    settings = state.settings if state else settings
    layers = _layers(settings, backbone.layers)
    captured = tuple(layer for layer in layers if layer != backbone.layers - 1)  # the last is always there
    batch = batch or (1 if backbone.device.type == "cpu" else 8)
    done = state.index if state else 0
    for pictures in _batches(_pictures(frames, done, state.grid.image_size if state else None), batch):

        def on_block(block: int, blocks: int, first: int = done, count: int = len(pictures)) -> None:
            if on_progress:
                on_progress(first + count * block / blocks)

        encoded = backbone.encode_batch(pictures, resolution, captured, on_block=on_block)
        for picture, features in zip(pictures, encoded, strict=True):
            if state is None:
                assert first_mask is not None  # checked above
                state = Propagator(features, first_mask, settings, backbone.device)
                soft, mask = state.soft, check_mask(first_mask, picture.size)
            else:
                soft = state.step(features)
                mask = state.mask(soft, picture)
            yield Tracked(state.index - 1, picture, mask, soft, state.grid, state)
        done += len(pictures)
    if not done:
        raise DinovizError("There are no frames.")


def _check_archive(path: str | os.PathLike) -> None:
    """Raise ValueError unless each array in an .npz file is as large as its header says: numpy trusts headers."""
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
    """Decode the frames, all of one size. An error is yielded as the last item, after all frames before it."""
    try:
        for index, frame in enumerate(frames, first):
            name = Path(frame).name if isinstance(frame, str | os.PathLike) else f"Frame {index}"
            picture = open_image(frame, name=name)
            size = size or picture.size
            if picture.size != size:
                raise DinovizError(
                    f"{name} has {_by(picture.size)} pixels, the frames before it {_by(size)}: they must be the same."
                )
            yield picture
    except DinovizError as error:
        yield error


def _batches(pictures: Iterator[Image.Image | DinovizError], count: int) -> Iterator[list[Image.Image]]:
    while items := list(islice(pictures, count)):
        if batch := [item for item in items if isinstance(item, Image.Image)]:
            yield batch
        if isinstance(items[-1], DinovizError):
            raise items[-1]


def check_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Convert a mask of a picture of `size` (W, H) to a label map (H, W) uint8: 0 background, 1 to K objects.

    Raises DinovizError for another size, an empty or full mask, and other values.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.shape != size[::-1]:
        raise DinovizError(
            f"The mask has {_by(mask.shape[::-1])} pixels, the first frame {_by(size)}: they must agree."
        )
    if mask.dtype.kind not in "bui" or mask.min() < 0 or mask.max() > MAX_OBJECTS:
        raise DinovizError(
            f"The values of a mask must be whole numbers: 0 for background, and 1 to {MAX_OBJECTS} for the objects."
        )
    if mask.dtype != bool and mask.max() == 255 and not ((mask > 0) & (mask < 255)).any():
        mask = mask == 255  # a black and white picture of a mask
    if not mask.any():
        raise DinovizError("The mask is empty: mark an object to track.")
    if mask.all():
        raise DinovizError("The mask covers the whole frame: leave the background unmarked.")
    return mask.astype(np.uint8)


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))
