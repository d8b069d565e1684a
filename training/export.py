"""The teacher in transformers' format, with what its pixels must be, so that `dinoviz.load` can open it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch


def export(
    network: torch.nn.Module,
    folder: Path,
    mean: Sequence[float],
    std: Sequence[float],
    size: int,
    resize: int | None = None,
) -> None:
    """Write config.json, model.safetensors and preprocessor_config.json; a folder that is there is replaced whole.

    size: pixels of the images that the network was trained on. resize: what the short side becomes before the centre
    crop of that size; by default the same. Raises OSError where the file system refuses.
    """
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    network.save_pretrained(part)
    preprocessor = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": resize or size},
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
        "do_convert_rgb": True,
        "resample": 3,
    }
    (part / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2), encoding="utf-8")
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    part.replace(folder)
    shutil.rmtree(old, ignore_errors=True)
