"""Pretraining runs of milliseconds a step, which the tests of pretraining share."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from training.config import PretrainConfig
from training.data import Pictures, demo
from training.runs import Run

# What a run measures of the machine; all else is a function of settings, data and seed.
OF_THE_MACHINE = ("speed", "waiting", "memory_mb")
SHAPE = {
    "dim": 32, "depth": 2, "heads": 2, "patch": 8, "prototypes": 64, "head_hidden": 64, "head_bottleneck": 32,
    "global_size": 16, "local_size": 8, "local_crops": 2, "batch": 16, "warmup_epochs": 1.0, "log_every": 1,
    "precision": "float32",  # whatever the machine is good at
}  # fmt: skip
# No augmentation to speak of.
PLAIN = {
    "global_scale": (1.0, 1.0), "local_crops": 0, "flip": 0.0, "jitter": 0.0, "grey": 0.0, "blur": (0.0, 0.0, 0.0),
    "solarise": 0.0,
}  # fmt: skip


@cache
def _demo() -> Pictures:
    return demo("train")


def write_images(folder: Path, count: int, *, classes: bool = False) -> Path:
    """Images of the demo, as far apart as can be, 18 of them different; in folders of their classes if asked for."""
    pictures = _demo()
    for i in range(count):
        index = i * (len(pictures) // count)
        name = pictures.names[index].split("/")[0] if classes else "."
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures.where[index]).save(folder / name / f"{i:03}.png")
    return folder


def settings(images: Path, **values) -> PretrainConfig:
    """Two epochs of four steps, if there are 64 images."""
    return PretrainConfig(**{"data": (str(images),), "epochs": 2.0, **SHAPE, **values})


def begin(config: PretrainConfig, root: Path, name: str = "a") -> Run:
    return Run.create(name, "pretrain", config.to_dict(), root=root)


def losses(run: Run) -> list[dict]:
    """The records of steps, without those of k-NN."""
    return [record for record in run.metrics() if "loss" in record]


def without_machine(run: Run) -> list[dict]:
    return [{key: value for key, value in record.items() if key not in OF_THE_MACHINE} for record in run.metrics()]


def tensors(run: Run) -> dict[str, torch.Tensor]:
    """All of the last checkpoint."""
    checkpoint = run.checkpoint()
    return {f"{key} {name}": value for key in checkpoint.keys for name, value in checkpoint.tensors(key).items()}


def assert_same(run: Run, other: Run) -> None:
    """The same course to the last bit: every record, and student, teacher, optimiser, centres and counts."""
    assert without_machine(run) == without_machine(other)
    mine, theirs = tensors(run), tensors(other)
    assert mine.keys() == theirs.keys()
    different = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    assert not different
    assert run.status()["state"] == other.status()["state"]


def arrays(run: Run, step: int) -> dict[str, np.ndarray]:
    with np.load(run.folder / "snapshots" / f"step-{step:08}" / "arrays.npz") as file:
        return dict(file)
