"""The Train tab: set up a run, start it, watch it, stop it, inspect it."""

from __future__ import annotations

import html
import secrets
from collections.abc import Callable
from dataclasses import dataclass

import gradio as gr

from dinoviz.ui.access import key, own, visible
from dinoviz.ui.active_tab import OpenTab
from dinoviz.ui.image_bar import Bar
from dinoviz.ui.shared import ONCE, PRIVATE, note, user_errors
from dinoviz.ui.train import setup, watch
from dinoviz.ui.train.run_request import RequestReader
from dinoviz.ui.train.watch_handlers import listed
from dinoviz.ui.workbench import Workbench
from training import runs
from training.data.sources import DataError
from training.queue import Jobs
from training.runs.limits import folder_bytes
from training.runs.run import AT_WORK, Run

NOTICE = 10  # seconds between two updates of the notice above all tabs
OFF = (
    "Training is off on this page. Its operator can turn it on with DINOVIZ_TRAIN=1; on your own machine it is on: "
    "<code>make app</code>."
)


def build(
    page: gr.Blocks, bench: Workbench, bar: Bar, open_tab: OpenTab, tab: gr.Tab, notice: gr.HTML, probe: gr.Dropdown
) -> Jobs | None:
    """Build the tab. Returns the owner of the runs' processes, which the app has to close.

    tab: this one. notice: above all tabs, for the active runs. probe: chooses the Depth tab's probe.
    """
    if not bench.settings.train:
        gr.HTML(note(OFF))
        return None
    limits = bench.settings.limits
    bounds = {"minutes": limits.minutes, "megabytes": limits.megabytes_each} if bench.settings.public else {}
    jobs = Jobs(limit=bench.settings.runs_at_once, **bounds)
    # The browser's token, see `access.own`; the secret is fixed so that it can be read after a restart.
    token = gr.BrowserState("", storage_key="dinoviz-runs", secret="dinoviz")
    check_room = _room_check(bench, jobs)
    with gr.Tabs(elem_id="train-tabs") as halves:
        with gr.Tab("Set up a run", id="setup"):
            form, reader = setup.build(tab, bench, bar)
        with gr.Tab("Watch", id="watch"):
            shown, refresh = watch.build(bench, bar, jobs, token, open_tab, probe, check_room)
    handlers = Handlers(bench.settings.public, jobs, reader, check_room)
    update = {"fn": refresh.refresh, "inputs": shown.inputs(token), "outputs": shown.outputs, **PRIVATE}
    page.load(handlers.make_token, token, token, **ONCE)
    gr.on([page.load, gr.Timer(NOTICE).tick], handlers.show_active, token, notice, **ONCE)
    form.start.click(
        handlers.start, [token, *form.inputs(bar)], [halves, shown.chosen, shown.sent, form.name], **ONCE
    ).success(**update)
    here = open_tab.here["train"]
    here.change(handlers.wake, [here, token], [shown.timer, halves], **PRIVATE).then(**update)
    return jobs


def _room_check(bench: Workbench, jobs: Jobs) -> Callable[[str], None]:
    """A function that raises LimitError where a browser on a public page may not queue another run."""
    public, limits = bench.settings.public, bench.settings.limits

    def check(token: str) -> None:
        if public:
            mine = visible(public, token)
            limits.check_queue(len(jobs.queue()), sum(run.status()["state"] in ("queued", *AT_WORK) for run in mine))
            limits.check_disk(sum(folder_bytes(run.folder) for run in mine), folder_bytes(runs.root()))

    return check


@dataclass(frozen=True)
class Handlers:
    """Handlers of the Train button, of the token, and of opening the tab."""

    public: bool
    jobs: Jobs
    reader: RequestReader
    check_room: Callable[[str], None]

    def make_token(self, token: str) -> str:
        """The browser's token, made at its first visit."""
        return token or secrets.token_hex(16)

    def start(self, token: str, *values):
        """Queue the run, and show it."""
        with user_errors():
            if self.public and not token:  # no browser could see such a run
                raise DataError("The page has no token of this browser yet: reload it.")
            self.check_room(token)
            request = self.reader.read(*values)
            name = f"{request.name}-{secrets.token_hex(4)}" if self.public else request.name
            data = runs.root() / name / "data"

            def bring(run: Run) -> None:
                own(run, token)
                request.source.bring(data)

            keep = request.keep and not self.public
            run = self.jobs.submit(name, request.kind, request.config_on(data), keep=keep, before=bring)
            chosen = key(Run(runs.root() / run.name), self.public)
            choices = listed(visible(self.public, token), self.public)
            return gr.Tabs(selected="watch"), gr.update(choices=choices, value=chosen), {}, ""

    def wake(self, here: bool, token: str):
        """Update the runs while the tab is open; with an active run, show it first."""
        active = here and any(run.at_work() for run in visible(self.public, token))
        return gr.Timer(active=here), gr.Tabs(selected="watch") if active else gr.skip()

    def show_active(self, token: str) -> str:
        """HTML that names the active runs."""
        active = [run for run in visible(self.public, token) if run.at_work()]
        names = ", ".join(f"<b>{html.escape(run.name)}</b>" for run in active)
        return note(f"{names} {'is' if len(active) == 1 else 'are'} training: open Train.") if active else ""
