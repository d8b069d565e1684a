"""Compare the features of two models on one picture; their grids and channels may differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.linalg import eigh, orthogonal_procrustes

from dinoviz import attention, pca
from dinoviz.errors import DinovizError
from dinoviz.features import Features
from dinoviz.grid import PatchGrid

Method = Literal["aligned", "joint"]
METHODS = ("aligned", "joint")
LAST = "last"
COMPONENTS = 3  # red, green and blue
# With fewer shared foreground patches, three components can be aligned by chance: then all patches are used.
FEWEST = 12


@dataclass(frozen=True)
class Agreement:
    """Agreement of the coordinates of two models, patch by patch on their common grid.

    shared: in [0, 1], the share of the variance of one model's three coordinates that the other's explain without
        further rotation, up to one common scale. After an alignment this is Procrustes' 1 - m^2 (Gower 1975).
    correlations: of each of the three coordinates with its counterpart. compared: number of patches.
    """

    shared: float
    correlations: tuple[float, ...]
    compared: int


def layer_at(layer: str, layers: int) -> int:
    """The index from 0 of a layer given as "last", a share of the depth such as "2/3", or a number from 1.

    layers: number of layers of the network. Raises DinovizError for other text and layers that do not exist.
    """
    if layer == LAST:
        return layers - 1
    above, slash, below = layer.partition("/")
    if not (above.isdecimal() and (below.isdecimal() if slash else not below)):
        raise DinovizError(f"A layer must be {LAST!r}, a share of the depth such as '2/3', or a number, not {layer!r}.")
    if slash:
        if not 0 < int(above) <= int(below):
            raise DinovizError(f"A share of the depth must be above 0 and at most 1, not {layer}.")
        return max(1, round(layers * int(above) / int(below))) - 1
    if not 1 <= int(layer) <= layers:
        raise DinovizError(f"There is no layer {layer}: the model has layers 1 to {layers}.")
    return int(layer) - 1


def common_grid(a: PatchGrid, b: PatchGrid) -> PatchGrid:
    """The coarser of two grids of one picture. Raises DinovizError for pictures of different sizes."""
    if a.image_size != b.image_size:
        raise DinovizError(
            f"Two models must be compared on one picture, not on pictures of {a.image_size} and {b.image_size} pixels."
        )
    return min(a, b, key=lambda grid: grid.patches)


def on_grid(values: np.ndarray, grid: PatchGrid) -> np.ndarray:
    """Average a map (h, w) or (h, w, C) of another grid of the same picture over each patch of `grid`; float64."""
    h, w = values.shape[:2]
    if (h, w) == grid.shape:
        return values.astype(np.float64)
    cells = grid.at((w, h))  # with the patches of the other grid as pixels
    maps = values.reshape(h, w, -1)
    means = [cells.to_patches(maps[..., i]) for i in range(maps.shape[2])]
    return np.stack(means, axis=-1).reshape(*grid.shape, *values.shape[2:]).astype(np.float64)


def density(features: Features, name: str = attention.MEAN, layer: int = -1) -> np.ndarray:
    """The attention of the CLS token as a multiple of uniform attention over the picture -> (h, w) float32.

    This makes grids comparable: with twice as many patches, each gets half of the attention. name: a map of
    `attention.named_map`. Raises as that does.
    """
    values = attention.named_map(features, name, None, layer)
    return values * values.size


def joint_colours(
    a: Features,
    b: Features,
    *,
    method: Method = "aligned",
    layers: Sequence[int] = (-1, -1),
    foreground: bool = True,
) -> tuple[np.ndarray, np.ndarray, Agreement]:
    """Colour the patches of two models in one colour space: equal coordinates get equal colours.

    Rotating the features of a model does not change its colours.

    Args:
        a: features of the picture from one model.
        b: features of the same picture from another model.
        method: "aligned" standardises each model's own principal components and rotates those of b onto those of a
            (orthogonal Procrustes, Schönemann 1966). "joint" takes the principal components of [a; b], each model
            scaled to a total variance of 1, and projects each model on its part of the loadings, scaled to length 1
            (consensus PCA: Westerhuis, Kourti & MacGregor 1998).
        layers: one of each model, numbered as in a Python list.
        foreground: fit and colour each model's foreground only; the two are aligned on patches that both have in it.

    Returns:
        (h, w, 3) of a and of b in [0, 1], background 0, and their agreement.

    Raises:
        DinovizError: for different pictures, an unknown method, and layers that were not captured.
    """
    if method not in METHODS:
        raise DinovizError(f"There is no method {method!r}: choose {' or '.join(METHODS)}.")
    grid = common_grid(a.grid, b.grid)
    both = list(zip((a, b), layers, strict=True))
    fitted = [pca.fit([f], components=COMPONENTS, layer=layer, foreground=foreground) for f, layer in both]
    where = np.logical_and(*(on_grid(fit.foreground[0], grid) >= 0.5 for fit in fitted))
    if where.sum() < FEWEST:
        where[:] = True
    patches = [f.layer(layer) for f, layer in both]
    common = [on_grid(p, grid) for p in patches]
    if method == "aligned":
        coordinates = _aligned(fitted, grid, where)
    else:
        coordinates = _consensus(patches, [c[where] for c in common])
    shown = pca.PatchPCA(
        explained=np.full(COMPONENTS, np.nan),  # not defined for two models
        coordinates=[c.astype(np.float32) for c in coordinates],
        foreground=[fit.foreground[0] for fit in fitted],
        score=[fit.score[0] for fit in fitted],
        threshold=fitted[0].threshold,
        evidence=[fit.evidence[0] for fit in fitted],
    )
    x, y = (_centred(on_grid(c, grid)[where]) for c in coordinates)
    agreement = Agreement(
        shared=max(0.0, _cosine(x, y)) ** 2,
        correlations=tuple(_cosine(x[:, i], y[:, i]) for i in range(COMPONENTS)),
        compared=int(where.sum()),
    )
    colours_a, colours_b = shown.colours(range(COMPONENTS))
    return colours_a, colours_b, agreement


def _aligned(fitted: Sequence[pca.PatchPCA], grid: PatchGrid, where: np.ndarray) -> list[np.ndarray]:
    """Standardised coordinates (h, w, 3) of both, the second rotated onto the first at the patches `where`."""
    coordinates = []
    for fit in fitted:
        deviation = fit.coordinates[0][fit.foreground[0]].astype(np.float64).std(axis=0)
        missing = COMPONENTS - len(deviation)  # of a grid of one or two patches
        coordinates.append(np.pad(fit.coordinates[0] / _or_one(deviation), ((0, 0), (0, 0), (0, missing))))
    onto, turned = (_centred(on_grid(c, grid)[where]) for c in coordinates)
    rotation, _ = orthogonal_procrustes(turned, onto)
    return [coordinates[0], coordinates[1] @ rotation]


def _consensus(patches: Sequence[np.ndarray], common: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Block scores (h, w, 3) of both, from patches (h, w, D) and the same on the common grid (n, D)."""
    means = [c.mean(axis=0) for c in common]
    spread = [np.sqrt(c.var(axis=0).sum()) for c in common]
    # A model with constant features is left out: its rounding errors must not be scaled up.
    scales = [s if s > pca.ROUNDING * np.linalg.norm(m) else np.inf for s, m in zip(spread, means, strict=True)]
    blocks = [(c - mean) / scale for c, mean, scale in zip(common, means, scales, strict=True)]
    stacked = np.concatenate(blocks, axis=1)
    channels = stacked.shape[1]
    _, loadings = eigh(stacked.T @ stacked, subset_by_index=(channels - COMPONENTS, channels - 1))
    loadings = loadings[:, ::-1]
    own = np.split(loadings, [common[0].shape[1]])
    return [
        (p - mean) / scale @ (w / _or_one(np.linalg.norm(w, axis=0)))
        for p, mean, scale, w in zip(patches, means, scales, own, strict=True)
    ]


