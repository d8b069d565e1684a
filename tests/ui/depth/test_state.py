"""The Depth tab's measurements, normals, points and figures, against known geometry."""

import base64
import re
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from dinoviz.depth import figures as depth_figures
from dinoviz.depth.probe import Depth
from dinoviz.errors import DinovizError
from dinoviz.features import Features
from dinoviz.grid import PatchGrid
from dinoviz.ui.depth.probes import Prediction
from dinoviz.ui.depth.state import STEP, Scene, ViewSettings, parse_points, settings_of
from dinoviz.ui.depth.views import readout
from dinoviz.ui.workbench import Look, Picture

GRID = PatchGrid((240, 160), (168, 112), 14)  # 8 x 12 patches
FOCAL = 200.0


def scene(metres, settings: ViewSettings | None = None, *, spread=None, unfamiliarity=None, exif=None) -> Scene:
    """A picture of 240 x 160, shown at half its size, for which a head predicted `metres` (16, 24)."""
    image = Image.fromarray(np.arange(160 * 240 * 3, dtype=np.uint32).reshape(160, 240, 3).astype(np.uint8))
    picture = Picture(image.size, image.resize((120, 80)), "digest", "picture.png", lambda: image)
    none = np.empty((0, 4), np.float32)
    features = Features(none, none, none, GRID, 12, {}, 1.0, "model", "weights")
    look = Look(picture, None, features, 112)
    patches = metres.reshape(8, 2, 12, 2).mean((1, 3))
    predicted = Depth(metres.astype(np.float32), spread, patches.astype(np.float32), unfamiliarity, GRID)
    return Scene(look, Prediction(predicted, "a probe", {}, (0.001, 10.0)), settings or ViewSettings(focal=FOCAL), exif)


def ramp() -> np.ndarray:
    return np.broadcast_to(np.linspace(1, 4, 24), (16, 24))


def test_a_distance_on_a_frontal_wall_follows_from_similar_triangles():
    wall = scene(np.full((16, 24), 2.0))
    assert wall.at([(40, 60), (239, 159)]) == [2.0, 2.0]
    # 120 pixels across and 50 down, at 2 m, with a focal length of 200 pixels.
    assert wall.between((40, 60), (160, 110)) == pytest.approx(2 * np.hypot(120, 50) / FOCAL, abs=2e-6)
    assert scene(np.full((16, 24), 2.0), ViewSettings(focal=400)).between((40, 60), (160, 110)) == pytest.approx(
        0.65, abs=1e-5
    )
    with pytest.raises(DinovizError, match="outside"):
        wall.at([(241, 5)])


def test_a_given_focal_length_comes_before_exif_data_and_those_before_an_assumption():
    metres = np.full((16, 24), 2.0)
    assert scene(metres, ViewSettings(focal=250), exif=300).camera.fx == 250
    found = scene(metres, ViewSettings(), exif=300).camera
    assert found.fx == 300
    assert "EXIF" in found.source
    assert "assumed" in scene(metres, ViewSettings()).camera.source


def test_normals_of_a_wall_face_the_camera_and_of_a_floor_face_up():
    wall = scene(np.full((16, 24), 2.0))
    np.testing.assert_allclose(
        wall.normals(wall.look.picture.shown), np.broadcast_to((0, 0, -1), (80, 120, 3)), atol=1e-5
    )
    # A floor 1.5 m below the camera: z = 1.5 f / (y - cy), seen where y is below the middle; above it, a far wall.
    below = (np.arange(16) + 0.5) * 10 - 80
    z = np.where(below > 20, 1.5 * FOCAL / np.maximum(below, 1), 15.0)
    found = scene(np.repeat(z[:, None], 24, axis=1)).normals(wall.look.picture.shown)
    assert np.abs(found[65:75, 10:110] - (0, -1, 0)).max() < 0.02


@pytest.mark.parametrize("raw", [False, True])
def test_the_cloud_has_the_points_between_the_limits_in_the_pictures_colours(raw):
    settings = ViewSettings(focal=FOCAL, raw=raw, by_itself=False, near=1.5, far=2.5)
    cut = scene(ramp(), settings)
    shown = cut.look.picture.shown
    points, colours = cut.cloud(shown)
    assert points[:, 2].min() >= 1.5
    assert points[:, 2].max() <= 2.5
    columns = np.rint(points[:, 0] / points[:, 2] * FOCAL / 2 + 60 - 0.5).astype(int)
    rows = np.rint(points[:, 1] / points[:, 2] * FOCAL / 2 + 40 - 0.5).astype(int)
    np.testing.assert_array_equal(colours, np.asarray(shown)[rows, columns])
    assert len(cut.cloud(shown, most=500)[0]) <= 500
    whole, _ = scene(ramp(), ViewSettings(focal=FOCAL)).cloud(shown, most=10**6)
    assert len(whole) == shown.width * shown.height


def test_the_cloud_has_no_points_at_depth_jumps():
    metres = np.where(np.arange(24) < 12, 1.0, 8.0) * np.ones((16, 1))
    points, _ = scene(metres).cloud(scene(metres).look.picture.shown)
    between = (points[:, 2] > 1.3) & (points[:, 2] < 7)
    assert not between.any()
    assert len(points) > 8000


def test_raw_depth_is_flat_on_a_patch_and_smooth_depth_is_not():
    flat = scene(ramp(), ViewSettings(raw=True)).shown_metres
    assert len(np.unique(flat)) == 12
    smooth = scene(ramp()).shown_metres
    assert len(np.unique(smooth)) > 60
    assert abs(flat.mean() - smooth.mean()) < 0.02


