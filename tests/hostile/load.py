"""Many people at once, some of them hostile: what an app answers, and how much memory and disk it takes meanwhile.

    python -m tests.hostile.load --requests 1500 --clients 10

A tenth of the requests are hostile files and malformed values, and each is followed by a good one that must be answered
right. The exit status is 1 if an answer was neither right nor a sentence, or if memory or temporary files grew beyond
bounds between the 200th request and the end.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

from tests.browser.conftest import started_app
from tests.hostile.app import LARGEST_UPLOAD, Page, Refused, Watched
from tests.hostile.generate import Case, generate, picture
from tests.hostile.kinds.images import encoded

HOSTILE_SHARE = 0.1
RESOLUTIONS = ("96", "128", "160", "224")
MALFORMED_SHARE = 0.2  # of the hostile ones
CONTROLS, MALFORMED = ("Layer", "Query", "Map", "Opacity"), (None, [], {}, "x" * 1000, -1, 1e308, [[1]], True)
HOSTILE_KINDS = ("images", "marks")
SECONDS = 120.0  # on the clock: ten people share the cores
WARM = 200  # requests between two looks at memory and files; the first ones fill the caches
# Beyond what there was then: caches are full by then, and 256 MB of features is what this app may keep.
MOST_GROWTH, MOST_FILES = 700_000_000, 300_000_000


@dataclass
class Figures:
    """What came of all requests so far. clicks: seconds of those whose picture was encoded already."""

    counts: Counter = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)
    clicks: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, what: str, outcome: str, detail: str = "", click: float | None = None) -> None:
        with self.lock:
            self.counts[outcome] += 1
            if outcome == "defect":
                self.defects.append(f"{what}: {detail}")
            if click is not None:
                self.clicks.append(click)

    @property
    def done(self) -> int:
        return sum(self.counts.values())


class Client:
    """One person: looks at a picture of their own and clicks on it; some requests are hostile."""

    def __init__(self, url: str, number: int, hostile: list[Case], figures: Figures):
        self.page = Page(url, SECONDS)
        self.random, self.hostile, self.figures = random.Random(number), hostile, figures
        own = picture(160, 120).rotate(7 * number)
        self.controls = {
            "Picture": self.page.upload(f"picture-{number}.png", encoded(own, "png")),
            "Model": "embedded",
            "Resolution": self.random.choice(RESOLUTIONS),
        }
        self.page.call("encode", **self.controls)

    def request(self) -> None:
        """A request, hostile or not."""
        if self.random.random() < HOSTILE_SHARE:
            self._hostile()
            self._good(after="a hostile request")
        else:
            self._good()

    def _good(self, after: str = "") -> None:
        what = self.random.choice(("attention", "attention", "patch_pca", "segment", "depth"))
        x, y = self.random.randrange(160), self.random.randrange(120)
        values = {
            "attention": {"Query": f"{x}, {y}", "Layer": self.random.randint(1, 12)},
            "segment": {"marks": f'[{{"kind": "point", "x": {x}, "y": {y}, "label": 1}}]'},
        }.get(what, {})
        begun = time.monotonic()
        outcome, detail = self._outcome(lambda: self.page.call(what, **self.controls, **values))
        took = time.monotonic() - begun
        if outcome == "sentence":
            outcome, detail = "defect", f"refused: {detail}"
        self.figures.add(f"{what} {after}", outcome, detail, took if what == "attention" else None)

    def _hostile(self) -> None:
        """A hostile file, marks that are none, or a control that holds what no page would send."""
        case = self.random.choice(self.hostile)
        content = Path(case.path).read_bytes()
        if self.random.random() < MALFORMED_SHARE:
            control, wrong = self.random.choice(CONTROLS), self.random.choice(MALFORMED)
            what, ask = f"{control} = {wrong!r:.20}", lambda: self._ask("attention", **{control: wrong})
        elif case.group == "marks":
            what, ask = case.name, lambda: self._ask("segment", marks=content.decode(errors="replace"))
        else:
            what = case.name
            ask = lambda: self._ask("encode", Picture=self.page.upload(Path(case.path).name, content))  # noqa: E731
        self.figures.add(f"hostile {what}", *self._outcome(ask))

    def _ask(self, handler: str, **values: object) -> None:
        self.page.call(handler, **{**self.controls, **values})

    @staticmethod
    def _outcome(ask) -> tuple[str, str]:
        try:
            ask()
        except Refused as refused:
            return (
                ("sentence", refused.said)
                if refused.said and "\n" not in refused.said
                else ("defect", f"no sentence: {(refused.said or '')[:200]!r}")
            )
        except httpx.HTTPError as error:
            return "defect", f"{type(error).__name__} {error}"
        return "right", ""


def run(requests: int, clients: int, folder: Path) -> dict:
    """Do it, print how it goes, and return the figures."""
    corpus = generate(folder / "corpus", HOSTILE_KINDS, models=False)
    hostile = [
        case
        for case in corpus.cases
        if Path(case.path).is_file()
        and Path(case.path).resolve().is_relative_to(corpus.root)
        and Path(case.path).stat().st_size < LARGEST_UPLOAD
    ]
    files = folder / "temporary"
    files.mkdir()
    environment = {"TMPDIR": str(files), "DINOVIZ_CACHE_MB": "256", "GRADIO_TEMP_DIR": str(files / "gradio")}
    figures, looks = Figures(), []
    with started_app(folder / "app.log", **environment) as (url, process):
        watched = Watched(folder / "app.log", process)
        everyone = [Client(url, number, hostile, figures) for number in range(clients)]

        def looked() -> None:
            looks.append(
                {"done": figures.done, "memory_mb": watched.memory() / 1e6, "files_mb": _bytes_in(files) / 1e6}
            )
            print(", ".join(f"{name} {value:,.0f}" for name, value in looks[-1].items()), flush=True)

        with ThreadPoolExecutor(clients) as pool:
            looked()
            for until in (*range(WARM, requests, WARM), requests):

                def work(client: Client, until: int = until) -> None:
                    while figures.done < until:
                        client.request()

                list(pool.map(work, everyone))
                looked()
        log = watched.news()
        watched.close()
    return {
        **figures.counts,
        "requests": figures.done,
        "p95_click_s": float(np.percentile(figures.clicks or [0], 95)),
        "tracebacks": log.count("Traceback"),
        "defects": figures.defects,
        "looks": looks,
        "peak_mb": watched.peak / 1e6,
    }


def bounded(figures: dict) -> bool:
    """Whether memory and files grew no more than they may from the first look after the start to the end."""
    _, first, *_ = looks = figures["looks"]
    grown = {key: looks[-1][key] - first[key] for key in ("memory_mb", "files_mb")}
    return grown["memory_mb"] < MOST_GROWTH / 1e6 and grown["files_mb"] < MOST_FILES / 1e6


def _bytes_in(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.lstat().st_size
        except OSError:  # gone meanwhile
            continue
    return total


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.load", description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--clients", type=int, default=10)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="hostile-load-") as folder:
        figures = run(options.requests, options.clients, Path(folder))
    for defect in figures.pop("defects"):
        print(f"defect: {defect}")
    print({key: value for key, value in figures.items() if key != "looks"})
    return 0 if not figures.get("defect") and not figures["tracebacks"] and bounded(figures) else 1


if __name__ == "__main__":
    sys.exit(main())
