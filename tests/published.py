"""Label propagation as DINO's video evaluation describes it, written plainly: every patch against every patch.

The reference for parity, quality and speed. It shares no code with dinoviz/video/tracking.py.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

LAST_FRAMES, NEIGHBOURHOOD, NEAREST, TEMPERATURE = 7, 12, 5, 0.1


def allowed(h: int, w: int, radius: int = NEIGHBOURHOOD) -> torch.Tensor:
    """(N, N) ones where two patches are at most `radius` rows and columns apart, else zeros."""
    row, column = torch.arange(h * w) // w, torch.arange(h * w) % w
    near_row = (row[:, None] - row[None, :]).abs() <= radius
    near_column = (column[:, None] - column[None, :]).abs() <= radius
    return (near_row & near_column).float()


def step(
    target: torch.Tensor,
    sources: torch.Tensor,
    labels: torch.Tensor,
    near: torch.Tensor,
    *,
    nearest: int = NEAREST,
    temperature: float = TEMPERATURE,
) -> torch.Tensor:
    """target (N, D), sources (n, N, D), labels (n, N, C), near (N, N) -> labels (N, C) of the target."""
    target = target / target.norm(dim=-1, keepdim=True)
    sources = sources / sources.norm(dim=-1, keepdim=True)
    affinity = torch.exp(sources @ target.T / temperature) * near  # (n, source, target)
    affinity = affinity.flatten(0, 1)
    least = affinity.topk(min(nearest, len(affinity)), dim=0).values[-1]
    affinity[affinity < least] = 0
    affinity /= affinity.sum(0)
    return affinity.T @ labels.flatten(0, 1)


def propagate(patches: list[torch.Tensor], first: torch.Tensor) -> list[torch.Tensor]:
    """patches: (h, w, D) of each frame; first: (h, w, C) labels of the first -> labels (h, w, C) of every frame."""
    h, w, _ = patches[0].shape
    near = allowed(h, w).to(patches[0].dtype)
    frames, found = [frame.flatten(0, 1) for frame in patches], [first.flatten(0, 1)]
    for t in range(1, len(frames)):
        used = [0, *range(max(1, t - LAST_FRAMES), t)]
        sources, labels = torch.stack([frames[i] for i in used]), torch.stack([found[i] for i in used])
        found.append(step(frames[t], sources, labels, near))
    return [labels.view(h, w, -1) for labels in found]


def first_labels(mask: np.ndarray, h: int, w: int) -> torch.Tensor:
    """(H, W) label map -> (h, w, C), one-hot, the nearest pixel of each patch."""
    small = np.asarray(Image.fromarray(mask).resize((w, h), Image.Resampling.NEAREST))
    return torch.eye(int(mask.max()) + 1)[torch.from_numpy(small.astype(np.int64))]


def to_mask(labels: torch.Tensor, size: tuple[int, int], patch_size: int) -> np.ndarray:
    """Labels (h, w, C) -> (H, W) uint8: bilinear, each label stretched to [0, 1], the largest, nearest to the size."""
    maps = torch.nn.functional.interpolate(labels.permute(2, 0, 1)[None], scale_factor=patch_size, mode="bilinear")[0]
    for label in maps:
        if label.max() > 0:
            label -= label.min().clone()
            label /= label.max().clone()
    mask = Image.fromarray(maps.argmax(0).numpy().astype(np.uint8))
    return np.asarray(mask.resize(size, Image.Resampling.NEAREST))
