"""The epochs of a depth probe: schedule, losses, validation, early stopping, checkpoints.

All randomness of an epoch is drawn from the run's seed and the epoch's number, and a checkpoint is written after each:
to go on needs nothing but the last one.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from dinoviz.depth.heads import Head
from dinoviz.depth.probe import ProbeError
from training.config.tasks import ProbeConfig
from training.depth.cached_features import Encoded
from training.depth.losses import gradient_loss, scale_invariant_loss
from training.engine.precision import autocast
from training.engine.schedules import cosine
from training.engine.timing import BEAT
from training.evaluation.knn_linear import Progress
from training.runs.checkpoints import Checkpoint, load_optimizer, optimizer_tensors
from training.runs.lifecycle import early_stop
from training.runs.run import Run, RunError

WARMUP = 0.1  # share of the steps
CLIP = 1.0  # largest norm of a gradient


class Lesson:
    """A head, its optimiser, and the average of its weights, which is what is kept; one `step` after the other."""

    def __init__(self, head: Head, config: ProbeConfig):
        self.head, self.config = head, config
        self.device = next(head.parameters()).device
        self.averaged = copy.deepcopy(head).eval().requires_grad_(False)
        matrices = [p for p in head.parameters() if p.ndim > 1]
        others = [p for p in head.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, config.lr, betas=(0.9, 0.99))  # there are few steps
        self._autocast = autocast(self.device, "auto")

    def step(self, batch: tuple[torch.Tensor, ...], number: int, rate: float) -> float:
        """Learn from a batch of `Encoded.get`. number: of the step, from 0. Returns the loss."""
        patches, cls, depth = batch
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        scores, members = self._scores(self.head.train(), patches, cls), self.head.members
        loss = sum(self._loss(self._metres(self.head, each, depth), depth) for each in scores.chunk(members, 1))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), CLIP * members**0.5)  # of a member: CLIP
        self.optimizer.step()
        self._average(number)
        return float(loss.detach()) / members

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
        stays = min(self.config.average, (1 + number) / (10 + number))  # the first weights are soon forgotten
        for average, now in zip(self.averaged.parameters(), self.head.parameters(), strict=True):
            average.lerp_(now, 1 - stays)

    @torch.no_grad()
    def errors(self, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The RMSE (B,) in metres of the averaged head, of the pictures of a batch that have depth."""
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


def root_mean_squares(predicted: torch.Tensor, depth: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """The RMSE (b,) in metres of each of (B, H, W) pictures that has a valid pixel."""
    count = valid.sum((1, 2))
    squares = ((predicted - depth) ** 2 * valid).sum((1, 2))
    # The square root of exactly 0 has no gradient.
    return (squares[count > 0] / count[count > 0]).clamp(min=1e-12).sqrt()


@dataclass
class Course:
    """Epochs of a lesson on a training part, judged on a validation part; without pictures in that, the last counts."""

    lesson: Lesson
    train: Encoded
    validation: Encoded
    run: Run
    progress: Progress
    digest: str
    epoch: int = 0  # of those that are done
    best: dict = field(default_factory=dict)  # epoch and rmse of the best validation
    kept: dict[str, torch.Tensor] = field(default_factory=dict)  # its weights

    def __post_init__(self) -> None:
        self.config = self.lesson.config
        self.epoch_steps = len(self._order(0))
        self.steps = self.config.epochs * self.epoch_steps

    @property
    def step(self) -> int:
        return self.epoch * self.epoch_steps

    def _order(self, epoch: int) -> list:
        return self.train.batches(self.config.batch, np.random.default_rng([self.config.seed, epoch]))

    def go(self) -> Head:
        """All epochs that are left, or as many as help; the head with the best weights."""
        began, first, beat = time.monotonic(), self.step, 0.0
        while self.epoch < self.config.epochs and self.epoch - self.best.get("epoch", 0) < self.config.patience:
            torch.manual_seed(int(np.random.SeedSequence([self.config.seed, self.epoch]).generate_state(1)[0]))
            losses, started = [], time.monotonic()
            for number, batch in enumerate(self._order(self.epoch), self.step):
                rate = cosine(number, self.steps, self.config.lr, 0.0, warmup=round(WARMUP * self.steps))
                losses.append(self.lesson.step(self.train.get(batch, self.lesson.device), number, rate))
                if not np.isfinite(losses[-1]):
                    raise ProbeError(f"The loss is no longer a number at step {number + 1}; a lower rate may help.")
                self.progress(number + 1, self.steps, f"epoch {self.epoch + 1}")
                if time.monotonic() - beat > BEAT:
                    beat = time.monotonic()
                    eta = (beat - began) / (number + 1 - first) * (self.steps - number - 1)
                    self.run.set_status("running", step=number + 1, steps=self.steps, eta=eta)
            self.epoch += 1
            rmse = self._validate() if self.validation.pictures else None
            if rmse is None or not self.best or rmse < self.best["rmse"]:
                self.best = {"epoch": self.epoch, "rmse": rmse}
                self.kept = {name: value.clone() for name, value in self.lesson.averaged.state_dict().items()}
            self.run.add_metrics({"step": self.step, "epoch": self.epoch, "loss": float(np.mean(losses)),
                                  "validation_rmse": rmse, "lr": rate,
                                  "seconds": time.monotonic() - started})  # fmt: skip
            self._save()
        self.lesson.averaged.load_state_dict(self.kept)
        if self.stopped_early:
            self.run.log(self.stopped_early)
        return self.lesson.averaged

    @property
    def stopped_early(self) -> str:
        """Why the last epochs were left out, as a sentence; "" if none were."""
        if self.epoch == self.config.epochs:
            return ""
        best = f"{self.best['rmse']:.3f} m"
        return early_stop("validation RMSE", self.config.patience, best, self.best["epoch"])

    def _validate(self) -> float:
        parts = self.validation.batches(self.config.batch)
        return float(torch.cat([self.lesson.errors(self.validation.get(p, self.lesson.device)) for p in parts]).mean())

    def _save(self) -> None:
        parts = {
            "weights": self.lesson.head.state_dict(),
            "averaged": self.lesson.averaged.state_dict(),
            "best": self.kept,
            "optimizer": optimizer_tensors(self.lesson.optimizer),
        }
        self.run.save_checkpoint(self.step, parts, {"epoch": self.epoch, "best": self.best, "data": self.digest})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on where the checkpoint was written. Raises RunError if the images or the network are others by now."""
        if checkpoint.state["data"] != self.digest:
            raise RunError(f"The images or the model of run {self.run.name} have changed since it began; start anew.")
        self.lesson.head.load_state_dict(checkpoint.tensors("weights"))
        self.lesson.averaged.load_state_dict(checkpoint.tensors("averaged"))
        self.kept = checkpoint.tensors("best", self.lesson.device)
        load_optimizer(self.lesson.optimizer, checkpoint.tensors("optimizer"))
        self.epoch, self.best = checkpoint.state["epoch"], checkpoint.state["best"]
        self.run.truncate_metrics(self.step)
        self.run.log(f"Going on after epoch {self.epoch}.")
