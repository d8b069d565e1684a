"""The page: the bar on top, and a tab for each view. Only this package imports gradio."""

from __future__ import annotations

import atexit
from pathlib import Path

import gradio as gr

from dinoviz.ui import active_tab as open_tab
from dinoviz.ui import attention_tab, pca_tab
from dinoviz.ui import image_bar as bar
from dinoviz.ui.access import Settings
from dinoviz.ui.compare import tab as compare_tab
from dinoviz.ui.components import live_figure
from dinoviz.ui.depth import tab as depth_tab
from dinoviz.ui.page import Page
from dinoviz.ui.segment import tab as segment_tab
from dinoviz.ui.temporary_files import TemporaryFiles
from dinoviz.ui.train import tab as train_tab
from dinoviz.ui.workbench import Workbench

ASSETS = Path(__file__).resolve().parents[2] / "assets"


def build(settings: Settings) -> Page:
    """The whole page, not yet served."""
    bench = Workbench(settings)
    files = TemporaryFiles(public=settings.public, total=settings.temporary_bytes)
    with Page(files=files, title="dinoviz", analytics_enabled=False) as page:
        gr.HTML('<h1 class="dv-title">dinoviz <small>see what DINO sees</small></h1>')
        shared = bar.build(page, bench)
        notice = gr.HTML("", elem_id="going-on", padding=False)
        with gr.Tabs() as tabs:
            parts = {tab: gr.Tab(title, id=tab) for tab, title in open_tab.TABS.items()}
        which = open_tab.build(shared, tabs)
        with parts["attention"]:
            attention_tab.build(bench, shared, which.here["attention"])
        with parts["pca"]:
            pca_tab.build(bench, shared, which.here["pca"])
        with parts["segment"]:
            segment_tab.build(bench, shared, which.here["segment"])
        with parts["depth"]:
            probe = depth_tab.build(bench, shared, which.here["depth"])
        with parts["compare"]:
            compare_tab.build(bench, shared, which.here["compare"])
        with parts["train"]:
            jobs = train_tab.build(page, bench, shared, which, parts["train"], notice, probe)
    if jobs:
        atexit.register(jobs.close)  # no run outlives the app, except where the user asked for it
    page.queue(default_concurrency_limit=8)
    files.share_all()
    bench.warm_up(bar.example_files()[0], bar.DEFAULT_RESOLUTION)
    return page


def launch_options() -> dict:
    """Options of `launch`: the theme, and that the page sends no request to another host."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    theme = gr.themes.Default(
        primary_hue="amber", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"]
    )
    return {
        "theme": theme,
        "js": attention_tab.ARROW_KEYS,
        "css_paths": [ASSETS / "dinoviz.css"],
        "allowed_paths": [live_figure.script_path()],
        "ssr_mode": False,  # with it, a Node server would be in front of the middleware
        "max_file_size": "100mb",
        "run_history": False,
        "footer_links": ["api", "settings"],
    }
