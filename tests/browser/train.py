"""Steps that the tests of the Train tab share."""

from __future__ import annotations

import time
from collections.abc import Callable

STATUS = "#train-status"
ALONE = {"OMP_NUM_THREADS": "1"}  # two processes with two threads each on two cores would each be ten times as slow


def open_train(page, url: str) -> None:
    page.goto(url)
    page.wait_for_selector("#attention-map img")
    page.get_by_role("tab", name="Train", exact=True).click()


def says(page, pattern: str, timeout: float = 60, selector: str = STATUS) -> str:
    """The text of an element, once it matches a pattern, which is one of JavaScript."""
    found = page.wait_for_function(
        """([selector, pattern]) => {
            const text = document.querySelector(selector)?.innerText ?? ''
            return new RegExp(pattern).test(text) && text
        }""",
        arg=[selector, pattern],
        timeout=1000 * timeout,
    )
    return found.json_value()


def until(page, condition: Callable[[], bool], timeout: float = 60) -> None:
    """Wait for a condition outside of the page, which goes on meanwhile."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        page.evaluate("new Promise(resolve => requestAnimationFrame(resolve))")


def train(page, name: str, **settings) -> None:
    """Fill in the form of pretraining, and press Train."""
    half(page, "Set up a run")
    page.fill("#train-name input", name)
    for setting, value in settings.items():
        page.fill(f"#train-pretrain-{setting.replace('_', '-')} input", str(value))
        page.keyboard.press("Tab")
    page.click("#train-start")


def half(page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()
