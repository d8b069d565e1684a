"""What pictures take of the main memory of the app: while they are decoded and encoded, and what stays afterwards.

python -m tests.benchmarks.memory

Each row in a fresh process, in MB above what is resident once the model is loaded: the estimate by which work waits for
its turn, the measured peak, what is resident afterwards, and what the caches say that they hold. The last row is
of eight pages that give a picture of 50 million pixels at 1792 px at once; the estimate is the bound on running passes.
Weights: embedded, on the CPU. Pictures: scikit-image's astronaut, enlarged.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
from PIL import Image

from dinoviz.images import decode_bytes
from dinoviz.memory import encode_bytes
from dinoviz.ui.access import Settings
from dinoviz.ui.admission import give_back
from dinoviz.ui.shared import follow
from dinoviz.ui.workbench import Workbench

MB = 2**20
LARGE = 7071  # squared the 50 million pixels that are accepted
PAGES = 8
ROWS = (("decode", LARGE), ("encode", 518), ("encode", 1036), ("encode", 1792), ("pages", 1792))


def enlarged(folder: str, side: int, angle: int = 0) -> str:
    """A JPEG of the photograph with so many pixels on a side."""
    from skimage import data

    path = Path(folder) / f"{side}-{angle}.jpg"
    Image.fromarray(data.astronaut()).rotate(angle).resize((side, side), Image.Resampling.BICUBIC).save(path)
    return str(path)


class Peak:
    """The largest resident size while the block runs, in bytes above that at its beginning. left: what it is later."""

    def __enter__(self) -> Peak:
        self.process, self.over = psutil.Process(), threading.Event()
        self.before = self.bytes = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.over.wait(0.002):
            self.bytes = max(self.bytes, self.process.memory_info().rss)

    def __exit__(self, *_) -> None:
        self.over.set()
        self.thread.join()
        self.bytes -= self.before

    @property
    def left(self) -> int:
        return self.process.memory_info().rss - self.before


def page(bench: Workbench, path: str, side: int) -> None:
    """Ask for a picture as a page does, and keep nothing of it."""
    job = bench.start_encode((path, "bar"), [path], "embedded", side)
    for _ in follow(bench, (path, "bar"), job):
        pass
    job.result()


def measure(what: str, side: int) -> dict[str, float]:
    """One row, in MB; the process must be fresh."""
    os.environ["DINOVIZ_DEVICE"] = "cpu"
    bench = Workbench(Settings())
    backbone = bench.backbone("embedded")
    backbone.encode(Image.new("RGB", (224, 224)), 224, "all")  # what a first pass loads for good is nobody's cost
    with tempfile.TemporaryDirectory() as folder:
        size = LARGE if what in ("decode", "pages") else side
        paths = [enlarged(folder, size, angle) for angle in range(PAGES if what == "pages" else 1)]
        began = time.monotonic()
        if what == "encode":
            estimate = encode_bytes(backbone, (side // backbone.patch_size) ** 2, "all")
            bench.picture(paths[0])
        elif what == "decode":
            estimate = decode_bytes(paths[0])
        else:
            estimate = bench.settings.job_bytes
        give_back()
        with Peak() as peak:
            if what == "decode":
                bench.picture(paths[0])
            elif what == "encode":
                bench.look(paths[0], "embedded", side)
            else:
                with ThreadPoolExecutor(PAGES) as pool:
                    list(pool.map(lambda path: page(bench, path, side), paths))
        kept = bench.features_cache.nbytes + bench._pictures.total + bench._pixels.total
        sizes = {"estimate": estimate, "peak": peak.bytes, "left": peak.left, "kept": kept}
        return {**{name: size / MB for name, size in sizes.items()}, "seconds": time.monotonic() - began}


def in_fresh_process(what: str, side: int) -> dict[str, float]:
    """`measure`, where nothing was freed before."""
    command = [sys.executable, "-m", "tests.benchmarks.memory", what, str(side)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def main() -> None:
    """Print the table."""
    print(f"main memory in MB above the idle app, {psutil.virtual_memory().total / 2**30:.0f} GB in all, embedded, CPU")
    print(f"{'what':>8} {'px':>5} {'estimate':>9} {'peak':>6} {'est./peak':>9} {'left':>6} {'kept':>6} {'seconds':>8}")
    for what, side in ROWS:
        row = in_fresh_process(what, side)
        print(
            f"{what:>8} {side:5} {row['estimate']:9.0f} {row['peak']:6.0f} {row['estimate'] / row['peak']:9.2f} "
            f"{row['left']:6.0f} {row['kept']:6.0f} {row['seconds']:8.1f}"
        )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
