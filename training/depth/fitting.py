"""Fits the head of a depth probe in the epoch loop: schedule, losses, averaged weights and validation RMSE."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F

from dinoviz.depth.heads import Head
from dinoviz.depth.probe import ProbeError
from training.config.tasks import ProbeConfig
from training.depth.cached_features import Encoded
from training.depth.losses import gradient_loss, root_mean_squares, scale_invariant_loss
from training.engine.precision import autocast
from training.engine.schedules import cosine
from training.runs.checkpoints import Checkpoint

WARMUP = 0.1  # of the steps
CLIP = 1.0  # largest norm of a member's gradient

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Patches (B, h, w, C), CLS tokens (B, C) and depth (B, 4 h, 4 w) in metres, 0 where unknown; see `Encoded.get`."""


class DepthFitting:
    """A head, its optimiser and the moving average of its weights, which is what is validated and exported.

    See `training.engine.epochs.Fitting`. Without validation images every epoch is better than the one before.
    """

    measure = "validation RMSE"

    def __init__(
        self, head: Head, config: ProbeConfig, train: Encoded | None = None, validation: Encoded | None = None
    ):
        """train, validation: encoded images; `step` and `errors`, which take a batch, do without."""
        self.head, self.config, self.train, self.validation = head, config, train, validation
        self.epochs, self.patience, self.seed = config.epochs, config.patience, config.seed
        self.device = next(head.parameters()).device
        self.averaged = copy.deepcopy(head).eval().requires_grad_(False)
        matrices = [p for p in head.parameters() if p.ndim > 1]
        others = [p for p in head.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, config.lr, betas=(0.9, 0.99))  # there are few steps
        self._autocast = autocast(self.device, "auto")

    @cached_property
    def steps_per_epoch(self) -> int:
        return len(self._order(0))

    def _order(self, epoch: int) -> list:
        return self.train.batches(self.config.batch, np.random.default_rng([self.seed, epoch]))

    def batches(self, epoch: int, seed: int) -> Iterator[Batch]:
        return (self.train.get(part, self.device) for part in self._order(epoch))

    def step(self, batch: Batch, number: int, steps: int) -> tuple[float, int]:
        """One update by AdamW and of the moving average; the losses of all batches count the same."""
        patches, cls, depth = batch
        lr = cosine(number, steps, self.config.lr, 0.0, warmup=round(WARMUP * steps))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        scores, members = self._scores(self.head.train(), patches, cls), self.head.members
        loss = sum(self._loss(self._metres(self.head, each, depth), depth) for each in scores.chunk(members, 1))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), CLIP * members**0.5)  # of a member: CLIP
        self.optimizer.step()
        self._average(number)
        return float(loss.detach()) / members, 1

    def _loss(self, predicted: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        valid = depth > 0
        loss = scale_invariant_loss(predicted, depth, valid)
        if self.config.gradient:
            loss = loss + self.config.gradient * gradient_loss(predicted, depth, valid)
        if self.config.metric:
            loss = loss + self.config.metric * root_mean_squares(predicted, depth, valid).sum() / len(depth)
        return loss

    @torch.no_grad()
    def _average(self, number: int) -> None:
        decay = min(self.config.average, (1 + number) / (10 + number))  # the first weights are soon forgotten
        for average, now in zip(self.averaged.parameters(), self.head.parameters(), strict=True):
            average.lerp_(now, 1 - decay)

    @torch.no_grad()
    def errors(self, batch: Batch) -> torch.Tensor:
        """The RMSE (B,) in metres of the averaged head on each picture of a batch that has depth."""
        patches, cls, depth = batch
        predicted = self._metres(self.averaged, self._scores(self.averaged, patches, cls), depth)
        return root_mean_squares(predicted, depth, depth > 0)

    def _scores(self, head: Head, patches: torch.Tensor, cls: torch.Tensor) -> torch.Tensor:
        with self._autocast():
            return head.scores(patches, cls).float()

    @staticmethod
    def _metres(head: Head, scores: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        predicted, _ = head.metres(scores, head.upsample)
        return F.interpolate(predicted[:, None], depth.shape[1:], mode="bilinear", align_corners=False)[:, 0]

    def validate(self) -> dict[str, float | None]:
        """The mean RMSE of the validation images in metres."""
        if not self.validation.pictures:
            return {"rmse": None}
        parts = self.validation.batches(self.config.batch)
        errors = torch.cat([self.errors(self.validation.get(part, self.device)) for part in parts])
        return {"rmse": float(errors.mean())}

    def is_better(self, metrics: dict, best: dict) -> bool:
        return metrics["rmse"] is None or metrics["rmse"] < best["rmse"]

    def formatted(self, metrics: dict) -> str:
        return f"{metrics['rmse']:.3f} m"

    def diverged(self, step: int) -> ProbeError:
        return ProbeError(f"The loss is not finite at step {step}: try a learning rate below {self.config.lr:g}.")

    def weights(self) -> dict[str, torch.Tensor]:
        return self.averaged.state_dict()

    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        self.averaged.load_state_dict(weights)

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        return {"weights": self.head.state_dict(), "averaged": self.averaged.state_dict()}

    def load_tensors(self, checkpoint: Checkpoint) -> None:
        self.head.load_state_dict(checkpoint.tensors("weights"))
        self.averaged.load_state_dict(checkpoint.tensors("averaged"))
