"""What the tests of the page's doors share: a page that is served, its endpoints, and paths that nobody uploaded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr
import httpx
import pytest
from PIL import Image

from dinoviz.ui import build, door, launch_options
from dinoviz.ui.access import Settings
from dinoviz.ui.page import Page
from dinoviz.ui.workbench import Workbench

SECRET = "a secret that nobody uploaded"
FILE_INPUTS = (gr.File, gr.Image, gr.Video, gr.Gallery)


@dataclass
class Served:
    """A page, its address, and a client that speaks plain HTTP."""

    page: Page
    url: str
    client: httpx.Client = field(repr=False)

    def ask(self, number: int, data: list, session: str | None = "a-session", **more) -> httpx.Response:
        """Call an endpoint by its number, private ones as well, past the queue."""
        click = {"index": [1, 1], "value": None}
        body = {"fn_index": number, "data": data, "session_hash": session, "event_data": click, **more}
        # json= of httpx refuses NaN, which a client may well send.
        return self.client.post(
            "/gradio_api/run/any", content=json.dumps(body), headers={"content-type": "application/json"}
        )

    def upload(self, name: str, content: bytes) -> str:
        """The path that an upload is answered with."""
        return self.client.post("/gradio_api/upload", files={"files": (name, content)}).json()[0]


@contextmanager
def serving(home: Path, settings: Settings) -> Iterator[Served]:
    """The page, without a model at work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DINOVIZ_RUNS", str(home / "runs"))
        patch.setenv("GRADIO_TEMP_DIR", "")  # the page sets its own
        patch.setattr(Workbench, "warm_up", lambda *_: None)
        page = build(settings)
        allowed = door.hosts("127.0.0.1", on_space=False, shared=lambda: None)
        _, url, _ = page.launch(
            prevent_thread_lock=True, quiet=True, share=False,
            app_kwargs={"middleware": door.middleware(page, allowed)}, **launch_options(),
        )  # fmt: skip
        with httpx.Client(base_url=url, timeout=60) as client:
            yield Served(page, url.rstrip("/"), client)
        page.close(verbose=False)
        page.files.close()


def default_data(fn) -> list:
    """What the page would send for an endpoint if nobody had touched it."""
    return [None if block.stateful else plain(block) for block in fn.inputs]


def plain(block: gr.components.Component) -> object:
    """The value of a component as the page holds it at first; no file."""
    return None if isinstance(block, FILE_INPUTS) else block.get_config().get("value")


def foreign_paths(home: Path) -> dict[str, str]:
    """Paths that nobody uploaded, by what they are; all that can be made are there."""
    picture = home / "private.png"
    Image.new("RGB", (64, 48), (200, 30, 30)).save(picture)
    text = home / "private.txt"
    text.write_text(SECRET)
    link = home / "link.png"
    link.symlink_to(picture)
    pipe = home / "pipe"
    os.mkfifo(pipe)
    return {
        "below cwd": "requirements.txt",
        "below cwd, absolute": str(Path("requirements.txt").resolve()),
        "absolute": str(picture),
        "text": str(text),
        "up": f"{home}/runs/../private.png",
        "link": str(link),
        "endless": "/dev/zero",
        "folder": str(home),
        "pipe": str(pipe),
        "url": "http://127.0.0.1:9/private.png",
        "file url": f"file://{picture}",
        "missing": str(home / "missing.png"),
        "system": "/etc/passwd",
    }


def shapes(path: str) -> dict[str, object]:
    """A path as clients could write it into an input."""
    marked = {"path": path, "meta": {"_type": "gradio.FileData"}}
    return {
        "plain": {"path": path},
        "marked": marked,
        "with url": {"path": path, "url": f"/gradio_api/file={path}"},
        "url alone": {"url": path},
        "text": path,
        "list": [marked],
        "nested": {"value": [{"image": {"path": path}}]},
    }
