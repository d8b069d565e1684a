"""What is said of a classifier: top-1, top-5, each class, who is taken for whom."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def scores(logits: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict:
    """Plain values that JSON can hold.

    logits: (N, C), anything that grows with belief. labels: (N,) of C classes.
    Returns n, top1, top5 (None where five classes are all there are), per_class (name -> share right, None where the
    class has no picture) and confusion (C, C): rows are the truth, columns the answers.
    """
    labels = np.asarray(labels)
    answers = logits.argmax(1)
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (labels, answers), 1)
    top5 = None
    if len(classes) > 5 and len(labels):
        best = np.argpartition(-logits, 4, axis=1)[:, :5]
        top5 = float((best == labels[:, None]).any(1).mean())
    totals = confusion.sum(1)
    per_class = {name: float(confusion[i, i] / totals[i]) if totals[i] else None for i, name in enumerate(classes)}
    return {
        "n": len(labels),
        "top1": float((answers == labels).mean()) if len(labels) else None,
        "top5": top5,
        "per_class": per_class,
        "confusion": confusion.tolist(),
    }
