"""PatchGrid: conversions between frames, patches of points, resized maps, and refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dinoviz.errors import DinovizError
from dinoviz.grid import MAX_PATCHES, MAX_RESOLUTION, MIN_RESOLUTION, PatchGrid

# Up to 3:1, so that these resolutions stay under the bound on patches.
sides = st.tuples(st.integers(100, 3000), st.floats(1 / 3, 3)).map(lambda s: (s[0], max(8, round(s[0] * s[1]))))
grids = st.builds(PatchGrid.fit, sides, st.integers(MIN_RESOLUTION, 560), st.sampled_from([8, 14, 16]))
fractions = st.floats(0, 1)
frames = st.sampled_from(["image", "model", "patch"])


@given(grids, frames, frames, fractions, fractions)
def test_points_go_there_and_back(grid, source, target, x, y):
    points = np.multiply((x, y), grid.size(source))
    there_and_back = grid.points(grid.points(points, source, target), target, source)
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


# Each example draws an array of this size, which takes milliseconds; 30 examples are enough.
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


def test_a_grid_on_a_copy_of_the_picture_has_the_same_patches():
    grid = PatchGrid.fit((300, 200), 224, 14)
    copy = grid.at((60, 40))
    assert (copy.image_size, copy.model_size, copy.shape) == ((60, 40), grid.model_size, grid.shape)
    np.testing.assert_allclose(copy.patch_box((3, 5)), grid.patch_box((3, 5)) / 5)


def test_a_square_at_the_largest_resolution_is_allowed():
    assert PatchGrid.fit((500, 500), MAX_RESOLUTION, 14).patches == MAX_PATCHES


@given(sides, st.sampled_from([8, 14, 16]))
def test_the_largest_resolution_is_accepted_and_the_next_is_not(size, patch_size):
    largest = PatchGrid.largest_resolution(size, patch_size)
    assert PatchGrid.fit(size, largest, patch_size).patches <= MAX_PATCHES
    if largest + patch_size <= MAX_RESOLUTION:
        with pytest.raises(DinovizError, match=f" {largest} px"):
            PatchGrid.fit(size, largest + patch_size, patch_size)


GRID = PatchGrid.fit((300, 200), 224, 14)


@pytest.mark.parametrize(
    ("refused", "named"),
    [
        *((lambda xy=xy: GRID.patch_at(xy), "300 x 200") for xy in ((-1, 5), (5, 201), (301, 5), (np.nan, 5))),
        (lambda: GRID.to_patches(np.zeros((300, 200))), r"\(200, 300\)"),
        *(
            (lambda size=size: PatchGrid.fit((300, 200), size, 14), f"32 to 1792, not {size}")
            for size in (MIN_RESOLUTION - 1, MAX_RESOLUTION + 1, 0, -518)
        ),
        (lambda: PatchGrid.fit((900, 300), 1540, 14), "110 x 330 patches.* 16,384.* 1022 px"),
        (lambda: PatchGrid.fit((8, 60_000), 224, 14), "long and narrow"),
        (lambda: GRID.size("page"), "'page'"),
        (lambda: GRID.resize(np.zeros(GRID.shape), "image", "cubic"), "'cubic'"),
        (lambda: GRID.points([1, 2, 3], "image", "patch"), r"\(3,\)"),
        (lambda: GRID.boxes([1, 2], "image", "patch"), r"\(2,\)"),
        (lambda: PatchGrid((300, 200), (224, 150), 14), "150"),
        (lambda: PatchGrid((0, 200), (224, 154), 14), "positive"),
    ],
)
def test_arguments_out_of_range_are_refused(refused, named):
    with pytest.raises(DinovizError, match=named):
        refused()
