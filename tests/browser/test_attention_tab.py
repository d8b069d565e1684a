"""Every control of the attention tab, in a real browser."""

import io
import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.browser.conftest import running_app, watched_page
from tests.browser.pictures import choose, click_at, is_blank, pixels, source, upload, wait_for_change, wait_for_status

pytestmark = pytest.mark.browser

QUERY = "#attention-query textarea, #attention-query input"


def query(page) -> str:
    return page.input_value(QUERY)


@pytest.mark.parametrize("view", ["#attention-photo", pytest.param("#attention-map", marks=pytest.mark.slow)])
def test_a_click_on_either_picture_makes_that_patch_the_query(page, view):
    before = source(page, "#attention-map")
    click_at(page, view, 0.25, 0.5)
    wait_for_change(page, "#attention-map", before)
    x, y = (float(part) for part in query(page).split(","))
    assert x == pytest.approx(451 * 0.25, abs=2)
    assert y == pytest.approx(300 * 0.5, abs=2)
    # 14 of 56 columns and 18.5 of 37 rows: the click is on the border of columns 14 and 15, counted from 1.
    caption = page.inner_text("#attention-caption")
    assert "query: patch in row 19, column 14" in caption or "query: patch in row 19, column 15" in caption


@pytest.mark.slow
def test_quick_clicks_are_all_answered(page):
    for i in range(6):
        click_at(page, "#attention-photo", 0.2 + 0.1 * i, 0.5)
    page.wait_for_function("q => Math.abs(parseFloat(document.querySelector(q).value) - 451 * 0.7) < 3", arg=QUERY)


@pytest.mark.slow
def test_the_cls_button_goes_back(page):
    before = pixels(page, "#attention-map")
    first = source(page, "#attention-map")
    click_at(page, "#attention-photo", 0.3, 0.3)
    clicked = wait_for_change(page, "#attention-map", first)
    page.locator("#attention-cls").click()
    wait_for_change(page, "#attention-map", clicked)
    assert query(page) == "CLS"
    assert np.array_equal(pixels(page, "#attention-map"), before)


@pytest.mark.slow
def test_arrow_keys_move_the_query_patch_by_patch(page):
    before = source(page, "#attention-map")
    click_at(page, "#attention-photo", 0.51, 0.4)
    before = wait_for_change(page, "#attention-map", before)
    caption = page.locator("#attention-caption")
    caption.get_by_text("row 15, column 29").wait_for()
    for key, place in (
        ("ArrowRight", "row 15, column 30"),
        ("ArrowDown", "row 16, column 30"),
        ("ArrowLeft", "row 16, column 29"),
        ("ArrowUp", "row 15, column 29"),
    ):
        page.keyboard.press(key)
        caption.get_by_text(place).wait_for()


@pytest.mark.slow
def test_a_click_on_the_sheet_enlarges_that_head(page):
    before = source(page, "#attention-map")
    click_at(page, "#attention-heads", 0.9, 0.9)
    wait_for_change(page, "#attention-map", before)
    assert page.input_value("#attention-shown input") == "head 6"
    assert "head 6" in page.inner_text("#attention-caption")


@pytest.mark.slow
def test_a_query_can_be_typed(page):
    before = source(page, "#attention-map")
    page.locator(QUERY).fill("225, 150")
    page.keyboard.press("Enter")
    wait_for_change(page, "#attention-map", before)
    assert "row 19, column 28" in page.inner_text("#attention-caption")


@pytest.mark.slow
def test_a_query_outside_is_refused(page):
    page.locator(QUERY).fill("9999, 1")
    page.keyboard.press("Enter")
    page.get_by_text("9999").first.wait_for()


@pytest.mark.parametrize("map_name", ["head 3", "rollout of all layers", "patch norms"])
@pytest.mark.slow
def test_every_map_can_be_chosen(page, map_name):
    before = source(page, "#attention-map")
    choose(page, "#attention-shown", map_name)
    wait_for_change(page, "#attention-map", before)
    assert map_name in page.inner_text("#attention-caption")
    assert not is_blank(pixels(page, "#attention-map"))


