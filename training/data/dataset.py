"""Images decoded once or on demand, in batches; random splits."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain

import numpy as np
import torch
from PIL import Image

from dinoviz.images import ImageError
from training.data.demo import demo, demo_probes
from training.data.sources import DataError, Pictures, find
from training.engine import distributed

PREFETCHED = 2  # batches per worker, at most

__all__ = ["DataError", "Decoded", "Pictures", "batches", "cores", "demo", "demo_probes", "find", "split"]


def split(pictures: Pictures, share: float, seed: int) -> tuple[Pictures, Pictures]:
    """Split pictures at random. Returns the rest, and `share` (between 0 and 1) of them.

    With labels, the share is taken of each class: at least one picture, never all. The order is kept.
    Raises DataError if a class, or the whole without classes, has a single picture.
    """
    if not 0 < share < 1:
        raise DataError(f"The share to split off must be between 0 and 1, not {share}.")
    random = np.random.default_rng(seed)
    labels = np.zeros(len(pictures), dtype=np.int64) if pictures.labels is None else pictures.labels
    second: list[int] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) == 1:
            what = f"The class {pictures.classes[label]} has" if pictures.classes else "There is"
            raise DataError(f"{what} one image, which cannot be on both sides of a split: add at least one more.")
        count = min(max(1, round(share * len(members))), len(members) - 1)
        second += random.permutation(members)[:count].tolist()
    if not second:
        raise DataError("There are no images to split.")
    chosen = np.zeros(len(pictures), dtype=bool)
    chosen[second] = True
    return pictures.subset(np.flatnonzero(~chosen)), pictures.subset(np.flatnonzero(chosen))


class Decoded(torch.utils.data.Dataset):
    """Pictures resized to squares of uint8, with their aspect ratios.

    If all fit into `memory` bytes they are decoded at once, in threads: `cached` is True, `images` is (N, 3, S, S)
    uint8 and `aspects` (N,) float32, W / H of the upright original; broken ones are removed from `pictures` and
    `labels` and listed in `broken`. Otherwise `cached` is False, `images` and `aspects` are None, and each is decoded
    on demand; a broken one is then replaced by the next readable one, and `batches` adds it to `broken`.

    size: S in pixels; smaller pictures are enlarged.
    max_broken: largest share of broken pictures; one may always be broken, as long as others are left.
    progress: called with the number done and the total while decoding at once.

    Raises DataError if too many are broken, with their number and the first five; its `broken` lists all.
    """

    def __init__(
        self,
        pictures: Pictures,
        size: int,
        *,
        memory: int = 2 * 2**30,
        max_broken: float = 0.03,
        progress: Callable[[int, int], None] | None = None,
    ):
        if not len(pictures):
            raise DataError("There are no images to decode.")
        self.pictures, self.size, self.max_broken = pictures, size, max_broken
        self.broken: list[tuple[str, str]] = []
        self.images: torch.Tensor | None = None
        self.aspects: torch.Tensor | None = None
        self._known: set[int] = set()  # indices of broken pictures found while streaming
        self.cached = len(pictures) * 3 * size * size <= memory
        if self.cached:
            self._decode_all(progress)

    @property
    def labels(self) -> np.ndarray | None:
        """(N,) int64, as in `pictures`."""
        return self.pictures.labels

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, float, int]:
        """Picture i: (3, S, S) uint8, its aspect, and i if it is broken and was replaced by another, else -1."""
        if self.cached:
            return self.images[i], float(self.aspects[i]), -1
        pixels, aspect, broken = self._read(i)
        return torch.from_numpy(pixels), aspect, broken[0][0] if broken else -1

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[torch.Tensor, float, int]]:
        return [self[i] for i in indices]

    def batch(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, S, S) uint8 and their aspects (B,) float32."""
        if self.cached:
            rows = torch.as_tensor(indices, dtype=torch.int64)
            return self.images.index_select(0, rows), self.aspects.index_select(0, rows)
        pixels, aspects, broken = self._stack(indices)
        self._count(broken)
        return pixels, aspects

    def _decode_all(self, progress: Callable[[int, int], None] | None) -> None:
        count = len(self.pictures)
        self.images = torch.empty((count, 3, self.size, self.size), dtype=torch.uint8)
        self.aspects = torch.empty(count, dtype=torch.float32)
        images, aspects, good = self.images.numpy(), self.aspects.numpy(), np.ones(count, dtype=bool)

        def decode(i: int) -> str | None:
            try:
                images[i], aspects[i] = self._decode(i)
            except ImageError as error:
                return _reason(error, self.pictures.names[i])

        with ThreadPoolExecutor(cores()) as pool:
            for start in range(0, count, 1024):  # a queue of millions of tasks would take gigabytes
                indices = range(start, min(start + 1024, count))
                for i, reason in zip(indices, pool.map(decode, indices), strict=True):
                    if reason:
                        good[i] = False
                        self.broken.append((self.pictures.names[i], reason))
                    if progress:
                        progress(i + 1, count)
        self._check_broken(count)
        if self.broken:
            kept = np.flatnonzero(good)
            for to, start in enumerate(kept):  # in place: a second copy of the data may not fit
                if to != start:
                    images[to], aspects[to] = images[start], aspects[start]
            self.images, self.aspects = self.images[: len(kept)], self.aspects[: len(kept)]
            self.pictures = self.pictures.subset(kept)

    def _decode(self, i: int) -> tuple[np.ndarray, float]:
        with self.pictures.opened(
            i, 2 * self.size
        ) as picture:  # a reduction by at least 2 is left to the resampling filter
            return squeezed(picture, self.size), picture.width / picture.height

    def _read(self, i: int) -> tuple[np.ndarray, float, list[tuple[int, str]]]:
        """Picture i or the next readable one, with the indices and reasons of the broken ones before it."""
        broken: list[tuple[int, str]] = []
        for index in range(i, i + len(self.pictures)):
            index %= len(self.pictures)
            try:
                pixels, aspect = self._decode(index)
                return np.ascontiguousarray(pixels), aspect, broken
            except ImageError as error:
                broken.append((index, _reason(error, self.pictures.names[index])))
            if too_many(len(broken), len(self.pictures), self.max_broken):
                break
        raise self._refusal([(self.pictures.names[index], reason) for index, reason in broken], len(self.pictures))

    def _stack(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, str]]]:
        read = [self._read(int(i)) for i in indices]
        pixels = torch.from_numpy(np.stack([pixels for pixels, _, _ in read]))
        aspects = torch.tensor([aspect for _, aspect, _ in read], dtype=torch.float32)
        return pixels, aspects, [each for _, _, broken in read for each in broken]

    def _count(self, broken: Sequence[tuple[int, str]]) -> None:
        for index, reason in broken:
            if index not in self._known:
                self._known.add(index)
                self.broken.append((self.pictures.names[index], reason))
        self._check_broken(len(self.pictures))

    def _check_broken(self, count: int) -> None:
        if too_many(len(self.broken), count, self.max_broken):
            raise self._refusal(self.broken, count)

    def _refusal(self, broken: list[tuple[str, str]], count: int) -> DataError:
        which = "; ".join(f"{name} ({reason})" for name, reason in broken[:5])
        more = f"; and {len(broken) - 5:,} more" if len(broken) > 5 else ""
        return DataError(
            f"{len(broken):,} of {count:,} images cannot be read, too many to continue (max_broken): {which}{more}.",
            broken,
        )


