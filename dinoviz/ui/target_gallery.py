"""A gallery of results: what holds the thing is bright, what does not is dim and says so."""

from __future__ import annotations

from pathlib import Path

from dinoviz.ui.scripted import Scripted

SCRIPT = Path(__file__).resolve().parents[2] / "assets" / "target_gallery.js"


class TargetGallery(Scripted):
    """Cards to choose from. Its value is the key of the chosen one, or "".

    items: of each card key, name, image (a path in gradio's cache, or ""), state ("present", "absent", "plain",
    "waiting", "bad", or "pending": as it was before) and said (a few words).
    """

    def __init__(self, value: str = "", *, items=(), **options):
        for fixed in ("html_template", "css_template", "js_on_load"):  # an update hands all properties in again
            options.pop(fixed, None)
        super().__init__(
            value,
            html_template='<div class="dv-targets"></div>',
            js_on_load=SCRIPT.read_text(encoding="utf-8"),
            items=list(items),
            **options,
        )
