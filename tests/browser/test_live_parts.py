"""The components that show a run: figures that are updated in place, and the strip of snapshots."""

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
    """Pictures of one colour by step and kind: red is the step, green is full for PCA."""
    folder = run.folder / "snapshots" / f"step-{step:08}"
    folder.mkdir()
    for i in range(probes):
        for name, green in (("attention", 0), ("pca", 255)):
            Image.new("RGB", (PIXELS, PIXELS), (step, green, 100 * i)).save(folder / f"{name}-{i}.png")
    (folder / "arrays.npz").touch()


def serve(root: Path, port: int) -> None:
    """A page with two figures, one of them in a second tab, and the strip, of the run in the address."""
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
                drawn(title, found.get(title), train_curves.description(title, found[title]) if title in found else "")
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
    """Wait until a picture has this red, the step of its snapshot: texts change before pictures are decoded."""
    page.wait_for_function(
        """async ([selector, wanted]) => {
            const image = document.querySelector(selector)
            await image.decode()
            const canvas = new OffscreenCanvas(1, 1).getContext('2d')
            canvas.drawImage(image, 0, 0, 1, 1)
            return Math.abs(canvas.getImageData(0, 0, 1, 1).data[0] - wanted) <= 2
        }""",
        arg=[selector, wanted],
    )


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
    until(live, f"{points(live)} === 25")  # which must not end the drag
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
def test_hidden_curves_stay_hidden_while_smoothing_adds_curves(live, run):
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
def test_the_hover_text_stays_while_the_figure_is_updated(live, run):
    add_steps(run, 10, 100)
    box = live.locator("#loss .point").nth(2).bounding_box()
    live.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    hover = live.locator("#loss .hoverlayer .hovertext")
    hover.get_by_text("the total").wait_for()
    # Of the same steps, so that the point stays where it is.
    run.add_metrics({"step": 100, "epoch": 5, "loss": 5.0, "loss_dino": 5.0})
    until(live, f"{points(live)} === 11")
    hover.get_by_text("the total").wait_for()


@pytest.mark.slow
def test_a_figure_of_a_second_tab_fits_its_width(live, run):
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


def test_the_strip_shows_the_newest_snapshot_until_an_older_one_is_chosen(live, run):
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
def test_scrubbing_sends_no_request(live, run):
    for step in (0, 50, 100, 150):
        add_snapshot(run, step)
    until(live, "document.querySelectorAll('#strip .dv-film button').length === 4")
    until(live, "[...document.querySelectorAll('#strip .dv-film img')].every(image => image.naturalWidth)")
    requests = []
    live.on("request", lambda request: requests.append(request.url) if "/file=" in request.url else None)
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
    assert not requests


@pytest.mark.slow
def test_play_runs_to_the_newest_snapshot_and_can_pause(live, run):
    for step in (0, 50, 100):
        add_snapshot(run, step)
    until(live, "document.querySelectorAll('#strip .dv-film button').length === 3")
    when = live.locator("#strip .dv-when")
    live.get_by_role("button", name="Play").click()
    assert when.inner_text().startswith("step 0,")
    live.get_by_role("button", name="Pause").click()
    add_snapshot(run, 150)
    until(live, "document.querySelectorAll('#strip .dv-film button').length === 4")
    assert when.inner_text().startswith("step 0,")
    live.get_by_role("button", name="Play").click()
    live.get_by_text("step 150,").wait_for()
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
def test_a_removed_run_leaves_an_empty_strip(live, run):
    add_steps(run, 10, 20)
    add_snapshot(run, 0)
    live.locator("#strip .dv-probes button").first.wait_for()
    shutil.rmtree(run.folder)
    live.get_by_text("There is no snapshot yet").wait_for()
    live.locator("#loss figure").wait_for(state="hidden")


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
