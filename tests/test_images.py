"""Decode images from users: formats, orientations, modes, arrays, and refusals."""

import io
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinoviz.images import FORMATS, ImageError, find_images, open_image


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A grey PNG of any size in its header, whatever its data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def ramp(top: float, dtype) -> np.ndarray:
    """0 to `top` from left to right, 16 rows of 64 values."""
    return np.tile(np.linspace(0, top, 64), (16, 1)).astype(dtype)


def expected_ramp() -> np.ndarray:
    return np.tile(np.linspace(0, 255, 64), (16, 1))


def assert_ramp(image: Image.Image) -> None:
    assert image.mode == "RGB"
    # One level of 255: half from our rounding, half from that of the integers given.
    np.testing.assert_allclose(np.asarray(image), expected_ramp()[..., None].repeat(3, axis=2), atol=1)


def refused(source, **kwargs) -> str:
    """The message of the refusal, which is always one sentence on one line."""
    with pytest.raises(ImageError) as refusal:
        open_image(source, **kwargs)
    text = str(refusal.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "JPEG", "AVIF", "ICO"])
def test_every_promised_format_is_decoded(file_format, astronaut):
    small = astronaut.resize((64, 64))
    opened = open_image(encoded(small, file_format))
    assert (opened.mode, opened.size) == ("RGB", (64, 64))
    # 12 of 255 on average: what GIF's 256 colours and the lossy formats' default quality may cost.
    assert np.abs(np.asarray(opened, dtype=float) - np.asarray(small)).mean() < 12


def test_paths_bytes_pictures_and_arrays_are_the_same_picture(astronaut, tmp_path):
    path = tmp_path / "astronaut.png"
    astronaut.save(path)
    for source in (path, str(path), path.read_bytes(), astronaut, np.asarray(astronaut)):
        np.testing.assert_array_equal(np.asarray(open_image(source)), np.asarray(astronaut))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, chelsea, tmp_path):
    upright = chelsea.resize((90, 60))
    # As the sensor stores the picture: the inverse of what the orientation tag tells the reader to do.
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "photo.png")), np.asarray(upright))


def test_a_broken_exif_block_is_ignored(chelsea):
    data = encoded(chelsea, "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff broken")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of the block, as it should
        assert open_image(data).size == chelsea.size


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composited_on_white(mode):
    image = Image.new("RGBA", (20, 10), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 10, 10))
    image.paste((0, 0, 0, 128), (0, 0, 5, 5))
    opened = np.asarray(open_image(image.convert(mode)))
    assert (opened[:, 10:] == 0).all()
    assert (opened[5:, :10] == 255).all()
    assert (opened[:5, :5] == 127).all()  # half black over white


def test_palette_transparency_is_composited_on_white():
    image = Image.new("P", (20, 10), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (10, 0, 20, 10))
    opened = open_image(encoded(image, "PNG", transparency=0))
    assert opened.getpixel((0, 0)) == (255, 255, 255)
    assert opened.getpixel((19, 9)) == (200, 100, 50)


