"""Heads that read metres off frozen patches: of one or more layers, joined, and their CLS tokens.

The linear head is DINOv2's (Oquab et al. 2024, section 7.4): a linear layer gives each of 256 depths, evenly spaced, a
weight, and the depth is their weighted mean (the "linear" normalisation of AdaBins, Bhat et al. 2021).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

BASE_WEIGHT = 0.1  # of each depth before the layer says anything, as published
HIDDEN = 256  # channels of the textbook's two layers
WIDTH = 96  # channels of the convolutions; three members with 128 were no better in rooms kept back
GROUPS = 8  # that they are normalised in


class Head(nn.Module):
    """What all heads share; how scores come about and what they mean is left to those that are made of it.

    upsample: how much finer than the patches depth is told. members: heads in one, which learn by themselves; their
    scores come one after the other.
    """

    members = 1

    def __init__(self, upsample: int):
        super().__init__()
        self.upsample = upsample

    def prepare(self, mean: torch.Tensor, deviation: torch.Tensor, dropout: float) -> None:
        """Mean and standard deviation (C,) of the patches that it is going to learn from, and what is hidden then."""
        for each in self.modules():
            if isinstance(each, Joined):
                each.mean.copy_(mean)
                each.deviation.copy_(deviation.clamp(min=1e-3))
                each.dropout = dropout

    def scores(self, patches: torch.Tensor, cls: torch.Tensor) -> torch.Tensor:
        """(B, h, w, C) and (B, C) -> (B, K, h, w)."""
        raise NotImplementedError

    def metres(self, scores: torch.Tensor, upsample: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scores (B, K, h, w) -> depth and its spread, each (B, h * u, w * u) in metres."""
        raise NotImplementedError

    def forward(
        self, patches: torch.Tensor, cls: torch.Tensor, upsample: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Patches (B, h, w, C), CLS (B, C) -> depth and its spread, each (B, h * u, w * u) in metres.

        C: channels of all layers together. upsample: u, instead of the head's own; 1 for the raw patch grid.
        The spread is the standard deviation of the depths under their weights; None of a head without bins.
        """
        return self.metres(self.scores(patches, cls), upsample or self.upsample)


class Joined(nn.Module):
    """One linear layer on patches and, if wanted, the CLS token joined to each: (B, h, w, C) -> (B, K, h, w).

    Channels are brought to mean 0 and deviation 1 first, see `Head.prepare`. In training, a share `dropout` of them is
    hidden from a whole picture, so that no few of them decide.
    """

    def __init__(self, channels: int, out: int, cls: bool):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.patch = nn.Linear(channels, out)
        self.cls = nn.Linear(channels, out, bias=False) if cls else None
        self.dropout = 0.0

    def forward(self, patches: torch.Tensor, cls: torch.Tensor) -> torch.Tensor:
        patches, cls = ((tokens - self.mean) / self.deviation for tokens in (patches, cls))
        if self.training and self.dropout:
            kept = F.dropout(torch.ones_like(cls), self.dropout)
            patches, cls = patches * kept[:, None, None], cls * kept
        found = self.patch(patches)
        if self.cls is not None:
            found = found + self.cls(cls)[:, None, None]
        return found.permute(0, 3, 1, 2)


class Bins(Head):
    """A head whose scores weigh depths.

    bins depths from near to far, in metres.
    """

    def __init__(self, bins: int, near: float, far: float, upsample: int):
        super().__init__(upsample)
        self.register_buffer("depths", torch.linspace(near, far, bins))

    def weights(self, scores: torch.Tensor) -> torch.Tensor:
        """Of the depths, (B, bins, h, w), 1 in all."""
        weights = scores.relu() + BASE_WEIGHT
        return weights / weights.sum(1, keepdim=True)

    def metres(self, scores: torch.Tensor, upsample: int) -> tuple[torch.Tensor, torch.Tensor]:
        weights = self.weights(finer(scores, upsample))
        mean = torch.einsum("bkhw,k->bhw", weights, self.depths)
        square = torch.einsum("bkhw,k->bhw", weights, self.depths**2)
        return mean, (square - mean**2).clamp(min=0).sqrt()


class Linear(Bins):
    """The same as one linear layer on patch and CLS joined, and as upsampling before it: both are linear."""

    def __init__(self, channels: int, bins: int, near: float, far: float, upsample: int, cls: bool):
        super().__init__(bins, near, far, upsample)
        self.joined = Joined(channels, bins, cls)

    def scores(self, patches: torch.Tensor, cls: torch.Tensor) -> torch.Tensor:
        return self.joined(patches, cls)


class Mlp(Head):
    """The textbook's: two layers of each patch by itself, and a sigmoid of the farthest depth."""

    def __init__(self, channels: int, bins: int, near: float, far: float, upsample: int, cls: bool):
        super().__init__(upsample)
        self.near, self.far = near, far
        self.joined, self.out = Joined(channels, HIDDEN, cls), nn.Conv2d(HIDDEN, 1, 1)

    def scores(self, patches: torch.Tensor, cls: torch.Tensor) -> torch.Tensor:
        return self.out(F.gelu(self.joined(patches, cls)))

    def metres(self, scores: torch.Tensor, upsample: int) -> tuple[torch.Tensor, None]:
        return (self.far * finer(scores, upsample)[:, 0].sigmoid()).clamp(min=self.near), None


class Conv(Bins):
    """Convolutions on coarser grids before the bins, by several members that learn alone and are averaged.

    The weights of the depths are a softmax; members disagree where they have not seen the like, which the spread shows.
    """

    def __init__(self, channels: int, bins: int, near: float, far: float, upsample: int, cls: bool, members: int):
        super().__init__(bins, near, far, upsample)
        self.members = members
        self.each = nn.ModuleList(Around(channels, bins, cls) for _ in range(members))

    def scores(self, patches: torch.Tensor, cls: torch.Tensor) -> torch.Tensor:
        return torch.cat([member(patches, cls) for member in self.each], 1)

    def weights(self, scores: torch.Tensor) -> torch.Tensor:
        members = scores.shape[1] // len(self.depths)  # one, where a member is asked alone
        return scores.unflatten(1, (members, -1)).softmax(2).mean(1)


class Around(nn.Module):
    """Residual convolutions on the half and the quarter grid, added to each patch: how far it is, its room tells.

    At the patches' own grid, convolutions learnt the training rooms by heart (an RMSE of 0.855 m in other rooms, where
    coarse ones had 0.830). (B, h, w, C) and (B, C) -> (B, bins, h, w).
    """

    def __init__(self, channels: int, bins: int, cls: bool):
        super().__init__()
        self.joined = Joined(channels, WIDTH, cls)
        self.at_half, self.at_quarter = Residual(WIDTH), Residual(WIDTH)
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, WIDTH), nn.GELU(), nn.Conv2d(WIDTH, bins, 1))

    def forward(self, patches: torch.Tensor, cls: torch.Tensor) -> torch.Tensor:
        x = self.joined(patches, cls)
        coarse = halved(x)
        added = self.at_half(coarse)
        added = added + resized(self.at_quarter(halved(coarse + added)), coarse)
        return self.out(x + resized(added, x))


