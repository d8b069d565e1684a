"""A step of pretraining against the published loop: end to end, and where the time goes.

python -m tests.benchmarks.training_speed

The same machine, process, images, architecture, crops (sizes, counts, scales, probabilities), batch, float32 and
threads; both take turns. A turn is a few steps, data included, of which the first ones are not counted (workers start,
memory is taken); its time is wall clock by steps, so that waiting for data counts. The published loop gets the number
of loader processes that is best for it here. Images: `scenes` of the data folder, else the demo's, as files.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.benchmarks.pca_stability import data_folder
from tests.benchmarks.published_dino import Crops, Loop
from training.config.pretrain import PretrainConfig, pretrain_preset
from training.data.dataset import Decoded, batches, find
from training.data.demo import demo
from training.dino.distillation import Distillation

IMAGES, EPOCH, STEPS = 512, 8, 1000
WARM, COUNTED, TURNS = 2, 4, 3
SETTINGS = {
    "micro": pretrain_preset("micro"),
    "32 px": {
        "dim": 128, "depth": 6, "heads": 4, "patch": 4, "global_size": 32, "local_size": 16, "local_crops": 4,
        "prototypes": 1024, "head_hidden": 512, "head_bottleneck": 128, "batch": 32,
    },
}  # fmt: skip
PARTS = ("data", "teacher", "student", "loss", "backward", "update")


class Laps:
    """Seconds by part of a step."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def __call__(self, name: str) -> None:
        """All since the last call was spent on `name`."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now


class Published:
    """The reference with its loader."""

    def __init__(self, config: PretrainConfig, files: list[Path], workers: int):
        self.config, self.workers = config, workers
        self.data = Crops(files, config)
        torch.manual_seed(0)
        self.loop = Loop(config, STEPS, EPOCH)
        self.done = 0

    def steps(self, laps: Laps) -> Iterator[None]:
        loader = torch.utils.data.DataLoader(
            self.data, batch_size=self.config.batch, shuffle=True, num_workers=self.workers, drop_last=True
        )
        for crops in loader:
            laps("data")
            self.loop.step(crops, self.done, laps)
            self.done += 1
            yield


class Ours:
    """`training`, as `training.pretrain` uses it."""

    def __init__(self, config: PretrainConfig, files: list[Path]):
        from accelerate import Accelerator

        self.config = config
        longest = max(Image.open(files[0]).size)
        self.data = Decoded(find([str(file) for file in files]), min(2 * config.global_size, longest))
        self.dino = Distillation(config, Accelerator(cpu=True), STEPS, EPOCH)
        self.random = np.random.default_rng(0)
        self.done = 0

    def steps(self, laps: Laps) -> Iterator[None]:
        order = self.random.permutation(len(self.data))[: len(self.data) // self.config.batch * self.config.batch]
        with self._timed(laps):
            for images, aspects in batches(self.data, order.reshape(-1, self.config.batch)):
                self.dino.step(images, aspects, self.done)
                laps("update")
                self.done += 1
                yield

    @contextmanager
    def _timed(self, laps: Laps) -> Iterator[None]:
        """Take the time after each part of `Distillation.step`, which knows nothing of it."""
        dino = self.dino
        crops, losses, backward = dino.crops, dino.losses, dino.accelerator.backward
        hooks = [
            dino.teacher.register_forward_hook(lambda *_: laps("teacher")),
            dino.student.register_forward_hook(lambda *_: laps("student")),
        ]
        dino.crops = _Then(crops, lambda: laps("data"))
        dino.losses = _Then(losses, lambda: laps("loss"))
        dino.accelerator.backward = _Then(backward, lambda: laps("backward"))
        try:
            yield
        finally:
            dino.crops, dino.losses, dino.accelerator.backward = crops, losses, backward
            for hook in hooks:
                hook.remove()


class _Then:
    """A callable with its attributes, after each call of which something is done."""

    def __init__(self, inner, then):
        self.inner, self.then = inner, then

    def __call__(self, *args, **kwargs):
        found = self.inner(*args, **kwargs)
        self.then()
        return found

    def __getattr__(self, name: str):
        return getattr(self.inner, name)


def turn(way: Published | Ours) -> dict[str, float]:
    """Seconds a step, in all and by part, of one turn."""
    laps = Laps()
    for number, _ in enumerate(way.steps(laps), start=1):
        if number == WARM:
            laps.seconds.clear()
            began = time.perf_counter()
        if number == WARM + COUNTED:
            break
    return {name: seconds / COUNTED for name, seconds in {**laps.seconds, "all": time.perf_counter() - began}.items()}


def in_turns(ways: dict[str, Published | Ours], turns: int) -> dict[str, dict[str, float]]:
    """Medians over turns, by way and part."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            found[name].append(turn(way))
    return {name: {part: statistics.median(t[part] for t in took) for part in took[0]} for name, took in found.items()}


def image_files(folder: Path, side: int | None) -> list[Path]:
    """Pictures as files: as they are, or made smaller to `side`."""
    data = data_folder()
    pictures = find([str(data / "scenes" / "train")]) if data and (data / "scenes").is_dir() else demo("train")
    chosen = np.linspace(0, len(pictures) - 1, IMAGES).astype(int)
    files = [folder / f"{i}.jpg" for i in range(len(chosen))]
    for file, i in zip(files, chosen, strict=True):
        picture = pictures.open(int(i))
        (picture.resize((side, side), Image.Resampling.LANCZOS) if side else picture).save(file, quality=95)
    return files


def compare(name: str, values: dict) -> float:
    """Print one setting's table; returns how many times faster ours is."""
    config = PretrainConfig(**values, precision="float32", freeze_last_layer=0.0).resolved()
    with tempfile.TemporaryDirectory() as temporary:
        files = image_files(Path(temporary), 32 if config.global_size == 32 else None)
        by_workers = {str(workers): Published(config, files, workers) for workers in (0, 1, 2)}
        seconds = {workers: took["all"] for workers, took in in_turns(by_workers, 1).items()}
        best = min(seconds, key=seconds.get)
        ways = {"published": by_workers[best], "dinoviz": Ours(config, files)}
        took = in_turns(ways, TURNS)
    tried = ", ".join(f"{workers}: {1000 * s:.0f}" for workers, s in seconds.items())
    print(
        f"{name}: {config.depth} x {config.dim}, patch {config.patch}, batch {config.batch}, "
        f"2 x {config.global_size} + {config.local_crops} x {config.local_size} px; "
        f"published with {best} loader processes (ms by number: {tried})"
    )
    print(f"{'ms a step':10} {'all':>7} " + " ".join(f"{part:>9}" for part in PARTS))
    for way, parts in took.items():
        print(f"{way:10} {1000 * parts['all']:7.0f} " + " ".join(f"{1000 * parts[part]:9.1f}" for part in PARTS))
    ratio = took["published"]["all"] / took["dinoviz"]["all"]
    print(f"{'x faster':10} {ratio:7.2f}", flush=True)
    return ratio


def main() -> None:
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # more processes than cores is a try
    print(f"a training step, float32, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name, values in SETTINGS.items():
        compare(name, values)


if __name__ == "__main__":
    main()
