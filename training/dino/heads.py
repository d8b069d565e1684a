"""The projection head of DINO: from a token to scores over prototypes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class DINOHead(nn.Module):
    """3-layer MLP with GELU -> bottleneck, L2-normalised -> weight-normalised prototypes.

    The length of each prototype is fixed at 1 (the published `norm_last_layer`), so a score is a cosine.
    Source: Caron et al. 2021, section 3.1 and appendix C, "Projection head".
    """

    def __init__(self, dim: int, prototypes: int, hidden: int = 2048, bottleneck: int = 256):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for layer in self.mlp[::2]:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        # The direction of each prototype; uniform as in nn.Linear, only its direction counts.
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck).uniform_(-1, 1) * bottleneck**-0.5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(..., D) -> cosines (..., K)."""
        bottleneck = F.normalize(self.mlp(tokens), dim=-1, eps=1e-6)
        return F.linear(bottleneck, F.normalize(self.prototypes, dim=-1))
