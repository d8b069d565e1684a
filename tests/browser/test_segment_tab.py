"""Every control of the segment tab, in a real browser. One page serves most tests: each clears what it marked."""

import json
import re
import zipfile

import numpy as np
import pytest
from gradio_client import Client
from PIL import Image, ImageOps

from tests.browser.conftest import watched_page
from tests.browser.pictures import choose, pixels, source, upload, wait_for_change, wait_for_status
from tests.test_marks import distances

pytestmark = pytest.mark.browser

REFERENCE, TARGET = "#segment-reference", "#segment-target"
CARD = "#segment-gallery button"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, flower, chelsea):
    """The flower, mirrored; a cat; and a file that is no picture."""
    folder = tmp_path_factory.mktemp("targets")
    flower.save(folder / "flower.png")
    ImageOps.mirror(flower).save(folder / "a-mirrored.png")
    chelsea.save(folder / "b-cat.png")
    (folder / "c-corrupt.png").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def opened(browser, app, app_log, folder):
    """A watched page on the Segment tab, with the flower at a low resolution."""
    with watched_page(browser, app, app_log) as page:
        page.goto(app)
        page.wait_for_selector("#attention-map img")
        choose(page, "#resolution", "224 px")
        wait_for_status(page, "16 x 24")
        page.get_by_role("tab", name="Segment").click()
        upload(page, folder / "flower.png")
        caption(page, "16 x 24 patches")
        page.wait_for_function("document.querySelector('#segment-reference img').naturalWidth > 0")
        yield page


@pytest.fixture
def page(opened, folder):
    """The same page, with the flower, nothing marked, and the tools as they were in the beginning."""
    if "16 x 24 patches" not in opened.inner_text("#segment-caption"):
        upload(opened, folder / "flower.png")
        caption(opened, "16 x 24 patches")
    for canvas in (REFERENCE, TARGET):
        clear = opened.locator(f"{canvas} [data-do=clear]")
        if clear.is_visible() and clear.is_enabled():
            clear.click()
    for tool in ("[data-tool=click]", "[data-sign=plus]"):
        opened.locator(f"{REFERENCE} button{tool}").click()
    caption(opened, "Click on the thing you want")
    return opened


@pytest.fixture(scope="module")
def client(app, tmp_path_factory):
    return Client(app, verbose=False, download_files=tmp_path_factory.mktemp("client"))


def caption(page, text: str, which: str = "#segment-caption") -> str:
    """A caption, once it says a text."""
    page.wait_for_function(
        "([which, text]) => document.querySelector(which)?.innerText.includes(text)", arg=[which, text], timeout=30_000
    )
    return page.inner_text(which)


def covered(page) -> float:
    """How much of the picture the mask covers, in percent, as the caption says."""
    return float(re.search(r"covers ([\d.]+)%", page.inner_text("#segment-caption"))[1])


def mark(page, x: float, y: float, canvas: str = REFERENCE, **options) -> None:
    """Click on a canvas at a place given as shares of the picture."""
    box = page.locator(f"{canvas} canvas").bounding_box()
    page.locator(f"{canvas} canvas").click(position={"x": box["width"] * x, "y": box["height"] * y}, **options)


def click_flower(page) -> None:
    """One click on the flower, answered."""
    before = source(page, REFERENCE)
    mark(page, 0.5, 0.47)
    wait_for_change(page, REFERENCE, before)
    caption(page, "1 click:")


def draw(page, points, canvas: str = REFERENCE) -> np.ndarray:
    """Drag the mouse through points given as shares of the picture -> where it was, as exact shares."""
    page.locator(f"{canvas} canvas").scroll_into_view_if_needed()
    box = page.locator(f"{canvas} canvas").bounding_box()
    corner, size = np.array([box["x"], box["y"]]), np.array([box["width"], box["height"]])
    places = np.round(corner + np.array(points) * size)
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()
    return (places - corner) / size


def sent_marks(page, act) -> dict:
    """The marks by picture that the page sends when something is done."""
    with page.expect_request(lambda request: "queue/join" in request.url) as asked:
        act()
    return json.loads(asked.value.post_data_json["data"][3])


def zipped(page) -> zipfile.ZipFile:
    """The download, opened."""
    with page.expect_download(timeout=60_000) as download:
        page.locator("#segment-file-button").click()
    return zipfile.ZipFile(download.value.path())


