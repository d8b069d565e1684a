"""Student and teacher: a transformer of transformers' families with DINO's heads on it, and how both are updated."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from training.config.base import ConfigError
from training.config.pretrain import PretrainConfig
from training.dino.heads import DINOHead
from training.engine.vit import DropPath, blocks


@dataclass
class Scores:
    """What one pass over the crops yields. B images, C crops, G of them global, K prototypes, M masked patches.

    cls: (C, B, K). tokens: (G, B, D), the CLS tokens of the global crops before the head. patches: (M, K) or None.
    """

    cls: torch.Tensor
    tokens: torch.Tensor
    patches: torch.Tensor | None


class DINO(nn.Module):
    """A backbone with its heads; student and teacher are two of these."""

    def __init__(self, backbone: nn.Module, config: PretrainConfig):
        super().__init__()
        self.backbone = backbone
        dim = backbone.config.hidden_size
        self.head = DINOHead(dim, config.prototypes, config.head_hidden, config.head_bottleneck)
        own = config.ibot_weight > 0 and config.ibot_head
        self.patch_head = DINOHead(dim, config.prototypes, config.head_hidden, config.head_bottleneck) if own else None
        # Only ViT has to be asked to interpolate its position embeddings; the other families do, or rotate.
        self._kwargs = {"interpolate_pos_encoding": True} if backbone.config.model_type == "vit" else {}

    def forward(
        self,
        crops: Sequence[torch.Tensor],
        images: int,
        masks: torch.Tensor | None = None,
        hide: bool = False,
    ) -> Scores:
        """crops: one batch for each size (crops * images, 3, S, S), crop by crop, the global ones first.

        masks: (G * images, h * w) bool, the patches that iBOT asks for; hide: whether they are masked in the input.
        """
        tokens = [
            self._tokens(batch, masks if hide and i == 0 else None, patches=masks is not None and i == 0)
            for i, batch in enumerate(crops)
        ]
        cls = torch.cat([t[:, 0] for t in tokens])  # one pass of the head over the crops of all sizes
        patches = None
        if masks is not None:
            patches = (self.patch_head or self.head)(tokens[0][:, -masks.shape[1] :][masks])
        return Scores(self.head(cls).unflatten(0, (-1, images)), tokens[0][:, 0].unflatten(0, (-1, images)), patches)

    def _tokens(self, pixels: torch.Tensor, masks: torch.Tensor | None, patches: bool) -> torch.Tensor:
        extra = {} if masks is None else {"bool_masked_pos": masks}
        with nullcontext() if patches else _cls_alone(self.backbone):
            return self.backbone(pixels, **extra, **self._kwargs).last_hidden_state


@contextmanager
def _cls_alone(backbone: nn.Module) -> Iterator[None]:
    """Within it the last block computes what becomes of the CLS token only: all that DINO's own loss asks for.

    The patches are keys and values there, and nothing comes after; two thirds of that block's work are left out, with
    the same result. Where the family's blocks are of another build, or are compiled, nothing changes.
    """
    if backbone.config.model_type not in ("dinov2", "dinov2_with_registers") or torch.compiler.is_compiling():
        yield
        return
    last = blocks(backbone)[-1]

    def forward(hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        attended = last.attention(last.norm1(hidden_states), *args, **kwargs)
        attended = attended if torch.is_tensor(attended) else attended[0]
        x = hidden_states[:, :1] + last.drop_path(last.layer_scale1(attended[:, :1]))
        return x + last.drop_path(last.layer_scale2(last.mlp(last.norm2(x))))

    last.forward = forward  # of this one object, in front of its class's
    try:
        yield
    finally:
        del last.forward


def new_backbone(config: PretrainConfig) -> nn.Module:
    """A transformer with random weights, as the configuration says."""
    from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    shape = {
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "patch_size": config.patch,
        "image_size": config.global_size,
        "layerscale_value": config.layer_scale,
    }
    if config.registers:
        shape["num_register_tokens"] = config.registers
        return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**shape))
    return Dinov2Model(Dinov2Config(**shape))


def check_frozen(config: PretrainConfig) -> None:
    """Raise ConfigError where random weights would be frozen."""
    if config.freeze_layers and not config.start:
        raise ConfigError(
            f"freeze_layers ({config.freeze_layers}) would keep random weights as they are: name a model to start "
            "from, or freeze none."
        )


def student_and_teacher(backbone: nn.Module, config: PretrainConfig) -> tuple[DINO, DINO]:
    """The student on this backbone, and the teacher, which starts as its copy and is never trained.

    Raises ConfigError where the backbone cannot do what the configuration asks for.
    """
    check_frozen(config)
    layers = blocks(backbone)
    if config.freeze_layers > len(layers):
        raise ConfigError(
            f"freeze_layers is at most {len(layers)}, the blocks of this model, not {config.freeze_layers}."
        )
    if config.ibot_weight and getattr(getattr(backbone, "embeddings", None), "mask_token", None) is None:
        raise ConfigError(f"iBOT needs a mask token, which {backbone.config.model_type!r} models do not have.")
    if config.drop_path and not hasattr(layers[0], "drop_path"):
        raise ConfigError(f"drop_path cannot be had in {backbone.config.model_type!r} models.")
    student = DINO(backbone, config)
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    for i, block in enumerate(layers):
        if config.drop_path:
            block.drop_path = DropPath(config.drop_path * i / max(1, len(layers) - 1))
    student.train().requires_grad_(True)
    if config.freeze_layers:
        backbone.embeddings.requires_grad_(False)
        layers[: config.freeze_layers].requires_grad_(False)
    # The mask token learns from masks alone; with DDP a parameter without a gradient would be waited for.
    mask_token = getattr(backbone.embeddings, "mask_token", None)
    if not config.ibot_weight and mask_token is not None:
        mask_token.requires_grad_(False)
    return student, teacher


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, all parameters in one fused call."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)
