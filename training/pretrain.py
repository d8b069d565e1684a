"""Pretraining by self-distillation: the loop over steps, its records, snapshots, checkpoints and export."""

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
from training.data.dataset import DataError, Decoded, Pictures, batches, decoding_workers, find, split
from training.data.demo import demo, demo_probes
from training.dino import checks, collapse, snapshots
from training.dino.distillation import ORDER, Distillation, StepResult, generator
from training.dino.student_teacher import check_frozen
from training.engine import distributed
from training.engine.precision import in_bfloat16
from training.engine.timing import BEAT, Clock, memory_mb
from training.export import export
from training.runs.checkpoints import Checkpoint
from training.runs.lifecycle import reopen, working
from training.runs.run import Run, RunError

PROBES = 4  # images of the data that snapshots are taken of
Progress = Callable[[dict], None]


class Pretraining:
    """A run in training. With several processes, only the main one writes to the run's folder."""

    def train(self) -> None:
        """Train the steps that are left. Raises Stopped, after a checkpoint, when a stop is requested."""
        if self.step == 0:
            self._evaluate(knn=self.config.knn_every > 0, snapshot=True)
        clock = Clock(self.config.checkpoint_minutes)
        for images, aspects in batches(self.data, self._order(), workers=decoding_workers(self.config.workers)):
            clock.got_data()
            result = self.dino.step(images, aspects, self.step)
            self.step += 1
            clock.stepped(self.config.batch)
            self._record(result, clock)
            done = self.step == self.steps
            knn, snapshot = (done or self._due(every) for every in (self.config.knn_every, self.config.snapshot_every))
            if knn or snapshot:
                self._evaluate(knn, snapshot)
            stop, save = self._main_decides(self.stop_requested() and not done, clock.checkpoint_due())
            if stop or done or save:
                self._save()
                clock.checkpoint_saved()
            if stop:
                raise Stopped
            clock.ready()
        if self.main:
            self.run.log("finished")
            self.run.set_status("finished", step=self.step, steps=self.steps, eta=0)

    def __init__(
        self,
        config: PretrainConfig,
        run: Run,
        progress: Progress | None = None,
        checkpoint: Checkpoint | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
    ):
        """checkpoint: of the run, to resume from. Raises Stopped if a stop is requested while images are read."""
        from accelerate import Accelerator

        distributed.check_launch()
        self.config, self.run, self.progress, self.stop_requested = config, run, progress, stop_requested
        self.accelerator = Accelerator(cpu=models.pick_device().type == "cpu")
        self.main = self.accelerator.is_main_process
        self.step = checkpoint.step if checkpoint else 0
        self._last_beat = time.monotonic()
        if self.main:
            run.set_status("running", step=self.step, message="reading the images")
        pictures, self.held_out = images_of(config)
        side = checks.typical_side(pictures)
        self.data = self._decode(pictures, checks.store_size(config, side))
        self.epoch = steps_in_epoch(config, len(self.data))
        self.steps = max(1, round(config.epochs * self.epoch))
        self.dino = Distillation(config, self.accelerator, self.steps, self.epoch)
        self.window: dict[str, list[torch.Tensor]] = {}  # values of each loss since the last record
        # The last step in which each prototype was the strongest of a target; 0 for never.
        self.used = torch.zeros(config.prototypes, dtype=torch.int64, device=self.accelerator.device)
        self.monitor = collapse.Monitor(config, self.steps)
        self.alarm: str | None = None  # the last one
        self.neighbours = self._neighbours()
        self.probes = self._probes()
        if checkpoint:
            self._restore(checkpoint)
        if self.main:
            run.truncate_metrics(self.step if checkpoint else -1)
            run.log(f"resumed at step {self.step} of {self.steps}" if checkpoint else self._summary())
            for warning in [] if checkpoint else checks.warnings(config, side, len(self.data)):
                run.log(warning)
        self.accelerator.wait_for_everyone()

    def _order(self) -> Iterator[np.ndarray]:
        """Of each step that is left, the indices of this process's images; shuffled anew in every epoch."""
        slices = [in_batch for _, in_batch in self.dino.slices()]
        shuffled = None
        for step in range(self.step, self.steps):
            epoch, place = divmod(step, self.epoch)
            if place == 0 or shuffled is None:
                shuffled = generator(self.config, ORDER, epoch).permutation(len(self.data))
            batch = shuffled[place * self.config.batch : (place + 1) * self.config.batch]
            yield np.concatenate([batch[part] for part in slices])

    def _record(self, result: StepResult, clock: Clock) -> None:
        """Add a step's losses to the window; write the window's means as a record if one is due."""
        for name, value in {**result.losses, "gradient_norm": result.norm}.items():
            self.window.setdefault(name, []).append(value)
        self.used[result.targets.flatten(0, 1).argmax(-1)] = self.step
        if self.step % self.config.log_every and self.step not in (1, self.steps):
            if clock.beat_due():
                self._beat(clock)
            return
        means = self._window_means()
        record = {
            "step": self.step,
            "epoch": self.step / self.epoch,
            "loss": means.pop("total"),
            "gradient_norm": means.pop("gradient_norm"),
            **{f"loss_{name}": value for name, value in means.items()},
            **collapse.statistics(result.targets, result.tokens),
            "prototypes_used": self._prototypes_used(),
            "lr": self.dino.lr,
            "weight_decay": self.dino.weight_decay,
        }
        alarm = self.monitor.alarm(record)
        if self.main:
            record["alarm"] = alarm
            if alarm and alarm != self.alarm:
                self.run.log(f"step {self.step}: {alarm}")
            self.alarm = alarm
            measured = {"speed": clock.speed(), "waiting": clock.waiting(), "memory_mb": memory_mb(self.dino.device)}
            self._add_metrics(record | measured)
        self._beat(clock, alarm or "")

    def _window_means(self) -> dict[str, float]:
        """The means of the window over steps and processes; the window is then empty."""
        names, values = zip(*self.window.items(), strict=True)
        means = distributed.mean(torch.stack([torch.stack(list(v)).float().mean() for v in values])).tolist()
        self.window.clear()
        return dict(zip(names, means, strict=True))

    def _prototypes_used(self) -> float:
        """The share of prototypes that were the strongest of a target within an epoch, or since the last record."""
        recent = max(self.epoch, self.config.log_every)
        return float((distributed.largest(self.used) > max(0, self.step - recent)).float().mean())

    def _beat(self, clock: Clock, message: str = "") -> None:
        if self.main:
            eta = clock.eta(self.steps - self.step)
            self.run.set_status("running", step=self.step, steps=self.steps, eta=eta, message=message)
        clock.beat_written()

    def _add_metrics(self, record: dict) -> None:
        self.run.add_metrics(record)
        if self.progress:
            self.progress({"steps": self.steps, **record})

    def _due(self, epochs: float) -> bool:
        """Whether the last step passed a multiple of `epochs`."""
        every = epochs * self.epoch
        return every > 0 and self.step // every > (self.step - 1) // every

    def _evaluate(self, knn: bool, snapshot: bool) -> None:
        """Measure the teacher's k-NN accuracy and take a snapshot of it, in the main process."""
        if self.main:
            teacher = snapshots.view(self.dino.teacher.backbone, self.run.name, self.dino.mean, self.dino.std)
            if knn and self.neighbours:
                accuracy = self.neighbours.accuracy(teacher)
                self._add_metrics({"step": self.step, "epoch": self.step / self.epoch, "knn": accuracy})
            if snapshot:
                folder = self.run.folder / "snapshots" / f"step-{self.step:08}"
                with writing(f"The snapshot in {folder}", RunError):
                    snapshots.snapshot(teacher, self.probes, 2 * self.config.global_size, folder)
                    if self.config.snapshot_weights:
                        network = teacher.model.half()  # a copy that is not used again
                        export(network, folder / "export", self.dino.mean, self.dino.std, self.config.global_size)
        self.accelerator.wait_for_everyone()

    def _save(self) -> None:
        """Write a checkpoint and the teacher's export. Raises DivergedError instead if a loss is not finite."""
        used = distributed.largest(self.used)
        window = {name: distributed.mean(torch.stack(list(v)).float()).tolist() for name, v in self.window.items()}
        for value in chain.from_iterable(window.values()):
            collapse.check_finite(value, self.step)  # a bad checkpoint must not replace a good one
        if self.main:
            state = {
                "images": len(self.data),
                "names": _digest(self.data.pictures.names),
                "config": self.config.to_dict(),
                "window": window,
                "alarm_since": self.monitor.since,
            }
            self.run.save_checkpoint(self.step, {**self.dino.tensors(), "health": {"used": used}}, state)
            with writing(f"The export of {self.run.name}", RunError):
                dino = self.dino
                export(dino.teacher.backbone, self.run.export_folder, dino.mean, dino.std, self.config.global_size)
        self.accelerator.wait_for_everyone()

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Resume from a checkpoint. Raises ConfigError or DataError if settings or images have changed since."""
        state = checkpoint.state
        now = self.config.to_dict()
        changed = sorted(name for name, value in state["config"].items() if now.get(name) != value)
        if changed:
            raise ConfigError(
                f"{', '.join(changed)} changed since the checkpoint of {self.run.name} was written, and a run keeps "
                "its settings. Start a new run from this one's teacher (--start)."
            )
        if state["images"] != len(self.data):
            raise DataError(
                f"The data of {self.run.name} has {len(self.data)} images, and had {state['images']} when its "
                "checkpoint was written: the order of the images would change."
            )
        if state["names"] != _digest(self.data.pictures.names):
            raise DataError(
                f"The images of {self.run.name} were renamed since its checkpoint was written: their order would "
                "change."
            )
        self.dino.load({key: checkpoint.tensors(key) for key in checkpoint.keys if key != "health"})
        device = self.dino.device
        self.used.copy_(checkpoint.tensors("health")["used"])
        self.window = {k: [torch.tensor(v, device=device) for v in values] for k, values in state["window"].items()}
        self.monitor.since = state["alarm_since"]

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
        if self.main and time.monotonic() - self._last_beat > BEAT:
            self._last_beat = time.monotonic()
            self.run.set_status("running", step=self.step, message=f"reading the images: {done:,} of {of:,}")
        # If one of several processes stopped here, the others would wait for it; they stop after the first step.
        if distributed.processes() == 1 and self.stop_requested():
            raise Stopped

    def _neighbours(self) -> snapshots.Neighbours | None:
        if not self.main or self.held_out is None:
            return None
        decoded = self._decode(self.held_out, self.data.size)
        return snapshots.Neighbours(self.data, decoded, self.config.global_size, self.config.seed)

    def _probes(self) -> list[Image.Image]:
        """The images that snapshots are taken of."""
        if self.config.probe_images:
            return [open_image(path) for path in self.config.probe_images]
        if not self.config.data:
            return demo_probes()
        places = np.linspace(0, len(self.data) - 1, min(PROBES, len(self.data))).astype(int)
        return [self.data.pictures.open(i) for i in places]

    def _summary(self) -> str:
        """Data, steps, network, precision, devices and schedules in one line."""
        parameters = sum(p.numel() for p in self.dino.teacher.backbone.parameters()) / 1e6
        half = in_bfloat16(self.dino.device, self.config.precision)
        return (
            f"{len(self.data)} images of {self.data.size} px {'in memory' if self.data.cached else 'on the disk'}, "
            f"{self.steps} steps of {self.config.batch}, a backbone of {parameters:.2f} million parameters, "
            f"{'bfloat16' if half else 'float32'} on {distributed.processes()} x {self.dino.device.type}; "
            f"{schedules_in_words(self.config)}"
        )

    def _main_decides(self, *mine: bool) -> list[bool]:
        """The main process's values in all processes: it has the clock and the stop file."""
        if distributed.processes() == 1:  # avoids waiting for the device
            return list(mine)
        values = torch.tensor([float(self.main and each) for each in mine], device=self.dino.device)
        return [each > 0 for each in distributed.total(values).tolist()]


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def pretrain(config: PretrainConfig, run: Run, progress: Progress | None = None) -> None:
    """Train a new run to its last step, or until a stop is requested.

    Args:
        config: the configuration that the run was created with.
        run: a new run of kind "pretrain".
        progress: called with each record of metrics.

    Raises:
        DinovizError: for invalid data and settings, a loss that diverges, and full memory or disk; the run's status is
            then "failed" with the same message.
    """
    config.check_new()
    _work(run, progress, config)


