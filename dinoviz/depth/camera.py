"""Cameras: how wide a picture sees, given, from its EXIF data, or assumed; what turns depth into points in space."""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass

from PIL import Image
from PIL.ExifTags import IFD, Base

from dinoviz.errors import DinovizError

FILM_DIAGONAL = math.hypot(36, 24)  # millimetres; 35 mm equivalents compare diagonals (CIPA DCG-001)
# Main cameras of phones have 24 to 28 mm. The Kinect that took NYU Depth v2 has 28, to 0.2 %, and what was trained on
# its pictures takes every other camera for that one.
ASSUMED = 28
# From the widest fisheye to the longest zoom that is sold, in millimetres on film; beyond them it is a wrong entry.
SHORTEST, LONGEST = 6, 3000
CROPPED = 0.02  # of difference between the shape of a picture and the one it was taken in: more than of rounded sides

WITH_EXIF = ("JPEG", "PNG", "TIFF", "WEBP", "AVIF")
UNITS = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # millimetres, by the value of FocalPlaneResolutionUnit


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with square or nearly square pixels, for pictures of one size.

    fx, fy: focal length in pixels. cx, cy: where the optical axis meets the picture, with 0 at its left (top) edge, so
    the centre of the pixel in column i is at i + 0.5. source: where the focal length is from, for a caption.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    source: str

    @classmethod
    def of(cls, image_size: tuple[int, int], focal: float | None = None, exif: float | None = None) -> Camera:
        """The camera of an uncropped picture (W, H), whose axis meets its middle.

        focal: in pixels of the picture, as given by someone. exif: the same, from `exif_focal`. With neither, as of a
        lens of 28 mm on 35 mm film. Raises DinovizError for a given focal length that no lens has.
        """
        film = FILM_DIAGONAL / math.hypot(*image_size)  # millimetres that a pixel would cover
        if focal is not None:
            if not (math.isfinite(focal) and SHORTEST <= focal * film <= LONGEST):
                raise DinovizError(
                    f"The focal length of this picture lies between {SHORTEST / film:.0f} and {LONGEST / film:.0f} "
                    f"pixels, not at {focal:g}."
                )
            source = "given"
        elif exif is not None:
            focal, source = exif, f"from the picture's EXIF data: {exif * film:.0f} mm (35 mm equivalent)"
        else:
            focal, source = ASSUMED / film, f"assumed: {ASSUMED} mm (35 mm equivalent), as most phones have"
        width, height = image_size
        return cls(focal, focal, width / 2, height / 2, source)

    def scaled(self, size_from: tuple[int, int], size_to: tuple[int, int]) -> Camera:
        """The same camera for a copy of its picture, from one (W, H) to another."""
        x, y = (to / of for to, of in zip(size_to, size_from, strict=True))
        return Camera(self.fx * x, self.fy * y, self.cx * x, self.cy * y, self.source)


def exif_focal(source: str | os.PathLike | bytes | Image.Image, image_size: tuple[int, int]) -> float | None:
    """The focal length of a picture, in pixels of it at its size (W, H), by its EXIF data; None if they do not tell.

    From FocalLengthIn35mmFilm, else from FocalLength and the resolution of the sensor. A copy of another size or turned
    upright has the same; of one that was cropped to another shape nobody knows. Never raises.
    """
    try:
        tags = _tags(source)
        film = FILM_DIAGONAL / math.hypot(*image_size)
        taken = [_number(tags.get(tag)) for tag in (Base.ExifImageWidth, Base.ExifImageHeight)]
        whole = all(taken)
        if whole and abs(_shape(taken) / _shape(image_size) - 1) > CROPPED:
            return None
        focal = _number(tags.get(Base.FocalLengthIn35mmFilm)) / film
        if not focal and whole:
            unit = UNITS[tags.get(Base.FocalPlaneResolutionUnit, 2)]
            density = _number(tags.get(Base.FocalPlaneXResolution)) / unit  # pixels per millimetre
            focal = _number(tags.get(Base.FocalLength)) * density * max(image_size) / max(taken)
        return focal if SHORTEST <= focal * film <= LONGEST else None
    except Exception:  # EXIF is written by anything; decoders raise nearly everything on what is broken
        return None


def _tags(source: str | os.PathLike | bytes | Image.Image) -> dict:
    if isinstance(source, Image.Image):
        return source.getexif().get_ifd(IFD.Exif)
    Image.init()
    formats = [name for name in WITH_EXIF if name in Image.OPEN]
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as image:
        return image.getexif().get_ifd(IFD.Exif)


def _number(value: object) -> float:
    """0 for what is absent or no number above 0."""
    number = float(value) if value is not None else 0.0
    return number if math.isfinite(number) and number > 0 else 0.0


def _shape(size: list[float] | tuple[int, int]) -> float:
    return max(size) / min(size)
