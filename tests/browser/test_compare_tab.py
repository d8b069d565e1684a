"""Every control of the Compare tab, in a real browser. One page serves most tests: each begins where none is chosen."""

import json
import shutil

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from dinoviz import compare, render
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
    """A watched page on the Compare tab: a flower through the embedded weights and the other model."""
    with watched_page(browser, app, app_log) as page:
        page.goto(app)
        page.wait_for_selector("#attention-map img")
        choose(page, "#resolution", "224 px")
        upload(page, flower_file)
        wait_for_status(page, "16 x 24")
        page.get_by_role("tab", name="Compare").click()
        said(page, "figures", "Choose the two models")
        assert not page.locator(A).is_visible()
        assert not page.locator(CANVAS).is_visible()
        choose(page, "#compare-resolution-a", "224 px")
        give(page, "b", other)
        said(page, "figures", "Linear CKA")
        yield page


@pytest.fixture
def page(opened, other):
    """The same page as it was in the beginning."""
    if opened.locator("#compare-model-b input").input_value() != other:
        give(opened, "b", other)
    opened.get_by_label("attention", exact=True).check()
    opened.locator("#compare-scale").get_by_label("common", exact=True).check()
    said(opened, "caption-b", "times an even spread")
    said(opened, "figures", "One scale of colours for both")
    return opened


def give(page, side: str, model: str) -> None:
    """Type a model's name."""
    page.locator(f"#compare-model-{side} input").fill(model)
    page.keyboard.press("Enter")


def said(page, part: str, text: str) -> str:
    """What a part says, once it says a text."""
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


def test_both_are_drawn_and_said_through_what(page):
    assert not is_blank(pixels(page, A))
    assert not is_blank(pixels(page, B))
    assert "A: embedded · layer 12 of 12 · 16 x 24 patches of 14 px at 224 px" in said(page, "caption-a", "A:")
    assert "B: vit · layer 2 of 2 · 14 x 21 patches of 16 px at 224 px" in said(page, "caption-b", "B:")
    assert "over the 294 places of the coarser grid" in said(page, "figures", "CKA")


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
        return page.inner_text(f"#compare-{part}").split("times an even")[0].splitlines()[-1].split("(")[0]

    assert scale("caption-a").replace("≥", "").split() == scale("caption-b").replace("≥", "").split()
    change(page, lambda: page.locator("#compare-scale").get_by_label("own", exact=True).check())
    said(page, "figures", "Each on its own scale of colours")
    assert scale("caption-a").replace("≥", "").split() != scale("caption-b").replace("≥", "").split()


@pytest.mark.slow
def test_colours_of_one_space_of_both_or_of_each(page):
    view(page, "patch PCA")
    assert not page.locator(CANVAS).is_visible()
    aligned = said(page, "figures", "turned onto A's (Procrustes)")
    assert "of their variance over" in aligned
    assert "correlations" in aligned
    assert not page.locator("#compare-heads").is_visible()
    colours = page.locator("#compare-colours")
    change(page, lambda: colours.get_by_label("joint", exact=True).check(), B)
    said(page, "figures", "consensus PCA")
    change(page, lambda: colours.get_by_label("own", exact=True).check(), B)
    said(page, "figures", "not to be compared")
    change(page, lambda: colours.get_by_label("aligned", exact=True).check(), B)
    black = (pixels(page, A).max(axis=2) < 60).mean()
    change(page, lambda: page.locator("#compare-foreground input").uncheck())
    assert (pixels(page, A).max(axis=2) < 60).mean() < black
    change(page, lambda: page.locator("#compare-foreground input").check())


@pytest.mark.slow
def test_a_model_beside_itself_looks_like_itself(page):
    give(page, "b", "embedded")
    said(page, "caption-b", "B: embedded")
    assert "Linear CKA of the patches 1.00" in page.inner_text("#compare-figures")
    for name in ("attention", "patch PCA"):
        page.get_by_label(name, exact=True).check()
        page.wait_for_function(
            "() => document.querySelector('#compare-a img').src === document.querySelector('#compare-b img').src"
        )
    said(page, "figures", "They share 100%")


