"""A gallery of search results: pictures with the object are bright, those without it dim."""

from __future__ import annotations

from dinoviz.ui.components.html_component import Scripted


class TargetGallery(Scripted):
    """Cards to choose from; the value is the key of the chosen one, or "".

    items: dictionaries of key, name, image (a path in Gradio's cache, or ""), state ("present", "absent", "plain",
    "waiting", "bad", or "pending" to stay as it is) and caption (a few words).
    """

    def __init__(self, value: str = "", *, items=(), **options):
        super().__init__(
            value,
            template='<div class="dv-targets"></div>',
            drawn_by="target_gallery.js",
            items=list(items),
            **options,
        )
