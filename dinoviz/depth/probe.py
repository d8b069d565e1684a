"""Depth: what a probe, a small head trained on frozen features, says how far away everything is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from dinoviz.atomic_files import whole, writing
from dinoviz.depth import heads as depth_heads
from dinoviz.errors import DinovizError
from dinoviz.features import Features
from dinoviz.grid import MAX_RESOLUTION, MIN_RESOLUTION, PatchGrid
from dinoviz.json_files import parse_json

ASSETS = Path(__file__).resolve().parents[2] / "assets"
SHIPPED = ASSETS / "depth-embedded.safetensors"  # trained on NYU Depth v2, for the embedded weights; see its card

# What a probe's header may say, from the least to the most; training makes no others.
BOUNDS = {
    "resolution": (MIN_RESOLUTION, MAX_RESOLUTION), "upsample": (1, 4), "bins": (1, 1024), "members": (1, 16),
    "channels": (1, 65536),
}  # fmt: skip
MAX_LAYERS, FARTHEST = 128, 1e6  # of a backbone; metres
MAX_BYTES = 500_000_000  # of a file; the largest head that can be trained, on four layers of a ViT-7B, has 170 MB


class ProbeError(DinovizError):
    """A probe that cannot be trained, opened or used here; the message says why."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A trained head, and what its file says of it.

    about: weights_id and backbone (whose features it reads), head, layers (from 0), depth (nearest, farthest in
        metres), resolution (that it was trained at), data, metrics, familiar_limit and more, see `training.probe`.
    familiar: (n, D) descriptors of its training pictures, of length 1, see `unfamiliarity`; empty where there are none.
    """

    head: nn.Module
    about: dict
    familiar: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    name: str = "probe"

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(self.about["layers"])

    @property
    def range(self) -> tuple[float, float]:
        """The nearest and the farthest that it can say, in metres."""
        near, far = self.about["depth"]
        return near, far

    def check(self, weights_id: str, weights: str) -> None:
        """Raises ProbeError unless it was trained on the features of these weights."""
        if self.about["weights_id"] != weights_id:
            raise ProbeError(
                f"{self.name} was trained on the features of {self.about['backbone']}; those of {weights} mean "
                "something else, and it would tell no depth."
            )


@dataclass(frozen=True, eq=False)
class Depth:
    """What a probe says of one picture.

    patches: (h, w), the depth of the patches that the head read: those of the picture at the resolution that it was
        trained at, where the features are finer. grid: of the features.
    metres: (a, b) float32, finer by the head's upsampling. spread: (a, b), standard deviation of the head's bins in
        metres, or None for a head without.
    unfamiliarity: how far the picture is from the probe's training pictures; above 1 farther than 99 in 100 of
        pictures like them. None where the probe does not know.
    """

    metres: np.ndarray
    spread: np.ndarray | None
    patches: np.ndarray
    unfamiliarity: float | None
    grid: PatchGrid


def look(features: Features, probe: Probe) -> Depth:
    """What a probe says of a picture, from its features alone. Layers of the probe must have been captured.

    Raises ProbeError for another backbone's features, DinovizError for a layer that was not captured.
    """
    probe.check(features.weights_id, features.weights)
    patches, cls = joined(features, probe.layers)
    if patches.shape[-1] != probe.about["channels"]:
        raise ProbeError(f"{probe.name} reads {probe.about['channels']} channels, its layers have {patches.shape[-1]}.")
    patches = _as_trained(patches, features.grid, probe.about["resolution"])
    with torch.inference_mode():
        scores = probe.head.scores(patches, cls)
        metres, spread = probe.head.metres(scores, probe.head.upsample)
        raw, _ = probe.head.metres(scores, 1)
    return Depth(
        metres=metres[0].numpy(),
        spread=None if spread is None else spread[0].numpy(),
        patches=raw[0].numpy(),
        unfamiliarity=unfamiliarity(features, probe),
        grid=features.grid,
    )


def predict(features: Features, probe: Probe) -> np.ndarray:
    """The depth of a picture, (H, W) float32 metres at its own size. Raises as `look` does."""
    return features.grid.resize(look(features, probe).metres, "image")


def joined(features: Features, layers: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """What a head is given: patches (1, h, w, L * D) and CLS tokens (1, L * D) of the layers, joined."""
    patches = np.concatenate([features.layer(layer) for layer in layers], axis=2)
    cls = np.concatenate([features.layer_cls(layer) for layer in layers])
    return torch.from_numpy(patches)[None], torch.from_numpy(cls)[None]


def _as_trained(patches: torch.Tensor, grid: PatchGrid, resolution: int) -> torch.Tensor:
    """Patches (1, h, w, C), averaged to as many as the picture has at the resolution that the head was trained at.

    Heads look around a patch and have seen rooms at one size only: one trained at 336 px was wrong by 0.99 m in other
    rooms at that size, at 476 px by 1.11 m, and with its patches averaged to those of 336 px by 1.04 m.
    """
    shape = PatchGrid.fit(grid.image_size, resolution, grid.patch_size).shape
    if shape[0] >= grid.shape[0] and shape[1] >= grid.shape[1]:
        return patches
    shape = tuple(map(min, shape, grid.shape))
    return F.adaptive_avg_pool2d(patches.permute(0, 3, 1, 2), shape).permute(0, 2, 3, 1)


def descriptor(features: Features, layers: Sequence[int]) -> np.ndarray:
    """(D,) of length 1: the mean patch of the last layer but one of a probe's, by which pictures are told alike.

    With layers 6, 9 and 12, layer 9 told NYU Depth's rooms from 137 other pictures best (AUROC 0.996, layer 12 0.936).
    """
    mean = features.layer(descriptor_layer(layers)).mean(axis=(0, 1))
    return mean / np.linalg.norm(mean)


def descriptor_layer(layers: Sequence[int]) -> int:
    """Which of a probe's layers, in their order, the descriptor is of."""
    return layers[-2] if len(layers) > 1 else layers[-1]


