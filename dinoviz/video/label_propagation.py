"""One step of label propagation: each patch takes labels from similar patches near it in other frames."""

from __future__ import annotations

import torch

# 256 queries and, at the published radius, the 40 x 40 patches around them. 8 and 16 cost the same, whole rows 1.5
# times as much; on busy cores, fewer and larger operations wait less for each other.
TILE = 16


def propagate_labels(
    patches: torch.Tensor, sources: torch.Tensor, labels: torch.Tensor, *, radius: int, top: int, temperature: float
) -> torch.Tensor:
    """Propagate labels from n frames to another.

    The labels of a patch are the mean of those of its `top` most similar patches within `radius` rows and columns, over
    all n frames together, weighted by exp(similarity / temperature). The published code compares all pairs of patches
    and masks the result; here a tile of patches is compared only with its surroundings.

    Args:
        patches: (h, w, D) of this frame, of length 1.
        sources: (n, h, w, D) of the other frames, of length 1.
        labels: (n, h, w, C) of the other frames.
        radius: in patches.
        top: number of patches.
        temperature: of the softmax.

    Returns:
        Labels (h, w, C).
    """
    h, w, _ = patches.shape
    result = labels.new_empty(h, w, labels.shape[-1])
    for first_row in range(0, h, TILE):
        for first_column in range(0, w, TILE):
            rows, columns = slice(first_row, min(h, first_row + TILE)), slice(first_column, min(w, first_column + TILE))
            around = (slice(None), _around(rows, h, radius), _around(columns, w, radius))
            barrier = _barrier(rows, columns, *around[1:], radius).to(patches)
            queries, keys = patches[rows, columns].flatten(0, 1), sources[around].flatten(0, 2)
            similarity = barrier.repeat(1, len(sources)).addmm_(queries, keys.T)
            best, which = similarity.topk(min(top, len(keys)), dim=1)
            weights = torch.softmax(best / temperature, dim=1)
            tile = (weights[..., None] * labels[around].flatten(0, 2)[which]).sum(1)
            result[rows, columns] = tile.view(rows.stop - rows.start, columns.stop - columns.start, -1)
    return result


def _around(tile: slice, size: int, radius: int) -> slice:
    return slice(max(0, tile.start - radius), min(size, tile.stop + radius))


def _barrier(rows: slice, columns: slice, around_rows: slice, around_columns: slice, radius: int) -> torch.Tensor:
    """Mask (queries of the tile, sources of one frame): 0 within the radius, else -infinity."""

    def far(tile: slice, around: slice) -> torch.Tensor:
        return (torch.arange(tile.start, tile.stop)[:, None] - torch.arange(around.start, around.stop)).abs() > radius

    far_rows, far_columns = far(rows, around_rows), far(columns, around_columns)
    outside = (far_rows[:, None, :, None] | far_columns[None, :, None, :]).flatten(2).flatten(0, 1)
    return torch.zeros(outside.shape).masked_fill_(outside, -torch.inf)