def too_many(broken: int, count: int, share: float) -> bool:
    """Whether more than this share of `count` pictures is broken; one may be, but not all."""
    return broken > max(1, share * count) or broken == count


def squeezed(picture: Image.Image, size: int) -> np.ndarray:
    """A picture (mode RGB) resized to a square, ignoring its aspect: (3, size, size) uint8."""
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def _reason(error: ImageError, name: str) -> str:
    return str(error).removeprefix(f"{name}: ").removesuffix(".")


def cores() -> int:
    """The number of cores that this process may use; in a container fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decoding_workers(workers: int) -> int:
    """The number of worker processes; -1 shares the cores, less one, among the processes of this machine."""
    return workers if workers >= 0 else max(1, (cores() - 1) // distributed.local_processes())


def shared_memory() -> float:
    """Free bytes of the shared memory for batches from workers, as a share of one process; infinity if unbounded."""
    with suppress(OSError):
        return shutil.disk_usage("/dev/shm").free / distributed.local_processes()
    return math.inf


def prefetching(workers: int, batch_bytes: int, free: float) -> tuple[int, int | None]:
    """Workers, and batches that each prefetches, so that these take at most half of the free shared memory.

    Docker's default is 64 MB, beyond which a worker dies. Without workers, the process decodes itself.
    """
    batches = int(min(free / 2 / batch_bytes, PREFETCHED * workers))
    workers = min(workers, batches)
    return (workers, batches // workers) if workers else (0, None)


class _Stream(torch.utils.data.Dataset):
    """Whole batches for a DataLoader. Errors are returned, because raised in a worker they arrive as a traceback."""

    def __init__(self, decoded: Decoded):
        self.decoded = decoded

    def __getitems__(self, indices: Sequence[int]):
        try:
            return self.decoded._stack(indices)
        except DataError as error:
            return str(error), error.broken


def _as_is(batch):
    return batch


def batches(
    decoded: Decoded, order: Sequence[Sequence[int]], *, workers: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields (B, 3, S, S) uint8 and aspects (B,) float32 for each list of indices in `order`.

    The batches do not depend on the number of workers, and no global random state is used.
    workers: processes that decode ahead if `decoded` is not cached; fewer where shared memory is small.
    Raises DataError if too many pictures are broken, or if a worker is killed.
    """
    if decoded.cached:
        yield from map(decoded.batch, order)
        return
    order = iter(order)
    first = next(order, None)
    if first is None:
        return
    workers, prefetch = prefetching(workers, len(first) * 3 * decoded.size**2, shared_memory())
    loader = torch.utils.data.DataLoader(
        _Stream(decoded),
        batch_sampler=chain([first], order),
        num_workers=workers,
        prefetch_factor=prefetch,
        collate_fn=_as_is,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # or the loader would draw a seed from the global one
    )
    for batch in _with_worker_errors(loader):
        if isinstance(batch[0], str):
            raise DataError(*batch)
        pixels, aspects, broken = batch
        decoded._count(broken)
        yield pixels, aspects


def _with_worker_errors(loader: torch.utils.data.DataLoader) -> Iterator:
    """Yield the batches; a worker that was killed becomes a DataError."""
    try:
        yield from loader
    except RuntimeError as error:
        if not re.search("exited unexpectedly|killed by signal", str(error)):
            raise
        raise DataError(
            "The system killed a worker that decodes images, probably for lack of memory: lower workers."
        ) from None
