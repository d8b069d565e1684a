"""Take the README's pictures anew: `python -m tests.browser.screenshots`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from dinoviz.depth import middlebury
from tests.browser.conftest import CHROMIUM_FLAGS, ROOT, find_chromium, running_app
from tests.browser.pictures import choose, click_at, source, upload, wait_for_change

SIZE = {"width": 1280, "height": 1010}
LONG = 600_000  # milliseconds


def main() -> None:
    """Open the app, show a picture in every tab, and save what is shown in assets/."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running_app(Path(folder) / "log") as url,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(CHROMIUM_FLAGS))
        page = browser.new_page(viewport=SIZE)
        page.set_default_timeout(LONG)
        page.goto(url)
        for shoot in (_attention, _pca, _segment, _compare, _train):
            shoot(page)
        _depth(page, Path(folder) / "motorcycle.png")
        browser.close()


def _attention(page) -> None:
    page.wait_for_selector("#attention-figure .js-plotly-plot")
    page.wait_for_timeout(2000)
    before = source(page, "#attention-map")
    click_at(page, "#attention-photo", 0.36, 0.4)
    wait_for_change(page, "#attention-map", before)
    _shoot(page, "attention.jpg")


def _pca(page) -> None:
    page.get_by_role("tab", name="Patch PCA").click()
    page.wait_for_selector("#pca-scatter canvas")
    _shoot(page, "pca.jpg")


def _segment(page) -> None:
    page.get_by_role("tab", name="Segment").click()
    page.locator("#segment-example").click()
    page.get_by_text("8 pictures: found in").wait_for()
    page.wait_for_function("!document.querySelector('#segment-gallery [data-state=waiting]')")
    page.locator("#segment-gallery button").nth(1).click()
    page.get_by_text("flower, closer.png · found").wait_for()
    _shoot(page, "segment.jpg", below="#segment-reference")


def _train(page) -> None:
    page.get_by_role("tab", name="Train").click()
    page.fill("#train-name input", "demo")
    page.locator("#train-start").click()
    page.get_by_text("demo is finished").wait_for()
    _shoot(page, "train.jpg", below="#train-status")


def _compare(page) -> None:
    """The embedded weights at two resolutions."""
    page.get_by_role("tab", name="Compare").click()
    choose(page, "#compare-resolution-b", "224 px")
    page.locator("#compare-model-b input").fill("embedded")
    page.keyboard.press("Enter")
    page.get_by_text("Linear CKA").wait_for()
    before = source(page, "#compare-a")
    page.get_by_label("patch PCA", exact=True).check()
    wait_for_change(page, "#compare-a", before)
    _shoot(page, "compare.jpg", below="#compare-a")


def _depth(page, file: Path) -> None:
    middlebury.picture().save(file)
    upload(page, file)
    choose(page, "#resolution", "336 px")
    page.get_by_role("tab", name="Depth").click()
    page.wait_for_selector("#depth-cloud .js-plotly-plot canvas")
    _shoot(page, "depth.jpg", below="#depth-map")


def _shoot(page, name: str, below: str | None = None) -> None:
    """What the window shows, or the page from the top of an element on, at most two windows high."""
    page.evaluate("window.scrollTo(0, 0)")
    page.wait_for_timeout(1500)  # figures and pictures are painted after the last answer
    part = {}
    if below:
        top = page.locator(below).bounding_box()["y"] - 60
        height = page.evaluate("document.querySelector('footer').getBoundingClientRect().top") - top
        height = min(height, 1.4 * SIZE["height"])
        part = {"full_page": True, "clip": {"x": 0, "y": top, "width": SIZE["width"], "height": height}}
    page.screenshot(path=ROOT / "assets" / name, type="jpeg", quality=85, **part)


if __name__ == "__main__":
    main()
