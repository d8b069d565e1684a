"""Masks: of another size, of modes and values that no mask has, photographs, and pictures that are damaged."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tests.hostile.generate import Corpus, cuts, picture
from tests.hostile.kinds.images import encoded, lab, png, zeros


def write(corpus: Corpus) -> None:
    image = picture()
    object_ = np.zeros((72, 96), np.uint8)
    object_[20:50, 30:70] = 255
    labels = np.arange(72 * 96).reshape(72, 96)
    random = corpus.random

    def mask(name: str, values: np.ndarray | Image.Image, expected="either", ending: str = "png") -> None:
        made = values if isinstance(values, Image.Image) else Image.fromarray(values)
        corpus.add("mask", f"{name}.{ending}", encoded(made, ending), expected)

    mask("good", object_, "right")
    mask("bit", Image.fromarray(object_).convert("1"), "right")
    mask("soft", (object_ * 0.7).astype(np.uint8) + random.integers(0, 60, object_.shape, dtype=np.uint8))
    mask("nothing", np.zeros_like(object_))
    mask("everything", np.full_like(object_, 255))
    mask("all-one", np.ones_like(object_))
    mask("another-size", object_[:40, :40])
    mask("large", np.zeros((3000, 3000), np.uint8))
    mask("photograph", image)
    mask("photograph-palette", image.quantize(256))
    mask("labels-255", (labels % 255).astype(np.uint8))
    mask("labels-300", (labels % 300).astype(np.uint16))
    mask("labels-65535", (labels * 9 % 65536).astype(np.uint16))
    mask("most", np.where(object_ > 0, 2**31 - 1, 0).astype(np.int32), ending="tif")
    mask("negative", np.where(object_ > 0, -5, 0).astype(np.int32), ending="tif")
    mask("lowest", np.where(object_ > 0, -(2**31), 3).astype(np.int32), ending="tif")
    for name, value in (("nan", np.nan), ("infinite", np.inf), ("1e38", 3e38), ("half", 0.5)):
        mask(f"float-{name}", np.where(object_ > 0, np.float32(value), np.float32(0)), ending="tif")
    mask("clear", Image.merge("RGBA", [Image.fromarray(object_)] * 3 + [Image.new("L", (96, 72))]))
    mask("alpha", Image.merge("LA", [Image.fromarray(object_)] * 2))
    mask("cmyk", image.convert("CMYK"), ending="tif")
    mask("lab", lab(image), ending="tif")
    mask("noise", random.integers(0, 256, (72, 96, 3), dtype=np.uint8))
    corpus.add("mask", "jpeg.jpg", encoded(Image.fromarray(object_), "jpg", quality=20))
    corpus.add("mask", "animated.gif", encoded(Image.fromarray(object_), "gif", save_all=True, append_images=[image]))
    corpus.add("mask", "text.png", b"0 0 0 1 1 0", "sentence")
    corpus.add("mask", "empty.png", b"", "sentence")
    corpus.add("mask", "array.png", b"\x93NUMPY", "sentence")
    corpus.add("mask", "huge.png", png(60000, 60000, zeros(100)), "sentence")
    corpus.add("mask", "large-49mp.png", png(7000, 7000, zeros(7000 * 7001)))
    for name, part in cuts(encoded(Image.fromarray(object_), "png"), (0.3, 0.8)).items():
        corpus.add("mask", f"{name}.png", part)
