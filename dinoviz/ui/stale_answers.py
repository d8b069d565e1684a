"""Answers that may have overtaken each other.

A tab's controls are answered one after the other, by one handler. Its clicks are answered at once and by themselves, so
that an older answer of the one can reach the page after a newer one of the other. Whoever finds that this may have
happened has the tab drawn once more, from what the controls say by then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gradio as gr

LATELY = 0.5  # seconds: longer than an answer is on its way
MOST = 1000  # sessions that are remembered before the older ones are forgotten


class Overlap:
    """When the clicks and the controls of one tab were answered last, for each session."""

    def __init__(self):
        self._clicks: dict[str, float] = {}
        self._controls: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def click(self, session: str) -> Iterator[Callable[[], object]]:
        """While a click is answered; gives what tells, at its end, the State that has the tab drawn once more."""
        others = _is_recent(self._clicks.get(session))
        self._set(self._clicks, session)
        try:
            yield lambda: _once_more(others or _is_recent(self._controls.get(session)))
        finally:
            self._set(self._clicks, session)

    @contextmanager
    def controls(self, session: str) -> Iterator[Callable[[], object]]:
        """The same while all controls are answered; a click leads to one more drawing, not to one after another."""
        self._set(self._controls, session)
        try:
            yield lambda: _once_more(_is_recent(self._taken(session)))
        finally:
            self._set(self._controls, session)

    def _taken(self, session: str) -> float | None:
        with self._lock:  # another session may be tidying up
            return self._clicks.pop(session, None)

    def _set(self, times: dict[str, float], session: str) -> None:
        with self._lock:
            if len(times) > MOST:
                for other in [other for other, moment in times.items() if not _is_recent(moment)]:
                    times.pop(other, None)
            times[session] = time.monotonic()


def _is_recent(moment: float | None) -> bool:
    return moment is not None and time.monotonic() - moment < LATELY


def _once_more(needed: bool) -> object:
    return time.monotonic() if needed else gr.skip()
