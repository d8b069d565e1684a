"""A gallery of results: what holds the thing is bright, what does not is dim and says so."""

from __future__ import annotations

from dinoviz.ui.components.html_component import Scripted


class TargetGallery(Scripted):
    """Cards to choose from. Its value is the key of the chosen one, or "".

    items: of each card key, name, image (a path in gradio's cache, or ""), state ("present", "absent", "plain",
    "waiting", "bad", or "pending": as it was before) and said (a few words).
    """

    def __init__(self, value: str = "", *, items=(), **options):
        super().__init__(
            value,
            template='<div class="dv-targets"></div>',
            drawn_by="target_gallery.js",
            items=list(items),
            **options,
        )
