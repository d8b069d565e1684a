"""The page as a whole: what every handler of it, and every component, shares."""

from __future__ import annotations

import gradio as gr

from dinoviz.errors import DinovizError
from dinoviz.ui.parts import told


class Page(gr.Blocks):
    """Blocks that say in one sentence what the disk refuses, also where components read and write their files."""

    async def process_api(self, *args, **kwargs):
        """Run a handler, between what its components make of the inputs and of the outputs."""
        with told():
            try:
                return await super().process_api(*args, **kwargs)
            except Exception as error:
                if isinstance(
                    error.__cause__, OSError | DinovizError
                ):  # wrapped by gradio, where a component raised it
                    raise error.__cause__ from None
                raise
