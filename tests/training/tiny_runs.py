"""Shared by the tests of training: runs of milliseconds a step, small folders of images, small disks, errors."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.config.pretrain import PretrainConfig
from training.data.dataset import Pictures
from training.data.demo import demo
from training.runs.run import Run

# What a run measures of the machine; all else is a function of settings, data and seed.
OF_THE_MACHINE = ("speed", "waiting", "memory_mb")
SHAPE = {
    "dim": 32, "depth": 2, "heads": 2, "patch": 8, "prototypes": 64, "head_hidden": 64, "head_bottleneck": 32,
    "global_size": 16, "local_size": 8, "local_crops": 2, "batch": 16, "log_every": 1,
    "precision": "float32",  # whatever the machine is good at
}  # fmt: skip
# No augmentation to speak of.
PLAIN = {
    "global_scale": (1.0, 1.0), "local_crops": 0, "flip": 0.0, "jitter": 0.0, "grey": 0.0, "blur": (0.0, 0.0, 0.0),
    "solarise": 0.0,
}  # fmt: skip


@cache
def _demo(part: str = "train") -> Pictures:
    return demo(part)


def refused(kind: type[Exception], do: Callable, *args, **kwargs) -> str:
    """The message of an error, which must be one line that ends with a full stop."""
    with pytest.raises(kind) as raised:
        do(*args, **kwargs)
    text = str(raised.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own in a new folder; skips the test where only root may make one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder]
    try:
        mounted = subprocess.run(mount, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("only root may mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(folder: Path) -> Path:
    """A file that leaves no room on the folder's disk."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    return folder / "filler"


def write_classes(root: Path, train: int, held_out: int) -> Path:
    """The first three classes of the demo as two folders of class folders, with so many images of each class."""
    for part, count in (("train", train), ("held-out", held_out)):
        pictures = _demo(part)
        for label in range(3):
            folder = root / part / pictures.classes[label]
            folder.mkdir(parents=True)
            for i in np.flatnonzero(pictures.labels == label)[:count]:
                pictures.open(int(i)).save(folder / f"{i}.png")
    return root


def write_images(folder: Path, count: int, *, classes: bool = False) -> Path:
    """Images of the demo, evenly spaced, 18 of them different; in folders of their classes with `classes`."""
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
    """Bit-equal runs: every record, and student, teacher, optimiser, centres and counts."""
    assert without_machine(run) == without_machine(other)
    mine, theirs = tensors(run), tensors(other)
    assert mine.keys() == theirs.keys()
    different = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    assert not different
    assert run.status()["state"] == other.status()["state"]


def arrays(run: Run, step: int) -> dict[str, np.ndarray]:
    with np.load(run.folder / "snapshots" / f"step-{step:08}" / "arrays.npz") as file:
        return dict(file)
