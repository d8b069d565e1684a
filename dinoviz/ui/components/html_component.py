"""The base of our own components: an HTML template, and a script in the file beside the component."""

from __future__ import annotations

import inspect
from pathlib import Path

import gradio as gr

EVENTS = ("input", "change", "click", "select", "submit")  # that scripts may trigger


class Scripted(gr.HTML):
    """A component that a script draws from its properties."""

    def __init__(self, value: str, *, template: str, drawn_by: str, **properties):
        """template: HTML that the script fills. drawn_by: the script's file, beside the component's own."""
        for fixed in ("html_template", "css_template", "js_on_load"):  # an update passes all properties again
            properties.pop(fixed, None)
        javascript = Path(inspect.getfile(type(self))).with_name(drawn_by).read_text(encoding="utf-8")
        super().__init__(value, html_template=template, js_on_load=javascript, **properties)

    def __getattr__(self, name: str):
        # Gradio looks up every quoted word of a script as an event. It would find a property of that name, and put it
        # into the page's configuration with all that it refers to: each load of the page would copy the app, for 5 s.
        if name not in EVENTS:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")
        return super().__getattr__(name)
