"""Fine-tuning: a classifier of one's own classes from a backbone and labelled images.

What is trained is in `ways`, how in `course`; this is what there is to learn from, and what is said and kept of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

import torch

import dinoviz
from dinoviz.atomic_files import whole, writing
from training.classifier.methods import STORE, Head, Held, Network, logits_of
from training.classifier.model import build, predict
from training.config.tasks import FinetuneConfig
from training.course import Course, FinetuneError
from training.data.dataset import Decoded, Pictures, find, too_many
from training.data.demo import demo
from training.data.labels import aligned, halves, labelled
from training.data.transforms import short_side
from training.evaluation.embed import evaluation_size
from training.evaluation.knn_linear import Progress
from training.evaluation.metrics import scores
from training.export import export
from training.runs.lifecycle import reopen, working
from training.runs.run import Run, RunError

__all__ = ["FinetuneError", "finetune", "predict", "resume"]

HEAD_FIRST = {"way": "linear", "epochs": 40, "patience": 5}


def check(config: FinetuneConfig) -> None:
    """Raise DinovizError for images that `finetune` would refuse at its start, before there is a run.

    Whether they can be read, and the model be loaded, shows in the run.
    """
    _images(config)


def finetune(config: FinetuneConfig, run: Run, progress: Progress | None = None) -> dict | None:
    """Train a classifier in a run of kind "finetune" and export it; see `_result` for what comes back.

    Returns None if the run was asked to stop. Raises DinovizError for data, models and settings that cannot be; the
    run's status says so too.
    """
    return _work(config, run, progress or (lambda done, of, what: None), resumed=False)


def resume(run: Run, progress: Progress | None = None) -> dict | None:
    """Go on after the last whole epoch of a run that was stopped or killed, or from the start; as `finetune`.

    Raises RunError too for a run of another kind, at work or finished.
    """
    reopen(run, "finetune")
    config = FinetuneConfig.from_dict(run.config)
    return _work(config, run, progress or (lambda done, of, what: None), resumed=True)


def _work(config: FinetuneConfig, run: Run, progress: Progress, resumed: bool) -> dict | None:
    with working(run) as asked_to_stop:
        run.set_status("running", message="reading the images")
        task = _Task.prepare(config, run)
        checkpoint = run.checkpoint() if resumed else None
        way = task.way(progress, asked_to_stop, anew=checkpoint is None)
        course = Course(config, way, run, asked_to_stop, progress, task.digest)
        if checkpoint is not None:
            course.restore(checkpoint)
        else:
            run.truncate_metrics(0)  # of an epoch that was killed before its checkpoint was written
        course.go()
        result = _result(task, course, way, run)
        message = f"{course.stopped_early} {_in_words(result)}".strip()
        run.set_status("finished", step=course.step, steps=course.steps, eta=0, message=message)
        return result
    return None


def _images(config: FinetuneConfig) -> tuple[Pictures, Pictures, Pictures | None]:
    """To train on, to decide when to stop, and to test on once."""
    if config.data:
        pictures = labelled(find(config.data), "Fine-tuning")
        test = aligned(find(config.test), pictures.classes) if config.test else None
    else:
        pictures, test = demo("train"), demo("held-out")
    return *halves(pictures, config.validation, config.seed), test


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
    def prepare(cls, config: FinetuneConfig, run: Run) -> _Task:
        train, validation, test = _images(config)
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

    def way(self, progress: Progress, asked_to_stop: Callable[[], bool], anew: bool) -> Head | Network:
        """What is to be trained; LoRA and full start from a linear head where the configuration says so.

        A new head sends large, arbitrary gradients into features that were good (Kumar et al. 2022, LP-FT).
        """
        config, prepare = self.config, self.backbone.normalise
        torch.manual_seed(config.seed)
        drop_path = config.drop_path if config.way == "full" else 0.0
        network = build(self.backbone, self.train.classes, self.size, drop_path)
        linear, memory = config.way == "linear", int(config.memory_gb * 2**30 / 2)
        train, store = self.train, round(self.size * STORE)
        if linear or (config.linear_first and anew) or len(train) * 3 * store**2 > memory:
            # Also where images are streamed: one that cannot be read must not be replaced by one of another class.
            progress(0, 1, "reading the images")
            held = Held(train, self.size, 64, memory)
            _check_broken(held, "training", config, self.run)
            train = held.pictures
            if linear or (config.linear_first and anew):
                head = Head(network, prepare, held, self.validation, config)
                if linear:
                    return head
                first = FinetuneConfig(seed=config.seed, class_weights=config.class_weights, **HEAD_FIRST)
                Course(first, head, None, asked_to_stop, progress).go()
                network = head.classifier()
            del held  # its images are not needed any more
        decoded = Decoded(train, store, memory=memory, max_broken=config.max_broken)
        for name, reason in decoded.broken:
            self.run.log(f"Left out, because it cannot be read: {name} ({reason})")
        return Network(network, prepare, decoded, self.validation, config)


def _check_broken(held: Held, what: str, config: FinetuneConfig, run: Run) -> None:
    count = len(held.pictures) + len(held.broken)
    for name, reason in held.broken:
        run.log(f"Left out, because it cannot be read: {name} ({reason})")
    if too_many(len(held.broken), count, config.max_broken):
        first = "; ".join(reason for _, reason in held.broken[:5])
        raise FinetuneError(f"{len(held.broken)} of the {count} {what} images cannot be read: {first}")


def _result(task: _Task, course: Course, way: Head | Network, run: Run) -> dict:
    """Export the best weights; then what is to be said of them, also written to the run's result.json.

    Keys: model, weights_id, way, size, classes, train (count), epochs, best (the epoch chosen), validation and, where
    there is a held-out folder, test: see `training.evaluation.metrics`. The test images are looked at here, once.
    """
    network, prepare = way.classifier(), task.backbone.normalise
    mean, std = task.backbone.mean, task.backbone.std
    with writing(run.export_folder, RunError):
        export(network, run.export_folder, mean, std, task.size, short_side(task.size))
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
    file = run.folder / "result.json"
    with writing(file, RunError), whole(file) as part:
        part.write_text(json.dumps(result, indent=2), encoding="utf-8")
    run.log(_in_words(result))
    return result


def _in_words(result: dict) -> str:
    known = [name for name in ("validation", "test") if name in result]
    parts = [f"{100 * result[name]['top1']:.1f} % of {result[name]['n']} {name} images" for name in known]
    return f"Right on {' and '.join(parts)}, with the weights of epoch {result['best']['epoch']}."
