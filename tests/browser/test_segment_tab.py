"""Every control of the Segment tab in a real browser. One page serves most tests; each starts without marks."""

import json
import re
import zipfile

import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image, ImageOps

from dinoviz.cache import image_digest
from dinoviz.images import open_image
from dinoviz.ui.mask_views import SCORE_MEANING
from dinoviz.ui.segment.views import ONLY_BACKGROUND, START
from tests.browser.conftest import watched_page
from tests.browser.pictures import (
    choose,
    is_blank,
    open_tab,
    pixels,
    source,
    upload,
    wait_for_change,
    wait_for_status,
    wait_for_text,
)
from tests.segment.test_prompts import distances

pytestmark = pytest.mark.browser

REFERENCE, TARGET = "#segment-reference", "#segment-target"
CARD = "#segment-gallery button"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, flower, chelsea):
    """A mirrored flower with a small copy, a cat, and an unreadable file."""
    folder = tmp_path_factory.mktemp("targets")
    flower.save(folder / "flower.png")
    ImageOps.mirror(flower).save(folder / "a-mirrored.png")
    chelsea.save(folder / "b-cat.png")
    (folder / "c-corrupt.png").write_text("no picture")
    two = flower.copy()
    two.paste(flower.crop((170, 80, 450, 360)).resize((110, 110)), (15, 15))
    two.save(folder / "two.png")
    return folder


@pytest.fixture(scope="module")
def opened(browser, app, app_log, folder):
    """A watched page on the Segment tab, with the flower at a low resolution."""
    with watched_page(browser, app, app_log) as page:
        page.goto(app)
        page.wait_for_selector("#attention-map img")
        choose(page, "#resolution", "224 px")
        wait_for_status(page, "16 x 24")
        open_tab(page, "Segment")
        show(page, folder / "flower.png")
        page.wait_for_function("document.querySelector('#segment-reference img').naturalWidth > 0")
        yield page


@pytest.fixture
def page(opened, folder):
    """The same page with the flower, without marks, and with the first tools."""
    show(opened, folder / "flower.png")
    for canvas in (REFERENCE, TARGET):
        clear = opened.locator(f"{canvas} [data-do=clear]")
        if clear.is_visible() and clear.is_enabled():
            clear.click()
    for tool in ("[data-tool=click]", "[data-sign=plus]"):
        opened.locator(f"{REFERENCE} button{tool}").click()
    caption(opened, START)
    return opened


def show(page, path) -> None:
    """Upload a picture into the bar, and wait until it can be marked."""
    digest = image_digest(open_image(path))
    if page.get_attribute(f"{REFERENCE} .dv-canvas", "data-picture") != digest:
        upload(page, path)
        page.wait_for_selector(f"{REFERENCE} .dv-canvas[data-picture='{digest}']")


@pytest.fixture(scope="module")
def client(app, tmp_path_factory):
    return Client(app, verbose=False, download_files=tmp_path_factory.mktemp("client"))


def caption(page, text: str, which: str = "#segment-caption") -> str:
    """A caption, once it contains a text."""
    return wait_for_text(page, which, text)


def covered(page) -> float:
    """Percentage of the picture that the mask covers, from the caption."""
    return float(re.search(r"covers ([\d.]+)%", page.inner_text("#segment-caption"))[1])


def mark(page, x: float, y: float, canvas: str = REFERENCE, **options) -> None:
    """Click on a canvas at a place given as shares of the picture."""
    box = page.locator(f"{canvas} canvas").bounding_box()
    page.locator(f"{canvas} canvas").click(position={"x": box["width"] * x, "y": box["height"] * y}, **options)


def click_flower(page) -> None:
    """Click on the flower, and wait for the mask."""
    before = source(page, REFERENCE)
    mark(page, 0.5, 0.47)
    wait_for_change(page, REFERENCE, before)
    caption(page, "1 click:")


def draw(page, points, canvas: str = REFERENCE) -> np.ndarray:
    """Drag the mouse through points given as shares of the picture; returns its exact places as shares."""
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


def sent_marks(page, act, count: int = 1) -> list[dict]:
    """The marks of the reference that the page sends after `act`, once there are `count`."""
    picture = page.get_attribute(f"{REFERENCE} .dv-canvas", "data-picture")

    def marks(request) -> list[dict]:
        if "queue/join" not in request.url:
            return []
        # Of the inputs of any handler: the JSON object that has this picture as a key.
        for value in request.post_data_json["data"]:
            if isinstance(value, str) and value.startswith("{") and picture in (found := json.loads(value)):
                return found[picture]
        return []

    with page.expect_request(lambda request: len(marks(request)) == count) as sent:
        act()
    return marks(sent.value)


