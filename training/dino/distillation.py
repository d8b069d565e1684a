"""DINO itself: a student learns to say of its crops what its own moving average, the teacher, says of others.

`Distillation.step` reads like Algorithm 1 of Caron et al. 2021, with what DINOv2 added. Every random number in it is a
function of the run's seed and the step, so the step alone tells where the run is, on however many processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
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
from training.dino.student_teacher import Scores, ema_update, new_backbone, student_and_teacher
from training.engine import distributed
from training.engine.precision import autocast
from training.engine.schedules import cosine, linear, scaled_lr
from training.engine.vit import parameter_groups
from training.runs.checkpoints import load_optimizer, optimizer_tensors

CROPS, MASKS, DROPS, ORDER = range(4)  # streams of random numbers, which must not be the same


def generator(config: PretrainConfig, stream: int, *numbers: int) -> np.random.Generator:
    """The random numbers of one stream at one step or epoch."""
    return np.random.default_rng([config.seed, stream, *numbers])


@dataclass
class Seen:
    """What one step tells: losses by name and the gradient's norm, 0-d tensors of this process; the teacher's targets
    (G, B, K) and the student's CLS tokens (G, B, D) of its last part."""

    losses: dict[str, torch.Tensor]
    norm: torch.Tensor
    targets: torch.Tensor
    tokens: torch.Tensor


