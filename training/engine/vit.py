"""Blocks, stochastic depth and parameter groups of vision transformers."""

from __future__ import annotations

import torch
from torch import nn


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch for random samples of a batch (Huang et al. 2016).

    transformers' `drop_path_rate` has one rate for all blocks; DINO and DINOv2 raise it linearly over the blocks.
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        return x * x.new_empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(keep).div_(keep)


def blocks(backbone: nn.Module) -> nn.ModuleList:
    """The transformer's blocks, in any family."""
    count = backbone.config.num_hidden_layers
    return next(m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == count)


def depth_of(backbone: nn.Module) -> dict[str, int]:
    """The depth of each parameter: 0 for the embeddings, i + 1 for block i, blocks + 1 for the final norm."""
    layers = blocks(backbone)
    of_id = {id(p): i + 1 for i, block in enumerate(layers) for p in block.parameters()}
    of_id |= {id(p): 0 for p in backbone.embeddings.parameters()}
    return {name: of_id.get(id(p), len(layers) + 1) for name, p in backbone.named_parameters()}


def parameter_groups(model: nn.Module, backbone: nn.Module, layer_decay: float = 1.0) -> list[dict]:
    """Parameter groups of the trained parameters for the optimiser.

    Each group has `lr_scale` = layer_decay ** (blocks + 1 - depth), 1 for heads (Clark et al. 2020; as in DINOv2's
    `get_vit_lr_decay_rate`), and `decays`: False for biases, norms and layer scales, which are those with one axis.
    """
    depths = {
        id(p): depth for (_, p), depth in zip(backbone.named_parameters(), depth_of(backbone).values(), strict=True)
    }
    top = len(blocks(backbone)) + 1
    groups: dict[tuple[float, bool], dict] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        scale = layer_decay ** (top - depths.get(id(parameter), top))
        decays = parameter.dim() > 1
        group = groups.setdefault((scale, decays), {"params": [], "lr_scale": scale, "decays": decays})
        group["params"].append(parameter)
    return list(groups.values())
