"""The precision that a device computes in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def autocast(device: torch.device, precision: str) -> Callable[[], AbstractContextManager]:
    """Returns a function that makes a context for forward passes.

    precision: "float32", "bfloat16", or "auto": bfloat16 where the device multiplies it faster. Weights, losses and
    updates stay float32 in any case.
    """
    if not in_bfloat16(device, precision):
        return nullcontext
    return _bfloat16_on_cpu if device.type == "cpu" else lambda: torch.autocast(device.type, torch.bfloat16)


def in_bfloat16(device: torch.device, precision: str) -> bool:
    """Whether this precision means bfloat16 on this device."""
    return precision == "bfloat16" or (precision == "auto" and _fast_bfloat16(device))


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Without these instructions a CPU computes bfloat16 in float32, and converts to and fro.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@contextmanager
def _bfloat16_on_cpu() -> Iterator[None]:
    # The fused attention's backward pass in bfloat16 is several times slower on a CPU than plain products: a step of
    # a small ViT took 345 ms with it, 266 without, and 535 in float32 (one core of an EPYC with AVX512-BF16).
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield
