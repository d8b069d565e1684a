"""Depth: what a probe, a small head trained on frozen features, says how far away everything is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from dinoviz import depth_heads
from dinoviz.errors import DinovizError
from dinoviz.features import Features
from dinoviz.files import whole, writing
from dinoviz.images import MAX_RESOLUTION, MIN_RESOLUTION, PatchGrid

ASSETS = Path(__file__).resolve().parents[1] / "assets"
SHIPPED = ASSETS / "depth-embedded.safetensors"  # trained on NYU Depth v2, for the embedded weights; see its card


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
    """The probe in a .safetensors file, or in the run that made it. Raises ProbeError."""
    path = Path(path)
    try:
        with safetensors.safe_open(probe_file(path), "pt") as opened:
            about = json.loads(opened.metadata()["probe"])
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, it is no dictionary
        familiar = weights.pop("familiar", torch.empty(0, 0)).float().numpy()
        with torch.device("meta"):  # a header may say anything: memory is that of the weights there are
            head = depth_heads.make(about)
        head.load_state_dict(
            {name.removeprefix("head."): value.float() if value.is_floating_point() else value
             for name, value in weights.items()}, assign=True,
        )  # fmt: skip
        _check(about, familiar)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError):
        raise ProbeError(f"{path.name} holds no depth probe that can be read.") from None
    return Probe(head.eval().requires_grad_(False), about, familiar, path.name)


def _check(about: dict, familiar: np.ndarray) -> None:
    """Raises ValueError, KeyError or TypeError for a header that `Probe` cannot stand for."""
    near, far = about["depth"]
    layers = [int(layer) for layer in about["layers"]]
    sized = MIN_RESOLUTION <= int(about["resolution"]) <= MAX_RESOLUTION and int(about["upsample"]) > 0
    named = isinstance(about["weights_id"], str) and isinstance(about["backbone"], str)
    known = not familiar.size or (familiar.ndim == 2 and about["familiar_limit"] > 0)
    if not (sized and named and known and layers and min(layers) >= 0 and 0 <= near < far):
        raise ValueError
