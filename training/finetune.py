"""Fine-tuning: a classifier of one's own classes from a backbone and labelled images.

The loop knows nothing of the three ways to do it, which are in `ways`. All randomness of an epoch is drawn from the
run's seed and the epoch's number, and a checkpoint is written after each: to go on needs nothing but the last one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

import dinoviz
from dinoviz.errors import DinovizError, Stopped
from dinoviz.files import whole
from training.classifier import build, predict
from training.data import Decoded, Pictures, demo, find
from training.evaluate import Progress, evaluation_size
from training.export import export
from training.labels import aligned, halves, labelled
from training.runs import Run, RunError
from training.schedules import cosine
from training.scores import scores
from training.stopping import working
from training.task_config import FinetuneConfig
from training.transforms import SHARE
from training.ways import STORE, Head, Held, Network, logits_of, preparation

__all__ = ["FinetuneError", "finetune", "predict", "resume"]

HEART_BEAT = 2.0  # seconds between two words on how far the run is


class FinetuneError(DinovizError):
    """A fine-tuning that cannot go on; the message says what may help."""


def finetune(config: FinetuneConfig, run: Run, progress: Progress | None = None) -> dict | None:
    """Train a classifier in a run of kind "finetune" and export it; see `_result` for what comes back.

    Returns None if the run was asked to stop. Raises DinovizError for data, models and settings that cannot be; the
    run's status says so too.
    """
    return _work(config, run, progress or (lambda done, of, what: None), resumed=False)


def resume(run: Run, progress: Progress | None = None) -> dict | None:
    """Go on after the last whole epoch of a run that was stopped or killed; as `finetune`."""
    if run.kind != "finetune":
        raise RunError(f"{run.name} is a run of kind {run.kind!r}, not 'finetune'.")
    config = FinetuneConfig.from_dict(run.config)
    run.clear_stop()
    return _work(config, run, progress or (lambda done, of, what: None), resumed=True)


def _work(config: FinetuneConfig, run: Run, progress: Progress, resumed: bool) -> dict | None:
    with working(run) as asked_to_stop:
        run.set_status("running", message="reading the images")
        task = _Task.prepare(config, run, progress)
        checkpoint = run.checkpoint() if resumed else None
        way = task.way(progress, with_head_first=checkpoint is None)
        course = _Course(config, way, run, asked_to_stop, progress, task.digest)
        if checkpoint is not None:
            course.restore(checkpoint)
        course.go()
        result = _result(task, course, way, run)
        run.set_status("finished", step=course.step, steps=course.steps, eta=0, message=_in_words(result))
        return result
    return None


@dataclass
class _Task:
    """The images and the network that a configuration asks for."""

    config: FinetuneConfig
    run: Run
    train: Pictures
    validation: Held
    test: Held | None
    backbone: dinoviz.backbone.Backbone
    size: int

    @classmethod
    def prepare(cls, config: FinetuneConfig, run: Run, progress: Progress) -> _Task:
        if config.data:
            pictures = labelled(find(config.data), "Fine-tuning")
            test = aligned(find(config.test), pictures.classes) if config.test else None
        else:
            pictures, test = demo("train"), demo("held-out")
        train, validation = halves(pictures, config.validation, config.seed)
        backbone = dinoviz.load(config.model, device=config.device or None, dtype=torch.float32)
        size = evaluation_size(backbone, config.size)
        memory = config.memory_gb * 2**30 / 4  # each; the training images have the rest
        held = [Held(part, size, 64, memory) if part is not None else None for part in (validation, test)]
        for part, name in zip(held, ("validation", "held-out"), strict=True):
            if part is not None:
                _check_broken(part, name, config, run)
        return cls(config, run, train, *held, backbone, size)

    @property
    def digest(self) -> str:
        """Of what was trained on, so that a run does not go on with something else."""
        parts = (self.train, self.validation.pictures)
        names = [name for part in parts for name in part.names]
        labels = [part.labels.tolist() for part in parts]
        about = json.dumps([names, labels, self.train.classes, self.backbone.weights_id])
        return hashlib.sha256(about.encode()).hexdigest()

    def way(self, progress: Progress, with_head_first: bool) -> Head | Network:
        """What is to be trained; LoRA and full start from a linear head where the configuration says so.

        A new head sends large, arbitrary gradients into features that were good (Kumar et al. 2022, LP-FT).
        """
        config, prepare = self.config, preparation(self.backbone)
        torch.manual_seed(config.seed)
        drop_path = config.drop_path if config.way == "full" else 0.0
        network = build(self.backbone, self.train.classes, self.size, drop_path)
        if config.way == "linear" or (config.linear_first and with_head_first):
            held = Held(self.train, self.size, 64, self.config.memory_gb * 2**30 / 4)
            _check_broken(held, "training", config, self.run)
            progress(0, 1, "encoding")
            head = Head(network, prepare, held, self.validation, config)
            if config.way == "linear":
                return head
            first = FinetuneConfig(**{**_HEAD_FIRST, "seed": config.seed, "class_weights": config.class_weights})
            course = _Course(first, head, None, self.run.stop_requested, progress)
            course.go()
            network = head.classifier()
        decoded = Decoded(
            self.train, round(self.size * STORE), memory=int(config.memory_gb * 2**30 / 2), max_broken=config.max_broken
        )
        for name, reason in decoded.broken:
            self.run.log(f"Left out, because it cannot be read: {name} ({reason})")
        return Network(network, prepare, decoded, self.validation, config)


_HEAD_FIRST = {"way": "linear", "epochs": 40, "patience": 5}


@dataclass
class _Course:
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
        classes = self.way.module.config.num_labels if hasattr(self.way.module, "config") else len(self.way.module.bias)
        counts = torch.bincount(self.way.labels, minlength=classes).clamp(min=1)
        return (len(self.way.labels) / (classes * counts)).to(next(iter(self.weights.values())).device)

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
        loss = F.cross_entropy(logits, targets, self._class_weights, label_smoothing=config.label_smoothing)
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
        classes = next(p for p in reversed(self.weights.values()) if p.dim() == 1).shape[0]
        draw = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        share = float(draw.beta(self.config.mixup, self.config.mixup))
        other = torch.randperm(len(x), generator=generator).to(x.device)
        targets = F.one_hot(labels, classes).float()
        return share * x + (1 - share) * x[other], share * targets + (1 - share) * targets[other]

    def _tell(self, done: int) -> None:
        self.progress(done, self.steps, f"epoch {self.epoch + 1}")
        now = time.monotonic()
        if self.run is not None and now - self._beat > HEART_BEAT:
            self._beat = now
            eta = (now - self._began) / max(1, done - self._first) * (self.steps - done)
            self.run.set_status("running", step=done, steps=self.steps, eta=eta)

    def save(self) -> None:
        """A checkpoint after a whole epoch."""
        state = self.optimizer.state_dict()["state"]
        moments = {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}
        parts = {"weights": self.weights, "best": self.best_weights, "optimizer": moments}
        self.run.save_checkpoint(self.step, parts, {"epoch": self.epoch, "best": self.best, "data": self.digest})

    def restore(self, checkpoint) -> None:
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
        state: dict[int, dict] = {}
        for name, value in checkpoint.tensors("optimizer").items():
            i, key = name.split(".", 1)
            state.setdefault(int(i), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.epoch, self.best = checkpoint.state["epoch"], checkpoint.state["best"]
        self.run.truncate_metrics(self.step)
        self.run.log(f"Going on after epoch {self.epoch}.")


def _check_broken(held: Held, what: str, config: FinetuneConfig, run: Run) -> None:
    count = len(held.pictures) + len(held.broken)
    for name, reason in held.broken:
        run.log(f"Left out, because it cannot be read: {name} ({reason})")
    if len(held.broken) > max(1, config.max_broken * count) or not len(held.pictures):
        first = "; ".join(reason for _, reason in held.broken[:5])
        raise FinetuneError(f"{len(held.broken)} of the {count} {what} images cannot be read: {first}")


def _result(task: _Task, course: _Course, way: Head | Network, run: Run) -> dict:
    """Export the best weights; then what is to be said of them, also written to the run's result.json.

    Keys: model, weights_id, way, size, classes, train (count), epochs, best (the epoch chosen), validation and, where
    there is a held-out folder, test: see `training.scores`. The test images are looked at here, once.
    """
    network, prepare = way.classifier(), preparation(task.backbone)
    mean, std = (value.flatten().tolist() for value in (task.backbone._mean, task.backbone._std))
    try:
        export(network, run.export_folder, mean, std, task.size, round(task.size / SHARE))
    except OSError as error:
        raise RunError(f"{run.export_folder} cannot be written: {error.strerror or error}.") from None
    result = {
        "model": task.backbone.name,
        "weights_id": task.backbone.weights_id,
        "way": task.config.way,
        "size": task.size,
        "classes": list(task.train.classes),
        "train": len(way.labels),
        "epochs": course.epoch,
        "best": course.best,
    }
    for name, held in (("validation", task.validation), ("test", task.test)):
        if held is not None:
            logits = logits_of(network, prepare, held).numpy()
            result[name] = scores(logits, held.pictures.labels, task.train.classes)
    with whole(run.folder / "result.json") as part:
        part.write_text(json.dumps(result, indent=2), encoding="utf-8")
    run.log(_in_words(result))
    return result


def _in_words(result: dict) -> str:
    known = [name for name in ("validation", "test") if name in result]
    parts = [f"{100 * result[name]['top1']:.1f} % of {result[name]['n']} {name} images" for name in known]
    return f"Right on {' and '.join(parts)}, with the weights of epoch {result['best']['epoch']}."
