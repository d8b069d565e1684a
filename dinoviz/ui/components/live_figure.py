"""A figure that goes on: Gradio's own plot is mounted anew at each update, this one changes in place."""

from __future__ import annotations

import json
from pathlib import Path

import gradio as gr

from dinoviz.ui.components.html_component import Scripted
from dinoviz.ui.temporary_files import shared_copy

TEMPLATE = """
<figure class="dv-live dv-empty" role="img">
  <figcaption class="dv-title-of"></figcaption>
  <div class="dv-plot"></div>
</figure>
"""


class LiveFigure(Scripted):
    """A figure of plotly that keeps its place, its zoom and what was hidden while it is updated.

    figure: JSON of {data, layout}, see `drawn`; "" for none, then nothing is seen. title: stands above it.
    said: what it shows in words, for those who do not see it.
    """

    def __init__(self, value: str = "", *, title="", figure="", said="", script="", **options):
        super().__init__(
            value,
            template=TEMPLATE,
            drawn_by="live_figure.js",
            title=title,
            figure=figure,
            said=said,
            script=script or script_path(),
            **options,
        )


def script_path() -> str:
    """The library that draws, as the Python package brings it: `launch` must be told to serve this file."""
    import plotly

    return shared_copy(Path(plotly.__file__).resolve().parent / "package_data" / "plotly.min.js")


def drawn(title: str = "", figure: dict | None = None, said: str = "") -> dict:
    """The update that makes a LiveFigure show a figure, or nothing."""
    figure = json.dumps(figure, separators=(",", ":")) if figure else ""
    # In a tab that was never open, an update takes the place of all properties: the script goes with it.
    return gr.update(title=title, figure=figure, said=said, script=script_path())
