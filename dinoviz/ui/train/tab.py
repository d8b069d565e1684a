"""The Train tab: start a run, watch it learn, stop it, look through it."""

from __future__ import annotations

import html
import secrets

import gradio as gr

from dinoviz.ui.access import key, own, visible
from dinoviz.ui.active_tab import OpenTab
from dinoviz.ui.image_bar import Bar
from dinoviz.ui.shared import ONCE, PRIVATE, note, told
from dinoviz.ui.train import setup as train_setup
from dinoviz.ui.train import watch as train_watch
from dinoviz.ui.workbench import Workbench
from training import runs
from training.data.sources import DataError
from training.queue import Jobs
from training.runs.limits import folder_bytes
from training.runs.run import AT_WORK, Run

NOTICE = 10  # seconds between looks at what goes on, from any tab
OFF = (
    "Training is off on this page. Whoever runs it can allow it (DINOVIZ_TRAIN=1); on your own machine it is on: "
    "<code>make app</code>."
)


def build(
    page: gr.Blocks, bench: Workbench, bar: Bar, open_tab: OpenTab, tab: gr.Tab, notice: gr.HTML, probe: gr.Dropdown
) -> Jobs | None:
    """Lay out the tab and wire it. Returns what keeps the processes of runs, for the app to close at its end.

    tab: this one. notice: says above all tabs which runs go on. probe: chooses what the Depth tab is looked through.
    """
    if not bench.settings.train:
        gr.HTML(note(OFF))
        return None
    public = bench.settings.public
    limits = bench.settings.limits
    bounds = {"minutes": limits.minutes, "megabytes": limits.megabytes_each} if public else {}
    jobs = Jobs(limit=bench.settings.runs_at_once, **bounds)

    def check_room(token: str) -> None:
        """Raises LimitError on a public page where this browser may not have another run in the queue."""
        if public:
            mine = visible(public, token)
            limits.check_queue(len(jobs.queue()), sum(run.status()["state"] in ("queued", *AT_WORK) for run in mine))
            limits.check_disk(sum(folder_bytes(run.folder) for run in mine), folder_bytes(runs.root()))

    # Whose runs are whose, where strangers share a page; a fixed secret, so that it is readable after a restart.
    token = gr.BrowserState("", storage_key="dinoviz-runs", secret="dinoviz")
    with gr.Tabs(elem_id="train-tabs") as halves:
        with gr.Tab("Set up a run", id="setup"):
            setup = train_setup.build(tab, bench, bar)
        with gr.Tab("Watch", id="watch"):
            watch = train_watch.build(bench, bar, jobs, token, open_tab, probe, check_room)

    def give_token(token: str) -> str:
        return token or secrets.token_hex(16)

    def start(token: str, *values):
        """Make the run, in the queue, and show it."""
        with told():
            if public and not token:  # nobody could see such a run
                raise DataError("The page does not know yet whose run this is: reload it.")
            check_room(token)
            wanted = setup.order(*values)
            name = f"{wanted.name}-{secrets.token_hex(4)}" if public else wanted.name
            data = runs.root() / name / "data"

            def bring(run: Run) -> None:
                own(run, token)
                wanted.source.bring(data)

            run = jobs.submit(name, wanted.kind, wanted.config_on(data), keep=wanted.keep and not public, before=bring)
            chosen = key(Run(runs.root() / run.name), public)
            return (
                gr.Tabs(selected="watch"),
                gr.update(choices=train_watch.listed(visible(public, token), public), value=chosen),
                {},
                "",
            )

    def wake(here: bool, token: str):
        """Look at the runs while the tab is open; one that goes on is what a returning person wants to see."""
        goes_on = here and any(run.at_work() for run in visible(public, token))
        return gr.Timer(active=here), gr.Tabs(selected="watch") if goes_on else gr.skip()

    def say_what_goes_on(token: str) -> str:
        at_work = [run for run in visible(public, token) if run.at_work()]
        names = ", ".join(f"<b>{html.escape(run.name)}</b>" for run in at_work)
        return note(f"{names} {'is' if len(at_work) == 1 else 'are'} learning: open Train.") if at_work else ""

    page.load(give_token, token, token, **ONCE)
    gr.on([page.load, gr.Timer(NOTICE).tick], say_what_goes_on, token, notice, **ONCE)
    setup.start.click(start, [token, *setup.inputs], [halves, watch.chosen, watch.seen, setup.name], **ONCE).success(
        watch.refresh, watch.inputs, watch.outputs, **PRIVATE
    )
    here = open_tab.here["train"]
    here.change(wake, [here, token], [watch.timer, halves], **PRIVATE).then(
        watch.refresh, watch.inputs, watch.outputs, **PRIVATE
    )
    return jobs
