"""Image classifiers in transformers' format: building one on a backbone, opening an exported one, predicting."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from dinoviz import models
from dinoviz.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone
from dinoviz.errors import DinovizError
from dinoviz.grid import MAX_RESOLUTION
from dinoviz.images import ImageSource, open_image
from dinoviz.model_files import (
    ModelError,
    check_pass,
    load_network,
    make_config,
    mean_and_std,
    read_preprocessor,
    read_settings,
)
from training.config.base import ConfigError
from training.data.transforms import centre_square
from training.engine.vit import DropPath, blocks


class ClassifierError(DinovizError):
    """A classifier that cannot be built or opened; the message has its name and the reason."""


def build(backbone: Backbone, classes: Sequence[str], size: int, drop_path: float = 0.0) -> nn.Module:
    """transformers' ...ForImageClassification of the backbone's family, with its weights and a new head, on its device.

    size: of the input in pixels. ViT's position embeddings are interpolated to it, because ViT accepts other sizes on
    request only; the other families interpolate by themselves. drop_path: drop rate of the last block, see DropPath.
    Raises ClassifierError for a family without such a model in transformers.
    """
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    config = copy.deepcopy(backbone.model.config)
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise ClassifierError(
            f"{backbone.name} is a {backbone.family!r} model, and transformers has no image classifier for it; "
            "dinov2, dinov2_with_registers and vit can be fine-tuned."
        )
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: i for i, name in enumerate(classes)}
    config._attn_implementation = "sdpa"
    model = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)](config)
    model.base_model.load_state_dict(backbone.model.state_dict())
    model.to(backbone.device).eval()
    if backbone.family == "vit":
        _fit_positions(model, size)
    layers = blocks(model.base_model)
    for i, block in enumerate(layers if drop_path else ()):
        if not hasattr(block, "drop_path"):
            raise ConfigError(f"drop_path is not supported in {backbone.family!r} models: set it to 0.")
        block.drop_path = DropPath(drop_path * i / max(1, len(layers) - 1)).eval()  # as the rest of the model
    mask_token = getattr(model.base_model.embeddings, "mask_token", None)
    if mask_token is not None:
        mask_token.requires_grad_(False)  # fine-tuning does not mask
    return model


def _fit_positions(model: nn.Module, size: int) -> None:
    embeddings, patch = model.base_model.embeddings, model.config.patch_size
    if model.config.image_size == size:
        return
    count = (size // patch) ** 2
    with torch.no_grad():
        tokens = embeddings.position_embeddings.new_zeros(1, 1 + count, model.config.hidden_size)
        table = embeddings.interpolate_pos_encoding(tokens, size, size)
    embeddings.position_embeddings = nn.Parameter(table.clone())
    embeddings.image_size = embeddings.patch_embeddings.image_size = (size, size)
    embeddings.patch_embeddings.num_patches = count
    model.config.image_size = size


@dataclass(frozen=True)
class Classifier:
    """A model with its classes and its preprocessing; see `open_classifier`.

    size: of the centre crop in pixels. share: of the short side that the crop keeps.
    """

    model: nn.Module
    classes: tuple[str, ...]
    size: int
    share: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def probabilities(self, images: Sequence[ImageSource], batch: int = 32) -> np.ndarray:
        """(N, C) float32 for images of any kind that `open_image` accepts. Raises ImageError."""
        device = next(self.model.parameters()).device
        mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        found = [np.zeros((0, len(self.classes)), np.float32)]
        for start in range(0, len(images), batch):
            squares = [centre_square(open_image(i), self.size, self.share) for i in images[start : start + batch]]
            pixels = torch.from_numpy(np.stack([np.asarray(square) for square in squares])).to(device)
            pixels = pixels.permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std)
            with torch.inference_mode():
                found.append(self.model(pixels).logits.float().softmax(1).cpu().numpy())
        return np.concatenate(found)


def open_classifier(run_or_folder: str | os.PathLike, device: str | torch.device | None = None) -> Classifier:
    """The classifier that a fine-tuning run exported, or any folder in transformers' format with preprocessing.

    Raises ClassifierError if there is none, or not as safetensors.
    """
    path = Path(run_or_folder)
    folder = path / "export" if (path / "export").is_dir() else path
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ClassifierError(f"{path} holds no classifier: a finished fine-tuning run does.")
    device = models.pick_device(device)
    try:
        model = _network(folder, path).to(device).eval().requires_grad_(False)
        preprocessor = read_preprocessor(folder)
        size, share = _square(preprocessor, path)
        mean, std = mean_and_std(preprocessor) or (IMAGENET_MEAN, IMAGENET_STD)
        labels = model.config.id2label
        opened = Classifier(model, tuple(labels[i] for i in range(len(labels))), size, share, mean, std)
        grey = Image.new("RGB", (size, size), "grey")
        check_pass(lambda: torch.from_numpy(opened.probabilities([grey])), path.name)
    except ModelError as error:
        raise ClassifierError(f"{path} cannot be opened as a classifier: {error}") from None
    return opened


def _network(folder: Path, path: Path) -> nn.Module:
    """The network in a folder. Raises ModelError, and ClassifierError for a network without a classifier."""
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as KNOWN

    settings = read_settings(folder, path.name)
    names = settings.get("architectures")
    if not isinstance(names, list) or not any("ForImageClassification" in str(name) for name in names):
        raise ClassifierError(f"{path} holds a network without a classifier: fine-tune it first.")
    if settings["model_type"] not in models.FAMILIES:
        kind = settings["model_type"][:40]
        raise ClassifierError(f"{path} holds a {kind!r} model; supported are {', '.join(models.FAMILIES)}.")
    config = make_config(settings, path.name)
    labels = config.id2label
    if not isinstance(labels, dict) or sorted(labels) != list(range(len(labels))):
        raise ClassifierError(f"{path}: the classes in its config.json (id2label) must be numbered from 0.")
    if type(config) not in KNOWN:
        raise ClassifierError(f"{path}: transformers has no image classifier for {config.model_type!r} models.")
    return load_network(KNOWN[type(config)], config, folder, path.name, unused=("mask_token",))


def _square(preprocessor: dict, path: Path) -> tuple[int, float]:
    """The size of the centre crop in pixels and its share of the short side. Raises ClassifierError."""
    try:
        size, short = preprocessor["crop_size"]["height"], preprocessor["size"]["shortest_edge"]
        usual = isinstance(size, int) and isinstance(short, int) and 1 <= size <= min(short, MAX_RESOLUTION)
    except (KeyError, TypeError):
        usual = False
    if not usual or short > 2 * MAX_RESOLUTION:
        raise ClassifierError(
            f"{path} cannot be opened as a classifier: its preprocessor_config.json needs a crop_size (height) of 1 to "
            f"{MAX_RESOLUTION} pixels, and a size (shortest_edge) of at least as many."
        )
    return size, size / short


def predict(
    run_or_folder: str | os.PathLike | Classifier,
    images: Sequence[ImageSource],
    *,
    top: int = 5,
    device: str | torch.device | None = None,
) -> list[list[tuple[str, float]]]:
    """For each image the most probable classes with their probabilities, in descending order.

    run_or_folder: see `open_classifier`; for repeated calls, the classifier that it returns.
    """
    opened = run_or_folder if isinstance(run_or_folder, Classifier) else open_classifier(run_or_folder, device)
    return [
        [(opened.classes[i], float(row[i])) for i in np.argsort(-row, kind="stable")[:top]]
        for row in opened.probabilities(images)
    ]
