"""An answer that a newer request has overtaken is dropped, and the tab drawn once more, whatever the delays."""

import itertools
import random
import threading

import pytest

from dinoviz.ui import stale_answers
from dinoviz.ui.stale_answers import Requests


class Client:
    """A page with an opacity, which controls draw, and a query, which clicks set; answers arrive in order."""

    def __init__(self, requests: Requests):
        self.requests, self.numbers = requests, itertools.count(1)
        self.opacity, self.query, self.stamp = 0, "", "0"
        self.picture = None
        self.redraws = 0

    def send(self, *, click: str | None = None, opacity: int | None = None, look: str = "cat"):
        """Issue a request. Returns what happens when it arrives, which returns what happens when it is answered."""
        if opacity is not None:
            self.opacity = opacity
        stamp, inputs = f"{next(self.numbers)} {self.stamp}", (click or self.query, self.opacity)

        def arrive():
            request = (self.requests.click if click else self.requests.controls)("session", stamp, look)
            return lambda: self.receive(request.answer({"query": click} if click else {}, {"picture": inputs}))

        return arrive

    def ask(self, **what):
        """Issue a request that arrives at once; returns what ends it."""
        return self.send(**what)()

    def receive(self, answer: dict) -> None:
        self.stamp = answer["stamp"]
        self.query = answer.get("query", self.query)
        self.picture = answer.get("picture", self.picture)
        self.redraws += "redraw" in answer

    def settle(self) -> None:
        """Redraw as often as the page was asked to; each redraw is issued after its answer was applied."""
        for _ in range(20):
            if not self.redraws:
                return
            self.redraws = 0
            self.ask()()
        raise AssertionError("the page is redrawn without end")


@pytest.fixture
def client() -> Client:
    return Client(Requests("redraw", "stamp"))


def test_requests_one_after_the_other_lead_to_no_redraw(client):
    for step in ({"click": "1, 1"}, {"opacity": 2}, {"click": "3, 3"}, {"opacity": 4}):
        client.ask(**step)()
    assert client.redraws == 0
    assert client.picture == ("3, 3", 4)


def test_an_older_click_that_ends_last_is_dropped(client):
    first, second = client.ask(click="1, 1"), client.ask(click="2, 2")
    second()
    first()
    assert client.query == "2, 2"
    assert client.picture == ("2, 2", 0)


def test_a_click_is_not_undone_by_a_control_that_did_not_know_it(client):
    click, opacity = client.ask(click="1, 1"), client.ask(opacity=5)
    click()
    opacity()
    client.settle()
    assert client.picture == ("1, 1", 5)


def test_controls_that_end_after_a_newer_click_do_not_draw_the_older_query(client):
    opacity, click = client.ask(opacity=5), client.ask(click="1, 1")
    click()
    drawn = client.picture
    opacity()
    assert client.picture == drawn
    client.settle()
    assert client.picture == ("1, 1", 5)


def test_a_click_on_the_picture_before_sets_nothing_on_the_next(client):
    click, drawing = client.ask(click="1, 1", look="cat"), client.ask(look="dog")
    drawing()
    click()
    assert client.query == ""
    assert client.picture == ("", 0)


def test_a_request_issued_before_an_answer_came_is_drawn_again(client):
    """On a slow link a request is on its way while the answer of the one before is too."""
    click, opacity = client.send(click="1, 1"), client.send(opacity=5)
    click()()
    assert client.redraws == 0
    opacity()()
    client.settle()
    assert client.picture == ("1, 1", 5)


def test_controls_are_drawn_again_where_the_click_that_overtook_them_fails(client):
    opacity, _ = client.ask(opacity=5), client.ask(click="1, 1")  # which raises, so that it is never answered
    opacity()
    client.settle()
    assert client.picture == ("", 5)


@pytest.mark.parametrize("seed", range(30))
def test_whatever_the_order_the_end_shows_what_was_asked_last(client, seed):
    choice, pending, last = random.Random(seed), [], ""

    def proceed(index: int) -> None:
        if following := pending.pop(index)():
            pending.append(following)

    for number in range(60):
        if pending and choice.random() < 0.6:
            proceed(choice.randrange(len(pending)))
        elif choice.random() < 0.5:
            last = f"click {number}"
            pending.append(client.send(click=last))
        else:
            pending.append(client.send(opacity=number))
    while pending:
        proceed(choice.randrange(len(pending)))
    client.settle()
    assert client.picture == (last, client.opacity)


def test_a_handler_that_waits_ten_seconds_is_overtaken(client):
    """The delay is held by an event, so that it is as long as it has to be."""
    release, overtaken = threading.Event(), client.ask(click="1, 1")
    worker = threading.Thread(target=lambda: (release.wait(), overtaken()))
    worker.start()
    client.ask(click="2, 2")()
    release.set()
    worker.join()
    assert client.picture == ("2, 2", 0)


def test_sessions_do_not_disturb_each_other(client):
    other = Client(client.requests)
    mine = client.requests.click("mine", "1 0", "cat")
    client.requests.click("yours", "2 0", "cat").answer({}, {"picture": 0})
    assert mine.answer({}, {"picture": 1})["picture"] == 1
    assert other.stamp == "0"


@pytest.mark.parametrize("stamp", ["", "1", "-1 0", "1e9 0", "9" * 400 + " 0", "1 0 0"])
def test_a_stamp_that_no_page_sends_counts_as_the_newest(stamp):
    requests = Requests("redraw", "stamp")
    requests.controls("session", "7 0", "cat")
    assert requests.controls("session", stamp, "cat").answer({}, {"picture": 1})["picture"] == 1


def test_the_least_recent_sessions_are_forgotten(monkeypatch):
    monkeypatch.setattr(stale_answers, "SESSIONS", 10)
    requests = Requests("redraw", "stamp")
    for number in range(100):
        requests.click(str(number), "1 0", "cat")
    assert len(requests._tabs) == 10
