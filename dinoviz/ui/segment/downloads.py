"""The Segment tab's download: one zip of what the page shows, at full size."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass

import gradio as gr

from dinoviz.errors import DinovizError
from dinoviz.ui.segment.exports import CONTENTS, zipped
from dinoviz.ui.segment.handlers import Handlers
from dinoviz.ui.segment.state import Query
from dinoviz.ui.shared import download, follow, note, user_errors


@dataclass(frozen=True, eq=False)
class Controls:
    """The components. press: the JavaScript that hands the file to the browser."""

    contents: gr.CheckboxGroup
    button: gr.Button
    file: gr.DownloadButton
    note: gr.HTML
    press: str


def layout() -> Controls:
    """Create the components."""
    with gr.Row():
        contents = gr.CheckboxGroup(
            list(CONTENTS), value=list(CONTENTS), label="Contents of the zip", elem_id="segment-contents", scale=3,
            min_width=220,
        )  # fmt: skip
        with gr.Column(scale=2, min_width=160):
            button, file, press = download("segment-file")
            progress = gr.HTML(label="download", elem_id="segment-file-note")
    return Controls(contents, button, file, progress, press)


def wire(controls: Controls, handlers: Handlers, inputs: list) -> None:
    """Connect the button. inputs: those of `Query`."""

    def write_zip(request: gr.Request, *values) -> Iterator[tuple]:
        yield from _write_zip(handlers, request, *values)

    controls.button.click(
        write_zip, [*inputs, controls.contents], [controls.note, controls.file], api_visibility="private",
        concurrency_limit=4, show_progress="hidden",
    ).success(None, js=controls.press)  # fmt: skip


def _write_zip(handlers: Handlers, request: gr.Request, *values) -> Iterator[tuple]:
    """Write what the page shows, with progress: (note, file)."""
    *values, contents = values
    owner = (request.session_hash, "segment-file")
    with user_errors():
        query = Query.of(*values)
        search = handlers.search(query)
        if search is None:
            raise DinovizError("The picture is not encoded yet.")
        refused = handlers.refused(query)
    bench = handlers.bench
    job = bench.start(owner, object(), lambda job: zipped(search, refused, contents, job.report))
    for progress in follow(bench, owner, job):
        yield note(html.escape(progress), "caption dv-busy"), gr.skip()
    if job.stopped:
        return
    with user_errors():
        path = job.result()
    yield note(""), path
