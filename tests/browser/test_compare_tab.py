"""Every control of the Compare tab, in a real browser. Most tests share one page, with the controls set back."""

import json
import re
import shutil

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from tests.browser.conftest import running_app, watched_page
from tests.browser.pictures import (
    choose,
    is_blank,
    pixels,
    source,
    upload,
    wait_for_change,
    wait_for_status,
    wait_for_text,
)

pytestmark = pytest.mark.browser

UNIT = "times uniform attention"
A, B, SLIDER, CANVAS = "#compare-a", "#compare-b", "#compare-slider", "#compare-canvas"


@pytest.fixture(scope="module")
def other(tiny_folders) -> str:
    """A model with two layers, two heads and patches of 16 pixels."""
    return str(tiny_folders["vit"])


@pytest.fixture(scope="module")
def flower_file(tmp_path_factory, flower):
    path = tmp_path_factory.mktemp("compare") / "flower.png"
    flower.save(path)
    return path


@pytest.fixture(scope="module")
def opened(browser, app, app_log, other, flower_file):
    """A watched page on the Compare tab: a flower with the embedded weights and the other model."""
    with watched_page(browser, app, app_log) as page:
        page.goto(app)
        page.wait_for_selector("#attention-map img")
        choose(page, "#resolution", "224 px")
        upload(page, flower_file)
        wait_for_status(page, "16 x 24")
        page.get_by_role("tab", name="Compare").click()
        wait_for(page, "figures", "Choose")
        assert not page.locator(A).is_visible()
        assert not page.locator(CANVAS).is_visible()
        choose(page, "#compare-resolution-a", "224 px")
        give(page, "b", other)
        wait_for(page, "figures", "Linear CKA")
        yield page


@pytest.fixture
def page(opened, other):
    """The same page as it was in the beginning."""
    if opened.locator("#compare-model-b input").input_value() != other:
        give(opened, "b", other)
    opened.get_by_label("attention", exact=True).check()
    opened.locator("#compare-scale").get_by_label("common", exact=True).check()
    wait_for(opened, "caption-b", UNIT)
    wait_for(opened, "figures", "One colour scale")
    return opened


def give(page, side: str, model: str) -> None:
    """Type a model's name."""
    page.locator(f"#compare-model-{side} input").fill(model)
    page.keyboard.press("Enter")


def wait_for(page, part: str, text: str) -> str:
    """The text of a part, once it contains `text`."""
    return wait_for_text(page, f"#compare-{part}", text)


def view(page, name: str) -> None:
    """Choose a view and wait until both are drawn."""
    before = source(page, A)
    page.get_by_label(name, exact=True).check()
    wait_for_change(page, A, before)


def change(page, act, selector: str = A) -> str:
    """Do something, and wait until the picture is another one."""
    before = source(page, selector)
    act()
    return wait_for_change(page, selector, before)


def click(page, x: float, y: float) -> None:
    """Click on the canvas at a place given as shares of the picture."""
    box = page.locator(f"{CANVAS} canvas").bounding_box()
    page.locator(f"{CANVAS} canvas").click(position={"x": box["width"] * x, "y": box["height"] * y})


def test_both_are_drawn_and_the_captions_name_the_models(page):
    assert not is_blank(pixels(page, A))
    assert not is_blank(pixels(page, B))
    assert "A: embedded · layer 12 of 12 · 16 x 24 patches of 14 px at 224 px" in wait_for(page, "caption-a", "A:")
    assert "B: vit · layer 2 of 2 · 14 x 21 patches of 16 px at 224 px" in wait_for(page, "caption-b", "B:")
    assert "294 patches" in wait_for(page, "figures", "CKA")


def test_the_slider_has_both_at_one_size_and_can_be_dragged(page):
    images = page.locator(f"{SLIDER} img")
    assert images.count() == 2
    shown = [page.request.get(images.nth(i).get_attribute("src")).body() for i in (0, 1)]
    assert shown == [page.request.get(source(page, side)).body() for side in (A, B)]
    handle = page.locator(f"{SLIDER} .outer, {SLIDER} .inner, {SLIDER} .handle").first
    handle.scroll_into_view_if_needed()
    before = handle.bounding_box()
    page.mouse.move(before["x"] + before["width"] / 2, before["y"] + before["height"] / 2)
    page.mouse.down()
    page.mouse.move(before["x"] + 120, before["y"] + before["height"] / 2, steps=4)
    page.mouse.up()
    assert handle.bounding_box()["x"] > before["x"] + 60


