"""The depth probe: a small head on frozen features that predicts metric depth.

Each picture is encoded once in each of its views (`depth.cached_features`), then the head is trained on these features
(`depth.fitting`): with head linear and gradient 0.5 as DINOv2 evaluated it (Oquab et al. 2024, section 7.4), except
that tokens are taken after the final norm, and that losses compare depth at a quarter of the patch size.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
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
from training.depth.fitting import DepthFitting
from training.depth.rgbd import Pair, Split, counts, depth_errors, find_pairs, groups_of, intrinsics, meta, split
from training.engine.epochs import EpochLoop
from training.engine.progress import Progress
from training.engine.timing import BEAT
from training.runs.lifecycle import reopen, working
from training.runs.run import Run, RunError

VERSION = 1  # of the header
FAMILIAR = 2000  # training pictures whose descriptors a probe file holds at most
UNLIKE = 99  # per cent of pictures of other rooms that count as familiar
# What the features depend on, beside the files and the weights.
SETTINGS = ("layers", "resolution", "border", "crop", "depth", "flip", "crops", "zoom", "colour", "seed")


def check(config: ProbeConfig) -> None:
    """Raise DinovizError for images that `probe` would refuse, before a run is created.

    Images that cannot be read, models that cannot be loaded, and pictures whose depth a teacher predicts are checked in
    the run.
    """
    if not config.teacher:
        _parts(config)


def probe(config: ProbeConfig, run: Run, progress: Progress | None = None) -> dict | None:
    """Train a depth probe in a run of kind "probe"; write export/probe.safetensors, see `dinoviz.depth.open_probe`.

    Returns the file's header, or None if a stop was requested. Raises DinovizError for invalid data and settings.
    """
    return _work(config, run, progress or (lambda done, of, what: None), resumed=False)


def resume(run: Run, progress: Progress | None = None) -> dict | None:
    """Resume a run that was stopped or killed: its encoding, or after its last whole epoch; as `probe`.

    Raises RunError also for a run of another kind, one that is running, and one that is finished.
    """
    reopen(run, "probe")
    config = ProbeConfig.from_dict(run.config)
    return _work(config, run, progress or (lambda done, of, what: None), resumed=True)


def _work(config: ProbeConfig, run: Run, progress: Progress, resumed: bool) -> dict | None:
    with working(run) as stop_requested:
        run.set_status("running", step=0, message="reading the images")
        report = _reporter(run, progress, stop_requested)
        given, data = config, {"folder": Path(config.data).name}
        if config.teacher:
            from training.depth.pseudo_labels import with_pseudo_labels

            config, about_teacher = with_pseudo_labels(config, run.folder / "teacher", report)
            data |= about_teacher
        task = _Task.prepare(config, run, report)
        checkpoint = run.checkpoint() if resumed else None
        train, validation = task.encoded(run.folder / "features", report, new=not resumed)
        loop = EpochLoop(task.fitting(train, validation), run, stop_requested, progress, task.digest)
        loop.restore(checkpoint)
        loop.fit()
        about = task.about | {"epoch": loop.best["epoch"], "command": _command(given)}
        about["data"] = data | about["data"]
        about = _export(task, loop.fitting.averaged, train, about, run, report)
        message = f"{loop.stopped_early} {summary(about['metrics'])}".strip()
        run.set_status("finished", step=loop.step, steps=loop.steps, eta=0, message=message)
        return about
    return None


def _reporter(run: Run, progress: Progress, stop_requested: Callable[[], bool]) -> Progress:
    """A `Progress` that also writes heart beats with the time left, and raises Stopped when a stop is requested."""
    stages: dict[str, float] = {}
    beat = 0.0

    def report(done: int, of: int, what: str) -> None:
        nonlocal beat
        if stop_requested():
            raise Stopped
        progress(done, of, what)
        now = time.monotonic()
        started = stages.setdefault(what, now)
        if now - beat > BEAT:
            beat = now
            eta = (now - started) / max(1, done) * (of - done)
            run.set_status("running", eta=eta, message=f"{what}, {done:,} of {of:,}")

    return report


def _export(task: _Task, head: depth_heads.Head, train: Encoded, about: dict, run: Run, report: Progress) -> dict:
    """Write the probe's file and result.json. Returns the header: `about`, familiar_limit and metrics."""
    descriptors = train.descriptors(len(task.layers))
    chosen = np.linspace(0, len(descriptors) - 1, min(FAMILIAR, len(descriptors))).astype(int)
    groups = groups_of(task.parts.train)
    group = np.repeat(np.arange(len(groups)), [len(each) for each in groups])
    descriptors = descriptors[chosen]
    about = about | {"familiar_limit": _limit(descriptors, group[chosen])}
    file = depth.probe_file(run.folder)
    depth.save_probe(file, head, about, descriptors)
    about["metrics"] = task.measure(depth.open_probe(file), report)  # of the head as it is in the file
    depth.save_probe(file, head, about, descriptors)
    result = run.folder / "result.json"
    with writing(result, RunError), whole(result) as part:
        part.write_text(json.dumps(about, indent=2), encoding="utf-8")
    shutil.rmtree(run.folder / "features", ignore_errors=True)
    run.log(summary(about["metrics"]))
    return about


def _parts(config: ProbeConfig) -> Split:
    """The pictures with depth: training, validation and held out."""
    parts = split(find_pairs(config.data, config.limit), config.validation, config.held_out)
    if config.test:
        rule = f"{parts.rule}; the test images are a folder of their own"
        parts = replace(parts, held_out=find_pairs(config.test), rule=rule)
    return parts


