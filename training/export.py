"""Exports networks in transformers' format with their preprocessing, for `dinoviz.load` and transformers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from dinoviz.atomic_files import writing
from training.config.pretrain import PretrainConfig
from training.runs.run import Run, RunError


def export(
    network: torch.nn.Module,
    folder: Path,
    mean: Sequence[float],
    std: Sequence[float],
    size: int,
    resize: int | None = None,
) -> None:
    """Write config.json, model.safetensors and preprocessor_config.json; an existing folder is replaced.

    size: of the images that the network was trained on, in pixels. resize: short side before the centre crop of that
    size, by default the same. Raises OSError if the folder cannot be written.
    """
    # Not BitImageProcessor, which needs torchvision; both write the same file.
    from transformers import BitImageProcessorPil
    from transformers.image_utils import PILImageResampling

    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    network.save_pretrained(part)
    BitImageProcessorPil(
        size={"shortest_edge": resize or size},
        crop_size={"height": size, "width": size},
        resample=PILImageResampling.BICUBIC,
        image_mean=list(mean),
        image_std=list(std),
    ).save_pretrained(part)
    _put(part, folder)


def _put(part: Path, folder: Path) -> None:
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    part.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def copy_export(run: Run, folder: Path) -> None:
    """Copy the export of a fine-tuning run or a depth probe to another folder, which is replaced.

    Raises RunError if there is no export yet, if it cannot be written, and for a folder with other files.
    """
    made, folder = run.export_folder.resolve(), folder.resolve()
    if not made.is_dir():
        raise RunError(f"{run.name} has no export yet: a run of kind {run.kind!r} writes it at its end.")
    if folder == made:
        return
    _check_replaceable(folder)
    part = folder.with_name(f"{folder.name}.part")
    with writing(f"The export in {folder}", RunError):
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(made, part)
        _put(part, folder)


def export_checkpoint(run: Run, folder: Path, who: str = "teacher") -> tuple[Path, int]:
    """Write the teacher or the student of a run's last checkpoint in transformers' format.

    Returns the folder and the checkpoint's step. Raises RunError if there is no checkpoint, if it cannot be written,
    and for a folder with other files than an export.
    """
    # Not at the top, because fine-tuning does not need its imports.
    from training.dino.distillation import first_backbone

    checkpoint = run.checkpoint()
    if checkpoint is None or who not in checkpoint.keys:
        raise RunError(f"{run.name} has no checkpoint of a {who} yet.")
    _check_replaceable(folder)
    config = PretrainConfig.from_dict(run.config)
    backbone, mean, std = first_backbone(config)
    weights = {
        name.removeprefix("backbone."): tensor
        for name, tensor in checkpoint.tensors(who).items()
        if name.startswith("backbone.")
    }
    backbone.load_state_dict(weights)
    with writing(f"The export in {folder}", RunError):
        export(backbone, folder.resolve(), mean, std, config.global_size)  # "." has no name
    return folder, checkpoint.step


def _check_replaceable(folder: Path) -> None:
    """Raise RunError for a folder with files other than an export, which would be lost."""
    with writing(f"The export in {folder}", RunError):
        others = [each.name for each in folder.iterdir() if not _is_exported(each)] if folder.exists() else []
    if others:
        raise RunError(f"{folder} has other files ({others[0]}), which the export would replace: name another folder.")


def _is_exported(path: Path) -> bool:
    known = ("config.json", "preprocessor_config.json", "probe.safetensors")
    return path.name in known or path.name.startswith("model")
