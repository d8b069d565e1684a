"""Read model folders in transformers' format from untrusted sources.

Only config.json, preprocessor_config.json and .safetensors files inside the folder are read. The settings of
config.json are checked against bounds and against the headers of the weights before memory is allocated, and
transformers receives settings and weights instead of the folder, so that no index, adapter or setting can refer to
other files or to code.
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

# Smallest and largest accepted value of each setting. The largest published network, DINOv3 ViT-7B, has 40 layers of
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
# Accepted settings beside those that the config class declares; all others are dropped.
COMMON = ("id2label", "label2id", "architectures", "out_indices", "out_features", "max_depth")
SPARE = 10_000_000  # weights that may be missing from the files: those used in training only, or not at all
MOST_WEIGHT = 1e6  # published weights are below 1e3; products of larger ones overflow float32
MOST_MEAN = 1e4  # of pixels; published means and standard deviations are at most 255


class ModelError(DinovizError):
    """A model that cannot be loaded; the message says which, why, and what to use instead."""


def check_folder(folder: Path) -> list[Path]:
    """The weight files of a folder. Raises ModelError unless it has a config.json and safetensors inside the folder."""
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
                f"{folder} has its weights only as a pickle ({pickles[0]}), which can run any code when it is loaded: "
                "dinoviz loads only safetensors, which model.save_pretrained(folder) writes."
            )
        raise ModelError(f"{folder} has no weights ({WEIGHTS}).")
    return [_inside(folder, name) for name in names]


def shard_names(folder: Path) -> list[str]:
    """The files that a folder's index names. Raises ModelError unless all are .safetensors files in the folder."""
    named = read_json(_inside(folder, INDEX), ModelError, name=str(folder / INDEX)).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise ModelError(f"{folder / INDEX} has no weight_map.")
    for name in named.values():
        plain = isinstance(name, str) and name.endswith(".safetensors") and not set(name) & set("/\\\0")
        if not plain:
            raise ModelError(
                f"{folder / INDEX} names {str(name)[:80]!r}: only .safetensors files inside the folder are loaded."
            )
    return sorted(set(named.values()))


def _inside(folder: Path, name: str) -> Path:
    """The path of a file in a folder. Raises ModelError if it is missing, no file, or a link out of the folder.

    In the Hub's cache each file is a link to a blob of its repository, which may be a link to a blob shared by all.
    """
    path, root = folder / name, folder.resolve()
    allowed = [root]
    if root.parent.name == "snapshots" and root.parents[1].name.startswith("models--"):
        allowed += [root.parents[1] / "blobs", root.parents[2] / "blobs"]
    if not any(path.resolve().is_relative_to(each) for each in allowed):
        raise ModelError(f"{path} is a link to a file outside the folder, which is not followed.")
    if not path.is_file():
        raise ModelError(f"{path} is {'not a file' if path.exists() else 'missing'}.")
    return path


def read_settings(folder: Path, name: str) -> dict[str, Any]:
    """The settings in a folder's config.json. Raises ModelError if it cannot be read or has no model_type."""
    settings = read_json(_inside(folder, CONFIG), ModelError, name=f"{name}: its {CONFIG}")
    if not isinstance(settings.get("model_type"), str):
        raise ModelError(f"{name}: its {CONFIG} has no model_type, so it is not a model in transformers' format.")
    return settings


def make_config(settings: dict[str, Any], name: str) -> PreTrainedConfig:
    """The settings from `read_settings` as a transformers config. Raises ModelError for values out of bounds."""
    config = _config(settings, name)
    for each in (config, getattr(config, "backbone_config", None)):
        width, heads = (getattr(each, key, None) for key in ("hidden_size", "num_attention_heads"))
        if width and heads and width % heads:
            raise ModelError(f"{name}: hidden_size {width} is not a multiple of num_attention_heads {heads}.")
    return config


