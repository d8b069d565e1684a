"""The strip: the teacher's attention and patch PCA of a few pictures, snapshot by snapshot."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import gradio as gr
from PIL import Image

from dinoviz.ui.components.html_component import Scripted
from dinoviz.ui.shared import jpeg_file
from dinoviz.ui.temporary_files import session_folder
from dinoviz.ui.train.metrics_log import records
from training.runs.files import is_file, opened
from training.runs.run import Run, step_of

# Pixels of a snapshot's picture (a run makes them 320 px wide); snapshots of a strip; pictures of a snapshot.
MOST_PIXELS, MOST_FRAMES, MOST_PROBES = 2_000_000, 1000, 16

TEMPLATE = """
<div class="dv-strip dv-empty" role="group" aria-label="Attention and PCA of the teacher, snapshot by snapshot">
  <p class="dv-note dv-none">There is no snapshot yet: the first one is made before the first step.</p>
  <div class="dv-some">
    <div class="dv-scrub">
      <button type="button" class="dv-play" aria-label="Play" title="Play from here, or from the start"></button>
      <input type="range" min="0" max="0" step="1" value="0" aria-label="Snapshot">
      <output class="dv-when"></output>
    </div>
    <div class="dv-probes"></div>
    <div class="dv-film" role="group" aria-label="All snapshots"></div>
  </div>
</div>
"""


class Strip(Scripted):
    """Attention and patch PCA of the probe pictures at the chosen snapshot, and a film of all snapshots.

    frames: of each snapshot {step, epoch, knn (optional), attention: [a path for each probe], pca: [...]}, in order.
    probes: paths of the pictures themselves, or none. run: its name; a new one shows its newest snapshot.
    All paths are in Gradio's cache; see `shown`.
    """

    def __init__(self, value: str = "", *, frames=(), probes=(), run="", **options):
        super().__init__(
            value,
            template=TEMPLATE,
            drawn_by="strip.js",
            frames=list(frames),
            probes=list(probes),
            run=run,
            **options,
        )


def shown(run: Run | None) -> dict:
    """The update for a Strip to show a run, or nothing."""
    found, probes = frames(run) if run else ([], [])
    return gr.update(frames=found, probes=probes, run=run.name if run else "")


def frames(run: Run) -> tuple[list[dict], list[str]]:
    """(frames, probes) of `Strip`: the complete snapshots of a run and its probe pictures, as copies in Gradio's cache.

    The run's own files are not served. A picture is copied once.
    """
    measured = records(run)
    accuracy = {record.get("step"): record["knn"] for record in measured if isinstance(record.get("knn"), int | float)}
    epoch_steps = _epoch_steps(measured)
    found = []
    for snapshot in run.snapshots()[-MOST_FRAMES:]:
        if not is_file(snapshot / "arrays.npz"):  # written last
            continue
        with suppress(OSError, ValueError, Image.DecompressionBombError):  # an unreadable picture
            step = step_of(snapshot)
            frame = {"step": step, "epoch": round(step / epoch_steps, 2)}
            if step in accuracy:
                frame["knn"] = accuracy[step]
            found.append(frame | {name: _pictures(snapshot, name) for name in ("attention", "pca")})
    probes: list[str] = []
    with suppress(OSError, ValueError, Image.DecompressionBombError):
        probes = _pictures(run.folder / "snapshots", "probe")
    return found, probes


def _epoch_steps(measured: list[dict]) -> float:
    """Steps in an epoch: a snapshot may be of a step without a record."""
    for record in reversed(measured):
        step, epoch = record.get("step"), record.get("epoch")
        if isinstance(step, int | float) and isinstance(epoch, int | float) and step > 0 and epoch > 0:
            return max(step / epoch, 1e-6)
    return 1.0


def _pictures(folder: Path, name: str) -> list[str]:
    paths = sorted(folder.glob(f"{name}-*.png"), key=lambda path: (len(path.name), path.name))
    return [_copy(path) for path in paths[:MOST_PROBES]]


def _copy(path: Path) -> str:
    key = str(path), path.stat().st_mtime_ns, str(session_folder())
    copy = _copied(*key)
    try:
        os.utime(copy)  # files are removed by age, but not those in use
    except OSError:
        copy = _copied.__wrapped__(*key)
    return copy


@lru_cache(maxsize=8192)
def _copied(path: str, mtime_ns: int, folder: str) -> str:
    """folder: the session's, where `jpeg_file` puts it."""
    with opened(Path(path)) as file, Image.open(file) as picture:
        if picture.width * picture.height > MOST_PIXELS:
            raise ValueError(f"{Path(path).name} has {picture.width} x {picture.height} pixels")
        return jpeg_file(picture.convert("RGB"))
