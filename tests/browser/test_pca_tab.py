"""Every control of the patch PCA tab, in a real browser."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.browser.conftest import opened_page
from tests.browser.pictures import (
    choose,
    is_blank,
    open_tab,
    pixels,
    source,
    upload,
    wait_for_change,
    wait_for_status,
)

pytestmark = pytest.mark.browser


def on_the_tab(page):
    page.get_by_role("tab", name="Patch PCA").click()
    page.wait_for_selector("#pca-map img")
    page.wait_for_selector("#pca-variance .js-plotly-plot")
    return page


@pytest.fixture
def page(page):
    """The page on the PCA tab."""
    return on_the_tab(page)


@pytest.fixture(scope="module")
def untouched(browser, app, app_log):
    """The same for tests that change nothing: one for all."""
    with opened_page(browser, app, app_log) as page:
        yield on_the_tab(page)


def test_the_map_is_colourful_and_the_caption_names_its_source(untouched):
    picture = pixels(untouched, "#pca-map")
    assert not is_blank(picture)
    assert (picture.max(axis=2).astype(int) - picture.min(axis=2)).mean() > 20
    caption = untouched.inner_text("#pca-caption")
    assert "embedded · layer 12 of 12 · 37 x 56 patches of 14 px at 518 px" in caption
    assert "of the variance" in caption


def test_the_scatter_and_the_bars_are_drawn(untouched):
    assert untouched.locator("#pca-scatter .js-plotly-plot canvas").count() >= 1
    assert untouched.locator("#pca-variance .bars .point").count() == 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["component 2", "foreground score"])
def test_every_map_can_be_chosen_and_the_figures_stay(page, name):
    before = source(page, "#pca-map")
    page.evaluate("document.querySelector('#pca-scatter .js-plotly-plot').dataset.mine = 'yes'")
    choose(page, "#pca-shown", name)
    wait_for_change(page, "#pca-map", before)
    assert name in page.inner_text("#pca-caption")
    assert page.evaluate("document.querySelector('#pca-scatter .js-plotly-plot').dataset.mine") == "yes"


@pytest.mark.parametrize("colour", ["red", "green", "blue"])
@pytest.mark.slow
def test_any_component_in_any_channel(page, colour):
    before = source(page, "#pca-map")
    page.locator("#pca-steady input").uncheck()
    before = wait_for_change(page, "#pca-map", before)
    choose(page, f"#pca-{colour}", "7")
    wait_for_change(page, "#pca-map", before)
    assert f"{colour} component 7" in page.inner_text("#pca-caption")


@pytest.mark.slow
def test_background_can_be_kept(page):
    before = source(page, "#pca-map")
    black = (pixels(page, "#pca-map").max(axis=2) < 12).mean()
    page.locator("#pca-foreground input").uncheck()
    wait_for_change(page, "#pca-map", before)
    assert (pixels(page, "#pca-map").max(axis=2) < 12).mean() < 0.05 < black


@pytest.mark.slow
def test_the_threshold_can_be_overruled(page):
    before = source(page, "#pca-map")
    page.locator("#pca-auto input").uncheck()
    page.wait_for_function("!document.querySelector('#pca-threshold input[type=number]').disabled")
    page.locator("#pca-threshold input[type=number]").fill("0.9")
    page.keyboard.press("Enter")
    wait_for_change(page, "#pca-map", before)
    page.locator("#pca-caption").get_by_text("0.90").wait_for()


def test_layer_raw_and_opacity_repaint(page):
    before = source(page, "#pca-map")
    page.locator("#pca-raw input").check()
    before = wait_for_change(page, "#pca-map", before)
    page.locator("#pca-opacity input[type=number]").fill("0.5")
    page.keyboard.press("Enter")
    before = wait_for_change(page, "#pca-map", before)
    page.locator("#pca-layer input[type=range]").focus()
    page.keyboard.press("ArrowLeft")
    wait_for_change(page, "#pca-map", before)
    assert "layer 11 of 12" in page.inner_text("#pca-caption")


def test_a_control_used_while_the_tab_is_drawn_takes_effect(page):
    """The tab is opened again after another encode, and a control is used before the new map is there."""
    open_tab(page, "Attention")
    choose(page, "#resolution", "224 px")
    wait_for_status(page, "16 x 24")
    open_tab(page, "Patch PCA")
    page.locator("#pca-raw input").check()
    page.locator("#pca-caption").get_by_text("16 x 24 patches").wait_for()
    while _roundness(page) > 2:
        wait_for_change(page, "#pca-map", source(page, "#pca-map"))
    before = source(page, "#pca-map")
    page.locator("#pca-opacity input[type=number]").fill("0.95")
    page.keyboard.press("Enter")
    before = wait_for_change(page, "#pca-map", before)
    page.locator("#pca-opacity input[type=number]").fill("1")
    page.keyboard.press("Enter")
    before = wait_for_change(page, "#pca-map", before)
    assert _roundness(page) <= 2, "no older answer came later"
    page.locator("#pca-raw input").uncheck()
    wait_for_change(page, "#pca-map", before)
    assert _roundness(page) > 2


def _roundness(page) -> float:
    """How far the map is from 16 x 24 flat squares, in levels; infinite where there is none."""
    if not source(page, "#pca-map"):
        return float("inf")
    seen = Image.fromarray(pixels(page, "#pca-map"))
    squares = seen.resize((24, 16), Image.Resampling.NEAREST).resize(seen.size, Image.Resampling.NEAREST)
    return float(np.abs(np.asarray(seen, dtype=float) - np.asarray(squares)).mean())


@pytest.mark.slow
def test_added_pictures_share_a_basis_with_the_next(page):
    page.locator("#pca-keep").click()
    page.get_by_text("chelsea.png").first.wait_for()
    page.locator("#examples .gallery-item").nth(1).click()
    page.get_by_text("joint basis of 2 pictures").wait_for()
    assert page.locator("#pca-joint img").count() >= 2


def test_more_pictures_are_uploaded_and_a_corrupt_one_is_named(page, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8))
    picture.save(tmp_path / "good.png")
    (tmp_path / "corrupt.png").write_text("no picture")
    page.set_input_files("#pca-others input[type=file]", [tmp_path / "good.png", tmp_path / "corrupt.png"])
    page.get_by_text("joint basis of 2 pictures").wait_for()
    page.locator("#pca-caption").get_by_text("corrupt.png").wait_for()


@pytest.mark.slow
def test_encoding_more_pictures_can_be_stopped(page, tmp_path):
    choose(page, "#resolution", "784 px")
    page.locator("#pca-caption").get_by_text("56 x 84").wait_for()
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{i}.png" for i in range(4)]
    for file in files:
        Image.fromarray(rng.integers(0, 255, (300, 400, 3), dtype=np.uint8)).save(file)
    page.set_input_files("#pca-others input[type=file]", files)
    page.locator("#pca-stop", has_text="Stop").click()
    page.locator("#pca-caption").get_by_text("Stopped").wait_for()
    page.locator("#pca-stop").wait_for(state="hidden")


def test_download_has_full_size_pictures_and_numbers(untouched):
    with untouched.expect_download() as download:
        untouched.locator("#pca-file-button").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        about = json.loads(archive.read("about.json"))
        assert Image.open(archive.open("01-pca.png")).size == (451, 300)
        arrays = np.load(io.BytesIO(archive.read("pca.npz")))
        assert arrays["coordinates_01"].shape == (37, 56, 10)
    assert about["pictures"][0]["weights"]["name"] == "embedded"


@pytest.mark.slow
def test_a_plain_picture_is_drawn(page, tmp_path):
    Image.new("RGB", (200, 200), (90, 90, 90)).save(tmp_path / "plain.png")
    before = source(page, "#pca-map")
    upload(page, tmp_path / "plain.png")
    wait_for_change(page, "#pca-map", before)
    assert "37 x 37" in page.inner_text("#pca-caption")
