"""Answers that may have overtaken each other are noticed, and lead to one more drawing."""

import pytest

from dinoviz.ui import stale_answers as overlap
from dinoviz.ui.stale_answers import Overlap


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(overlap, "time", clock)
    return clock


def asks(answer) -> bool:
    """Whether the State changes."""
    return isinstance(answer, float)


def test_a_click_alone_and_controls_alone_ask_for_nothing(clock):
    tab = Overlap()
    for answering in (tab.click, tab.controls, tab.click):
        with answering("me") as once_more:
            clock.now += 0.2
            assert not asks(once_more())
        clock.now += 5


@pytest.mark.parametrize("pause", [0.0, 0.3])
def test_a_click_during_or_soon_after_the_controls_asks(clock, pause):
    tab = Overlap()
    with tab.controls("me"):
        clock.now += 3
        with tab.click("me") as once_more:
            during = once_more()
    clock.now += pause
    with tab.click("me") as once_more:
        after = once_more()
    assert not asks(during), "the controls began long ago: they will see the click at their end"
    assert asks(after)


def test_the_controls_ask_once_for_a_click_that_came_meanwhile(clock):
    tab = Overlap()
    with tab.controls("me") as once_more:
        clock.now += 3
        with tab.click("me"):
            clock.now += 0.1
        assert asks(once_more())
    with tab.controls("me") as once_more:  # the drawing that was asked for
        assert not asks(once_more())


def test_two_quick_clicks_ask(clock):
    tab = Overlap()
    with tab.click("me"), tab.click("me") as once_more:
        assert asks(once_more())


def test_nobody_is_in_anothers_way(clock):
    tab = Overlap()
    with tab.controls("me"), tab.click("you") as once_more:
        assert not asks(once_more())


def test_sessions_are_forgotten(clock, monkeypatch):
    monkeypatch.setattr(overlap, "MOST", 10)
    tab = Overlap()
    for number in range(100):
        with tab.click(str(number)):
            clock.now += 1
    assert len(tab._clicks) <= 12
