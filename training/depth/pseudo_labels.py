"""Pseudo-labels: a teacher, a published head or another probe, predicts the depth that a probe is trained on.

The teacher may have any backbone. Its predictions are written once, as an ordinary RGB-D folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import dinoviz
from dinoviz import depth, hub, models
from dinoviz.atomic_files import whole, writing
from dinoviz.backbone import Backbone
from dinoviz.depth import dpt as published_depth
from dinoviz.depth.probe import ProbeError
from dinoviz.errors import DinovizError
from dinoviz.images import ImageError, find_images, open_image
from dinoviz.json_files import read_json
from dinoviz.models import ModelError
from training import runs
from training.config.tasks import ProbeConfig
from training.depth.rgbd import Pair
from training.depth.unpack import distinct
from training.engine.progress import Progress
from training.runs.run import Run, RunError

SHORT_SIDE = 518  # pixels to which pictures are reduced: the app's resolution, more than probes are trained at
MAX_BROKEN = 0.03  # largest share of unreadable pictures; one is always allowed


class TeacherError(DinovizError):
    """A teacher that cannot be loaded, or pictures whose depth it cannot predict; the message says why."""


@dataclass(frozen=True, eq=False)
class Teacher:
    """A model that predicts depth.

    name: for display. source: a description, part of a sentence.
    range: smallest and largest depth that it predicts, in metres.
    predict: an RGB picture -> (H, W) float32 metres at its own size.
    """

    name: str
    source: str
    range: tuple[float, float]
    predict: Callable[[Image.Image], np.ndarray]

    def __str__(self) -> str:
        return f"{self.name}, {self.source}"


def open_teacher(name: str, device: str | torch.device | None = None) -> Teacher:
    """Load a teacher by name.

    name: a published head (`published_depth.PUBLISHED`), another Hub id of its kind, a folder in transformers' format,
        or a depth probe: its file, its run's folder or its run's name.

    Raises TeacherError for another name, ModelError or ProbeError if it cannot be loaded.
    """
    if name not in published_depth.PUBLISHED:
        probe = _probe_path(name)
        if probe is not None:
            return _probe_teacher(probe, device)
        if not name or (name.count("/") != 1 and not hub.is_folder(Path(name).expanduser())):
            raise TeacherError(
                f"There is no teacher {name!r}. A teacher is a published head, {', '.join(published_depth.PUBLISHED)}, "
                "its folder, or a depth probe, by its file or run."
            )
    head = published_depth.load(name, device)
    # A source can be a folder of this machine, which must not be published.
    source = head.source if name in published_depth.PUBLISHED else f"a DPT head on DINOv2, {head.trained}"
    # At the size that it was trained at, on which metric depth depends.
    return Teacher(head.name, source, head.range, lambda picture: head.predict(picture, head.trained.short_side))


def _probe_path(name: str) -> Path | None:
    """The path of the depth probe of this name, or None. Raises ProbeError for a run without one."""
    path = Path(name).expanduser()
    with suppress(RunError):
        run = Run.open(name)
        if not depth.probe_file(run.folder).is_file():
            raise ProbeError(f"The run {run.name} has no finished depth probe.")
        return run.folder
    with suppress(OSError):  # a name that no file system takes
        if depth.probe_file(path).is_file():
            return path
    return None


def _probe_teacher(path: Path, device: str | torch.device | None) -> Teacher:
    probe = depth.open_probe(path)
    backbone = _backbone(probe, path, device)

    def predict(picture: Image.Image) -> np.ndarray:
        return depth.predict(backbone.encode(picture, probe.about["resolution"], probe.layers), probe)

    data = probe.about.get("data", {})
    of = f" with pseudo-labels of {data['teacher']}" if "teacher" in data else ""
    on = f", trained on {data['folder']}" if "folder" in data else ""
    return Teacher(probe.name, f"a depth probe on {probe.about['backbone']}{on}{of}", probe.range, predict)


def _backbone(probe: depth.Probe, path: Path, device: str | torch.device | None) -> Backbone:
    """The backbone of a probe: the model of its run, the run of the header's name, or another model of that name."""
    name, tried, reason = probe.about["backbone"], [], ""
    with suppress(RunError, KeyError):
        tried.append(Run(path).config["model"])
    if name not in models.KNOWN and (runs.root() / name).is_dir():
        tried.append(str(runs.root() / name))
    for each in dict.fromkeys([*tried, name]):
        try:
            backbone = dinoviz.load(each, device=device)
        except ModelError as error:
            reason = reason or str(error)
            continue
        if backbone.weights_id == probe.about["weights_id"]:
            return backbone
        reason = f"{each} has other weights."
    raise TeacherError(f"The teacher {probe.name} needs the features of {name}, which cannot be loaded: {reason}")


