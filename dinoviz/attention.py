"""Attention maps: rows of softmax(q k^T * scaling), computed on demand from the captured queries and keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dinoviz.errors import DinovizError
from dinoviz.features import Features, LayerTokens
from dinoviz.grid import Patch

# Queries per step where many rows are needed: heads x 256 x N floats stay small at any resolution.
CHUNK = 256


def attention_rows(features: Features, tokens: Sequence[int] | np.ndarray, layer: int = -1) -> np.ndarray:
    """Attention of the given query tokens over all tokens -> (heads, len(tokens), N) float32; each row sums to 1.

    tokens: indices into CLS, registers, patches (row by row). Raises DinovizError if the layer was not captured.
    """
    return _rows(features.tokens(layer), torch.as_tensor(np.asarray(tokens)), features.scaling).numpy()


def cls_attention(features: Features, layer: int = -1) -> np.ndarray:
    """Attention of the CLS token to each patch -> (heads, h, w) float32.

    The maps sum to less than 1: the remainder is attention to CLS itself and the registers.
    Caron et al. 2021 (DINO), section 4.2. Raises DinovizError if the layer was not captured.
    """
    return _patch_maps(features, attention_rows(features, [0], layer)[:, 0])


def patch_attention(features: Features, yx: Patch, layer: int = -1) -> np.ndarray:
    """Attention of the patch in row y and column x to each patch -> (heads, h, w) float32.

    Raises DinovizError if there is no such patch or the layer was not captured.
    """
    y, x = (int(i) for i in yx)
    h, w = features.grid.shape
    if not (0 <= y < h and 0 <= x < w):
        raise DinovizError(f"There is no patch in row {y} and column {x}: the grid is {h} x {w}.")
    token = _first_patch(features) + y * w + x
    return _patch_maps(features, attention_rows(features, [token], layer)[:, 0])


MEAN, ROLLOUT, NORMS = "mean of heads", "rollout of all layers", "patch norms"


def map_names(heads: int) -> list[str]:
    """The names that `named_map` accepts for a model with this many heads."""
    return [MEAN, *(f"head {i + 1}" for i in range(heads)), ROLLOUT, NORMS]


def head_maps(features: Features, yx: Patch | None = None, layer: int = -1) -> np.ndarray:
    """`patch_attention` of the patch `yx`, or `cls_attention` for None -> (heads, h, w). Raises as they do."""
    return cls_attention(features, layer) if yx is None else patch_attention(features, yx, layer)


def named_map(features: Features, name: str, yx: Patch | None = None, layer: int = -1) -> np.ndarray:
    """One map by its name from `map_names` -> (h, w) float32.

    yx: the query patch, or None for the CLS token; not used by the rollout and the norms.
    Raises DinovizError for an unknown name, and as the function of the map does.
    """
    if name == ROLLOUT:
        return rollout(features)
    if name == NORMS:
        return features.tokens(layer).norms
    heads = head_maps(features, yx, layer)
    if name == MEAN:
        return heads.mean(axis=0)
    names = map_names(len(heads))
    if name not in names:
        raise DinovizError(f"There is no map {name!r}: choose one of {', '.join(names)}.")
    return heads[names.index(name) - 1]


def rollout(features: Features, on_chunk: Callable[[int, int], None] | None = None) -> np.ndarray:
    """Attention rollout: the contribution of each patch to the CLS token through all layers -> (h, w) float32.

    Abnar & Zuidema 2020, equation 1: A_l = (mean over heads of attention + identity) / 2, rollout = A_L ... A_1. Only
    the CLS row is computed, as a row vector from the last layer to the first, so no N x N matrix is needed.
    on_chunk: called with (chunks of queries done, chunks); an exception from it aborts the computation.
    Raises DinovizError unless all layers were captured.
    """
    n = features.tokens(-1).key.shape[1]
    chunks = torch.arange(n).split(CHUNK)
    done, total = 0, 1 + (features.layers - 1) * len(chunks)  # the last layer needs the CLS row alone
    row = torch.zeros(n)
    row[0] = 1
    for layer in reversed(range(features.layers)):
        tokens = features.tokens(layer)
        through = torch.zeros(n)
        for queries in chunks:
            if row[queries].any():
                through += row[queries] @ _rows(tokens, queries, features.scaling).mean(dim=0)
                done += 1
                if on_chunk:
                    on_chunk(done, total)
        row = (row + through) / 2
    return _patch_maps(features, row.numpy()[None])[0]


def mass_mask(attention: np.ndarray, mass: float = 0.6) -> np.ndarray:
    """The smallest set of patches that holds a share of a map's sum -> bool, the shape of the map.

    A patch is kept while the patches with less attention hold more than 1 - mass, as in DINO's visualisation.

    Args:
        attention: (h, w), or (..., h, w) for several maps, each cut by itself; not negative.
        mass: share to keep, in (0, 1]; DINO's figures show 0.6.

    Raises:
        DinovizError: for another mass.
    """
    if not 0 < mass <= 1:
        raise DinovizError(f"The attention mass must be above 0 and at most 1, not {mass}.")
    flat = np.asarray(attention, dtype=np.float64).reshape(*attention.shape[:-2], -1)
    order = np.argsort(flat, axis=-1, kind="stable")
    ascending = np.take_along_axis(flat, order, axis=-1)
    total = np.maximum(ascending.sum(axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    # The tolerance keeps rounding from dropping a patch at mass 1.
    kept = np.cumsum(ascending, axis=-1) / total > 1 - mass + 1e-12
    mask = np.empty_like(kept)
    np.put_along_axis(mask, order, kept, axis=-1)
    return mask.reshape(attention.shape)


@dataclass(frozen=True)
class HeadStatistics:
    """Statistics of the heads of one layer, means over query patches. All (heads,) float32.

    entropy: of the attention over all tokens, in bits; at most log2 N.
    distance: mean attention distance, in patches: from the query patch to the others, weighted by the attention to
        them (Dosovitskiy et al. 2021, appendix D.7).
    prefix: share of the attention that goes to CLS and the registers.
    """

    entropy: np.ndarray
    distance: np.ndarray
    prefix: np.ndarray


def head_statistics(features: Features, layer: int = -1, queries: int = 256) -> HeadStatistics:
    """Entropy and mean attention distance of each head, over at most `queries` patches spread evenly over the grid.

    Raises DinovizError if the layer was not captured.
    """
    h, w = features.grid.shape
    first = _first_patch(features)
    patches = torch.from_numpy(np.unique(np.linspace(0, h * w - 1, min(queries, h * w)).round().astype(int)))
    rows = _rows(features.tokens(layer), patches + first, features.scaling)
    on_patches = rows[:, :, first:]
    where = torch.cartesian_prod(torch.arange(h), torch.arange(w)).float()
    distances = torch.cdist(where[patches], where)
    on_all_patches = on_patches.sum(dim=2)
    distance = (on_patches * distances).sum(dim=2) / on_all_patches.clamp_min(1e-12)
    # The small constant keeps 0 log 0 from being NaN.
    entropy = -(rows * (rows + 1e-30).log2()).sum(dim=2)
    return HeadStatistics(entropy.mean(1).numpy(), distance.mean(1).numpy(), (1 - on_all_patches).mean(1).numpy())


def _rows(tokens: LayerTokens, queries: torch.Tensor, scaling: float) -> torch.Tensor:
    """(heads, len(queries), N) float32."""
    query = torch.from_numpy(tokens.query)[:, queries]
    key = torch.from_numpy(tokens.key)
    return torch.softmax(query @ key.transpose(1, 2) * scaling, dim=-1)


def _first_patch(features: Features) -> int:
    return 1 + len(features.registers)


def _patch_maps(features: Features, rows: np.ndarray) -> np.ndarray:
    """(n, N) rows over tokens -> (n, h, w) maps over patches."""
    return rows[:, _first_patch(features) :].reshape(-1, *features.grid.shape)
