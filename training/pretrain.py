"""A pretraining run, from its first step to its last: data in, metrics, snapshots, checkpoints and the teacher out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from PIL import Image

from dinoviz import models
from dinoviz.atomic_files import writing
from dinoviz.errors import Stopped
from dinoviz.images import open_image
from training.config.base import ConfigError
from training.config.pretrain import SCHEDULES, PretrainConfig
from training.data.dataset import DataError, Decoded, Pictures, batches, cores, find, split
from training.data.demo import demo, demo_probes
from training.dino import checks as advice
from training.dino import collapse as health
from training.dino import snapshots as monitor
from training.dino.distillation import ORDER, Distillation, Seen, generator
from training.dino.student_teacher import check_frozen
from training.engine import distributed
from training.engine.precision import in_bfloat16
from training.engine.timing import BEAT, Clock, memory_mb
from training.export import export
from training.runs.checkpoints import Checkpoint
from training.runs.lifecycle import reopen, working
from training.runs.run import Run, RunError

PROBES = 4
Progress = Callable[[dict], None]


def check(config: PretrainConfig) -> None:
    """Raise DinovizError for what `pretrain` would refuse at its start, before there is a run.

    Settings, and how many images there are; whether those can be read, and the model be loaded, shows in the run.
    """
    check_frozen(config)
    images, _ = images_of(config)
    steps_in_epoch(config, len(images))


def pretrain(config: PretrainConfig, run: Run, progress: Progress | None = None) -> None:
    """Train from the first step to the last, or until somebody asks for a stop.

    run: a new run of this configuration. progress: called with each record of metrics.

    Raises DinovizError with one sentence for data and settings that cannot be, a run that diverges, a device whose
    memory is full and a disk that is; the run's status then is "failed" and says the same.
    """
    config.check_new()
    _work(run, progress, config)


def resume(run: Run, progress: Progress | None = None) -> None:
    """Go on from the last whole checkpoint, or from the start if there is none yet.

    Raises as `pretrain` does, and RunError for a run of another kind, at work or finished.
    """
    state = distributed.state()
    if state.is_main_process:  # the others would find it at work already
        reopen(run, "pretrain")
    state.wait_for_everyone()
    _work(run, progress, None)


def _work(run: Run, progress: Progress | None, new: PretrainConfig | None) -> None:
    """new: the configuration of a new run; None to go on with one."""
    with working(run, writes=distributed.state().is_main_process) as asked_to_stop:
        config, checkpoint = (new, None) if new else (PretrainConfig.from_dict(run.config), run.checkpoint())
        Pretraining(config, run, progress, checkpoint, asked_to_stop).train()


def images_of(config: PretrainConfig) -> tuple[Pictures, Pictures | None]:
    """What to train on, and labelled images for k-NN that are not trained on, if there are any."""
    if not config.data:
        return demo("train"), demo("held-out")
    pictures = find(config.data)
    if config.validation:
        return pictures, find(config.validation)
    if config.validation_share and pictures.labels is not None:
        return split(pictures, config.validation_share, config.seed)
    return pictures, None


def schedules_in_words(config: PretrainConfig) -> str:
    """How long learning rate, teacher temperature and prototypes take to start, and which of that was shortened."""
    epochs, said = config.resolved(), []
    for name, what in (
        ("warmup_epochs", "the learning rate rises for"),
        ("teacher_temperature_epochs", "the teacher temperature for"),
        ("freeze_last_layer", "the prototypes stand still for"),
    ):
        length, usual = getattr(epochs, name), SCHEDULES[name][0]
        short = f" (not the usual {usual:g})" if getattr(config, name) < 0 and length < usual else ""
        said.append(f"{what} {length:g}{short}")
    return f"of {config.epochs:g} epochs {', '.join(said)}"


def steps_in_epoch(config: PretrainConfig, images: int) -> int:
    """How many whole batches so many images make. Raises DinovizError where there is none, or it cannot be parted."""
    processes = distributed.processes()
    if config.batch % (config.accumulate * processes):
        raise ConfigError(
            f"batch ({config.batch}) must be a multiple of accumulate ({config.accumulate}) times the number of "
            f"processes ({processes})."
        )
    if images < max(2, config.batch):
        if images == 1:
            raise DataError("There is one image, and training needs 2 at least: bring more images.")
        raise DataError(
            f"There are {images} images, fewer than the {config.batch} of one batch: lower batch, or bring more images."
        )
    return images // config.batch


class Pretraining:
    """A run that is being computed. With several processes, the main one alone writes to its folder."""

    def __init__(
        self,
        config: PretrainConfig,
        run: Run,
        progress: Progress | None = None,
        checkpoint: Checkpoint | None = None,
        asked_to_stop: Callable[[], bool] = lambda: False,
    ):
        """checkpoint: of the run, to go on from. Raises Stopped where a stop is asked for while images are read."""
        from accelerate import Accelerator

        self.config, self.run, self.progress, self.asked_to_stop = config, run, progress, asked_to_stop
        self.accelerator = Accelerator(cpu=models.pick_device().type == "cpu")
        self.main = self.accelerator.is_main_process
        self.step = checkpoint.step if checkpoint else 0
        self._told = time.monotonic()
        if self.main:
            run.set_status("running", step=self.step, message="reading the images")
        pictures, self.held_out = images_of(config)
        side = advice.typical_side(pictures)
        self.data = self._decode(pictures, advice.store_size(config, side))
        self.epoch = steps_in_epoch(config, len(self.data))
        self.steps = max(1, round(config.epochs * self.epoch))
        self.dino = Distillation(config, self.accelerator, self.steps, self.epoch)
        self.window: dict[str, list[torch.Tensor]] = {}  # since the last record
        # The step after which a prototype was the strongest of a target; 0 for never.
        self.used = torch.zeros(config.prototypes, dtype=torch.int64, device=self.accelerator.device)
        self.watch = health.Watch(config, self.steps)
        self.alarm: str | None = None  # the last one
        self.neighbours = self._neighbours()
        self.probes = self._probes()
        if checkpoint:
            self._restore(checkpoint)
        if self.main:
            run.truncate_metrics(self.step if checkpoint else -1)
            run.log(f"resumed at step {self.step} of {self.steps}" if checkpoint else self._in_words())
            for warning in [] if checkpoint else advice.warnings(config, side, len(self.data)):
                run.log(warning)
        self.accelerator.wait_for_everyone()

    def train(self) -> None:
        """All steps that are left. Raises Stopped, with a checkpoint made, when somebody asks for it."""
        if self.step == 0:
            self._look(neighbours=self.config.knn_every > 0, snapshot=True)
        clock = Clock(self.config.checkpoint_minutes)
        for images, aspects in batches(self.data, self._order(), workers=self._workers()):
            clock.got_data()
            seen = self.dino.step(images, aspects, self.step)
            self.step += 1
            clock.stepped(self.config.batch)
            self._record(seen, clock)
            done = self.step == self.steps
            neighbours, snapshot = (done or self._due(c) for c in (self.config.knn_every, self.config.snapshot_every))
            if neighbours or snapshot:
                self._look(neighbours, snapshot)
            stop, save = self._agreed(self.asked_to_stop() and not done, clock.checkpoint_due())
            if stop or done or save:
                self._save()
                clock.checkpoint_saved()
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
        self.used[seen.targets.flatten(0, 1).argmax(-1)] = self.step
        if self.step % self.config.log_every and self.step not in (1, self.steps):
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
            "prototypes_used": self._prototypes_used(),
            "lr": self.dino.lr,
            "weight_decay": self.dino.weight_decay,
        }
        alarm = self.watch.alarm(record)
        if self.main:
            record["alarm"] = alarm
            if alarm and alarm != self.alarm:
                self.run.log(f"step {self.step}: {alarm}")
            self.alarm = alarm
            measured = {"speed": clock.speed(), "waiting": clock.waiting(), "memory_mb": memory_mb(self.dino.device)}
            self._tell(record | measured)
        self._beat(clock, alarm or "")

    def _prototypes_used(self) -> float:
        """The share that was the strongest of some target within the last epoch, or since the last record."""
        recent = max(self.epoch, self.config.log_every)
        return float((distributed.largest(self.used) > max(0, self.step - recent)).float().mean())

    def _beat(self, clock: Clock, message: str = "") -> None:
        if self.main:
            eta = clock.eta(self.steps - self.step)
            self.run.set_status("running", step=self.step, steps=self.steps, eta=eta, message=message)
        clock.beat_written()

    def _tell(self, record: dict) -> None:
        self.run.add_metrics(record)
        if self.progress:
            self.progress({"steps": self.steps, **record})

    def _due(self, epochs: float) -> bool:
        """Whether a multiple of `epochs` was passed in the step just made."""
        every = epochs * self.epoch
        return every > 0 and self.step // every > (self.step - 1) // every

    def _look(self, neighbours: bool, snapshot: bool) -> None:
        """k-NN accuracy and a snapshot of the teacher, by the main process."""
        if self.main:
            teacher = monitor.view(self.dino.teacher.backbone, self.run.name, self.dino.mean, self.dino.std)
            if neighbours and self.neighbours:
                accuracy = self.neighbours.accuracy(teacher)
                self._tell({"step": self.step, "epoch": self.step / self.epoch, "knn": accuracy})
            if snapshot:
                folder = self.run.folder / "snapshots" / f"step-{self.step:08}"
                with writing(f"The snapshot in {folder}", RunError):
                    monitor.snapshot(teacher, self.probes, 2 * self.config.global_size, folder)
                    if self.config.snapshot_weights:
                        network = teacher.model.half()  # a copy, of which this is the last use
                        export(network, folder / "export", self.dino.mean, self.dino.std, self.config.global_size)
        self.accelerator.wait_for_everyone()

    def _save(self) -> None:
        used = distributed.largest(self.used)
        window = {name: distributed.mean(torch.stack(list(v)).float()).tolist() for name, v in self.window.items()}
        for value in chain.from_iterable(window.values()):
            health.check_number(value, self.step)  # the last good checkpoint must not make room for a spoilt one
        if self.main:
            state = {
                "images": len(self.data),
                "names": _digest(self.data.pictures.names),
                "config": self.config.to_dict(),
                "window": window,
                "alarm_since": self.watch.since,
            }
            self.run.save_checkpoint(self.step, {**self.dino.tensors(), "health": {"used": used}}, state)
            with writing(f"The export of {self.run.name}", RunError):
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
        if state["names"] != _digest(self.data.pictures.names):
            raise DataError(
                f"The images of {self.run.name} have other names than when its checkpoint was made: the order of the "
                "images would be another."
            )
        self.dino.load({key: checkpoint.tensors(key) for key in checkpoint.keys if key != "health"})
        device = self.dino.device
        self.used.copy_(checkpoint.tensors("health")["used"])
        self.window = {k: [torch.tensor(v, device=device) for v in values] for k, values in state["window"].items()}
        self.watch.since = state["alarm_since"]

    def _decode(self, pictures: Pictures, size: int) -> Decoded:
        data = Decoded(
            pictures,
            size,
            memory=int(self.config.memory_gb * 2**30),
            max_broken=self.config.max_broken,
            progress=self._reading,
        )
        if self.main:
            for name, reason in data.broken:
                self.run.log(f"skipped {name}: {reason}")
        return data

    def _reading(self, done: int, of: int) -> None:
        if done % 100:
            return
        if self.main and time.monotonic() - self._told > BEAT:
            self._told = time.monotonic()
            self.run.set_status("running", step=self.step, message=f"reading the images: {done:,} of {of:,}")
        # One of several processes would leave the others waiting; they stop after the first step.
        if distributed.processes() == 1 and self.asked_to_stop():
            raise Stopped

    def _neighbours(self) -> monitor.Neighbours | None:
        if not self.main or self.held_out is None:
            return None
        decoded = self._decode(self.held_out, self.data.size)
        return monitor.Neighbours(self.data, decoded, self.config.global_size, self.config.seed)

    def _probes(self) -> list[Image.Image]:
        if self.config.probe_images:
            return [open_image(path) for path in self.config.probe_images]
        if not self.config.data:
            return demo_probes()
        places = np.linspace(0, len(self.data) - 1, min(PROBES, len(self.data))).astype(int)
        return [self.data.pictures.open(i) for i in places]

    def _workers(self) -> int:
        return self.config.workers if self.config.workers >= 0 else max(1, cores() - 1)

    def _in_words(self) -> str:
        weights = sum(p.numel() for p in self.dino.teacher.backbone.parameters()) / 1e6
        half = in_bfloat16(self.dino.device, self.config.precision)
        return (
            f"{len(self.data)} images of {self.data.size} px {'in memory' if self.data.cached else 'on the disk'}, "
            f"{self.steps} steps of {self.config.batch}, a backbone of {weights:.2f} million weights, "
            f"{'bfloat16' if half else 'float32'} on {distributed.processes()} x {self.dino.device.type}; "
            f"{schedules_in_words(self.config)}"
        )

    def _agreed(self, *mine: bool) -> list[bool]:
        """What the main process says: it has the clock and the stop file, and all must do the same."""
        if distributed.processes() == 1:  # no detour by the device, which would have to finish its step for it
            return list(mine)
        told = torch.tensor([float(self.main and each) for each in mine], device=self.dino.device)
        return [each > 0 for each in distributed.total(told).tolist()]


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
