"""How good frozen features are: weighted k-NN and linear evaluation, as DINO published them.

Both encode each picture once, by its centre crop, and learn nothing of the network. What is reported is the last epoch
of a setting that was chosen on a part of the training set; the test set is looked at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

import dinoviz
from dinoviz.backbone import Backbone
from dinoviz.errors import DinovizError
from training.data import demo, find
from training.labels import aligned, halves, labelled
from training.pictures import Pictures
from training.scores import scores
from training.task_config import EvaluateConfig
from training.transforms import SHARE, centre_of, centre_squares

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
"""At a batch of 256. DINO starts from 0.001 and says to try others for each network; DINOv2 sweeps 1e-5 to 0.1 on
ImageNet. A small data set has few steps, so ours reaches further up."""

Progress = Callable[[int, int, str], None]
"""Called with what is done, of how much, and what it is."""


class EvaluateError(DinovizError):
    """An evaluation that cannot be; the message says what is missing."""


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


def knn_votes(
    train: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray | None = None,
    *,
    k: int = 20,
    temperature: float = 0.07,
    classes: int | None = None,
    chunk: int = 1024,
) -> np.ndarray:
    """How much the k nearest neighbours vote for each class, (M, C) float32 (DINO's eval_knn.py).

    train: (N, D), test: (M, D); None asks each of `train` about all the others. Features are brought to length 1, each
    neighbour votes exp(cosine / temperature). A k above the number of neighbours is that number.
    """
    _check_features(train, labels, test)
    labels = torch.as_tensor(np.asarray(labels), dtype=torch.long)
    classes = classes or int(labels.max()) + 1
    known = F.normalize(torch.as_tensor(train, dtype=torch.float32), dim=1)
    asked = known if test is None else F.normalize(torch.as_tensor(test, dtype=torch.float32), dim=1)
    k = min(k, len(known) - (test is None))
    if k < 1:
        raise EvaluateError("k-NN needs at least one neighbour; there is none.")
    votes = torch.zeros(len(asked), classes)
    for start in range(0, len(asked), chunk):
        similarity = asked[start : start + chunk] @ known.T
        if test is None:
            rows = torch.arange(len(similarity))
            similarity[rows, rows + start] = -torch.inf
        nearest, index = similarity.topk(k, dim=1)
        votes[start : start + chunk].scatter_add_(1, labels[index], (nearest / temperature).exp())
    return votes.numpy()


def knn(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    k: int = 20,
    temperature: float = 0.07,
    classes: int | None = None,
) -> float:
    """Share of the test features whose class the weighted k nearest neighbours tell (top-1); see `knn_votes`."""
    votes = knn_votes(train, train_labels, test, k=k, temperature=temperature, classes=classes)
    return float((votes.argmax(1) == np.asarray(test_labels)).mean())


def knn_leave_one_out(
    features: np.ndarray, labels: np.ndarray, *, k: int = 20, temperature: float = 0.07, classes: int | None = None
) -> float:
    """The same where there is no test set: each is told by all the others."""
    votes = knn_votes(features, labels, k=k, temperature=temperature, classes=classes)
    return float((votes.argmax(1) == np.asarray(labels)).mean())


@dataclass(frozen=True)
class Linear:
    """A linear evaluation: logits (M, C) of the test features, the learning rate chosen, and its held-out top-1."""

    logits: np.ndarray
    lr: float
    held_out: float


def linear(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    *,
    classes: int,
    epochs: int = 100,
    batch: int = 256,
    rates: Sequence[float] = LEARNING_RATES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Linear:
    """A linear layer on frozen features, as DINO's eval_linear.py trains it.

    SGD, momentum 0.9, no weight decay, cosine by epoch to 0, learning rate lr * batch / 256, weights from N(0, 0.01).
    The features are taken as the network gives them, neither standardised nor normalised. Other than published:
    they are of centre crops, not of random ones, so that every picture is encoded once.
    The learning rate is the best on a fifth of the training set (the smallest, of equals); a layer is then trained on
    all of it, and its last epoch counts.
    """
    _check_features(train, train_labels, test)
    x = torch.as_tensor(train, dtype=torch.float32)
    y = torch.as_tensor(np.asarray(train_labels), dtype=torch.long)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    order = order[torch.argsort(y[order], stable=True)]  # class by class, so that every fifth is a fifth of each
    held = torch.zeros(len(y), dtype=torch.bool)
    held[order[::5]] = True
    weight, bias = _train_linear(x[~held], y[~held], classes, rates, epochs, batch, seed, progress, "choosing the rate")
    logits = torch.einsum("nd,rdc->rnc", x[held], weight) + bias
    right = (logits.argmax(2) == y[held]).float().mean(1)
    right[~torch.isfinite(logits).all(2).all(1)] = -1
    best = int(right.argmax())
    weight, bias = _train_linear(x, y, classes, [rates[best]], epochs, batch, seed, progress, "training the classifier")
    logits = torch.as_tensor(test, dtype=torch.float32) @ weight[0] + bias[0]
    return Linear(logits.numpy(), rates[best], float(right[best]))


def _train_linear(x, y, classes, rates, epochs, batch, seed, progress, what) -> tuple[torch.Tensor, torch.Tensor]:
    """One layer for each learning rate, all at once and independent of each other: (R, D, C) and (R, 1, C)."""
    generator = torch.Generator().manual_seed(seed)
    batch = min(batch, len(x))
    weight = 0.01 * torch.randn(1, x.shape[1], classes, generator=generator).repeat(len(rates), 1, 1)
    bias = torch.zeros(len(rates), 1, classes)
    momenta = torch.zeros_like(weight), torch.zeros_like(bias)
    hot = F.one_hot(y, classes).float()
    for epoch in range(epochs):
        lr = torch.tensor(rates).view(-1, 1, 1) * (batch / 256) * 0.5 * (1 + np.cos(np.pi * epoch / epochs))
        for part in torch.randperm(len(x), generator=generator).split(batch):
            # The gradient of the mean cross-entropy by hand, (softmax - truth) / B: many layers in two products.
            error = torch.einsum("nd,rdc->rnc", x[part], weight).add_(bias).softmax(2).sub_(hot[part]).div_(len(part))
            gradients = torch.einsum("nd,rnc->rdc", x[part], error), error.sum(1, keepdim=True)
            for value, momentum, gradient in zip((weight, bias), momenta, gradients, strict=True):
                momentum.mul_(0.9).add_(gradient)
                value.sub_(lr * momentum)
        if progress is not None:
            progress(epoch + 1, epochs, what)
    return weight, bias


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


def _check_features(train, labels, test) -> None:
    if len(train) != len(labels):
        raise EvaluateError(f"There are {len(train)} features but {len(labels)} labels.")
    if test is not None and test.shape[1] != train.shape[1]:
        raise EvaluateError(f"Features of {train.shape[1]} and of {test.shape[1]} channels cannot be compared.")
