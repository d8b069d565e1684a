"""Model folders in transformers' format, opened with care: anybody may have written them.

Only config.json, preprocessor_config.json and .safetensors files inside the folder are read. What config.json says is
checked against bounds and against the headers of the weights before any memory is asked for, and transformers is handed
settings and weights instead of the folder: an index, an adapter or a setting can then name no other file, and no code.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoviz.errors import DinovizError
from dinoviz.json_files import read_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.bin.index.json")

# From the least to the most that a setting may be. The largest network that there is, DINOv3 ViT-7B, has 40 layers of
# 4096 channels and 32 heads, and MLPs of 8192.
BOUNDS = {
    "hidden_size": (1, 8192),
    "num_hidden_layers": (1, 128),
    "num_attention_heads": (1, 256),
    "intermediate_size": (1, 65536),
    "mlp_ratio": (1, 16),
    "patch_size": (1, 64),
    "image_size": (1, 4096),
    "num_channels": (3, 3),
    "num_register_tokens": (0, 256),
    "layer_norm_eps": (0, 1),
    "neck_hidden_sizes": (1, 8192),
    "fusion_hidden_size": (1, 8192),
    "reassemble_factors": (1 / 64, 64),
    "backbone_out_indices": (-128, 128),
    "out_indices": (-128, 128),
    "max_depth": (0, 10_000),  # metres
}
# Beside those that its class declares, what a config.json may set; nothing else of it is handed on.
COMMON = ("id2label", "label2id", "architectures", "out_indices", "out_features", "max_depth")
SPARE = 10_000_000  # weights that files may lack: those that serve training only, or nothing
MOST_WEIGHT = 1e6  # published ones stay below 1e3; products of larger ones leave float32
MOST_MEAN = 1e4  # of pixels; published means and standard deviations are at most 255


class ModelError(DinovizError):
    """A model that cannot be had; the message says which, why, and what there is instead."""


def check_folder(folder: Path) -> list[Path]:
    """The files with a folder's weights. Raises ModelError unless it has a config.json, and safetensors inside it."""
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder} has no config.json: it is not a model folder in transformers' format.")
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder} holds an adapter (adapter_config.json): merge it into the network first, with peft's "
            "merge_and_unload(), and save that."
        )
    if (folder / WEIGHTS).exists():
        names = [WEIGHTS]
    elif (folder / INDEX).exists():
        names = shard_names(folder)
    else:
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickles:
            raise ModelError(
                f"{folder} has its weights only as a pickle ({pickles[0]}), which can run any code when it is opened: "
                "dinoviz loads safetensors only. model.save_pretrained(folder) writes them."
            )
        raise ModelError(f"{folder} has no weights ({WEIGHTS}).")
    return [_inside(folder, name) for name in names]


def shard_names(folder: Path) -> list[str]:
    """The files that a folder's index names. Raises ModelError for any that is no .safetensors file in the folder."""
    named = read_json(_inside(folder, INDEX), ModelError, name=str(folder / INDEX)).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise ModelError(f"{folder / INDEX} does not say which weights are where (weight_map).")
    for name in named.values():
        plain = isinstance(name, str) and name.endswith(".safetensors") and not set(name) & set("/\\\0")
        if not plain:
            raise ModelError(
                f"{folder / INDEX} names {str(name)[:80]!r}; only .safetensors files inside the folder are opened."
            )
    return sorted(set(named.values()))


def _inside(folder: Path, name: str) -> Path:
    """A file of a folder. Raises ModelError if it is none, or a link to what is outside of the folder.

    In the Hub's cache each file is a link to the blobs of its repository, which may be links to those of all of them.
    """
    path, root = folder / name, folder.resolve()
    allowed = [root]
    if root.parent.name == "snapshots" and root.parents[1].name.startswith("models--"):
        allowed += [root.parents[1] / "blobs", root.parents[2] / "blobs"]
    if not any(path.resolve().is_relative_to(each) for each in allowed):
        raise ModelError(f"{path} is a link to a file outside of the folder, which is not followed.")
    if not path.is_file():
        raise ModelError(f"{path} is {'no file' if path.exists() else 'missing'}.")
    return path


def read_settings(folder: Path, name: str) -> dict[str, Any]:
    """What a folder's config.json says, with a model_type. Raises ModelError for one that cannot be read."""
    settings = read_json(_inside(folder, CONFIG), ModelError, name=f"{name}: its {CONFIG}")
    if not isinstance(settings.get("model_type"), str):
        raise ModelError(f"{name}: its {CONFIG} has no model_type; it is not of a model in transformers' format.")
    return settings


def make_config(settings: dict[str, Any], name: str) -> PreTrainedConfig:
    """What `read_settings` returned as transformers' configuration. Raises ModelError for values that cannot be."""
    config = _config(settings, name)
    for each in (config, getattr(config, "backbone_config", None)):
        width, heads = (getattr(each, key, None) for key in ("hidden_size", "num_attention_heads"))
        if width and heads and width % heads:
            raise ModelError(f"{name}: hidden_size {width} is no multiple of num_attention_heads {heads}.")
    return config