def unfamiliarity(features: Features, probe: Probe) -> float | None:
    """Cosine distance to the nearest training picture, as a multiple of the probe's `familiar_limit`."""
    if not len(probe.familiar):
        return None
    nearest = 1 - float((probe.familiar @ descriptor(features, probe.layers)).max())
    return nearest / probe.about["familiar_limit"]


def save_probe(path: str | Path, head: nn.Module, about: dict, familiar: np.ndarray | None = None) -> None:
    """Write a probe as safetensors in half precision with a JSON header, whole or not at all. Raises ProbeError."""
    learnt = {name for name, _ in head.named_parameters()}
    weights = {
        f"head.{name}": (value.half() if name in learnt else value).cpu().contiguous()
        for name, value in head.state_dict().items()
    }
    if familiar is not None and len(familiar):
        weights["familiar"] = torch.from_numpy(familiar).half()
    path = Path(path)
    with writing(path, ProbeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as part:
            safetensors.torch.save_file(weights, part, metadata={"probe": json.dumps(about)})


def probe_file(path: str | Path) -> Path:
    """The file itself, or the one that a run leaves in its folder."""
    path = Path(path)
    return path / "export" / "probe.safetensors" if path.is_dir() else path


def open_probe(path: str | Path) -> Probe:
    """The probe in a .safetensors file, or in the run that made it.

    Raises ProbeError for what is no probe, a header whose numbers cannot be, and weights that are not those of it.
    """
    path = Path(path)
    no_probe = f"{path.name} holds no depth probe that can be read"
    try:
        about, weights = _read(probe_file(path))
        check_about(about)
        familiar = weights.pop("familiar", torch.empty(0, 0)).float().numpy()
        _check_familiar(about, familiar)
        with torch.device("meta"):  # a header may say anything: memory is that of the weights there are
            head = depth_heads.make(about)
        floats = {name.removeprefix("head."): value.float() for name, value in weights.items()}
        head.load_state_dict(floats, assign=True)
        head.eval().requires_grad_(False)
        with torch.inference_mode():
            metres, _ = head(torch.zeros(1, 2, 2, about["channels"]), torch.zeros(1, about["channels"]))
        if not (metres.isfinite().all() and metres.min() >= 0 and all(map(_is_finite, floats.values()))):
            raise ProbeError("its weights are no numbers, or give no distance")
    except ProbeError as error:
        raise ProbeError(f"{no_probe}: {error}.") from None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError):
        raise ProbeError(f"{no_probe}.") from None
    return Probe(head, about, familiar, path.name)