def mask_in(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    values = np.asarray(Image.open(archive.open(f"masks/{name}.png")))
    assert set(np.unique(values)) <= {0, 255}
    return values > 0


def drop(page, *paths) -> None:
    """Give the tab these targets, instead of those that are there."""
    remove = page.locator("#segment-files button[aria-label='Clear'], #segment-files button[aria-label='Remove']")
    if remove.count():
        remove.first.click()
        caption(page, "Drop pictures above", "#segment-found")
    page.set_input_files("#segment-files input[type=file]", [str(path) for path in paths])
    page.wait_for_function("n => document.querySelectorAll('#segment-gallery button').length === n", arg=len(paths))
    page.wait_for_function(
        "![...document.querySelectorAll('#segment-gallery button')].some(b => ['waiting', 'pending']"
        ".includes(b.dataset.state))",
        timeout=60_000,
    )


# Clicks


def test_a_click_becomes_a_mask_of_the_thing(page):
    plain = pixels(page, REFERENCE)
    click_flower(page)
    said = page.inner_text("#segment-caption")
    assert "embedded · 16 x 24 patches of 14 px at 224 px · layers" in said
    assert 5 < covered(page) < 50
    blue = (pixels(page, REFERENCE).astype(int) - plain)[..., 2]
    h, w = blue.shape
    assert blue[h // 2, w // 2] > 20  # on the flower
    assert abs(blue[h // 10, w // 10]) < 15  # on the leaves


def test_negative_click_undo_and_clear(page):
    plain = source(page, REFERENCE)
    click_flower(page)
    one = source(page, REFERENCE)
    page.locator(f"{REFERENCE} button[data-sign=minus]").click()
    mark(page, 0.5, 0.6)
    wait_for_change(page, REFERENCE, one)
    caption(page, "1 click, 1 click beside it")
    page.locator(f"{REFERENCE} button[data-do=undo]").click()
    caption(page, "1 click:")
    page.wait_for_function(f"document.querySelector('{REFERENCE} img').getAttribute('src') === '{one}'")
    page.locator(f"{REFERENCE} button[data-do=clear]").click()
    caption(page, "Click on the thing you want")
    assert source(page, REFERENCE) == plain
    assert page.locator(f"{REFERENCE} button[data-do=undo]").is_disabled()


@pytest.mark.parametrize("options", [{"button": "right"}, {"modifiers": ["Shift"]}])
def test_right_button_and_shift_mean_beside(page, options):
    (actions,) = sent_marks(page, lambda: mark(page, 0.2, 0.3, **options)).values()
    assert actions[0]["label"] == 0
    caption(page, "So far everything marked is beside the thing")


def test_clicks_arrive_in_pixels_of_the_picture(page):
    (actions,) = sent_marks(page, lambda: mark(page, 0.25, 0.75)).values()
    assert actions == [
        {"kind": "point", "x": pytest.approx(160, abs=1.5), "y": pytest.approx(320, abs=1.5), "label": 1}
    ]


def test_a_hundred_quick_clicks_are_all_there(page):
    box = page.locator(f"{REFERENCE} canvas").bounding_box()
    for i in range(100):
        page.mouse.click(box["x"] + box["width"] * (0.4 + i % 10 / 50), box["y"] + box["height"] * (0.3 + i // 10 / 50))
    caption(page, "100 clicks")


def test_marks_by_the_keyboard_alone(page):
    page.locator(f"{REFERENCE} canvas").focus()
    page.keyboard.press("ArrowLeft")
    (actions,) = sent_marks(page, lambda: page.keyboard.press("Enter")).values()
    assert actions[0]["x"] == pytest.approx(320 - 6.4)
    assert actions[0]["y"] == pytest.approx(213.5)
    page.keyboard.press("e")
    assert page.get_attribute(f"{REFERENCE} button[data-tool=draw]", "aria-pressed") == "true"
    assert page.get_attribute(f"{REFERENCE} button[data-sign=minus]", "aria-pressed") == "true"
    for _ in range(3):
        page.keyboard.press("]")
    assert page.input_value(f"{REFERENCE} input[type=range]") == "22"
    for _ in range(3):
        page.keyboard.press("[")
    page.keyboard.press("Control+z")
    caption(page, "Click on the thing you want")


# Drawing


def test_draw_erase_and_draw_again_across_tabs(page):
    page.locator(f"{REFERENCE} button[data-tool=draw]").click()
    draw(page, [(0.3, 0.5), (0.7, 0.5)])
    caption(page, "1 stroke:")
    drawn = covered(page)
    assert drawn > 2
    page.get_by_role("tab", name="Attention").click()
    page.get_by_role("tab", name="Segment").click()
    page.keyboard.press("e")
    page.locator(f"{REFERENCE} button[data-sign=minus]").click()
    draw(page, [(0.5, 0.3), (0.5, 0.7)])
    caption(page, "2 strokes")
    erased = covered(page)
    assert erased < drawn
    page.locator(f"{REFERENCE} button[data-sign=plus]").click()
    draw(page, [(0.3, 0.2), (0.7, 0.2)])
    caption(page, "3 strokes")
    assert covered(page) > erased


def test_a_stroke_is_seen_while_it_is_drawn(page):
    page.locator(f"{REFERENCE} button[data-tool=draw]").click()
    box = page.locator(f"{REFERENCE} canvas").bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 50, steps=3)
    ink = """() => {
        const canvas = document.querySelector('#segment-reference canvas'), dense = canvas.width / canvas.clientWidth
        return [...canvas.getContext('2d').getImageData(100 * dense, 50 * dense, 1, 1).data]
    }"""
    assert page.evaluate(ink)[3] > 60
    page.mouse.up()
    caption(page, "1 stroke:")
    page.wait_for_function(f"({ink})()[3] === 0")  # the picture has it now


def test_a_drawn_mask_arrives_to_the_pixel(page, tmp_path):
    size = (2600, 1100)
    picture = np.random.default_rng(0).integers(0, 255, (11, 26, 3), dtype=np.uint8)
    Image.fromarray(picture).resize(size).save(tmp_path / "wide.png")
    upload(page, tmp_path / "wide.png")
    caption(page, "16 x 38 patches")
    page.locator(f"{REFERENCE} button[data-tool=draw]").click()
    path = draw(page, [(0.2, 0.2), (0.8, 0.35), (0.6, 0.8), (0.25, 0.6)])
    caption(page, "1 stroke:")
    width = page.locator(f"{REFERENCE} canvas").bounding_box()["width"]
    with zipped(page) as archive:
        mask = mask_in(archive, "0000-wide")
    assert mask.shape == size[::-1]
    away, radius = distances(path * size, size), 16 * size[0] / width
    assert mask[away <= radius - 1].all()
    assert not mask[away >= radius + 1].any()


def test_marks_are_kept_by_picture(page, folder):
    click_flower(page)
    upload(page, folder / "b-cat.png")
    caption(page, "Click on the thing you want")
    upload(page, folder / "flower.png")
    caption(page, "1 click:")