def test_the_same_clicks_go_through_both_and_outlive_a_change_of_view(page):
    view(page, "segmentation")
    said(page, "figures", "Click on a thing")
    change(page, lambda: click(page, 0.5, 0.47), B)
    said(page, "figures", "IoU of the two masks")
    first = said(page, "caption-a", "the mask covers")
    assert "layers 8 and 12 of 12" in first
    assert "layers 1 and 2 of 2" in said(page, "caption-b", "the mask covers")
    page.locator(f"{CANVAS} [data-sign=minus]").click()
    change(page, lambda: click(page, 0.1, 0.1), B)
    change(page, lambda: page.locator("#compare-raw input").check())
    said(page, "caption-a", "evidence for the thing")
    change(page, lambda: page.locator("#compare-raw input").uncheck())
    view(page, "attention")
    assert not page.locator(CANVAS).is_visible()
    view(page, "segmentation")
    change(page, lambda: page.locator(f"{CANVAS} [data-do=undo]").click(), B)
    assert said(page, "caption-a", "the mask covers") == first
    page.locator(f"{CANVAS} [data-do=clear]").click()
    said(page, "figures", "Click on a thing")
    page.locator(f"{CANVAS} [data-sign=plus]").click()


@pytest.mark.slow
def test_each_has_a_resolution_of_its_own(page):
    change(page, lambda: choose(page, "#compare-resolution-b", "64 px"), B)
    said(page, "caption-b", "4 x 6 patches of 16 px at 64 px")
    assert "at 224 px" in page.inner_text("#compare-caption-a")
    said(page, "figures", "over the 24 places")
    choose(page, "#compare-resolution-b", "as A")
    said(page, "caption-b", "at 224 px")


def test_what_cannot_be_looked_through_is_said_on_its_side(page):
    give(page, "b", "dinov9")
    assert "B: There is no model 'dinov9'" in said(page, "caption-b", "no model")
    assert "A: embedded" in page.inner_text("#compare-caption-a")
    assert source(page, A)
    assert not source(page, B)
    assert not page.locator(SLIDER).is_visible()


@pytest.mark.slow
def test_a_head_that_one_model_lacks_is_said_on_its_side(page):
    choose(page, "#compare-heads", "head 5")
    said(page, "caption-b", "There is no map 'head 5'")
    assert "head 5" in page.inner_text("#compare-caption-a")
    change(page, lambda: choose(page, "#compare-heads", "mean of heads"), B)


@pytest.mark.slow
def test_a_layer_that_is_none_is_said(page):
    page.locator("#compare-layer input").fill("first")
    page.keyboard.press("Enter")
    said(page, "caption-a", "A layer is 'last', a share of the depth")
    change(page, lambda: choose(page, "#compare-layer", "last"))


@pytest.mark.slow
def test_another_picture_is_looked_at_through_both(page, flower_file):
    before = source(page, B)
    page.locator("#examples .gallery-item").nth(1).click()
    wait_for_change(page, B, before)
    said(page, "caption-a", "16 x 16 patches")
    before = source(page, B)
    upload(page, flower_file)
    wait_for_change(page, B, before)


