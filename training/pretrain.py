"""A pretraining run, from its first step to its last: data in, metrics, snapshots, checkpoints and the teacher out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError

from dinoviz import models
from dinoviz.errors import DinovizError, Stopped
from dinoviz.images import open_image
from training import distributed, health, monitor
from training.augment import GLOBALS
from training.checkpoints import Checkpoint
from training.clock import Clock, memory_mb
from training.config import PretrainConfig
from training.data import DataError, Decoded, Pictures, batches, demo, find
from training.dino import ORDER, Distillation, Seen, first_backbone, generator
from training.export import export
from training.runs import Run, RunError
from training.settings import ConfigError
from training.stopping import working

PROBES = 4
Progress = Callable[[dict], None]


def pretrain(config: PretrainConfig, run: Run, progress: Progress | None = None) -> None:
    """Train from the first step to the last, or until somebody asks for a stop.

    run: a new run of this configuration. progress: called with each record of metrics.

    Raises DinovizError with one sentence for data and settings that cannot be, a run that diverges, a device whose
    memory is full and a disk that is; the run's status then is "failed" and says the same.
    """
    _work(config, run, progress, None)


def resume(run: Run, progress: Progress | None = None) -> None:
    """Go on from the last whole checkpoint, or from the start if there is none yet. Raises as `pretrain` does."""
    if run.kind != "pretrain":
        raise RunError(f"{run.name} is a run of kind {run.kind!r}, not 'pretrain'.")
    _work(PretrainConfig.from_dict(run.config), run, progress, run.checkpoint())


def _work(config: PretrainConfig, run: Run, progress: Progress | None, checkpoint: Checkpoint | None) -> None:
    from accelerate import PartialState

    main = PartialState(cpu=models.pick_device().type == "cpu").is_main_process
    with working(run, writes=main) as asked_to_stop:
        try:
            Pretraining(config, run, progress, checkpoint).train(asked_to_stop)
        except torch.OutOfMemoryError:
            raise DinovizError(
                "The device's memory is full: lower batch, local_crops or global_size, or raise accumulate."
            ) from None


class Pretraining:
    """A run that is being computed. With several processes, the main one alone writes to its folder."""

    def __init__(
        self, config: PretrainConfig, run: Run, progress: Progress | None = None, checkpoint: Checkpoint | None = None
    ):
        from accelerate import Accelerator

        self.config, self.run, self.progress = config, run, progress
        self.accelerator = Accelerator(cpu=models.pick_device().type == "cpu")
        self.main = self.accelerator.is_main_process
        self.step = checkpoint.step if checkpoint else 0
        if self.main:
            run.set_status("running", step=self.step, message="reading the images")
        pictures = find(config.data) if config.data else demo("train")
        self.data = self._decode(pictures, store_size(config, pictures))
        self.epoch = self._steps_in_epoch()
        self.steps = max(1, round(config.epochs * self.epoch))
        self.dino = Distillation(config, self.accelerator, self.steps, self.epoch)
        self.window: dict[str, list[torch.Tensor]] = {}  # since the last record
        self.used = torch.zeros(config.prototypes, dtype=torch.bool, device=self.accelerator.device)
        self.watch = health.Watch(config.prototypes, GLOBALS * config.batch, self.steps)
        self.neighbours = self._neighbours()
        self.probes = self._probes()
        if checkpoint:
            self._restore(checkpoint)
        if self.main:
            run.truncate_metrics(self.step if checkpoint else -1)
            run.log(f"resumed at step {self.step} of {self.steps}" if checkpoint else self._in_words())
        self.accelerator.wait_for_everyone()

    def train(self, asked_to_stop: Callable[[], bool] = lambda: False) -> None:
        """All steps that are left. Raises Stopped, with a checkpoint made, when somebody asks for it."""
        if self.step == 0:
            self._look()
        clock = Clock(self.config.checkpoint_minutes)
        for images, aspects in batches(self.data, self._order(), workers=self._workers()):
            clock.got_data()
            seen = self.dino.step(images, aspects, self.step)
            self.step += 1
            clock.stepped(self.config.batch)
            self._record(seen, clock)
            done = self.step == self.steps
            if done or self._due(self.config.knn_every) or self._due(self.config.snapshot_every):
                self._look()
            stop = self._agreed(asked_to_stop() and not done)
            if stop or done or self._agreed(clock.checkpoint_due()):
                self._save()
            if stop:
                raise Stopped
            clock.ready()
        if self.main:
            self.run.log("finished")
            self.run.set_status("finished", step=self.step, steps=self.steps, eta=0)

    def _order(self) -> Iterator[np.ndarray]:
        """For each step that is left, the images that this process has in it; every epoch in a new order."""
        parts = [everywhere for _, everywhere in self.dino.parts()]
        shuffled = None
        for step in range(self.step, self.steps):
            epoch, place = divmod(step, self.epoch)
            if place == 0 or shuffled is None:
                shuffled = generator(self.config, ORDER, epoch).permutation(len(self.data))
            batch = shuffled[place * self.config.batch : (place + 1) * self.config.batch]
            yield np.concatenate([batch[part] for part in parts])

    def _record(self, seen: Seen, clock: Clock) -> None:
        for name, value in {**seen.losses, "gradient_norm": seen.norm}.items():
            self.window.setdefault(name, []).append(value)
        self.used[seen.targets.flatten(0, 1).argmax(-1)] = True
        if self.step % self.config.log_every and self.step != self.steps:
            if clock.beat_due():
                self._beat(clock)
            return
        names, values = zip(*self.window.items(), strict=True)
        means = distributed.mean(torch.stack([torch.stack(list(v)).float().mean() for v in values])).tolist()
        means = dict(zip(names, means, strict=True))
        self.window.clear()
        record = {
            "step": self.step,
            "epoch": self.step / self.epoch,
            "loss": means.pop("total"),
            "gradient_norm": means.pop("gradient_norm"),
            **{f"loss_{name}": value for name, value in means.items()},
            **health.figures(seen.targets, seen.tokens),
            "prototypes_used": float((distributed.total(self.used.float()) > 0).float().mean()),
            "lr": self.dino.lr,
            "weight_decay": self.dino.weight_decay,
        }
        if self.step % self.epoch < self.config.log_every:  # an epoch has just ended
            self.used.zero_()
        alarm = self.watch.alarm(record)
        if self.main:
            record["alarm"] = alarm
            if alarm:
                self.run.log(f"step {self.step}: {alarm}")
            measured = {"speed": clock.speed(), "waiting": clock.waiting(), "memory_mb": memory_mb(self.dino.device)}
            self._tell(record | measured)
        self._beat(clock, alarm or "")

    def _beat(self, clock: Clock, message: str = "") -> None:
        if self.main:
            eta = clock.eta(self.steps - self.step)
            self.run.set_status("running", step=self.step, steps=self.steps, eta=eta, message=message)

    def _tell(self, record: dict) -> None:
        self.run.add_metrics(record)
        if self.progress:
            self.progress({"steps": self.steps, **record})

    def _due(self, epochs: float) -> bool:
        """Whether a multiple of `epochs` was passed in the step just made."""
        every = epochs * self.epoch
        return every > 0 and self.step // every > (self.step - 1) // every

    def _look(self) -> None:
        """k-NN accuracy and snapshots of the teacher, by the main process."""
        if self.main:
            teacher = monitor.view(self.dino.teacher.backbone, self.run.name, self.dino.mean, self.dino.std)
            if self.neighbours:
                accuracy = self.neighbours.accuracy(teacher)
                self._tell({"step": self.step, "epoch": self.step / self.epoch, "knn": accuracy})
            folder = self.run.folder / "snapshots" / f"step-{self.step:08}"
            with _writing(f"The snapshot in {folder}"):
                monitor.snapshot(teacher, self.probes, 2 * self.config.global_size, folder)
        self.accelerator.wait_for_everyone()

    def _save(self) -> None:
        used = distributed.total(self.used.float()) > 0
        window = {name: distributed.mean(torch.stack(list(v)).float()).tolist() for name, v in self.window.items()}
        if self.main:
            state = {
                "images": len(self.data),
                "config": self.config.to_dict(),
                "window": window,
                "alarm_since": self.watch.since,
            }
            self.run.save_checkpoint(self.step, {**self.dino.tensors(), "health": {"used": used}}, state)
            with _writing(f"The export of {self.run.name}"):
                dino = self.dino
                export(dino.teacher.backbone, self.run.export_folder, dino.mean, dino.std, self.config.global_size)
        self.accelerator.wait_for_everyone()

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        now = self.config.to_dict()
        changed = sorted(name for name, value in state["config"].items() if now.get(name) != value)
        if changed:
            raise ConfigError(
                f"{', '.join(changed)} changed since the checkpoint of {self.run.name} was made; a run goes on with "
                "what it began with. A new run can start from this one's teacher (--start)."
            )
        if state["images"] != len(self.data):
            raise DataError(
                f"The data of {self.run.name} has {len(self.data)} images now, and had {state['images']} when its "
                "checkpoint was made: the order of the images would be another."
            )
        self.dino.load({key: checkpoint.tensors(key) for key in checkpoint.keys if key != "health"})
        device = self.dino.device
        self.used.copy_(checkpoint.tensors("health")["used"])
        self.window = {k: [torch.tensor(v, device=device) for v in values] for k, values in state["window"].items()}
        self.watch.since = state["alarm_since"]

    def _decode(self, pictures: Pictures, size: int) -> Decoded:
        data = Decoded(pictures, size, memory=int(self.config.memory_gb * 2**30), max_broken=self.config.max_broken)
        if self.main:
            for name, reason in data.broken:
                self.run.log(f"skipped {name}: {reason}")
        return data

    def _steps_in_epoch(self) -> int:
        config, processes = self.config, distributed.processes()
        if config.batch % (config.accumulate * processes):
            raise ConfigError(
                f"batch ({config.batch}) must be a multiple of accumulate ({config.accumulate}) times the number of "
                f"processes ({processes})."
            )
        if len(self.data) < max(2, config.batch):
            images = "image" if len(self.data) == 1 else "images"
            raise DataError(
                f"There are {len(self.data)} {images}, fewer than the {config.batch} of one batch: lower batch, or "
                "bring more images."
            )
        return len(self.data) // config.batch

    def _neighbours(self) -> monitor.Neighbours | None:
        if not self.main or (self.config.data and not self.config.validation):
            return None
        held_out = find(self.config.validation) if self.config.validation else demo("held-out")
        decoded = self._decode(held_out, self.data.size)
        return monitor.Neighbours(self.data, decoded, self.config.global_size, self.config.seed)

    def _probes(self) -> list[Image.Image]:
        if self.config.probe_images:
            return [open_image(path) for path in self.config.probe_images]
        places = np.linspace(0, len(self.data) - 1, min(PROBES, len(self.data))).astype(int)
        return [self.data.pictures.open(i) for i in places]

    def _workers(self) -> int:
        return self.config.workers if self.config.workers >= 0 else max(1, (os.cpu_count() or 2) - 1)

    def _in_words(self) -> str:
        weights = sum(p.numel() for p in self.dino.teacher.backbone.parameters()) / 1e6
        size, precision = self.data.size, "bfloat16" if self.dino.bfloat16 else "float32"
        return (
            f"{len(self.data)} images kept at {size} px {'in memory' if self.data.cached else 'on the disk'}, "
            f"{self.steps} steps of {self.config.batch}, a backbone of {weights:.2f} million weights, "
            f"{precision} on {distributed.processes()} x {self.dino.device.type}"
        )

    def _agreed(self, mine: bool) -> bool:
        """Whether the main process says so: it has the clock and the stop file, and all must do the same."""
        return bool(distributed.total(torch.tensor(float(self.main and mine), device=self.dino.device)) > 0)


def store_size(config: PretrainConfig, pictures: Pictures) -> int:
    """Pixels of the squares that images are kept as: twice the global crops, or what they have if that is less.

    Twice, because then even the whole image is made smaller by 2 at most, which bilinear sampling does well.
    """
    if config.store_size:
        return config.store_size
    sides = []
    for i in np.linspace(0, len(pictures) - 1, min(32, len(pictures))).astype(int):
        with suppress(DinovizError):  # broken ones are counted when all are decoded
            sides.append(max(pictures.open(i).size))
    return min(2 * config.global_size, max(int(np.median(sides)), config.global_size // 2) if sides else 1)


@contextmanager
def _writing(what: str) -> Iterator[None]:
    """What cannot be written becomes one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RunError(f"{what} cannot be written: {getattr(error, 'strerror', None) or error}.") from None


def export_checkpoint(run: Run, folder: Path, who: str = "teacher") -> tuple[Path, int]:
    """Write the teacher or the student of a run's last checkpoint in transformers' format.

    Returns the folder and the checkpoint's step. Raises RunError if there is no checkpoint or it cannot be written.
    """
    checkpoint = run.checkpoint()
    if checkpoint is None or who not in checkpoint.keys:
        raise RunError(f"{run.name} has no checkpoint of a {who} yet.")
    config = PretrainConfig.from_dict(run.config)
    backbone, mean, std = first_backbone(config)
    weights = {
        name.removeprefix("backbone."): tensor
        for name, tensor in checkpoint.tensors(who).items()
        if name.startswith("backbone.")
    }
    backbone.load_state_dict(weights)
    with _writing(f"The export in {folder}"):
        export(backbone, folder, mean, std, config.global_size)
    return folder, checkpoint.step
