"""Compare: one picture through two models, whose grids and channels need not be the same."""

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
# With fewer places where both see foreground, three components fit by accident: then all places count.
FEWEST = 12


@dataclass(frozen=True)
class Agreement:
    """How far the coordinates of two models agree, place by place on their common grid.

    shared: in [0, 1], the share of the variance of one's three coordinates that the other's explain as they lie, up to
        one factor for all three. After an alignment this is Procrustes' 1 - m^2 (Gower 1975).
    correlations: of the three coordinates, each with its counterpart. compared: how many places those are of.
    """

    shared: float
    correlations: tuple[float, ...]
    compared: int


def layer_at(layer: str, layers: int) -> int:
    """The layer, from 0, that is meant in a network of so many: "last", a share of the depth as "2/3", or a number.

    Numbers count from 1. Raises DinovizError for anything else, and for a layer that the network has not.
    """
    if layer == LAST:
        return layers - 1
    above, slash, below = layer.partition("/")
    if not (above.isdecimal() and (below.isdecimal() if slash else not below)):
        raise DinovizError(f"A layer is {LAST!r}, a share of the depth such as '2/3', or a number, not {layer!r}.")
    if slash:
        if not 0 < int(above) <= int(below):
            raise DinovizError(f"A share of the depth is more than 0 and at most 1, not {layer}.")
        return max(1, round(layers * int(above) / int(below))) - 1
    if not 1 <= int(layer) <= layers:
        raise DinovizError(f"There are layers 1 to {layers}, and no layer {layer}.")
    return int(layer) - 1


def common_grid(a: PatchGrid, b: PatchGrid) -> PatchGrid:
    """The coarser of two grids over one picture: what both can tell. Raises DinovizError for two pictures."""
    if a.image_size != b.image_size:
        raise DinovizError(
            f"Two models are compared on one picture, not on one of {a.image_size} and one of {b.image_size} pixels."
        )
    return min(a, b, key=lambda grid: grid.patches)


def on_grid(values: np.ndarray, grid: PatchGrid) -> np.ndarray:
    """A map (h, w) or (h, w, C) of any grid over the same picture -> the mean over each patch of `grid`, float64."""
    h, w = values.shape[:2]
    if (h, w) == grid.shape:
        return values.astype(np.float64)
    cells = grid.at((w, h))  # the other grid's patches are the pixels that are averaged
    maps = values.reshape(h, w, -1)
    means = [cells.to_patches(maps[..., i]) for i in range(maps.shape[2])]
    return np.stack(means, axis=-1).reshape(*grid.shape, *values.shape[2:]).astype(np.float64)


def density(features: Features, name: str = attention.MEAN, layer: int = -1) -> np.ndarray:
    """The CLS token's attention as a multiple of an even spread over the picture -> (h, w) float32.

    On a grid of twice as many patches each gets half of the attention: as it is, it cannot be compared. name: as
    `attention.named_map` knows it. Raises what that raises.
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
    """The patches of two models in one space of colours -> (h, w, 3) of a and of b in [0, 1], background 0; agreement.

    a, b: of one picture. layers: one of each, as in a Python list. foreground: fit and colour what each of the models
    finds to be foreground; the two are fitted to each other where both do.

    "aligned": each model's own principal components, standardised; those of b are turned onto those of a (orthogonal
    Procrustes, Schönemann 1966).
    "joint": the principal components of [a; b], each scaled to a variance of 1 in all, and of each component the
    part of each model, projected on its own loadings of length 1 (consensus PCA: Westerhuis, Kourti & MacGregor 1998).

    A place has the same colour in both if it has the same coordinates: rotated features look the same.
    Raises DinovizError for features of two pictures, an unknown method and layers that were not captured.
    """
    if method not in METHODS:
        raise DinovizError(f"There is no method {method!r}; there are {', '.join(METHODS)}.")
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
        explained=np.full(COMPONENTS, np.nan),  # of one model's features; here there are two
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
    return *shown.colours(range(COMPONENTS)), agreement


def _aligned(fitted: Sequence[pca.PatchPCA], grid: PatchGrid, where: np.ndarray) -> list[np.ndarray]:
    """Standardised coordinates (h, w, 3) of both, the second turned onto the first over the places `where`."""
    coordinates = []
    for fit in fitted:
        deviation = fit.coordinates[0][fit.foreground[0]].astype(np.float64).std(axis=0)
        missing = COMPONENTS - len(deviation)  # of a grid of one or two patches
        coordinates.append(np.pad(fit.coordinates[0] / _or_one(deviation), ((0, 0), (0, 0), (0, missing))))
    onto, turned = (_centred(on_grid(c, grid)[where]) for c in coordinates)
    rotation, _ = orthogonal_procrustes(turned, onto)
    return [coordinates[0], coordinates[1] @ rotation]


def _consensus(patches: Sequence[np.ndarray], common: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Block scores (h, w, 3) of both, from patches (h, w, D) and the same at common places (n, D)."""
    means = [c.mean(axis=0) for c in common]
    spread = [np.sqrt(c.var(axis=0).sum()) for c in common]
    # A model that sees no difference anywhere has no part in it; rounding must not be scaled up to one.
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
    """`linear_cka`, debiased, of all patches of one picture on the common grid -> it, and how many places those are.

    Raises DinovizError for features of two pictures and layers that were not captured.
    """
    grid = common_grid(a.grid, b.grid)
    patches = [on_grid(f.layer(layer), grid).reshape(grid.patches, -1) for f, layer in zip((a, b), layers, strict=True)]
    return linear_cka(*patches, debiased=True), grid.patches


def linear_cka(x: np.ndarray, y: np.ndarray, *, debiased: bool = False) -> float:
    """How alike two sets of features of the same n things are, whatever their rotation and scale: (n, D), (n, D').

    Linear centred kernel alignment (Kornblith et al. 2019, equation 4): 1 where they are the same up to these.
    debiased: by the unbiased estimate of HSIC (Song et al. 2012), which does not call few things with many channels
    alike that have nothing in common; about 0 for those, and a little below by accident. Needs 4 things.
    0 where there is no variation at all, or nothing to tell it from.
    """
    n = len(x)
    lengths = [np.linalg.norm(features) for features in (x, y)]
    x, y = _centred(np.asarray(x, np.float64)), _centred(np.asarray(y, np.float64))
    varies = all(np.linalg.norm(u) > pca.ROUNDING * length for u, length in zip((x, y), lengths, strict=True))
    if not varies or (debiased and n < 4):
        return 0.0

    def hsic(u: np.ndarray, v: np.ndarray) -> float:
        alike = float(np.sum((u.T @ v) ** 2))
        if not debiased:
            return alike
        # Song's estimator leaves out each thing's likeness to itself. The rows of a centred Gram matrix sum to 0, so
        # that without the diagonal they sum to its negative, and no n x n matrix is needed.
        p, q = (u**2).sum(axis=1), (v**2).sum(axis=1)
        return alike - n / (n - 2) * float(p @ q) + float(p.sum() * q.sum()) / ((n - 1) * (n - 2))

    return hsic(x, y) / float(np.sqrt(hsic(x, x) * hsic(y, y)))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks of one shape; 1 where both are empty."""
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 1.0


def _centred(x: np.ndarray) -> np.ndarray:
    return x - x.mean(axis=0)


def _cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Of centred values: their correlation. 0 where one of them does not vary."""
    length = np.linalg.norm(x) * np.linalg.norm(y)
    return float(np.sum(x * y) / length) if length > 0 else 0.0


def _or_one(value):
    return np.where(value > 0, value, 1.0)
