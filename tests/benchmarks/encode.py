"""What looking costs: encode with the CLS attention against a plain forward pass, and a click.

python -m tests.benchmarks.encode

Times: one process, the ways take turns, medians, as ratios to the plain pass. Memory: a fresh process for each way, its
peak resident size, weights and libraries included, and how much of that the pass added. Weights: embedded. Picture:
scikit-image's astronaut.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from PIL import Image
from transformers import AutoModel

import dinoviz
from dinoviz import attention
from dinoviz import embedded_weights as embedded
from dinoviz.backbone import IMAGENET_MEAN, IMAGENET_STD, _to_tensor
from dinoviz.ui.access import Settings
from dinoviz.ui.attention_views import ViewSettings, draw
from dinoviz.ui.image_bar import example_files
from dinoviz.ui.shared import jpeg_file
from dinoviz.ui.workbench import Workbench

ROUNDS = {518: 9, 1036: 3}
WAYS = ("plain", "encode", "eager")


def picture() -> Image.Image:
    """The photograph that is looked at."""
    from skimage import data

    return Image.fromarray(data.astronaut())


def way(name: str) -> Callable[[int], object]:
    """A function of the resolution: load and resize like `encode`, then run the network in one of three ways."""
    image = picture()
    if name == "encode":
        backbone = dinoviz.load("embedded", device="cpu", dtype=torch.float32)
        return lambda side: attention.cls_attention(backbone.encode(image, side))
    implementation = {"plain": "sdpa", "eager": "eager"}[name]
    model = AutoModel.from_pretrained(embedded.folder(), attn_implementation=implementation).eval()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))

    def run(side: int) -> object:
        with torch.inference_mode():
            pixels = (_to_tensor(image, (side, side))[None] - mean) / std
            return model(pixels, output_attentions=name == "eager")

    return run


def peak_memory(name: str, side: int) -> tuple[float, float]:
    """(peak of this process, its growth over what is resident before the pass) in MB; the process must be fresh."""
    run = way(name)
    run(224)  # what a first pass loads for good is nobody's cost
    before = psutil.Process().memory_info().rss / 2**20
    run(side)
    return _peak(), _peak() - before


def _peak() -> float:
    """Peak resident megabytes of this process."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage counts the parent's size in, from before the exec
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def median_seconds(runs: dict[str, Callable[[int], object]], side: int, rounds: int) -> dict[str, float]:
    """Medians over rounds in which each way has its turn."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for name in runs:
        runs[name](side)  # warm-up
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            run(side)
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Print the tables."""
    print(f"encode, embedded weights, astronaut, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'px':>5} {'way':8} {'time':>6} {'x plain':>8} {'peak MB':>8} {'x plain':>8} {'of it pass':>10}")
    runs = {name: way(name) for name in WAYS}
    for side, rounds in ROUNDS.items():
        # The eager pass at 1036 px takes 18 GB: once is enough for the record, and only where there is room.
        timed = {name: run for name, run in runs.items() if name != "eager" or side <= 518}
        seconds = median_seconds(timed, side, rounds)
        memory = {name: _in_fresh_process(name, side) for name in WAYS}
        for name in WAYS:
            took = f"{seconds[name]:6.2f} {seconds[name] / seconds['plain']:8.3f}" if name in seconds else f"{'':15}"
            if memory[name]:
                peak, growth = memory[name]
                used = f"{peak:8.0f} {peak / memory['plain'][0]:8.3f} {growth:10.0f}"
            else:
                used = "not enough memory here"
            print(f"{side:5} {name:8} {took} {used}")
    _clicks()


def _in_fresh_process(name: str, side: int) -> list[float] | None:
    if name == "eager" and side > 518 and psutil.virtual_memory().available < 22 * 2**30:
        return None
    command = [sys.executable, "-m", "tests.benchmarks.encode", name, str(side)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def _clicks() -> None:
    features = dinoviz.load("embedded", device="cpu").encode(picture(), 518, "all")
    seconds = []
    for i in range(200):
        began = time.perf_counter()
        attention.patch_attention(features, (i % 37, i * 7 % 37), layer=i % 12)
        seconds.append(time.perf_counter() - began)
    print(f"a click's attention rows, all heads, 518 px: median {statistics.median(seconds) * 1000:.2f} ms of 200")
    bench = Workbench(Settings())
    look = bench.look(example_files()[1], "embedded", 518)
    seconds = []
    for i in range(20):
        began = time.perf_counter()
        settings = ViewSettings(12, "mean of heads", f"{20 * i}, 100", "inferno", 0.7, raw=False, mass=1.0)
        drawn = draw(bench, look, settings)
        for image in drawn[:3]:
            jpeg_file(image)
        seconds.append(time.perf_counter() - began)
    print(f"all of a click, three pictures drawn and saved: median {statistics.median(seconds) * 1000:.0f} ms of 20")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(peak_memory(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