def _config(settings: dict[str, Any], name: str) -> PreTrainedConfig:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if settings.get("quantization_config") is not None:
        raise ModelError(f"{name} is quantized, which dinoviz cannot read; take it in float32 or float16.")
    for key, value in settings.items():
        if key in BOUNDS and value is not None:
            _check(name, key, value)
    try:
        kind = CONFIG_MAPPING[settings["model_type"]]
        known = {key: value for key, value in settings.items() if key in kind.__annotations__ or key in COMMON}
        if isinstance(known.get("backbone_config"), dict):
            known["backbone_config"] = _config(known["backbone_config"], name)
        return kind.from_dict(known)
    except ModelError:
        raise
    except Exception as error:  # whatever transformers stumbles over in a config.json that is none
        raise ModelError(f"{name}: its {CONFIG} cannot be used: {first_line(error)}") from None


def _check(name: str, key: str, value: Any) -> None:
    low, high = BOUNDS[key]
    several = value if isinstance(value, list) else [value]
    for number in several:
        if isinstance(number, bool) or not isinstance(number, int | float) or not low <= number <= high:
            raise ModelError(f"{name}: {key} in its {CONFIG} is a number from {low:g} to {high:g}, not {number!r:.40}.")
    if len(several) > 16:
        raise ModelError(f"{name}: {key} in its {CONFIG} has {len(several)} numbers; at most 16 are accepted.")


def load_network(
    network: type[PreTrainedModel],
    config: PreTrainedConfig,
    folder: Path,
    name: str,
    unused: Sequence[str] = (),
    **extra,
) -> PreTrainedModel:
    """A network with the weights in a folder, in float32 on the CPU.

    unused: parts of names of weights that may be missing. extra: arguments of the network beside its config.

    Raises ModelError for weights that `check_folder` refuses, that are not those of the config, missing, NaN or
    infinite, and for more of them than the machine has memory for.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = check_folder(folder)
    try:
        with torch.device("meta"):  # has shapes, but no memory
            planned = sum(tensor.numel() for tensor in network(config, **extra).state_dict().values())
    except Exception as error:  # as in `_config`
        raise ModelError(f"{name}: its {CONFIG} cannot be used: {first_line(error)}") from None
    try:
        _check_size(planned, files, name)
        weights = {key: tensor for file in files for key, tensor in load_file(file).items()}
        model, info = network.from_pretrained(
            None, config=config, state_dict=weights, dtype=torch.float32, output_loading_info=True, **extra
        )
    except ModelError:
        raise
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{name}: its weights cannot be read: {first_line(error)}") from None
    missing = sorted(key for key in info["missing_keys"] if not any(part in key for part in unused))
    if missing:
        raise ModelError(f"{name}: {len(missing)} weights are missing from its files, {missing[0]} for one.")
    for key, tensor in model.state_dict().items():
        # A NaN is the least and the most of what it is among; isfinite() of each would take four times as long.
        if tensor.numel() and not (torch.stack(tensor.aminmax()).float().abs() <= MOST_WEIGHT).all():
            raise ModelError(f"{name}: its weights hold NaN, infinity or more than {MOST_WEIGHT:g}, {key} for one.")
    model.config.name_or_path = os.fspath(folder)
    return model


def _check_size(planned: int, files: Sequence[Path], name: str) -> None:
    """Raises ModelError for more weights than files hold, by their headers, and than fit into memory."""
    _check_memory(sum(file.stat().st_size for file in files), name)  # the headers cannot be read of what is larger
    held = sum(math.prod(shape) for file in files for shape in _shapes(file))
    _check_memory(4 * held, name)
    if planned > held + SPARE:
        raise ModelError(
            f"{name}: its {CONFIG} asks for {planned / 1e6:,.0f} million weights, its files hold {held / 1e6:,.0f}."
        )


def _check_memory(size: int, name: str) -> None:
    import psutil

    memory = psutil.virtual_memory().total
    if size > memory:
        raise ModelError(f"{name}: its weights take {size / 1e9:,.1f} GB; there are {memory / 1e9:,.1f} GB of memory.")


def _shapes(file: Path) -> Iterator[list[int]]:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        for key in opened.keys():  # noqa: SIM118, it is no dictionary
            yield opened.get_slice(key).get_shape()


def check_pass(encode: Callable[[], torch.Tensor], name: str) -> None:
    """Raises ModelError unless a pass over a small picture comes to its end and gives finite numbers."""
    try:
        finite = bool(encode().isfinite().all())
    except Exception as error:  # settings that fit the weights, but not each other, fail anywhere
        raise ModelError(f"{name} cannot encode a picture: {first_line(error)}") from None
    if not finite:
        raise ModelError(f"{name} gives NaN or infinity for a plain grey picture.")


def read_preprocessor(folder: Path) -> dict[str, Any]:
    """What a folder's preprocessor_config.json says; {} where there is none that can be read."""
    try:
        return read_json(_inside(folder, PREPROCESSOR), ModelError)
    except ModelError:
        return {}


def mean_and_std(values: dict[str, Any], scale: float = 1.0) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Of red, green and blue as a preprocessor_config.json says, divided by `scale`; None where it does not say."""
    try:
        mean, std = (tuple(float(value) / scale for value in values[key]) for key in ("image_mean", "image_std"))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    usual = all(abs(value) <= MOST_MEAN for value in (*mean, *std))
    return (mean, std) if len(mean) == len(std) == 3 and min(std) > 0 and usual else None


def first_line(error: Exception) -> str:
    """Of what an error says, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
