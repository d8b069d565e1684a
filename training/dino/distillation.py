"""DINO self-distillation: the student matches an EMA teacher across crops.

`Distillation.step` is Algorithm 1 of Caron et al. 2021, with what DINOv2 added. Every random number in it is a function
of the run's seed and the step, so a run resumes from the step alone, on any number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

import dinoviz
from dinoviz.backbone import IMAGENET_MEAN, IMAGENET_STD
from training.config.base import ConfigError
from training.config.pretrain import PretrainConfig
from training.dino.block_masks import block_masks
from training.dino.losses import Centring, DINOLoss, IBOTPatchLoss, KoLeoLoss
from training.dino.multicrop import GLOBALS, MultiCrop
from training.dino.student_teacher import DINOOutput, ema_update, new_backbone, student_and_teacher
from training.engine import distributed
from training.engine.precision import autocast
from training.engine.schedules import cosine, linear, scaled_lr
from training.engine.vit import parameter_groups
from training.runs.checkpoints import load_optimizer, optimizer_tensors

CROPS, MASKS, DROPS, ORDER = range(4)  # independent streams of random numbers


def generator(config: PretrainConfig, stream: int, *numbers: int) -> np.random.Generator:
    """The random numbers of one stream at one step or epoch."""
    return np.random.default_rng([config.seed, stream, *numbers])


@dataclass
class Microbatch:
    """A part of a step's batch, b images, as one pass through the networks takes it.

    global_crops: (G * b, 3, S, S). local_crops: [(L * b, 3, s, s)], or [] where there are none.
    masks: (G * b, h * w) bool, the patches that iBOT masks; None without iBOT.
    """

    images: int
    global_crops: torch.Tensor
    local_crops: list[torch.Tensor]
    masks: torch.Tensor | None
    is_last: bool


@dataclass
class StepResult:
    """losses by name and the gradient's norm, 0-d tensors of this process; the teacher's targets (G, b, K) and the
    student's CLS tokens (G, b, D) of the last microbatch."""

    losses: dict[str, torch.Tensor]
    norm: torch.Tensor
    targets: torch.Tensor
    tokens: torch.Tensor