def patch_cka(a: Features, b: Features, *, layers: Sequence[int] = (-1, -1)) -> tuple[float, int]:
    """Debiased `linear_cka` of all patches of one picture on the common grid -> CKA, and the number of patches.

    Raises DinovizError for different pictures and layers that were not captured.
    """
    grid = common_grid(a.grid, b.grid)
    patches = [on_grid(f.layer(layer), grid).reshape(grid.patches, -1) for f, layer in zip((a, b), layers, strict=True)]
    return linear_cka(*patches, debiased=True), grid.patches


def linear_cka(x: np.ndarray, y: np.ndarray, *, debiased: bool = False) -> float:
    """Linear centred kernel alignment of two sets of features of the same n samples (Kornblith et al. 2019, eq. 4).

    Args:
        x: (n, D).
        y: (n, D').
        debiased: use the unbiased estimator of HSIC (Song et al. 2012). The biased one is high for unrelated features
            of few samples with many channels; this one is then about 0, and may be slightly negative. Needs n >= 4.

    Returns:
        1 if the features are equal up to rotation and scale; 0 if one of them does not vary, or for too few samples.
    """
    n = len(x)
    lengths = [np.linalg.norm(features) for features in (x, y)]
    x, y = _centred(np.asarray(x, np.float64)), _centred(np.asarray(y, np.float64))
    varies = all(np.linalg.norm(u) > pca.ROUNDING * length for u, length in zip((x, y), lengths, strict=True))
    if not varies or (debiased and n < 4):
        return 0.0

    def hsic(u: np.ndarray, v: np.ndarray) -> float:
        biased = float(np.sum((u.T @ v) ** 2))
        if not debiased:
            return biased
        # Song's estimator leaves out the diagonal of the Gram matrices. The rows of a centred Gram matrix sum to 0,
        # so without the diagonal they sum to its negative, and no n x n matrix is needed.
        p, q = (u**2).sum(axis=1), (v**2).sum(axis=1)
        return biased - n / (n - 2) * float(p @ q) + float(p.sum() * q.sum()) / ((n - 1) * (n - 2))

    return hsic(x, y) / float(np.sqrt(hsic(x, x) * hsic(y, y)))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks of one shape; 1 if both are empty."""
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 1.0


def _centred(x: np.ndarray) -> np.ndarray:
    return x - x.mean(axis=0)


def _cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Cosine similarity, which is the correlation of centred values; 0 if one of them does not vary."""
    length = np.linalg.norm(x) * np.linalg.norm(y)
    return float(np.sum(x * y) / length) if length > 0 else 0.0


def _or_one(value):
    return np.where(value > 0, value, 1.0)
