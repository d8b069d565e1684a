"""The depth probe: a small head on frozen features that tells how far away everything is.

Each picture is encoded once in each of its views (`depth_views`), then the head learns from these features
(`depth_course`): with head linear and gradient 0.5 as DINOv2 evaluated it (Oquab et al. 2024, section 7.4). Other than
published, tokens are taken after the final norm, and losses are those of depth at a quarter of the patch size.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

import dinoviz
from dinoviz import depth
from dinoviz.atomic_files import whole, writing
from dinoviz.backbone import Backbone
from dinoviz.depth import heads as depth_heads
from dinoviz.depth.probe import ProbeError
from dinoviz.errors import Stopped
from dinoviz.images import open_image
from training.config.cli import command_line
from training.config.tasks import ProbeConfig
from training.depth.cached_features import Encoded, View, views_of
from training.depth.rgbd import Pair, Split, counts, depth_errors, find_pairs, groups_of, intrinsics, meta, split
from training.depth_course import Course, Lesson
from training.engine.timing import BEAT
from training.evaluation.knn_linear import Progress
from training.runs.lifecycle import reopen, working
from training.runs.run import Run, RunError

VERSION = 1  # of the header
FAMILIAR = 2000  # training pictures that a probe remembers at most
UNLIKE = 99  # per cent of pictures of other rooms that are to count as familiar
# What decides the features, beside the files and the weights.
SETTINGS = ("layers", "resolution", "border", "crop", "depth", "flip", "crops", "zoom", "colour", "seed")


def check(config: ProbeConfig) -> None:
    """Raise DinovizError for images that `probe` would refuse at its start, before there is a run.

    Whether they can be read, the model be loaded, and what a teacher makes of pictures without depth, shows in the run.
    """
    if not config.teacher:
        _parts(config)


def probe(config: ProbeConfig, run: Run, progress: Progress | None = None) -> dict | None:
    """Train a depth probe in a run of kind "probe"; write export/probe.safetensors, see `dinoviz.depth.open_probe`.

    Returns what is said of it in the file's header, or None if the run was asked to stop. Raises DinovizError for data
    and settings that cannot be.
    """
    return _work(config, run, progress or (lambda done, of, what: None), resumed=False)


def resume(run: Run, progress: Progress | None = None) -> dict | None:
    """Go on with the encoding, or after the last whole epoch, of a run that was stopped or killed; as `probe`.

    Raises RunError too for a run of another kind, at work or finished.
    """
    reopen(run, "probe")
    config = ProbeConfig.from_dict(run.config)
    return _work(config, run, progress or (lambda done, of, what: None), resumed=True)


def _work(config: ProbeConfig, run: Run, progress: Progress, resumed: bool) -> dict | None:
    with working(run) as asked_to_stop:
        run.set_status("running", step=0, message="reading the images")
        stages: dict[str, float] = {}
        beat = 0.0

        def heard(done: int, of: int, what: str) -> None:
            nonlocal beat
            if asked_to_stop():
                raise Stopped
            progress(done, of, what)
            now = time.monotonic()
            began = stages.setdefault(what, now)
            if not what.startswith("epoch") and now - beat > BEAT:
                beat = now
                eta = (now - began) / max(1, done) * (of - done)
                run.set_status("running", eta=eta, message=f"{what}, {done:,} of {of:,}")

        told, data = config, {"folder": Path(config.data).name}
        if config.teacher:
            from training.depth import pseudo_labels as distil

            config, taught = distil.taught(config, run.folder / "teacher", heard)
            data |= taught
        task = _Task.prepare(config, run, heard)
        checkpoint = run.checkpoint() if resumed else None
        train, validation = task.encoded(run.folder / "features", heard, anew=not resumed)
        course = Course(task.lesson(train), train, validation, run, heard, task.digest)
        if checkpoint is not None:
            course.restore(checkpoint)
        else:
            run.truncate_metrics(0)  # of an epoch that was killed before its checkpoint was written
        head = course.go()
        about = task.about | {"epoch": course.best["epoch"], "command": _command(told)}
        about["data"] = data | about["data"]
        familiar = train.descriptors(len(task.layers))
        some = np.linspace(0, len(familiar) - 1, min(FAMILIAR, len(familiar))).astype(int)
        groups = groups_of(task.parts.train)
        group = np.repeat(np.arange(len(groups)), [len(each) for each in groups])
        familiar, group = familiar[some], group[some]
        about["familiar_limit"] = _limit(familiar, group)
        file = depth.probe_file(run.folder)
        depth.save_probe(file, head, about, familiar)
        about["metrics"] = task.measure(depth.open_probe(file), heard)  # of the head as it is in the file
        depth.save_probe(file, head, about, familiar)
        result = run.folder / "result.json"
        with writing(result, RunError), whole(result) as part:
            part.write_text(json.dumps(about, indent=2), encoding="utf-8")
        shutil.rmtree(run.folder / "features", ignore_errors=True)
        run.log(_in_words(about["metrics"]))
        message = f"{course.stopped_early} {_in_words(about['metrics'])}".strip()
        run.set_status("finished", step=course.step, steps=course.steps, eta=0, message=message)
        return about
    return None


def _parts(config: ProbeConfig) -> Split:
    """The pictures with depth: to train on, to decide when to stop, and held out."""
    parts = split(find_pairs(config.data, config.limit), config.validation, config.held_out)
    if config.test:
        rule = f"{parts.rule}; the test images are a folder of their own"
        parts = replace(parts, held_out=find_pairs(config.test), rule=rule)
    return parts


@dataclass
class _Task:
    """The images and the network that a configuration asks for."""

    config: ProbeConfig
    backbone: Backbone
    layers: list[int]
    parts: Split

    @classmethod
    def prepare(cls, config: ProbeConfig, run: Run, heard: Progress) -> _Task:
        parts = _parts(config)
        backbone = dinoviz.load(config.model, device=config.device or None)
        layers = config.blocks(backbone.layers)
        kept = _with_depth([*parts.train, *parts.validation, *parts.held_out], config, run, heard)
        for name, what in (("train", "to train on"), ("validation", "to check on"), ("held_out", "held out")):
            before = getattr(parts, name)
            parts = replace(parts, **{name: [pair for pair in before if pair in kept]})
            if before and not getattr(parts, name):
                raise ProbeError(f"None of the images {what} has depth that is known and within the range.")
        return cls(config, backbone, layers, parts)

    @property
    def digest(self) -> str:
        """Of what is trained on, so that a run does not go on with something else."""
        files = [_stamp(path) for pair in self.parts.train + self.parts.validation for path in (pair.image, pair.depth)]
        values = {name: value for name, value in asdict(self.config).items() if name in SETTINGS}
        about = json.dumps([files, len(self.parts.train), self.layers, values, self.backbone.weights_id])
        return hashlib.sha256(about.encode()).hexdigest()

    def encoded(self, folder: Path, heard: Progress, anew: bool) -> tuple[Encoded, Encoded]:
        """Features of the training and the validation images; those that lie in the folder are not computed again."""
        stamp = folder / "of.txt"
        if anew or not stamp.exists() or stamp.read_text() != self.digest:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            stamp.write_text(self.digest)
        config, count = self.config, len(self.parts.train) + len(self.parts.validation)
        channels = len(self.layers) * self.backbone.dim
        train, validation = (Encoded(folder / f"{name}.bin", channels) for name in ("train", "validation"))
        for encoded, pairs, views, crop, before in (
            (train, self.parts.train, lambda i: views_of(config, i), "none", 0),
            (validation, self.parts.validation, lambda i: [View()], config.crop, len(self.parts.train)),
        ):
            encoded.encode(
                pairs, views, self.backbone, self.layers, config, crop,
                lambda done, before=before: heard(before + done, count, "encoding"),
            )  # fmt: skip
        for encoded in (train, validation):
            encoded.open(config.memory_gb * 2**30 * encoded.end / (train.end + validation.end))
        return train, validation

    def lesson(self, train: Encoded) -> Lesson:
        torch.manual_seed(self.config.seed)
        head = depth_heads.make(self.about)
        head.prepare(*train.statistics(), self.config.hidden)
        return Lesson(head.to(self.backbone.device), self.config)

    @property
    def about(self) -> dict:
        """What the header says before anything is trained."""
        config, parts, told = self.config, self.parts, meta(self.config.data)
        licence, camera = told.get("licence") or told.get("license"), intrinsics(config.data)
        return {
            "version": VERSION,
            "backbone": self.backbone.name,
            "weights_id": self.backbone.weights_id,
            **config.architecture(len(self.layers) * self.backbone.dim),
            "layers": self.layers,
            "resolution": config.resolution,
            "crop": config.crop,
            "border": config.border,
            "seed": config.seed,
            **({"camera": {**camera, "size": open_image(parts.train[0].image).size}} if camera else {}),
            "data": {
                **({"licence": str(licence)} if licence else {}),
                "train": len(parts.train),
                "validation": len(parts.validation),
                "held_out": len(parts.held_out),
                "rule": parts.rule,
            },
        }

    def measure(self, opened: depth.Probe, heard: Progress) -> dict[str, dict]:
        """What the probe does wrong on the validation images and, looked at once, on the held-out ones."""
        found = {}
        for name, pairs in (("validation", self.parts.validation), ("test", self.parts.held_out)):
            if pairs:
                found[name] = errors(
                    pairs, opened, self.backbone, self.config,
                    lambda i, name=name, pairs=pairs: heard(i, len(pairs), f"measuring on the {name} images"),
                )  # fmt: skip
        return found


def errors(pairs: Sequence[Pair], opened: depth.Probe, backbone: Backbone, config: ProbeConfig, done) -> dict:
    """Means over the pictures, each at its full size, of what `depth_errors` says; "median_scaled" has those scaled.

    Pictures are looked at as the app does it. done: called with how many are. Raises ProbeError where none has depth.
    """
    found, scaled = [], []
    for i, pair in enumerate(pairs):
        picture, truth = pair.open(config.border)
        valid = counts(truth, config.crop, config.depth[1], config.border)
        if valid.any():
            features = backbone.encode(picture, config.resolution, opened.layers)
            predicted = depth.predict(features, opened)
            found.append(depth_errors(predicted, truth, valid))
            scaled.append(depth_errors(predicted, truth, valid, median_scaled=True))
        done(i + 1)
    if not found:
        raise ProbeError("None of the images to be measured on has depth that is known and within the range.")
    means, scaled = ({key: float(np.mean([each[key] for each in of])) for key in of[0]} for of in (found, scaled))
    return {**means, "images": len(found), "median_scaled": scaled}


def _with_depth(pairs: Sequence[Pair], config: ProbeConfig, run: Run, heard: Progress) -> set[Pair]:
    """Those with a pixel that counts; all files are read once, so that none stops the run after an hour of encoding."""
    kept = set()
    for i, pair in enumerate(pairs):
        _, truth = pair.open(config.border)
        if counts(truth, config.crop, config.depth[1], config.border).any():
            kept.add(pair)
        heard(i + 1, len(pairs), "reading the images")
    if not kept:
        raise ProbeError(f"None of the {len(pairs)} images has depth that is known and at most {config.depth[1]:g} m.")
    if len(kept) < len(pairs):
        run.log(f"{len(pairs) - len(kept)} of {len(pairs)} images have no known depth in range and are left out.")
    return kept


def _limit(descriptors: np.ndarray, group: np.ndarray) -> float:
    """The cosine distance within which 99 in 100 training pictures have one of another group, by its number (n,)."""
    if len(set(group)) == 1:  # then any other
        group = np.arange(len(descriptors))
    alike = descriptors @ descriptors.T
    alike[group[:, None] == group] = -1
    return max(1e-6, float(np.percentile(1 - alike.max(1), UNLIKE)))


def _stamp(path: Path) -> list:
    about = path.stat()
    return [path.name, about.st_size, about.st_mtime_ns]


def _command(config: ProbeConfig) -> str:
    """Without the folders of this machine."""
    hidden = {name: Path(value).name for name in ("test", "model", "teacher")
              if Path(value := getattr(config, name)).is_absolute()}  # fmt: skip
    return command_line("probe", replace(config, **hidden), data=[Path(config.data).name])


def _in_words(metrics: dict[str, dict]) -> str:
    if not metrics:
        return "No images were kept back to measure on."
    return "; ".join(
        f"{name}: RMSE {found['rmse']:.3f} m, AbsRel {found['abs_rel']:.3f}, delta1 {found['delta1']:.3f}, with the "
        f"median scaled {found['median_scaled']['rmse']:.3f} m, {found['median_scaled']['delta1']:.3f}"
        for name, found in metrics.items()
    )
