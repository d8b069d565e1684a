"""Runs whose process, app or page is ended, in a real browser with real processes."""

from __future__ import annotations

import os
import signal
import statistics

import psutil
import pytest

from tests.browser.conftest import started_app, watched_page
from tests.browser.pictures import click_at, source, wait_for_change
from tests.browser.train import ALONE, half, open_train, says, train, until
from training.runs.run import Run

pytestmark = pytest.mark.browser

# From the click until the new picture is loaded, by the page's clock, without the time of the driver.
STOPWATCH = """() => {
    const view = document.querySelector('#attention-map')
    document.addEventListener('click', () => { window.clicked = performance.now() }, true)
    view.addEventListener('load', () => { window.shown = performance.now() }, true)
}"""


@pytest.mark.slow  # two minutes; tests/training/runs/test_queue.py tests the same without a page
def test_a_killed_run_a_queue_and_a_killed_app(browser, tmp_path):
    """Two runs in a queue; kill -9 of the run, and of the app; Ctrl-C leaves no process behind."""
    runs = tmp_path / "queue"
    environment = {"DINOVIZ_RUNS": str(runs), **ALONE}
    log = tmp_path / "killed.log"
    with started_app(log, **environment) as (url, process), watched_page(browser, url, log, outlives=True) as page:
        open_train(page, url)
        train(page, "one", epochs=500)
        says(page, "one is (starting|training)")
        train(page, "two", epochs=500)
        says(page, "two is queued")
        page.locator("#train-runs").get_by_text("one", exact=False).first.click()
        says(page, "one is training: step")
        page.click("#train-stop")
        says(page, "one was stopped")
        page.locator("#train-runs").get_by_text("two", exact=False).first.click()
        says(page, "two is training: step .* left")
        until(page, lambda: Run(runs / "two").checkpoint() is not None)
        os.kill(Run(runs / "two").status()["pid"], signal.SIGKILL)
        assert "killed" in says(page, "two failed", timeout=10)
        page.click("#train-resume")
        says(page, "two is training: step .* left")
        assert "resumed at step" in (runs / "two" / "log.txt").read_text()
        child = psutil.Process(Run(runs / "two").status()["pid"])
        process.kill()
        process.wait()
    psutil.wait_procs([child], timeout=20)
    assert not child.is_running()
    assert Run(runs / "two").status()["state"] == "stopped"
    assert Run(runs / "two").checkpoint() is not None
    log = tmp_path / "again.log"
    with started_app(log, **environment) as (url, process), watched_page(browser, url, log, outlives=True) as page:
        open_train(page, url)
        half(page, "Watch")
        page.locator("#train-runs").get_by_text("two", exact=False).first.click()
        says(page, "two was stopped")
        page.click("#train-resume")
        says(page, "two is training: step .* left")
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(signal.SIGINT)
        process.wait(timeout=90)  # the run writes its checkpoint first
    _gone, alive = psutil.wait_procs(children, timeout=1)
    assert not alive
    assert Run(runs / "two").status()["state"] == "stopped"


@pytest.mark.slow  # it measures time
def test_clicks_stay_fast_during_training(browser, tmp_path):
    log = tmp_path / "quick.log"
    environment = {"DINOVIZ_RUNS": str(tmp_path / "quick")}
    with started_app(log, **environment) as (url, _), watched_page(browser, url, log) as page:
        open_train(page, url)
        train(page, "busy", epochs=500)
        says(page, "busy is training: step", timeout=90)
        page.get_by_role("tab", name="Attention", exact=True).click()
        page.evaluate(STOPWATCH)
        times = []
        for i in range(21):
            before = source(page, "#attention-map")
            click_at(page, "#attention-photo", 0.1 + 0.04 * i, 0.3 + 0.02 * (i % 5))
            wait_for_change(page, "#attention-map", before)
            times.append(page.evaluate("window.shown - window.clicked") / 1000)
        print(f"median of a click: {1000 * statistics.median(times[1:]):.0f} ms")
        assert statistics.median(times[1:]) < 0.45  # 0.3 is wanted; 0.27 to 0.34 were measured on two cores
