"""What shows a run while it goes on: figures that change in place, and the strip of what the teacher sees."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from dinoviz.ui import launch_options
from dinoviz.ui.components.live_figure import LiveFigure, drawn, script_path
from dinoviz.ui.train import curves as train_curves
from dinoviz.ui.train.strip import Strip, shown
from tests.browser.conftest import ROOT, watched_page
from training.runs.run import Run

pytestmark = pytest.mark.browser

PIXELS = 64


def add_steps(run: Run, first: int, last: int) -> None:
    for step in range(first, last + 1, 10):
        noise = np.random.default_rng(step).normal(0, 0.1)
        run.add_metrics({
            "step": step, "epoch": step / 20, "loss": 6 - step / 100 + noise, "loss_dino": 5 - step / 100 + noise,
            "teacher_entropy": 5.0, "teacher_kl": 1.9, "lr": 1e-3, "speed": 170.0,
        })  # fmt: skip


def add_snapshot(run: Run, step: int, probes: int = 2) -> None:
    """Pictures of one colour, which tells the step and the kind: the red is the step, the green of PCA is full."""
    folder = run.folder / "snapshots" / f"step-{step:08}"
    folder.mkdir()
    for i in range(probes):
        for name, green in (("attention", 0), ("pca", 255)):
            Image.new("RGB", (PIXELS, PIXELS), (step, green, 100 * i)).save(folder / f"{name}-{i}.png")
    (folder / "arrays.npz").touch()


def serve(root: Path, port: int) -> None:
    """A page with two figures, one of them in a tab behind, and the strip; they follow the run in the address."""
    with gr.Blocks() as page:
        smoothing = gr.Slider(0, 0.99, 0, step=0.01, label="Smoothing")
        with gr.Tabs():
            with gr.Tab("Front"):
                loss = LiveFigure(elem_id="loss")
                strip = Strip(elem_id="strip")
            with gr.Tab("Behind", render_children=True):
                teacher = LiveFigure(elem_id="teacher")

        def look(weight, request: gr.Request):
            run = Run(root / request.query_params["run"])
            found = dict(train_curves.figures([run], smoothing=weight))
            updates = (
                drawn(title, found.get(title), train_curves.said(title, found[title]) if title in found else "")
                for title in ("Loss", "Teacher")
            )
            return [*updates, shown(run)]

        gr.Timer(0.2).tick(look, smoothing, [loss, teacher, strip], show_progress="hidden", api_visibility="private")
    options = launch_options()
    page.launch(server_port=port, **{**options, "allowed_paths": [*options["allowed_paths"], script_path()]})


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[tuple[str, Path, Path]]:
    """(address, folder of the runs, log) of the page, in a process of its own."""
    root = tmp_path_factory.mktemp("runs")
    log = root / "log.txt"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    url, command = f"http://127.0.0.1:{port}", [sys.executable, "-m", "tests.browser.test_live_parts", str(root), port]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    try:
        for _ in range(240):
            with suppress(OSError):
                urllib.request.urlopen(f"{url}/config", timeout=5).read()
                break
            if process.poll() is not None:
                pytest.fail(f"The page did not start:\n{log.read_text()}")
            time.sleep(0.25)
        yield url, root, log
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture
def run(served) -> Run:
    root = served[1]
    return Run.create(f"run-{len(list(root.iterdir()))}", "pretrain", {"prototypes": 1000}, root=root)


@pytest.fixture
def live(browser, served, run) -> Iterator:
    url, _, log = served
    with watched_page(browser, url, log) as page:
        page.goto(f"{url}/?run={run.name}")
        page.locator("#strip .dv-none").wait_for()
        yield page


def until(page, condition: str) -> None:
    page.wait_for_function(condition)


def shows_red(page, selector: str, wanted: int) -> None:
    """Wait until a picture has this red, the step of its snapshot: words change before pictures are decoded."""
    for _ in range(100):
        if abs(red(page, selector) - wanted) <= 2:
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{selector} does not become {wanted}")


def red(page, selector: str) -> int:
    return page.locator(selector).first.evaluate("""async image => {
        await image.decode()
        const canvas = new OffscreenCanvas(1, 1).getContext('2d')
        canvas.drawImage(image, 0, 0, 1, 1)
        return canvas.getImageData(0, 0, 1, 1).data[0]
    }""")


def points(page) -> str:
    return "document.querySelector('#loss .dv-plot').data.find(curve => curve.meta).x.length"


def test_a_figure_comes_with_the_first_numbers_and_changes_in_place_with_its_zoom(live, run):
    assert live.locator("#loss figure").is_hidden()
    assert not live.evaluate("'Plotly' in window"), "the library is not needed yet"
    add_steps(run, 10, 200)
    live.locator("#loss .main-svg").first.wait_for()
    live.evaluate("window.before = document.querySelector('#loss .main-svg')")
    box = live.locator("#loss .nsewdrag").first.bounding_box()
    live.mouse.move(box["x"] + 20, box["y"] + 20)
    live.mouse.down()
    live.mouse.move(box["x"] + 120, box["y"] + 100, steps=3)
    add_steps(run, 210, 250)
    until(live, f"{points(live)} === 25")  # which must not end what the hand is at
    assert live.locator("#loss .zoombox").count() == 1
    live.mouse.move(box["x"] + 140, box["y"] + 110, steps=2)
    live.mouse.up()
    ranges = "['xaxis', 'yaxis'].map(axis => document.querySelector('#loss .dv-plot').layout[axis].range)"
    until(live, f"{ranges}[0]?.[1] < 150")
    zoomed = live.evaluate(ranges)
    add_steps(run, 260, 300)
    until(live, f"{points(live)} === 30")
    assert live.evaluate("window.before.isConnected && window.before === document.querySelector('#loss .main-svg')")
    assert live.evaluate(ranges) == zoomed
    assert f"{run.name}, loss: " in live.locator("#loss figure").get_attribute("aria-label")


@pytest.mark.slow
def test_what_the_legend_hid_stays_hidden_while_smoothing_adds_curves(live, run):
    add_steps(run, 10, 200)
    live.locator("#loss .legendtoggle").nth(1).click()
    hidden = "document.querySelector('#loss .dv-plot').data.filter(curve => curve.visible === 'legendonly')"
    until(live, f"{hidden}.length === 2")  # the curve and its entry
    live.locator("input[type=number]").fill("0.9")
    live.keyboard.press("Enter")
    until(live, "document.querySelector('#loss .dv-plot').data.length === 6")
    assert live.evaluate(f"{hidden}.map(curve => curve.legendgroup)") == ["loss_dino"] * 3
    live.locator("#loss .legendtoggle").nth(1).click()
    add_steps(run, 210, 300)
    until(live, f"{points(live)} === 30 && {hidden}.length === 0")


@pytest.mark.slow
def test_what_one_points_at_is_told_and_stays_told_while_figures_come(live, run):
    add_steps(run, 10, 100)
    box = live.locator("#loss .point").nth(2).bounding_box()
    live.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    told = live.locator("#loss .hoverlayer .hovertext")
    told.get_by_text("what is minimised").wait_for()
    # Of the same steps, so that the point stays where it is.
    run.add_metrics({"step": 100, "epoch": 5, "loss": 5.0, "loss_dino": 5.0})
    until(live, f"{points(live)} === 11")
    told.get_by_text("what is minimised").wait_for()


@pytest.mark.slow
def test_a_figure_in_a_tab_behind_fits_when_it_is_shown_and_when_the_window_changes(live, run):
    add_steps(run, 10, 100)
    live.locator("#loss .main-svg").first.wait_for()
    live.get_by_role("tab", name="Behind").click()
    fits = """(() => {
        const plot = document.querySelector('#teacher .dv-plot'), drawing = plot?.querySelector('.main-svg')
        return drawing && plot.clientWidth && Math.abs(drawing.clientWidth - plot.clientWidth) < 2
    })()"""
    until(live, fits)
    assert "log K = 6.91" in live.locator("#teacher").inner_text()
    live.set_viewport_size({"width": 400, "height": 800})
    until(live, f"{fits} && document.querySelector('#teacher .dv-plot').clientWidth < 400")
    assert live.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.slow
def test_a_figure_is_readable_on_a_page_that_turns_dark(live, run):
    add_steps(run, 10, 100)
    text = "getComputedStyle(document.querySelector('#loss .xtick text')).fill"
    live.locator("#loss .xtick text").first.wait_for()
    light = live.evaluate(text)
    live.evaluate("document.body.classList.add('dark')")
    until(live, f"{text} !== '{light}'")
    assert min(map(int, live.evaluate(text).strip("rgb()").split(","))) > 180


def test_the_strip_follows_the_newest_snapshot_until_one_goes_back(live, run):
    add_steps(run, 10, 20)
    run.add_metrics({"step": 40, "epoch": 2.0, "knn": 0.54})
    add_snapshot(run, 0)
    live.locator("#strip .dv-probes button").nth(1).wait_for()
    assert live.locator("#strip .dv-play").is_disabled()
    live.evaluate("window.before = document.querySelector('#strip [data-view=attention] img')")
    add_snapshot(run, 40)
    live.get_by_text("step 40, epoch 2.0, k-NN 54 %", exact=True).wait_for()
    shows_red(live, "#strip [data-view=attention] img", 40)
    slider = live.get_by_role("slider", name="Snapshot")
    slider.press("ArrowLeft")
    live.get_by_text("step 0, epoch 0.0", exact=True).wait_for()
    shows_red(live, "#strip [data-view=pca] img", 0)
    add_snapshot(run, 80)
    until(live, "document.querySelectorAll('#strip .dv-film button').length === 3")
    assert slider.get_attribute("aria-valuetext") == "step 0, epoch 0.0"
    slider.press("End")
    add_snapshot(run, 120)
    live.get_by_text("step 120, epoch 6.0", exact=True).wait_for()
    assert live.evaluate("window.before === document.querySelector('#strip [data-view=attention] img')")


@pytest.mark.slow
def test_scrubbing_asks_the_server_nothing(live, run):
    for step in (0, 50, 100, 150):
        add_snapshot(run, step)
    until(live, "document.querySelectorAll('#strip .dv-film button').length === 4")
    until(live, "[...document.querySelectorAll('#strip .dv-film img')].every(image => image.naturalWidth)")
    asked = []
    live.on("request", lambda request: asked.append(request.url) if "/file=" in request.url else None)
    slider = live.get_by_role("slider", name="Snapshot")
    for step in (100, 50, 0):
        slider.press("ArrowLeft")
        shows_red(live, "#strip [data-view=attention] img", step)
    live.locator("#strip .dv-film button").nth(2).click()
    shows_red(live, "#strip [data-view=attention] img", 100)
    live.keyboard.press("ArrowRight")
    shows_red(live, "#strip [data-view=attention] img", 150)
    live.locator("#strip .dv-probes button").nth(1).click()
    shows_red(live, "#strip .dv-film img", 0)
    assert not asked


@pytest.mark.slow
def test_play_goes_from_the_start_to_the_newest_and_can_pause(live, run):
    for step in (0, 50, 100):
        add_snapshot(run, step)
    until(live, "document.querySelectorAll('#strip .dv-film button').length === 3")
    when = live.locator("#strip .dv-when")
    live.get_by_role("button", name="Play").click()
    assert when.inner_text().startswith("step 0,")
    live.get_by_role("button", name="Pause").click()
    live.wait_for_timeout(600)
    assert when.inner_text().startswith("step 0,")
    live.get_by_role("button", name="Play").click()
    live.get_by_text("step 100,").wait_for()
    live.get_by_role("button", name="Play").wait_for()


@pytest.mark.slow
def test_the_page_reads_copies_and_never_the_run(live, run):
    add_snapshot(run, 0)
    live.locator("#strip .dv-probes button").first.wait_for()
    sources = live.locator("#strip img").evaluate_all("images => images.map(image => image.src)")
    assert str(run.folder) not in " ".join(sources)
    inside = Path(run.folder) / "snapshots" / "step-00000000" / "pca-0.png"
    assert inside.is_file()
    origin = live.evaluate("location.origin")
    for file in (inside, run.folder / "config.json", Path(script_path()).parent.parent / "__init__.py"):
        assert live.request.get(f"{origin}/gradio_api/file={file}").status == 403
    assert live.request.get(f"{origin}/gradio_api/file={script_path()}").status == 200


@pytest.mark.slow
def test_a_run_that_has_gone_leaves_one_sentence(live, run):
    add_steps(run, 10, 20)
    add_snapshot(run, 0)
    live.locator("#strip .dv-probes button").first.wait_for()
    shutil.rmtree(run.folder)
    live.get_by_text("There is no snapshot yet").wait_for()
    live.locator("#loss figure").wait_for(state="hidden")


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