@pytest.mark.slow
def test_layer_slider_moves_by_the_keyboard_and_the_figure_follows(page):
    before = source(page, "#attention-map")
    page.locator("#attention-layer input[type=range]").focus()
    page.keyboard.press("ArrowLeft")
    wait_for_change(page, "#attention-map", before)
    assert "layer 11 of 12" in page.inner_text("#attention-caption")
    page.wait_for_function(
        "document.querySelector('#attention-figure .js-plotly-plot')._fullData.some(t => t.marker.size === 10 && "
        "[...t.x].every(x => x === 11))"
    )


def test_raw_grid_shows_flat_patches(page):
    before = source(page, "#attention-map")
    page.locator("#attention-opacity input[type=number]").fill("1")
    page.keyboard.press("Enter")
    smooth = wait_for_change(page, "#attention-map", before)
    page.locator("#attention-raw input").check()
    wait_for_change(page, "#attention-map", smooth)
    picture = pixels(page, "#attention-map").astype(int)
    # 56 patches across 768 pixels: most neighbouring pixels lie in one patch and are equal but for JPEG's noise.
    steps = np.abs(np.diff(picture, axis=1)).max(axis=2)
    assert (steps < 12).mean() > 0.8


@pytest.mark.parametrize("slider", ["#attention-mass", "#attention-opacity"])
@pytest.mark.slow
def test_sliders_repaint(page, slider):
    before = source(page, "#attention-map")
    page.locator(f"{slider} input[type=number]").fill("0.5")
    page.keyboard.press("Enter")
    wait_for_change(page, "#attention-map", before)


@pytest.mark.slow
def test_colours_repaint(page):
    before = source(page, "#attention-map")
    choose(page, "#attention-colours", "viridis")
    wait_for_change(page, "#attention-map", before)


def test_download_has_full_size_pictures_and_numbers(page):
    before = source(page, "#attention-map")
    click_at(page, "#attention-photo", 0.5, 0.5)
    wait_for_change(page, "#attention-map", before)
    with page.expect_download() as download:
        page.locator("#attention-file-button").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        about = json.loads(archive.read("about.json"))
        assert Image.open(archive.open("map.png")).size == (451, 300)
        assert Image.open(archive.open("heads/head-06.png")).size == (451, 300)
        arrays = np.load(io.BytesIO(archive.read("attention.npz")))
        assert arrays["heads"].shape == (6, 37, 56)
        assert np.allclose(arrays["heads"].mean(axis=0), arrays["map"])
    assert about["weights"]["name"] == "embedded"
    assert about["layer"] == 12
    assert about["query"] != "CLS"


@pytest.mark.slow
def test_the_rollout_can_be_stopped(page):
    choose(page, "#resolution", "896 px")
    page.locator("#attention-caption").get_by_text("64 x 96").wait_for()
    before = source(page, "#attention-map")
    choose(page, "#attention-shown", "rollout of all layers")
    page.locator("#attention-stop", has_text="Stop").click()
    page.locator("#attention-caption").get_by_text("Stopped").wait_for()
    page.locator("#attention-stop").wait_for(state="hidden")
    assert source(page, "#attention-map") == before
    choose(page, "#attention-shown", "head 2")
    page.locator("#attention-caption").get_by_text("head 2").wait_for()


@pytest.mark.slow
def test_register_model_is_offered_but_not_where_it_cannot_be_had(page):
    button = page.locator("#attention-registers")
    assert "dinov2-with-registers-small" in button.inner_text()
    assert button.is_disabled()


@pytest.mark.slow
def test_register_model_is_one_click_away_where_it_is_cached(browser, tiny_folders, tmp_path):
    """The Hub cache holds a tiny model under the register model's name; the norm map is then that model's."""
    repository = tmp_path / "hub" / "models--facebook--dinov2-with-registers-small"
    shutil.copytree(tiny_folders["dinov2_with_registers"], repository / "snapshots" / "0" / "")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0")
    log = tmp_path / "app.log"
    with running_app(log, HF_HUB_CACHE=str(tmp_path / "hub")) as app, watched_page(browser, app, log) as page:
        page.goto(app)
        page.wait_for_selector("#attention-map img")
        choose(page, "#attention-shown", "patch norms")
        page.locator("#attention-caption").get_by_text("patch norms").wait_for()
        page.locator("#attention-registers").click()
        assert "and 4 registers" in wait_for_status(page, "dinov2-with-registers-small:")
        page.locator("#attention-caption").get_by_text("layer 3 of 3").wait_for()
        assert "patch norms" in page.inner_text("#attention-caption")