def test_a_palette_without_transparency_keeps_its_colours():
    image = Image.new("P", (20, 10), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    assert open_image(encoded(image, "PNG")).getpixel((3, 3)) == (200, 100, 50)


def test_cmyk_jpeg_keeps_its_colours(coffee):
    data = encoded(coffee.convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    opened = np.asarray(open_image(data), dtype=float)
    # JPEG at quality 95 is 2 levels off on average here; inverted inks would be 100.
    assert np.abs(opened - np.asarray(coffee)).mean() < 4


@pytest.mark.parametrize("mode", ["1", "L", "RGBX", "YCbCr", "HSV", "LAB", "I", "F", "I;16"])
def test_every_other_mode_becomes_rgb(mode):
    opened = open_image(Image.new(mode, (16, 16)))
    assert (opened.mode, opened.size) == ("RGB", (16, 16))


def test_grey_is_the_same_in_all_three_channels():
    assert_ramp(open_image(Image.fromarray(ramp(255, np.uint8))))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_deep_grey_files_are_scaled_by_the_bits_they_use(file_format, bits):
    # Sensors store 12 bits in 16 without scaling; divided by 65535 such a picture would be black.
    image = Image.fromarray(ramp(2**bits - 1, np.uint16))
    assert image.mode.startswith("I")
    assert_ramp(open_image(encoded(image, file_format)))


@pytest.mark.parametrize(
    "array",
    [
        ramp(1, np.float32),
        ramp(1, np.float16),
        ramp(255, np.float64),
        ramp(1, np.float64) * 6 - 3,
        ramp(255, np.int64),
        ramp(4095, np.int32),
        ramp(255, np.int16) - 100,
        ramp(65535, np.uint16)[..., None].repeat(3, axis=2),
        ramp(1, np.float32)[..., None],
    ],
    ids=["unit", "half", "byte", "any", "int64", "int32", "negative", "rgb16", "one-channel"],
)
def test_numbers_of_any_type_are_scaled_to_bytes(array):
    assert_ramp(open_image(array))


def test_a_bool_array_is_black_and_white():
    opened = np.asarray(open_image(np.eye(16, dtype=bool)))
    assert opened[0, 0].tolist() == [255, 255, 255]
    assert opened[0, 1].tolist() == [0, 0, 0]


def test_a_constant_array_is_accepted():
    assert open_image(np.full((16, 16), 1000.0)).getpixel((0, 0)) == (0, 0, 0)


def test_a_float_array_with_alpha_is_composited_on_white():
    array = np.zeros((16, 16, 4))
    array[:8, :, 3] = 1
    opened = np.asarray(open_image(array))
    assert (opened[:8] == 0).all()
    assert (opened[8:] == 255).all()


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100, loop=0)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert open_image(data).getpixel((5, 5)) == (255, 0, 0)


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_file_cut_off_anywhere_is_refused(file_format, astronaut):
    data = encoded(astronaut.resize((64, 64)), {"DIB": "BMP"}.get(file_format, file_format))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of cut TIFF directories
        for length in (1, 7, 20, 60, 150, len(data) // 2):
            if length < len(data):
                assert refused(data[:length], name="photo").startswith("photo: ")


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "BMP"])
def test_the_refusal_of_half_a_file_says_truncated(file_format, astronaut):
    data = encoded(astronaut, file_format)
    assert "truncated" in refused(data[: len(data) // 2], name="photo")


def test_a_damaged_png_is_refused(astronaut):
    data = bytearray(encoded(astronaut, "PNG"))
    data[200:5000] = bytes(4800)
    assert re.search("damaged|truncated", refused(bytes(data)))


@pytest.mark.slow
def test_a_real_900_megapixel_png_is_refused():
    assert "50 million" in refused(encoded(Image.new("1", (30_000, 30_000)), "PNG"))


def not_finite(value: float) -> np.ndarray:
    array = np.zeros((16, 16, 3), dtype=np.float32)
    array[3, 4, 1] = value
    return array


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (b"This is no picture at all, whatever its name says.\n" * 20, "PNG, JPEG, WebP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\n", "PNG, JPEG, WebP"),  # would start Ghostscript
        (b"", "empty"),
        # Only the header claims these pixels: nothing may be decoded, nor 900 MB be reserved, to find out the size.
        (png(30_000, 30_000), "50 million"),
        (png(10_000, 6_000), "10000 x 6000 .* 50 million"),
        (png(3_000, 3_000), "truncated"),
        (png(1, 1), "1 x 1 .* at least 8"),
        (not_finite(np.nan), "NaN"),
        (not_finite(np.inf), "infinity"),
        (np.zeros((3, 16, 16), dtype=np.uint8), r"\(3, 16, 16\); channels come last"),
        (np.zeros(5), r"\(5,\)"),
        (np.zeros((0, 0, 3)), "0 x 0 .* at least 8"),
        (np.full((16, 16), "a"), "<U1"),
        ("nothing.png", "nothing.png: "),
        ("a" * 5_000, "File name too long"),
        (Path(__file__).parent, "folder"),
        (None, "NoneType"),
        (3, "int"),
        ([[1, 2], [3, 4]], "list"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 50 else "",
)
def test_sources_that_are_not_images_are_refused(source, named):
    assert re.search(named, refused(source))


def test_a_file_is_called_by_its_name_and_bytes_as_given(tmp_path):
    (tmp_path / "empty.jpg").touch()
    assert refused(tmp_path / "empty.jpg").startswith("empty.jpg: ")
    assert refused(b"", name="photo").startswith("photo: ")


def test_the_limit_on_pixels_can_be_chosen(chelsea):
    assert "0.1 million" in refused(chelsea, max_pixels=100_000)


def test_a_folder_gives_the_images_below_it_in_order(tmp_path):
    names = ["b.png", "a.JPG", "notes.txt", "deeper/c.webp"]
    (tmp_path / "deeper").mkdir()
    for name in names:
        (tmp_path / name).touch()
    found = find_images([tmp_path])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a.JPG", "b.png", "deeper/c.webp"]


def test_a_named_file_is_kept_whatever_its_suffix(tmp_path):
    (tmp_path / "picture").touch()
    assert find_images([tmp_path / "picture"]) == [tmp_path / "picture"]


def test_paths_without_images_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ImageError, match=re.escape(path.name)):
            find_images([path])
