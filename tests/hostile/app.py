"""The app as a door: started as its users start it, files uploaded and handlers called as a page does."""

from __future__ import annotations

import html
import json
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.browser.conftest import started_app
from tests.hostile.doors import DOORS
from tests.hostile.generate import Case, Corpus
from tests.hostile.run import MOST_GROWTH, Result, judged
from tests.hostile.worker import LONGEST

SECONDS = 90.0  # on the clock; several of these machines' cores are busy with other tests
LARGEST_UPLOAD = 20_000_000
RESOLUTION = "96"  # of the short side: a long and narrow picture has many times as many patches


class Refused(Exception):
    """What the app said instead of an answer; None where it said nothing that a person could read."""

    def __init__(self, said: str | None):
        super().__init__(said)
        self.said = said


class Page:
    """A browser's side of a running app: it uploads files and calls handlers by name, with what its controls hold."""

    def __init__(self, url: str, seconds: float = SECONDS):
        self.url, self.session, self.seconds = url, uuid.uuid4().hex[:12], seconds
        self.http = httpx.Client(timeout=seconds, trust_env=False)
        config = self.http.get(f"{url}/config").json()
        self._parts = {part["id"]: part for part in config["components"]}
        self._handlers = {each["api_name"]: each for each in config["dependencies"] if each["api_name"]}

    def upload(self, name: str, content: bytes) -> dict:
        """Send a file -> what a file input holds then. Raises Refused."""
        name = name.encode(errors="replace").decode()
        answer = self.http.post(f"{self.url}/gradio_api/upload", files={"files": (name, content)})
        if answer.status_code >= 400:
            raise Refused(_detail(answer))
        return {"path": answer.json()[0], "orig_name": name, "size": len(content), "meta": {"_type": "gradio.FileData"}}

    def call(self, handler: str, **values: object) -> list:
        """Call a handler by its name -> what its outputs hold then. Raises Refused.

        values: by the label, or else the type, of an input; all others are as the page has them at first.
        """
        about = self._handlers[handler]
        data = [self._value(self._parts[part], values) for part in about["inputs"]]
        asked = {"data": data, "fn_index": about["id"], "session_hash": self.session, "event_data": None}
        joined = self.http.post(f"{self.url}/gradio_api/queue/join", json=asked)
        if joined.status_code >= 400:
            raise Refused(_detail(joined))
        deadline = time.monotonic() + self.seconds  # the stream itself never ends: it has a heart beat
        with self.http.stream("GET", f"{self.url}/gradio_api/queue/data?session_hash={self.session}") as stream:
            for line in stream.iter_lines():
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout(f"no answer of {handler}")
                if line.startswith("data:"):
                    told = json.loads(line[5:])
                    if told["msg"] == "process_completed":
                        if not told["success"]:
                            raise Refused(told["output"].get("error"))
                        return _without_error(told["output"]["data"])
                    if told["msg"] == "unexpected_error":
                        raise Refused(None)
        raise Refused(None)

    @staticmethod
    def _value(part: dict, values: dict) -> object:
        props = part["props"]
        for key in (props.get("label"), props.get("elem_id"), part["type"]):
            if key in values:
                return values[key]
        return props.get("value")


def _without_error(outputs: list) -> list:
    """The outputs; raises Refused with the text of a note that says what is wrong."""
    for output in outputs:
        if found := re.search(r'<div class="dv-note [^"]*dv-error">(.*?)</div>', str(output), re.DOTALL):
            raise Refused(html.unescape(re.sub("<[^>]*>", "", found[1])))
    return outputs


def _detail(answer: httpx.Response) -> str | None:
    with suppress(ValueError, AttributeError):
        told = answer.json().get("detail") or answer.json().get("error")
        return told if isinstance(told, str) else None
    return None


class Watched:
    """A running app's log and memory, looked at after each call."""

    def __init__(self, log: Path, process):
        self._log, self._read = log, 0
        self._process = psutil.Process(process.pid)
        self.peak, self._going_on = 0, True
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while self._going_on:
            with suppress(psutil.Error):
                self.peak = max(self.peak, self.memory())
            time.sleep(0.05)

    def memory(self) -> int:
        """Bytes in memory now, with its children."""
        everyone = [self._process, *self._process.children(recursive=True)]
        return sum(each.memory_info().rss for each in everyone)

    def close(self) -> None:
        self._going_on = False

    def news(self) -> str:
        """What was added to the log since the last call."""
        text = self._log.read_bytes()
        new, self._read = text[self._read :], len(text)
        return new.decode(errors="replace")


@contextmanager
def running(log: Path, runs: Path) -> Iterator[tuple[Page, Watched]]:
    """The app with the embedded weights and these runs."""
    environment = {"OMP_NUM_THREADS": "2", "DINOVIZ_RUNS": str(runs), "DINOVIZ_CACHE_MB": "256"}
    with started_app(log, **environment) as (url, process):
        watched = Watched(log, process)
        try:
            yield Page(url), watched
        finally:
            watched.close()


