"""The epoch loop of classifiers and depth probes: validation, early stopping, checkpoints, progress.

All randomness of an epoch comes from the run's seed and the epoch's number, and a checkpoint is written after each
epoch: the last checkpoint is all that is needed to resume, bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from dinoviz.errors import DinovizError, Stopped
from training.engine.progress import Progress
from training.engine.timing import BEAT
from training.runs.checkpoints import Checkpoint, load_optimizer, optimizer_tensors
from training.runs.lifecycle import early_stop
from training.runs.run import Run, RunError


class Fitting(Protocol):
    """What the loop needs of a model that is fitted.

    epochs: at most. patience: epochs without a better validation after which to stop. seed: of the run.
    measure: what the validation measures, for messages.
    """

    epochs: int
    patience: int
    seed: int
    steps_per_epoch: int
    optimizer: torch.optim.Optimizer
    measure: str

    def batches(self, epoch: int, seed: int) -> Iterator[Any]:
        """The batches of an epoch (from 0) in their order. seed: of the epoch; torch's generator was set to it."""

    def step(self, batch: Any, number: int, steps: int) -> tuple[float, int]:
        """Update the weights in step `number` (from 0) of `steps`.

        Returns the loss, and its weight in the epoch's mean.
        """

    def validate(self) -> dict[str, float | None]:
        """Validation metrics by name; None where there are no validation images."""

    def is_better(self, metrics: dict, best: dict) -> bool:
        """Whether these validation metrics are better than the best so far."""

    def formatted(self, metrics: dict) -> str:
        """The value of `measure` with its unit."""

    def diverged(self, step: int) -> DinovizError:
        """The error for a loss that is not finite at a step (from 1)."""

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights that are validated and exported, by name; not copies."""

    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Set what `weights` returns."""

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """The parts of a checkpoint, beside the best weights and the optimiser."""

    def load_tensors(self, checkpoint: Checkpoint) -> None:
        """Set what `tensors` returned when the checkpoint was written."""


@dataclass
class EpochLoop:
    """Fits a model epoch by epoch and keeps the best weights; without a run, nothing is written.

    digest: of images and model, so that a run does not resume with others.
    start_counts: the weights at the start are the first candidate for the best, as epoch 0; they are trained already.
    epoch: epochs that are done. best: number and validation metrics of the best epoch.
    """

    fitting: Fitting
    run: Run | None
    stop_requested: Callable[[], bool]
    progress: Progress
    digest: str = ""
    start_counts: bool = False
    epoch: int = 0
    best: dict = field(default_factory=dict)
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.steps = self.fitting.epochs * self.fitting.steps_per_epoch
        self._started, self._first, self._beat = time.monotonic(), 0, 0.0

    @property
    def step(self) -> int:
        """Steps in the epochs that are done."""
        return self.epoch * self.fitting.steps_per_epoch

    def fit(self) -> None:
        """Train the epochs that are left, or until the validation stops improving; then load the best weights.

        Raises Stopped before the next step when a stop is requested, and the fitting's error when the loss diverges.
        """
        self._started, self._first = time.monotonic(), self.step
        if self.start_counts and self.epoch == 0:
            metrics = self.fitting.validate()
            self._keep_if_best(metrics)
            if self.run is not None:
                self.run.add_metrics({"step": 0, "epoch": 0, **_validation(metrics)})
        while self.epoch < self.fitting.epochs and self.epoch - self.best.get("epoch", 0) < self.fitting.patience:
            started = time.monotonic()
            loss = self._train_epoch()
            self.epoch += 1
            metrics = self.fitting.validate()
            self._keep_if_best(metrics)
            if self.run is not None:
                self._record(loss, metrics, time.monotonic() - started)
                self._save()
        self.fitting.load_weights(self.best_weights)
        if self.run is not None and self.stopped_early:
            self.run.log(self.stopped_early)

    def _keep_if_best(self, metrics: dict) -> None:
        if not self.best or self.fitting.is_better(metrics, self.best):
            self.best = {"epoch": self.epoch, **metrics}
            self.best_weights = {name: value.detach().clone() for name, value in self.fitting.weights().items()}

    @property
    def stopped_early(self) -> str:
        """Why the last epochs were left out, as a sentence; "" if none were."""
        if self.epoch == self.fitting.epochs:
            return ""
        best = self.fitting.formatted(self.best)
        return early_stop(self.fitting.measure, self.fitting.patience, best, self.best["epoch"])

    def _train_epoch(self) -> float:
        """Train one epoch. Returns its mean loss."""
        seed = int(np.random.SeedSequence([self.fitting.seed, self.epoch]).generate_state(1)[0])
        torch.manual_seed(seed)  # which stochastic depth and dropout draw from
        total, weights = 0.0, 0
        for number, batch in enumerate(self.fitting.batches(self.epoch, seed), self.step):
            if self.stop_requested():
                raise Stopped
            loss, weight = self.fitting.step(batch, number, self.steps)
            if not math.isfinite(loss):
                raise self.fitting.diverged(number + 1)
            total, weights = total + loss * weight, weights + weight
            self._report(number + 1)
        return total / weights

    def _report(self, done: int) -> None:
        """Call `progress`, and write a heart beat with the time left if the last one is old."""
        self.progress(done, self.steps, f"epoch {self.epoch + 1}")
        now = time.monotonic()
        if self.run is not None and now - self._beat > BEAT:
            self._beat = now
            eta = (now - self._started) / (done - self._first) * (self.steps - done)
            self.run.set_status("running", step=done, steps=self.steps, eta=eta)

    def _record(self, loss: float, metrics: dict, seconds: float) -> None:
        lr = self.fitting.optimizer.param_groups[-1]["lr"]
        record = {"step": self.step, "epoch": self.epoch, "loss": loss, **_validation(metrics), "lr": lr}
        self.run.add_metrics(record | {"seconds": seconds})

    def _save(self) -> None:
        """Write a checkpoint after a whole epoch."""
        parts = self.fitting.tensors()
        parts |= {"best": self.best_weights, "optimizer": optimizer_tensors(self.fitting.optimizer)}
        self.run.save_checkpoint(self.step, parts, {"epoch": self.epoch, "best": self.best, "data": self.digest})

    def restore(self, checkpoint: Checkpoint | None) -> None:
        """Resume after the checkpoint's epoch; None starts at the first.

        Raises RunError if images or model have changed since the checkpoint was written.
        """
        if checkpoint is None:
            self.run.truncate_metrics(-1)  # of an epoch that was killed before its checkpoint was written
            return
        if checkpoint.state["data"] != self.digest:
            raise RunError(f"The images or the model of run {self.run.name} have changed; start a new run.")
        self.fitting.load_tensors(checkpoint)
        now = self.fitting.weights()
        self.best_weights = {name: value.to(now[name].device) for name, value in checkpoint.tensors("best").items()}
        load_optimizer(self.fitting.optimizer, checkpoint.tensors("optimizer"))
        self.epoch, self.best = checkpoint.state["epoch"], checkpoint.state["best"]
        self.run.truncate_metrics(self.step)
        self.run.log(f"Resumed after epoch {self.epoch}.")


def _validation(metrics: dict) -> dict:
    """The metrics with the names that they have in a record."""
    return {f"validation_{name}": value for name, value in metrics.items()}
