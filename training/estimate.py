"""How long a run would take on this machine: a few of its own steps, timed on pictures of noise.

Networks, heads, augmentation and optimiser are those of the run; nothing is written and nothing is kept. What a run
reads and writes is not timed: images that do not fit in memory, or lie on a slow disk, take longer.
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
from training.classifier.methods import STORE, Head, Held, Network, logits_of
from training.classifier.model import build
from training.config.pretrain import PretrainConfig
from training.config.tasks import FinetuneConfig, ProbeConfig
from training.course import Course
from training.data.dataset import DataError, Decoded, Pictures, find
from training.data.demo import DEMO, DEMO_CROPS, demo_probes
from training.depth.cached_features import View, views_of
from training.depth.rgbd import find_pairs, split
from training.depth_course import Lesson
from training.dino import checks as advice
from training.dino import snapshots as monitor
from training.dino.distillation import Distillation
from training.evaluation.embed import embed_tensor, evaluation_size
from training.finetune import HEAD_FIRST
from training.pretrain import schedules_in_words, steps_in_epoch
from training.runs.lifecycle import enough_memory

# Of one measurement: laps after the first, which warms up; seconds that let short laps be told apart; seconds at most.
LAPS, LEAST, MOST = 3, 0.25, 3.0
LOOKED_AT = 8  # pictures that are encoded at once to time that
ROUNDS = 100  # epochs of a course that is timed; no more than are needed to have enough laps
ROOM = (640, 480)  # pixels of a picture with depth, as Kinect and NYU Depth have them

Tell = Callable[[str, float], None]
"""Called with what is done and the share of all that is; whoever wants no more of it raises Stopped there."""


@dataclass(frozen=True)
class Estimate:
    """seconds: of the whole run. step: seconds of one of its `steps`. how: what was timed and what not, a sentence."""

    seconds: float
    step: float
    steps: int
    how: str


def estimate(
    config: PretrainConfig | FinetuneConfig | ProbeConfig, images: int, *, tell: Tell | None = None
) -> Estimate:
    """How long a run of this configuration takes, if it has as many images and all of its epochs.

    images: how many there are to learn from, with those that are kept back to check on. tell: called between steps.

    Takes some seconds, up to a minute for large models. Raises DinovizError where the run would: for images fewer than
    a batch, models that cannot be had, settings that do not fit them, and a device whose memory is full.
    """
    kind, work = {
        PretrainConfig: ("pretrain", _pretraining),
        FinetuneConfig: ("finetune", _finetuning),
        ProbeConfig: ("probe", _probing),
    }[type(config)]
    config.check_new()
    tell = tell or (lambda what, share: None)
    tell("Building the network", 0.0)
    try:
        with enough_memory(kind), torch.random.fork_rng(devices=[]):  # a run seeds it
            return work(config, images, tell)
    finally:
        _give_memory_back()


def _give_memory_back() -> None:
    gc.collect()  # networks and optimisers refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(OSError, TypeError, AttributeError):  # where the C library is not glibc, which would keep gigabytes
        ctypes.CDLL(None).malloc_trim(0)


class _Laps:
    """A stopwatch that knows when it has seen enough."""

    def __init__(self, tell: Tell, what: str, begin: float, end: float):
        """begin, end: the share of the whole estimate that is done before and after this measurement."""
        self._tell, self._what, self._begin, self._end = tell, what, begin, end
        self._seconds: list[float] = []
        self._last = time.perf_counter()

    def lap(self) -> None:
        """The end of one lap and the beginning of the next. Raises what `tell` raises; the lap then does not count."""
        seconds = [*self._seconds, time.perf_counter() - self._last]
        done = min(1.0, max(len(seconds) / (LAPS + 1), sum(seconds) / MOST))
        self._tell(self._what, self._begin + done * (self._end - self._begin))
        self._seconds, self._last = seconds, time.perf_counter()

    @property
    def enough(self) -> bool:
        spent = sum(self._seconds)
        return spent > MOST or (len(self._seconds) > LAPS and spent > LEAST)

    @property
    def median(self) -> float:
        """Seconds of a lap; of the first only where that was long enough for its warming up not to matter."""
        return float(np.median(self._seconds[1:] or self._seconds))

    def time(self, act: Callable[[], object]) -> float:
        """Do something again and again; the seconds that it takes."""
        self._last = time.perf_counter()
        while not self.enough:
            act()
            self.lap()
        return self.median


def _pretraining(config: PretrainConfig, images: int, tell: Tell) -> Estimate:
    from accelerate import Accelerator

    shared = round(config.validation_share * images) if config.data and not config.validation else 0
    train, held_out = images - shared, shared or _held_out(config.validation, not config.data)
    epoch = steps_in_epoch(config, train)
    steps = max(1, round(config.epochs * epoch))
    accelerator = Accelerator(cpu=models.pick_device().type == "cpu")
    dino = Distillation(replace(config, compile=False), accelerator, steps, epoch)  # to compile takes minutes
    side = advice.store_size(config, 2 * config.global_size)
    pixels, aspects = torch.randint(256, (config.batch, 3, side, side), dtype=torch.uint8), torch.ones(config.batch)
    # The norm is a number that has to be waited for, on devices that compute while Python goes on.
    step = _Laps(tell, "Timing a step", 0.2, 0.6).time(lambda: float(dino.step(pixels, aspects, 0).norm))
    teacher = monitor.view(dino.teacher.backbone, "estimate", dino.mean, dino.std)
    some = pixels[:64].to(dino.device)
    laps = _Laps(tell, "Timing k-NN", 0.6, 0.8)
    embedding = laps.time(lambda: embed_tensor(teacher, some, config.global_size, share=1))
    snapshot = _snapshot(teacher, config, _Laps(tell, "Timing a snapshot", 0.8, 1.0))
    known = min(train, monitor.MOST_NEIGHBOURS) + held_out if held_out else 0
    neighbours = known * embedding / len(some)
    # Before the first step, at each multiple and after the last; k-NN with 0 is evaluated at the end alone.
    evaluations = (1 + _periods(steps, config.knn_every * epoch) if config.knn_every else 1) if held_out else 0
    snapshots = 1 + _periods(steps, config.snapshot_every * epoch)
    looks = f" and {evaluations} times k-NN of {_short(neighbours)}" if held_out else ""
    compiled = "; compiled, it may be less" if config.compile else ""
    return Estimate(
        steps * step + evaluations * neighbours + snapshots * snapshot,
        step,
        steps,
        f"{steps:,} steps of {_short(step)}, {snapshots} snapshots of {_short(snapshot)}{looks}, timed on this "
        f"machine; without reading the images{compiled}. Schedules: {schedules_in_words(config)}.",
    )


def _periods(steps: int, every: float) -> int:
    """How many periods of so many steps a run begins; without periods (0), the whole run is one."""
    return int(np.ceil(steps / every)) if every else 1


def _snapshot(teacher: Backbone, config: PretrainConfig, laps: _Laps) -> float:
    probes = demo_probes()
    with tempfile.TemporaryDirectory() as folder:
        return laps.time(lambda: monitor.snapshot(teacher, probes, 2 * config.global_size, Path(folder) / "snapshot"))


def _finetuning(config: FinetuneConfig, images: int, tell: Tell) -> Estimate:
    _check_count(images)
    kept = max(1, round(config.validation * images))
    train, held_out = images - kept, _held_out(config.test, not config.data)
    backbone = dinoviz.load(config.model, device=config.device or None, dtype=torch.float32)
    size, prepare = evaluation_size(backbone, config.size), backbone.normalise
    held = Held(_noise(LOOKED_AT, size), size, LOOKED_AT, np.inf)
    classes = held.pictures.classes
    seconds, said = 0.0, []
    linear = config.way == "linear"
    if linear or config.linear_first:
        first = config if linear else FinetuneConfig(**HEAD_FIRST)
        head = Head(build(backbone, classes, size), prepare, held, held, first)
        laps = _Laps(tell, "Timing the encoding", 0.2, 0.4)
        encoding = laps.time(lambda: logits_of(head.network, prepare, held)) / LOOKED_AT
        # Of two images, so that an epoch has several steps: what a step of the head takes hardly depends on its batch.
        step = _course(replace(first, batch=2), head, _Laps(tell, "Timing the head", 0.4, 0.5))
        steps = _steps(train, first.batch, first.rounds)
        seconds += encoding * images + steps * step
        said.append(f"{_short(encoding)} to encode an image and {steps:,} steps of the head of {_short(step)}")
    if linear:
        seconds += encoding * (kept + held_out)
    else:
        decoded = Decoded(_noise(min(train, (LAPS + 1) * config.batch), size), round(size * STORE), memory=sys.maxsize)
        drop_path = config.drop_path if config.way == "full" else 0.0
        network = Network(build(backbone, classes, size, drop_path), prepare, decoded, held, config)
        step = _course(config, network, _Laps(tell, "Timing a step", 0.5, 0.9))
        steps = _steps(train, config.batch, config.rounds)
        validation = _Laps(tell, "Timing the validation", 0.9, 1.0).time(network.validation) / LOOKED_AT * kept
        seconds += steps * step + config.rounds * validation + (kept + held_out) / kept * validation
        said.append(f"{steps:,} steps of {_short(step)} and {config.rounds} validations of {_short(validation)}")
    how = f"{', then '.join(said)}, timed on this machine; without reading the images, and less if it stops early."
    return Estimate(seconds, step, steps, how)


def _course(config: FinetuneConfig, way: Head | Network, laps: _Laps) -> float:
    """Seconds of a step of fine-tuning."""
    endless = replace(config, epochs=ROUNDS, patience=ROUNDS)
    try:
        Course(endless, way, None, lambda: laps.enough, lambda *_: laps.lap()).go()
    except Stopped:
        if not laps.enough:  # then it was not us who stopped it
            raise
    return laps.median


def _probing(config: ProbeConfig, images: int, tell: Tell) -> Estimate:
    images = min(images, config.limit or images)
    _check_count(images)
    kept, looked_at = _kept_back(config, images)
    backbone = dinoviz.load(config.model, device=config.device or None)
    layers, grid = config.blocks(backbone.layers), PatchGrid.fit(ROOM, config.resolution, backbone.patch_size)
    picture, truth = _noise(1, ROOM[0]).open(0).resize(ROOM), np.full(ROOM[::-1], sum(config.depth) / 2)

    def encode() -> tuple[torch.Tensor, ...]:
        pixels, depth = View().show(picture, truth, truth > 0, grid)
        tokens = torch.cat(backbone.tokens(pixels[None], layers), dim=2)[0]
        patches = tokens[1 + backbone.registers :].reshape(*grid.shape, -1)
        return patches, tokens[0], torch.from_numpy(depth.astype(np.float32)).to(tokens.device)

    encoding = _Laps(tell, "Timing the encoding", 0.2, 0.6).time(encode)
    train = images - kept - looked_at
    batch = [torch.stack([each] * min(config.batch, train)) for each in encode()]
    channels = len(layers) * backbone.dim
    head = depth_heads.make(config.architecture(channels)).to(backbone.device)
    head.prepare(torch.zeros(channels), torch.ones(channels), config.hidden)
    lesson = Lesson(head, config)
    step = _Laps(tell, "Timing a step", 0.6, 1.0).time(lambda: lesson.step(batch, 0, config.lr))
    steps = _steps(train, config.batch, config.epochs)
    tested = len(find_pairs(config.test)) if config.test else looked_at
    encoded = train * len(views_of(config, 0)) + kept  # then those that are measured on are looked at once more
    asked = " and the teacher" if config.teacher else ""
    return Estimate(
        encoding * (encoded + kept + tested) + step * steps,
        step,
        steps,
        f"{_short(encoding)} to encode each of {encoded:,} views and {steps:,} steps of the head of {_short(step)}, "
        f"timed on this machine; without reading the images{asked}, and less if it stops early.",
    )


def _kept_back(config: ProbeConfig, images: int) -> tuple[int, int]:
    """How many images decide when to stop, and how many are held out."""
    if config.teacher or not config.data:  # what will be in the folder is not known yet
        return max(bool(config.validation), round(config.validation * images)), config.held_out
    parts = split(find_pairs(config.data, config.limit), config.validation, config.held_out)
    return len(parts.validation), len(parts.held_out)


def _check_count(images: int) -> None:
    if images < 2:
        raise DataError(f"Training needs 2 images at least, one of them to check on; there are {images}.")


def _held_out(source: str, demo: bool) -> int:
    """How many labelled images are held out, of the demo or in a folder."""
    if demo:
        return DEMO_CROPS["held-out"] * len(DEMO)
    return len(find(source)) if source else 0


def _steps(images: int, batch: int, epochs: int) -> int:
    return -(-images // batch) * epochs


def _noise(count: int, size: int) -> Pictures:
    """Pictures of two classes, large enough to be cropped to this size."""
    side = round(size * STORE)
    pixels = np.random.default_rng(0).integers(256, size=(side, side, 3), dtype=np.uint8)
    names = tuple(str(i) for i in range(count))
    return Pictures(names, np.arange(count) % 2, ("a", "b"), (pixels,) * count)


def _short(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"
