"""What lowers the error of a depth probe: the shipped recipe, and one change at a time.

Protocol: NYU Depth v2's 795 labelled training images, the embedded weights, one seed. 100 images are held out by the
rule of `training.depth.rgbd.split` and looked at once for each row; when to stop is decided by other groups of images.
RMSE, AbsRel and delta1 with the Eigen crop up to 10 m, each picture at its full size; then the same with each
prediction scaled to the true median. Features are encoded anew for each row. Run it by
`python -m tests.benchmarks.depth [DATA] [--rows NAME ...] [--epochs N] [--limit N]`; a quarter of an hour a row on one
core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from tests.benchmarks.pca_stability import data_folder
from training.config.tasks import ProbeConfig
from training.probe import probe
from training.runs.run import Run

RECIPE = {"border": 8, "held_out": 100}
ROWS: dict[str, dict] = {
    "shipped": {},
    "linear, last layer": {"head": "linear", "layers": (-1,)},
    "linear, four layers": {"head": "linear", "layers": (3, 6, 9, 12)},
    "mlp": {"head": "mlp"},
    "one member": {"members": 1},
    "last layer only": {"layers": (-1,)},
    "layers 3, 6, 9, 12": {"layers": (3, 6, 9, 12)},
    "layers 9 to 12": {"layers": (9, 10, 11, 12)},
    "without CLS": {"cls": False},
    "resolution 224": {"resolution": 224},
    "resolution 518": {"resolution": 518},
    "no flips": {"flip": False},
    "a crop": {"crops": 1},
    "no gradient loss": {"gradient": 0.0},
    "error in metres": {"metric": 1.0},
    "no channels hidden": {"dropout": 0.0},
    "no average of weights": {"average": 0.0},
}


def main(data: str = "", rows: Sequence[str] = (), **settings) -> None:
    folder = Path(data) if data else (data_folder() or Path()) / "nyu"
    if not (folder / "rgb").is_dir():
        print("depth: no RGB-D folder and no nyu under $DINOVIZ_DATA, nothing measured")
        return
    chosen = {name: change for name, change in ROWS.items() if not rows or name in rows}
    print(f"{folder.name}, {torch.get_num_threads()} threads; right of the bar with the median scaled")
    print(f"{'':22} {'RMSE':>7} {'AbsRel':>7} {'delta1':>7} | {'RMSE':>7} {'AbsRel':>7} {'delta1':>7} | "
          f"{'validation':>10} {'epoch':>5} {'minutes':>7}")  # fmt: skip
    for name, change in chosen.items():
        config = ProbeConfig(**{"data": str(folder), **RECIPE, **change, **settings})
        if config.limit:
            config = replace(config, held_out=config.limit // 16)
        with tempfile.TemporaryDirectory() as root:
            began = time.perf_counter()
            about = probe(config, Run.create("row", "probe", config.to_dict(), root=Path(root)))
            minutes = (time.perf_counter() - began) / 60
        test, validation = about["metrics"]["test"], about["metrics"]["validation"]["rmse"]
        figures = [
            f"{of['rmse']:7.3f} {of['abs_rel']:7.3f} {of['delta1']:7.3f}" for of in (test, test["median_scaled"])
        ]
        print(f"{name:22} {' | '.join(figures)} | {validation:10.3f} {about['epoch']:5} {minutes:7.1f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="", help="an RGB-D folder; by default nyu of the data folder")
    parser.add_argument("--rows", nargs="*", default=[], choices=list(ROWS), metavar="NAME", help=", ".join(ROWS))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--limit", type=int, help="use no more images than this")
    given = vars(parser.parse_args())
    main(given.pop("data"), given.pop("rows"), **{name: value for name, value in given.items() if value is not None})