def _config(settings: dict[str, Any], name: str) -> PreTrainedConfig:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if settings.get("quantization_config") is not None:
        raise ModelError(f"{name} is quantized, which dinoviz cannot read: use a float32 or float16 version.")
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
    except Exception as error:  # transformers raises nearly anything on an invalid config.json
        raise ModelError(f"{name}: its {CONFIG} cannot be used: {first_line(error)}") from None


def _check(name: str, key: str, value: Any) -> None:
    low, high = BOUNDS[key]
    several = value if isinstance(value, list) else [value]
    for number in several:
        if isinstance(number, bool) or not isinstance(number, int | float) or not low <= number <= high:
            raise ModelError(
                f"{name}: {key} in its {CONFIG} must be a number from {low:g} to {high:g}, not {number!r:.40}."
            )
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
    """Load a network with the weights in a folder, in float32 on the CPU.

    Args:
        network: its class in transformers.
        config: from `make_config`.
        folder: where the weights are.
        name: of the model, for messages.
        unused: substrings of the names of weights that may be missing.
        extra: arguments of the network beside its config.

    Raises:
        ModelError: for weights that `check_folder` refuses, that do not fit the config, are missing, NaN or infinite,
            or exceed the machine's memory.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = check_folder(folder)
    try:
        with torch.device("meta"):  # shapes without memory
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
        raise ModelError(f"{name}: {len(missing)} weights are missing from its files, for example {missing[0]}.")
    for key, tensor in model.state_dict().items():
        # aminmax propagates NaN; isfinite() on each weight takes four times as long.
        if tensor.numel() and not (torch.stack(tensor.aminmax()).float().abs() <= MOST_WEIGHT).all():
            raise ModelError(
                f"{name}: its weights contain NaN, infinity or values above {MOST_WEIGHT:g}, for example {key}."
            )
    model.config.name_or_path = os.fspath(folder)
    return model


def _check_size(planned: int, files: Sequence[Path], name: str) -> None:
    """Raise ModelError if more weights are planned than the files hold by their headers, or than fit into memory."""
    _check_memory(sum(file.stat().st_size for file in files), name)  # first: headers cannot be read above it
    held = sum(math.prod(shape) for file in files for shape in _shapes(file))
    _check_memory(4 * held, name)
    if planned > held + SPARE:
        raise ModelError(
            f"{name}: its {CONFIG} defines {planned / 1e6:,.0f} million weights, its files hold {held / 1e6:,.0f}."
        )


def _check_memory(size: int, name: str) -> None:
    import psutil

    memory = psutil.virtual_memory().total
    if size > memory:
        raise ModelError(
            f"{name}: its weights take {size / 1e9:,.1f} GB, this machine has {memory / 1e9:,.1f} GB of memory."
        )


def _shapes(file: Path) -> Iterator[list[int]]:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        for key in opened.keys():  # noqa: SIM118, not a dict
            yield opened.get_slice(key).get_shape()


def check_pass(encode: Callable[[], torch.Tensor], name: str) -> None:
    """Raise ModelError unless a pass over a small picture completes with finite numbers."""
    try:
        finite = bool(encode().isfinite().all())
    except Exception as error:  # settings that fit the weights but not each other may fail anywhere
        raise ModelError(f"{name} cannot encode a picture: {first_line(error)}") from None
    if not finite:
        raise ModelError(f"{name} outputs NaN or infinity for a plain grey picture.")


def read_preprocessor(folder: Path) -> dict[str, Any]:
    """The settings in a folder's preprocessor_config.json; {} if it is missing or cannot be read."""
    try:
        return read_json(_inside(folder, PREPROCESSOR), ModelError)
    except ModelError:
        return {}


def mean_and_std(values: dict[str, Any], scale: float = 1.0) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and std of red, green and blue from a preprocessor_config.json, divided by `scale`; None if absent."""
    try:
        mean, std = (tuple(float(value) / scale for value in values[key]) for key in ("image_mean", "image_std"))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    usual = all(abs(value) <= MOST_MEAN for value in (*mean, *std))
    return (mean, std) if len(mean) == len(std) == 3 and min(std) > 0 and usual else None


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
