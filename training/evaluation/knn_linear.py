"""Weighted k-NN and linear classification of frozen features, as in DINO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from dinoviz.errors import DinovizError
from training.engine.progress import Progress

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
"""At a batch of 256. DINO starts from 0.001 and advises a search for each network; DINOv2 sweeps 1e-5 to 0.1 on
ImageNet. A small data set has few steps, so this grid has larger rates."""


class EvaluateError(DinovizError):
    """An evaluation that is not possible; the message says what is missing."""


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
    """Votes of the k nearest neighbours for each class, (M, C) float32 (DINO's eval_knn.py).

    train: (N, D). test: (M, D), or None for leave-one-out on `train`. Features are L2-normalised; a neighbour's vote is
    exp(cosine / temperature). k is reduced to the number of neighbours.
    """
    _check_features(train, labels, test)
    labels = torch.as_tensor(np.asarray(labels), dtype=torch.long)
    classes = classes or int(labels.max()) + 1
    keys = F.normalize(torch.as_tensor(train, dtype=torch.float32), dim=1)
    queries = keys if test is None else F.normalize(torch.as_tensor(test, dtype=torch.float32), dim=1)
    k = min(k, len(keys) - (test is None))
    if k < 1:
        raise EvaluateError("k-NN needs at least one neighbour, and there is none.")
    votes = torch.zeros(len(queries), classes)
    for start in range(0, len(queries), chunk):
        similarity = queries[start : start + chunk] @ keys.T
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
    """Top-1 accuracy of weighted k-NN on the test features; see `knn_votes`."""
    votes = knn_votes(train, train_labels, test, k=k, temperature=temperature, classes=classes)
    return float((votes.argmax(1) == np.asarray(test_labels)).mean())


def knn_leave_one_out(
    features: np.ndarray, labels: np.ndarray, *, k: int = 20, temperature: float = 0.07, classes: int | None = None
) -> float:
    """Top-1 accuracy of weighted k-NN with all other features as neighbours of each."""
    votes = knn_votes(features, labels, k=k, temperature=temperature, classes=classes)
    return float((votes.argmax(1) == np.asarray(labels)).mean())


@dataclass(frozen=True)
class Linear:
    """logits (M, C) of the test features, the learning rate chosen, and its top-1 on the held-out fifth."""

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
    """A linear classifier on frozen features, as in DINO's eval_linear.py.

    SGD, momentum 0.9, no weight decay, cosine by epoch to 0, learning rate lr * batch / 256, weights from N(0, 0.01).
    The features are neither standardised nor normalised. Unlike DINO, they are of centre crops instead of random ones,
    so that every picture is encoded once. The learning rate with the best top-1 on a fifth of the training set is
    chosen (among equals, that of the smallest loss); a layer is then trained on all of it, and its last epoch is used.
    """
    _check_features(train, train_labels, test)
    x = torch.as_tensor(train, dtype=torch.float32)
    y = torch.as_tensor(np.asarray(train_labels), dtype=torch.long)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    order = order[torch.argsort(y[order], stable=True)]  # class by class, so that every fifth is stratified
    held = torch.zeros(len(y), dtype=torch.bool)
    held[order[::5]] = True
    weight, bias = _train_linear(
        x[~held], y[~held], classes, rates, epochs, batch, seed, progress, "choosing the learning rate"
    )
    logits = torch.einsum("nd,rdc->rnc", x[held], weight) + bias
    right = (logits.argmax(2) == y[held]).float().mean(1)
    right[~torch.isfinite(logits).all(2).all(1)] = -1
    losses = [float(F.cross_entropy(each, y[held])) for each in logits]
    best = max(range(len(rates)), key=lambda i: (float(right[i]), -losses[i]))
    weight, bias = _train_linear(x, y, classes, [rates[best]], epochs, batch, seed, progress, "training the classifier")
    logits = torch.as_tensor(test, dtype=torch.float32) @ weight[0] + bias[0]
    return Linear(logits.numpy(), rates[best], float(right[best]))


def _train_linear(x, y, classes, rates, epochs, batch, seed, progress, what) -> tuple[torch.Tensor, torch.Tensor]:
    """Train one layer for each learning rate, all at once: weights (R, D, C) and biases (R, 1, C)."""
    generator = torch.Generator().manual_seed(seed)
    batch = min(batch, len(x))
    weight = 0.01 * torch.randn(1, x.shape[1], classes, generator=generator).repeat(len(rates), 1, 1)
    bias = torch.zeros(len(rates), 1, classes)
    momenta = torch.zeros_like(weight), torch.zeros_like(bias)
    hot = F.one_hot(y, classes).float()
    for epoch in range(epochs):
        lr = torch.tensor(rates).view(-1, 1, 1) * (batch / 256) * 0.5 * (1 + np.cos(np.pi * epoch / epochs))
        for part in torch.randperm(len(x), generator=generator).split(batch):
            # The gradient of the mean cross-entropy is (softmax - truth) / B: two products for all layers.
            error = torch.einsum("nd,rdc->rnc", x[part], weight).add_(bias).softmax(2).sub_(hot[part]).div_(len(part))
            gradients = torch.einsum("nd,rnc->rdc", x[part], error), error.sum(1, keepdim=True)
            for value, momentum, gradient in zip((weight, bias), momenta, gradients, strict=True):
                momentum.mul_(0.9).add_(gradient)
                value.sub_(lr * momentum)
        if progress is not None:
            progress(epoch + 1, epochs, what)
    return weight, bias


def _check_features(train, labels, test) -> None:
    if len(train) != len(labels):
        raise EvaluateError(f"There are {len(train)} features but {len(labels)} labels.")
    if test is not None and test.shape[1] != train.shape[1]:
        raise EvaluateError(f"Features of {train.shape[1]} and of {test.shape[1]} channels cannot be compared.")
