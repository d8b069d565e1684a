"""The epochs of a fine-tuning, whatever is trained: schedule, validation, early stopping, checkpoints.

All randomness of an epoch is drawn from the run's seed and the epoch's number, and a checkpoint is written after each:
to go on needs nothing but the last one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from dinoviz.errors import DinovizError, Stopped
from training.classifier.methods import Head, Network
from training.config.tasks import FinetuneConfig
from training.engine.schedules import cosine
from training.engine.timing import BEAT
from training.evaluation.knn_linear import Progress
from training.runs.checkpoints import Checkpoint, load_optimizer, optimizer_tensors
from training.runs.lifecycle import early_stop
from training.runs.run import Run, RunError


class FinetuneError(DinovizError):
    """A fine-tuning that cannot go on; the message says what may help."""


@dataclass
class Course:
    """Epochs, validation, early stopping and checkpoints; without a run nothing is written."""

    config: FinetuneConfig
    way: Head | Network
    run: Run | None
    asked_to_stop: Callable[[], bool]
    progress: Progress
    digest: str = ""
    epoch: int = 0  # of those that are done
    best: dict = field(default_factory=dict)  # epoch, top1, loss of the best validation
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.way.labels)
        self.batch = min(self.config.batch, count)
        if self.batch < self.config.batch and self.run is not None:
            self.run.log(f"The batch is {count}, because there are no more images to train on.")
        self.epoch_steps = -(-count // self.batch)
        self.steps = self.epoch_steps * self.config.rounds
        groups = [
            {**group, "weight_decay": self.config.weight_decay if group["decays"] else 0.0} for group in self.way.groups
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=self.config.rate)
        self.weights = {name: p for name, p in self.way.module.named_parameters() if p.requires_grad}
        self._class_weights = self._balance()
        self._began, self._first, self._beat = time.monotonic(), 0, 0.0

    @property
    def step(self) -> int:
        return self.epoch * self.epoch_steps

    def _balance(self) -> torch.Tensor | None:
        if self.config.class_weights == "none":
            return None
        counts = torch.bincount(self.way.labels, minlength=self.way.classes).clamp(min=1)
        return len(self.way.labels) / (self.way.classes * counts)

    def go(self) -> None:
        """All epochs that are left, or as many as help; then the best weights are those of the network."""
        self._first = self.step
        while self.epoch < self.config.rounds and self.epoch - self.best.get("epoch", 0) < self.config.patience:
            began = time.monotonic()
            loss = self._train_epoch()
            self.epoch += 1
            logits = self.way.validation()
            top1 = float((logits.argmax(1) == self.way.validation_labels).float().mean())
            held_loss = float(F.cross_entropy(logits, self.way.validation_labels))
            if not self.best or (top1, -held_loss) > (self.best["top1"], -self.best["loss"]):
                self.best = {"epoch": self.epoch, "top1": top1, "loss": held_loss}
                self.best_weights = {name: p.detach().clone() for name, p in self.weights.items()}
            if self.run is not None:
                record = {"loss": loss, "validation_top1": top1, "validation_loss": held_loss}
                rate = self.optimizer.param_groups[-1]["lr"]
                self.run.add_metrics({"step": self.step, "epoch": self.epoch, **record, "lr": rate,
                                      "seconds": time.monotonic() - began})  # fmt: skip
                self.save()
        with torch.no_grad():
            for name, p in self.weights.items():
                p.copy_(self.best_weights[name])
        if self.run is not None and self.stopped_early:
            self.run.log(self.stopped_early)

    @property
    def stopped_early(self) -> str:
        """Why the last epochs were left out, as a sentence; "" if none were."""
        if self.epoch == self.config.rounds:
            return ""
        best = f"{100 * self.best['top1']:.1f} %"
        return early_stop("validation accuracy", self.config.patience, best, self.best["epoch"])

    def _train_epoch(self) -> float:
        """Returns the mean loss over the epoch's images."""
        # One number of the run's seed and the epoch; drop path and dropout draw from torch's own generator.
        seed = int(np.random.SeedSequence([self.config.seed, self.epoch]).generate_state(1)[0])
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.way.labels), generator=generator).split(self.batch)
        self.way.module.train()
        total = 0.0
        inputs = self.way.inputs([part.tolist() for part in order], generator)
        for i, (part, x) in enumerate(zip(order, inputs, strict=True)):
            if self.asked_to_stop():
                raise Stopped
            loss = self._train_step(self.step + i, x, self.way.labels[part].to(x.device), generator)
            if not np.isfinite(loss):
                raise FinetuneError(
                    f"The loss is no longer a number at step {self.step + i + 1}; "
                    f"a learning rate below {self.config.rate:g} may help."
                )
            total += loss * len(part)
            self._tell(self.step + i + 1)
        return total / len(self.way.labels)

    def _train_step(self, step: int, x: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> float:
        config = self.config
        rate = cosine(step, self.steps, config.rate, 0.0, warmup=round(config.warmup * self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        x, targets = self._mixed(x, labels, generator)
        logits = self.way(x)
        weights = None if self._class_weights is None else self._class_weights.to(x.device)
        loss = F.cross_entropy(logits, targets, weights, label_smoothing=config.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        if config.clip:
            torch.nn.utils.clip_grad_norm_(self.weights.values(), config.clip)
        self.optimizer.step()
        return float(loss.detach())

    def _mixed(self, x: torch.Tensor, labels: torch.Tensor, generator: torch.Generator):
        """Mixup (Zhang et al. 2018): each input and its label mixed with another's, one share for the batch."""
        if not self.config.mixup:
            return x, labels
        draw = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        share = float(draw.beta(self.config.mixup, self.config.mixup))
        other = torch.randperm(len(x), generator=generator).to(x.device)
        targets = F.one_hot(labels, self.way.classes).float()
        return share * x + (1 - share) * x[other], share * targets + (1 - share) * targets[other]

    def _tell(self, done: int) -> None:
        self.progress(done, self.steps, f"epoch {self.epoch + 1}")
        now = time.monotonic()
        if self.run is not None and now - self._beat > BEAT:
            self._beat = now
            eta = (now - self._began) / max(1, done - self._first) * (self.steps - done)
            self.run.set_status("running", step=done, steps=self.steps, eta=eta)

    def save(self) -> None:
        """A checkpoint after a whole epoch."""
        moments = optimizer_tensors(self.optimizer)
        parts = {"weights": self.weights, "best": self.best_weights, "optimizer": moments}
        self.run.save_checkpoint(self.step, parts, {"epoch": self.epoch, "best": self.best, "data": self.digest})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on where the checkpoint was written. Raises RunError if the images or the network are others by now."""
        if checkpoint.state["data"] != self.digest:
            raise RunError(f"The images or the model of run {self.run.name} have changed since it began; start anew.")
        weights = checkpoint.tensors("weights")
        self.best_weights = {
            name: value.to(self.weights[name].device) for name, value in checkpoint.tensors("best").items()
        }
        with torch.no_grad():
            for name, p in self.weights.items():
                p.copy_(weights[name])
        load_optimizer(self.optimizer, checkpoint.tensors("optimizer"))
        self.epoch, self.best = checkpoint.state["epoch"], checkpoint.state["best"]
        self.run.truncate_metrics(self.step)
        self.run.log(f"Going on after epoch {self.epoch}.")
