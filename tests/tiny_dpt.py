"""A DPT depth head on a DINOv2 backbone, tiny and random, in a folder as transformers saves it."""

import shutil
from pathlib import Path

import torch
from huggingface_hub import constants
from transformers import Dinov2Config, DPTConfig, DPTForDepthEstimation
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil


def processor() -> DPTImageProcessorPil:
    """What transformers' convert_dinov2_depth_to_hf.py saves beside the published heads."""
    return DPTImageProcessorPil(
        do_resize=False,
        do_rescale=False,
        do_pad=True,
        size_divisor=14,
        do_normalize=True,
        image_mean=(123.675, 116.28, 103.53),
        image_std=(58.395, 57.12, 57.375),
    )


def save(folder: Path, **settings) -> Path:
    """The folder, with config, weights and processor; depths around 3 m that depend on the picture."""
    backbone = Dinov2Config(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=3, mlp_ratio=2, patch_size=14, image_size=70,
        out_indices=[1, 2, 3, 4], apply_layernorm=False, reshape_hidden_states=False,
    )  # fmt: skip
    config = DPTConfig(
        backbone_config=backbone, neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16,
        use_bias_in_fusion_residual=False, **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    model = DPTForDepthEstimation(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # the usual 0.02 would leave next to nothing of the picture
                parameter.normal_(std=parameter[0].numel() ** -0.5)
        model.head.head[4].bias.fill_(3)
    model.save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


def in_the_hubs_cache(monkeypatch, folder: Path, name: str, cache: Path) -> Path:
    """Have the Hub's cache be a new one that holds what is in the folder under a name; returns where its files are."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    commit = "1" * 40
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return repository / "snapshots" / commit
