"""Decode and check images from users."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base

from dinoviz.errors import DinovizError

MAX_PIXELS = 50_000_000
MIN_SIDE = 8

# Pillow's raster formats that are decoded in-process; EPS, for one, would start Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO")
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".ico"),
)

# Pillow allocates blocks of 16 MB by default, which stay in the heap of the thread; the C library returns blocks above
# 32 MB to the system.
Image.core.set_block_size(64 * 2**20)

ImageSource = str | os.PathLike | bytes | Image.Image | np.ndarray


class ImageError(DinovizError):
    """An image that cannot be used; the message names it and the reason."""


def open_image(
    source: ImageSource, *, max_pixels: int = MAX_PIXELS, name: str | None = None, side: int | None = None
) -> Image.Image:
    """Decode an image into an upright RGB picture.

    Integers deeper than 8 bits are scaled by the smallest of 8, 10, 12, 14 and 16 bits that holds their maximum
    (sensors store 12 bits in 16 without scaling). Floats in [0, 1] are multiplied by 255, floats in [0, 255] are kept,
    all others are stretched from their minimum to their maximum.

    Args:
        source: a path, the bytes of a file, a PIL image, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of
            uint8, uint16, bool or float.
        max_pixels: the largest accepted H * W, checked on the header, before decoding.
        name: of the image in error messages; by default the file's name.
        side: pixels that both sides need. A JPEG file is then decoded at 1/2, 1/4 or 1/8 of its size, as long as both
            sides stay at least this long; other formats are always decoded whole.

    Returns:
        A PIL image of mode RGB: EXIF orientation applied, transparency composited on white, the first frame of an
        animation.

    Raises:
        ImageError: if the image cannot be read.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, name or "The array", max_pixels)
    if isinstance(source, Image.Image):
        name = name or "The image"
        return _to_rgb(source, name, max_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        name, size = name or "The image", len(source)
        stream: IO[bytes] = io.BytesIO(source)
    elif isinstance(source, str | os.PathLike):
        name = name or Path(source).name
        stream, size = _open_file(Path(source), name)
    else:
        raise ImageError(f"An image must be a path, bytes, a PIL image or an array, not {type(source).__name__}.")
    with stream:
        if size == 0:
            raise ImageError(f"{name}: the file is empty.")
        try:
            image = Image.open(stream, formats=_formats())
        except Image.DecompressionBombError:
            raise ImageError(_too_large(name, None, max_pixels)) from None
        except UnidentifiedImageError:
            raise ImageError(
                f"{name}: this is not an image that can be read (PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF and PNM are)."
            ) from None
        except Exception:  # decoders raise nearly everything on damaged headers
            raise ImageError(f"{name}: the header of the image is damaged.") from None
        if side is not None:
            _check_size(image.size, name, max_pixels)
            image.draft(None, (side, side))
        return _to_rgb(image, name, max_pixels)


def _open_file(path: Path, name: str) -> tuple[IO[bytes], int]:
    """A stream and the size of a file. Raises ImageError unless it is a file that can be opened."""
    try:
        if path.is_dir():
            raise ImageError(f"{name}: this is a folder, not an image.")
        if not path.is_file():
            raise ImageError(f"{name}: there is no such file.")
        return path.open("rb"), path.stat().st_size
    except OSError as error:
        raise ImageError(f"{name}: the file cannot be opened ({error.strerror}).") from None


def decode_bytes(path: str | os.PathLike) -> int:
    """Approximate peak memory of `open_image` for a file, from its header; 0 if that cannot be read."""
    try:
        if not Path(path).is_file():
            return 0
        with Path(path).open("rb") as stream, Image.open(stream, formats=_formats()) as image:
            pixels = image.width * image.height
            # Decoded, and as RGB, at 4 bytes per pixel each; transparency and deeper pixels take further copies.
            plain = image.mode in ("1", "L", "RGB", "CMYK", "YCbCr") and not image.has_transparency_data
            return pixels * (8 if plain else 24) + Path(path).stat().st_size
    except Exception:  # `open_image` reports what is wrong with it
        return 0


def _formats() -> list[str]:
    # Pillow fails on a format without a plugin, and some builds lack AVIF or JPEG 2000.
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _too_large(name: str, size: tuple[int, int] | None, max_pixels: int) -> str:
    what = f"{size[0]} x {size[1]} pixels" if size else "the picture"
    return f"{name}: {what} is too large; at most {max_pixels / 1e6:g} million pixels are accepted."


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(_too_large(name, size, max_pixels))
    if min(size) < MIN_SIDE:
        raise ImageError(f"{name}: {width} x {height} pixels is too small; each side needs at least {MIN_SIDE}.")


def _to_rgb(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    _check_size(image.size, name, max_pixels)
    try:
        image.load()
        _check_size(image.size, name, max_pixels)  # some formats (ICO) have the true size only now
        image = _upright(image)
        if image.mode.startswith(("I", "F")):
            return _from_array(np.asarray(image), name, max_pixels)
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, rgba).convert("RGB")
        return image.convert("RGB")
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{name}: there is not enough memory to decode the image.") from None
    except Exception as error:  # decoders raise nearly everything on damaged data
        reason = "truncated" if "truncated" in str(error).lower() else "damaged"
        raise ImageError(f"{name}: the image data is {reason}, the picture cannot be decoded.") from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        # exif_transpose also copies upright pictures: 200 MB for 50 million pixels.
        return image if image.getexif().get(Base.Orientation, 1) == 1 else ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block is no reason to refuse the pixels
        return image


def _from_array(array: np.ndarray, name: str, max_pixels: int) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        hint = "; channels come last" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise ImageError(f"{name}: an image array is (H, W), (H, W, 3) or (H, W, 4), not {array.shape}{hint}.")
    _check_size((array.shape[1], array.shape[0]), name, max_pixels)
    return _to_rgb_uint8(_to_uint8(array, name))


def _to_uint8(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind not in "iuf":
        raise ImageError(f"{name}: an image array holds numbers, not {array.dtype}.")
    values: np.ndarray = array.astype(np.float64 if array.dtype.itemsize > 4 else np.float32)
    if not np.isfinite(values).all():
        raise ImageError(f"{name}: the image contains values that are not finite numbers (NaN or infinity).")
    low, high = float(values.min()), float(values.max())
    if array.dtype.kind in "iu" and low >= 0 and high <= 65535:
        low, high = 0.0, next(float(2**bits - 1) for bits in (8, 10, 12, 14, 16) if high <= 2**bits - 1)
    elif array.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif array.dtype.kind == "f" and low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    scaled = (values - low) / ((high - low) or 1) * 255
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _to_rgb_uint8(array: np.ndarray) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(array))
    if image.mode == "RGBA":
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def find_images(paths: Sequence[str | os.PathLike]) -> list[Path]:
    """The given files and, sorted, the images below the given folders. Raises ImageError if there are none."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        elif path.exists():
            found.append(path)
        else:
            raise ImageError(f"{path}: there is no such file or folder.")
    if not found:
        raise ImageError(f"There are no images in {', '.join(map(str, paths))}.")
    return found