def with_pseudo_labels(config: ProbeConfig, folder: Path, progress: Progress | None = None) -> tuple[ProbeConfig, dict]:
    """Predict the depth of the pictures in `config.data` by `config.teacher` and write an RGB-D folder.

    Depth that the folder has already is not predicted again.

    Args:
        config: of the run, with a teacher.
        folder: for the RGB-D folder.
        progress: see `pairs_from_teacher`.

    Returns:
        The configuration to train with, whose data is the folder, whose depth is the teacher's range and whose crop is
        "none", because a teacher predicts the whole picture; and a description of the data: teacher, left_out.

    Raises:
        TeacherError: for data that has depth, and as `open_teacher` and `pairs_from_teacher`.
    """
    if (Path(config.data) / "depth").is_dir():
        raise TeacherError(f"{config.data} has a folder depth: omit --teacher, or remove that folder.")
    images = find_images([config.data])
    images = images[: config.limit] if config.limit else images
    about = _about(folder)
    if about.get("asked") != config.teacher or about.get("images") != len(images) or "left_out" not in about:
        teacher = open_teacher(config.teacher, config.device or None)
        left_out = len(images) - len(pairs_from_teacher(images, teacher, folder, progress))
        about = {
            **_about(folder), "asked": config.teacher, "images": len(images), "range": teacher.range,
            "left_out": left_out,
        }  # fmt: skip
        _write_about(folder, about)
    return (
        replace(config, data=str(folder), crop="none", depth=tuple(about["range"])),
        {"teacher": about["teacher"], "left_out": about["left_out"]},
    )


def pairs_from_teacher(
    images: Sequence[str | os.PathLike],
    teacher: Teacher,
    folder: Path,
    progress: Progress | None = None,
    *,
    short_side: int = SHORT_SIDE,
) -> list[Pair]:
    """Predict the depth of pictures with a teacher. Returns the pairs in order, without unreadable pictures.

    folder: for rgb/NAME.png, depth/NAME.npy in metres and meta.json with the teacher's name. Existing files are kept,
        so that work that ended early continues.
    progress: called with (done, of, what); it may raise to end the work.
    short_side: larger pictures are first reduced to this short side.

    Raises TeacherError if too many pictures cannot be read, for the folder of another teacher, and for a full disk.
    """
    before = _about(folder).get("teacher")
    if before not in (None, str(teacher)):
        raise TeacherError(f"The depth in {folder} was predicted by another teacher, {before}.")
    allowed = min(max(1, int(MAX_BROKEN * len(images))), len(images) - 1)
    pairs, broken = [], []
    with writing(folder, TeacherError):
        (folder / "rgb").mkdir(parents=True, exist_ok=True)
        (folder / "depth").mkdir(exist_ok=True)
    _write_about(folder, {**_about(folder), "teacher": str(teacher)})
    for i, (image, name) in enumerate(zip(images, distinct(Path(image).stem for image in images), strict=True)):
        pair = Pair(folder / "rgb" / f"{name}.png", folder / "depth" / f"{name}.npy")
        try:
            if not pair.depth.is_file():
                _predict(teacher, image, pair, short_side)
            pairs.append(pair)
        except ImageError as error:
            broken.append(str(error))
            if len(broken) > allowed:
                raise TeacherError(
                    f"Of the first {i + 1} of {len(images)} images {len(broken)} cannot be read, which is too many; "
                    f"{broken[0]}"
                ) from None
        if progress is not None:
            progress(i + 1, len(images), "predicting depth")
    return pairs


def _predict(teacher: Teacher, image: str | os.PathLike, pair: Pair, short_side: int) -> None:
    """Predict and write a pair; the depth last, so that its file shows that both exist."""
    picture = open_image(image)
    if min(picture.size) > short_side:
        scale = short_side / min(picture.size)
        picture = picture.resize(tuple(round(side * scale) for side in picture.size), Image.Resampling.BICUBIC)
    metres = teacher.predict(picture)
    with writing(pair.image.parent, TeacherError), whole(pair.image) as part:
        picture.save(part, format="PNG", compress_level=1)
    with writing(pair.depth.parent, TeacherError), whole(pair.depth) as part, part.open("wb") as file:
        np.save(file, metres.astype(np.float16))  # precise to 0.05 %, far better than any teacher


def _about(folder: Path) -> dict:
    try:
        return read_json(folder / "meta.json", TeacherError)
    except TeacherError:
        return {}


def _write_about(folder: Path, about: dict) -> None:
    with writing(folder, TeacherError), whole(folder / "meta.json") as part:
        part.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
