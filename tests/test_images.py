import io
import re
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dinoviz.errors import DinovizError
from dinoviz.grid import MAX_PATCHES, MAX_RESOLUTION, MIN_RESOLUTION, PatchGrid
from dinoviz.images import FORMATS, ImageError, find_images, open_image

UNREADABLE = "this is not an image that can be read (PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF and PNM are)."


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A grey PNG whose header says what we like, whatever the pixels are."""

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


def sentence(source, **kwargs) -> str:
    """What the person is told, with the checks that hold for every refusal: one sentence, on one line."""
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


def test_no_format_starts_another_program():
    assert "EPS" not in FORMATS
    assert "cannot" not in sentence(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\n", name="figure.eps")


def test_paths_bytes_pictures_and_arrays_are_the_same_picture(astronaut, tmp_path):
    path = tmp_path / "astronaut.png"
    astronaut.save(path)
    for source in (path, str(path), path.read_bytes(), astronaut, np.asarray(astronaut)):
        np.testing.assert_array_equal(np.asarray(open_image(source)), np.asarray(astronaut))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, chelsea, tmp_path):
    upright = chelsea.resize((90, 60))
    # How the sensor saw the picture: the inverse of what the orientation tag asks the reader to do.
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


def test_a_broken_exif_block_does_not_refuse_the_pixels(chelsea):
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


def test_a_constant_array_is_a_picture_too():
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


def test_text_named_png(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("This is no picture at all, whatever its name says.\n" * 20)
    assert sentence(path) == f"notes.png: {UNREADABLE}"


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "BMP"])
def test_a_truncated_file(file_format, astronaut):
    data = encoded(astronaut, file_format)
    text = sentence(data[: len(data) // 2], name="photo")
    assert text == "photo: the image data is truncated, the picture cannot be decoded."


@pytest.mark.parametrize("file_format", FORMATS)
def test_no_cut_of_any_format_is_more_than_a_sentence(file_format, astronaut):
    data = encoded(astronaut.resize((64, 64)), {"DIB": "BMP"}.get(file_format, file_format))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of cut TIFF directories before it gives up
        for length in (1, 7, 20, 60, 150, len(data) // 2):
            if length < len(data):
                assert sentence(data[:length], name="photo").startswith("photo: ")


def test_a_damaged_png(astronaut):
    data = bytearray(encoded(astronaut, "PNG"))
    data[200:5000] = bytes(4800)
    assert re.fullmatch(
        r"photo\.png: the image data is (damaged|truncated), the picture cannot be decoded\.",
        sentence(bytes(data), name="photo.png"),
    )


def test_an_empty_file(tmp_path):
    path = tmp_path / "empty.jpg"
    path.touch()
    assert sentence(path) == "empty.jpg: the file is empty."


def test_a_900_megapixel_png_is_refused_before_decoding():
    # The pixels are not even there: nothing may be decoded, nor 900 MB be reserved, to find out the size.
    text = sentence(png(30_000, 30_000), name="huge.png")
    assert text == "huge.png: the picture is too large; at most 50 million pixels are accepted."


@pytest.mark.slow
def test_a_true_900_megapixel_png_is_refused_as_well():
    text = sentence(encoded(Image.new("1", (30_000, 30_000)), "PNG"), name="huge.png")
    assert text == "huge.png: the picture is too large; at most 50 million pixels are accepted."


def test_a_60_megapixel_png_is_refused_with_its_size():
    text = sentence(png(10_000, 6_000), name="large.png")
    assert text == "large.png: 10000 x 6000 pixels is too large; at most 50 million pixels are accepted."


def test_the_limit_on_pixels_can_be_chosen(chelsea):
    text = sentence(chelsea, name="chelsea", max_pixels=100_000)
    assert text == "chelsea: 451 x 300 pixels is too large; at most 0.1 million pixels are accepted."


def test_a_header_with_no_pixels_behind_it():
    text = sentence(png(3_000, 3_000), name="lying.png")
    assert text == "lying.png: the image data is truncated, the picture cannot be decoded."


def test_a_single_pixel():
    text = sentence(encoded(Image.new("RGB", (1, 1)), "PNG"), name="dot.png")
    assert text == "dot.png: 1 x 1 pixels is too small; each side needs at least 8."


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_array_with_nan_or_infinity(value):
    array = np.zeros((16, 16, 3), dtype=np.float32)
    array[3, 4, 1] = value
    assert sentence(array) == "The array: the image contains values that are not finite numbers (NaN or infinity)."


def test_an_array_with_channels_first():
    text = sentence(np.zeros((3, 16, 16), dtype=np.uint8))
    assert text == "The array: an image array is (H, W), (H, W, 3) or (H, W, 4), not (3, 16, 16); channels come last."


def test_an_array_of_another_rank():
    assert sentence(np.zeros(5)) == "The array: an image array is (H, W), (H, W, 3) or (H, W, 4), not (5,)."


def test_an_array_without_pixels():
    assert sentence(np.zeros((0, 0, 3))) == "The array: 0 x 0 pixels is too small; each side needs at least 8."


def test_an_array_that_holds_no_numbers():
    assert sentence(np.full((16, 16), "a")) == "The array: an image array holds numbers, not <U1."


def test_a_missing_file(tmp_path):
    assert sentence(tmp_path / "nothing.png") == "nothing.png: there is no such file."


def test_a_name_that_no_file_system_takes():
    assert sentence("a" * 5_000).endswith("the file cannot be opened (File name too long).")


def test_a_folder(tmp_path):
    assert sentence(tmp_path, name="album") == "album: this is a folder, not an image."


@pytest.mark.parametrize(("thing", "kind"), [(None, "NoneType"), (3, "int"), ([[1, 2], [3, 4]], "list")])
def test_a_thing_that_is_no_image(thing, kind):
    assert sentence(thing) == f"An image must be a path, bytes, a PIL image or an array, not {kind}."


def test_a_folder_gives_the_images_below_it_in_order(tmp_path):
    names = ["b.png", "a.JPG", "notes.txt", "deeper/c.webp"]
    (tmp_path / "deeper").mkdir()
    for name in names:
        (tmp_path / name).touch()
    found = find_images([tmp_path])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a.JPG", "b.png", "deeper/c.webp"]


def test_a_file_that_was_named_is_kept_whatever_it_is_called(tmp_path):
    (tmp_path / "picture").touch()
    assert find_images([tmp_path / "picture"]) == [tmp_path / "picture"]


def test_a_folder_without_images_is_told(tmp_path):
    with pytest.raises(ImageError, match=f"^There are no images in {re.escape(str(tmp_path))}.$"):
        find_images([tmp_path])


def test_a_path_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ImageError, match=r"nothing: there is no such file or folder\.$"):
        find_images([tmp_path / "nothing"])


# Up to 3:1, so that these resolutions stay under the bound on patches.
sides = st.tuples(st.integers(100, 3000), st.floats(1 / 3, 3)).map(lambda s: (s[0], max(8, round(s[0] * s[1]))))
grids = st.builds(PatchGrid.fit, sides, st.integers(MIN_RESOLUTION, 560), st.sampled_from([8, 14, 16]))
fractions = st.floats(0, 1)
frames = st.sampled_from(["image", "model", "patch"])


@given(grids, frames, frames, fractions, fractions)
def test_points_go_there_and_back(grid, source, target, x, y):
    points = np.multiply((x, y), grid.size(source))
    there_and_back = grid.points(grid.points(points, source, target), target, source)
    # Half a pixel is what a person could see; the arithmetic is exact but for rounding.
    assert np.abs(there_and_back - points).max() <= 0.5
    np.testing.assert_allclose(there_and_back, points, atol=1e-9)


@given(grids, frames, frames)
def test_corners_are_corners_in_every_frame(grid, source, target):
    corners = np.array([(0, 0), grid.size(source)])
    np.testing.assert_allclose(grid.points(corners, source, target), [(0, 0), grid.size(target)], atol=1e-9)


@given(grids, frames, frames, st.tuples(fractions, fractions, fractions, fractions))
def test_boxes_go_there_and_back(grid, source, target, box):
    box = np.multiply(box, np.tile(grid.size(source), 2))
    there = grid.boxes(box, source, target)
    np.testing.assert_allclose(there[:2], grid.points(box[:2], source, target))
    np.testing.assert_allclose(grid.boxes(there, target, source), box, atol=1e-9)


@given(grids, frames, st.data())
def test_the_middle_of_a_patch_lies_in_the_patch(grid, frame, data):
    h, w = grid.shape
    patch = data.draw(st.tuples(st.integers(0, h - 1), st.integers(0, w - 1)))
    left, top, right, bottom = grid.patch_box(patch, frame)
    assert tuple(grid.patch_at(((left + right) / 2, (top + bottom) / 2), frame)) == patch


@given(grids)
def test_the_far_corner_belongs_to_the_last_patch(grid):
    h, w = grid.shape
    assert tuple(grid.patch_at(grid.image_size)) == (h - 1, w - 1)


@given(grids)
def test_aspect_ratio_is_kept_to_within_half_a_patch(grid):
    scale = np.divide(grid.model_size, grid.image_size)
    short = int(np.argmin(grid.image_size))
    # Each side is off by at most half a patch from where the same scale would put it; the long side sees the
    # rounding of the short one too, grown by the aspect ratio.
    expected = grid.image_size[1 - short] * scale[short]
    aspect = grid.image_size[1 - short] / grid.image_size[short]
    assert abs(grid.model_size[1 - short] - expected) <= grid.patch_size / 2 * (1 + aspect) + 1e-6


# Drawing arrays of this size takes hypothesis milliseconds each; 30 pictures say it all.
@settings(max_examples=30, deadline=None)
@given(grids, st.sampled_from(["image", "model"]), st.integers(0, 2**32 - 1))
def test_the_mean_of_a_mask_is_the_mean_of_its_patches(grid, frame, seed):
    width, height = grid.size(frame)
    mask = np.random.default_rng(seed).random((height, width)) < 0.3
    # float32 of shares in [0, 1]
    assert grid.to_patches(mask).mean(dtype=np.float64) == pytest.approx(mask.mean(), abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(grids, st.data())
def test_a_mask_of_one_patch_covers_that_patch_alone(grid, data):
    h, w = grid.shape
    y, x = data.draw(st.tuples(st.integers(0, h - 1), st.integers(0, w - 1)))
    left, top, right, bottom = grid.patch_box((y, x), "model").astype(int)
    mask = np.zeros(grid.model_size[::-1], dtype=bool)
    mask[top:bottom, left:right] = True
    expected = np.zeros(grid.shape)
    expected[y, x] = 1
    np.testing.assert_allclose(grid.to_patches(mask), expected, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(grids, frames)
def test_nearest_keeps_values_and_dtype(grid, frame):
    values = np.arange(grid.patches).reshape(grid.shape)
    drawn = grid.resize(values, frame, "nearest")
    width, height = grid.size(frame)
    assert drawn.shape == (height, width)
    assert drawn.dtype == values.dtype
    assert set(np.unique(drawn)) <= set(range(grid.patches))


@settings(max_examples=30, deadline=None)
@given(grids, st.sampled_from(["image", "model"]))
def test_nearest_draws_in_each_pixel_the_patch_that_holds_its_centre(grid, frame):
    h, w = grid.shape
    drawn = grid.resize(np.arange(h * w).reshape(h, w), frame, "nearest")
    width, height = grid.size(frame)
    across = np.stack([np.arange(width) + 0.5, np.full(width, 0.5)], axis=1)
    down = np.stack([np.full(height, 0.5), np.arange(height) + 0.5], axis=1)
    columns, rows = grid.patch_at(across, frame)[:, 1], grid.patch_at(down, frame)[:, 0]
    np.testing.assert_array_equal(drawn, rows[:, None] * w + columns)


@settings(max_examples=30, deadline=None)
@given(grids, frames, st.sampled_from(["nearest", "bilinear"]), st.floats(-100, 100, width=32))
def test_a_constant_stays_constant(grid, frame, mode, value):
    drawn = grid.resize(np.full(grid.shape, value, dtype=np.float32), frame, mode)
    # float32 interpolation weights add up to 1 within rounding
    np.testing.assert_allclose(drawn, value, rtol=1e-5, atol=1e-6)


def test_bilinear_is_exact_at_the_centres_of_patches():
    grid = PatchGrid((224, 224), (224, 224), 16)  # even patches would put the centre between two pixels
    values = np.random.default_rng(0).random(grid.shape)
    drawn = grid.resize(values, "image")
    # The centre lies between four pixels, over which bilinear interpolation is linear but for the cross term.
    around = np.mean([drawn[7 + i :: 16, 7 + j :: 16] for i in (0, 1) for j in (0, 1)], axis=0)
    # The four pixels reach half a pixel into each neighbour: 1/32 of the difference, mostly cancelled.
    np.testing.assert_allclose(around, values, atol=2 / 32)


@pytest.mark.parametrize("channels", [1, 3, 200])
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_maps_of_any_number_of_channels_are_drawn(channels, mode):
    grid = PatchGrid.fit((300, 200), 224, 14)
    values = np.random.default_rng(0).random((*grid.shape, channels), dtype=np.float32)
    drawn = grid.resize(values, "image", mode)
    assert drawn.shape == (200, 300, channels)
    # OpenCV takes another path for a single channel: float32 rounding of values in [0, 1].
    np.testing.assert_allclose(drawn[..., -1], grid.resize(values[..., -1], "image", mode), atol=2e-6)


def parts(size: tuple[int, int], colours: list[tuple[int, int, int]]) -> Image.Image:
    """A picture of equal bands across its long side."""
    image = Image.new("RGB", size)
    long = int(np.argmax(size))
    for i, colour in enumerate(colours):
        edges = [0, 0, *size]
        edges[long], edges[long + 2] = i * size[long] // len(colours), (i + 1) * size[long] // len(colours)
        image.paste(colour, tuple(edges))
    return image


@pytest.mark.parametrize("size", [(1230, 410), (410, 1230)], ids=["3:1 panorama", "1:3 portrait"])
def test_clicks_on_long_pictures_land_on_the_right_patch(size):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]
    picture = parts(size, colours)
    grid = PatchGrid.fit(size, 420, 14)
    assert grid.shape == ((30, 90) if size[0] > size[1] else (90, 30))
    seen = np.asarray(picture.resize(grid.model_size, Image.Resampling.BICUBIC))
    long = int(np.argmax(size))
    for i, colour in enumerate(colours):
        click = [size[0] / 2, size[1] / 2]
        click[long] = (i + 0.5) * size[long] / len(colours)
        y, x = grid.patch_at(click)
        assert np.unique(seen[y * 14 : y * 14 + 14, x * 14 : x * 14 + 14].reshape(-1, 3), axis=0).tolist() == [
            list(colour)
        ]


@pytest.mark.parametrize("size", [(1230, 410), (410, 1230)], ids=["3:1 panorama", "1:3 portrait"])
def test_maps_of_long_pictures_have_the_picture_s_shape(size):
    grid = PatchGrid.fit(size, 224, 14)
    assert grid.resize(np.zeros(grid.shape), "image").shape == size[::-1]


@pytest.mark.parametrize("xy", [(-1, 5), (5, 201), (301, 5), (np.nan, 5)])
def test_a_point_outside_the_picture_is_told(xy):
    grid = PatchGrid.fit((300, 200), 224, 14)
    with pytest.raises(DinovizError, match=r"^The point .* is outside the picture of 300 x 200\.$"):
        grid.patch_at(xy)


def test_a_mask_of_another_picture_is_told():
    grid = PatchGrid.fit((300, 200), 224, 14)
    with pytest.raises(
        DinovizError, match=r"^The mask has \(200, 300\) pixels, the picture \(300, 200\): they must be the same\.$"
    ):
        grid.to_patches(np.zeros((300, 200)))


@pytest.mark.parametrize("resolution", [MIN_RESOLUTION - 1, MAX_RESOLUTION + 1, 0, -518])
def test_a_resolution_out_of_range_is_told(resolution):
    with pytest.raises(
        DinovizError,
        match=rf"^The resolution is the short side in model pixels, 32 to 1792, not {resolution}\.$",
    ):
        PatchGrid.fit((300, 200), resolution, 14)


def test_the_square_at_the_largest_resolution_is_allowed():
    assert PatchGrid.fit((500, 500), MAX_RESOLUTION, 14).patches == MAX_PATCHES


def test_too_many_patches_are_explained_with_what_would_do():
    with pytest.raises(DinovizError) as refusal:
        PatchGrid.fit((900, 300), 1540, 14)
    assert str(refusal.value) == (
        "900 x 300 pixels at 1540 px would be 110 x 330 patches; attention over more than 16,384 is not attempted: "
        "choose 1022 px or less."
    )


def test_a_picture_too_long_for_any_resolution_is_told():
    assert PatchGrid.largest_resolution((8, 60_000), 14) is None
    with pytest.raises(DinovizError, match=r"the picture is too long and narrow\.$"):
        PatchGrid.fit((8, 60_000), 224, 14)


@given(sides, st.sampled_from([8, 14, 16]))
def test_the_largest_resolution_is_accepted_and_the_next_is_not(size, patch_size):
    largest = PatchGrid.largest_resolution(size, patch_size)
    assert PatchGrid.fit(size, largest, patch_size).patches <= MAX_PATCHES
    if largest + patch_size <= MAX_RESOLUTION:
        with pytest.raises(DinovizError, match=f"choose {largest} px or less"):
            PatchGrid.fit(size, largest + patch_size, patch_size)
