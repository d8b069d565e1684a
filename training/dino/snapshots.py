"""Evaluation of the teacher during training: k-NN accuracy on held-out images, snapshots of attention and PCA."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dinoviz import attention, pca, render
from dinoviz.atomic_files import whole
from dinoviz.backbone import Backbone
from training.data.dataset import DataError, Decoded
from training.evaluate import knn, knn_leave_one_out
from training.evaluation.embed import embed_tensor

SHOWN = 256  # long side of a snapshot in pixels
MOST_NEIGHBOURS = 5000  # training images that are used; more would take longer than an epoch


def view(network: torch.nn.Module, name: str, mean, std) -> Backbone:
    """A `Backbone` on a frozen copy of a network that is being trained."""
    device = next(network.parameters()).device
    return Backbone(copy.deepcopy(network), name=name, source="a run in training", device=device, mean=mean, std=std)


class Neighbours:
    """k-NN accuracy of the teacher's CLS token on whole images at the size of the global crops."""

    def __init__(self, train: Decoded, held_out: Decoded, size: int, seed: int):
        """Neighbours are training images if these have the same classes, else the other held-out images."""
        if held_out.labels is None:
            raise DataError("The images for k-NN need classes: use one folder for each class.")
        self.size, self.held_out, self.train = size, held_out, None
        if train.cached and train.labels is not None and train.pictures.classes == held_out.pictures.classes:
            rows = np.random.default_rng(seed).permutation(len(train))[:MOST_NEIGHBOURS]
            self.train, self.rows = train, np.sort(rows)

    def accuracy(self, backbone: Backbone) -> float:
        """Top-1, weighted 20-NN."""
        test = self._embed(backbone, self.held_out, np.arange(len(self.held_out)))
        labels, classes = self.held_out.labels, len(self.held_out.pictures.classes)
        if self.train is None:
            return knn_leave_one_out(test, labels, classes=classes)
        train = self._embed(backbone, self.train, self.rows)
        return knn(train, self.train.labels[self.rows], test, labels, classes=classes)

    def _embed(self, backbone: Backbone, images: Decoded, rows: np.ndarray) -> np.ndarray:
        parts = (
            images.batch(part)[0] for part in np.array_split(rows, -(-len(rows) // 256))
        )  # one in memory at a time
        return np.concatenate([embed_tensor(backbone, part.to(backbone.device), self.size, share=1) for part in parts])


def snapshot(backbone: Backbone, probes: Sequence[Image.Image], resolution: int, folder: Path) -> None:
    """Write attention and PCA of the last layer on the probe images.

    For probe i: attention-i.png (mean over heads) and pca-i.png, both on the raw patch grid, and in arrays.npz
    attention_i (heads, h, w) and pca_i (h, w, 3). All probes share one PCA basis. probe-i.png, the picture itself, is
    beside the folder, for all snapshots.
    """
    folder.mkdir(parents=True, exist_ok=True)
    views = [backbone.encode(probe, resolution) for probe in probes]
    colours = pca.patch_pca(views, components=3, foreground=False)
    arrays = {}
    for i, (probe, features, colour) in enumerate(zip(probes, views, colours, strict=True)):
        heads = attention.cls_attention(features)
        arrays |= {f"attention_{i}": heads, f"pca_{i}": colour}
        shown = render.display_copy(probe, SHOWN, SHOWN)
        if not (itself := folder.parent / f"probe-{i}.png").exists():
            with whole(itself) as part:
                shown.save(part, "PNG")
        for name, values, opacity in (("attention", heads.mean(0), 0.7), ("pca", colour, 1.0)):
            with whole(folder / f"{name}-{i}.png") as part:
                render.map_picture(shown, features.grid, values, opacity=opacity, raw=True).save(part, "PNG")
    with whole(folder / "arrays.npz") as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)
