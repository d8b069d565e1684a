"""Evaluation of frozen features by weighted k-NN and a linear classifier, as in DINO.

Each picture is encoded once, by its centre crop. The linear classifier's learning rate is chosen on a part of the
training set, its last epoch is reported, and the test set is used once.
"""

from __future__ import annotations

import dinoviz
from training.config.tasks import EvaluateConfig
from training.data.dataset import find
from training.data.demo import demo
from training.data.labels import aligned, halves, labelled
from training.engine.progress import Progress
from training.evaluation.embed import embed, embed_tensor, evaluation_size
from training.evaluation.knn_linear import EvaluateError, knn, knn_leave_one_out, knn_votes, linear
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


def evaluate(config: EvaluateConfig, progress: Progress | None = None) -> dict:
    """k-NN and linear accuracy of a model's features on a labelled data set, as values for JSON.

    Raises DinovizError for data without labels or with one class, and for a test set with other classes.
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
    train_features, test_features = (
        embed(
            backbone, part, size=size, layer=config.layers, tokens=config.tokens, share=config.crop, batch=config.batch,
            progress=progress,
        )
        for part in (train, held_out)
    )  # fmt: skip
    x, y = train_features.features, train_features.pictures.labels
    test, truth, classes = test_features.features, test_features.pictures.labels, train.classes
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
        "broken": [list(pair) for pair in (*train_features.broken, *test_features.broken)],
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
        f"Frozen features ({config.tokens}) of centre crops of {size} px, {config.crop:g} of the short side. "
        f"k-NN: cosine, k {', '.join(map(str, config.knn))}, votes exp(cosine / {config.temperature:g}). "
    )
    if config.linear:
        words += (
            f"Linear: {config.epochs} epochs of SGD, momentum 0.9, no weight decay, cosine; features not standardised; "
            "learning rate chosen on a fifth of the training set; last epoch."
        )
    return words