class Distillation:
    """Student, teacher, losses and optimiser.

    config: of the run, kept with its schedules resolved. steps, epoch: the number of steps of the run and of one pass
    over the data.

    Raises ConfigError if the model to start from does not support the configuration.
    """

    def __init__(self, config: PretrainConfig, accelerator: Accelerator, steps: int, epoch: int):
        config = config.resolved()
        self.config, self.accelerator, self.device = config, accelerator, accelerator.device
        self.steps, self.epoch = steps, epoch
        torch.manual_seed(config.seed)
        backbone, self.mean, self.std = first_backbone(config)
        self.patch = backbone.config.patch_size
        # The plain modules hold the weights; `_student` and `_teacher` are called: compiled or distributed.
        self.student, teacher = student_and_teacher(backbone, config)
        self.teacher = teacher.to(self.device)
        groups = parameter_groups(self.student, backbone, config.layer_decay)
        fused = self.device.type in ("cpu", "cuda")
        optimizer = torch.optim.AdamW(groups, betas=(0.9, config.beta2), fused=fused)
        compiled = torch.compile if config.compile else lambda module: module
        self._student, self.optimizer = accelerator.prepare(compiled(self.student), optimizer)
        self._teacher = compiled(self.teacher)
        self.crops = MultiCrop(config, self.mean, self.std)
        centrings = [Centring(config.prototypes, config.centring, config.centre_momentum) for _ in range(2)]
        self.dino = DINOLoss(centrings[0], config.student_temperature).to(self.device)
        self.ibot = IBOTPatchLoss(centrings[1], config.student_temperature).to(self.device)
        self.koleo = KoLeoLoss()
        self.autocast = autocast(self.device, config.precision)

    def step(self, images: torch.Tensor, aspects: torch.Tensor, step: int) -> StepResult:
        """Train one step, counted from 0, on this process's images (b, 3, S, S) uint8 with aspects (b,)."""
        self.set_schedules(step)
        losses: dict[str, torch.Tensor] = {}
        for batch in self.microbatches(images, aspects, step):
            with self._gradients_synchronised(batch.is_last), self.autocast():
                with torch.no_grad():
                    teacher_output = self._teacher([batch.global_crops], batch.images, batch.masks)
                crops = [batch.global_crops, *batch.local_crops]
                student_output = self._student(crops, batch.images, batch.masks, hide=True)
                terms, targets = self.losses(student_output, teacher_output, batch.masks, step)
                loss = sum(getattr(self.config, f"{name}_weight") * term for name, term in terms.items())
                self.accelerator.backward(loss / self.config.accumulate)
            for name, term in {**terms, "total": loss}.items():
                losses[name] = losses.get(name, 0) + term.detach() / self.config.accumulate
        norm = self.update_student(step)
        self.update_teacher(step)
        self.update_centres()
        return StepResult(losses, norm, targets, student_output.tokens)

    def losses(
        self, student: DINOOutput, teacher: DINOOutput, masks: torch.Tensor | None, step: int
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The terms of the loss by name, unweighted, and the teacher's targets (G, B, K)."""
        temperature = self.temperature(step)
        dino, targets = self.dino(student.cls, teacher.cls, temperature)
        terms = {"dino": dino}
        if masks is not None:
            terms["ibot"] = self.ibot(student.patches, teacher.patches, masks, temperature)
        if self.config.koleo_weight:
            terms["koleo"] = sum(self.koleo(tokens) for tokens in student.tokens)
        return terms, targets

    def update_student(self, step: int) -> torch.Tensor:
        """One step of the optimiser on the clipped gradients, which are then cleared. Returns their norm."""
        # As in the published scripts, the prototypes are frozen at first: they are random, and so are the targets.
        if step < self.config.freeze_last_layer * self.epoch:
            for head in filter(None, (self.student.head, self.student.patch_head)):
                head.prototypes.grad = None
        norm = self.accelerator.clip_grad_norm_(self._student.parameters(), self.config.clip or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def update_teacher(self, step: int) -> None:
        """Move the teacher towards the student, with a momentum that rises to 1."""
        ema_update(self.teacher, self.student, cosine(step, self.steps, self.config.teacher_momentum, 1.0))

    def update_centres(self) -> None:
        """Move the centres towards the mean teacher output of the step."""
        self.dino.centring.update()
        self.ibot.centring.update()

    def microbatches(self, images: torch.Tensor, aspects: torch.Tensor, step: int) -> Iterator[Microbatch]:
        """Crops and masks of the parts of a step (`accumulate`); seeds torch for the student's stochastic depth."""
        config = self.config
        draws = self.crops.draw(config.batch, generator(config, CROPS, step))
        masks = self.draw_masks(step)
        for number, (own, in_batch) in enumerate(self.slices()):
            pixels = images[own].to(self.device, non_blocking=True)
            global_crops, *local_crops = self.crops(pixels, aspects[own], draws.of(in_batch))
            mask = None if masks is None else masks[in_batch].transpose(0, 1).flatten(0, 1).to(self.device)
            torch.manual_seed(self._drop_seed(step, number))
            yield Microbatch(own.stop - own.start, global_crops, local_crops, mask, number == config.accumulate - 1)

    def slices(self) -> Iterator[tuple[slice, slice]]:
        """Of each microbatch: its place among this process's images, and its place in the whole batch."""
        size = self.config.batch // self.config.accumulate
        own = size // distributed.processes()
        for part in range(self.config.accumulate):
            first = part * size + own * self.accelerator.process_index
            yield slice(part * own, (part + 1) * own), slice(first, first + own)

    def _gradients_synchronised(self, synchronise: bool) -> AbstractContextManager:
        """The processes average their gradients after the last microbatch only."""
        return nullcontext() if synchronise else self.accelerator.no_sync(self._student)

    def draw_masks(self, step: int) -> torch.Tensor | None:
        """(B, G, h * w) bool for the whole batch over all processes; None without iBOT."""
        config = self.config
        if not config.ibot_weight:
            return None
        side, rng = config.global_size // self.patch, generator(config, MASKS, step)
        masks = block_masks(config.batch * GLOBALS, (side, side), config.mask_probability, config.mask_ratio, rng)
        return torch.from_numpy(masks).unflatten(0, (config.batch, GLOBALS))

    def _drop_seed(self, step: int, part: int) -> int:
        return int(generator(self.config, DROPS, step, part, self.accelerator.process_index).integers(2**63))

    def temperature(self, step: int) -> float:
        """The teacher's temperature at a step."""
        config = self.config
        warmup = round(config.teacher_temperature_epochs * self.epoch)
        return linear(step, warmup, config.teacher_temperature_start, config.teacher_temperature)

    def set_schedules(self, step: int) -> None:
        """Set the learning rate and weight decay of each parameter group for a step."""
        config = self.config
        warmup = round(config.warmup_epochs * self.epoch)
        self.lr = cosine(step, self.steps, scaled_lr(config.lr, config.batch), config.lr_end, warmup)
        self.weight_decay = cosine(step, self.steps, config.weight_decay, config.weight_decay_end)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group["lr_scale"]
            group["weight_decay"] = self.weight_decay if group["decays"] else 0.0

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """The parts of a checkpoint: with the step, all that is needed to resume."""
        return {
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
            "centres": {"dino": self.dino.centring.centre, "ibot": self.ibot.centring.centre},
        }

    def load(self, tensors: dict[str, dict[str, torch.Tensor]]) -> None:
        """Set what `tensors` returned."""
        self.student.load_state_dict(tensors["student"])
        self.teacher.load_state_dict(tensors["teacher"])
        load_optimizer(self.optimizer, tensors["optimizer"])
        self.dino.centring.centre.copy_(tensors["centres"]["dino"])
        self.ibot.centring.centre.copy_(tensors["centres"]["ibot"])


def first_backbone(config: PretrainConfig) -> tuple[torch.nn.Module, tuple, tuple]:
    """The network to start from, and the mean and standard deviation that normalise its pixels.

    Raises DinovizError if it cannot be loaded, or if the crops do not fit its patches.
    """
    if not config.start:
        return new_backbone(config), IMAGENET_MEAN, IMAGENET_STD
    start = dinoviz.load(config.start, device="cpu", dtype=torch.float32)
    for size in (config.global_size, config.local_size):
        if size % start.patch_size:
            raise ConfigError(
                f"Crops of {size} px: the size must be a multiple of {start.patch_size} px, the patch size of "
                f"{config.start}."
            )
    return start.model, start.mean, start.std
