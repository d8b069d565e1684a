"""The DPT depth heads that Meta published with DINOv2, trained on NYU Depth v2 or KITTI, in metres.

A checkpoint contains backbone and head, and needs a forward pass of its own. Features of the same backbone cannot be
reused: the head reads the outputs of four blocks before the final norm, which cannot be inverted.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from dinoviz import hub, model_files, models
from dinoviz.errors import DinovizError
from dinoviz.grid import MAX_PATCHES, PatchGrid
from dinoviz.images import ImageSource, open_image
from dinoviz.model_files import ModelError

NEAR = 0.001  # metres, the smallest depth in the training of the heads
# From the published preprocessor, for pixels from 0 to 255, which it does not rescale.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Trained:
    """The training data of a head.

    far: largest predicted depth, in metres. short_side: of the training pictures, in pixels; at other sizes objects are
    predicted nearer or farther.
    """

    data: str
    scenes: str
    far: float
    short_side: int

    def __str__(self) -> str:
        return f"trained on {self.data} ({self.scenes}, to {self.far:g} m)"


TRAINED = {
    "nyu": Trained("NYU Depth v2", "indoor", 10.0, 480),
    "kitti": Trained("KITTI", "street", 80.0, 375),
}
SIZES = ("small", "base", "large", "giant")
PUBLISHED: dict[str, Trained] = {
    f"facebook/dpt-dinov2-{size}-{data}": trained for size in SIZES for data, trained in TRAINED.items()
}
"""Hub ids of the published heads, and the training data of each."""


def names_for(backbone: str) -> tuple[str, ...]:
    """The published heads for a backbone, given by its name in `models.KNOWN` or its Hub id; often none."""
    hub_id = models.KNOWN[backbone].hub_id if backbone in models.KNOWN else backbone
    return tuple(name for name in PUBLISHED if name.replace("/dpt-", "/").rpartition("-")[0] == hub_id)


@dataclass(frozen=True, eq=False)
class PublishedDepth:
    """A DPT head with its DINOv2 backbone, made by `load`. Thread-safe; forward passes run one after the other.

    name: Hub id or folder. source: where it is from and what it was trained on, for captions.
    mean, std: of RGB values from 0 to 255.
    """

    name: str
    source: str
    trained: Trained
    model: torch.nn.Module
    device: torch.device
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest depth that it predicts, in metres."""
        return NEAR, self.trained.far

    @property
    def patch_size(self) -> int:
        """Side of the backbone's patches in pixels."""
        return self.model.config.backbone_config.patch_size

    def predict(
        self,
        image: ImageSource,
        resolution: int | None = None,
        *,
        on_block: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Predict the depth of a picture, (H, W) float32 metres at its own size, within `range`.

        Args:
            image: anything that `open_image` accepts.
            resolution: short side in model pixels, see `PatchGrid.fit`. None for the published method: the picture at
                its own size, padded with the mean colour to multiples of the patch size; the padding is then cropped.
            on_block: called with (blocks done, blocks) during the pass; an exception from it aborts the pass.

        Raises:
            ImageError: if the image cannot be read.
            DinovizError: for a resolution out of range, and pictures with too many patches.
        """
        picture = open_image(image)
        pixels, (left, top) = self.preprocess(picture, resolution)
        with self._lock, torch.inference_mode(), _after_each_block(self.model, on_block):
            metres = self.model(pixels.to(self.device)).predicted_depth[:, None].float().cpu()
        width, height = picture.size
        # Bicubic as in transformers' post_process_depth_estimation, including the padding, which is cropped afterwards.
        size = tuple(pixels.shape[2:]) if resolution is None else (height, width)
        metres = F.interpolate(metres, size, mode="bicubic", align_corners=False)[0, 0]
        return metres[top : top + height, left : left + width].clamp(*self.range).numpy()

    def preprocess(self, picture: Image.Image, resolution: int | None) -> tuple[torch.Tensor, tuple[int, int]]:
        """The network's input (1, 3, h, w) for an RGB picture, and the padding at its left and top in pixels.

        Equal to transformers' DPTImageProcessor with the published settings; see `predict`.
        """
        if resolution is not None:
            picture = picture.resize(
                PatchGrid.fit(picture.size, resolution, self.patch_size).model_size, Image.Resampling.BICUBIC
            )
        mean, std = (np.array(values, np.float32) for values in (self.mean, self.std))
        pixels = torch.from_numpy((np.asarray(picture, np.float32) - mean) / std).permute(2, 0, 1)
        sides = [math.ceil(side / self.patch_size) * self.patch_size for side in picture.size]
        if math.prod(sides) > MAX_PATCHES * self.patch_size**2:
            raise DinovizError(
                f"{picture.width} x {picture.height} pixels without resizing are more than {MAX_PATCHES:,} patches: "
                "choose a resolution."
            )
        (left, right), (top, bottom) = (
            ((new - old) // 2, new - old - (new - old) // 2) for new, old in zip(sides, picture.size, strict=True)
        )
        return F.pad(pixels, (left, right, top, bottom))[None], (left, top)


def load(name_or_folder: str | os.PathLike, device: str | torch.device | None = None) -> PublishedDepth:
    """Load a published head: a name of `PUBLISHED`, another Hub id of such a model, or a folder of one.

    Args:
        name_or_folder: the folder is in transformers' format.
        device: as for `dinoviz.load`. The computation is in float32.

    Raises:
        ModelError: for an unknown name (the message lists the choices), a folder without safetensors, a network that
            is not a DPT on DINOv2 or does not predict metres, or if the Hub does not answer.
    """
    device = models.pick_device(device)
    text = os.fspath(name_or_folder)
    found = hub.from_hub(text) if text in PUBLISHED else hub.find_model(text)
    if found is None:
        raise ModelError(
            f"There is no published depth head {text!r}. Known names: {', '.join(PUBLISHED)}. "
            "A folder in transformers' format is accepted as well."
        )
    if text in PUBLISHED:
        found = found._replace(source="published by Meta with DINOv2")
    return _from_folder(found, device)


def _from_folder(found: hub.FoundModel, device: torch.device) -> PublishedDepth:
    from transformers import DPTForDepthEstimation

    folder, name, source = found
    model_files.check_folder(folder)
    settings = model_files.read_settings(folder, name)
    family, backbone = settings.get("model_type"), settings.get("backbone_config")
    if family != "dpt" or not isinstance(backbone, dict) or backbone.get("model_type") != "dinov2":
        what = "DPT without DINOv2" if family == "dpt" else f"{family!r:.40} model"
        raise ModelError(f"{name} is a {what}; a published depth head is a DPT on a DINOv2 backbone.")
    config = model_files.make_config(settings, name)
    trained = _trained(name, config)
    # The mask token is for training only, and the first fusion layer has no residual input: both are unused.
    unused = ("mask_token", "fusion_stage.layers.0.residual_layer1")
    model = model_files.load_network(DPTForDepthEstimation, config, folder, name, unused)
    mean, std = _mean_and_std(folder) or (MEAN, STD)
    model = model.eval().requires_grad_(False).to(device)
    side = 2 * config.backbone_config.patch_size

    def encode() -> torch.Tensor:
        with torch.inference_mode():
            return model(torch.zeros(1, 3, side, side, device=device)).predicted_depth

    model_files.check_pass(encode, name)
    return PublishedDepth(name, f"{source}, {trained}", trained, model, device, mean, std)


def _trained(name: str, config) -> Trained:
    """The training data, from the name: transformers' DPTConfig has no field for it, except for `max_depth`."""
    if name in PUBLISHED:
        return PUBLISHED[name]
    named = TRAINED.get(name.rpartition("-")[2].lower())
    far = getattr(config, "max_depth", None)
    if isinstance(far, int | float) and 0 < far < math.inf:
        known = named or Trained("unknown data", "as its config.json says", far, TRAINED["nyu"].short_side)
        return replace(known, far=float(far))
    if named is None:
        raise ModelError(
            f"{name}: unclear whether it predicts metres: its name does not end in -nyu or -kitti, and its config.json "
            "has no max_depth."
        )
    return named


def _mean_and_std(folder: Path) -> tuple[tuple, tuple] | None:
    """Mean and std of RGB values from 0 to 255 from the preprocessor_config.json, or None."""
    values = model_files.read_preprocessor(folder)
    try:
        scale = float(values["rescale_factor"]) if values["do_rescale"] else 1.0
    except (TypeError, ValueError, KeyError):
        return None
    return model_files.mean_and_std(values, scale)


@contextmanager
def _after_each_block(model: torch.nn.Module, on_block: Callable[[int, int], None] | None) -> Iterator[None]:
    """Call `on_block` after each block of the backbone in this context."""
    hooks = []
    if on_block:
        blocks = model.backbone.encoder.layer
        for done, block in enumerate(blocks, 1):
            hooks.append(block.register_forward_hook(lambda *_, done=done: on_block(done, len(blocks))))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
