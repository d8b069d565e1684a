"""Every control of the Depth tab, in a real browser. Most tests share one page, with the controls set back."""

import io
import json
import re
import zipfile

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from dinoviz import depth
from dinoviz.depth import middlebury as stereo
from tests.browser.conftest import watched_page
from tests.browser.pictures import (
    choose,
    click_at,
    is_blank,
    open_tab,
    pixels,
    source,
    upload,
    wait_for_change,
    wait_for_status,
    wait_for_text,
)
from training.config.tasks import ProbeConfig
from training.runs.run import Run

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not depth.SHIPPED.is_file(), reason="there is no shipped probe"),
]

MAP, MEASURED = "#depth-map", "#depth-measured"
NUMBER = r"(\d+\.\d\d)"


@pytest.fixture(scope="module")
def room_file(tmp_path_factory):
    """A room: a crop of the stereo example, which has no ground truth."""
    path = tmp_path_factory.mktemp("depth") / "garage.png"
    stereo.picture().crop((0, 40, 600, 500)).save(path)
    return path


@pytest.fixture(scope="module")
def motorcycle_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("depth") / "motorcycle.png"
    stereo.picture().save(path)
    return path


@pytest.fixture(scope="module")
def opened(browser, app, app_log, room_file):
    """A watched page on the Depth tab, at a resolution that is quick to encode."""
    with watched_page(browser, app, app_log) as page:
        page.goto(app)
        page.wait_for_selector("#attention-map img")
        choose(page, "#resolution", "224 px")
        upload(page, room_file)
        wait_for_status(page, "16 x 21")
        open_tab(page, "Depth")
        page.wait_for_selector(f"{MAP} img")
        page.wait_for_selector("#depth-cloud .js-plotly-plot canvas")
        yield page


@pytest.fixture
def page(opened):
    """The same page, with all controls as they were."""
    for box, wanted in (("#depth-raw", False), ("#depth-sharp", False), ("#depth-auto", True)):
        control = opened.locator(f"{box} input[type=checkbox]")
        if control.is_checked() != wanted:
            changed(opened, control.click)
    if not opened.get_by_label("depth", exact=True).is_checked():
        show(opened, "depth")
    opened.locator("#depth-clear").click()
    wait_for(opened, "readout", "Click on the picture")
    return opened


def wait_for(page, part: str, text: str) -> str:
    """The text of a part, once it contains `text`."""
    return wait_for_text(page, f"#depth-{part}", text)


def changed(page, act) -> str:
    """Do something, and wait until the map is another one."""
    before = source(page, MAP)
    act()
    return wait_for_change(page, MAP, before)


def show(page, what: str) -> None:
    changed(page, page.locator("#depth-shown").get_by_label(what, exact=True).check)


def points(page) -> int:
    """How many the cloud has."""
    return int(re.search(r"([\d,]+) points", page.inner_text("#depth-cloud-note")).group(1).replace(",", ""))


def test_depth_is_drawn_and_the_caption_names_the_probe(page):
    assert not is_blank(pixels(page, MAP))
    text = wait_for(page, "caption", "embedded")
    assert "24 x 31 patches of 14 px at 336 px" in text, "the probe's training resolution"
    assert "probe on layers" in text
    assert "trained on nyu" in text
    assert re.search(rf"from {NUMBER} to {NUMBER}, median {NUMBER} m", text)
    assert not page.locator(MEASURED).is_visible()
    assert "% of the picture" in page.inner_text("#depth-histogram")


def test_a_click_measures_depth_and_a_second_one_the_distance_between(page):
    first = changed(page, lambda: click_at(page, MAP, 0.3, 0.4))
    assert re.search(rf"A {NUMBER} m", wait_for(page, "readout", "second point"))
    changed(page, lambda: click_at(page, MAP, 0.7, 0.8))
    length = float(re.search(rf"from A to B {NUMBER} m", wait_for(page, "readout", "from A to B")).group(1))
    assert length > 0.1
    # With half the focal length the scene is twice as wide: the same depths, and a longer distance.
    before = page.inner_text("#depth-readout")
    page.locator("#depth-focal input").fill("300")
    page.keyboard.press("Enter")
    wait_for(page, "readout", "300 px, given")
    after = page.inner_text("#depth-readout")
    assert re.findall(rf"[AB] {NUMBER} m", after)[:2] == re.findall(rf"[AB] {NUMBER} m", before)[:2]
    assert float(re.search(rf"from A to B {NUMBER}", after).group(1)) > length
    page.locator("#depth-focal input").fill("0")
    page.keyboard.press("Enter")
    wait_for(page, "readout", "assumed")
    changed(page, lambda: click_at(page, MAP, 0.5, 0.5))  # a third one begins anew
    assert " B " not in wait_for(page, "readout", "second point")
    changed(page, page.locator("#depth-clear").click)
    assert source(page, MAP) != first


