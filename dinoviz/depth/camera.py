"""Pinhole cameras for back-projecting depth, with a focal length that is given, from EXIF data, or assumed."""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass
from typing import Any

from PIL import Image
from PIL.ExifTags import IFD, Base

from dinoviz.errors import DinovizError

FILM_DIAGONAL = math.hypot(36, 24)  # millimetres; 35 mm equivalents compare diagonals (CIPA DCG-001)
# Main cameras of phones have 24 to 28 mm. The Kinect of NYU Depth v2 has 28, to 0.2 %, and models trained on its
# pictures assume this camera for every picture.
ASSUMED = 28
# From the widest fisheye to the longest zoom on sale, in millimetres on film; other values are wrong entries.
SHORTEST, LONGEST = 6, 3000
CROPPED = 0.02  # relative difference of the aspect ratio from that of the original: more than rounding of the sides

WITH_EXIF = ("JPEG", "PNG", "TIFF", "WEBP", "AVIF")
UNITS = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # millimetres, by the value of FocalPlaneResolutionUnit


@dataclass(frozen=True)
class Camera:
    """A pinhole camera for pictures of one size.

    fx, fy: focal length in pixels. cx, cy: principal point, with 0 at the left (top) edge of the picture, so the centre
    of the pixel in column i is at i + 0.5. source: where the focal length is from, for captions.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    source: str

    @classmethod
    def of(cls, image_size: tuple[int, int], focal: float | None = None, exif: float | None = None) -> Camera:
        """The camera of an uncropped picture, with the principal point at its centre.

        Args:
            image_size: (W, H) of the picture.
            focal: focal length in pixels of the picture, given by the user.
            exif: focal length in pixels from `exif_focal`, used if `focal` is None. If both are None, a lens of 28 mm
                on 35 mm film is assumed.

        Raises:
            DinovizError: for a given focal length that no lens has.
        """
        film = FILM_DIAGONAL / math.hypot(*image_size)  # millimetres of film per pixel
        if focal is not None:
            if not (math.isfinite(focal) and SHORTEST <= focal * film <= LONGEST):
                raise DinovizError(
                    f"The focal length of this picture must be {SHORTEST / film:.0f} to {LONGEST / film:.0f} pixels, "
                    f"not {focal:g}."
                )
            source = "given"
        elif exif is not None:
            focal, source = exif, f"from the picture's EXIF data: {exif * film:.0f} mm (35 mm equivalent)"
        else:
            focal, source = ASSUMED / film, f"assumed: {ASSUMED} mm (35 mm equivalent), typical of phones"
        width, height = image_size
        return cls(focal, focal, width / 2, height / 2, source)

    def scaled(self, size_from: tuple[int, int], size_to: tuple[int, int]) -> Camera:
        """The camera for a resized copy of its picture, from one (W, H) to another."""
        x, y = (to / of for to, of in zip(size_to, size_from, strict=True))
        return Camera(self.fx * x, self.fy * y, self.cx * x, self.cy * y, self.source)


def exif_focal(source: str | os.PathLike | bytes | Image.Image, image_size: tuple[int, int]) -> float | None:
    """The focal length of a picture from its EXIF data, in pixels at its size (W, H); None if unknown.

    From FocalLengthIn35mmFilm, else from FocalLength and the resolution of the sensor. Resized and rotated copies keep
    it; for a picture cropped to another aspect ratio it is unknown. Never raises.
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
    except Exception:  # decoders raise nearly anything on broken EXIF data
        return None


def _tags(source: str | os.PathLike | bytes | Image.Image) -> dict:
    if isinstance(source, Image.Image):
        return source.getexif().get_ifd(IFD.Exif)
    Image.init()
    formats = [name for name in WITH_EXIF if name in Image.OPEN]
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as image:
        return image.getexif().get_ifd(IFD.Exif)


def _number(value: Any) -> float:
    """The value as a float; 0 if it is absent or not a finite number above 0."""
    number = float(value) if value is not None else 0.0
    return number if math.isfinite(number) and number > 0 else 0.0


def _shape(size: list[float] | tuple[int, int]) -> float:
    return max(size) / min(size)