class Distillation:
    """Student, teacher, losses and optimiser.

    config: what was asked for; kept with its schedules resolved. steps, epoch: how many steps the run and one pass over
    the data have.

    Raises ConfigError where the model to start from cannot do what the configuration asks for.
    """

    def __init__(self, config: PretrainConfig, accelerator: Accelerator, steps: int, epoch: int):
        config = config.resolved()
        self.config, self.accelerator, self.device = config, accelerator, accelerator.device
        self.steps, self.epoch = steps, epoch
        torch.manual_seed(config.seed)
        backbone, self.mean, self.std = first_backbone(config)
        self.patch = backbone.config.patch_size
        # The plain modules hold the weights; `_student` and `_teacher` are what is called, compiled or distributed.
        self.student, teacher = student_and_teacher(backbone, config)
        self.teacher = teacher.to(self.device)
        groups = parameter_groups(self.student, backbone, config.layer_decay)
        fused = self.device.type in ("cpu", "cuda")
        optimizer = torch.optim.AdamW(groups, betas=(0.9, config.beta2), fused=fused)
        calls = torch.compile if config.compile else lambda module: module
        self._student, self.optimizer = accelerator.prepare(calls(self.student), optimizer)
        self._teacher = calls(self.teacher)
        self.crops = MultiCrop(config, self.mean, self.std)
        centrings = [Centring(config.prototypes, config.centring, config.centre_momentum) for _ in range(2)]
        self.dino = DINOLoss(centrings[0], config.student_temperature).to(self.device)
        self.ibot = IBOTPatchLoss(centrings[1], config.student_temperature).to(self.device)
        self.koleo = KoLeoLoss()
        self.autocast = autocast(self.device, config.precision)

    def step(self, images: torch.Tensor, aspects: torch.Tensor, step: int) -> Seen:
        """images (b, 3, S, S) uint8 and aspects (b,): this process's part of the batch of a step, counted from 0."""
        config = self.config
        self.set_rates(step)
        draws = self.crops.draw(config.batch, generator(config, CROPS, step))
        masks = self.draw_masks(step)
        losses: dict[str, torch.Tensor] = {}
        for part, (own, everywhere) in enumerate(self.parts()):
            crops = self.crops(images[own].to(self.device, non_blocking=True), aspects[own], draws.of(everywhere))
            mask = None if masks is None else masks[everywhere].transpose(0, 1).flatten(0, 1).to(self.device)
            torch.manual_seed(self._drop_seed(step, part))
            last = part == config.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(self._student):
                with self.autocast():
                    with torch.no_grad():
                        taught = self._teacher(crops[:1], own.stop - own.start, mask)
                    said = self._student(crops, own.stop - own.start, mask, hide=True)
                terms, targets = self.losses(said, taught, mask, step)
                total = sum(getattr(config, f"{name}_weight") * value for name, value in terms.items())
                self.accelerator.backward(total / config.accumulate)
            for name, value in {**terms, "total": total}.items():
                losses[name] = losses.get(name, 0) + value.detach() / config.accumulate
        # The published scripts let the prototypes stand still at first, when a student would only chase them.
        if step < config.freeze_last_layer * self.epoch:
            for head in filter(None, (self.student.head, self.student.patch_head)):
                head.prototypes.grad = None
        norm = self.accelerator.clip_grad_norm_(self._student.parameters(), config.clip or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        ema_update(self.teacher, self.student, cosine(step, self.steps, config.teacher_momentum, 1.0))
        self.dino.centring.update()
        self.ibot.centring.update()
        return Seen(losses, norm, targets, said.tokens)

    def losses(
        self, said: Scores, taught: Scores, mask: torch.Tensor | None, step: int
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The terms of the loss by name, without their weights, and the teacher's targets (G, B, K)."""
        config = self.config
        temperature = self.temperature(step)
        dino, targets = self.dino(said.cls, taught.cls, temperature)
        terms = {"dino": dino}
        if mask is not None:
            terms["ibot"] = self.ibot(said.patches, taught.patches, mask, temperature)
        if config.koleo_weight:
            terms["koleo"] = sum(self.koleo(tokens) for tokens in said.tokens)
        return terms, targets

    def temperature(self, step: int) -> float:
        """Of the teacher's softmax at a step."""
        config = self.config
        warmup = round(config.teacher_temperature_epochs * self.epoch)
        return linear(step, warmup, config.teacher_temperature_start, config.teacher_temperature)

    def set_rates(self, step: int) -> None:
        """Learning rate and weight decay of each group of parameters at a step."""
        config = self.config
        warmup = round(config.warmup_epochs * self.epoch)
        self.lr = cosine(step, self.steps, scaled_lr(config.lr, config.batch), config.lr_end, warmup)
        self.weight_decay = cosine(step, self.steps, config.weight_decay, config.weight_decay_end)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group["lr_scale"]
            group["weight_decay"] = self.weight_decay if group["decays"] else 0.0

    def draw_masks(self, step: int) -> torch.Tensor | None:
        """(B, G, h * w) bool for the whole batch over all processes; None without iBOT."""
        config = self.config
        if not config.ibot_weight:
            return None
        side, rng = config.global_size // self.patch, generator(config, MASKS, step)
        masks = block_masks(config.batch * GLOBALS, (side, side), config.mask_probability, config.mask_ratio, rng)
        return torch.from_numpy(masks).unflatten(0, (config.batch, GLOBALS))

    def parts(self) -> Iterator[tuple[slice, slice]]:
        """For each part of a step: which of this process's images, and which of the whole batch those are."""
        size = self.config.batch // self.config.accumulate
        own = size // distributed.processes()
        for part in range(self.config.accumulate):
            first = part * size + own * self.accelerator.process_index
            yield slice(part * own, (part + 1) * own), slice(first, first + own)

    def _drop_seed(self, step: int, part: int) -> int:
        return int(generator(self.config, DROPS, step, part, self.accelerator.process_index).integers(2**63))

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """All that is needed to go on, beside the step."""
        return {
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
            "centres": {"dino": self.dino.centring.centre, "ibot": self.ibot.centring.centre},
        }

    def load(self, tensors: dict[str, dict[str, torch.Tensor]]) -> None:
        """Take back what `tensors` gave."""
        self.student.load_state_dict(tensors["student"])
        self.teacher.load_state_dict(tensors["teacher"])
        load_optimizer(self.optimizer, tensors["optimizer"])
        self.dino.centring.centre.copy_(tensors["centres"]["dino"])
        self.ibot.centring.centre.copy_(tensors["centres"]["ibot"])


def first_backbone(config: PretrainConfig) -> tuple[torch.nn.Module, tuple, tuple]:
    """The network to start from, and the mean and standard deviation of its pixels. Raises DinovizError."""
    if not config.start:
        return new_backbone(config), IMAGENET_MEAN, IMAGENET_STD
    start = dinoviz.load(config.start, device="cpu", dtype=torch.float32)
    for size in (config.global_size, config.local_size):
        if size % start.patch_size:
            raise ConfigError(
                f"Crops of {size} px are no multiple of the patch of {config.start}, which is {start.patch_size} px."
            )
    return start.model, start.mean, start.std
