"""Linear layers in float32 on a CPU, by oneDNN.

torch gives these products to MKL, which leaves half of AVX-512 unused on processors that are not Intel's. On an AMD
EPYC (Zen 5) oneDNN, which torch carries as well but takes for lower precisions only, computes all three products of a
layer in half the time or less, in the same precision; and a step of DINO is mostly these.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def quick_linear() -> AbstractContextManager:
    """A context in which `F.linear` of float32 on a CPU takes oneDNN, where that is the faster one."""
    return _Quick() if _available() else nullcontext()


@functools.cache
def _available() -> bool:
    # By what the machine is and not by a race: a resumed run must compute what the first one did.
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class _Quick(TorchFunctionMode):
    # A mode and not other modules: models are transformers' own, and are copied, exported and loaded as such.
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear and not kwargs and _fits(*args):
            return _Linear.apply(*args) if len(args) == 3 else _Linear.apply(*args, None)
        return func(*args, **(kwargs or {}))


def _fits(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.dim() > 1
        and x.numel() > 0  # iBOT may have no masked patch
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class _Linear(torch.autograd.Function):
    """x (..., D), weight (E, D), bias (E,) or None -> (..., E)."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        rows, of_x, of_weight, of_bias = gradient.flatten(0, -2), None, None, None
        if ctx.needs_input_grad[0]:
            of_x = _product(gradient, weight.t().contiguous())
        if ctx.needs_input_grad[1]:
            columns = x.flatten(0, -2)
            # The first factor is copied to lie row by row: let that be the smaller one.
            if rows.shape[1] > columns.shape[1]:
                of_weight = _product(columns.t(), rows.t()).t()
            else:
                of_weight = _product(rows.t(), columns.t())
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0)
        return of_x, of_weight, of_bias


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