def halved(x: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) -> (B, C, ceil(h / 2), ceil(w / 2)), means."""
    return F.adaptive_avg_pool2d(x, [-(-side // 2) for side in x.shape[2:]])


def resized(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(B, C, ...) -> (B, C, h, w) of another, bilinear."""
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


class Residual(nn.Module):
    """What two convolutions add to x, each after its norm and GELU (He et al. 2016, "full pre-activation")."""

    def __init__(self, width: int):
        super().__init__()
        self.added = nn.Sequential(
            *(nn.GroupNorm(GROUPS, width), nn.GELU(), nn.Conv2d(width, width, 3, padding=1)),
            *(nn.GroupNorm(GROUPS, width), nn.GELU(), nn.Conv2d(width, width, 3, padding=1)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.added(x)


HEADS = {"linear": Linear, "mlp": Mlp, "conv": Conv}


def finer(scores: torch.Tensor, upsample: int) -> torch.Tensor:
    """(B, K, h, w) -> (B, K, h * u, w * u)."""
    if upsample == 1:
        return scores
    return F.interpolate(scores, scale_factor=upsample, mode="bilinear", align_corners=False)


def make(about: dict) -> Head:
    """The head that a probe's header tells of, not yet trained. about["channels"]: of all its layers together."""
    head = HEADS[about["head"]]
    more = {"members": about.get("members", 1)} if head is Conv else {}
    return head(about["channels"], about["bins"], *about["depth"], about["upsample"], about.get("cls", True), **more)