def resume(run: Run, progress: Progress | None = None) -> None:
    """Resume from the last whole checkpoint, or start if there is none.

    Raises as `pretrain` does, and RunError for a run of another kind, one that is running, and one that is finished.
    """
    state = distributed.state()
    if state.is_main_process:  # the others would find it running
        reopen(run, "pretrain")
    state.wait_for_everyone()
    _work(run, progress, None)


def _work(run: Run, progress: Progress | None, new: PretrainConfig | None) -> None:
    """new: the configuration of a new run; None to resume."""
    with working(run, writes=distributed.state().is_main_process) as stop_requested:
        config, checkpoint = (new, None) if new else (PretrainConfig.from_dict(run.config), run.checkpoint())
        Pretraining(config, run, progress, checkpoint, stop_requested).train()


def check(config: PretrainConfig) -> None:
    """Raise DinovizError for settings and numbers of images that `pretrain` would refuse, before a run is created.

    Images that cannot be read and models that cannot be loaded are found in the run.
    """
    distributed.check_launch()
    check_frozen(config)
    images, _ = images_of(config)
    steps_in_epoch(config, len(images))


def images_of(config: PretrainConfig) -> tuple[Pictures, Pictures | None]:
    """Training images, and labelled held-out images for k-NN, or None."""
    if not config.data:
        return demo("train"), demo("held-out")
    pictures = find(config.data)
    if config.validation:
        return pictures, find(config.validation)
    if config.validation_share and pictures.labels is not None:
        return split(pictures, config.validation_share, config.seed)
    return pictures, None


