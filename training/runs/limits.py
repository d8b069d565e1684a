"""Limits of runs on a public page: settings, memory, images, time and disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dinoviz.errors import DinovizError
from dinoviz.models import KNOWN
from training.config.base import Config
from training.config.pretrain import PretrainConfig
from training.config.tasks import FinetuneConfig

# Largest values of settings, by kind; every preset except "small", which needs a GPU, is within them.
MOST = {
    "pretrain": {
        "epochs": 300, "batch": 128, "dim": 384, "depth": 12, "mlp_ratio": 4, "global_size": 224, "local_size": 112,
        "local_crops": 10, "prototypes": 16_384, "head_hidden": 2048, "head_bottleneck": 256,
    },
    "finetune": {"epochs": 200, "batch": 64, "size": 336, "rank": 64},
    "probe": {"epochs": 100, "batch": 32, "resolution": 518, "crops": 8, "members": 5, "bins": 256},
}  # fmt: skip
# Smallest values, which limit how much is written; 0 of knn_every and snapshot_every means rarely.
LEAST = {"pretrain": {"checkpoint_minutes": 0.1, "knn_every": 0.5, "snapshot_every": 0.5}}
ZERO_IS_RARE = ("knn_every", "snapshot_every")
# Bytes of activations by token, channel and block: a block keeps some 18 float32 values of each channel, with those of
# an MLP of four times the width (Korthikanti et al. 2022, section 4).
ACTIVATION_BYTES = 80
# Channels x blocks of known models, by their number of parameters in millions.
WIDTHS = ((30, 384 * 12), (100, 768 * 12), (310, 1024 * 24), (1200, 1536 * 40))


class LimitError(DinovizError):
    """A run beyond a limit; the message has the limit."""


@dataclass(frozen=True)
class Limits:
    """The limits of a public page; the operator sets the first three.

    minutes: of a run, over all its resumptions. gigabytes: of memory for one step, estimated. megabytes: of disk for
    all runs, of which those of one browser may take a tenth. waiting: runs in the queue; waiting_each: of one browser.
    images: of a run.
    """

    minutes: float = 30
    gigabytes: float = 8
    megabytes: float = 10_000
    waiting: int = 8
    waiting_each: int = 2
    images: int = 20_000

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Limits:
        """The limits in DINOVIZ_TRAIN_MINUTES, DINOVIZ_TRAIN_GB and DINOVIZ_TRAIN_MB, numbers above 0."""
        names = {"minutes": "MINUTES", "gigabytes": "GB", "megabytes": "MB"}
        found = {key: environment.get(f"DINOVIZ_TRAIN_{name}", "").strip() for key, name in names.items()}
        return cls(**{key: _positive(f"DINOVIZ_TRAIN_{names[key]}", text) for key, text in found.items() if text})

    @property
    def megabytes_each(self) -> float:
        """The disk space for the runs of one browser."""
        return self.megabytes / 10

    def check(self, kind: str, config: Config, images: int) -> None:
        """Raise LimitError if settings, number of images or memory of a step are beyond the limits."""
        for name, most in MOST[kind].items():
            if getattr(config, name) > most:
                raise LimitError(f"{name} is at most {most:,} on this page, not {getattr(config, name):,}.")
        for name, least in LEAST.get(kind, {}).items():
            value = getattr(config, name)
            if value < least and not (value == 0 and name in ZERO_IS_RARE):
                raise LimitError(f"{name} is at least {least:g} on this page, not {value:g}.")
        if images > self.images:
            raise LimitError(f"A run has at most {self.images:,} images on this page, not {images:,}.")
        if (needed := step_bytes(config) / 1e9) > self.gigabytes:
            raise LimitError(
                f"A step needs about {needed:.0f} GB of memory, more than the {self.gigabytes:g} GB of this page: "
                "lower batch or the image size."
            )

    def check_queue(self, waiting: int, own: int) -> None:
        """Raise LimitError if the queue is full. own: runs of the same browser that wait or run."""
        if own >= self.waiting_each:
            raise LimitError(f"{own} of your runs are waiting or running: try again when one of them is done.")
        if waiting >= self.waiting:
            raise LimitError(f"{waiting} runs are waiting: try again when some of them are done.")

    def check_disk(self, own: int, total: int) -> None:
        """Raise LimitError if the disk space is used up. own, total: bytes of the browser's runs and of all runs."""
        for taken, most, whose in ((own, self.megabytes_each, "your"), (total, self.megabytes, "all")):
            if taken > most * 1e6:
                raise LimitError(
                    f"There is no space for another run: {whose} runs take {taken / 1e6:,.0f} MB of the {most:,.0f} MB "
                    "on this page."
                )


def step_bytes(config: Config) -> float:
    """The estimated bytes of activations of a step; 0 if the network is not trained."""
    if isinstance(config, PretrainConfig):
        tokens = sum(
            count * ((size // config.patch) ** 2 + 1 + config.registers)
            for count, size in ((2, config.global_size), (config.local_crops, config.local_size))
        )
        width = _width(config.start) if config.start else config.dim * config.depth
        return config.batch / config.accumulate * tokens * width * ACTIVATION_BYTES
    if isinstance(config, FinetuneConfig) and config.method != "linear":
        return config.batch * ((config.size or 224) // 14) ** 2 * _width(config.model) * ACTIVATION_BYTES
    return 0.0


def _width(model: str) -> int:
    """Channels x blocks of a known model; of a run, the largest that MOST allows."""
    parameters = KNOWN[model].parameters if model in KNOWN else 0
    return next(width for most, width in WIDTHS if parameters <= most)


def folder_bytes(folder: Path) -> int:
    """The size of the files below a folder, without following links."""
    total = 0
    for place, _, files in os.walk(folder):
        for file in files:
            with suppress(OSError):
                total += os.lstat(Path(place) / file).st_size
    return total


def _positive(name: str, text: str) -> float:
    with suppress(ValueError):
        if 0 < (value := float(text)) < float("inf"):
            return value
    raise LimitError(f"{name} must be a number above 0, not {text!r}.")