def test_layers_heads_raw_and_opacity_repaint_both(page):
    page.locator("#compare-layer input").click()
    offered = [text.splitlines()[-1] for text in page.get_by_role("option").all_inner_texts()]  # after a tick
    assert offered == ["last", "2/3", "1/2", "1/3", *(str(i + 1) for i in range(12))]
    change(page, lambda: page.get_by_role("option", name="2/3", exact=True).click(), B)
    assert "layer 8 of 12" in page.inner_text("#compare-caption-a")
    assert "layer 1 of 2" in page.inner_text("#compare-caption-b")
    change(page, lambda: choose(page, "#compare-layer", "last"), B)
    change(page, lambda: choose(page, "#compare-heads", "head 2"), B)
    assert "head 2" in page.inner_text("#compare-caption-b")
    change(page, lambda: choose(page, "#compare-heads", "mean of heads"), B)
    change(page, lambda: page.locator("#compare-raw input").check())
    change(page, lambda: page.locator("#compare-raw input").uncheck(), B)

    def fade(value: str) -> None:
        page.locator("#compare-opacity input[type=number]").fill(value)
        page.keyboard.press("Enter")

    change(page, lambda: fade("0.4"))
    change(page, lambda: fade("0.8"))


@pytest.mark.slow
def test_one_scale_for_both_or_each_its_own(page):
    def scale(part: str) -> str:
        return page.inner_text(f"#compare-{part}").split(UNIT)[0].splitlines()[-1].split("(")[0]

    assert scale("caption-a").replace("≥", "").split() == scale("caption-b").replace("≥", "").split()
    change(page, lambda: page.locator("#compare-scale").get_by_label("own", exact=True).check())
    wait_for(page, "figures", "Each on its own")
    assert scale("caption-a").replace("≥", "").split() != scale("caption-b").replace("≥", "").split()


@pytest.mark.slow
def test_aligned_joint_and_own_colours(page):
    view(page, "patch PCA")
    assert not page.locator(CANVAS).is_visible()
    assert "correlations" in wait_for(page, "figures", "Procrustes")
    assert not page.locator("#compare-heads").is_visible()
    colours = page.locator("#compare-colours")
    change(page, lambda: colours.get_by_label("joint", exact=True).check(), B)
    wait_for(page, "figures", "consensus PCA")
    change(page, lambda: colours.get_by_label("own", exact=True).check(), B)
    wait_for(page, "figures", "Each in its own colours")
    change(page, lambda: colours.get_by_label("aligned", exact=True).check(), B)
    black = (pixels(page, A).max(axis=2) < 60).mean()
    change(page, lambda: page.locator("#compare-foreground input").uncheck())
    assert (pixels(page, A).max(axis=2) < 60).mean() < black
    change(page, lambda: page.locator("#compare-foreground input").check())


@pytest.mark.slow
def test_a_model_is_equal_to_itself(page):
    give(page, "b", "embedded")
    wait_for(page, "caption-b", "B: embedded")
    assert re.search(r"CKA .* 1\.00", page.inner_text("#compare-figures"))
    for name in ("attention", "patch PCA"):
        page.get_by_label(name, exact=True).check()
        page.wait_for_function(
            "() => document.querySelector('#compare-a img').src === document.querySelector('#compare-b img').src"
        )
    wait_for(page, "figures", "100%")


def test_both_models_segment_from_the_same_clicks_which_outlive_a_change_of_view(page):
    view(page, "segmentation")
    wait_for(page, "figures", "Click on an object")
    change(page, lambda: click(page, 0.5, 0.47), B)
    wait_for(page, "figures", "IoU")
    first = wait_for(page, "caption-a", "the mask covers")
    assert "layers 8 and 12 of 12" in first
    assert "layers 1 and 2 of 2" in wait_for(page, "caption-b", "the mask covers")
    page.locator(f"{CANVAS} [data-sign=minus]").click()
    change(page, lambda: click(page, 0.1, 0.1), B)
    change(page, lambda: page.locator("#compare-raw input").check())
    assert "the mask covers" in wait_for(page, "caption-a", "score")
    change(page, lambda: page.locator("#compare-raw input").uncheck())
    view(page, "attention")
    assert not page.locator(CANVAS).is_visible()
    view(page, "segmentation")
    change(page, lambda: page.locator(f"{CANVAS} [data-do=undo]").click(), B)
    assert wait_for(page, "caption-a", "the mask covers") == first
    page.locator(f"{CANVAS} [data-do=clear]").click()
    wait_for(page, "figures", "Click on an object")
    page.locator(f"{CANVAS} [data-sign=plus]").click()


@pytest.mark.slow
def test_each_has_a_resolution_of_its_own(page):
    change(page, lambda: choose(page, "#compare-resolution-b", "64 px"), B)
    wait_for(page, "caption-b", "4 x 6 patches of 16 px at 64 px")
    assert "at 224 px" in page.inner_text("#compare-caption-a")
    wait_for(page, "figures", "24 patches")
    choose(page, "#compare-resolution-b", "as A")
    wait_for(page, "caption-b", "at 224 px")


def test_a_model_that_does_not_exist_is_named_on_its_side(page):
    give(page, "b", "dinov9")
    wait_for(page, "caption-b", "dinov9")
    assert "A: embedded" in page.inner_text("#compare-caption-a")
    assert source(page, A)
    assert not source(page, B)
    assert not page.locator(SLIDER).is_visible()