def feed(corpus: Corpus, doors: Sequence[str] | None, log: Path) -> Iterator[Result]:
    """Feed the cases to the endpoints of their kind; the doors are called "http" and the endpoint's name."""
    runs = log.parent / "hostile-runs"
    runs.mkdir(parents=True, exist_ok=True)
    for case in corpus.cases:
        if case.group == "run":
            inside = next(Path(case.path).iterdir())
            (runs / Path(case.path).name).symlink_to(inside)
    try:
        with running(log, runs) as (page, watched):
            yield from _feed(corpus.cases, doors, page, watched, corpus.root / "good" / "picture.png", runs)
            return
    except pytest.fail.Exception as failed:
        yield Result("http start", "all runs", "runs", "traceback", str(failed)[-400:], 0, 0)
    empty = log.parent / "no-runs"
    empty.mkdir()
    with running(log, empty) as (page, watched):
        yield from _feed(corpus.cases, doors, page, watched, corpus.root / "good" / "picture.png", runs)


def pairs(cases: Sequence[Case], doors: Sequence[str] | None) -> Iterator[tuple[Case, str]]:
    """Each case with the first endpoint of its kind, and with one of the others in turn."""
    for number, case in enumerate(cases):
        first, *others = DOORS[case.group].endpoints or (None,)
        chosen = [first, others[number % len(others)]] if others else [first]
        yield from ((case, door) for door in chosen if door and (doors is None or f"http {door}" in doors))


def _feed(cases, doors, page: Page, watched: Watched, good: Path, runs: Path) -> Iterator[Result]:
    watched.news()
    page.call("encode", **_controls(page.upload("picture.png", good.read_bytes())))
    for case, door in pairs(cases, doors):
        path = Path(case.path)
        if case.group != "run" and (not _is_plain(path) or path.stat().st_size > LARGEST_UPLOAD):
            continue
        begun, before = time.monotonic(), watched.memory()
        watched.peak = before
        outcome, detail = _ended(lambda case=case, door=door: _ask(page, case, door, good, runs))
        growth, news = watched.peak - before, watched.news()
        if "Traceback" in news:
            outcome, detail = "traceback", f"{detail}; in the log: {news.strip().splitlines()[-1][:200]}"
        elif growth > MOST_GROWTH:
            outcome, detail = "memory", f"{growth / 1e6:,.0f} MB more than before; {outcome}: {detail}"
        yield judged(case, f"http {door}", outcome, detail, time.monotonic() - begun, growth)
        outcome, detail = _ended(
            lambda: page.call("encode", **_controls(page.upload("picture.png", good.read_bytes())))
        )
        if outcome != "right":
            yield Result("http good", case.name, case.kind, "traceback", f"after it: {outcome}, {detail}", 0, 0)


def _is_plain(path: Path) -> bool:
    """Whether it has a content to upload; what a link leads to may have none, or no end."""
    return path.is_file() and not path.is_symlink()


def _ended(ask) -> tuple[str, str]:
    try:
        ask()
    except Refused as error:
        said = error.said
        if not said or len(said) > LONGEST or "\n" in said:
            return "traceback", f"no sentence: {(said or '')[:300]!r}"
        return "sentence", said[:300]
    except httpx.TimeoutException:
        return "hang", f"no answer after {SECONDS:.0f} s"
    except httpx.HTTPError as error:
        return "traceback", f"the connection ended: {type(error).__name__} {error}"
    return "right", ""


def _ask(page: Page, case: Case, door: str, good: Path, runs: Path) -> None:
    path = Path(case.path)
    if door == "run":
        chosen = os.fspath(runs / path.name)
        page.call("refresh", Runs=chosen)
        page.call("show_active")
        return
    if case.group == "marks":
        picture = page.upload("picture.png", good.read_bytes())
        page.call("segment", **_controls(picture), marks=path.read_text(errors="replace"))
        return
    file = page.upload(path.name, path.read_bytes())
    if door == "segment_video":
        marks = '[{"kind": "point", "x": 40, "y": 30, "label": 1}]'
        page.call(door, Model="embedded", Resolution=RESOLUTION, file=file, marks=marks)
    elif door == "preview_data":
        page.call(door, **{"train-where": "upload", "file": [file]})
    else:
        page.call(door, **_controls(file), marks='[{"kind": "point", "x": 4, "y": 4, "label": 1}]')


def _controls(picture: dict) -> dict:
    return {
        "Picture": picture,
        "Model": "embedded",
        "Resolution": RESOLUTION,
        "A": "embedded",
        "B": "embedded",
        "Resolution of A": RESOLUTION,
        "Resolution of B": RESOLUTION,
    }