def zipped(page) -> zipfile.ZipFile:
    """The downloaded zip."""
    with page.expect_download() as download:
        page.locator("#segment-file-button").click()
    return zipfile.ZipFile(download.value.path())


def mask_in(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    values = np.asarray(Image.open(archive.open(f"masks/{name}.png")))
    assert set(np.unique(values)) <= {0, 255}
    return values > 0


def take_away(page) -> None:
    """Remove all targets."""
    remove = page.locator("#segment-files button[aria-label='Clear'], #segment-files button[aria-label='Remove']")
    if remove.count():
        remove.first.click()
        caption(page, "Drop pictures", "#segment-found")


def drop(page, *paths) -> None:
    """Replace the targets."""
    take_away(page)
    page.set_input_files("#segment-files input[type=file]", [str(path) for path in paths])
    page.wait_for_function("n => document.querySelectorAll('#segment-gallery button').length === n", arg=len(paths))
    page.wait_for_function(
        "![...document.querySelectorAll('#segment-gallery button')].some(b => ['waiting', 'pending']"
        ".includes(b.dataset.state))"
    )


# Clicks


def test_a_click_becomes_a_mask_of_the_object(page):
    plain = pixels(page, REFERENCE)
    click_flower(page)
    assert "16 x 24 patches of 14 px" in page.inner_text("#segment-caption")
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
    caption(page, "1 click, 1 click on background")
    page.locator(f"{REFERENCE} button[data-do=undo]").click()
    caption(page, "1 click:")
    page.wait_for_function(f"document.querySelector('{REFERENCE} img').getAttribute('src') === '{one}'")
    page.locator(f"{REFERENCE} button[data-do=clear]").click()
    caption(page, START)
    assert source(page, REFERENCE) == plain
    assert page.locator(f"{REFERENCE} button[data-do=undo]").is_disabled()


@pytest.mark.slow
def test_right_button_and_shift_mark_background(page):
    for count, options in ((1, {"button": "right"}), (2, {"modifiers": ["Shift"]})):
        actions = sent_marks(page, lambda options=options: mark(page, 0.2, 0.3, **options), count)
        assert actions[-1]["label"] == 0
    caption(page, ONLY_BACKGROUND)


def test_a_hundred_quick_clicks_all_count(page):
    page.evaluate("""() => {
        const canvas = document.querySelector('#segment-reference canvas'), box = canvas.getBoundingClientRect()
        for (let i = 0; i < 100; i++) {
            const place = {clientX: box.left + 150 + i, clientY: box.top + 100 + i, bubbles: true}
            for (const event of ['pointerdown', 'pointerup']) canvas.dispatchEvent(new PointerEvent(event, place))
        }
    }""")
    caption(page, "100 clicks")


@pytest.mark.slow
def test_marks_by_keyboard(page):
    page.locator(f"{REFERENCE} canvas").focus()
    page.keyboard.press("ArrowLeft")
    actions = sent_marks(page, lambda: page.keyboard.press("Enter"))
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
    caption(page, START)


# Drawing


def test_draw_erase_and_draw_again_across_tabs(page):
    page.locator(f"{REFERENCE} button[data-tool=draw]").click()
    draw(page, [(0.3, 0.5), (0.7, 0.5)])
    caption(page, "1 stroke:")
    drawn = covered(page)
    assert drawn > 2
    page.get_by_role("tab", name="Attention").click()
    open_tab(page, "Segment")
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


@pytest.mark.slow
def test_a_stroke_is_shown_while_it_is_drawn(page):
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
    page.wait_for_function(f"({ink})()[3] === 0")  # it is in the picture now


@pytest.mark.slow
def test_a_drawn_mask_is_exact_to_the_pixel(page, tmp_path):
    size = (2600, 1100)
    picture = np.random.default_rng(0).integers(0, 255, (11, 26, 3), dtype=np.uint8)
    Image.fromarray(picture).resize(size).save(tmp_path / "wide.png")
    show(page, tmp_path / "wide.png")
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


@pytest.mark.slow
def test_marks_are_kept_by_picture(page, folder):
    click_flower(page)
    show(page, folder / "b-cat.png")
    caption(page, START)
    show(page, folder / "flower.png")
    caption(page, "1 click:")


# Controls


def number(page, slider: str, value: str) -> None:
    page.locator(f"{slider} input[type=number]").fill(value)
    page.keyboard.press("Enter")


def threshold(page, value: str) -> None:
    page.locator("#segment-auto input").uncheck()
    page.wait_for_function("!document.querySelector('#segment-threshold input[type=number]').disabled")
    number(page, "#segment-threshold", value)


def check(label: str):
    return lambda page: page.get_by_label(label, exact=True).check()


# (what changes the picture, what restores it, words of the caption)
CONTROLS = (
    (lambda page: page.locator("#segment-refine input").uncheck(), check("Follow edges"), "calibrated"),
    (lambda page: number(page, "#segment-smallest", "5"), lambda page: number(page, "#segment-smallest", "0.1"), ""),
    (check("what was clicked"), check("all instances"), ""),
    (lambda page: number(page, "#segment-opacity", "0.9"), lambda page: number(page, "#segment-opacity", "0.5"), ""),
    (check("cut-out"), check("mask"), ""),
    (check("score"), check("mask"), SCORE_MEANING),
    (check("raw patch score"), check("mask"), SCORE_MEANING),
    (lambda page: threshold(page, "0.9"), check("Calibrated threshold"), "threshold 0.90"),
)


def test_every_control_changes_the_picture(page, folder):
    show(page, folder / "two.png")
    page.get_by_label("all instances").check()
    click_flower(page)
    before = source(page, REFERENCE)
    mark(page, 0.2, 0.8, button="right")
    caption(page, "1 click, 1 click on background")
    before = wait_for_change(page, REFERENCE, before)
    for act, restore, words in CONTROLS:
        act(page)
        wait_for_change(page, REFERENCE, before)
        caption(page, words)
        assert not is_blank(pixels(page, REFERENCE))
        restore(page)
        page.wait_for_function(f"document.querySelector('{REFERENCE} img').getAttribute('src') === '{before}'")


# Other pictures


def test_targets_are_found_and_a_corrupt_one_is_named(page, folder):
    drop(page, folder / "a-mirrored.png", folder / "b-cat.png", folder / "c-corrupt.png")
    caption(page, "3 pictures: mark", "#segment-found")
    click_flower(page)
    caption(page, "1 cannot be read", "#segment-found")
    cards = page.locator(CARD)
    assert cards.nth(0).get_attribute("data-state") == "present"
    assert "c-corrupt.png" in cards.nth(2).inner_text()
    assert cards.nth(2).is_disabled()


@pytest.mark.slow
def test_a_correction_in_a_target_changes_all_results(page, folder):
    drop(page, folder / "a-mirrored.png", folder / "b-cat.png")
    click_flower(page)
    caption(page, ": found in", "#segment-found")
    page.locator(CARD).nth(0).click()
    caption(page, "a-mirrored.png", f"{TARGET}-caption")
    large, card = source(page, TARGET), source(page, f"{CARD}:nth-child(1)")
    mark(page, 0.5, 0.42, TARGET, button="right")
    wait_for_change(page, TARGET, large)
    caption(page, "corrected here: 1 click on background", f"{TARGET}-caption")
    caption(page, "1 corrected picture", "#segment-found")
    assert source(page, f"{CARD}:nth-child(1)") != card
    page.locator(CARD).nth(1).click()  # where it is marked, it is found
    caption(page, "b-cat.png", f"{TARGET}-caption")
    mark(page, 0.5, 0.5, TARGET)
    caption(page, "2 corrected pictures", "#segment-found")
    assert page.get_attribute(f"{CARD}:nth-child(2)", "data-state") == "present"
    for card in (1, 0):
        page.locator(CARD).nth(card).click()
        page.wait_for_function(f"!document.querySelector('{TARGET} [data-do=clear]').disabled")
        page.locator(f"{TARGET} button[data-do=clear]").click()


@pytest.mark.slow
def test_a_mask_of_everything_is_an_error(page, folder):
    drop(page, folder / "a-mirrored.png")
    page.locator(f"{REFERENCE} button[data-tool=draw]").click()
    page.locator(f"{REFERENCE} input[type=range]").fill("80")
    rows = [(x, y) for i, y in enumerate(np.linspace(0, 1, 6)) for x in ((0, 1) if i % 2 else (1, 0))]
    draw(page, np.clip(rows, 0.01, 0.99))
    page.locator(f"{REFERENCE} input[type=range]").fill("16")
    caption(page, "covers 100.0%")
    page.wait_for_selector("#segment-found .dv-error")


def test_the_zip_holds_what_the_endpoints_give(page, client, folder):
    """Marks with a stroke, a correction, an absent target and a corrupt one: the page, the endpoint and COCO agree."""
    coco = pytest.importorskip("pycocotools.mask")
    targets = [folder / name for name in ("a-mirrored.png", "b-cat.png", "c-corrupt.png")]
    drop(page, *targets)
    click_flower(page)
    page.locator(f"{REFERENCE} button[data-tool=draw]").click()
    actions = sent_marks(page, lambda: draw(page, [(0.1, 0.1), (0.2, 0.15)]), 2)
    caption(page, "1 click, 1 stroke")
    caption(page, ": found in", "#segment-found")
    with zipped(page) as archive:
        names = archive.namelist()
        about, data = json.loads(archive.read("about.json")), json.loads(archive.read("coco.json"))
        masks = [mask_in(archive, name) for name in ("0000-flower", "0001-a-mirrored", "0002-b-cat")]
        cut = Image.open(archive.open("cut-outs/0000-flower.png"))
        assert Image.open(archive.open("overlays/0000-flower.jpg")).size == (640, 427)
    assert [mask.shape for mask in masks] == [(427, 640), (427, 640), (300, 451)]
    assert np.array_equal(np.asarray(cut)[..., 3] > 0, masks[0])
    assert len(about["refused"]) == 1
    assert about["weights"]["name"] == "embedded"
    assert [picture["area"] for picture in about["pictures"]] == [mask.sum() for mask in masks]
    arguments = {
        "image": handle_file(folder / "flower.png"),
        "resolution": "224",
        "marks": json.dumps(actions),
        "targets": [handle_file(path) for path in targets],
        "instances": page.locator("#segment-instances input:checked").input_value(),
    }
    files, scores = client.predict(**arguments, api_name="/segment")
    for mask, file in zip(masks, files, strict=True):
        assert np.array_equal(np.asarray(Image.open(file)) > 0, mask)
    assert [(p["present"], p["presence"]) for p in scores["pictures"]] == [
        (p["present"], p["presence"]) for p in about["pictures"]
    ]
    assert "c-corrupt.png" in scores["refused"][0]
    by_image = {annotation["image_id"]: annotation["segmentation"] for annotation in data["annotations"]}
    for number, mask in enumerate(masks, start=1):
        runs = by_image.get(number)
        decoded = coco.decode({**runs, "counts": runs["counts"].encode()}) if runs else np.zeros_like(mask)
        assert np.array_equal(decoded > 0, mask)
    path = client.predict(**arguments, contents=["masks"], api_name="/segment_download")
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == ["about.json", *sorted(n for n in names if n.startswith("masks/"))]


@pytest.mark.slow
def test_encoding_is_stopped_and_resumed_and_cards_open_meanwhile(page, chelsea, tmp_path):
    """Of so many pictures that encoding them takes longer than the test."""
    take_away(page)
    choose(page, "#resolution", "616 px")
    wait_for_status(page, "44 x 66")
    paths = [tmp_path / f"{i}.png" for i in range(40)]
    for i, path in enumerate(paths):
        chelsea.rotate(i + 1).save(path)
    page.set_input_files("#segment-files input[type=file]", [str(path) for path in paths])
    page.locator(f"{CARD}[data-state=plain]").first.click()  # while the gallery is updated again and again
    caption(page, "0.png", f"{TARGET}-caption")
    page.locator("#segment-stop", has_text="Stop").click()
    caption(page, "of 40", "#segment-encoding")
    page.locator("#segment-resume", has_text="Resume").click()
    page.locator("#segment-stop", has_text="Stop").click()
    page.locator("#segment-resume", has_text="Resume").wait_for()
    take_away(page)
    choose(page, "#resolution", "224 px")
    wait_for_status(page, "16 x 24")


def test_an_example_is_one_click(page):
    page.locator("#segment-example").click()
    caption(page, "2 clicks, 1 click on background")
    caption(page, "8 pictures: found in", "#segment-found")
    page.wait_for_function("document.querySelectorAll('#segment-gallery [data-state=waiting]').length === 0")
    for i in range(8):  # four with the flower, four without
        state = page.get_attribute(f"{CARD}:nth-child({i + 1})", "data-state")
        assert state == ("present" if i < 4 else "absent")


# Video


@pytest.fixture
def video_tab(page):
    page.get_by_role("tab", name="In a video").click()
    yield page
    page.get_by_role("tab", name="In other pictures").click()


def test_a_video_from_example_to_masks(video_tab, client):
    page = video_tab
    page.locator("#segment-clip-example").click()
    caption(page, "2 clicks")
    page.locator("#segment-follow").click()
    page.wait_for_selector("#segment-video video", timeout=120_000)
    page.wait_for_function("document.querySelector('#segment-video video').readyState >= 2")
    assert page.evaluate("document.querySelector('#segment-video video').videoWidth") == 480
    assert page.locator("#segment-areas .js-plotly-plot").count() == 1
    caption(page, "12 frames", "#segment-video-note")
    with page.expect_download() as download:
        page.locator("#segment-video-zip a").first.click()
    with zipfile.ZipFile(download.value.path()) as archive:
        masks = [n for n in archive.namelist() if n.startswith("masks/")]
        assert len(masks) == 12
        last = np.asarray(Image.open(archive.open(masks[-1])))
        assert last.shape == (320, 480)
        assert 0.1 < (last > 0).mean() < 0.6
        assert len(archive.read("areas.csv").splitlines()) == 13
        assert json.loads(archive.read("about.json"))["clip"]["frames_a_second"] == 6


@pytest.mark.slow
def test_the_mask_must_be_of_the_first_frame(video_tab, folder):
    page = video_tab
    page.locator("#segment-clip-example").click()
    caption(page, "2 clicks")
    show(page, folder / "flower.png")
    page.locator("#segment-follow").click()
    page.get_by_text("is not the first frame of this video").first.wait_for()
    flower = page.get_attribute(f"{REFERENCE} .dv-canvas", "data-picture")
    page.locator("#segment-first").click()
    page.wait_for_selector(f"{REFERENCE} .dv-canvas:not([data-picture='{flower}'])")


# Other windows


@pytest.mark.slow
@pytest.mark.parametrize(
    "window", [{"viewport": {"width": 420, "height": 900}, "device_scale_factor": 2}, {"color_scheme": "dark"}]
)
def test_clicks_land_at_the_pointer(browser, app, app_log, window):
    with watched_page(browser, app, app_log, **window) as page:
        page.goto(app)
        page.wait_for_selector("#attention-map img")
        open_tab(page, "Segment")
        page.wait_for_function("document.querySelector('#segment-reference img').naturalWidth > 0")
        actions = sent_marks(page, lambda: mark(page, 0.3, 0.6))
        assert actions[0]["x"] == pytest.approx(0.3 * 451, abs=2)
        assert actions[0]["y"] == pytest.approx(0.6 * 300, abs=2)
        page.locator(f"{REFERENCE} button[data-do=full]").click()
        page.wait_for_function(
            "document.fullscreenElement && document.querySelector('#segment-reference canvas').clientHeight > 250"
        )
        actions = sent_marks(page, lambda: mark(page, 0.7, 0.2), 2)
        assert actions[1]["x"] == pytest.approx(0.7 * 451, abs=2)
        assert actions[1]["y"] == pytest.approx(0.2 * 300, abs=2)


@pytest.mark.slow
def test_drawing_by_touch_does_not_scroll_the_page(browser, app, app_log):
    with watched_page(browser, app, app_log, has_touch=True, viewport={"width": 420, "height": 700}) as page:
        page.goto(app)
        page.wait_for_selector("#attention-map img")
        open_tab(page, "Segment")
        page.wait_for_function("document.querySelector('#segment-reference img').naturalWidth > 0")
        page.locator(f"{REFERENCE} button[data-tool=draw]").click()
        canvas = page.locator(f"{REFERENCE} canvas")
        canvas.scroll_into_view_if_needed()
        box, scrolled = canvas.bounding_box(), page.evaluate("window.scrollY")
        finger = page.context.new_cdp_session(page)
        x, y = box["x"] + 60, box["y"] + 150

        def touch(kind: str, y: float | None = None) -> None:
            points = [] if y is None else [{"x": x, "y": y}]
            finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        touch("touchStart", y)
        for step in range(10):
            touch("touchMove", y - 10 * step)
        touch("touchEnd")
        caption(page, "1 stroke:")
        assert page.evaluate("window.scrollY") == scrolled
