"""Drop stale answers of a tab.

The handlers of a tab run concurrently, so an older answer may be ready after a newer one. The page numbers its requests
and sends along the count of answers that it has applied. Of an answer that is no longer the newest the pictures are
dropped; then, or if it was computed without a click that was answered meanwhile, the tab is redrawn from its current
controls. No delay changes this: Gradio delivers the answers of a session in order, in one stream.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import gradio as gr

SESSIONS = 1000  # remembered; the least recently used is forgotten first


def number(inputs: Sequence) -> str:
    """JavaScript that numbers a request in the browser; the stamp is the first of its inputs."""
    # Gradio passes the outputs after the inputs.
    rest = f"rest.slice(0, {len(inputs) - 1})"
    return f"(stamp, ...rest) => [`${{window.dvRequest = (window.dvRequest ?? 0) + 1}} ${{stamp}}`, ...{rest}]"


def stamp() -> gr.Textbox:
    """Hidden component with the count of applied answers: the first input and an output of every handler."""
    return gr.Textbox("0", visible="hidden", elem_classes="dv-stamp")


@dataclass
class _Tab:
    """One tab of one session. newest, newest_click: request numbers. answers, click_answers: counts."""

    newest: int = 0
    newest_click: int = 0
    answers: int = 0
    click_answers: int = 0  # the count of answers when the last click was answered
    look: Hashable = None  # what the newest request shows
    lock: threading.Lock = field(default_factory=threading.Lock)


class Requests:
    """The requests of one tab, by session."""

    def __init__(self, redraw: Hashable, stamp: Hashable):
        """redraw: the State whose change draws the tab from its controls. stamp: see `stamp`."""
        self._redraw, self._stamp = redraw, stamp
        self._tabs: OrderedDict[str, _Tab] = OrderedDict()
        self._lock = threading.Lock()

    def click(self, session: str, stamp: str, look: Hashable) -> Request:
        """Begin to answer a click. look: key of the picture, model and resolution that was clicked."""
        return self._request(session, stamp, look, is_click=True)

    def controls(self, session: str, stamp: str, look: Hashable) -> Request:
        """Begin to draw the tab from its controls."""
        return self._request(session, stamp, look, is_click=False)

    def _request(self, session: str, stamp: str, look: Hashable, is_click: bool) -> Request:
        return Request(self._tab(session), (self._redraw, self._stamp), stamp, look, is_click)

    def _tab(self, session: str) -> _Tab:
        with self._lock:
            tab = self._tabs.setdefault(session, _Tab())
            self._tabs.move_to_end(session)
            while len(self._tabs) > SESSIONS:
                self._tabs.popitem(last=False)
            return tab


class Request:
    """A request that is being answered: begin it before the work, call `answer` after it."""

    def __init__(self, tab: _Tab, outputs: tuple[Hashable, Hashable], stamp: str, look: Hashable, is_click: bool):
        self._tab, self._outputs, self._look, self._is_click = tab, outputs, look, is_click
        found = re.fullmatch(r"(\d{1,15}) (\d{1,15})", stamp)
        with tab.lock:
            # Without a valid stamp, which no page sends, the order of arrival counts.
            self._number, self._applied = map(int, found.groups()) if found else (tab.newest + 1, tab.answers)
            if self._number > tab.newest:
                tab.newest, tab.look = self._number, look
            if is_click:
                tab.newest_click = max(tab.newest_click, self._number)

    def answer(self, values: dict, pictures: dict) -> dict:
        """The outputs by component, without the stale ones.

        Args:
            values: what the request sets, such as the query of a click. Those of a click stay unless a newer click or
                another picture has taken its place: a change of opacity must not undo a click.
            pictures: what is drawn. They stay only if this is the newest request.
        """
        tab, (redraw, stamp) = self._tab, self._outputs
        with tab.lock:
            is_newest = self._number == tab.newest
            stays = is_newest or (self._is_click and self._number == tab.newest_click and self._look == tab.look)
            missed = (tab.answers if self._is_click else tab.click_answers) > self._applied
            tab.answers += 1
            if self._is_click:
                tab.click_answers = tab.answers
            answer = {stamp: str(tab.answers)}
        if missed or not is_newest:
            answer[redraw] = time.monotonic()
        return answer | (values if stays else {}) | (pictures if is_newest else {})
