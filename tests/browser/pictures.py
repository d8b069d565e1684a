"""Reading pictures off the page, and waiting for them to change."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

DEAD = 60_000  # milliseconds after which nothing more will come, on however busy a machine


def source(page, selector: str) -> str:
    """The address of the picture inside an element; empty while there is none."""
    image = page.locator(f"{selector} img")
    return image.first.get_attribute("src") if image.count() else ""


def pixels(page, selector: str) -> np.ndarray:
    """The picture inside an element as the server sent it, (H, W, 3) uint8."""
    answer = page.request.get(source(page, selector))
    return np.asarray(Image.open(io.BytesIO(answer.body())).convert("RGB"))


def wait_for_change(page, selector: str, old: str, timeout: int = DEAD) -> str:
    """The new address of the picture inside an element, once it has another one and is loaded."""
    page.wait_for_function(
        """([selector, old]) => {
            const image = document.querySelector(selector + ' img')
            return image && image.getAttribute('src') !== old && image.complete && image.naturalWidth > 0
        }""",
        arg=[selector, old],
        timeout=timeout,
    )
    return source(page, selector)


def click_at(page, selector: str, x: float, y: float) -> None:
    """Click on the picture inside an element at a place given as shares of the picture, letter-box left out."""
    image = page.locator(f"{selector} img")
    image.scroll_into_view_if_needed()
    box = image.bounding_box()
    natural = page.wait_for_function(  # while one picture replaces another it has no size
        """selector => {
            const image = document.querySelector(selector + ' img')
            return image?.naturalWidth ? [image.naturalWidth, image.naturalHeight] : null
        }""",
        arg=selector,
    ).json_value()
    scale = min(box["width"] / natural[0], box["height"] / natural[1], 1)  # pictures are never enlarged
    left = (box["width"] - natural[0] * scale) / 2
    top = (box["height"] - natural[1] * scale) / 2
    image.click(position={"x": left + natural[0] * scale * x, "y": top + natural[1] * scale * y})


def is_blank(picture: np.ndarray) -> bool:
    """Whether a picture shows nothing: hardly any pixel differs from the mean."""
    return bool(picture.std() < 8)


def upload(page, path) -> None:
    """Drop a file into the bar."""
    page.set_input_files("#picture input[type=file]", str(path))


def wait_for_status(page, text: str, timeout: int = DEAD) -> str:
    """The status line, once it says a text."""
    return wait_for_text(page, "#status", text, timeout)


def wait_for_text(page, selector: str, text: str, timeout: int = DEAD) -> str:
    """What an element says, once it says a text."""
    page.wait_for_function(
        "([selector, text]) => document.querySelector(selector)?.innerText.includes(text)",
        arg=[selector, text],
        timeout=timeout,
    )
    return page.inner_text(selector)


def open_tab(page, name: str) -> None:
    """Open a tab, which a narrow window may keep in a menu."""
    tab = page.get_by_role("tab", name=name, exact=True)
    page.get_by_role("tab").first.wait_for()
    page.wait_for_timeout(200)  # tabs that have no room go into the menu a moment later
    if tab.count() and tab.first.is_visible():
        tab.first.click()
    else:
        page.locator(".overflow-menu > button").first.click()
        page.locator(".overflow-dropdown button", has_text=name).first.click()


def choose(page, selector: str, option: str) -> None:
    """Choose an option of a dropdown."""
    page.locator(f"{selector} input").click()
    page.get_by_role("option", name=option, exact=True).click()