def test_normals_and_uncertainty_are_drawn(page):
    plain = pixels(page, MAP)
    show(page, "surface normals")
    wait_for(page, "caption", "Surface normals")
    normals = pixels(page, MAP).astype(int)
    # They face the camera: more blue than the middle nearly everywhere.
    assert (normals[..., 2] > 120).mean() > 0.9
    assert np.abs(normals - plain).mean() > 20
    show(page, "uncertainty")
    wait_for(page, "caption", "standard deviation")
    assert not is_blank(pixels(page, MAP))


@pytest.mark.slow
def test_colours_opacity_raw_grid_and_edges(page):
    smooth = pixels(page, MAP).astype(int)
    changed(page, page.locator("#depth-raw input").check)
    raw = pixels(page, MAP).astype(int)
    height, width = raw.shape[:2]
    centre = raw[height // 48 - 4 : height // 48 + 5, width // 62 - 4 : width // 62 + 5].reshape(-1, 3)
    assert np.abs(centre - centre[0]).max() < 12, "a patch is flat, but for JPEG"
    assert "24 x 31 patches" in wait_for(page, "caption", "flat square")
    changed(page, page.locator("#depth-raw input").uncheck)
    changed(page, page.locator("#depth-sharp input").check)
    wait_for(page, "caption", "guided filter")
    sharp = pixels(page, MAP).astype(int)
    steps = [np.abs(np.diff(picture, axis=1)).max(axis=(1, 2)).mean() for picture in (smooth, sharp)]
    assert steps[1] > 1.2 * steps[0]
    changed(page, page.locator("#depth-sharp input").uncheck)
    changed(page, lambda: choose(page, "#depth-colours", "turbo"))
    assert np.abs(pixels(page, MAP).astype(int) - smooth).mean() > 20
    changed(page, lambda: choose(page, "#depth-colours", "viridis"))
    opacity = page.locator("#depth-opacity input[type=range]")
    changed(page, lambda: opacity.fill("0"))
    changed(page, lambda: opacity.fill("1"))


def test_the_probe_can_read_features_at_the_bars_resolution(page):
    changed(page, page.locator("#depth-above input").check)
    assert "16 x 21 patches of 14 px at 224 px" in wait_for(page, "caption", "224 px")
    changed(page, page.locator("#depth-above input").uncheck)
    wait_for(page, "caption", "336 px")


def test_near_and_far_cut_the_picture_the_points_and_the_colours(page):
    whole = points(page)
    low, high, median = map(float, re.search(rf"from {NUMBER} to {NUMBER}, median {NUMBER}",
                                             page.inner_text("#depth-caption")).groups())  # fmt: skip
    show(page, "cut-out")
    lit = pixels(page, MAP).astype(float).mean()
    changed(page, lambda: page.locator("#depth-far input[type=range]").fill(f"{median:.2f}"))
    assert not page.locator("#depth-auto input").is_checked()
    assert pixels(page, MAP).astype(float).mean() < lit - 5
    assert f"and {round(median / 0.05) * 0.05:.2f} m" in wait_for(page, "caption", "between")
    wait_for(page, "cloud-note", "out of range")
    ahead = "() => Math.max(...document.querySelector('#depth-cloud .dv-plot')._fullData[0].y)"
    page.wait_for_function(f"most => ({ahead})() <= most", arg=median + 0.05)
    assert page.evaluate(ahead) > low
    changed(page, lambda: page.locator("#depth-near input[type=range]").fill("9.5"))  # beyond far, which gives way
    wait_for(page, "caption", "between 9.50 and 9.55 m")
    changed(page, page.locator("#depth-auto input").check)
    assert low < median < high
    wait_for(page, "cloud-note", f"{whole:,} points")


@pytest.mark.slow
def test_a_rotated_cloud_keeps_its_view(page):
    camera = """() => {
        const eye = document.querySelector('#depth-cloud .dv-plot')._fullLayout.scene.camera.eye
        return [eye.x, eye.y]
    }"""
    before = page.evaluate(camera)
    plot = page.locator("#depth-cloud .dv-plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 90, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    turned = page.evaluate(camera)
    assert np.abs(np.subtract(turned, before)).max() > 0.1
    page.evaluate("() => { window.before = document.querySelector('#depth-cloud .dv-plot').data[0] }")
    changed(page, page.locator("#depth-raw input").check)
    page.wait_for_function("document.querySelector('#depth-cloud .dv-plot').data[0] !== window.before")
    assert page.evaluate(camera) == pytest.approx(turned, abs=1e-3)


def test_the_download_holds_metres_in_all_formats(page, tmp_path):
    with page.expect_download() as waiting:
        page.locator("#depth-file-button").click()
    waiting.value.save_as(tmp_path / "depth.zip")
    with zipfile.ZipFile(tmp_path / "depth.zip") as archive:
        about = json.loads(archive.read("about.json"))
        metres = np.load(io.BytesIO(archive.read("depth.npy")))
        millimetres = np.asarray(Image.open(io.BytesIO(archive.read("depth-mm.png"))))
        coloured = Image.open(io.BytesIO(archive.read("depth.png")))
        ply = archive.read("points.ply")
    assert metres.shape == (460, 600)
    assert coloured.size == (600, 460)
    np.testing.assert_allclose(millimetres, metres * 1000, atol=0.6)
    assert ply.startswith(b"ply\nformat binary_little_endian")
    assert about["probe"]["layers"]
    assert about["weights"]["name"] == "embedded"
    assert "assumed" in about["camera"]["source"]


def test_a_probe_is_selected_by_its_file_and_a_damaged_one_refused(page, tmp_path):
    copy = tmp_path / "mine.safetensors"
    copy.write_bytes(depth.SHIPPED.read_bytes())
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(depth.SHIPPED.read_bytes()[:5000])
    field = page.locator("#depth-probe input")
    before = page.inner_text("#depth-caption .dv-note")
    field.fill(str(cut))
    page.keyboard.press("Enter")
    page.get_by_text("cut.safetensors").first.wait_for()
    field.fill(str(copy))
    page.keyboard.press("Enter")
    wait_for(page, "caption", "trained on nyu")
    choose(page, "#depth-probe", "NYU Depth v2, rooms (shipped)")
    wait_for(page, "caption", before)


@pytest.mark.slow
def test_a_pass_can_be_stopped_and_gives_way_to_another_picture(page, tmp_path, room_file, motorcycle_file):
    """A probe that was trained at 1792 px: its pass takes minutes, until the test stops it."""
    probe = depth.open_probe(depth.SHIPPED)
    file = tmp_path / "large.safetensors"
    depth.save_probe(file, probe.head, probe.about | {"resolution": 1792}, probe.familiar)
    field, stop = page.locator("#depth-probe input"), page.locator("#depth-stop", has_text="Stop")
    before = source(page, MAP)
    field.fill(str(file))
    page.keyboard.press("Enter")
    stop.click()
    wait_for(page, "caption", "Stopped")
    stop.wait_for(state="hidden")
    assert source(page, MAP) == before
    field.fill(str(file))
    page.keyboard.press("Enter")
    stop.wait_for()
    upload(page, motorcycle_file)
    wait_for_status(page, "16 x 24")
    choose(page, "#depth-probe", "NYU Depth v2, rooms (shipped)")
    wait_for(page, "caption", "24 x 36 patches")
    stop.wait_for(state="hidden")
    upload(page, room_file)
    wait_for(page, "caption", "24 x 31 patches")


@pytest.mark.slow
def test_two_sessions_have_their_own_depth(page, browser, app, app_log, motorcycle_file):
    changed(page, lambda: click_at(page, MAP, 0.3, 0.4))
    page.locator("#depth-focal input").fill("300")
    page.keyboard.press("Enter")
    wait_for(page, "cloud-note .dv-note", "300 px, given")
    parts = "#depth-cloud-note .dv-note", "#depth-readout .dv-note"
    mine = source(page, MAP), *map(page.inner_text, parts)
    with watched_page(browser, app, app_log) as other:
        other.goto(app)
        other.wait_for_selector("#attention-map img")
        choose(other, "#resolution", "224 px")
        upload(other, motorcycle_file)
        wait_for_status(other, "16 x 24")
        open_tab(other, "Depth")
        wait_for(other, "measured-note", "93%")
        assert "given" not in other.inner_text("#depth-cloud-note")
        assert " A " not in other.inner_text("#depth-readout")
        show(other, "surface normals")
        assert not page.locator(MEASURED).is_visible()
        assert (source(page, MAP), *map(page.inner_text, parts)) == mine
        changed(page, page.locator("#depth-clear").click)
        assert "300 px, given" in page.inner_text("#depth-cloud-note")
    page.locator("#depth-focal input").fill("0")
    page.keyboard.press("Enter")
    wait_for(page, "cloud-note", "assumed")


@pytest.mark.slow
def test_a_published_network_that_cannot_be_downloaded_leaves_the_map(page):
    field = page.locator("#depth-probe input")
    field.fill("facebook/dpt-dinov2-small-nyu")
    page.keyboard.press("Enter")
    before = source(page, MAP)
    assert "Hub" in wait_for(page, "caption", "facebook/dpt-dinov2-small-nyu")
    assert source(page, MAP) == before
    choose(page, "#depth-probe", "NYU Depth v2, rooms (shipped)")
    wait_for(page, "caption", "trained on nyu")


@pytest.mark.slow
def test_ground_truth_is_shown_and_an_unfamiliar_picture_has_relative_depth(page, motorcycle_file, retina_file):
    upload(page, motorcycle_file)
    wait_for_status(page, "16 x 24")
    text = wait_for(page, "measured-note", "93%")
    assert len(re.findall(r"AbsRel \d", text)) == 2
    measured = pixels(page, MEASURED)
    assert measured.shape[:2] == (500, 741)
    assert (measured.max(axis=2) < 12).mean() == pytest.approx(0.07, abs=0.03), "black where unknown"
    assert "measured with the picture" in page.inner_text("#depth-cloud-note")
    upload(page, retina_file)
    wait_for_status(page, "16 x 16")
    wait_for(page, "notice", "unlike the probe's training data")
    assert not page.locator(MEASURED).is_visible()
    wait_for(page, "caption", "x the median")
    changed(page, lambda: click_at(page, MAP, 0.5, 0.5))
    assert re.search(r"A \d\.\d\d x", wait_for(page, "readout", "median depth"))
    changed(page, page.locator("#depth-anyway input").check)
    assert re.search(rf"A {NUMBER} m", page.inner_text("#depth-readout"))
    wait_for(page, "notice", "unreliable")
    page.locator("#depth-anyway input").uncheck()


@pytest.fixture(scope="module")
def retina_file(tmp_path_factory):
    import skimage.data

    path = tmp_path_factory.mktemp("depth") / "retina.png"
    Image.fromarray(skimage.data.retina()).resize((400, 400)).save(path)
    return path


@pytest.mark.slow
def test_a_model_without_a_probe_has_no_depth(page, tiny_folders):
    before = page.locator("#model input").input_value()
    page.locator("#model input").fill(str(tiny_folders["vit"]))
    page.keyboard.press("Enter")
    assert "Train" in wait_for(page, "caption", "no depth probe for vit")
    assert not page.locator("#depth-cloud .dv-plot").is_visible()
    page.locator("#model input").fill(before)
    page.keyboard.press("Enter")
    wait_for(page, "caption", "probe on layers")


@pytest.mark.slow
def test_a_probe_that_was_trained_here_opens_from_its_run(browser, app, app_log):
    run = Run.create("rooms", "probe", ProbeConfig(model="embedded").to_dict(), root=app_log.parent / "runs")
    run.export_folder.mkdir()
    depth.probe_file(run.folder).write_bytes(depth.SHIPPED.read_bytes())
    run.set_status("finished")
    with watched_page(browser, app, app_log) as page:
        page.goto(app)
        page.wait_for_selector("#attention-map img")
        open_tab(page, "Train")
        page.get_by_role("tab", name="Watch").click()
        page.get_by_label("rooms").check()
        page.locator("#train-look:not([disabled])").click()
        page.wait_for_selector(f"{MAP} img")
        assert "trained on nyu" in wait_for(page, "caption", "336 px")
        assert page.locator("#depth-probe input").input_value() == "rooms (trained here)"
        assert page.locator("#resolution input").input_value() == "336 px"


@pytest.mark.slow
def test_it_fits_a_narrow_window(browser, app, app_log, room_file):
    with watched_page(browser, app, app_log, viewport={"width": 400, "height": 900}) as page:
        page.goto(app)
        page.wait_for_selector("#attention-map img")
        open_tab(page, "Depth")
        page.wait_for_selector(f"{MAP} img")
        page.wait_for_selector("#depth-cloud .js-plotly-plot canvas")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_the_endpoint_answers_a_client(app, room_file):
    client = Client(app, verbose=False)
    common = {"image": handle_file(str(room_file)), "model": "embedded", "resolution": "224"}
    picture, caption, readout = client.predict(**common, points="[[100, 200], [400, 300]]", probe="",
                                               api_name="/depth", **options())  # fmt: skip
    assert "on layers 6, 9, 12 of 12" in str(caption)
    assert "from A to B" in str(readout)
    assert not is_blank(np.asarray(Image.open(picture if isinstance(picture, str) else picture["path"])))
    with pytest.raises(AppError, match="two"):
        client.predict(**common, points="[[1, 2, 3]]", probe="", **options(), api_name="/depth")


def options() -> dict:
    return {
        "shown": "depth", "colours": "viridis", "opacity": 1, "raw": False, "sharp": False, "by_itself": True,
        "near": 0, "far": 10, "focal": 0, "anyway": False, "above": False,
    }  # fmt: skip
