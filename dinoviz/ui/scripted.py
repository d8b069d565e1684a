"""What our own components of the page have in common: a template, and a script in assets/."""

from __future__ import annotations

import gradio as gr

EVENTS = ("input", "change", "click", "select", "submit")  # that scripts trigger


class Scripted(gr.HTML):
    """A component drawn by a script; its properties go to the page as they are."""

    def __getattr__(self, name: str):
        # Gradio takes whatever a script has in quotes for an event. A property's name would find one, which goes into
        # the page's configuration with all that hangs on it: each load of the page then copies the app for seconds.
        if name not in EVENTS:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")
        return super().__getattr__(name)