def schedules_in_words(config: PretrainConfig) -> str:
    """The epochs of each schedule, and which of them were shortened for this run."""
    resolved, parts = config.resolved(), []
    for name, what in (
        ("warmup_epochs", "learning rate warm-up"),
        ("teacher_temperature_epochs", "teacher temperature warm-up"),
        ("freeze_last_layer", "frozen prototypes"),
    ):
        length, usual = getattr(resolved, name), SCHEDULES[name][0]
        short = f" (usually {usual:g})" if getattr(config, name) < 0 and length < usual else ""
        parts.append(f"{what} {length:g}{short}")
    return f"of {config.epochs:g} epochs: {', '.join(parts)}"


def steps_in_epoch(config: PretrainConfig, images: int) -> int:
    """The number of whole batches in so many images.

    Raises DataError if there is none, ConfigError if the processes cannot share a batch equally.
    """
    processes = distributed.processes()
    if config.batch % (config.accumulate * processes):
        raise ConfigError(
            f"batch ({config.batch}) must be a multiple of accumulate ({config.accumulate}) times the number of "
            f"processes ({processes})."
        )
    if images < max(2, config.batch):
        if images == 1:
            raise DataError("Training needs at least 2 images, and there is 1: add images.")
        raise DataError(
            f"There are {images} images, fewer than the {config.batch} of one batch: lower batch, or add images."
        )
    return images // config.batch
