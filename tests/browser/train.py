"""What tests of the Train tab do again and again."""

from __future__ import annotations

import re
import time

STATUS = "#train-status"
ALONE = {"OMP_NUM_THREADS": "1"}  # two processes with two threads each on two cores would each be ten times as slow


def open_train(page, url: str) -> None:
    page.goto(url)
    page.wait_for_selector("#attention-map img")
    page.get_by_role("tab", name="Train", exact=True).click()


def says(page, pattern: str, timeout: float = 60, selector: str = STATUS) -> str:
    """What a part of the page says, once it matches."""
    deadline = time.monotonic() + timeout
    while True:
        text = page.inner_text(selector)
        if re.search(pattern, text):
            return text
        assert time.monotonic() < deadline, f"{selector} does not say {pattern!r} but {text!r}"
        page.wait_for_timeout(100)


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
