"""The DINO / DINOv2 loop: a student learns to say of its crops what its own moving average says of others.

Reads like Algorithm 1 of Caron et al. 2021; `Pretraining.step` is that algorithm. Every random number is a function
of the run's seed and the step or epoch, so the step alone tells where the run is, on however many processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress

import numpy as np
import psutil
import torch
from PIL import Image

import dinoviz
from dinoviz.backbone import IMAGENET_MEAN, IMAGENET_STD
from dinoviz.errors import DinovizError
from dinoviz.images import open_image
from training import distributed, health, monitor
from training.augment import GLOBALS, MultiCrop
from training.clock import Clock, memory_mb, stop_signals
from training.config import PretrainConfig
from training.data import DataError, Decoded, Pictures, batches, demo, find
from training.export import export
from training.losses import Centring, DINOLoss, IBOTPatchLoss, KoLeoLoss
from training.masking import block_masks
from training.networks import ema_update, new_backbone, parameter_groups, student_and_teacher
from training.runs import Run, RunError
from training.schedules import cosine, linear, scaled_lr
from training.settings import ConfigError

CROPS, MASKS, DROPS, ORDER = range(4)  # streams of random numbers that must not be the same
PROBES = 4
Progress = Callable[[dict], None]


def pretrain(config: PretrainConfig, run: Run, progress: Progress | None = None) -> None:
    """Train from the first step to the last, or until somebody asks for a stop.

    run: a new run of this configuration. progress: called with each record of metrics.

    Raises DinovizError with one sentence for data and settings that cannot be, a run that diverges and a disk that is
    full; the run's status then is "failed" and says the same.
    """
    _guarded(config, run, progress, None)


def resume(run: Run, progress: Progress | None = None) -> None:
    """Go on from the last whole checkpoint, or from the start if there is none yet. Raises as `pretrain` does."""
    if run.kind != "pretrain":
        raise RunError(f"{run.name} is a run of kind {run.kind}, not pretrain.")
    if run.status().get("state") in ("starting", "running"):
        raise RunError(f"{run.name} is still running; `stop` it first.")
    run.clear_stop()
    _guarded(PretrainConfig.from_dict(run.config), run, progress, run.checkpoint())


def _guarded(config: PretrainConfig, run: Run, progress, checkpoint) -> None:
    try:
        Pretraining(config, run, progress).train(checkpoint)
    except torch.OutOfMemoryError:
        message = "The device's memory is full: lower batch, local_crops or global_size, or raise accumulate."
        _fail(run, message)
        raise DinovizError(message) from None
    except Exception as error:
        _fail(run, str(error) if isinstance(error, DinovizError) else f"{type(error).__name__}: {error}")
        raise


def _fail(run: Run, message: str) -> None:
    with suppress(RunError):  # on a full disk even that cannot be written; the sentence is raised all the same
        run.log(f"failed: {message}")
        run.set_status("failed", message=message)


def store_size(config: PretrainConfig, pictures: Pictures) -> int:
    """Pixels of the squares that images are kept as: twice the global crops, or what they have, if that is less.

    Twice, because then even the whole image is made smaller by no more than 2, which bilinear sampling does well.
    """
    if config.store_size:
        return config.store_size
    sides = []
    for i in np.linspace(0, len(pictures) - 1, min(32, len(pictures))).astype(int):
        with suppress(DinovizError):  # broken ones are counted when all are decoded
            sides.append(max(pictures.open(i).size))
    return (
        min(2 * config.global_size, max(int(np.median(sides)), config.global_size // 2))
        if sides
        else config.global_size
    )


class Pretraining:
    """A run that is being computed: networks, optimiser, data and the step it has reached."""

    def __init__(self, config: PretrainConfig, run: Run, progress: Progress | None = None):
        from accelerate import Accelerator

        self.config, self.run, self.progress = config, run, progress
        self.accelerator = Accelerator(cpu=dinoviz.models.pick_device().type == "cpu")
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        if config.batch % (config.accumulate * distributed.processes()):
            raise ConfigError(
                f"batch ({config.batch}) must be a multiple of accumulate ({config.accumulate}) times the number of "
                f"processes ({distributed.processes()})."
            )
        self._status("starting", message="reading the images")
        pictures = find(config.data, classes=True) if config.data else demo("train")
        self.data = self._decode(pictures, store_size(config, pictures))
        self.steps_per_epoch = len(self.data) // config.batch
        if not self.steps_per_epoch:
            raise DataError(
                f"There are {len(self.data)} images, fewer than the {config.batch} of one batch: lower batch, "
                "or bring more images."
            )
        self.steps = max(1, round(config.epochs * self.steps_per_epoch))
        self._build()
        self.neighbours = self._neighbours()
        self.probes = self._probes()
        self.step = 0

    def _build(self) -> None:
        config = self.config
        torch.manual_seed(config.seed)
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        if config.start:
            start = dinoviz.load(config.start, device="cpu", dtype=torch.float32)
            backbone, mean, std = start.model, start.mean, start.std
            for size in (config.global_size, config.local_size):
                if size % start.patch_size:
                    raise ConfigError(
                        f"Crops of {size} px are no multiple of the patch of {config.start}, {start.patch_size}."
                    )
        else:
            backbone = new_backbone(config)
        self.mean, self.std = mean, std
        self.patch = backbone.config.patch_size
        student, teacher = student_and_teacher(backbone, config)
        groups = parameter_groups(student, backbone, config.layer_decay)
        fused = self.device.type in ("cpu", "cuda")
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=fused)
        self.student_net, self.teacher_net = student, teacher.to(self.device)
        if config.compile:
            student, teacher = torch.compile(student), torch.compile(teacher)
        # What is called; the same weights as in the two plain modules, which are what is saved.
        self.student, self.optimizer = self.accelerator.prepare(student, optimizer)
        self.teacher = teacher
        self.crops = MultiCrop(config, mean, std)
        self.dino = DINOLoss(self._centring(), config.student_temperature).to(self.device)
        self.ibot = IBOTPatchLoss(self._centring(), config.student_temperature).to(self.device)
        self.koleo = KoLeoLoss()
        self.bfloat16 = config.precision == "bfloat16" or (
            config.precision == "auto" and self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        )
        self.window: dict[str, list[float]] = {}
        self.used = torch.zeros(config.prototypes, dtype=torch.bool, device=self.device)
        self.watch = health.Watch(config.prototypes, GLOBALS * config.batch, self.steps)

    def _centring(self) -> Centring:
        return Centring(self.config.prototypes, self.config.centring, self.config.centre_momentum)

    # --- the algorithm

    def train_step(self, images: torch.Tensor, aspects: torch.Tensor) -> dict:
        """One step on this process's part of the batch; returns what `health` and the log need."""
        config, step = self.config, self.step
        self._set_rates()
        teacher_temperature = linear(
            step,
            round(config.teacher_temperature_epochs * self.steps_per_epoch),
            config.teacher_temperature_start,
            config.teacher_temperature,
        )
        draws = self.crops.draw(config.batch, self._rng(CROPS, step))
        masks = self._masks()
        losses: dict[str, torch.Tensor] = {}
        for part, (local, everywhere) in enumerate(self._parts()):
            crops = self.crops(images[local].to(self.device, non_blocking=True), aspects[local], draws.of(everywhere))
            count = local.stop - local.start
            mask = None if masks is None else masks[everywhere].transpose(0, 1).flatten(0, 1).to(self.device)
            torch.manual_seed(self._seed(DROPS, step * config.accumulate + part, self.accelerator.process_index))
            last = part == config.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(self.student):
                with self._autocast():
                    with torch.no_grad():
                        taught = self.teacher(crops[:1], count, mask)
                    said = self.student(crops, count, mask, hide=True)
                terms, targets = self._losses(said, taught, mask, teacher_temperature)
                total = sum(getattr(config, f"{name}_weight") * value for name, value in terms.items())
                self.accelerator.backward(total / config.accumulate)
            for name, value in {**terms, "total": total}.items():
                losses[name] = losses.get(name, 0) + value.detach() / config.accumulate
        # The published scripts let the prototypes stand still at first: moving targets would be chased at once.
        if step < config.freeze_last_layer * self.steps_per_epoch:
            for head in self._heads():
                head.prototypes.grad = None
        norm = self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        momentum = cosine(step, self.steps, config.teacher_momentum, 1.0)
        ema_update(self.teacher_net, self.student_net, momentum)
        self.dino.centring.update()
        self.ibot.centring.update()
        self.used[targets.flatten(0, 1).argmax(-1)] = True
        return {"losses": losses, "norm": norm, "targets": targets, "tokens": said.tokens}

    def _losses(self, said, taught, mask, teacher_temperature: float) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        config = self.config
        dino, targets = self.dino(said.cls.float(), taught.cls.float(), teacher_temperature)
        terms = {"dino": dino} if config.dino_weight else {}
        if mask is not None:
            terms["ibot"] = self.ibot(said.patches.float(), taught.patches.float(), mask, teacher_temperature)
        if config.koleo_weight:
            terms["koleo"] = sum(self.koleo(tokens.float()) for tokens in said.tokens)
        return terms, targets

    def _set_rates(self) -> None:
        config, step = self.config, self.step
        warmup = round(config.warmup_epochs * self.steps_per_epoch)
        lr = cosine(step, self.steps, scaled_lr(config.lr, config.batch), config.lr_end, warmup)
        decay = cosine(step, self.steps, config.weight_decay, config.weight_decay_end)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
            group["weight_decay"] = decay if group["decays"] else 0.0
        self.lr, self.decay = lr, decay

    def _clip(self) -> torch.Tensor:
        return self.accelerator.clip_grad_norm_(self.student.parameters(), self.config.clip or math.inf)

    def _masks(self) -> torch.Tensor | None:
        """(B, G, h * w) bool for the whole batch, or None without iBOT."""
        config = self.config
        if not config.ibot_weight:
            return None
        side = config.global_size // self.patch
        masks = block_masks(
            config.batch * GLOBALS,
            (side, side),
            config.mask_probability,
            config.mask_ratio,
            self._rng(MASKS, self.step),
        )
        return torch.from_numpy(masks).unflatten(0, (config.batch, GLOBALS))

    def _parts(self) -> Iterator[tuple[slice, slice]]:
        """For each part of the step: which of this process's images, and which of the whole batch they are."""
        size = self.config.batch // self.config.accumulate
        own = size // distributed.processes()
        for part in range(self.config.accumulate):
            first = part * size + own * self.accelerator.process_index
            yield slice(part * own, (part + 1) * own), slice(first, first + own)

    def _heads(self) -> list:
        return [head for head in (self.student_net.head, self.student_net.patch_head) if head is not None]

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def _rng(self, stream: int, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, stream, *numbers])

    def _seed(self, stream: int, *numbers: int) -> int:
        return int(self._rng(stream, *numbers).integers(2**63))

    # --- the run around it

    def train(self, checkpoint=None) -> None:
        """All steps that are left, then the export."""
        if checkpoint is not None:
            self._restore(checkpoint)
            self._log(f"resumed at step {self.step} of {self.steps}")
        elif self.main:
            self.run.truncate_metrics(-1)
        self._describe()
        if self.step == 0:
            self._look()
        clock = Clock(self.config.checkpoint_minutes)
        with stop_signals() as stopped:
            for images, aspects in batches(self.data, self._order(), workers=self._workers()):
                clock.got_data()
                seen = self.train_step(images, aspects)
                self.step += 1
                clock.stepped(self.config.batch)
                self._record(seen, clock)
                done = self.step == self.steps
                if self._due(self.config.knn_every) or self._due(self.config.snapshot_every) or done:
                    self._look()
                stop = self._agreed(stopped.is_set() or (self.main and self.run.stop_requested()))
                if stop or done or self._agreed(self.main and clock.checkpoint_due()):
                    self._save()
                if stop and not done:
                    self._end("stopped", f"stopped at step {self.step} of {self.steps}")
                    return
                clock.ready()
        self._end("finished", "finished")

    def _record(self, seen: dict, clock: Clock) -> None:
        for name, value in {**seen["losses"], "norm": seen["norm"]}.items():
            self.window.setdefault(name, []).append(value)
        if self.step % self.config.log_every and self.step != self.steps:
            if clock.beat_due():
                self._status("running", eta=clock.eta(self.steps - self.step))
            return
        means = distributed.mean(torch.stack([torch.stack(list(v)).mean() for v in self.window.values()])).tolist()
        means = dict(zip(self.window, means, strict=True))
        self.window.clear()
        record = {
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "loss": means.pop("total"),
            "gradient_norm": means.pop("norm"),
            **{f"loss_{name}": value for name, value in means.items()},
            **health.figures(seen["targets"], seen["tokens"]),
            "prototypes_used": float((distributed.total(self.used.float()) > 0).float().mean()),
            "lr": self.lr,
            "weight_decay": self.decay,
        }
        if self.step % self.steps_per_epoch < self.config.log_every:
            self.used.zero_()
        alarm = self.watch.alarm(record)
        record |= {"alarm": alarm} if alarm else {}
        record |= {"speed": clock.speed(), "waiting": clock.waiting(), "memory_mb": memory_mb(self.device)}
        if alarm:
            self._log(alarm)
        if self.main:
            self.run.add_metrics(record)
            if self.progress:
                self.progress(record)
        self._status("running", eta=clock.eta(self.steps - self.step), message=alarm or "")

    def _due(self, epochs: float) -> bool:
        """Whether a multiple of `epochs` was passed in the step just made."""
        every = epochs * self.steps_per_epoch
        return every > 0 and self.step // every > (self.step - 1) // every

    def _look(self) -> None:
        """k-NN accuracy and snapshots of the teacher, by the main process."""
        if self.main:
            backbone = monitor.view(self.teacher_net.backbone, self.run.name, self.mean, self.std)
            if self.neighbours:
                epoch = self.step / self.steps_per_epoch
                record = {"step": self.step, "epoch": epoch, "knn": self.neighbours.accuracy(backbone)}
                self.run.add_metrics(record)
                if self.progress:
                    self.progress(record)
            folder = self.run.folder / "snapshots" / f"step-{self.step:08}"
            try:
                monitor.snapshot(backbone, self.probes, 2 * self.config.global_size, folder)
            except OSError as error:
                raise RunError(f"The snapshot in {folder} cannot be written: {error.strerror or error}.") from None
        self.accelerator.wait_for_everyone()

    def _save(self) -> None:
        if self.main:
            parts = {
                "student": self.student_net.state_dict(),
                "teacher": self.teacher_net.state_dict(),
                "optimizer": {f"{i}.{k}": v for i, s in self._optimizer_states() for k, v in s.items()},
                "centres": {"dino": self.dino.centring.centre, "ibot": self.ibot.centring.centre, "used": self.used},
            }
            window = {name: [float(v) for v in values] for name, values in self.window.items()}
            state = {
                "step": self.step,
                "images": len(self.data),
                "config": self.config.to_dict(),
                "window": window,
                "alarm_since": self.watch.since,
            }
            self.run.save_checkpoint(self.step, parts, state)
            export(self.teacher_net.backbone, self.run.export_folder, self.mean, self.std, self.config.global_size)
        self.accelerator.wait_for_everyone()

    def _optimizer_states(self) -> list[tuple[int, dict]]:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        return [(i, self.optimizer.state[p]) for i, p in enumerate(parameters) if p in self.optimizer.state]

    def _restore(self, checkpoint) -> None:
        state = checkpoint.state
        changed = {k for k, v in self.config.to_dict().items() if state["config"].get(k, v) != v}
        if changed:
            raise ConfigError(
                f"{', '.join(sorted(changed))} of this run changed since its checkpoint was made; start a new run, "
                f"from this one if you like (start {self.run.folder})."
            )
        if state["images"] != len(self.data):
            raise DataError(
                f"The data of this run has {len(self.data)} images now, {state['images']} when its checkpoint was made."
            )
        self.student_net.load_state_dict(checkpoint.tensors("student"))
        self.teacher_net.load_state_dict(checkpoint.tensors("teacher"))
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for key, value in checkpoint.tensors("optimizer").items():
            index, name = key.split(".", 1)
            # Adam's step counter lives where its other state does when it is fused.
            self.optimizer.state[parameters[int(index)]][name] = value.to(self.device)
        centres = checkpoint.tensors("centres", self.device)
        self.dino.centring.centre.copy_(centres["dino"])
        self.ibot.centring.centre.copy_(centres["ibot"])
        self.used.copy_(centres["used"])
        self.window = {
            k: [torch.tensor(v, device=self.device) for v in values] for k, values in state["window"].items()
        }
        self.watch.since = state["alarm_since"]
        self.step = checkpoint.step
        if self.main:
            self.run.truncate_metrics(self.step)
        self.accelerator.wait_for_everyone()

    def _order(self) -> Iterator[np.ndarray]:
        """For each step that is left, the images that this process has in it; every epoch in a new order."""
        own = [everywhere for _, everywhere in self._parts()]
        shuffled = None
        for step in range(self.step, self.steps):
            epoch, place = divmod(step, self.steps_per_epoch)
            if place == 0 or shuffled is None:
                shuffled = self._rng(ORDER, epoch).permutation(len(self.data))
            batch = shuffled[place * self.config.batch : (place + 1) * self.config.batch]
            yield np.concatenate([batch[part] for part in own])

    def _decode(self, pictures: Pictures, size: int) -> Decoded:
        config = self.config
        data = Decoded(pictures, size, memory=int(config.memory_gb * 2**30), max_broken=config.max_broken)
        for name, reason in data.broken:
            self._log(f"skipped {name}: {reason}")
        return data

    def _neighbours(self) -> monitor.Neighbours | None:
        if not self.main or not (self.config.validation or not self.config.data):
            return None
        held_out = find(self.config.validation) if self.config.validation else demo("held-out")
        return monitor.Neighbours(
            self.data, self._decode(held_out, self.data.size), self.config.global_size, self.config.seed
        )

    def _probes(self) -> list[Image.Image]:
        if self.config.probe_images:
            return [open_image(path) for path in self.config.probe_images]
        places = np.linspace(0, len(self.data) - 1, min(PROBES, len(self.data))).astype(int)
        return [self.data.pictures.open(i) for i in places]

    def _workers(self) -> int:
        if self.config.workers >= 0:
            return self.config.workers
        return max(1, (psutil.cpu_count(logical=False) or 2) - 1)

    def _describe(self) -> None:
        count = sum(p.numel() for p in self.teacher_net.backbone.parameters())
        self._log(
            f"{len(self.data)} images, {self.steps} steps of {self.config.batch} images, a backbone of "
            f"{count / 1e6:.2f} million parameters, {distributed.processes()} processes on {self.device.type}, "
            f"{'bfloat16' if self.bfloat16 else 'float32'}, images {'in memory' if self.data.cached else 'streamed'}"
        )

    def _agreed(self, mine: bool) -> bool:
        """Whether any process says so."""
        return bool(distributed.total(torch.tensor(float(mine), device=self.device)) > 0)

    def _log(self, text: str) -> None:
        if self.main:
            self.run.log(text)

    def _status(self, state: str, **fields) -> None:
        if self.main:
            about = {"step": self.step, "steps": self.steps} if hasattr(self, "step") else {}
            self.run.set_status(state, **about, **fields)

    def _end(self, state: str, message: str) -> None:
        self._log(message)
        self._status(state, message=message, eta=0)
