"""Fits a classifier in the epoch loop: schedule, loss, mixup and validation accuracy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from dinoviz.errors import DinovizError
from training.classifier.methods import LinearHead, Network
from training.config.tasks import FinetuneConfig
from training.engine.schedules import cosine
from training.runs.checkpoints import Checkpoint


class FinetuneError(DinovizError):
    """Images or settings that no classifier can be trained with; the message says what may help."""


class ClassifierFitting:
    """Cross-entropy of a linear head, of LoRA or of all weights; see `training.engine.epochs.Fitting`."""

    measure = "validation accuracy"

    def __init__(self, config: FinetuneConfig, model: LinearHead | Network):
        self.config, self.model = config, model
        self.epochs, self.patience, self.seed = config.epoch_count, config.patience, config.seed
        self.batch = min(config.batch, len(model.labels))
        self.steps_per_epoch = -(-len(model.labels) // self.batch)
        groups = [{**group, "weight_decay": config.weight_decay if group["decays"] else 0.0} for group in model.groups]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
        self._trained = {name: p for name, p in model.module.named_parameters() if p.requires_grad}
        self.class_weights = self._balanced() if config.class_weights == "balanced" else None

    def _balanced(self) -> torch.Tensor:
        """N / (classes * images of the class), as scikit-learn's `class_weight="balanced"`."""
        counts = torch.bincount(self.model.labels, minlength=self.model.classes).clamp(min=1)
        return len(self.model.labels) / (self.model.classes * counts)

    def batches(self, epoch: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Inputs and their targets: labels (B,), or with mixup shares of all classes (B, C)."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.model.labels), generator=generator).split(self.batch)
        self.model.module.train()
        inputs = self.model.inputs([part.tolist() for part in order], generator)
        for part, x in zip(order, inputs, strict=True):
            yield self._mixup(x, self.model.labels[part].to(x.device), generator)

    def _mixup(self, x: torch.Tensor, labels: torch.Tensor, generator: torch.Generator):
        """Mix each input and its label with another's, in one proportion for the batch (Zhang et al. 2018)."""
        if not self.config.mixup:
            return x, labels
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        share = float(rng.beta(self.config.mixup, self.config.mixup))
        other = torch.randperm(len(x), generator=generator).to(x.device)
        targets = F.one_hot(labels, self.model.classes).float()
        return share * x + (1 - share) * x[other], share * targets + (1 - share) * targets[other]

    def step(self, batch: tuple[torch.Tensor, torch.Tensor], number: int, steps: int) -> tuple[float, int]:
        """One update by AdamW; the loss counts once for each image."""
        config, (x, targets) = self.config, batch
        lr = cosine(number, steps, config.learning_rate, 0.0, warmup=round(config.warmup * steps))
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        weights = None if self.class_weights is None else self.class_weights.to(x.device)
        loss = F.cross_entropy(self.model(x), targets, weights, label_smoothing=config.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        if config.clip:
            torch.nn.utils.clip_grad_norm_(self._trained.values(), config.clip)
        self.optimizer.step()
        return float(loss.detach()), len(x)

    def validate(self) -> dict[str, float]:
        """Top-1 accuracy and cross-entropy of the validation images."""
        logits, labels = self.model.validation_logits(), self.model.validation_labels
        top1 = float((logits.argmax(1) == labels).float().mean())
        return {"top1": top1, "loss": float(F.cross_entropy(logits, labels))}

    def is_better(self, metrics: dict, best: dict) -> bool:
        """By accuracy, and by the loss where that is the same."""
        return (metrics["top1"], -metrics["loss"]) > (best["top1"], -best["loss"])

    def formatted(self, metrics: dict) -> str:
        return f"{100 * metrics['top1']:.1f} %"

    def diverged(self, step: int) -> FinetuneError:
        lr = self.config.learning_rate
        return FinetuneError(f"The loss is not finite at step {step}: try a learning rate below {lr:g}.")

    def weights(self) -> dict[str, torch.Tensor]:
        return self._trained

    @torch.no_grad()
    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        for name, parameter in self._trained.items():
            parameter.copy_(weights[name])

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        return {"weights": self._trained}

    def load_tensors(self, checkpoint: Checkpoint) -> None:
        self.load_weights(checkpoint.tensors("weights"))
