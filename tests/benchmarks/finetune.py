"""What labels are worth: k-NN by layer, linear evaluation, and the three methods of fine-tuning on one set of images.

Protocol: `scenes` (six classes), the first PER_CLASS training images of each, all held-out images, the embedded weights
at SIZE px, one seed. The held-out images are looked at once for each row; epochs are chosen on a part of the training
images. Run it by `python -m tests.benchmarks.finetune [--per-class N] [--epochs N] [methods ...]`; some
ten minutes on one core that has nothing else to do.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import dinoviz
from tests.benchmarks.pca_stability import data_folder
from training.config.tasks import FinetuneConfig
from training.data.sources import find
from training.evaluate import knn, linear
from training.evaluation.embed import embed
from training.finetune import finetune
from training.runs.run import Run

SIZE = 98
PER_CLASS = 100
EPOCHS = 8


def some(folder: Path, per_class: int, out: Path) -> Path:
    """A list of the first images of each class, with labels."""
    with out.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label"))
        for kind in sorted(path for path in folder.iterdir() if path.is_dir()):
            rows.writerows((image.resolve(), kind.name) for image in sorted(kind.iterdir())[:per_class])
    return out


def frozen(train_list: Path, test_folder: Path) -> None:
    """k-NN on the CLS token of each layer, and linear evaluation of the last."""
    backbone = dinoviz.load("embedded", device="cpu")
    layers = tuple(range(backbone.layers))
    train, test = (embed(backbone, find(source), size=SIZE, layer=layers) for source in (train_list, test_folder))
    labels, truth = train.pictures.labels, test.pictures.labels
    by_layer = zip(np.split(train.features, len(layers), 1), np.split(test.features, len(layers), 1), strict=True)
    print("20-NN of the CLS token by layer: ", end="")
    print("  ".join(f"{i + 1}: {100 * knn(a, labels, b, truth):.1f}" for i, (a, b) in enumerate(by_layer)))
    last = backbone.dim * (backbone.layers - 1)
    for name, first in (("last layer", last), ("last four layers", last - 3 * backbone.dim)):
        found = linear(train.features[:, first:], labels, test.features[:, first:], classes=6)
        print(f"linear evaluation, {name}: {100 * (found.logits.argmax(1) == truth).mean():.1f} %, rate {found.lr:g}")


def main(methods=("linear", "lora", "full"), per_class: int = PER_CLASS, epochs: int = EPOCHS) -> None:
    folder = data_folder()
    if folder is None or not (folder / "scenes").is_dir():
        print("fine-tuning: no scenes under $DINOVIZ_DATA, nothing measured")
        return
    scenes = folder / "scenes"
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        train = some(scenes / "train", per_class, root / "train.csv")
        print(f"scenes, {per_class} images a class, {SIZE} px, {torch.get_num_threads()} threads")
        frozen(train, scenes / "val")
        print(f"{'method':8} {'held-out top-1':>15} {'validation':>11} {'epoch':>6} {'seconds':>8}")
        for method in methods:
            config = FinetuneConfig(
                data=(str(train),), test=str(scenes / "val"), model="embedded", device="cpu", method=method, size=SIZE,
                epochs=0 if method == "linear" else epochs,
            )  # fmt: skip
            began = time.perf_counter()
            result = finetune(config, Run.create(method, "finetune", config.to_dict(), root=root))
            seconds = time.perf_counter() - began
            tops = 100 * result["test"]["top1"], 100 * result["validation"]["top1"]
            row = f"{method:8} {tops[0]:14.1f}% {tops[1]:10.1f}% {result['best']['epoch']:6} {seconds:8.0f}"
            print(row, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", default=["linear", "lora", "full"])
    parser.add_argument("--per-class", type=int, default=PER_CLASS)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    main(options.methods, options.per_class, options.epochs)
