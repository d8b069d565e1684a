"""Estimates how long a run takes on this machine by timing a few of its own steps on images of noise.

Networks, heads, augmentation and optimiser are those of the run; nothing is written. Reading and writing is not timed:
images that do not fit in memory, or lie on a slow disk, take longer.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import dinoviz
from dinoviz import models
from dinoviz.backbone import Backbone
from dinoviz.depth import heads as depth_heads
from dinoviz.errors import Stopped
from dinoviz.grid import PatchGrid
from training.classifier.fitting import ClassifierFitting
from training.classifier.methods import STORE, CentreCrops, LinearHead, Network, logits_of
from training.classifier.model import build
from training.config.pretrain import PretrainConfig
from training.config.tasks import FinetuneConfig, ProbeConfig
from training.data.dataset import DataError, Decoded, Pictures, find
from training.data.demo import DEMO, DEMO_CROPS, demo_probes
from training.depth.cached_features import View, views_of
from training.depth.fitting import DepthFitting
from training.depth.rgbd import find_pairs, split
from training.dino import checks, snapshots
from training.dino.distillation import Distillation
from training.engine.epochs import EpochLoop
from training.evaluation.embed import embed_tensor, evaluation_size
from training.finetune import HEAD_FIRST
from training.pretrain import schedules_in_words, steps_in_epoch
from training.runs.lifecycle import enough_memory

# Of one measurement: laps after the first, which warms up; least seconds, for short laps; most seconds.
LAPS, LEAST, MOST = 3, 0.25, 3.0
TIMED_IMAGES = 8  # that are encoded at once to time the encoding
MOST_EPOCHS = 100  # of a training that is timed; it ends when there are enough laps
ROOM = (640, 480)  # pixels of a picture with depth, as Kinect and NYU Depth have them

Stage = Callable[[str, float], None]
"""Called with what is being timed and the share of the estimate that is done; it may raise Stopped to end it."""


@dataclass(frozen=True)
class Estimate:
    """seconds: of the whole run. step: seconds of one of its `steps`. how: what was timed and what not, as text."""

    seconds: float
    step: float
    steps: int
    how: str


def estimate(
    config: PretrainConfig | FinetuneConfig | ProbeConfig, images: int, *, progress: Stage | None = None
) -> Estimate:
    """The time that a run of this configuration takes with so many images, if it trains all of its epochs.

    Takes some seconds, up to a minute for large models.

    Args:
        config: of the run.
        images: number of training and validation images together.
        progress: called between steps.

    Raises:
        DinovizError: where the run would raise it: too few images, a model that cannot be loaded, settings that do not
            fit it, a device without enough memory.
    """
    kind, work = {
        PretrainConfig: ("pretrain", _pretraining),
        FinetuneConfig: ("finetune", _finetuning),
        ProbeConfig: ("probe", _probing),
    }[type(config)]
    config.check_new()
    progress = progress or (lambda what, share: None)
    progress("Building the network", 0.0)
    try:
        with enough_memory(kind), torch.random.fork_rng(devices=[]):  # a run seeds it
            return work(config, images, progress)
    finally:
        _free_memory()


def _free_memory() -> None:
    gc.collect()  # networks and optimisers refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(OSError, TypeError, AttributeError):  # where the C library is not glibc, which would keep gigabytes
        ctypes.CDLL(None).malloc_trim(0)


class _Laps:
    """A stopwatch for repeated work."""

    def __init__(self, progress: Stage, what: str, begin: float, end: float):
        """begin, end: share of the whole estimate that is done before and after this measurement."""
        self._progress, self._what, self._begin, self._end = progress, what, begin, end
        self._seconds: list[float] = []
        self._last = time.perf_counter()

    def lap(self) -> None:
        """End a lap and begin the next. Raises what `progress` raises; the lap then does not count."""
        seconds = [*self._seconds, time.perf_counter() - self._last]
        done = min(1.0, max(len(seconds) / (LAPS + 1), sum(seconds) / MOST))
        self._progress(self._what, self._begin + done * (self._end - self._begin))
        self._seconds, self._last = seconds, time.perf_counter()

    @property
    def enough(self) -> bool:
        """Whether the median is reliable, or the time for it is up."""
        spent = sum(self._seconds)
        return spent > MOST or (len(self._seconds) > LAPS and spent > LEAST)

    @property
    def median(self) -> float:
        """Median seconds of a lap, without the first, which warms up, unless it was long enough to be the only one."""
        return float(np.median(self._seconds[1:] or self._seconds))

    def time(self, work: Callable[[], object]) -> float:
        """Repeat the work until there are enough laps. Returns the median seconds."""
        self._last = time.perf_counter()
        while not self.enough:
            work()
            self.lap()
        return self.median


def _pretraining(config: PretrainConfig, images: int, progress: Stage) -> Estimate:
    from accelerate import Accelerator

    shared = round(config.validation_share * images) if config.data and not config.validation else 0
    train, held_out = images - shared, shared or _held_out(config.validation, not config.data)
    epoch = steps_in_epoch(config, train)
    steps = max(1, round(config.epochs * epoch))
    accelerator = Accelerator(cpu=models.pick_device().type == "cpu")
    dino = Distillation(replace(config, compile=False), accelerator, steps, epoch)  # compiling takes minutes
    side = checks.store_size(config, 2 * config.global_size)
    pixels, aspects = torch.randint(256, (config.batch, 3, side, side), dtype=torch.uint8), torch.ones(config.batch)
    # Reading the norm waits for devices that compute asynchronously.
    step = _Laps(progress, "Timing a step", 0.2, 0.6).time(lambda: float(dino.step(pixels, aspects, 0).norm))
    teacher = snapshots.view(dino.teacher.backbone, "estimate", dino.mean, dino.std)
    some = pixels[:64].to(dino.device)
    laps = _Laps(progress, "Timing k-NN", 0.6, 0.8)
    embedding = laps.time(lambda: embed_tensor(teacher, some, config.global_size, share=1))
    snapshot = _snapshot(teacher, config, _Laps(progress, "Timing a snapshot", 0.8, 1.0))
    embedded = min(train, snapshots.MOST_NEIGHBOURS) + held_out if held_out else 0
    knn = embedded * embedding / len(some)
    # Before the first step, at each multiple and after the last; with knn_every 0, at the end only.
    evaluations = (1 + _periods(steps, config.knn_every * epoch) if config.knn_every else 1) if held_out else 0
    snapshot_count = 1 + _periods(steps, config.snapshot_every * epoch)
    knn_words = f" and {evaluations} times k-NN of {_short(knn)}" if held_out else ""
    compiled = "; compiled, it may be less" if config.compile else ""
    return Estimate(
        steps * step + evaluations * knn + snapshot_count * snapshot,
        step,
        steps,
        f"{steps:,} steps of {_short(step)}, {snapshot_count} snapshots of {_short(snapshot)}{knn_words}, "
        f"timed on this machine; without reading the images{compiled}. Schedules: {schedules_in_words(config)}.",
    )


def _periods(steps: int, every: float) -> int:
    """The number of periods of `every` steps that a run begins; 0: the whole run is one."""
    return int(np.ceil(steps / every)) if every else 1


def _snapshot(teacher: Backbone, config: PretrainConfig, laps: _Laps) -> float:
    probes = demo_probes()
    with tempfile.TemporaryDirectory() as folder:
        return laps.time(lambda: snapshots.snapshot(teacher, probes, 2 * config.global_size, Path(folder) / "snapshot"))


def _finetuning(config: FinetuneConfig, images: int, progress: Stage) -> Estimate:
    _check_count(images)
    validation = max(1, round(config.validation * images))
    train, test = images - validation, _held_out(config.test, not config.data)
    backbone = dinoviz.load(config.model, device=config.device or None, dtype=torch.float32)
    size = evaluation_size(backbone, config.size)
    crops = CentreCrops(_noise(TIMED_IMAGES, size), size, TIMED_IMAGES, np.inf)
    head_only, seconds, parts = config.method == "linear", 0.0, []
    if head_only or config.linear_first:
        first = config if head_only else FinetuneConfig(**HEAD_FIRST)
        encoding, step = _time_head(first, backbone, crops, progress)
        steps = _steps(train, first.batch, first.epoch_count)
        seconds += encoding * images + steps * step
        parts.append(f"{_short(encoding)} to encode an image and {steps:,} steps of the head of {_short(step)}")
    if head_only:
        seconds += encoding * (validation + test)
    else:
        step, validating = _time_network(config, backbone, crops, train, progress)
        steps = _steps(train, config.batch, config.epoch_count)
        validations = config.epoch_count + config.linear_first  # the linear head is validated too
        seconds += steps * step + (validations * validation + validation + test) * validating
        parts.append(
            f"{steps:,} steps of {_short(step)} and {validations} validations of {_short(validating * validation)}"
        )
    how = f"{', then '.join(parts)}, timed on this machine; without reading the images, and less if it stops early."
    return Estimate(seconds, step, steps, how)


def _time_head(config: FinetuneConfig, backbone: Backbone, crops: CentreCrops, progress: Stage) -> tuple[float, float]:
    """Seconds to encode an image, and of a step of the head."""
    head = LinearHead(build(backbone, crops.pictures.classes, crops.size), backbone.normalise, crops, crops, config)
    laps = _Laps(progress, "Timing the encoding", 0.2, 0.4)
    encoding = laps.time(lambda: logits_of(head.network, backbone.normalise, crops)) / TIMED_IMAGES
    # Of two images, so that an epoch has several steps: the time of a step of the head hardly depends on its batch.
    return encoding, _time_step(replace(config, batch=2), head, _Laps(progress, "Timing the head", 0.4, 0.5))


def _time_network(
    config: FinetuneConfig, backbone: Backbone, crops: CentreCrops, train: int, progress: Stage
) -> tuple[float, float]:
    """Seconds of a step, and to validate one image. train: number of training images."""
    size = crops.size
    decoded = Decoded(_noise(min(train, (LAPS + 1) * config.batch), size), round(size * STORE), memory=sys.maxsize)
    drop_path = config.drop_path if config.method == "full" else 0.0
    model = build(backbone, crops.pictures.classes, size, drop_path)
    network = Network(model, backbone.normalise, decoded, crops, config)
    step = _time_step(config, network, _Laps(progress, "Timing a step", 0.5, 0.9))
    laps = _Laps(progress, "Timing the validation", 0.9, 1.0)
    return step, laps.time(network.validation_logits) / TIMED_IMAGES


def _time_step(config: FinetuneConfig, model: LinearHead | Network, laps: _Laps) -> float:
    """Seconds of a step of fine-tuning."""
    endless = replace(config, epochs=MOST_EPOCHS, patience=MOST_EPOCHS)
    try:
        EpochLoop(ClassifierFitting(endless, model), None, lambda: laps.enough, lambda *_: laps.lap()).fit()
    except Stopped:
        if not laps.enough:  # stopped by the caller, not by the laps
            raise
    return laps.median


def _probing(config: ProbeConfig, images: int, progress: Stage) -> Estimate:
    images = min(images, config.limit or images)
    _check_count(images)
    validation, held_out = _split_counts(config, images)
    backbone = dinoviz.load(config.model, device=config.device or None)
    layers, grid = config.blocks(backbone.layers), PatchGrid.fit(ROOM, config.resolution, backbone.patch_size)
    picture, truth = _noise(1, ROOM[0]).open(0).resize(ROOM), np.full(ROOM[::-1], sum(config.depth) / 2)

    def encode() -> tuple[torch.Tensor, ...]:
        pixels, depth = View().show(picture, truth, truth > 0, grid)
        tokens = torch.cat(backbone.tokens(pixels[None], layers), dim=2)[0]
        patches = tokens[1 + backbone.registers :].reshape(*grid.shape, -1)
        return patches, tokens[0], torch.from_numpy(depth.astype(np.float32)).to(tokens.device)

    encoding = _Laps(progress, "Timing the encoding", 0.2, 0.6).time(encode)
    train = images - validation - held_out
    batch = tuple(torch.stack([each] * min(config.batch, train)) for each in encode())
    channels = len(layers) * backbone.dim
    head = depth_heads.make(config.architecture(channels)).to(backbone.device)
    head.prepare(torch.zeros(channels), torch.ones(channels), config.head_dropout)
    fitting = DepthFitting(head, config)
    step = _Laps(progress, "Timing a step", 0.6, 1.0).time(lambda: fitting.step(batch, 0, 1))
    steps = _steps(train, config.batch, config.epochs)
    tested = len(find_pairs(config.test)) if config.test else held_out
    encoded = train * len(views_of(config, 0)) + validation
    measured = validation + tested  # these are encoded once more at the end
    teacher = " and the teacher" if config.teacher else ""
    return Estimate(
        encoding * (encoded + measured) + step * steps,
        step,
        steps,
        f"{_short(encoding)} to encode each of {encoded:,} views and {steps:,} steps of the head of {_short(step)}, "
        f"timed on this machine; without reading the images{teacher}, and less if it stops early.",
    )


def _split_counts(config: ProbeConfig, images: int) -> tuple[int, int]:
    """The numbers of validation and of held-out images."""
    if config.teacher or not config.data:  # the folder is not written yet
        return max(bool(config.validation), round(config.validation * images)), config.held_out
    parts = split(find_pairs(config.data, config.limit), config.validation, config.held_out)
    return len(parts.validation), len(parts.held_out)


def _check_count(images: int) -> None:
    if images < 2:
        raise DataError(f"Training needs at least 2 images, one of them for validation; there are {images}.")


def _held_out(source: str, demo: bool) -> int:
    """The number of held-out labelled images, of the demo or in a folder."""
    if demo:
        return DEMO_CROPS["held-out"] * len(DEMO)
    return len(find(source)) if source else 0


def _steps(images: int, batch: int, epochs: int) -> int:
    return -(-images // batch) * epochs


def _noise(count: int, size: int) -> Pictures:
    """Images of noise in two classes, large enough to be cropped to this size."""
    side = round(size * STORE)
    pixels = np.random.default_rng(0).integers(256, size=(side, side, 3), dtype=np.uint8)
    names = tuple(str(i) for i in range(count))
    return Pictures(names, np.arange(count) % 2, ("a", "b"), (pixels,) * count)


def _short(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"
