"""Cameras: focal lengths from EXIF data, the assumed one, and resized pictures."""

import io
import math
import re

import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from dinoviz.depth import middlebury as stereo
from dinoviz.depth.camera import Camera, exif_focal
from dinoviz.errors import DinovizError
from dinoviz.images import open_image

SIZE = (400, 300)
DIAGONAL = math.hypot(36, 24)
PIXELS_OF_26 = 26 / DIAGONAL * 500  # the diagonal of 400 x 300 is 500


def photo(size=SIZE, form="JPEG", orientation=1, **tags) -> bytes:
    """A picture with EXIF entries, by their names in `PIL.ExifTags`."""
    from PIL import ExifTags

    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.IFD.Exif] = {ExifTags.Base[name]: value for name, value in tags.items()}
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, form, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_the_equivalent_on_film_gives_the_focal_length(form):
    assert exif_focal(photo(form=form, FocalLengthIn35mmFilm=26), SIZE) == pytest.approx(PIXELS_OF_26)


def test_the_sensors_resolution_gives_the_focal_length():
    sensor = {"FocalLength": IFDRational(8), "ExifImageWidth": 400, "ExifImageHeight": 300}
    inch = photo(**sensor, FocalPlaneXResolution=IFDRational(2540), FocalPlaneResolutionUnit=2)
    centimetre = photo(**sensor, FocalPlaneXResolution=IFDRational(1000), FocalPlaneResolutionUnit=3)
    silent = photo(**sensor, FocalPlaneXResolution=IFDRational(2540))  # inches, by the standard
    for data in (inch, centimetre, silent):
        assert exif_focal(data, SIZE) == pytest.approx(800)
    assert exif_focal(inch, (200, 150)) == pytest.approx(400)  # the copy of half the size


@pytest.mark.parametrize("tags", [
    {"FocalLengthIn35mmFilm": 26},
    {"FocalLength": IFDRational(8), "FocalPlaneXResolution": IFDRational(2540)},
])  # fmt: skip
def test_a_picture_held_upright_has_the_focal_length_of_one_that_is_not(tags):
    sizes = {"ExifImageWidth": 400, "ExifImageHeight": 300}
    flat = exif_focal(photo(**sizes, **tags), SIZE)
    turned = photo(orientation=6, **sizes, **tags)
    upright = open_image(turned)
    assert upright.size == (300, 400)
    assert exif_focal(turned, upright.size) == pytest.approx(flat)
    assert exif_focal(upright, upright.size) == pytest.approx(flat)  # the opened picture still tells


def test_a_file_gives_the_same_as_its_bytes(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo(FocalLengthIn35mmFilm=26))
    assert exif_focal(path, SIZE) == exif_focal(str(path), SIZE) == pytest.approx(PIXELS_OF_26)


@pytest.mark.parametrize("tags", [
    {},
    {"FocalLengthIn35mmFilm": 0},
    {"FocalLengthIn35mmFilm": 1},
    {"FocalLengthIn35mmFilm": 65535},
    {"FocalLength": IFDRational(5)},  # without the size of the sensor
    {"FocalLength": IFDRational(5), "FocalPlaneXResolution": IFDRational(1000)},  # of a picture of unknown width
    {"FocalLength": IFDRational(5, 0), "FocalPlaneXResolution": IFDRational(1000), "ExifImageWidth": 400,
     "ExifImageHeight": 300},
    {"FocalLength": IFDRational(5), "FocalPlaneXResolution": IFDRational(0), "ExifImageWidth": 400,
     "ExifImageHeight": 300},
    {"FocalLength": IFDRational(5), "FocalPlaneXResolution": IFDRational(1000), "FocalPlaneResolutionUnit": 9,
     "ExifImageWidth": 400, "ExifImageHeight": 300},
    {"FocalLengthIn35mmFilm": 26, "ExifImageWidth": 400, "ExifImageHeight": 225},  # cropped since
], ids=repr)  # fmt: skip
def test_an_unknown_focal_length_is_none(tags):
    assert exif_focal(photo(**tags), SIZE) is None


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read")  # Pillow's own
def test_broken_exif_is_none(tmp_path):
    whole = photo(FocalLengthIn35mmFilm=26)
    start = whole.index(b"Exif\0\0") + 6
    for at in range(start, start + 60, 3):
        broken = whole[:at] + b"\xff\xfe\x80" + whole[at + 3 :]
        found = exif_focal(broken, SIZE)
        assert found is None or 0 < found < math.inf
    for nothing in (b"", b"no picture", whole[:20], tmp_path, tmp_path / "absent.jpg", None):
        assert exif_focal(nothing, SIZE) is None


def test_a_given_focal_length_precedes_exif_and_exif_the_assumption():
    given, from_exif, assumed = Camera.of(SIZE, 500, 250), Camera.of(SIZE, None, PIXELS_OF_26), Camera.of(SIZE)
    assert (given.fx, given.fy, given.cx, given.cy, given.source) == (500, 500, 200, 150, "given")
    assert from_exif.fx == pytest.approx(PIXELS_OF_26)
    assert re.search("EXIF.* 26 mm", from_exif.source)
    assert assumed.fx == pytest.approx(28 / DIAGONAL * 500)
    assert re.search("assumed: 28 mm", assumed.source)


def test_the_assumed_camera_is_the_one_of_nyu_depth():
    assert Camera.of((640, 480)).fx == pytest.approx(518.86, rel=0.003)


@pytest.mark.parametrize("focal", [0, -500, 5, 1e6, math.nan, math.inf])
def test_a_focal_length_that_no_lens_has_is_refused(focal):
    with pytest.raises(DinovizError, match="69 to 34669 pixels"):
        Camera.of(SIZE, focal)


def test_a_scaled_camera_sees_the_same():
    camera = stereo.CAMERA
    small = camera.scaled((741, 500), (247, 100))
    # The middle of the picture looks the same way in both.
    assert (123.5 - small.cx) / small.fx == pytest.approx((370.5 - camera.cx) / camera.fx)
    assert (50 - small.cy) / small.fy == pytest.approx((250 - camera.cy) / camera.fy)
    assert small.source == camera.source
    back = small.scaled((247, 100), (741, 500))
    assert (back.fx, back.fy, back.cx, back.cy) == pytest.approx((camera.fx, camera.fy, camera.cx, camera.cy))