def _read(file: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """The header and the weights of a file. Raises what safetensors raises, and ProbeError."""
    if not file.is_file():
        raise ProbeError("there is no such file")
    if (size := file.stat().st_size) > MAX_BYTES:
        raise ProbeError(f"it has {size / 1e6:,.0f} MB, a probe at most {MAX_BYTES / 1e6:g} MB")
    with safetensors.safe_open(file, "pt") as opened:
        # A measurement may be infinite, what the probe is made from may not: `check_about` looks at that.
        about = parse_json(opened.metadata()["probe"], "its header", finite=False)
        return about, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, it is no dictionary


def check_about(about: dict) -> None:
    """Raises ProbeError, half a sentence, for a header with values that `depth_heads.make` and `Probe` cannot use."""
    for name, (low, high) in BOUNDS.items():
        _check_number(name, about.get(name, 1 if name == "members" else None), low, high, int)
    if about.get("head") not in depth_heads.HEADS:
        raise ProbeError(f"head is one of {', '.join(depth_heads.HEADS)}, not {about.get('head')!r:.40}")
    layers, metres = about.get("layers"), about.get("depth")
    if not isinstance(layers, list) or not 1 <= len(layers) <= MAX_LAYERS:
        raise ProbeError(f"layers is a list of 1 to {MAX_LAYERS} numbers")
    for layer in layers:
        _check_number("layers", layer, 0, MAX_LAYERS - 1, int)
    if not isinstance(metres, list) or len(metres) != 2:
        raise ProbeError("depth is a nearest and a farthest distance")
    for value in metres:
        _check_number("depth", value, 0, FARTHEST, int | float)
    if not metres[0] < metres[1]:
        raise ProbeError(f"depth has the nearest first, not {metres[0]:g} and {metres[1]:g} m")
    if not isinstance(about.get("weights_id"), str) or not isinstance(about.get("backbone"), str):
        raise ProbeError("it does not say whose features it reads (weights_id, backbone)")
    told = [about.get(name, {}) for name in ("data", "metrics")]
    if not all(isinstance(each, dict) for each in (*told, *(told[1].values() if isinstance(told[1], dict) else ()))):
        raise ProbeError("data and metrics are named values")
    if not all(isinstance(part.get("rmse", 0.0), int | float) for part in told[1].values()):
        raise ProbeError("an error in metrics is no number")


def _check_number(name: str, value: object, low: float, high: float, kind: type | UnionType) -> None:
    if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
        what = "a whole number" if kind is int else "a number"
        raise ProbeError(f"{name} is {what} from {low:g} to {high:g}, not {value!r:.40}")


def _check_familiar(about: dict, familiar: np.ndarray) -> None:
    if not familiar.size:
        return
    _check_number("familiar_limit", about.get("familiar_limit"), 1e-9, 2, int | float)  # of a cosine distance
    if familiar.ndim != 2 or familiar.shape[1] * len(about["layers"]) != about["channels"]:
        raise ProbeError("what it remembers of its training pictures is not of its layers")
    if not np.isfinite(familiar).all():
        raise ProbeError("what it remembers of its training pictures are no numbers")


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(tensor.isfinite().all())
