"""Masks as COCO annotations with run-length encoding (RLE)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TextIO

import numpy as np
from pycocotools import mask as coco_mask


def annotation(mask: np.ndarray, score: float) -> dict:
    """The COCO annotation of a mask (H, W) bool that is not empty, without its ids."""
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "segmentation": {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")},
        "area": int(coco_mask.area(encoded)),
        "bbox": [int(side) for side in coco_mask.toBbox(encoded)],
        "iscrowd": 0,
        "score": round(float(score), 4),
    }


def write(file: TextIO, names: Mapping[int, str], entries: Callable[[], Iterable[dict]]) -> None:
    """Write a COCO data set as JSON, one entry at a time, so that no list of all masks is needed.

    Args:
        file: where the text goes.
        names: name of each category by its id.
        entries: called twice, for the images and for their annotations; gives a dict for each image with its `name`,
            `width`, `height` and `classes`, a list with a `number` (the category) and an `annotation` for each class
            that was found.
    """
    file.write('{"info": {"description": "Masks made with dinoviz"}, "categories": ')
    json.dump([{"id": number, "name": name} for number, name in names.items()], file)
    for key, items in (("images", _images(entries())), ("annotations", _annotations(entries()))):
        file.write(f', "{key}": [')
        for i, item in enumerate(items):
            file.write((", " if i else "") + json.dumps(item))
        file.write("]")
    file.write("}")


def _images(entries: Iterable[dict]) -> Iterator[dict]:
    for number, entry in enumerate(entries, 1):
        yield {"id": number, "file_name": entry["name"], "width": entry["width"], "height": entry["height"]}


def _annotations(entries: Iterable[dict]) -> Iterator[dict]:
    count = 0
    for number, entry in enumerate(entries, 1):
        for found in entry["classes"]:
            if found.get("annotation"):
                count += 1
                yield {"id": count, "image_id": number, "category_id": found["number"], **found["annotation"]}
