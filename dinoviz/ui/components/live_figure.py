"""A plotly figure that is updated in place: Gradio's own plot is mounted anew at each update."""

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
    """A plotly figure that keeps its zoom and its hidden curves while it is updated.

    title: above the figure. figure: JSON of {data, layout}, see `drawn`; "" hides it. description: the figure in words,
    for screen readers. script: the path of plotly's JavaScript.
    """

    def __init__(self, value: str = "", *, title="", figure="", description="", script="", **options):
        super().__init__(
            value,
            template=TEMPLATE,
            drawn_by="live_figure.js",
            title=title,
            figure=figure,
            description=description,
            script=script or script_path(),
            **options,
        )


def script_path() -> str:
    """A copy of plotly's JavaScript from its Python package, which `launch` has to serve."""
    import plotly

    return shared_copy(Path(plotly.__file__).resolve().parent / "package_data" / "plotly.min.js")


def drawn(title: str = "", figure: dict | None = None, description: str = "") -> dict:
    """The update for a LiveFigure to show a figure, or nothing."""
    figure = json.dumps(figure, separators=(",", ":")) if figure else ""
    # In a tab that was never open, an update replaces all properties, so that the script is sent too.
    return gr.update(title=title, figure=figure, description=description, script=script_path())
