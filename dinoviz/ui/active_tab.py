"""Which tab is open: only that one is drawn; the others are drawn when they are opened."""

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
    """The tabs, and for each by its id whether it is open."""

    tabs: gr.Tabs
    here: dict[str, gr.State]

    @property
    def outputs(self) -> list:
        """The outputs of `change_to`."""
        return [self.tabs, *self.here.values()]

    def change_to(self, tab: str) -> tuple:
        """The updates that open a tab from the server, for which gradio fires no select event."""
        return gr.Tabs(selected=tab), *[tab == each for each in self.here]


def build(bar: Bar, tabs: gr.Tabs) -> OpenTab:
    """Keep track of the open tab, beginning with the first."""
    with bar.unseen:
        open_tab = OpenTab(tabs, {tab: gr.State(tab == FIRST) for tab in TABS})
    tabs.select(selected, None, list(open_tab.here.values()), **EVERY)
    return open_tab


def selected(event: gr.SelectData) -> list[bool]:
    """For each tab whether it is the selected one."""
    return [event.value == title for title in TABS.values()]
