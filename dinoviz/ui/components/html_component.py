"""What our own components of the page have in common: a template, and a script in the file beside them."""

from __future__ import annotations

import inspect
from pathlib import Path

import gradio as gr

EVENTS = ("input", "change", "click", "select", "submit")  # that scripts trigger


class Scripted(gr.HTML):
    """A component drawn by a script; its properties go to the page as they are."""

    def __init__(self, value: str, *, template: str, drawn_by: str, **properties):
        """template: HTML that the script finds. drawn_by: the script's file, beside the component's own."""
        for fixed in ("html_template", "css_template", "js_on_load"):  # an update hands all properties in again
            properties.pop(fixed, None)
        javascript = Path(inspect.getfile(type(self))).with_name(drawn_by).read_text(encoding="utf-8")
        super().__init__(value, html_template=template, js_on_load=javascript, **properties)

    def __getattr__(self, name: str):
        # Gradio takes whatever a script has in quotes for an event. A property's name would find one, which goes into
        # the page's configuration with all that hangs on it: each load of the page then copies the app for seconds.
        if name not in EVENTS:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")
        return super().__getattr__(name)
