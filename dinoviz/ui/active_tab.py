"""Which tab is open: only that one draws, the others do when they are opened."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from dinoviz.ui.image_bar import Bar
from dinoviz.ui.shared import EVERY

TABS = {
    "attention": "Attention",
    "pca": "Patch PCA",
    "segment": "Segment",
    "depth": "Depth",
    "compare": "Compare",
    "train": "Train",
}
FIRST = "attention"


@dataclass(frozen=True, eq=False)
class OpenTab:
    """The tabs and, for each by its id, whether it is open."""

    tabs: gr.Tabs
    here: dict[str, gr.State]

    @property
    def outputs(self) -> list:
        """What `change_to` returns the values of."""
        return [self.tabs, *self.here.values()]

    def change_to(self, tab: str) -> tuple:
        """The updates that open a tab from the server, of which the page tells nobody."""
        return gr.Tabs(selected=tab), *[tab == each for each in self.here]


def build(bar: Bar, tabs: gr.Tabs) -> OpenTab:
    """Follow which tab is open, beginning with the first."""
    with bar.unseen:
        open_tab = OpenTab(tabs, {tab: gr.State(tab == FIRST) for tab in TABS})

    def follow(event: gr.SelectData) -> list[bool]:
        return [event.value == title for title in TABS.values()]

    tabs.select(follow, None, list(open_tab.here.values()), **EVERY)
    return open_tab
