"""Requests that overtake each other in a real page: a handler is held until the test lets it go."""

import threading

import gradio as gr
import pytest

from dinoviz.ui.shared import EVERY, PRIVATE
from dinoviz.ui.stale_answers import Requests, number, stamp
from tests.browser.pictures import DEAD

HELD = "a"  # the button whose handler waits


@pytest.fixture(scope="module")
def release() -> threading.Event:
    return threading.Event()


@pytest.fixture(scope="module")
def small_app(release):
    """A tab with a control (opacity), two things to click, and the picture that shows both."""
    with gr.Blocks() as app:
        opacity = gr.Number(0, label="opacity", elem_id="opacity")
        buttons = [gr.Button(name, elem_id=f"button-{name}") for name in (HELD, "b")]
        query = gr.Textbox("", label="query", elem_id="query")
        picture = gr.Textbox("", label="picture", elem_id="picture")
        redraw, counter = gr.State(None), stamp()
        requests = Requests(redraw, counter)

        def click(name: str):
            def handler(stamp: str, opacity: float, query: str, request: gr.Request):
                answering = requests.click(request.session_hash, stamp, "look")
                if name == HELD:
                    assert release.wait(60)
                return answering.answer({answers[0]: name}, {picture: f"{name} {opacity:g}"})

            return handler

        def draw(stamp: str, opacity: float, query: str, request: gr.Request):
            answering = requests.controls(request.session_hash, stamp, "look")
            return answering.answer({}, {picture: f"{query} {opacity:g}"})

        inputs, answers = [counter, opacity, query], [query, redraw, counter, picture]
        for button in buttons:
            button.click(click(button.value), inputs, answers, js=number(inputs), **EVERY)
        gr.on([opacity.submit, redraw.change], draw, inputs, answers, js=number(inputs), **PRIVATE)
    _, url, _ = app.launch(prevent_thread_lock=True, quiet=True)
    yield url
    release.set()
    app.close()


def value(page, name: str):
    return page.locator(f"#{name} textarea, #{name} input").first


def wait_for(page, name: str, text: str) -> None:
    page.wait_for_function(
        "([name, text]) => document.querySelector(`#${name} textarea, #${name} input`).value === text", arg=[name, text]
    )


def test_a_held_click_shows_nothing_after_a_newer_one(browser, small_app, release):
    page = browser.new_page()
    page.set_default_timeout(DEAD)
    page.goto(small_app)
    page.click("#button-a")
    page.click("#button-b")
    wait_for(page, "picture", "b 0")
    value(page, "opacity").fill("5")
    value(page, "opacity").press("Enter")
    wait_for(page, "picture", "b 5")
    page.evaluate("window.shown = []")
    page.evaluate(
        "setInterval(() => window.shown.push(document.querySelector('#picture textarea, #picture input').value), 5)"
    )
    release.set()
    # The held click is answered, and the page draws itself once more: b, the control, a, and the redraw.
    page.wait_for_function("document.querySelector('.dv-stamp textarea, .dv-stamp input').value === '4'")
    assert value(page, "query").input_value() == "b"
    assert set(page.evaluate("window.shown")) == {"b 5"}
    page.close()


def test_a_page_numbers_its_requests(browser, small_app, release):
    release.set()
    page = browser.new_page()
    page.set_default_timeout(DEAD)
    page.goto(small_app)
    for count, name in enumerate(("b", "a", "b"), start=1):
        page.click(f"#button-{name}")
        wait_for(page, "picture", f"{name} 0")
        assert page.evaluate("window.dvRequest") == count
    page.close()
