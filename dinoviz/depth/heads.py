"""Heads that predict metric depth from frozen patches and CLS tokens of one or more layers.

The linear head is DINOv2's (Oquab et al. 2024, section 7.4): a linear layer predicts a weight for each of 256 evenly
spaced depths, and the depth is their weighted mean (the "linear" normalisation of AdaBins, Bhat et al. 2021).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

BASE_WEIGHT = 0.1  # added to the weight of each depth, as published
HIDDEN = 256  # hidden channels of the MLP
WIDTH = 96  # channels of the convolutions; three members with 128 were no better in held-out rooms
GROUPS = 8  # of their group normalisation


class Head(nn.Module):
    """Base class of the heads.

    upsample: factor from the patch grid to the grid of the predicted depth. members: heads of an ensemble, which are
    trained independently; their scores are concatenated.
    """

    members = 1

    def __init__(self, upsample: int):
        super().__init__()
        self.upsample = upsample

    def prepare(self, mean: torch.Tensor, deviation: torch.Tensor, dropout: float) -> None:
        """Set mean and standard deviation (C,) of the training patches, and the dropout rate."""
        for each in self.modules():
            if isinstance(each, Joined):
                each.mean.copy_(mean)
                each.deviation.copy_(deviation.clamp(min=1e-3))  # near-constant channels are not amplified
                each.dropout = dropout

    def scores(self, patches: torch.Tensor, cls: torch.Tensor) -> torch.Tensor:
        """Patches (B, h, w, C) and CLS tokens (B, C) -> scores (B, K, h, w)."""
        raise NotImplementedError

    def metres(self, scores: torch.Tensor, upsample: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scores (B, K, h, w) -> depth and its spread, each (B, h * u, w * u) in metres."""
        raise NotImplementedError

    def forward(
        self, patches: torch.Tensor, cls: torch.Tensor, upsample: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Patches (B, h, w, C), CLS (B, C) -> depth and its spread, each (B, h * u, w * u) in metres.

        C: channels of all layers. upsample: u, instead of the head's own; 1 for the raw patch grid.
        The spread is the standard deviation of the depths under their weights; None for a head without bins.
        """
        return self.metres(self.scores(patches, cls), upsample or self.upsample)


class Joined(nn.Module):
    """A linear layer on patches, optionally concatenated with the CLS token: (B, h, w, C) -> (B, K, h, w).

    Channels are standardised first, see `Head.prepare`. In training, `dropout` drops whole channels of a picture.
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
        scores = self.patch(patches)
        if self.cls is not None:
            scores = scores + self.cls(cls)[:, None, None]
        return scores.permute(0, 3, 1, 2)


class Bins(Head):
    """A head whose scores are weights of `bins` depths from near to far, in metres."""

    def __init__(self, bins: int, near: float, far: float, upsample: int):
        super().__init__(upsample)
        self.register_buffer("depths", torch.linspace(near, far, bins))

    def weights(self, scores: torch.Tensor) -> torch.Tensor:
        """Weights of the depths, (B, bins, h, w), which sum to 1."""
        weights = scores.relu() + BASE_WEIGHT
        return weights / weights.sum(1, keepdim=True)

    def metres(self, scores: torch.Tensor, upsample: int) -> tuple[torch.Tensor, torch.Tensor]:
        weights = self.weights(finer(scores, upsample))
        mean = torch.einsum("bkhw,k->bhw", weights, self.depths)
        square = torch.einsum("bkhw,k->bhw", weights, self.depths**2)
        return mean, (square - mean**2).clamp(min=0).sqrt()


class Linear(Bins):
    """One linear layer on patches and CLS token. Upsampling after it equals upsampling before it: both are linear."""

    def __init__(self, channels: int, bins: int, near: float, far: float, upsample: int, cls: bool):
        super().__init__(bins, near, far, upsample)
        self.joined = Joined(channels, bins, cls)

    def scores(self, patches: torch.Tensor, cls: torch.Tensor) -> torch.Tensor:
        return self.joined(patches, cls)


class Mlp(Head):
    """Two layers on each patch, and a sigmoid scaled to the largest depth."""

    def __init__(self, channels: int, bins: int, near: float, far: float, upsample: int, cls: bool):
        super().__init__(upsample)
        self.near, self.far = near, far
        self.joined, self.out = Joined(channels, HIDDEN, cls), nn.Conv2d(HIDDEN, 1, 1)

    def scores(self, patches: torch.Tensor, cls: torch.Tensor) -> torch.Tensor:
        return self.out(F.gelu(self.joined(patches, cls)))

    def metres(self, scores: torch.Tensor, upsample: int) -> tuple[torch.Tensor, None]:
        return (self.far * finer(scores, upsample)[:, 0].sigmoid()).clamp(min=self.near), None


class Conv(Bins):
    """An ensemble of heads with convolutions on coarser grids, whose weights are averaged.

    The weights of the depths are a softmax; members disagree on unfamiliar inputs, which the spread shows.
    """

    def __init__(self, channels: int, bins: int, near: float, far: float, upsample: int, cls: bool, members: int):
        super().__init__(bins, near, far, upsample)
        self.members = members
        self.each = nn.ModuleList(Around(channels, bins, cls) for _ in range(members))

    def scores(self, patches: torch.Tensor, cls: torch.Tensor) -> torch.Tensor:
        return torch.cat([member(patches, cls) for member in self.each], 1)

    def weights(self, scores: torch.Tensor) -> torch.Tensor:
        members = scores.shape[1] // len(self.depths)  # 1 for the scores of a single member
        return scores.unflatten(1, (members, -1)).softmax(2).mean(1)


class Around(nn.Module):
    """Residual convolutions on the half and the quarter grid add context to each patch.

    At the patches' own grid, convolutions overfitted the training rooms (an RMSE of 0.855 m in other rooms, 0.830 on
    coarse grids). (B, h, w, C) and (B, C) -> (B, bins, h, w).
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
    """Average pooling by 2: (B, C, h, w) -> (B, C, ceil(h / 2), ceil(w / 2))."""
    return F.adaptive_avg_pool2d(x, [-(-side // 2) for side in x.shape[2:]])


def resized(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Bilinear resize of (B, C, ...) to the size (h, w) of another tensor."""
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


class Residual(nn.Module):
    """The residual branch of a pre-activation block: norm, GELU, convolution, twice (He et al. 2016)."""

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
    """Bilinear upsampling by u: (B, K, h, w) -> (B, K, h * u, w * u)."""
    if upsample == 1:
        return scores
    return F.interpolate(scores, scale_factor=upsample, mode="bilinear", align_corners=False)


def make(about: dict) -> Head:
    """An untrained head as described by a probe's header; about["channels"] counts all its layers."""
    head = HEADS[about["head"]]
    more = {"members": about.get("members", 1)} if head is Conv else {}
    return head(about["channels"], about["bins"], *about["depth"], about["upsample"], about.get("cls", True), **more)
