"""Heads that read metres off frozen patches: of one or more layers, joined, and their CLS tokens.

The linear head is DINOv2's (Oquab et al. 2024, section 7.4): a linear layer gives each of 256 depths, evenly spaced, a
weight, and the depth is their weighted mean (the "linear" normalisation of AdaBins, Bhat et al. 2021).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

BASE_WEIGHT = 0.1  # of each depth before the layer says anything, as published


class Bins(nn.Module):
    """A head that weighs depths: what gives the weights is left to those that are made of it.

    bins depths from near to far, in metres. upsample: how much finer than the patches depth is told.
    """

    def __init__(self, bins: int, near: float, far: float, upsample: int):
        super().__init__()
        self.upsample = upsample
        self.register_buffer("depths", torch.linspace(near, far, bins))

    def logits(self, patches: torch.Tensor, cls: torch.Tensor) -> torch.Tensor:
        """(B, h, w, C) and (B, C) -> (B, bins, h, w)."""
        raise NotImplementedError

    def forward(
        self, patches: torch.Tensor, cls: torch.Tensor, upsample: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Patches (B, h, w, C), CLS (B, C) -> depth and its spread, each (B, h * u, w * u) in metres.

        C: channels of all layers together. upsample: u, instead of the head's own; 1 for the raw patch grid.
        The spread is the standard deviation of the depths under their weights; None of a head without bins.
        """
        logits, finer = self.logits(patches, cls), upsample or self.upsample
        if finer > 1:
            logits = F.interpolate(logits, scale_factor=finer, mode="bilinear", align_corners=False)
        weights = logits.relu() + BASE_WEIGHT
        total = weights.sum(1)
        mean = torch.einsum("bkhw,k->bhw", weights, self.depths) / total
        square = torch.einsum("bkhw,k->bhw", weights, self.depths**2) / total
        return mean, (square - mean**2).clamp(min=0).sqrt()


class Linear(Bins):
    """The same as one linear layer on patch and CLS joined, and as upsampling before it: both are linear."""

    def __init__(self, channels: int, bins: int, near: float, far: float, upsample: int):
        super().__init__(bins, near, far, upsample)
        self.patch, self.cls = nn.Linear(channels, bins), nn.Linear(channels, bins, bias=False)

    def logits(self, patches: torch.Tensor, cls: torch.Tensor) -> torch.Tensor:
        return (self.patch(patches) + self.cls(cls)[:, None, None]).permute(0, 3, 1, 2)


HEADS = {"linear": Linear}


def make(about: dict) -> nn.Module:
    """The head that a probe's header tells of, not yet trained. about["channels"]: of all its layers together."""
    return HEADS[about["head"]](about["channels"], about["bins"], *about["depth"], about["upsample"])
