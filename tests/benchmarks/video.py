"""Following a mask through a video against the published algorithm, written plainly, on the same weights and frames.

python -m tests.benchmarks.video [RESOLUTION]

Quality: mean J (region) and F (boundary) of DAVIS over the sequences under $DINOVIZ_DATA/davis or
../shared/data/davis beside the checkout, the first frame, whose mask is given, left out. Speed: one process, the ways
take turns, medians of one frame with the full context. Memory: a fresh process for each length of video, its peak
resident size. Weights: embedded. Some ten minutes at 392 px, the default, on two cores.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

import dinoviz
from dinoviz import video
from dinoviz.features import Features, part_layer
from dinoviz.grid import PatchGrid
from dinoviz.images import open_image
from dinoviz.video.label_propagation import propagate_labels
from tests import published
from tests.benchmarks.encode import _peak
from tests.benchmarks.pca_stability import data_folder

RESOLUTION = 392
ROUNDS = 7
LENGTHS = (30, 120)
# DAVIS (Perazzi et al. 2016): contours match within this share of the picture's diagonal.
TOLERANCE = 0.008


def region(found: np.ndarray, true: np.ndarray) -> float:
    """J: intersection over union of two masks (H, W) bool; 1 where both are empty."""
    union = (found | true).sum()
    return float((found & true).sum() / union) if union else 1.0


def boundary(found: np.ndarray, true: np.ndarray) -> float:
    """F: harmonic mean of the shares of each contour that lie near the other."""
    reach = math.ceil(TOLERANCE * math.hypot(*true.shape))
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    disk = (x * x + y * y <= reach * reach).astype(np.uint8)
    ours, theirs = contour(found), contour(true)
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())
    precision = (ours & (cv2.dilate(theirs.astype(np.uint8), disk) > 0)).sum() / ours.sum()
    recall = (theirs & (cv2.dilate(ours.astype(np.uint8), disk) > 0)).sum() / theirs.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def contour(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels that differ from the one to the right, below, or right and below; the last ones repeat."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])


def frames_of(sequence: Path) -> list[Path]:
    """The frames of a sequence, in order."""
    return sorted(sequence.iterdir())


def masks_of(sequence: Path) -> list[np.ndarray]:
    """Their masks (H, W) bool."""
    folder = sequence.parents[1] / "masks" / sequence.name
    return [np.asarray(Image.open(folder / f"{path.stem}.png").convert("L")) > 127 for path in frames_of(sequence)]


def ours(settings: video.Settings) -> Callable[[list[Path], list[Features], np.ndarray], list[np.ndarray]]:
    """Masks of all frames but the first, by dinoviz."""

    def follow(frames: list[Path], features: list[Features], first: np.ndarray) -> list[np.ndarray]:
        state = video.Propagator(features[0], first, settings)
        rest = zip(frames[1:], features[1:], strict=True)
        return [state.mask(state.step(f), open_image(frame)) > 0 for frame, f in rest]

    return follow


def plain(frames: list[Path], features: list[Features], first: np.ndarray) -> list[np.ndarray]:
    """The same by the published algorithm."""
    grid = features[0].grid
    patches = [torch.from_numpy(f.patches) for f in features]
    labels = published.propagate(patches, published.first_labels(first.astype(np.uint8), *grid.shape))
    return [published.to_mask(soft, grid.image_size, grid.patch_size) > 0 for soft in labels[1:]]


def quality(backbone, sequences: list[Path], resolution: int) -> None:
    """Print J and F of the published algorithm and of dinoviz, with its changes one by one."""
    layer = part_layer(backbone.layers)
    ways = {
        "published, plain": plain,
        "  the same by dinoviz": ours(video.PUBLISHED),
        f"  patches of layer {layer + 1}": ours(replace(video.PUBLISHED, layers=(layer,))),
        "default but for edges": ours(video.Settings(edges=False)),
        "default": ours(video.Settings()),
    }
    scores: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    seconds = dict.fromkeys(ways, 0.0)
    encoding, count = 0.0, 0
    for sequence in sequences:
        frames, masks = frames_of(sequence), masks_of(sequence)
        began = time.perf_counter()
        features = [backbone.encode(frame, resolution, (layer,)) for frame in frames]
        encoding += time.perf_counter() - began
        count += len(frames)
        for name, way in ways.items():
            began = time.perf_counter()
            found = way(frames, features, masks[0])
            seconds[name] += time.perf_counter() - began
            pairs = list(zip(found, masks[1:], strict=True))
            scores[name].append(tuple(np.mean([(region(a, b), boundary(a, b)) for a, b in pairs], axis=0)))
    print(f"{'quality':24} {'J':>6} {'F':>6} {'J&F':>6}  {'s a frame, with the encode':>26}  J&F by sequence")
    for name, values in scores.items():
        j, f = np.mean(values, axis=0)
        each = " ".join(f"{np.mean(v):.2f}" for v in values)
        print(f"{name:24} {j:6.3f} {f:6.3f} {(j + f) / 2:6.3f}  {(encoding + seconds[name]) / count:26.3f}  {each}")
    print(f"sequences: {', '.join(sequence.name for sequence in sequences)}")


def speed(backbone, sequence: Path, resolution: int) -> None:
    """Print what a frame's propagation costs with the context full, without the encode.

    On all cores and on one: where other programs use the cores as well, only the second says much.
    """
    features = [backbone.encode(frame, resolution, ()) for frame in frames_of(sequence)[:9]]
    patches = torch.stack([torch.nn.functional.normalize(torch.from_numpy(f.patches), dim=-1) for f in features])
    h, w = features[0].grid.shape
    labels = torch.rand(8, h, w, 2, generator=torch.Generator().manual_seed(0))
    near = published.allowed(h, w)
    settings = {"radius": 12, "top": 5, "temperature": 0.1}
    runs = {
        "plain": lambda: published.step(
            patches[8].flatten(0, 1), patches[:8].flatten(1, 2), labels.flatten(1, 2), near
        ),
        "dinoviz": lambda: propagate_labels(patches[8], patches[:8], labels, **settings).flatten(0, 1),
    }  # fmt: skip
    differs = (runs["plain"]() - runs["dinoviz"]()).abs().amax(1)
    print(f"propagation alone, {h} x {w} patches; {int((differs > 1e-4).sum())} labels differ by over 1e-4 (ties)")
    everything = torch.get_num_threads()
    for threads in sorted({everything, 1}, reverse=True):
        torch.set_num_threads(threads)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(ROUNDS):
            for name, run in runs.items():
                began = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - began)
        slow, quick = (statistics.median(seconds[name]) for name in ("plain", "dinoviz"))
        print(
            f"  threads {threads}: plain {slow * 1000:.0f} ms, dinoviz {quick * 1000:.0f} ms, {slow / quick:.1f} times"
        )
    torch.set_num_threads(everything)


def peak_memory(length: int) -> float:
    """Peak MB of this process, which must be fresh, after following a video of so many frames, weights included."""
    sequence = _sequences()[0]
    backbone = dinoviz.load("embedded", device="cpu")
    frames = islice(cycle([Image.open(path).convert("RGB") for path in frames_of(sequence)]), length)
    for _ in video.propagate(frames, masks_of(sequence)[0], backbone, resolution=224):
        pass
    return _peak()


def _sequences() -> list[Path]:
    folder = data_folder()
    return sorted((folder / "davis" / "images").iterdir()) if folder and (folder / "davis").is_dir() else []


def main(resolution: int = RESOLUTION) -> None:
    """Print the tables."""
    sequences = _sequences()
    if not sequences:
        print("video: no davis folder under $DINOVIZ_DATA, nothing measured")
        return
    backbone = dinoviz.load("embedded", device="cpu")
    size = Image.open(frames_of(sequences[0])[0]).size
    shape = PatchGrid.fit(size, resolution, backbone.patch_size).shape
    print(
        f"video, embedded weights, {len(sequences)} DAVIS sequences, {resolution} px: {shape[0]} x {shape[1]} patches, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    quality(backbone, sequences, resolution)
    for side in (resolution, 518):
        speed(backbone, sequences[0], side)
    command = [sys.executable, "-m", "tests.benchmarks.video", "memory"]
    peaks = [
        json.loads(subprocess.run([*command, str(n)], capture_output=True, text=True, check=True).stdout.split()[-1])
        for n in LENGTHS
    ]
    told = ", ".join(f"{n} frames {peak:.0f} MB" for n, peak in zip(LENGTHS, peaks, strict=True))
    print(f"peak memory at 224 px, libraries and weights included: {told}, ratio {peaks[1] / peaks[0]:.3f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        print(json.dumps(peak_memory(int(sys.argv[2]))))
    else:
        main(*map(int, sys.argv[1:]))
