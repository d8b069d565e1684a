"""The bar: picture, model, resolution, status, Stop."""

import re

import numpy as np
import pytest
from PIL import Image

from tests.browser.conftest import watched_page
from tests.browser.pictures import choose, is_blank, pixels, source, upload, wait_for_change, wait_for_status

pytestmark = pytest.mark.browser


def test_the_page_opens_with_an_example_and_names_its_weights(page):
    assert not is_blank(pixels(page, "#attention-map"))
    status = wait_for_status(page, "patches of 14 px")
    assert "embedded" in status
    assert "not Meta's release" in status
    assert "embedded · layer 12 of 12" in page.inner_text("#attention-caption")


@pytest.mark.slow
def test_an_example_is_one_click(page):
    before = source(page, "#attention-map")
    page.locator("#examples .gallery-item").nth(1).click()
    wait_for_change(page, "#attention-map", before)
    assert "37 x 37 = 1,369 patches" in wait_for_status(page, "1,369")


def test_a_tab_keeps_what_it_has_drawn(page):
    drawn = source(page, "#attention-map")
    page.get_by_role("tab", name="Patch PCA").click()
    page.wait_for_selector("#pca-map img")
    pca = source(page, "#pca-map")
    page.get_by_role("tab", name="Attention").click()
    page.get_by_role("tab", name="Patch PCA").click()
    assert source(page, "#pca-map") == pca
    page.get_by_role("tab", name="Attention").click()
    assert source(page, "#attention-map") == drawn


@pytest.mark.slow
def test_resolution_changes_the_grid(page):
    wait_for_status(page, "37 x 56")
    choose(page, "#resolution", "224 px")
    assert "16 x 24 = 384 patches" in wait_for_status(page, "16 x 24")


def test_stop_ends_a_long_encode_and_another_one_can_begin(page):
    choose(page, "#resolution", "1792 px")  # takes minutes, until it is stopped
    page.locator("#stop:not([disabled])").click()
    wait_for_status(page, "Stopped")
    choose(page, "#resolution", "224 px")
    wait_for_status(page, "16 x 24")


@pytest.mark.parametrize(
    "kind", ["text", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("truncated", "empty", "tiny"))]
)
def test_a_bad_file_is_refused_and_the_next_one_works(page, tmp_path, kind):
    file = tmp_path / "bad.png"
    good = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8))
    if kind == "text":
        file.write_text("not a picture")
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "tiny":
        Image.new("RGB", (1, 1)).save(file)
    else:
        good.save(file)
        file.write_bytes(file.read_bytes()[:4000])
    upload(page, file)
    wait_for_status(page, "bad.png")
    page.wait_for_function("!document.querySelector('#attention-map img')")
    page.locator("#examples .gallery-item").nth(1).click()
    wait_for_status(page, "1,369")
    wait_for_change(page, "#attention-map", "")


@pytest.mark.slow
def test_a_format_that_browsers_do_not_show_is_shown(page, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 65535, (90, 120), dtype=np.uint16)).save(tmp_path / "deep.tif")
    before = source(page, "#attention-map")
    upload(page, tmp_path / "deep.tif")
    wait_for_change(page, "#attention-map", before)
    page.wait_for_function("document.querySelector('#picture img')?.naturalWidth === 120")


@pytest.mark.slow
def test_clearing_the_picture_empties_the_views(page):
    page.locator("#picture button[aria-label='Clear'], #picture button[aria-label='Remove Image']").first.click()
    wait_for_status(page, "No picture")
    page.wait_for_function("!document.querySelector('#attention-map img')")


@pytest.mark.slow
def test_a_model_that_cannot_be_downloaded_is_refused(page):
    choose(page, "#model", "dinov2-small")
    assert "embedded" in wait_for_status(page, "dinov2-small:"), "which needs no network"
    choose(page, "#model", "embedded")
    wait_for_status(page, "not Meta's release")


@pytest.mark.slow
def test_a_folder_that_holds_no_model_is_refused(page, tmp_path):
    page.locator("#model input").fill(str(tmp_path))
    page.keyboard.press("Enter")
    wait_for_status(page, "config.json")


def test_one_users_picture_never_shows_in_anothers_page(page, browser, app, app_log):
    with watched_page(browser, app, app_log) as other:
        other.goto(app)
        other.wait_for_selector("#attention-map img")
        before = source(other, "#attention-map"), pixels(other, "#attention-photo")
        drawn = source(page, "#attention-map")
        page.locator("#examples .gallery-item").nth(2).click()
        wait_for_change(page, "#attention-map", drawn)
        for act in ("check", "uncheck"):  # answered after whatever was under way
            drawn = source(other, "#attention-map")
            getattr(other.locator("#attention-raw input"), act)()
            wait_for_change(other, "#attention-map", drawn)
        assert source(other, "#attention-map") == before[0]
        assert np.array_equal(pixels(other, "#attention-photo"), before[1])


def test_a_reloaded_page_is_a_whole_page(browser, app, app_log):
    with watched_page(browser, app, app_log, reloads=True) as page:
        page.goto(app)
        page.wait_for_selector("#attention-map img")
        page.reload()
        page.wait_for_selector("#attention-map img")
        assert not is_blank(pixels(page, "#attention-map"))


@pytest.mark.slow
def test_a_narrow_window_does_not_scroll_sideways(browser, app, app_log):
    with watched_page(browser, app, app_log, viewport={"width": 400, "height": 800}) as page:
        page.goto(app)
        page.wait_for_selector("#attention-map img")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.slow
def test_the_dark_theme_is_dark(browser, app, app_log):
    with watched_page(browser, app, app_log, color_scheme="dark") as page:
        page.goto(app)
        page.wait_for_selector("#attention-map img")
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(int(n) for n in re.findall(r"\d+", background)[:3]) < 80


@pytest.mark.slow
def test_the_controls_follow_a_model_with_other_layers_heads_and_patches(page, tmp_path):
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(
        hidden_size=64,
        num_hidden_layers=15,
        num_attention_heads=8,
        mlp_ratio=1,
        patch_size=16,
        image_size=64,
        num_register_tokens=4,
    )
    Dinov2WithRegistersModel(config).save_pretrained(tmp_path / "deep")
    page.locator("#model input").fill(str(tmp_path / "deep"))
    page.keyboard.press("Enter")
    status = wait_for_status(page, "patches of 16 px and 4 registers")
    assert f"the folder {tmp_path / 'deep'}" in status
    page.locator("#attention-caption").get_by_text("layer 15 of 15").wait_for()
    before = source(page, "#attention-map")
    choose(page, "#attention-shown", "head 8")
    before = wait_for_change(page, "#attention-map", before)
    page.locator("#attention-layer input[type=number]").fill("14")
    page.keyboard.press("Enter")
    wait_for_change(page, "#attention-map", before)
    page.locator("#attention-caption").get_by_text("layer 14 of 15").wait_for()
    assert page.locator("#attention-registers").is_hidden()
    page.get_by_role("tab", name="Patch PCA").click()
    page.locator("#pca-caption").get_by_text("layer 15 of 15").wait_for()
