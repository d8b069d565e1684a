import io
import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops

from dinoviz import figures, render
from dinoviz.attention import HeadStatistics, cls_attention
from dinoviz.errors import DinovizError
from dinoviz.grid import PatchGrid
from dinoviz.render import Sheet

GREY = Image.new("RGB", (280, 140), (90, 90, 90))


def grid_of(picture: Image.Image, resolution: int = 224) -> PatchGrid:
    return PatchGrid.fit(picture.size, resolution, 14)


def all_different(grid: PatchGrid) -> np.ndarray:
    """A map with another number in each patch, far enough apart for 8 bits: (h, w, 3) colours."""
    index = np.arange(grid.patches).reshape(grid.shape)
    return np.stack([index % 256, index // 256, index * 37 % 256], axis=-1) / 255


def assert_one_colour_per_patch(picture: Image.Image, grid: PatchGrid, values: np.ndarray) -> None:
    """Every pixel that lies wholly in a patch has the patch's colour, and no pixel has a colour of no patch."""
    expected = [tuple(colour) for colour in (values.reshape(-1, 3) * 255).round().astype(int)]
    for yx, colour in zip(np.ndindex(*grid.shape), expected, strict=True):
        left, top, right, bottom = grid.patch_box(yx)
        inner = picture.crop((math.ceil(left), math.ceil(top), math.floor(right), math.floor(bottom)))
        assert inner.getcolors() == [(inner.width * inner.height, colour)], f"patch {yx}"
    assert {colour for _, colour in picture.getcolors(1 << 24)} == set(expected)


def pixel_boxes(grid: PatchGrid) -> np.ndarray:
    """(h * w, 4): of each patch the pixels whose centres it holds."""
    boxes = np.array([grid.patch_box(yx) for yx in np.ndindex(*grid.shape)])
    return np.ceil(boxes - 0.5).astype(int)


# Colours


def test_the_ends_of_the_scale_are_the_ends_of_the_colour_map():
    table = render.colormap_table("viridis")
    coloured = render.colourise(np.array([[2.0, 4.0]]), (2, 4), "viridis")
    np.testing.assert_array_equal(coloured[0], table[[0, 255]])


def test_what_lies_outside_the_scale_gets_the_colour_of_its_end():
    coloured = render.colourise(np.array([[-50.0, 0.0, 1.0, 50.0]]), (0, 1))
    np.testing.assert_array_equal(coloured[0, 0], coloured[0, 1])
    np.testing.assert_array_equal(coloured[0, 3], coloured[0, 2])


def test_a_colour_map_is_red_first():
    # Viridis ends in yellow: OpenCV's blue-first order would make it cyan.
    red, green, blue = render.colormap_table("viridis")[-1].astype(int)
    assert red > 200
    assert green > 200
    assert blue < 100


def test_equal_steps_are_equal_steps_of_the_table():
    values = np.linspace(3, 7, 256)[None]
    np.testing.assert_array_equal(render.colourise(values, (3, 7), "magma")[0], render.colormap_table("magma"))


@pytest.mark.parametrize("level", [0.0, -3.5, 1e-30, 1e6])
def test_a_constant_map_has_one_colour(level):
    values = np.full((4, 6), level, dtype=np.float32)
    coloured = render.colourise(values, render.scale_of(values))
    assert coloured.dtype == np.uint8
    assert len(np.unique(coloured.reshape(-1, 3), axis=0)) == 1


def test_a_few_outliers_do_not_stretch_the_scale():
    values = np.linspace(0, 1, 1024)
    values[:4] = 1000  # 4 of 1024 are fewer than the half percent that is clipped
    low, high = render.scale_of(values)
    assert low == pytest.approx(4 / 1023)
    assert 0.98 < high <= 1


def test_a_single_bright_patch_on_nothing_is_still_seen():
    values = np.zeros((40, 40))
    values[3, 5] = 2
    assert render.scale_of(values) == (0, 2)


def test_an_unknown_colour_map_is_refused_with_the_known_names():
    with pytest.raises(DinovizError) as refusal:
        render.colormap_table("rainbow")
    assert all(name in str(refusal.value) for name in ("'rainbow'", *render.COLORMAPS))


@pytest.mark.parametrize("name", render.COLORMAPS)
def test_every_colour_map_offered_exists(name):
    table = render.colormap_table(name)
    assert table.shape == (256, 3)
    assert len(np.unique(table, axis=0)) > 100


# Pictures on the page


def test_a_large_picture_is_made_smaller(astronaut):
    assert render.display_copy(astronaut.resize((1536, 3000)), 768, 1024).size == (524, 1024)


def test_a_small_picture_is_enlarged(chelsea):
    assert render.display_copy(chelsea, 768, 1024).size == (768, round(300 * 768 / 451))


def test_a_picture_within_the_bounds_is_left_alone(coffee):
    assert render.display_copy(coffee, 512, 1024) is coffee


def test_a_display_copy_keeps_what_is_seen(astronaut):
    small = render.display_copy(astronaut, 64, 128)
    exact = astronaut.resize((128, 128), Image.Resampling.BOX)
    # Lanczos and a box mean differ at edges only: a few of 255 levels on average.
    assert np.abs(np.asarray(small, float) - np.asarray(exact, float)).mean() < 5


@pytest.mark.parametrize("size", [(3000, 8), (8, 3000)])
def test_a_long_and_narrow_picture_keeps_at_least_a_pixel(size):
    assert sorted(render.display_copy(Image.new("RGB", size), 64, 128).size) == [1, 128]


# One map over one picture


def test_opacity_0_is_the_photo(coffee, tiny_backbone):
    features = tiny_backbone.encode(coffee, 224)
    drawn = render.map_picture(coffee, features.grid, cls_attention(features)[0], opacity=0)
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(coffee))


def test_opacity_1_is_the_colour_map(coffee, tiny_backbone):
    features = tiny_backbone.encode(coffee, 224)
    values = cls_attention(features)[0]
    drawn = render.map_picture(coffee, features.grid, values, opacity=1, colormap="turbo", scale=(0.0, 0.02))
    expected = render.colourise(features.grid.resize(values, "image"), (0.0, 0.02), "turbo")
    np.testing.assert_array_equal(np.asarray(drawn), expected)


def test_opacity_between_is_the_mixture(coffee):
    grid = grid_of(coffee)
    colours = np.broadcast_to([1.0, 0.0, 0.0], (*grid.shape, 3))
    drawn = np.asarray(render.map_picture(coffee, grid, colours, opacity=0.25), dtype=float)
    expected = 0.25 * np.array([255, 0, 0]) + 0.75 * np.asarray(coffee, dtype=float)
    assert np.abs(drawn - expected).max() <= 0.51  # rounding to 8 bits


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("size", [(451, 300), (100, 100), (97, 301), (640, 214)])
def test_the_size_is_the_pictures(size, raw):
    picture = Image.new("RGB", size)
    grid = grid_of(picture)
    assert render.map_picture(picture, grid, np.ones(grid.shape), raw=raw).size == size


# Shown smaller and larger than the model's size, with sides that are no multiples of a patch.
@pytest.mark.parametrize("size", [(451, 300), (1301, 433), (151, 450), (224, 224)])
def test_the_raw_grid_has_one_colour_per_patch(size):
    picture = Image.new("RGB", size)
    grid = grid_of(picture)
    values = all_different(grid)
    drawn = render.map_picture(picture, grid, values, raw=True, opacity=1)
    lossless = Image.open(io.BytesIO(render.to_png(drawn)))
    assert_one_colour_per_patch(lossless, grid, values)


def test_the_raw_grid_of_another_picture_size_is_the_same_grid(chelsea):
    grid = grid_of(chelsea)
    values = all_different(grid)
    shown = render.display_copy(chelsea, 768, 1024)
    drawn = render.map_picture(shown, grid, values, raw=True, opacity=1)
    assert_one_colour_per_patch(drawn, PatchGrid(shown.size, grid.model_size, 14), values)


def test_a_smooth_map_has_the_patchs_colour_at_its_centre():
    picture = Image.new("RGB", (310, 210))  # 10 x 10 patches of odd sides: each has a pixel in its very middle
    grid = PatchGrid((310, 210), (140, 140), 14)
    values = all_different(grid)
    drawn = np.asarray(render.map_picture(picture, grid, values, opacity=1), dtype=float) / 255
    np.testing.assert_allclose(drawn[10::21, 15::31], values, atol=0.003)  # half a level of 255, and float32


def test_outside_the_mask_the_photo_is_grey_and_dim(coffee):
    grid = grid_of(coffee)
    mask = np.zeros(grid.shape, dtype=bool)
    mask[4:9, 5:12] = True
    drawn = np.asarray(render.map_picture(coffee, grid, np.ones(grid.shape), mask=mask), dtype=float)
    left, top, right, bottom = (*grid.patch_box((4, 5))[:2], *grid.patch_box((8, 11))[2:])
    outside = np.ones((coffee.height, coffee.width), dtype=bool)
    outside[int(top) - 3 : int(bottom) + 4, int(left) - 3 : int(right) + 4] = False  # the border line aside
    assert np.ptp(drawn[outside], axis=1).max() == 0
    light = np.asarray(coffee.convert("L"), dtype=float)
    assert np.abs(drawn[outside][:, 0] - 0.35 * light[outside]).max() <= 2  # two roundings


def test_inside_the_mask_the_map_is_as_without(coffee):
    grid = grid_of(coffee)
    mask = np.zeros(grid.shape, dtype=bool)
    mask[4:9, 5:12] = True
    values = np.linspace(0, 1, grid.patches).reshape(grid.shape)
    drawn, plain = (np.asarray(render.map_picture(coffee, grid, values, mask=m)) for m in (mask, None))
    left, top, right, bottom = (int(v) for v in (*grid.patch_box((4, 5))[:2], *grid.patch_box((8, 11))[2:]))
    inner = np.s_[top + 4 : bottom - 4, left + 4 : right - 4]
    np.testing.assert_array_equal(drawn[inner], plain[inner])


def test_the_border_of_the_mask_is_white():
    grid = PatchGrid(GREY.size, (140, 70), 14)  # 5 x 10 patches of 28 pixels on the picture
    mask = np.zeros(grid.shape, dtype=bool)
    mask[1:3, 2:5] = True
    drawn = render.map_picture(GREY, grid, np.ones(grid.shape), mask=mask)
    corners = [(56, 28), (139, 28), (56, 83), (139, 83)]
    assert [drawn.getpixel(corner) for corner in corners] == [(255, 255, 255)] * 4


def test_the_border_of_a_mask_would_cover_small_patches_and_is_left_out():
    grid = PatchGrid(GREY.size, (560, 280), 14)  # 20 x 40 patches of 7 pixels
    mask = np.zeros(grid.shape, dtype=bool)
    mask[4:8, 4:8] = True
    drawn = render.map_picture(GREY, grid, np.zeros(grid.shape), mask=mask)
    assert (255, 255, 255) not in [colour for _, colour in drawn.getcolors(1 << 16)]


@pytest.mark.parametrize("patch", [(0, 0), (2, 7), (4, 9), (4, 0)])
@pytest.mark.parametrize("size", [(280, 140), (333, 170)])
def test_the_marker_frames_exactly_its_patch(size, patch):
    picture = Image.new("RGB", size, (90, 90, 90))
    grid = PatchGrid(size, (140, 70), 14)
    marked = render.mark_patch(picture, grid, patch)
    left, top, right, bottom = pixel_boxes(grid)[np.ravel_multi_index(patch, grid.shape)]
    drawn = np.asarray(marked)
    assert (drawn[top:bottom, left:right] == 90).all(), "the patch itself is covered"
    changed = np.zeros((size[1] + 8, size[0] + 8), dtype=bool)
    changed[4:-4, 4:-4] = (drawn != 90).any(axis=-1)
    expected = np.zeros_like(changed)
    expected[top + 2 : bottom + 6, left + 2 : right + 6] = True  # two lines of one pixel all around
    expected[top + 4 : bottom + 4, left + 4 : right + 4] = False
    expected[:4] = expected[-4:] = expected[:, :4] = expected[:, -4:] = False
    np.testing.assert_array_equal(changed, expected)


def test_the_marker_is_light_and_dark():
    marked = render.mark_patch(GREY, PatchGrid(GREY.size, (140, 70), 14), (2, 3))
    assert {colour for _, colour in marked.getcolors()} == {(90, 90, 90), (255, 255, 255), (0, 0, 0)}


def test_a_marker_leaves_the_picture_that_it_was_given_alone():
    before = GREY.tobytes()
    render.mark_patch(GREY, PatchGrid(GREY.size, (140, 70), 14), (2, 3))
    assert GREY.tobytes() == before


def test_the_marker_of_a_map_is_where_it_was_asked_for(coffee):
    grid = grid_of(coffee)
    values = np.ones(grid.shape)
    marked = render.map_picture(coffee, grid, values, marker=(6, 11))
    changed = ImageChops.difference(marked, render.map_picture(coffee, grid, values)).getbbox()
    left, top, right, bottom = grid.patch_box((6, 11))
    line = 4  # two lines of two pixels: the short side is 400
    assert np.abs(np.subtract(changed, (left - line, top - line, right + line, bottom + line))).max() <= 1


# Contact sheets

ASPECTS = {"3:1": (300, 100), "1:1": (200, 200), "1:3": (100, 300)}


@pytest.mark.parametrize("picture_size", ASPECTS.values(), ids=ASPECTS)
@given(count=st.integers(1, 24), x=st.floats(0, 0.999), y=st.floats(0, 0.999))
def test_a_point_of_a_tile_is_found_on_it(picture_size, count, x, y):
    sheet = Sheet.fit(count, picture_size)
    for i in range(count):
        row, column = divmod(i, sheet.columns)
        left, top = column * (sheet.tile[0] + Sheet.GAP), row * (sheet.tile[1] + Sheet.GAP)
        assert sheet.tile_at((left + x * sheet.tile[0], top + y * sheet.tile[1])) == i


@pytest.mark.parametrize("picture_size", ASPECTS.values(), ids=ASPECTS)
@pytest.mark.parametrize("count", range(1, 25))
def test_tile_at_agrees_with_the_drawn_tiles(picture_size, count):
    sheet = Sheet.fit(count, picture_size)
    tiles = [Image.new("RGB", sheet.tile, (i, 255 - i, 7)) for i in range(count)]
    composed = sheet.compose(tiles, [""] * count)
    assert composed.size == sheet.size
    seen = []
    for x in range(0, sheet.size[0], 9):
        for y in range(0, sheet.size[1], 9):
            red, _, blue = composed.getpixel((x, y))
            if blue == 7:  # a tile, neither its label nor the gap
                assert sheet.tile_at((x + 0.5, y + 0.5)) == red
                seen.append(red)
    assert set(seen) == set(range(count))
    assert len(seen) * 81 > 0.7 * count * sheet.tile[0] * sheet.tile[1]


@pytest.mark.parametrize("picture_size", ASPECTS.values(), ids=ASPECTS)
@pytest.mark.parametrize("count", range(1, 25))
def test_a_sheet_is_fit_for_a_page(picture_size, count):
    sheet = Sheet.fit(count, picture_size)
    rows = math.ceil(count / sheet.columns)
    assert sheet.columns * rows - count < max(sheet.columns, rows), "a whole row or column stays empty"
    assert sheet.size[0] <= 960 + sheet.columns * Sheet.GAP
    # The shape of a tile is the picture's, but for rounding to whole pixels.
    assert sheet.tile[1] == pytest.approx(sheet.tile[0] * picture_size[1] / picture_size[0], abs=0.5)


def test_beside_the_tiles_there_is_none():
    sheet = Sheet(count=5, columns=3, tile=(50, 40))
    width, height = sheet.size
    empty = (width - 5, height - 5)  # the sixth place
    assert [sheet.tile_at(p) for p in (empty, (-1, 5), (5, -1), (width + 20, 5), (5, height + 20))] == [None] * 5


def test_the_heads_are_on_the_sheet_in_their_order(coffee, tiny_backbone):
    features = tiny_backbone.encode(coffee, 224)
    heads = cls_attention(features)
    sheet = Sheet.fit(len(heads), coffee.size)
    drawn = render.heads_sheet(coffee, features.grid, heads, raw=True, opacity=1)
    assert drawn.size == sheet.size
    for i, head in enumerate(heads):
        row, column = divmod(i, sheet.columns)
        left, top = column * (sheet.tile[0] + Sheet.GAP), row * (sheet.tile[1] + Sheet.GAP)
        tile = drawn.crop((left, top, left + sheet.tile[0], top + sheet.tile[1]))
        alone = render.map_picture(coffee.resize(sheet.tile), features.grid, head, raw=True, opacity=1)
        below = np.s_[tile.height // 2 :]  # the label is in the upper corner
        np.testing.assert_array_equal(np.asarray(tile)[below], np.asarray(alone)[below])


def test_each_head_has_its_own_scale(coffee):
    grid = grid_of(coffee)
    ramp = np.linspace(0, 1, grid.patches).reshape(grid.shape)
    sheet = Sheet.fit(2, coffee.size)
    drawn = np.asarray(render.heads_sheet(coffee, grid, np.stack([ramp, 1000 * ramp]), opacity=1))
    w, h = sheet.tile
    assert sheet.columns == 2
    np.testing.assert_array_equal(drawn[h // 2 : h, :w], drawn[h // 2 : h, w + Sheet.GAP :])


def test_each_head_has_its_own_mask(coffee):
    grid = grid_of(coffee)
    values = np.ones((2, *grid.shape))
    masks = np.zeros(values.shape, dtype=bool)
    masks[0, :, : grid.shape[1] // 2] = masks[1, :, grid.shape[1] // 2 :] = True
    tile_width, tile_height = Sheet.fit(2, coffee.size).tile
    drawn = render.heads_sheet(coffee, grid, values, masks, opacity=0)
    lower = slice(tile_height // 2, tile_height - 8)  # without the label above and the border lines
    photo = np.asarray(coffee.resize((tile_width, tile_height), Image.Resampling.LANCZOS, reducing_gap=2))
    first, second = np.split(
        np.delete(np.asarray(drawn), np.s_[tile_width : tile_width + Sheet.GAP], axis=1), 2, axis=1
    )
    left, right = np.s_[lower, 8 : tile_width // 2 - 8], np.s_[lower, tile_width // 2 + 8 : -8]
    np.testing.assert_array_equal(first[left], photo[left])
    np.testing.assert_array_equal(second[right], photo[right])
    for tile, dim in ((first, right), (second, left)):
        assert tile[dim].mean() < 0.5 * photo[dim].mean()


@pytest.mark.parametrize("size", [(8, 8), (8, 300), (300, 8), (9, 31)])
def test_labels_do_not_fail_on_tiny_pictures(size):
    picture = Image.new("RGB", size)
    grid = PatchGrid(size, (42, 28), 14)
    heads = np.random.default_rng(0).random((16, 2, 3))
    sheet = render.heads_sheet(picture, grid, heads, heads > 0.5)
    assert sheet.size == Sheet.fit(16, size).size


def test_a_png_is_lossless(astronaut):
    for picture in (astronaut, np.asarray(astronaut)):
        opened = Image.open(io.BytesIO(render.to_png(picture)))
        assert (opened.format, opened.mode) == ("PNG", "RGB")
        np.testing.assert_array_equal(np.asarray(opened), np.asarray(astronaut))


# Figures


@pytest.fixture
def statistics() -> list[HeadStatistics]:
    """Three layers of four heads, each number another."""
    values = np.arange(3 * 4 * 3, dtype=np.float32).reshape(3, 3, 4)
    return [HeadStatistics(entropy=v[0], distance=v[1], prefix=v[2]) for v in values]


def test_the_heads_figure_has_every_head_of_every_layer(statistics):
    figure = figures.heads_figure(statistics, layer=1)
    for axis, field in (("x", "distance"), ("x2", "entropy")):
        traces = [trace for trace in figure.data if trace.xaxis == axis]
        points = {(x, head): y for t in traces for x, head, y in zip(t.x, t.customdata, t.y, strict=True)}
        expected = {(i + 1, j + 1): getattr(s, field)[j] for i, s in enumerate(statistics) for j in range(4)}
        assert points == expected


def test_the_heads_figure_highlights_the_layer_asked_for(statistics):
    figure = figures.heads_figure(statistics, layer=1)
    highlighted = [trace for trace in figure.data if trace.marker.color == figures.ACCENT]
    assert len(figure.data) == 4
    assert [list(trace.x) for trace in highlighted] == [[2] * 4] * 2
    assert all(2 not in trace.x for trace in figure.data if trace.marker.color == figures.QUIET)


def test_the_variance_figure_shows_percent_and_the_running_sum():
    (bars,) = figures.variance_figure(np.array([0.5, 0.25, 0.125, 0.0625])).data
    assert list(bars.x) == [1, 2, 3, 4]
    assert list(bars.y) == [50, 25, 12.5, 6.25]
    assert list(bars.customdata) == [50, 75, 87.5, 93.75]
    assert list(bars.marker.color) == [figures.ACCENT] * 3 + [figures.QUIET]


def test_the_scatter_figure_has_each_patch_in_its_colour():
    points = np.arange(12, dtype=float).reshape(4, 3)
    colours = np.array([[0, 0, 0], [1, 0, 0], [0, 0.5, 0], [1, 1, 1]])
    hover = ["patch a", "patch b", "patch c", "patch d"]
    figure = figures.scatter_figure(points, colours, axes=(0, 4, 2), hover=hover)
    (scatter,) = figure.data
    np.testing.assert_array_equal(np.stack([scatter.x, scatter.y, scatter.z], axis=1), points)
    assert list(scatter.marker.color) == ["rgb(0,0,0)", "rgb(255,0,0)", "rgb(0,128,0)", "rgb(255,255,255)"]
    assert list(scatter.text) == hover
    titles = [figure.layout.scene[axis].title.text for axis in ("xaxis", "yaxis", "zaxis")]
    assert titles == ["component 1", "component 5", "component 3"]


def test_the_table_is_opencvs_own():
    ramp = np.arange(256, dtype=np.uint8)[:, None]
    expected = cv2.cvtColor(cv2.applyColorMap(ramp, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)[:, 0]
    np.testing.assert_array_equal(render.colormap_table("inferno"), expected)


# Masks


def disc(size: tuple[int, int], centre: tuple[int, int], radius: int) -> np.ndarray:
    y, x = np.mgrid[: size[1], : size[0]]
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2


def test_a_cut_out_keeps_the_pixels_and_hides_the_rest(coffee):
    mask = disc(coffee.size, (300, 200), 120)
    cut = np.asarray(render.cutout(coffee, mask))
    assert np.array_equal(cut[..., :3], np.asarray(coffee))
    assert np.array_equal(cut[..., 3] == 255, mask)
    assert set(np.unique(cut[..., 3])) == {0, 255}


def test_an_overlay_leaves_what_is_far_outside_alone(coffee):
    mask = disc(coffee.size, (300, 200), 120)
    overlay, photo = np.asarray(render.overlay(coffee, mask, 0.5)), np.asarray(coffee)
    outside, inside = ~disc(coffee.size, (300, 200), 125), disc(coffee.size, (300, 200), 115)
    assert np.array_equal(overlay[outside], photo[outside])
    assert np.allclose(overlay[inside], (photo[inside] + np.array(render.TINT, float)) / 2, atol=1)


def test_the_outline_shows_a_full_and_an_empty_mask(coffee):
    for mask in (np.ones(coffee.size[::-1], bool), np.zeros(coffee.size[::-1], bool)):
        assert render.overlay(coffee, mask).size == coffee.size
        assert render.outline(coffee, mask).size == coffee.size


def test_the_checkerboard_is_behind_the_object(coffee):
    mask = disc(coffee.size, (300, 200), 120)
    shown, photo = np.asarray(render.on_checkers(coffee, mask)), np.asarray(coffee)
    assert np.array_equal(shown[mask], photo[mask])
    assert set(np.unique(shown[~mask])) == {200, 228}


def test_jpeg_keeps_flat_colours_sharp():
    picture = Image.new("RGB", (64, 64), (255, 0, 0))
    picture.paste((0, 0, 255), (32, 0, 64, 64))
    read = np.asarray(Image.open(io.BytesIO(render.to_jpeg(picture)))).astype(int)
    assert np.abs(read[:, 31] - (255, 0, 0)).max() < 30
    assert np.abs(read[:, 32] - (0, 0, 255)).max() < 30
