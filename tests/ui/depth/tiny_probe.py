"""Depth probes with random weights, for the features of a tiny model."""

from __future__ import annotations

from dinoviz import depth
from dinoviz.depth import heads
from training.runs.run import Run


def write_probe(path, weights_id: str, resolution: int = 112) -> str:
    """Write a probe's file -> its path."""
    about = {
        "version": 1, "backbone": "tiny", "weights_id": weights_id, "head": "linear", "layers": [0, 2], "channels": 96,
        "resolution": resolution, "depth": [0.5, 8.0], "bins": 16, "upsample": 2, "metrics": {"test": {"rmse": 0.7}},
        "data": {"folder": "<rooms>"},
    }  # fmt: skip
    depth.save_probe(path, heads.make(about), about)
    return str(path)


def make_run(name: str, weights_id: str) -> str:
    """Create a run with a probe -> the path of the probe's file."""
    run = Run.create(name, "probe", {})
    run.export_folder.mkdir()
    return write_probe(depth.probe_file(run.folder), weights_id)
