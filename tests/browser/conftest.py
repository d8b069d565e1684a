"""The app as its users run it: a process of its own, a real browser, and no request to any other host."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.browser.pictures import DEAD

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_chromium() -> str | None:
    """The system's own browser."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def running_app(log: Path, *options: str, **environment: str) -> Iterator[str]:
    """`python app.py` on a free port -> its address; ended at the end."""
    with started_app(log, *options, **environment) as (url, _):
        yield url


@contextmanager
def started_app(log: Path, *options: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """The same -> its address and its process. Runs are in a folder beside the log, unless $DINOVIZ_RUNS says more."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    runs = {"DINOVIZ_RUNS": str(log.parent / "runs")}
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **runs, **environment}
    command = [sys.executable, "app.py", "--port", str(port), *options]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{url}/config", timeout=5).read()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"The app did not start:\n{log.read_text()}")
                time.sleep(0.25)
        yield url, process
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="session")
def app_log(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("app") / "app.log"


@pytest.fixture(scope="session")
def app(app_log) -> Iterator[str]:
    """The address of a running app."""
    from dinoviz import embedded_weights as embedded

    if embedded.onnx_path() is None:
        pytest.skip("the embedded weights (requirements-embedded.txt) are not installed")
    with running_app(app_log) as url:
        yield url


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """Headless Chromium, the system's own."""
    from playwright.sync_api import sync_playwright

    executable = find_chromium()
    if executable is None:
        message = "no Chromium is installed (`make browser` installs it where there is apt)"
        # On a build machine a silent skip would prove nothing.
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=list(CHROMIUM_FLAGS))
        yield chromium
        chromium.close()


# What Gradio's page logs of answers that a reload cuts off.
CUT_OFF = ("console: AbortError: signal is aborted", "console: Unexpected error Connection errored out")
GONE = ("console: Failed to load resource: net::ERR_", "console: TypeError: network error")


@contextmanager
def watched_page(browser, url: str, log: Path, *, reloads: bool = False, outlives: bool = False, **options) -> Iterator:
    """A page in a fresh context that must end without console errors, failed or foreign requests, or stack traces.

    reloads: the page is reloaded while answers may be under way. outlives: the app ends before the page does.
    """
    already_logged = len(log.read_text())
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **options})
    page = context.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(f"console: {message.text}") if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(f"page: {error}"))
    page.on(
        "response", lambda answer: faults.append(f"{answer.status}: {answer.url}") if answer.status >= 400 else None
    )
    page.on("request", lambda asked: None if _is_ours(asked.url, url) else faults.append(f"foreign: {asked.url}"))
    page.set_default_timeout(DEAD)
    try:
        yield page
    finally:
        context.close()
    allowed = (CUT_OFF if reloads or outlives else ()) + (GONE if outlives else ())
    faults = [fault for fault in faults if not fault.startswith(allowed)]
    assert not faults, faults
    logged = log.read_text()[already_logged:]
    assert "Traceback" not in logged, logged


def _is_ours(requested: str, url: str) -> bool:
    return requested.startswith((url, "data:", "blob:", url.replace("http", "ws")))


@contextmanager
def opened_page(browser, url: str, log: Path) -> Iterator:
    """A watched page, open, with the first example drawn in the attention tab."""
    with watched_page(browser, url, log) as page:
        page.goto(url)
        page.wait_for_selector("#attention-map img")
        page.wait_for_selector("#attention-figure .js-plotly-plot")
        yield page


@pytest.fixture
def page(browser, app, app_log) -> Iterator:
    """An opened page of the test's own."""
    with opened_page(browser, app, app_log) as page:
        yield page