@pytest.mark.slow
def test_another_picture_is_drawn_with_both(page, flower_file):
    before = source(page, B)
    page.locator("#examples .gallery-item").nth(1).click()
    wait_for_change(page, B, before)
    wait_for(page, "caption-a", "16 x 16 patches")
    before = source(page, B)
    upload(page, flower_file)
    wait_for_change(page, B, before)


@pytest.mark.slow
def test_a_picture_that_cannot_be_read_is_named_on_each_side(page, flower_file, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    upload(page, tmp_path / "bad.png")
    for side in ("a", "b"):
        wait_for(page, f"caption-{side}", "bad.png")
    upload(page, flower_file)
    wait_for(page, "figures", "CKA")


@pytest.mark.slow
def test_long_encoding_can_be_stopped_and_begun_again(page):
    choose(page, "#compare-resolution-a", "1792 px")  # takes minutes, until it is stopped
    page.locator("#compare-stop", has_text="Stop").click()
    wait_for(page, "caption-a", "Stopped")
    choose(page, "#compare-resolution-a", "224 px")
    wait_for(page, "figures", "CKA")
    assert not page.locator("#compare-stop").is_visible()


@pytest.mark.slow
def test_knn_accuracies_with_their_error(page, tiny_folders, other):
    page.locator("#compare-knn").click()  # takes a minute, until it is stopped
    page.locator("#compare-knn-stop", has_text="Stop").click()
    wait_for(page, "knn-table", "Stopped.")
    give(page, "a", other)
    wait_for(page, "caption-a", "A: vit")
    page.locator("#compare-knn").click()
    table = wait_for(page, "knn-table", "10-NN")
    rows = [line.split("\t") for line in table.splitlines()[1:3]]
    assert [row[:2] for row in rows] == [["A", "vit"], ["B", "vit"]]
    assert rows[0][2:] == rows[1][2:]
    assert "±" in rows[0][2]
    for figure in ("720", "216", "5.6%"):
        assert figure in table
    give(page, "a", "embedded")
    wait_for(page, "caption-a", "A: embedded")


@pytest.mark.slow
def test_a_narrow_window_does_not_scroll_sideways(browser, app, app_log, other):
    with watched_page(browser, app, app_log, viewport={"width": 400, "height": 800}) as page:
        page.goto(app)
        page.wait_for_selector("#attention-map img")
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown button", has_text="Compare").click()
        give(page, "b", other)
        wait_for(page, "figures", "CKA")
        for name in ("patch PCA", "segmentation"):
            view(page, name)
            assert page.evaluate("document.documentElement.scrollWidth") <= 400
            right = "node => node.getBoundingClientRect().right"
            assert page.locator("#compare-raw").evaluate(right) <= 400


@pytest.mark.slow
def test_runs_and_snapshots_appear_while_the_page_is_open(browser, tmp_path, other):
    """The k-NN accuracy that a run logged is in the table; a run that is deleted is named as missing."""
    log, runs = tmp_path / "log", tmp_path / "runs"
    with running_app(log, DINOVIZ_RUNS=str(runs)) as url, watched_page(browser, url, log) as page:
        page.goto(url)
        page.wait_for_selector("#attention-map img")
        page.get_by_role("tab", name="Compare").click()
        for folder in ("mine/export", "mine/snapshots/step-00000040/export"):
            shutil.copytree(other, runs / folder)
        (runs / "mine" / "checkpoints").mkdir()
        (runs / "mine" / "config.json").write_text(json.dumps({"kind": "pretrain"}))
        records = [{"step": 40, "knn": 0.25}, {"step": 80, "knn": 0.5}]
        (runs / "mine" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        choose(page, "#compare-model-a", "mine (trained here)")
        choose(page, "#compare-model-b", "mine at step 40 (trained here)")
        wait_for(page, "caption-a", "A: mine · layer 2 of 2")
        wait_for(page, "caption-b", "B: mine at step 40 · layer 2 of 2")
        page.locator("#compare-knn").click()
        table = wait_for(page, "knn-table", "at step 40")
        assert "50.0% at step 80" in table.splitlines()[1]
        assert "25.0% at step 40" in table.splitlines()[2]
        shutil.rmtree(runs / "mine" / "snapshots")
        page.locator("#compare-encode").click()
        page.wait_for_function(f"!document.querySelector('{B} img')")
        assert source(page, A)


def test_the_endpoint_answers_a_client(app, flower_file, other, tmp_path):
    client = Client(app, verbose=False, download_files=tmp_path)
    models = {"model_a": "embedded", "resolution_a": "128", "model_b": other}
    a, b, caption_a, _, figures = client.predict(image=handle_file(flower_file), **models, api_name="/compare")
    assert Image.open(a).size == Image.open(b).size == (768, 512)
    assert "9 x 14 patches of 14 px" in caption_a
    assert "CKA" in figures
    with pytest.raises(AppError, match="dinov9"):
        client.predict(image=handle_file(flower_file), **models | {"model_b": "dinov9"}, api_name="/compare")
