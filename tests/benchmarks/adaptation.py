"""What going on with DINO does for weights whose CLS token is weak, on classes that it did not see.

Protocol: the embedded weights at 98 px. Adapted, without labels, on `scenes` (buildings, forest, glacier; training
part) and `flowers` (daisy, dandelion). Measured on the other classes: weighted 20-NN (temperature 0.07) of the CLS
token of the last layer, each image told by all the others, on `scenes` (mountain, sea, street; the 240 held-out images)
and `flowers` (rose, sunflower, tulip; 480 images). One seed, the last step. Run it by
`python -m tests.benchmarks.adaptation [--epochs E]`; on two cores an epoch takes some minutes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import dinoviz
from dinoviz.backbone import Backbone
from dinoviz.hub import quiet_transformers
from tests.benchmarks.pca_stability import data_folder
from training.config.pretrain import PretrainConfig, pretrain_preset
from training.data.dataset import find
from training.evaluate import knn_leave_one_out
from training.evaluation.embed import embed
from training.pretrain import pretrain
from training.runs.run import Run

SIZE = 98
SEEN = ("scenes/train/buildings", "scenes/train/forest", "scenes/train/glacier", "flowers/daisy", "flowers/dandelion")
UNSEEN = {"scenes/val": ("mountain", "sea", "street"), "flowers": ("rose", "sunflower", "tulip")}


def accuracy(backbone: Backbone, data: Path) -> dict[str, float]:
    """20-NN top-1 on the classes that were kept back."""
    found = {}
    for folder, classes in UNSEEN.items():
        pictures = find([data / folder / name for name in classes], classes=False)
        labels = [classes.index(name.split("/")[0]) for name in pictures.names]
        features = embed(backbone, pictures, size=SIZE).features
        found[folder] = knn_leave_one_out(features, labels, k=20, classes=len(classes))
    return found


def main(epochs: float | None = None) -> None:
    data = data_folder()
    if data is None or not all((data / name).is_dir() for name in SEEN):
        print("The adaptation benchmark needs the folders `scenes` and `flowers`: set DINOVIZ_DATA.")
        return
    quiet_transformers()
    paths = tuple(str(data / name) for name in SEEN)
    settings = {**pretrain_preset("adapt"), "data": paths, "start": "embedded", "knn_every": 0.0}
    config = PretrainConfig(**settings | ({"epochs": epochs} if epochs else {}))
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create("adapted", "pretrain", config.to_dict(), root=Path(folder))
        begin = time.perf_counter()
        pretrain(config, run)
        minutes = (time.perf_counter() - begin) / 60
        before = accuracy(dinoviz.load("embedded", device="cpu"), data)
        after = accuracy(dinoviz.load(run.folder, device="cpu"), data)
    print(
        f"Going on with DINO from the embedded weights, {config.epochs:g} epochs, {minutes:.1f} minutes; 20-NN of CLS"
    )
    for name, value in before.items():
        print(f"  {name:12} {', '.join(UNSEEN[name]):26} before {value:6.1%}  after {after[name]:6.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=float, help="instead of the preset's")
    main(parser.parse_args().epochs)
