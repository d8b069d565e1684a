"""Speed, remaining time and memory of a run."""

from __future__ import annotations

import time
from collections import deque

import psutil
import torch

BEAT = 2.0  # seconds between heart beats in status.json
RECENT = 50  # steps that speed and ETA are measured over


class Clock:
    """Times steps: call `got_data` when a batch is ready, `stepped` after the step, `ready` before the next batch."""

    def __init__(self, checkpoint_minutes: float):
        now = time.perf_counter()
        self._checkpoint_seconds = 60 * checkpoint_minutes
        self._last_checkpoint = self._last_beat = self._begun = now
        self._images = 0
        self._steps: deque[tuple[float, float]] = deque(maxlen=RECENT)  # seconds of waiting for data, seconds in all

    def ready(self) -> None:
        self._begun = time.perf_counter()

    def got_data(self) -> None:
        self._got = time.perf_counter()

    def stepped(self, images: int) -> None:
        self._images = images
        self._steps.append((self._got - self._begun, time.perf_counter() - self._begun))

    def speed(self) -> float:
        """Images per second over the recent steps."""
        return self._images * len(self._steps) / sum(total for _, total in self._steps)

    def waiting(self) -> float:
        """The share of the recent steps' time that was spent waiting for data."""
        return sum(waited for waited, _ in self._steps) / sum(total for _, total in self._steps)

    def eta(self, steps: int) -> float:
        """Estimated seconds of this many steps."""
        return steps * sum(total for _, total in self._steps) / len(self._steps)

    def beat_due(self) -> bool:
        """Whether the last heart beat was written BEAT seconds ago or more."""
        return time.perf_counter() - self._last_beat >= BEAT

    def beat_written(self) -> None:
        self._last_beat = time.perf_counter()

    def checkpoint_due(self) -> bool:
        """Whether the last checkpoint was saved `checkpoint_minutes` ago or more."""
        return time.perf_counter() - self._last_checkpoint >= self._checkpoint_seconds

    def checkpoint_saved(self) -> None:
        self._last_checkpoint = time.perf_counter()


def memory_mb(device: torch.device) -> float:
    """The peak memory of the device in MB; on a CPU, the current memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return psutil.Process().memory_info().rss / 1e6
