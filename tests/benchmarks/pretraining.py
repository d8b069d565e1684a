"""What a quarter of an hour on two cores teaches a tiny network from scratch.

Protocol: `scenes`, six classes; pretraining on its 1,560 training images without their labels, top-1 of weighted 20-NN
(temperature 0.07) of the 480 held-out images among the training images, on the teacher, CLS token, last epoch,
whole images at the size of the global crops; one seed. Compared with the same network untrained, with raw pixels (the
best of three sizes, each centred and not), and with the same recipe with two global crops alone, given the same time:
its epochs are as many more as its steps are faster, measured in this run. Run it by
`python -m tests.benchmarks.pretraining [--minutes M]`.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from dinoviz.hub import quiet_transformers
from tests.benchmarks.pca_stability import data_folder
from training.config.pretrain import PretrainConfig, pretrain_preset
from training.data.dataset import Decoded, batches, find
from training.evaluate import knn
from training.pretrain import Pretraining
from training.runs.run import Run

PRESET = "quarter-hour"
TIMED, WARM = 12, 4  # steps that are timed, after some that are not


def raw_pixels(data: Path) -> dict[str, float]:
    """20-NN of the pixels themselves."""
    train, held_out = (Decoded(find(data / part), 100) for part in ("train", "val"))
    found = {}
    for size in (8, 16, 32):
        known, asked = (
            F.interpolate(part.images.float() / 255, (size, size), mode="bicubic", antialias=True).flatten(1).numpy()
            for part in (train, held_out)
        )
        for name, mean in (("", 0), (", centred", known.mean(0))):
            found[f"{size} px{name}"] = knn(known - mean, train.labels, asked - mean, held_out.labels)
    return found


def configuration(data: Path, **changes) -> PretrainConfig:
    """The preset on the scenes, with k-NN at the start and the end alone."""
    paths = {"data": (str(data / "train"),), "validation": str(data / "val")}
    ends = {"knn_every": 1e9, "snapshot_every": 0.0}  # with 0 the untrained network would not be evaluated
    return PretrainConfig(**{**pretrain_preset(PRESET), **paths, **ends, **changes})


def step_seconds(config: PretrainConfig, folder: Path) -> float:
    """Median time of a step."""
    session = Pretraining(config, Run.create("timing", "pretrain", config.to_dict(), root=folder))
    order, times = session._order(), []
    for step, (images, aspects) in zip(range(WARM + TIMED), batches(session.data, order), strict=False):
        begin = time.perf_counter()
        session.dino.step(images, aspects, step)
        times.append(time.perf_counter() - begin)
    return float(np.median(times[WARM:]))


def train(config: PretrainConfig, name: str, folder: Path) -> tuple[float, float, float]:
    """Top-1 before and after, and the seconds that it took."""
    run = Run.create(name, "pretrain", config.to_dict(), root=folder)
    begin = time.perf_counter()
    Pretraining(config, run).train()
    found = [record["knn"] for record in run.metrics() if "knn" in record]
    return found[0], found[-1], time.perf_counter() - begin


def main(minutes: float | None = None) -> None:
    folder = data_folder()
    if folder is None or not (folder / "scenes").is_dir():
        print("The pretraining benchmark needs the folder `scenes`: set DINOVIZ_DATA.")
        return
    quiet_transformers()
    data = folder / "scenes"
    config = configuration(data)
    two_crops = configuration(data, local_crops=0)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        full, two = (step_seconds(c, root / str(i)) for i, c in enumerate((config, two_crops)))
        if minutes:
            steps = 60 * minutes / full
            config = dataclasses.replace(config, epochs=steps / (1560 // config.batch))
        two_crops = dataclasses.replace(two_crops, epochs=config.epochs * full / two)
        print(f"Pretraining on scenes, preset {PRESET}, {torch.get_num_threads()} threads, 20-NN top-1")
        untrained, learnt, seconds = train(config, "multi-crop", root)
        _, without, two_seconds = train(two_crops, "two-crop", root)
    pixels = raw_pixels(data)
    best = max(pixels, key=pixels.get)
    print(f"  pretrained, {config.epochs:.0f} epochs             {learnt:6.1%}  {seconds / 60:.1f} minutes")
    print(f"  two crops alone, {two_crops.epochs:.0f} epochs         {without:6.1%}  {two_seconds / 60:.1f} minutes")
    print(f"  the same network untrained        {untrained:6.1%}")
    print(f"  raw pixels, at best ({best})  {pixels[best]:6.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, help="train for about this long instead of the preset's epochs")
    main(parser.parse_args().minutes)