def test_a_picture_unlike_the_training_data_has_relative_depth():
    strange = scene(ramp(), unfamiliarity=1.7)
    assert strange.unfamiliar
    assert strange.unit.relative
    median = float(np.median(ramp()))
    assert strange.limits == pytest.approx((1 / median, 4 / median))
    assert not re.search(r"\d m\b", readout(strange, [(120, 80)]))
    metric = scene(ramp(), ViewSettings(anyway=True), unfamiliarity=1.7)
    assert metric.limits == (1, 4)
    assert re.search(r"\d m\b", readout(metric, [(120, 80)]))
    for known in (0.4, None):
        assert not scene(ramp(), unfamiliarity=known).unfamiliar


def test_a_head_without_depth_bins_has_no_uncertainty():
    with pytest.raises(DinovizError):
        scene(ramp()).spread(scene(ramp()).look.picture.shown)
    binned = scene(ramp(), spread=np.full((16, 24), 0.5, np.float32))
    np.testing.assert_allclose(binned.spread(binned.look.picture.shown), 0.5)
    flat = scene(ramp(), ViewSettings(raw=True), spread=ramp().astype(np.float32))
    assert len(np.unique(flat.spread(flat.look.picture.shown))) == 12


@pytest.mark.parametrize(
    "wrong",
    [{"shown": "height"}, {"colours": "jet"}, {"opacity": 2}, {"by_itself": False, "near": 3, "far": 2}, {"focal": -1}],
)
def test_invalid_settings_are_refused(wrong):
    with pytest.raises(DinovizError):
        ViewSettings(**wrong)


@pytest.mark.parametrize(
    ("near", "far", "expected"),
    [(0, 10, (0, 10)), (2, 10, (2, 10)), (12, 10, (12, 12 + STEP)), (0, 0, (0, STEP)), (0, 4, (0, 4))],
)
def test_near_and_far_apply_once_one_of_them_was_moved(near, far, expected):
    values = asdict(ViewSettings()) | {"near": near, "far": far, "focal": None}
    settings = settings_of(list(values.values()), (0, 10))
    assert settings.focal == 0
    assert settings.by_itself == ((near, far) == (0, 10))
    assert (settings.near, settings.far) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[[NaN, 1]]", "[[1e999, 1]]", "[[1" + "0" * 400 + ", 1]]", "{}{", "[[1]]", "[1, 2]", "{",
     "[[1, null]]", '"ab"', "[[1, 2], [3, 4], [5, 6]]"],
)  # fmt: skip
def test_what_is_not_at_most_two_points_is_refused(text):
    with pytest.raises(DinovizError, match="two"):
        parse_points(text)


def test_points_are_read_from_json():
    assert parse_points("") == []
    assert parse_points("[[1, 2.5], [3, 4]]") == [[1, 2.5], [3, 4]]


def unpacked(values: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(values["bdata"]), {"f4": np.float32, "u1": np.uint8}[values["dtype"]])


def test_the_figure_of_the_cloud_stands_upright_in_true_colours():
    points = np.array([(1.0, 2.0, 3.0), (-1.0, -0.5, 6.0)], np.float32)
    colours = np.array([(255, 0, 0), (0, 120, 30)], np.uint8)
    figure = depth_figures.cloud(points, colours, "m", 1.0, "key")
    trace = figure["data"][0]
    # In plotly's axes: to the right, ahead, up.
    assert [unpacked(trace[axis]).tolist() for axis in "xyz"] == [[1, -1], [3, 6], [-2, 0.5]]
    scale = dict(trace["marker"]["colorscale"])
    last = trace["marker"]["cmax"]
    assert [scale[i / last] for i in unpacked(trace["marker"]["color"])] == ["rgb(255,0,0)", "rgb(0,120,30)"]
    assert figure["layout"]["uirevision"] == "key"
    half = depth_figures.cloud(points, colours, "x", 2.0, "key")["data"][0]
    assert unpacked(half["y"]).tolist() == [1.5, 3]


def test_the_figure_of_an_empty_cloud_is_empty():
    figure = depth_figures.cloud(np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8), "m", 1.0, "key")
    assert unpacked(figure["data"][0]["x"]).size == 0


def test_the_histogram_counts_all_pixels_and_fades_what_is_out_of_range():
    figure = depth_figures.histogram(ramp(), (2.0, 3.0), "viridis", "m")
    bars = figure["data"][0]
    assert sum(bars["y"]) == pytest.approx(100, abs=0.1)
    faded = [colour.endswith(",0.25)") for colour in bars["marker"]["color"]]
    assert faded == [not 2 <= x <= 3 for x in bars["x"]]
    assert [shape["x0"] for shape in figure["layout"]["shapes"]] == [2.0, 3.0]


def test_normal_maps_have_the_usual_colours():
    facing, up, right = (0, 0, -1), (0, -1, 0), (1, 0, 0)
    assert depth_figures.normals_colours(np.array([[facing, up, right]], float))[0].tolist() == [
        [128, 128, 255], [128, 255, 128], [255, 128, 128],
    ]  # fmt: skip


def test_points_are_marked_where_they_are():
    picture = Image.new("RGB", (300, 200), (90, 90, 90))
    assert depth_figures.marked(picture, [], []) is picture
    marked = np.asarray(depth_figures.marked(picture, [(50, 60), (290, 190)], ["A", "B"]))
    assert marked[60, 50].tolist() == [255, 255, 255]
    assert marked[125, 170].tolist() == [255, 255, 255], "the line between them"
    assert (marked != 90).any(axis=2)[:30, :30].sum() == 0
    dimmed = np.asarray(depth_figures.dimmed(picture, np.arange(300) < np.full((200, 1), 150)))
    assert dimmed[0, 0].tolist() == [90] * 3
    assert dimmed[0, 299].tolist() == [22] * 3
