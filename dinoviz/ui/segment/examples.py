"""The Segment tab's examples: a marked flower, pictures with and without it, and a short clip."""

from __future__ import annotations

import json
import time
from fractions import Fraction
from pathlib import Path

import gradio as gr
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from dinoviz.cache import image_digest
from dinoviz.images import open_image
from dinoviz.ui.image_bar import example_files
from dinoviz.ui.segment.state import ALL
from dinoviz.ui.shared import note
from dinoviz.ui.temporary_files import session_folder, shared_copy
from dinoviz.video import io as clips

FRAMES, RATE, CLIP_SIZE = 12, 6, (480, 320)
# On the flower and on the leaves, in pixels of the picture of 640 x 427.
FLOWER = [(320, 200, 1), (240, 130, 1), (110, 330, 0)]


def pictures() -> tuple:
    """(picture, its marks, targets, instances to keep), as the page takes them."""
    file = _flower()
    flower = open_image(file)
    made = {
        "flower, mirrored.png": ImageOps.mirror(flower),
        "flower, closer.png": flower.crop((140, 40, 520, 340)),
        "flower, turned and darker.png": ImageEnhance.Brightness(flower.rotate(25)).enhance(0.6),
        "flower, in grey.png": flower.convert("L").convert("RGB"),
    }
    without = ("coffee", "rocket", "china", "chelsea")
    others = [shared_copy(file) for file in example_files() if Path(file).stem in without]
    targets = [_saved(name, picture) for name, picture in made.items()]
    return file, _marked(flower, FLOWER), [*targets, *others], ALL


def clip() -> tuple:
    """(first frame, its marks, clip, caption), as the page takes them: the camera moves past the flower."""
    flower = open_image(_flower())
    made = sorted(_folder().glob("flower.*[4m]"))  # .mp4, or .webm where there is no H.264
    if made:
        path = made[0]
    else:
        with clips.VideoWriter(_folder() / "flower", CLIP_SIZE, Fraction(RATE)) as writer:
            for share in np.linspace(0, 1, FRAMES):
                writer.add(_view(flower, share))
        path = writer.path
    _, first = next(clips.open_clip(path).frames())
    left, top, width, height = _window(flower, 0)
    points = [((x - left) * CLIP_SIZE[0] / width, (y - top) * CLIP_SIZE[1] / height, label) for x, y, label in FLOWER]
    points = [(x, y, label) for x, y, label in points if 0 < x < CLIP_SIZE[0] and 0 < y < CLIP_SIZE[1]]
    caption = note("The first frame is marked: add marks, or press Track the object.")
    return _saved("flower, first frame.png", first), _marked(first, points), str(path), caption


def _flower() -> str:
    return shared_copy(next(file for file in example_files() if Path(file).stem == "flower"))


def _window(picture: Image.Image, share: float) -> tuple[float, float, float, float]:
    """Left, top, width and height of the camera's view, which moves to the right and widens."""
    width = picture.width * (0.6 + 0.2 * share)
    height = width * CLIP_SIZE[1] / CLIP_SIZE[0]
    return (picture.width - width) * (0.1 + 0.9 * share), (picture.height - height) * 0.3, width, height


def _view(picture: Image.Image, share: float) -> Image.Image:
    left, top, width, height = _window(picture, share)
    return picture.resize(CLIP_SIZE, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))


def _marked(picture: Image.Image, points: list[tuple[float, float, int]]) -> dict:
    actions = [{"kind": "point", "x": round(x, 1), "y": round(y, 1), "label": label} for x, y, label in points]
    # The time makes the page take them again where they are the same as before.
    return gr.update(preset=json.dumps({"marks": {image_digest(picture): actions}, "at": time.time_ns()}))


def _folder() -> Path:
    folder = session_folder() / "segment-examples"
    folder.mkdir(exist_ok=True)
    return folder


def _saved(name: str, picture: Image.Image) -> str:
    path = _folder() / name
    if path.is_file():
        path.touch()  # files are removed by age
    else:
        picture.save(path)
    return str(path)
