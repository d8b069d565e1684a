"""Calling the handlers of a tab without a server and a browser."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr
from gradio.utils import get_function_params

from dinoviz.ui import image_bar
from dinoviz.ui.workbench import Workbench

PATIENCE = 20  # seconds after which a thread that should have ended counts as hanging
ME = gr.Request(session_hash="me")


@contextmanager
def blocks(bench: Workbench, picture: str) -> Iterator[image_bar.Bar]:
    """A page with the bar, to which a tab can be added."""
    with gr.Blocks():
        yield image_bar.layout(bench, [picture])


def is_skipped(answer: object) -> bool:
    """Whether a handler leaves all of its outputs as they are."""
    return answer == gr.skip()


def parameters(handler) -> str:
    """The names of an endpoint's parameters in the API, as gradio derives them."""
    return " ".join(name for name, *_ in get_function_params(handler))


class Held:
    """Work that goes on until the test releases it: reports progress, then waits."""

    def __init__(self):
        self.released = threading.Event()

    def __call__(self, progress) -> None:
        progress(1, 4)
        assert self.released.wait(PATIENCE)
        progress(2, 4)


@contextmanager
def held() -> Iterator[Held]:
    """Work of which no thread is left at the end."""
    work = Held()
    try:
        yield work
    finally:
        work.released.set()
