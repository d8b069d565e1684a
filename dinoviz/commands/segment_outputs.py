"""The files of `python -m dinoviz segment`: masks, overlays and cut-outs of each target, table and COCO file."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dinoviz.atomic_files import whole
from dinoviz.errors import DinovizError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

TABLE, COCO, LOG = "segments.csv", "annotations.json", "segments-unfinished.jsonl"
SUFFIXES = ("mask.png", "overlay.jpg", "cutout.png")


def check_folder(
    out: Path, folders: Iterable[Path], inputs: Iterable[Path], targets: Iterable[Callable[[str], Path]]
) -> None:
    """Refuse an output folder in which files of the user would be overwritten.

    Args:
        out: the output folder.
        folders: of the targets.
        inputs: all files that are read.
        targets: functions from a suffix to the file that is written.

    Raises:
        DinovizError: if it is a folder of the targets, an input would be overwritten, or it has files of these names
            that are not from an earlier run.
    """
    for folder in folders:
        if folder.is_dir() and folder.resolve() == out.resolve():
            raise DinovizError(f"{folder} contains the targets: choose another --out.")
    if not out.is_dir():
        return
    ours = (out / TABLE).exists() or (out / LOG).exists()
    given = {path.resolve() for path in inputs}
    for path in [out / COCO, *(target(suffix) for target in targets for suffix in SUFFIXES)]:
        if path.exists():
            if path.resolve() in given:
                raise DinovizError(f"{path} would be overwritten: choose another --out.")
            if not ours:
                raise DinovizError(f"{path} exists and is not from a run of this command: choose another --out.")


def write_all(
    target: Callable[[str], Path], suffixes: Iterable[str], picture: Image.Image, labels: np.ndarray, classes: int
) -> None:
    """Write the files of one target, each atomically. labels: (H, W) uint8, 0 for background."""
    from dinoviz import mask_files, render

    for suffix in suffixes:
        path = target(suffix)
        if suffix == "mask.png":
            mask_files.write_mask(path, labels, classes)
        elif suffix == "overlay.jpg":
            drawn = render.overlay(picture, labels > 0) if classes == 1 else render.labels_picture(picture, labels)
            _write(path, render.to_jpeg(drawn))
        else:
            _write(path, render.to_png(render.cutout(picture, labels > 0)))


def write_table(path: Path, entries: Iterable[dict], names: Mapping[int, str]) -> None:
    """Write a CSV file with a row for each class of each target."""
    # File names need not be UTF-8.
    with whole(path) as part, part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "class", "present", "presence", "threshold", "area (share)"])
        for entry in entries:
            for found in entry["classes"]:
                share = found["area"] / (entry["width"] * entry["height"])
                rows.writerow([
                    entry["name"], names[found["number"]], str(found["present"]).lower(), f"{found['presence']:.4f}",
                    f"{found['threshold']:.4f}", f"{share:.6f}",
                ])  # fmt: skip


def write_coco(path: Path, entries: Callable[[], Iterable[dict]], names: Mapping[int, str]) -> None:
    """Write a COCO file; see `segment.coco.write`."""
    from dinoviz.segment import coco

    with whole(path) as part, part.open("w", encoding="utf-8") as file:
        coco.write(file, names, entries)


def _write(path: Path, content: bytes) -> None:
    with whole(path) as part:
        part.write_bytes(content)
