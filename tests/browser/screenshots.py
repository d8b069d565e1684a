"""Take the README's pictures anew: `python -m tests.browser.screenshots`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.browser.conftest import CHROMIUM_FLAGS, ROOT, find_chromium, running_app
from tests.browser.pictures import click_at, source, wait_for_change

SIZE = {"width": 1280, "height": 1010}


def main() -> None:
    """Open the app, look at a picture in every tab, and keep what is seen in assets/."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running_app(Path(folder) / "log") as url,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(CHROMIUM_FLAGS))
        page = browser.new_page(viewport=SIZE)
        page.goto(url)
        page.wait_for_selector("#attention-figure .js-plotly-plot")
        page.wait_for_timeout(2000)
        before = source(page, "#attention-map")
        click_at(page, "#attention-photo", 0.36, 0.4)
        wait_for_change(page, "#attention-map", before)
        _shoot(page, "attention.jpg")
        page.get_by_role("tab", name="Patch PCA").click()
        page.wait_for_selector("#pca-scatter canvas")
        _shoot(page, "pca.jpg")
        page.get_by_role("tab", name="Segment").click()
        page.locator("#segment-example").click()
        page.get_by_text("8 pictures: found in").wait_for(timeout=120_000)
        page.wait_for_function("!document.querySelector('#segment-gallery [data-state=waiting]')", timeout=120_000)
        page.locator("#segment-gallery button").nth(1).click()
        page.get_by_text("flower, closer.png · found").wait_for()
        _shoot(page, "segment.jpg", below="#segment-reference")
        page.get_by_role("tab", name="Train").click()
        page.fill("#train-name input", "demo")
        page.locator("#train-start").click()
        page.get_by_text("demo is finished").wait_for(timeout=600_000)
        page.wait_for_timeout(3000)
        _shoot(page, "train.jpg", below="#train-status")
        browser.close()


def _shoot(page, name: str, below: str | None = None) -> None:
    """What the window shows, or the whole page from the top of an element on."""
    page.evaluate("window.scrollTo(0, 0)")
    page.wait_for_timeout(1500)
    part = {}
    if below:
        top = page.locator(below).bounding_box()["y"] - 60
        height = page.evaluate("document.querySelector('footer').getBoundingClientRect().top") - top
        part = {"full_page": True, "clip": {"x": 0, "y": top, "width": SIZE["width"], "height": height}}
    page.screenshot(path=ROOT / "assets" / name, type="jpeg", quality=85, **part)


if __name__ == "__main__":
    main()
