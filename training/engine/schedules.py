"""Schedules of learning rate, weight decay, teacher momentum and teacher temperature."""

from __future__ import annotations

import math


def cosine(step: int, steps: int, start: float, end: float, warmup: int = 0, warmup_start: float = 0.0) -> float:
    """Cosine schedule from `start` to `end` after a linear warm-up to `start`.

    step counts from 0 to steps - 1. The last warm-up step reaches `start`; `end` would be reached at step `steps`.
    Source: Loshchilov and Hutter 2017, equation 5; DINO's `cosine_scheduler`, value for value.
    """
    warmup = min(warmup, steps)
    if step < warmup:
        return linear(step, warmup - 1, warmup_start, start)
    done = (step - warmup) / max(1, steps - warmup)
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * min(1.0, done)))


def linear(step: int, steps: int, start: float, end: float) -> float:
    """Linear schedule from `start` at step 0 to `end` at step `steps`, constant after it."""
    return start + (end - start) * min(1.0, step / steps) if steps > 0 else (end if step > 0 else start)


def scaled_lr(lr: float, batch: int) -> float:
    """The linear scaling rule of the learning rate; `lr` is for 256 images (Goyal et al. 2017; DINO, section 3.2)."""
    return lr * batch / 256
