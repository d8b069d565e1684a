"""The second half of the Train tab: the status, snapshots and curves of runs, and what to do with a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gradio as gr

from dinoviz.ui.active_tab import OpenTab
from dinoviz.ui.components.live_figure import LiveFigure
from dinoviz.ui.image_bar import Bar
from dinoviz.ui.shared import ONCE, PRIVATE, LiveDropdown, LiveRadio, note
from dinoviz.ui.train import publish
from dinoviz.ui.train.strip import Strip
from dinoviz.ui.train.watch_handlers import NO_RUN, PANELS, Handlers, Refresh
from dinoviz.ui.workbench import Workbench
from training.queue import Jobs

TICK = 1.0  # seconds between two updates


@dataclass(frozen=True, eq=False)
class Controls:
    """The components.

    chosen: the `access.key` of the run that is shown. network: a State that changes when that run has another network.
    sent: a State with what the page was sent last, see `Refresh`. opens_in: a State, the tab to inspect a run in.
    """

    chosen: gr.Radio
    others: gr.Dropdown
    status: gr.HTML
    stop: gr.Button
    resume: gr.Button
    inspect: gr.Button
    snapshots: gr.Column
    strip: Strip
    smoothing: gr.Slider
    x: gr.Radio
    log: gr.Checkbox
    legend: gr.HTML
    panels: list
    publish: publish.Controls
    card: gr.Markdown
    lines: gr.Textbox
    timer: gr.Timer
    network: gr.State
    sent: gr.State
    opens_in: gr.State

    def inputs(self, token: gr.BrowserState) -> list:
        """The inputs of `Refresh`."""
        return [token, self.chosen, self.others, self.smoothing, self.log, self.x, self.sent]

    @property
    def outputs(self) -> list:
        """The outputs of `Refresh`."""
        buttons = [self.stop, self.resume, self.inspect]
        shown = [self.snapshots, self.strip, self.legend, *self.panels, self.card, self.lines, self.network]
        return [self.chosen, self.others, self.status, *buttons, *shown, self.sent]


def build(
    bench: Workbench, bar: Bar, jobs: Jobs, token: gr.BrowserState, open_tab: OpenTab, probe: gr.Dropdown,
    check_room: Callable[[str], None],
) -> tuple[Controls, Refresh]:  # fmt: skip
    """Build the half.

    probe: chooses the Depth tab's probe. check_room: raises DinovizError where no more runs may be queued.
    """
    controls = layout(bench, bar)
    refresh = Refresh(jobs, bench.settings.public)
    wire(controls, refresh, Handlers(bench, jobs, check_room), bar, token, open_tab, probe)
    publish.wire(controls.publish, bench, bar, controls.chosen, controls.network, token)
    return controls, refresh


def layout(bench: Workbench, bar: Bar) -> Controls:
    """Create the components."""
    with gr.Row():
        with gr.Column(scale=1, min_width=250):
            runs = {
                "chosen": LiveRadio([], label="Runs", elem_id="train-runs", elem_classes="dv-run-list"),
                "others": LiveDropdown(
                    [], value=[], multiselect=True, label="Also show curves of", elem_id="train-others"
                ),
            }
        with gr.Column(scale=3, min_width=320):
            run = _layout_run()
    curves = _layout_curves()
    with bar.unseen:
        network = gr.State("")
    publishing = publish.layout(bench.settings.public)
    with gr.Accordion("Card of the run: data, settings, figures", open=False, elem_id="train-card-part"):
        card = gr.Markdown("", elem_id="train-card")
    with gr.Accordion("Log of the run", open=False):
        lines = gr.Textbox("", lines=12, max_lines=12, show_label=False, interactive=False, elem_id="train-log-lines")
    return Controls(
        **runs, **run, **curves, publish=publishing, card=card, lines=lines, timer=gr.Timer(TICK, active=False),
        network=network, sent=gr.State({}), opens_in=gr.State("attention"),
    )  # fmt: skip


def _layout_run() -> dict:
    """The chosen run: fields of `Controls`."""
    status = gr.HTML(note(NO_RUN), label="run", elem_id="train-status")
    with gr.Row():
        stop = gr.Button("Stop", size="sm", interactive=False, elem_id="train-stop", min_width=80)
        resume = gr.Button("Resume", size="sm", interactive=False, elem_id="train-resume", min_width=80)
        inspect = gr.Button("Inspect this run", size="sm", interactive=False, elem_id="train-look", min_width=120)
    with gr.Column() as snapshots:
        gr.HTML('<div class="dv-title-of">Attention and PCA of the teacher during training</div>', padding=False)
        strip = Strip(elem_id="train-strip")
    return {
        "status": status, "stop": stop, "resume": resume, "inspect": inspect, "snapshots": snapshots, "strip": strip
    }  # fmt: skip


def _layout_curves() -> dict:
    """The curves: fields of `Controls`."""
    with gr.Row():
        smoothing = gr.Slider(
            0, 0.99, value=0.6, step=0.01, label="Smoothing", elem_id="train-smoothing", min_width=160
        )
        x = gr.Radio(["step", "epoch"], value="step", label="Over", elem_id="train-x", min_width=140)
        log = gr.Checkbox(False, label="Logarithmic", elem_id="train-log", min_width=120)
    legend = gr.HTML("", label="legend", elem_id="train-legend", padding=False)
    with gr.Row(elem_classes="dv-curves"):
        panels = [LiveFigure(elem_id=f"train-panel-{i}", min_width=300) for i in range(PANELS)]
    return {"smoothing": smoothing, "x": x, "log": log, "legend": legend, "panels": panels}


def wire(
    controls: Controls, refresh: Refresh, handlers: Handlers, bar: Bar, token: gr.BrowserState, open_tab: OpenTab,
    probe: gr.Dropdown,
) -> None:  # fmt: skip
    """Connect the events."""
    c = controls
    update = {"fn": refresh.refresh, "inputs": c.inputs(token), "outputs": c.outputs}
    c.timer.tick(**update, **ONCE)
    gr.on([part.input for part in (c.chosen, c.others, c.smoothing, c.log, c.x)], **update, **PRIVATE)
    c.stop.click(handlers.stop, [token, c.chosen], None, **ONCE).then(**update, **PRIVATE)
    c.resume.click(handlers.resume, [token, c.chosen], None, **ONCE).then(**update, **PRIVATE)
    inspected = [bar.model, bar.resolution, probe, c.opens_in]
    c.inspect.click(handlers.inspect, [token, c.chosen], inspected, **ONCE).success(
        open_tab.change_to, c.opens_in, open_tab.outputs,
        js="tab => { document.getElementById('encode').click(); return tab }", **PRIVATE,
    )  # fmt: skip
