"""Fine-tuning: an image classifier from a backbone and labelled images.

`classifier.methods` holds what is trained, `classifier.fitting` and `engine.epochs` how; this module prepares images
and network, exports the best weights and writes the result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

import torch

import dinoviz
from dinoviz.atomic_files import whole, writing
from training.classifier.fitting import ClassifierFitting, FinetuneError
from training.classifier.methods import STORE, CentreCrops, LinearHead, Network, logits_of
from training.classifier.model import build, predict
from training.config.tasks import FinetuneConfig
from training.data.dataset import Decoded, Pictures, find, too_many
from training.data.demo import demo
from training.data.labels import aligned, halves, labelled
from training.data.transforms import short_side
from training.engine.epochs import EpochLoop
from training.engine.progress import Progress
from training.evaluation.embed import evaluation_size
from training.evaluation.metrics import scores
from training.export import export
from training.runs.lifecycle import reopen, working
from training.runs.run import Run, RunError

__all__ = ["FinetuneError", "finetune", "predict", "resume"]

HEAD_FIRST = {"method": "linear", "epochs": 40, "patience": 5}


def check(config: FinetuneConfig) -> None:
    """Raise DinovizError for images that `finetune` would refuse, before a run is created.

    Images that cannot be read and models that cannot be loaded are found in the run.
    """
    _images(config)


def finetune(config: FinetuneConfig, run: Run, progress: Progress | None = None) -> dict | None:
    """Train a classifier in a run of kind "finetune" and export it.

    Returns the result, see `_result`, or None if a stop was requested. Raises DinovizError for invalid data, models
    and settings; the run's status has the same message.
    """
    return _work(config, run, progress or (lambda done, of, what: None), resumed=False)


def resume(run: Run, progress: Progress | None = None) -> dict | None:
    """Resume a run that was stopped or killed after its last whole epoch, or start it; as `finetune`.

    Raises RunError also for a run of another kind, one that is running, and one that is finished.
    """
    reopen(run, "finetune")
    config = FinetuneConfig.from_dict(run.config)
    return _work(config, run, progress or (lambda done, of, what: None), resumed=True)


def _work(config: FinetuneConfig, run: Run, progress: Progress, resumed: bool) -> dict | None:
    with working(run) as stop_requested:
        run.set_status("running", message="reading the images")
        task = _Task.prepare(config, run)
        checkpoint = run.checkpoint() if resumed else None
        model = task.model(progress, stop_requested, new=checkpoint is None)
        fitting = ClassifierFitting(config, model)
        if fitting.batch < config.batch:
            run.log(f"The batch is {fitting.batch}, because there are no more images to train on.")
        start_counts = config.method != "linear" and config.linear_first  # the linear head
        loop = EpochLoop(fitting, run, stop_requested, progress, task.digest, start_counts)
        loop.restore(checkpoint)
        loop.fit()
        result = _result(task, loop, model, run)
        message = f"{loop.stopped_early} {summary(result)}".strip()
        run.set_status("finished", step=loop.step, steps=loop.steps, eta=0, message=message)
        return result
    return None


def _images(config: FinetuneConfig) -> tuple[Pictures, Pictures, Pictures | None]:
    """Training, validation and test images; None where no test images are given."""
    if config.data:
        pictures = labelled(find(config.data), "Fine-tuning")
        test = aligned(find(config.test), pictures.classes) if config.test else None
    else:
        pictures, test = demo("train"), demo("held-out")
    return *halves(pictures, config.validation, config.seed), test


@dataclass
class _Task:
    """The images and the backbone of a configuration."""

    config: FinetuneConfig
    run: Run
    train: Pictures
    validation: CentreCrops
    test: CentreCrops | None
    backbone: dinoviz.backbone.Backbone
    size: int

    @classmethod
    def prepare(cls, config: FinetuneConfig, run: Run) -> _Task:
        train, validation, test = _images(config)
        backbone = dinoviz.load(config.model, device=config.device or None, dtype=torch.float32)
        size = evaluation_size(backbone, config.size)
        memory = config.memory_gb * 2**30 / 4  # each; the training images have the rest
        crops = [CentreCrops(part, size, 64, memory) if part is not None else None for part in (validation, test)]
        for part, name in zip(crops, ("validation", "test"), strict=True):
            if part is not None:
                _check_broken(part, name, config, run)
        return cls(config, run, train, *crops, backbone, size)

    @property
    def digest(self) -> str:
        """SHA-256 of images, labels and weights, so that a run does not resume with others."""
        parts = (self.train, self.validation.pictures)
        names = [name for part in parts for name in part.names]
        labels = [part.labels.tolist() for part in parts]
        about = json.dumps([names, labels, self.train.classes, self.backbone.weights_id])
        return hashlib.sha256(about.encode()).hexdigest()

    def model(self, progress: Progress, stop_requested: Callable[[], bool], new: bool) -> LinearHead | Network:
        """What is trained; LoRA and full start from a linear head where the configuration says so.

        A new head sends large, arbitrary gradients into features that were good (Kumar et al. 2022, LP-FT).
        """
        config, prepare = self.config, self.backbone.normalise
        torch.manual_seed(config.seed)
        drop_path = config.drop_path if config.method == "full" else 0.0
        network = build(self.backbone, self.train.classes, self.size, drop_path)
        memory, store = int(config.memory_gb * 2**30 / 2), round(self.size * STORE)
        head_only = config.method == "linear"
        needs_head = head_only or (config.linear_first and new)
        train = self.train
        # Images that are streamed are read once before: a broken one must not be replaced by one of another class.
        if needs_head or len(train) * 3 * store**2 > memory:
            progress(0, 1, "reading the images")
            crops = CentreCrops(train, self.size, 64, memory)
            _check_broken(crops, "training", config, self.run)
            train = crops.pictures
            if needs_head:
                head = LinearHead(network, prepare, crops, self.validation, config)
                if head_only:
                    return head
                first = FinetuneConfig(seed=config.seed, class_weights=config.class_weights, **HEAD_FIRST)
                EpochLoop(ClassifierFitting(first, head), None, stop_requested, progress).fit()
                network = head.classifier()
            del crops  # frees its memory
        decoded = Decoded(train, store, memory=memory, max_broken=config.max_broken)
        _log_broken(decoded.broken, self.run)
        return Network(network, prepare, decoded, self.validation, config)


def _log_broken(broken: list[tuple[str, str]], run: Run) -> None:
    for name, reason in broken:
        run.log(f"Left out, because it cannot be read: {name} ({reason})")


def _check_broken(crops: CentreCrops, what: str, config: FinetuneConfig, run: Run) -> None:
    """Log the images that cannot be read. Raises FinetuneError if there are too many."""
    count = len(crops.pictures) + len(crops.broken)
    _log_broken(crops.broken, run)
    if too_many(len(crops.broken), count, config.max_broken):
        first = "; ".join(reason for _, reason in crops.broken[:5])
        raise FinetuneError(f"{len(crops.broken)} of the {count} {what} images cannot be read: {first}")


def _result(task: _Task, loop: EpochLoop, model: LinearHead | Network, run: Run) -> dict:
    """Export the best weights and evaluate them. Returns the result, which is also written to result.json.

    Keys: model, weights_id, method, size, classes, train (count), epochs, best (metrics of the epoch chosen),
    validation and, where there are test images, test: see `training.evaluation.metrics`. This is the only place that
    uses the test images.
    """
    network, prepare = model.classifier(), task.backbone.normalise
    mean, std = task.backbone.mean, task.backbone.std
    with writing(run.export_folder, RunError):
        export(network, run.export_folder, mean, std, task.size, short_side(task.size))
    result = {
        "model": task.backbone.name,
        "weights_id": task.backbone.weights_id,
        "method": task.config.method,
        "size": task.size,
        "classes": list(task.train.classes),
        "train": len(model.labels),
        "epochs": loop.epoch,
        "best": loop.best,
    }
    for name, crops in (("validation", task.validation), ("test", task.test)):
        if crops is not None:
            logits = logits_of(network, prepare, crops).numpy()
            result[name] = scores(logits, crops.pictures.labels, task.train.classes)
    file = run.folder / "result.json"
    with writing(file, RunError), whole(file) as part:
        part.write_text(json.dumps(result, indent=2), encoding="utf-8")
    run.log(summary(result))
    return result


def summary(result: dict) -> str:
    """The accuracies of a result with 95 % intervals, and the epoch that was chosen, as a sentence."""
    parts = []
    for name in ("validation", "test"):
        if name in result:
            low, high = result[name]["top1_interval"]
            top1, n = result[name]["top1"], result[name]["n"]
            parts.append(f"{100 * top1:.1f} % ({100 * low:.1f} to {100 * high:.1f}) of {n} {name} images")
    epoch = result["best"]["epoch"]
    weights = f"the weights of epoch {epoch}" if epoch else "the linear head that training started from"
    return f"Accuracy (95 % interval): {' and '.join(parts)}, with {weights}, chosen on the validation images."
