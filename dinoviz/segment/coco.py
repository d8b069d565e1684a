"""Masks on their way out: overlays, cut-outs, and COCO's run lengths."""

from __future__ import annotations

import numpy as np


def rle(mask: np.ndarray) -> dict:
    """A mask (H, W) as COCO's compressed run lengths: {"size": [H, W], "counts": text}, as pycocotools encodes it.

    Runs go down the columns and begin with a (maybe empty) run of zeros; each is written as the difference to the run
    two before, in groups of five bits, the lowest first.
    """
    counts = _runs(mask)
    counts[3:] -= counts[1:-2].copy()
    text = bytearray()
    for count in counts.tolist():
        more = True
        while more:
            bits = count & 31
            count >>= 5
            more = count != -1 if bits & 16 else count != 0
            text.append(48 + (bits | 32 if more else bits))
    return {"size": [int(side) for side in mask.shape], "counts": text.decode("ascii")}


def _runs(mask: np.ndarray) -> np.ndarray:
    flat = np.asarray(mask, dtype=bool).ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate([[0] if len(flat) and flat[0] else [], [0], changes, [len(flat)]])
    return np.diff(starts).astype(np.int64)


def annotation(mask: np.ndarray, score: float) -> dict:
    """What COCO says of a mask (H, W) bool that is not empty, all but the ids."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    box = columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
    return {
        "segmentation": rle(mask),
        "area": int(mask.sum()),
        "bbox": [int(side) for side in box],
        "iscrowd": 0,
        "score": round(float(score), 4),
    }


class Coco:
    """A COCO data set of one category, picture by picture; the masks are not kept, only their run lengths."""

    def __init__(self, category: str = "thing"):
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.categories = [{"id": 1, "name": category}]

    def add(self, file_name: str, mask: np.ndarray, score: float) -> None:
        """One picture and the mask (H, W) bool of its thing; an empty one is a picture without the thing."""
        number = len(self.images) + 1
        height, width = mask.shape
        self.images.append({"id": number, "file_name": file_name, "width": width, "height": height})
        if not mask.any():
            return
        ids = {"id": len(self.annotations) + 1, "image_id": number, "category_id": 1}
        self.annotations.append(ids | annotation(mask, score))

    def as_dict(self) -> dict:
        """What belongs into the JSON file."""
        return {
            "info": {"description": "Masks made with dinoviz"},
            "images": self.images,
            "annotations": self.annotations,
            "categories": self.categories,
        }