@pytest.mark.slow
def test_a_picture_that_cannot_be_read_is_one_sentence_on_each_side(page, flower_file, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    upload(page, tmp_path / "bad.png")
    for side in ("a", "b"):
        said(page, f"caption-{side}", "bad.png: this is not an image")
    upload(page, flower_file)
    said(page, "figures", "CKA")


@pytest.mark.slow
def test_long_encoding_can_be_stopped_and_begun_again(page):
    choose(page, "#compare-resolution-a", "1792 px")
    said(page, "figures", "A: ")
    page.locator("#compare-stop", has_text="Stop").click()
    said(page, "caption-a", "Stopped. Press Compare to begin again.")
    choose(page, "#compare-resolution-a", "224 px")
    said(page, "figures", "CKA")
    assert not page.locator("#compare-stop").is_visible()


@pytest.mark.slow
def test_knn_figures_with_data_protocol_and_error(page, tiny_folders, other):
    page.locator("#compare-knn").click()
    said(page, "knn-table", "A: ")
    page.locator("#compare-knn-stop", has_text="Stop").click()
    said(page, "knn-table", "Stopped.")
    give(page, "a", other)
    said(page, "caption-a", "A: vit")
    page.locator("#compare-knn").click()
    table = said(page, "knn-table", "10-NN")
    rows = [line.split("\t") for line in table.splitlines()[1:3]]
    assert [row[:2] for row in rows] == [["A", "vit"], ["B", "vit"]]
    assert rows[0][2:] == rows[1][2:]
    assert "±" in rows[0][2]
    for words in ("720 crops of 18 pictures", "216 crops", "chance is 5.6%", "exp(cosine / 0.07)", "n = 216"):
        assert words in table
    give(page, "a", "embedded")
    said(page, "caption-a", "A: embedded")


@pytest.mark.slow
def test_a_narrow_window_does_not_scroll_sideways(browser, app, app_log, other):
    with watched_page(browser, app, app_log, viewport={"width": 400, "height": 800}) as page:
        page.goto(app)
        page.wait_for_selector("#attention-map img")
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown button", has_text="Compare").click()
        give(page, "b", other)
        said(page, "figures", "CKA")
        for name in ("patch PCA", "segmentation"):
            view(page, name)
            assert page.evaluate("document.documentElement.scrollWidth") <= 400
            right = "node => node.getBoundingClientRect().right"
            assert page.locator("#compare-raw").evaluate(right) <= 400


@pytest.mark.slow
def test_runs_and_snapshots_appear_while_the_page_is_open(browser, tmp_path, other):
    """Their own k-NN is told beside ours; one that is deleted is a sentence."""
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
        said(page, "caption-a", "A: mine · layer 2 of 2")
        said(page, "caption-b", "B: mine at step 40 · layer 2 of 2")
        page.locator("#compare-knn").click()
        table = said(page, "knn-table", "its own run says")
        assert "50.0% at step 80" in table.splitlines()[1]
        assert "25.0% at step 40" in table.splitlines()[2]
        shutil.rmtree(runs / "mine" / "snapshots")
        page.locator("#compare-encode").click()
        said(page, "caption-b", "There is no model")
        assert source(page, A)


@pytest.fixture(scope="module")
def client(app, tmp_path_factory):
    return Client(app, verbose=False, download_files=tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="module")
def asked(flower_file, other) -> dict:
    """What the endpoint needs."""
    file = handle_file(flower_file)
    return {"image": file, "resolution_a": "128", "model_a": "embedded", "model_b": other, "api_name": "/compare"}


@pytest.mark.parametrize("name", ["attention", "patch PCA", "segmentation"])
def test_the_endpoint_draws_every_view(client, asked, name):
    marks = json.dumps([{"kind": "point", "x": 320, "y": 200, "label": 1}])
    a, b, caption_a, caption_b, figures = client.predict(**asked, view=name, marks=marks)
    assert Image.open(a).size == Image.open(b).size == (768, 512)
    assert "9 x 14 patches of 14 px" in caption_a
    assert "8 x 12 patches of 16 px" in caption_b
    assert {"attention": "CKA", "patch PCA": "share", "segmentation": "IoU"}[name] in figures


def test_the_endpoint_draws_what_the_library_draws(client, asked, embedded_backbone, other, flower, flower_file):
    import dinoviz

    drawn = client.predict(**asked, view="patch PCA", layer="2/3", colours="joint", foreground=False, opacity=1)[1]
    seen = [b.encode(flower, 128, "all") for b in (embedded_backbone, dinoviz.load(other, device="cpu"))]
    _, colours, _ = compare.joint_colours(*seen, method="joint", layers=(7, 0), foreground=False)
    shown = render.display_copy(flower, 768, 1024)
    expected = render.map_picture(shown, seen[1].grid, colours, opacity=1)
    # JPEG on the way.
    assert np.abs(np.asarray(Image.open(drawn), float) - np.asarray(expected, float)).mean() < 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"model_b": "dinov9"}, "There is no model 'dinov9'"),
        ({"model_b": None}, "Comparing takes two models"),
        ({"image": None}, "There is no picture yet"),
        ({"marks": "{"}, "not valid JSON"),
    ],
)
def test_a_wrong_argument_is_one_sentence(client, asked, arguments, sentence):
    with pytest.raises(AppError, match=sentence):
        client.predict(**{**asked, **arguments})


def test_a_picture_that_is_too_long_is_one_sentence(client, asked, tmp_path):
    Image.new("RGB", (60_000, 8)).save(tmp_path / "long.png")
    with pytest.raises(AppError, match="too long and narrow"):
        client.predict(**{**asked, "image": handle_file(tmp_path / "long.png")})


@pytest.mark.parametrize(("name", "value"), [("layer", "first"), ("heads", "head 99")])
def test_what_one_side_cannot_show_is_said_in_its_caption(client, asked, name, value):
    assert value in client.predict(**asked, **{name: value})[2]
