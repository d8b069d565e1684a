"""How good frozen features are: weighted k-NN and linear evaluation, as DINO published them.

Both encode each picture once, by its centre crop, and learn nothing of the network. What is reported is the last epoch
of a setting that was chosen on a part of the training set; the test set is looked at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

import dinoviz
from dinoviz.backbone import Backbone
from training.config.tasks import EvaluateConfig
from training.data.dataset import demo, find
from training.data.labels import aligned, halves, labelled
from training.data.sources import Pictures
from training.data.transforms import SHARE, centre_of, centre_squares
from training.evaluation.knn_linear import EvaluateError, Progress, knn, knn_leave_one_out, knn_votes, linear
from training.evaluation.metrics import scores

__all__ = [
    "EvaluateError",
    "embed",
    "embed_tensor",
    "evaluate",
    "evaluation_size",
    "knn",
    "knn_leave_one_out",
    "linear",
]


@dataclass(frozen=True)
class Embedded:
    """features: (N, D) float32. pictures: the N that could be read, labels too. broken: (name, reason), others."""

    features: np.ndarray
    pictures: Pictures
    broken: tuple[tuple[str, str], ...]


def evaluation_size(backbone: Backbone, size: int | None = None) -> int:
    """Pixels of the square that a backbone is evaluated at.

    By default 224, the size of DINO's and DINOv2's evaluations, rounded to the patch size; a network that was trained
    on at most 128 pixels is shown what it knows. Raises EvaluateError for a size that is no multiple of the patch size.
    """
    patch = backbone.patch_size
    if not size:
        trained = getattr(backbone.model.config, "image_size", None)
        trained = trained if isinstance(trained, int) and trained <= 128 else 224
        return max(patch, patch * round(trained / patch))
    if size % patch:
        below = size // patch * patch
        choices = " or ".join(str(side) for side in (below, below + patch) if side)
        raise EvaluateError(f"A size of {size} pixels is no multiple of the patch size {patch}; {choices} is.")
    return size


def pooled(tokens: Sequence[torch.Tensor], registers: int, kind: str) -> torch.Tensor:
    """Tokens (B, N, D) of one or more layers -> one feature for each picture, layers joined.

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
    """The features of many pictures, by DINO's evaluation transform: short side to size / share, centre crop.

    size: pixels of the crop, see `evaluation_size`. layer: one block or several, whose features are joined in order.
    tokens: see `pooled`. Pictures that cannot be read are left out and named; raises EvaluateError if none is left.
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
    """As `embed`, for pictures that are squares in memory already: uint8 (N, 3, S, S) -> (N, D) float32.

    encode: a backbone, or whatever gives features (B, D) for pixels (B, 3, size, size) in [0, 1], before any
        normalisation, as a network in training does. It runs on the device of the images.
    """
    if isinstance(encode, Backbone):
        backbone = encode

        def encode(pixels: torch.Tensor) -> torch.Tensor:
            return backbone.tokens(pixels)[:, 0]

    with torch.inference_mode():
        parts = [encode(centre_of(part, size, share)).float().cpu() for part in images.split(batch)]
    return torch.cat(parts).numpy()


def evaluate(config: EvaluateConfig, progress: Progress | None = None) -> dict:
    """Everything that is to be said of a model's features on a labelled data set, as plain values for JSON.

    Raises DinovizError for data without labels, one class only, and a test set of other classes.
    """
    if config.data:
        train = labelled(find(config.data), "Evaluation")
        held_out = aligned(find(config.test), train.classes) if config.test else None
    else:
        train, held_out = demo("train"), demo("held-out")
    if held_out is None:
        train, held_out = halves(train, config.test_share, config.seed)
    backbone = dinoviz.load(config.model, device=config.device or None)
    size = evaluation_size(backbone, config.size)
    known, asked = (
        embed(
            backbone, part, size=size, layer=config.layers, tokens=config.tokens, share=config.crop, batch=config.batch,
            progress=progress,
        )
        for part in (train, held_out)
    )  # fmt: skip
    x, y = known.features, known.pictures.labels
    test, truth, classes = asked.features, asked.pictures.labels, train.classes
    result = {
        "model": backbone.name,
        "weights_id": backbone.weights_id,
        "source": backbone.source,
        "layers": [layer % backbone.layers + 1 for layer in config.layers],
        "tokens": config.tokens,
        "size": size,
        "classes": list(classes),
        "train": len(y),
        "test": len(truth),
        "broken": [list(pair) for pair in (*known.broken, *asked.broken)],
        "protocol": _protocol(config, size),
        "knn": {},
    }
    for k in config.knn:
        votes = knn_votes(x, y, test, k=k, temperature=config.temperature, classes=len(classes))
        result["knn"][str(k)] = scores(votes, truth, classes)
    if config.linear:
        trained = linear(x, y, test, classes=len(classes), epochs=config.epochs, seed=config.seed, progress=progress)
        result["linear"] = {**scores(trained.logits, truth, classes), "lr": trained.lr, "held_out": trained.held_out}
    return result


def _protocol(config: EvaluateConfig, size: int) -> str:
    words = (
        f"Frozen features ({config.tokens}) of centre crops of {size} px that keep {config.crop:g} of the short side. "
        f"k-NN: cosine, k {', '.join(map(str, config.knn))}, votes exp(cosine / {config.temperature:g}). "
    )
    if config.linear:
        words += (
            f"Linear: {config.epochs} epochs of SGD, momentum 0.9, no weight decay, cosine; features not standardised; "
            "learning rate chosen on a fifth of the training set; last epoch."
        )
    return words
