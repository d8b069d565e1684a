"""The second half of the Train tab: how runs go, what their teachers see, and what can be done with them."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from dinoviz.depth.probe import probe_file
from dinoviz.errors import DinovizError
from dinoviz.models import weights_stamp
from dinoviz.ui.access import key, opened, visible
from dinoviz.ui.active_tab import OpenTab
from dinoviz.ui.components import live_figure
from dinoviz.ui.components.live_figure import LiveFigure
from dinoviz.ui.image_bar import Bar, nearest_resolution
from dinoviz.ui.shared import ONCE, PRIVATE, LiveDropdown, LiveRadio, note, told
from dinoviz.ui.train import curves as train_curves
from dinoviz.ui.train import publish as train_after
from dinoviz.ui.train import strip
from dinoviz.ui.train.run_list import RESUMABLE, label, last_lines, pathless, said
from dinoviz.ui.train.strip import Strip
from dinoviz.ui.workbench import Workbench
from training.config.tasks import ProbeConfig
from training.publish.model_card import card
from training.queue import Jobs
from training.runs.files import is_file
from training.runs.run import AT_WORK, Run, RunError

TICK = 1.0  # seconds between looks at the runs
PANELS = len(train_curves.PANELS)
LOG_LINES = 200
WITHOUT = PANELS + 10  # parts of the page from the status on
NOTHING = "There is no run yet: set one up, and press Train."


@dataclass(frozen=True)
class Watch:
    """What others listen to. chosen: the folder of the run that one looks at. seen: what the page was told last."""

    chosen: gr.Radio
    seen: gr.State
    timer: gr.Timer
    refresh: Callable
    inputs: list
    outputs: list


class _Told:
    """What the page was sent last, so that only what changed is sent again."""

    def __init__(self, seen: dict):
        self.seen, self.now = seen, {}

    def changed(self, piece: str, signature) -> bool:
        self.now[piece] = signature
        return self.seen.get(piece) != signature


def build(
    bench: Workbench, bar: Bar, jobs: Jobs, token: gr.BrowserState, open_tab: OpenTab, probe: gr.Dropdown,
    check_room: Callable[[str], None],
) -> Watch:  # fmt: skip
    """Lay out the tab's second half and wire it.

    probe: chooses what the Depth tab is looked through. check_room: raises DinovizError where no more runs may wait.
    """
    public = bench.settings.public
    with gr.Row():
        with gr.Column(scale=1, min_width=250):
            chosen = LiveRadio([], label="Runs", elem_id="train-runs", elem_classes="dv-run-list")
            others = LiveDropdown([], value=[], multiselect=True, label="Curves of others too", elem_id="train-others")
        with gr.Column(scale=3, min_width=320):
            status = gr.HTML(note(NOTHING), label="run", elem_id="train-status")
            with gr.Row():
                stop = gr.Button("Stop", size="sm", interactive=False, elem_id="train-stop", min_width=80)
                resume = gr.Button("Resume", size="sm", interactive=False, elem_id="train-resume", min_width=80)
                look = gr.Button("Look through it", size="sm", interactive=False, elem_id="train-look", min_width=120)
            with gr.Column() as seen_part:
                gr.HTML('<div class="dv-title-of">What the teacher sees, as it learns</div>', padding=False)
                pictures = Strip(elem_id="train-strip")
    with gr.Row():
        smoothing = gr.Slider(
            0, 0.99, value=0.6, step=0.01, label="Smoothing", elem_id="train-smoothing", min_width=160
        )
        x = gr.Radio(["step", "epoch"], value="step", label="Over", elem_id="train-x", min_width=140)
        log = gr.Checkbox(False, label="Logarithmic", elem_id="train-log", min_width=120)
    legend = gr.HTML("", label="legend", elem_id="train-legend", padding=False)
    with gr.Row(elem_classes="dv-curves"):
        panels = [LiveFigure(elem_id=f"train-panel-{i}", min_width=300) for i in range(PANELS)]
    with bar.unseen:
        ripe = gr.State("")  # which network the chosen run has
    train_after.build(bench, bar, chosen, ripe, token)
    with gr.Accordion("Card of the run: data, settings, figures", open=False, elem_id="train-card-part"):
        about = gr.Markdown("", elem_id="train-card")
    with gr.Accordion("Its log", open=False):
        lines = gr.Textbox("", lines=12, max_lines=12, show_label=False, interactive=False, elem_id="train-log-lines")
    timer = gr.Timer(TICK, active=False)
    seen = gr.State({})
    where = gr.State("attention")  # the tab in which one looks through the run

    inputs = [token, chosen, others, smoothing, log, x, seen]
    outputs = [chosen, others, status, stop, resume, look, seen_part, pictures, legend, *panels]
    outputs += [about, lines, ripe, seen]

    def refresh(token: str, chosen: str | None, others: list[str], smoothing: float, log: bool, x: str, seen: dict):
        """What changed since the page was told last; all of it where it was told nothing."""
        runs = {key(run, public): run for run in visible(public, token)}
        gone = chosen not in runs
        if gone:
            at_work = [each for each, run in runs.items() if run.status()["state"] in AT_WORK]
            chosen = (at_work or list(runs) or [None])[0]
        page = _Told(seen or {})
        choices = listed(runs.values(), public)
        update = []
        if page.changed("list", (tuple(choices), chosen)):
            overlays = [(run.name, each) for each, run in runs.items() if each != chosen]
            kept = [each for each in others or [] if each in runs and each != chosen]
            # The choice itself is left alone where it can be: somebody may have made another one meanwhile.
            radio = gr.update(choices=choices, value=chosen) if gone else gr.update(choices=choices)
            update += [radio, gr.update(choices=overlays, value=kept)]
        else:
            update += [gr.skip(), gr.skip()]
        if chosen is None:
            return *update, *_without(note(NOTHING)), page.now
        run = runs[chosen]
        if run.problem():
            shown = _without(said(run, (), public)) if page.changed("problem", said(run, ())) else [gr.skip()] * WITHOUT
            return *update, *shown, page.now
        try:
            overlaid = [runs[each] for each in others or [] if each in runs and each != chosen]
            update += pieces(page, run, overlaid, (smoothing, log, x))
        except DinovizError as error:  # somebody removed the folder a moment ago
            told_why = note(html.escape(pathless(str(error), public)), "caption dv-error")
            return (*[gr.skip()] * 2, told_why, *[gr.skip()] * (len(outputs) - 4), {})
        return *update, page.now

    def pieces(page: _Told, run: Run, overlaid: list[Run], style: tuple) -> list:
        state, folder = run.status()["state"], str(run.folder)
        measured = run.folder / "metrics.jsonl"
        exported = is_file(probe_file(run.folder)) if run.kind == "probe" else bool(run.networks())
        queue = jobs.queue()
        update: list = []

        def add(piece: str, signature, count: int, make: Callable[[], list]) -> None:
            update.extend(make() if page.changed(piece, (folder, signature)) else [gr.skip()] * count)

        add("status", (state, _written(run.folder / "status.json", measured), queue, run.stop_requested()), 1,
            lambda: [said(run, queue, public)])  # fmt: skip
        add("buttons", (state, exported), 3, lambda: [
            gr.Button(interactive=state in ("queued", *AT_WORK)), gr.Button(interactive=state in RESUMABLE),
            gr.Button(interactive=exported),
        ])  # fmt: skip
        snapshots = [each.name for each in run.snapshots() if is_file(each / "arrays.npz")]
        add("strip", snapshots, 2, lambda: [gr.Column(visible=run.kind == "pretrain"), strip.shown(run)])
        drawn = [run, *overlaid]
        curves = [(str(each.folder), _written(each.folder / "metrics.jsonl")) for each in drawn]
        add("curves", (curves, style), 1 + PANELS, lambda: _curves(drawn, *style))
        add("card", state if state in AT_WORK else (state, _written(run.folder / "status.json", measured)), 1,
            lambda: [card(run)])  # fmt: skip
        add("log", _written(run.folder / "log.txt", run.folder / "output.txt"), 1,
            lambda: [last_lines(run, LOG_LINES, public=public)])  # fmt: skip
        stamp = f"{folder} {weights_stamp(folder)}"
        add("ripe", stamp, 1, lambda: [stamp])
        return update

    def ask_to_stop(token: str, chosen: str | None):
        with told():
            jobs.stop(opened(chosen, public, token))

    def go_on(token: str, chosen: str | None):
        with told():
            run = opened(chosen, public, token)
            check_room(token)
            jobs.resume(run)

    def look_through(token: str, chosen: str | None):
        with told():
            run = opened(chosen, public, token)
            if problem := run.problem():
                raise RunError(f"The run {run.name} cannot be read: {problem}")
            if run.kind == "probe":
                file, config = str(probe_file(run.folder)), run.config
                resolution = str(nearest_resolution(config.get("resolution", ProbeConfig.resolution)))
                model = config.get("model", ProbeConfig.model)
                return model, resolution, gr.update(choices=[(run.name, file)], value=file), "depth"
            model = gr.Dropdown(_with(bench.model_choices(), run), value=str(run.folder))
            return model, _resolution(run), gr.skip(), "attention"

    timer.tick(refresh, inputs, outputs, **ONCE)
    gr.on([part.input for part in (chosen, others, smoothing, log, x)], refresh, inputs, outputs, **PRIVATE)
    stop.click(ask_to_stop, [token, chosen], None, **ONCE).then(refresh, inputs, outputs, **PRIVATE)
    resume.click(go_on, [token, chosen], None, **ONCE).then(refresh, inputs, outputs, **PRIVATE)
    look.click(look_through, [token, chosen], [bar.model, bar.resolution, probe, where], **ONCE).success(
        open_tab.change_to, where, open_tab.outputs,
        js="tab => { document.getElementById('encode').click(); return tab }", **PRIVATE,
    )  # fmt: skip
    return Watch(chosen, seen, timer, refresh, inputs, outputs)


def listed(runs: Iterable[Run], public: bool) -> list[tuple[str, str]]:
    """What the list of runs offers."""
    return [(label(run), key(run, public)) for run in runs]


def _without(status: str) -> list:
    """The page where there is no run to show, from its status on."""
    parts = [*[gr.Button(interactive=False)] * 3, gr.Column(visible=True), strip.shown(None), ""]
    return [status, *parts, *[live_figure.drawn()] * PANELS, *[""] * 3]


def _written(*files: Path) -> tuple:
    """When files were written last and how large they are; changes whenever they do."""
    found = []
    for file in files:
        with suppress(OSError):
            about = file.stat()
            found.append((about.st_mtime_ns, about.st_size))
    return tuple(found)


def _curves(runs: list[Run], smoothing: float, log: bool, x: str) -> list:
    figures = train_curves.figures(runs, smoothing=smoothing, log=log, x=x)
    drawn = [live_figure.drawn(title, figure, train_curves.said(title, figure)) for title, figure in figures]
    return [train_curves.key(runs), *drawn, *[live_figure.drawn()] * (PANELS - len(drawn))]


def _with(choices: list[tuple[str, str]], run: Run) -> list[tuple[str, str]]:
    """The choices, with a run that a public page does not list."""
    return choices if str(run.folder) in dict(choices).values() else [*choices, (run.name, str(run.folder))]


def _resolution(run: Run) -> str:
    """Not far from what it was trained at, but fine enough to see something."""
    return str(nearest_resolution(max(224, 2 * run.config.get("global_size", 0))))