@pytest.mark.parametrize("corner", [(0.02, 0.03), (0.98, 0.03), (0.02, 0.97), (0.98, 0.97)])
@pytest.mark.slow
def test_clicks_near_the_corners_of_the_sheet_select_their_head(page, corner):
    click_at(page, "#attention-heads", *corner)
    head = 1 + 2 * (corner[0] > 0.5) + 3 * (corner[1] > 0.5)
    page.wait_for_function(
        "head => document.querySelector('#attention-shown input').value === head", arg=f"head {head}"
    )


@pytest.mark.slow
@pytest.mark.parametrize("window", [(1280, 1000), (2200, 1200)])
def test_clicks_in_full_screen_hit_the_patch_below_the_pointer(browser, app, app_log, window):
    size = {"width": window[0], "height": window[1]}
    with watched_page(browser, app, app_log, viewport=size) as page:
        page.goto(app)
        page.wait_for_selector("#attention-figure .js-plotly-plot")
        height = page.locator("#attention-photo").bounding_box()["height"]
        page.locator("#attention-photo button[aria-label*='ullscreen']").click()
        page.wait_for_function(
            "height => document.querySelector('#attention-photo img').parentElement.clientHeight > height", arg=height
        )
        click_at(page, "#attention-photo", 0.25, 0.25)
        page.wait_for_function("q => Math.abs(parseFloat(document.querySelector(q).value) - 451 * 0.25) < 3", arg=QUERY)


def test_neither_a_control_nor_a_click_runs_the_network(page):
    """A click during an encode is refused; after Stop nothing is drawn."""
    before = source(page, "#attention-map")
    choose(page, "#resolution", "1792 px")  # takes minutes, until it is stopped below
    page.locator("#stop:not([disabled])").wait_for()
    page.locator("#attention-raw input").check()
    click_at(page, "#attention-photo", 0.5, 0.5)
    page.get_by_text("is not encoded").first.wait_for()
    assert source(page, "#attention-map") == before
    page.locator("#stop").click()
    wait_for_status(page, "Stopped")
    page.wait_for_function("!document.querySelector('#attention-map img')")
    page.locator("#attention-raw input").uncheck()
    assert source(page, "#attention-map") == ""
    assert "Stopped" in page.inner_text("#status")
    choose(page, "#resolution", "224 px")
    page.locator("#attention-caption").get_by_text("16 x 24").wait_for()


@pytest.mark.parametrize(("size", "tiles"), [((900, 300), 3), ((300, 900), 3)])
@pytest.mark.slow
def test_clicks_land_on_the_right_part_of_long_pictures(page, tmp_path, size, tiles):
    """A picture of three plain tiles: the query's pixel and patch are in the tile that was clicked."""
    colours = [(200, 40, 40), (40, 180, 60), (40, 60, 200)]
    array = np.zeros((size[1], size[0], 3), np.uint8)
    wide = size[0] > size[1]
    for i, colour in enumerate(colours):
        part = slice(300 * i, 300 * (i + 1))
        array[(slice(None), part) if wide else part] = colour
    Image.fromarray(array).save(tmp_path / "tiles.png")
    choose(page, "#resolution", "224 px")
    wait_for_status(page, "16 x 24")
    upload(page, tmp_path / "tiles.png")
    page.locator("#attention-caption").get_by_text("16 x 48" if wide else "48 x 16").wait_for()
    before = source(page, "#attention-map")
    shown = pixels(page, "#attention-map")
    assert shown.shape[1] / shown.shape[0] == pytest.approx(size[0] / size[1], rel=0.01)
    for i, colour in enumerate(colours):
        along = (i + 0.5) / tiles
        click_at(page, "#attention-photo", *((along, 0.4) if wide else (0.4, along)))
        before = wait_for_change(page, "#attention-map", before)
        x, y = (int(part) for part in query(page).split(","))
        assert tuple(array[y, x]) == colour
