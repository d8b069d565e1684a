"""The losses of a depth probe: DINOv2's two (Oquab et al. 2024, its `eval/depth`), and the RMSE in metres."""

from __future__ import annotations

import torch

EPSILON = 1e-3  # metres; keeps logarithms finite, as published
STRIDES = (1, 2, 4, 6)  # of the grids on which gradients are compared, as published
APART = 2  # points of such a grid whose difference is a gradient, as published


def scale_invariant_loss(predicted: torch.Tensor, depth: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """sqrt(Var(g) + 0.15 mean(g)^2) of g = log(predicted) - log(depth) over the valid pixels (DINOv2's SigLoss).

    All (B, H, W). Eigen et al. 2014, equation 4, with the weights of Bhat et al. 2021. 0 without two valid pixels.
    """
    if valid.sum() < 2:
        return 0 * predicted.sum()
    g = _difference(predicted, depth)[valid]
    # The square root of exactly 0 has no gradient.
    return (g.var() + 0.15 * g.mean() ** 2).clamp(min=1e-12).sqrt()


def gradient_loss(predicted: torch.Tensor, depth: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """L1 difference of gradients of log depth on four grids (Li and Snavely 2018, equation 4; DINOv2's GradientLoss).

    All (B, H, W). On each grid, differences of points two apart where both are valid, summed, over the number of valid
    points. DINOv2's code takes them over the first two axes of its tensors (B, 1, H, W), which are not the image axes;
    here they are along rows and columns, as in the paper.
    """
    total = 0 * predicted.sum()
    for stride in STRIDES:
        known = valid[:, ::stride, ::stride]
        g = _difference(predicted[:, ::stride, ::stride], depth[:, ::stride, ::stride]) * known
        down = (g[:, APART:] - g[:, :-APART]).abs() * (known[:, APART:] & known[:, :-APART])
        across = (g[:, :, APART:] - g[:, :, :-APART]).abs() * (known[:, :, APART:] & known[:, :, :-APART])
        total = total + (down.sum() + across.sum()) / known.sum().clamp(min=1)
    return total


def root_mean_squares(predicted: torch.Tensor, depth: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """The RMSE (b,) in metres of those of (B, H, W) pictures that have a valid pixel."""
    count = valid.sum((1, 2))
    squares = ((predicted - depth) ** 2 * valid).sum((1, 2))
    # The square root of exactly 0 has no gradient.
    return (squares[count > 0] / count[count > 0]).clamp(min=1e-12).sqrt()


def _difference(predicted: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
    return (predicted + EPSILON).log() - (depth + EPSILON).log()
