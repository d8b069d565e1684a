"""The masks of a search as files, at the pictures' full sizes: PNG masks, cut-outs, overlays, COCO JSON."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from dinoviz import render, segment
from dinoviz.errors import DinovizError
from dinoviz.segment import coco
from dinoviz.segment.segmentation import Segmentation
from dinoviz.ui.segment.state import Search, mark
from dinoviz.ui.segment.targets import Refused
from dinoviz.ui.shared import bundle
from dinoviz.ui.temporary_files import fresh_folder

MASKS, CUTOUTS, OVERLAYS, COCO = "masks", "cut-outs", "overlays", "COCO JSON"
CONTENTS = (MASKS, CUTOUTS, OVERLAYS, COCO)
Report = Callable[[str, float], None]


def results(search: Search, report: Report = lambda *_: None) -> Iterator[tuple[str, Image.Image, Segmentation]]:
    """Yield (unique name, picture, result) at full size; the reference first, as 0000. Raises DinovizError."""
    look = search.look
    reference = mark(look.features, look.picture.image, search.parsed, search.choice)
    if reference is None:
        raise DinovizError("No object is marked: click on it, or draw over it.")
    count = 1 + len(search.targets)
    report(f"Writing picture 1 of {count}", 0.5 / count)
    yield f"0000-{Path(look.picture.name).stem}", look.picture.image, reference
    for i, target in enumerate(search.targets, start=1):
        report(f"Writing picture {i + 1} of {count}", i / count)
        picture = target.full
        yield f"{i:04d}-{Path(target.name).stem}", picture, search.result(target, picture)


def written_masks(search: Search, refused: Sequence[Refused]) -> tuple[list[str], dict]:
    """Write the masks; returns their paths, and the scores of each picture."""
    folder = fresh_folder()
    files, pictures = [], []
    for name, _, found in results(search):
        path = folder / f"{name}.png"
        path.write_bytes(render.to_png(_mask_picture(found)))
        files.append(str(path))
        pictures.append({"mask": path.name, **_scores(found)})
    return files, {"pictures": pictures, "refused": [each.reason for each in refused], **_about(search)}


def zipped(
    search: Search, refused: Sequence[Refused], contents: Sequence[str], report: Report = lambda *_: None
) -> str:
    """Write the zip, picture by picture; returns its path. contents: any of CONTENTS. Raises DinovizError."""
    unknown = [name for name in contents if name not in CONTENTS]
    if unknown or not contents:
        given = f"not {unknown[0]!r}" if unknown else "at least one"
        raise DinovizError(f"The zip can hold {', '.join(CONTENTS)}: {given}.")
    about = {"view": "segment", **_about(search), "refused": [each.reason for each in refused], "pictures": []}
    entries: list[dict] = []

    def files() -> Iterator[tuple[str, bytes]]:
        for name, picture, found in results(search, report):
            mask = _mask_picture(found) > 0
            about["pictures"].append({"name": name, **_scores(found)})
            annotations = [{"number": 1, "annotation": coco.annotation(mask, found.presence)}] if mask.any() else []
            size = {"width": picture.width, "height": picture.height}
            entries.append({"name": f"{name}.png", **size, "classes": annotations})
            if MASKS in contents:
                yield f"masks/{name}.png", render.to_png(_mask_picture(found))
            if found.present and CUTOUTS in contents:
                yield f"cut-outs/{name}.png", render.to_png(render.cutout(picture, mask))
            if found.present and OVERLAYS in contents:
                yield f"overlays/{name}.jpg", render.to_jpeg(render.overlay(picture, mask, search.choice.opacity))
        if COCO in contents:
            file = io.StringIO()
            coco.write(file, {1: "object"}, lambda: entries)
            yield "coco.json", file.getvalue().encode()

    return bundle("segments", files(), about)


def _mask_picture(found: Segmentation) -> np.ndarray:
    """(H, W) uint8, 255 on the object; empty where the object is not found."""
    return (found.mask & found.present).astype("uint8") * 255


def _scores(found: Segmentation) -> dict:
    """The result of one picture in numbers."""
    return {
        "present": bool(found.present),
        "presence": round(float(found.presence), 4),
        "threshold": round(float(found.threshold), 4),
        "area": int((found.mask & found.present).sum()),
    }


def _about(search: Search) -> dict:
    """How the masks were made."""
    layers = [layer + 1 for layer in segment.layers_of(search.look.backbone.layers)]
    return {
        **search.look.about(),
        "layers": layers,
        "marks": search.marks,
        "corrections": {target.name: search.corrections[target.digest] for target in search.corrected},
        "options": {k: v for k, v in asdict(search.choice).items() if k != "view"},
    }
