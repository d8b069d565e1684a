"""Masks on their way out: overlays, cut-outs, and COCO's run lengths."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

# A blue that hardly occurs in photographs of things, readable for colour-blind eyes beside the markers' red and green.
TINT = (30, 144, 255)


def overlay(picture: Image.Image, mask: np.ndarray, opacity: float = 0.5) -> Image.Image:
    """The picture (W, H) with the mask (H, W) tinted and outlined."""
    photo = np.asarray(picture)
    tinted = cv2.addWeighted(np.full_like(photo, TINT), opacity, photo, 1 - opacity, 0)
    return Image.fromarray(_outlined(np.where(mask[..., None], tinted, photo), mask))


def outline(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    """The picture with nothing but the border of the mask drawn on it."""
    return Image.fromarray(_outlined(np.array(picture), mask))


def _outlined(photo: np.ndarray, mask: np.ndarray) -> np.ndarray:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    line = max(1, round(min(photo.shape[:2]) / 300))
    cv2.drawContours(photo, contours, -1, (0, 0, 0), 2 * line + 1)  # dark below light: seen on any ground
    cv2.drawContours(photo, contours, -1, (255, 255, 255), line)
    return photo


def cutout(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    """The thing alone: RGBA at the picture's size, transparent outside the mask (H, W)."""
    result = picture.convert("RGBA")
    result.putalpha(Image.fromarray(mask.astype(np.uint8) * 255))
    return result


def on_checkers(picture: Image.Image, mask: np.ndarray, square: int = 12) -> Image.Image:
    """The cut-out as it is shown: on a board of two greys."""
    h, w = mask.shape
    board = ((np.arange(h)[:, None] // square + np.arange(w) // square) % 2 * 28 + 200).astype(np.uint8)
    return Image.fromarray(np.where(mask[..., None], np.asarray(picture), board[..., None]))


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
