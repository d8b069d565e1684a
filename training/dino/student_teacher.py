"""Student and teacher: a vision transformer with DINO heads, and the EMA update."""

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
class DINOOutput:
    """Outputs of one pass over the crops. B images, C crops, G of them global, K prototypes, M masked patches.

    cls: (C, B, K), scores of the CLS tokens. tokens: (G, B, D), CLS tokens of the global crops before the head.
    patches: (M, K), scores of the masked patches, or None.
    """

    cls: torch.Tensor
    tokens: torch.Tensor
    patches: torch.Tensor | None


class DINO(nn.Module):
    """A backbone with its heads; student and teacher are two instances."""

    def __init__(self, backbone: nn.Module, config: PretrainConfig):
        super().__init__()
        self.backbone = backbone
        dim = backbone.config.hidden_size
        self.head = DINOHead(dim, config.prototypes, config.head_hidden, config.head_bottleneck)
        own = config.ibot_weight > 0 and config.ibot_head
        self.patch_head = DINOHead(dim, config.prototypes, config.head_hidden, config.head_bottleneck) if own else None
        # ViT interpolates its position embeddings on request only; the other families always do, or use RoPE.
        self._kwargs = {"interpolate_pos_encoding": True} if backbone.config.model_type == "vit" else {}

    def forward(
        self,
        crops: Sequence[torch.Tensor],
        images: int,
        masks: torch.Tensor | None = None,
        hide: bool = False,
    ) -> DINOOutput:
        """Scores of CLS tokens and of masked patches.

        crops: one batch for each size (crops * images, 3, S, S), crop by crop, the global ones first.
        masks: (G * images, h * w) bool, the patches that iBOT compares. hide: mask them in the input, for the student.
        """
        tokens = [
            self._tokens(batch, masks if hide and i == 0 else None, patches=masks is not None and i == 0)
            for i, batch in enumerate(crops)
        ]
        cls = torch.cat([t[:, 0] for t in tokens])  # one pass of the head over the crops of all sizes
        patches = None
        if masks is not None:
            patches = (self.patch_head or self.head)(tokens[0][:, -masks.shape[1] :][masks])
        scores, first = self.head(cls).unflatten(0, (-1, images)), tokens[0][:, 0].unflatten(0, (-1, images))
        return DINOOutput(scores, first, patches)

    def _tokens(self, pixels: torch.Tensor, masks: torch.Tensor | None, patches: bool) -> torch.Tensor:
        extra = {} if masks is None else {"bool_masked_pos": masks}
        with nullcontext() if patches else _cls_alone(self.backbone):
            return self.backbone(pixels, **extra, **self._kwargs).last_hidden_state


@contextmanager
def _cls_alone(backbone: nn.Module) -> Iterator[None]:
    """In this context the last block computes the CLS token only, which is all that the DINO loss needs.

    The patches still are its keys and values: the result is the same with a third of that block's work. No effect in
    families whose blocks are built differently, and in compiled networks.
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

    last.forward = forward  # shadows the method of its class
    try:
        yield
    finally:
        del last.forward


def new_backbone(config: PretrainConfig) -> nn.Module:
    """A vision transformer of this configuration with random weights."""
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
    """Raise ConfigError if random weights would be frozen."""
    if config.freeze_layers and not config.start:
        raise ConfigError(
            f"freeze_layers ({config.freeze_layers}) would freeze random weights: name a model to start from, or "
            "freeze none."
        )


def student_and_teacher(backbone: nn.Module, config: PretrainConfig) -> tuple[DINO, DINO]:
    """The student on this backbone, and the teacher, a copy whose weights get no gradients.

    Raises ConfigError if the backbone does not support the configuration.
    """
    check_frozen(config)
    layers = blocks(backbone)
    if config.freeze_layers > len(layers):
        raise ConfigError(
            f"freeze_layers ({config.freeze_layers}) is at most {len(layers)}, the number of blocks of this model."
        )
    if config.ibot_weight and getattr(getattr(backbone, "embeddings", None), "mask_token", None) is None:
        raise ConfigError(
            f"iBOT needs a mask token, which {backbone.config.model_type!r} models do not have: set ibot_weight to 0."
        )
    if config.drop_path and not hasattr(layers[0], "drop_path"):
        raise ConfigError(f"drop_path is not supported in {backbone.config.model_type!r} models: set it to 0.")
    student = DINO(backbone, config)
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    for i, block in enumerate(layers):
        if config.drop_path:
            block.drop_path = DropPath(config.drop_path * i / max(1, len(layers) - 1))
    student.train().requires_grad_(True)
    if config.freeze_layers:
        backbone.embeddings.requires_grad_(False)
        layers[: config.freeze_layers].requires_grad_(False)
    # The mask token is trained by iBOT only; DDP would wait for the gradient of an unused parameter.
    mask_token = getattr(backbone.embeddings, "mask_token", None)
    if not config.ibot_weight and mask_token is not None:
        mask_token.requires_grad_(False)
    return student, teacher


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, in one fused call."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)
