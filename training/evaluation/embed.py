"""Features of many pictures with DINO's evaluation transform."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dinoviz.backbone import Backbone
from training.data.sources import Pictures
from training.data.transforms import SHARE, centre_of, centre_squares
from training.engine.progress import Progress
from training.evaluation.knn_linear import EvaluateError


@dataclass(frozen=True)
class Embedded:
    """features: (N, D) float32. pictures: the N readable ones, with labels. broken: (name, reason) of the others."""

    features: np.ndarray
    pictures: Pictures
    broken: tuple[tuple[str, str], ...]


def evaluation_size(backbone: Backbone, size: int | None = None) -> int:
    """The size of the crop in pixels that a backbone is evaluated at.

    By default 224, the size of DINO's and DINOv2's evaluations, rounded to the patch size; networks that were trained
    at 128 pixels or less are evaluated at their training size. Raises EvaluateError for a size that is not a multiple
    of the patch size.
    """
    patch = backbone.patch_size
    if not size:
        trained = getattr(backbone.model.config, "image_size", None)
        trained = trained if isinstance(trained, int) and trained <= 128 else 224
        return max(patch, patch * round(trained / patch))
    if size % patch:
        below = size // patch * patch
        choices = " or ".join(str(side) for side in (below, below + patch) if side)
        raise EvaluateError(f"size {size} px must be a multiple of the patch size {patch}, for example {choices}.")
    return size


def pooled(tokens: Sequence[torch.Tensor], registers: int, kind: str) -> torch.Tensor:
    """Tokens (B, N, D) of one or more layers -> one feature for each picture, layers concatenated.

    kind: "cls", or "cls+mean", which appends the mean patch of the last of the layers.
    """
    parts = [layer[:, 0] for layer in tokens]
    if kind == "cls+mean":
        parts.append(tokens[-1][:, 1 + registers :].mean(1))
    return torch.cat(parts, dim=1)


def embed(
    backbone: Backbone,
    pictures: Pictures,
    *,
    size: int | None = None,
    layer: int | Sequence[int] = -1,
    tokens: str = "cls",
    share: float = SHARE,
    batch: int = 64,
    progress: Progress | None = None,
) -> Embedded:
    """The features of many pictures with DINO's evaluation transform: short side to size / share, centre crop.

    size: of the crop in pixels, see `evaluation_size`. layer: one block or several, concatenated in order.
    tokens: see `pooled`. Unreadable pictures are left out and listed. Raises EvaluateError if none is left.
    """
    size = evaluation_size(backbone, size)
    layers = layer if isinstance(layer, Sequence) else (layer,)
    broken: list[tuple[str, str]] = []
    kept: list[int] = []
    found: list[np.ndarray] = []
    for indices, images in centre_squares(pictures, size, batch, broken, share):
        feature = pooled(backbone.tokens(images.float().div_(255), layers), backbone.registers, tokens)
        found.append(feature.cpu().numpy())
        kept += indices
        if progress is not None:
            progress(len(kept) + len(broken), len(pictures), "encoding")
    if not found:
        reason = f": {broken[0][1]}" if broken else "."
        raise EvaluateError(f"None of the {len(pictures)} images can be read{reason}")
    left = pictures.subset(kept) if broken else pictures
    return Embedded(np.concatenate(found), left, tuple(broken))


def embed_tensor(
    encode: Backbone | Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    size: int,
    *,
    share: float = SHARE,
    batch: int = 256,
) -> np.ndarray:
    """As `embed`, for decoded squares: uint8 (N, 3, S, S) -> (N, D) float32.

    encode: a backbone, or a function from pixels (B, 3, size, size) in [0, 1], not normalised, to features (B, D). It
        runs on the device of the images.
    """
    if isinstance(encode, Backbone):
        backbone = encode

        def encode(pixels: torch.Tensor) -> torch.Tensor:
            return backbone.tokens(pixels)[:, 0]

    with torch.inference_mode():
        parts = [encode(centre_of(part, size, share)).float().cpu() for part in images.split(batch)]
    return torch.cat(parts).numpy()