@dataclass
class _Task:
    """The images and the backbone of a configuration."""

    config: ProbeConfig
    backbone: Backbone
    layers: list[int]
    parts: Split

    @classmethod
    def prepare(cls, config: ProbeConfig, run: Run, report: Progress) -> _Task:
        parts = _parts(config)
        backbone = dinoviz.load(config.model, device=config.device or None)
        layers = config.blocks(backbone.layers)
        usable = _with_depth([*parts.train, *parts.validation, *parts.held_out], config, run, report)
        for name, what in (("train", "training"), ("validation", "validation"), ("held_out", "held-out")):
            before = getattr(parts, name)
            parts = replace(parts, **{name: [pair for pair in before if pair in usable]})
            if before and not getattr(parts, name):
                raise ProbeError(f"None of the {what} images has known depth within the range.")
        return cls(config, backbone, layers, parts)

    @property
    def digest(self) -> str:
        """SHA-256 of files, settings and weights, so that a run does not resume with others."""
        files = [_stamp(path) for pair in self.parts.train + self.parts.validation for path in (pair.image, pair.depth)]
        values = {name: value for name, value in asdict(self.config).items() if name in SETTINGS}
        about = json.dumps([files, len(self.parts.train), self.layers, values, self.backbone.weights_id])
        return hashlib.sha256(about.encode()).hexdigest()

    def encoded(self, folder: Path, report: Progress, new: bool) -> tuple[Encoded, Encoded]:
        """Features of training and validation images; those that the folder holds already are not computed again."""
        stamp = folder / "of.txt"
        if new or not stamp.exists() or stamp.read_text() != self.digest:
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
                lambda done, before=before: report(before + done, count, "encoding"),
            )  # fmt: skip
        for encoded in (train, validation):
            encoded.open(config.memory_gb * 2**30 * encoded.end / (train.end + validation.end))
        return train, validation

    def fitting(self, train: Encoded, validation: Encoded) -> DepthFitting:
        """A new head with the statistics of the training features, and how it is trained."""
        torch.manual_seed(self.config.seed)
        head = depth_heads.make(self.about)
        head.prepare(*train.statistics(), self.config.head_dropout)
        return DepthFitting(head.to(self.backbone.device), self.config, train, validation)

    @property
    def about(self) -> dict:
        """The header's keys that are known before training."""
        config, parts, found = self.config, self.parts, meta(self.config.data)
        licence, camera = found.get("licence") or found.get("license"), intrinsics(config.data)
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

    def measure(self, opened: depth.Probe, report: Progress) -> dict[str, dict]:
        """Errors of the probe on the validation images ("validation") and on the held-out ones ("test")."""
        found = {}
        for name, pairs in (("validation", self.parts.validation), ("test", self.parts.held_out)):
            if pairs:
                found[name] = errors(
                    pairs, opened, self.backbone, self.config,
                    lambda i, name=name, pairs=pairs: report(i, len(pairs), f"measuring on the {name} images"),
                )  # fmt: skip
        return found


def errors(
    pairs: Sequence[Pair], opened: depth.Probe, backbone: Backbone, config: ProbeConfig, done: Callable[[int], None]
) -> dict:
    """Means over pictures of `depth_errors`, each at its full size; "median_scaled" has the median-scaled errors.

    Pictures are encoded as the app encodes them. done: called with the number of pictures that are measured.
    Raises ProbeError where none has depth.
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
        raise ProbeError("None of the images to measure on has known depth within the range.")
    means, scaled = ({key: float(np.mean([each[key] for each in of])) for key in of[0]} for of in (found, scaled))
    return {**means, "images": len(found), "median_scaled": scaled}


def _with_depth(pairs: Sequence[Pair], config: ProbeConfig, run: Run, report: Progress) -> set[Pair]:
    """The pairs with a valid pixel; all files are read, so that a broken one does not end the run after an hour."""
    usable = set()
    for i, pair in enumerate(pairs):
        _, truth = pair.open(config.border)
        if counts(truth, config.crop, config.depth[1], config.border).any():
            usable.add(pair)
        report(i + 1, len(pairs), "reading the images")
    if not usable:
        raise ProbeError(f"None of the {len(pairs)} images has known depth of at most {config.depth[1]:g} m.")
    if len(usable) < len(pairs):
        run.log(f"{len(pairs) - len(usable)} of {len(pairs)} images have no known depth in range and are left out.")
    return usable


def _limit(descriptors: np.ndarray, group: np.ndarray) -> float:
    """The cosine distance within which 99 of 100 training pictures have one of another group.

    descriptors: (n, D) of length 1. group: (n,) number of each picture's group.
    """
    if len(set(group)) == 1:  # then of any other picture
        group = np.arange(len(descriptors))
    similarity = descriptors @ descriptors.T
    similarity[group[:, None] == group] = -1
    return max(1e-6, float(np.percentile(1 - similarity.max(1), UNLIKE)))


def _stamp(path: Path) -> list:
    about = path.stat()
    return [path.name, about.st_size, about.st_mtime_ns]


def _command(config: ProbeConfig) -> str:
    """The command line of the run, with names instead of this machine's folders."""
    names = {name: Path(value).name for name in ("test", "model", "teacher")
             if Path(value := getattr(config, name)).is_absolute()}  # fmt: skip
    return command_line("probe", replace(config, **names), data=[Path(config.data).name])


def summary(metrics: dict[str, dict]) -> str:
    """RMSE, AbsRel and delta1 on each part, as measured and with the median scaled."""
    if not metrics:
        return "No images were held out to measure on."
    return "; ".join(
        f"{name}: RMSE {found['rmse']:.3f} m, AbsRel {found['abs_rel']:.3f}, delta1 {found['delta1']:.3f}, with the "
        f"median scaled {found['median_scaled']['rmse']:.3f} m, {found['median_scaled']['delta1']:.3f}"
        for name, found in metrics.items()
    )
