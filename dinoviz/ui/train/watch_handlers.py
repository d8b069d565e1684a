"""What the second half of the Train tab does: send what has changed of the runs, and stop, resume or inspect one."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import gradio as gr

from dinoviz.depth.probe import probe_file
from dinoviz.errors import DinovizError
from dinoviz.models import weights_stamp
from dinoviz.ui.access import key, opened, visible
from dinoviz.ui.components import live_figure
from dinoviz.ui.image_bar import nearest_resolution
from dinoviz.ui.shared import note, user_errors
from dinoviz.ui.train import curves, strip
from dinoviz.ui.train.run_list import RESUMABLE, label, last_lines, pathless, status_html
from dinoviz.ui.workbench import Workbench
from training.config.tasks import ProbeConfig
from training.publish.model_card import card
from training.queue import Jobs
from training.runs.files import is_file
from training.runs.run import AT_WORK, Run, RunError

PANELS = len(curves.PANELS)
LOG_LINES = 200
SHOWN = PANELS + 10  # outputs of a run: `Controls.outputs` without the two choices and `sent`
NO_RUN = "There is no run yet: set one up, and press Train."


class _Update:
    """What the page was sent last, and is sent now, so that only pieces that changed are sent again."""

    def __init__(self, sent: dict):
        self._sent, self.now = sent, {}
        self.values: list = []

    def changed(self, piece: str, signature) -> bool:
        self.now[piece] = signature
        return self._sent.get(piece) != signature

    def add(self, piece: str, signature, count: int, make: Callable[[], list]) -> None:
        """Add the `count` values of a piece, made if its signature has changed."""
        self.values += make() if self.changed(piece, signature) else [gr.skip()] * count


class Refresh:
    """Updates the list of runs and the chosen run."""

    def __init__(self, jobs: Jobs, public: bool):
        self.jobs, self.public = jobs, public

    def refresh(
        self, token: str, chosen: str | None, others: list[str], smoothing: float, log: bool, x: str, sent: dict
    ):
        """What has changed since `sent`; everything if that is empty."""
        runs = {key(run, self.public): run for run in visible(self.public, token)}
        gone = chosen not in runs
        if gone:
            at_work = [each for each, run in runs.items() if run.status()["state"] in AT_WORK]
            chosen = (at_work or list(runs) or [None])[0]
        update = _Update(sent or {})
        overlays = [each for each in others or [] if each in runs and each != chosen]
        choices = tuple(listed(runs.values(), self.public))
        update.add("list", (choices, chosen), 2, lambda: _choices(runs, choices, chosen, overlays, gone))
        if chosen is None:
            return *update.values, *_no_run(note(NO_RUN)), update.now
        run = runs[chosen]
        if run.problem():
            status = status_html(run, (), self.public)
            update.add("problem", status, SHOWN, lambda: _no_run(status))
            return *update.values, update.now
        try:
            self._add_run(update, run, [runs[each] for each in overlays], (smoothing, log, x))
        except DinovizError as error:  # its folder was removed a moment ago
            problem = note(html.escape(pathless(str(error), self.public)), "caption dv-error")
            return (*[gr.skip()] * 2, problem, *[gr.skip()] * (SHOWN - 1), {})
        return *update.values, update.now

    def _add_run(self, update: _Update, run: Run, overlays: list[Run], style: tuple) -> None:
        state, folder = run.status()["state"], str(run.folder)
        measured = _stamp(run.folder / "status.json", run.folder / "metrics.jsonl")
        exported = is_file(probe_file(run.folder)) if run.kind == "probe" else bool(run.networks())
        queue = self.jobs.queue()

        def add(piece: str, signature, count: int, make: Callable[[], list]) -> None:
            update.add(piece, (folder, signature), count, make)

        add("status", (state, measured, queue, run.stop_requested()), 1,
            lambda: [status_html(run, queue, self.public)])  # fmt: skip
        add("buttons", (state, exported), 3, lambda: _buttons(state, exported))
        snapshots = [each.name for each in run.snapshots() if is_file(each / "arrays.npz")]
        add("strip", snapshots, 2, lambda: [gr.Column(visible=run.kind == "pretrain"), strip.shown(run)])
        drawn = [run, *overlays]
        stamps = [(str(each.folder), _stamp(each.folder / "metrics.jsonl")) for each in drawn]
        add("curves", (stamps, style), 1 + PANELS, lambda: _curves(drawn, *style))
        add("card", state if state in AT_WORK else (state, measured), 1, lambda: [card(run)])
        add("log", _stamp(run.folder / "log.txt", run.folder / "output.txt"), 1,
            lambda: [last_lines(run, LOG_LINES, public=self.public)])  # fmt: skip
        weights = f"{folder} {weights_stamp(folder)}"
        add("network", weights, 1, lambda: [weights])


class Handlers:
    """Handlers of the buttons. check_room: raises DinovizError where no more runs may be queued."""

    def __init__(self, bench: Workbench, jobs: Jobs, check_room: Callable[[str], None]):
        self.bench, self.jobs, self.check_room = bench, jobs, check_room
        self.public = bench.settings.public

    def stop(self, token: str, chosen: str | None):
        """Ask the run to stop."""
        with user_errors():
            self.jobs.stop(opened(chosen, self.public, token))

    def resume(self, token: str, chosen: str | None):
        """Queue the run again."""
        with user_errors():
            run = opened(chosen, self.public, token)
            self.check_room(token)
            self.jobs.resume(run)

    def inspect(self, token: str, chosen: str | None):
        """Open the run in the bar: (model, resolution, depth probe, tab)."""
        with user_errors():
            run = opened(chosen, self.public, token)
            if problem := run.problem():
                raise RunError(f"The run {run.name} cannot be read: {problem}")
            if run.kind == "probe":
                file, config = str(probe_file(run.folder)), run.config
                resolution = str(nearest_resolution(config.get("resolution", ProbeConfig.resolution)))
                model = config.get("model", ProbeConfig.model)
                return model, resolution, gr.update(choices=[(run.name, file)], value=file), "depth"
            model = gr.Dropdown(_with(self.bench.model_choices(), run), value=str(run.folder))
            return model, _resolution(run), gr.skip(), "attention"


def listed(runs: Iterable[Run], public: bool) -> list[tuple[str, str]]:
    """(label, value) of runs, for the list of runs."""
    return [(label(run), key(run, public)) for run in runs]


def _choices(runs: dict[str, Run], choices: tuple, chosen: str | None, overlays: list[str], gone: bool) -> list:
    """Updates of the list of runs and of the overlays. gone: the run that was chosen is not there any more."""
    others = [(run.name, each) for each, run in runs.items() if each != chosen]
    # The choice itself is kept where it can be: the user may have made another one meanwhile.
    choice = {"value": chosen} if gone else {}
    return [gr.update(choices=list(choices), **choice), gr.update(choices=others, value=overlays)]


def _no_run(status: str) -> list:
    """The SHOWN outputs without a run."""
    shown = [*[gr.Button(interactive=False)] * 3, gr.Column(visible=True), strip.shown(None), ""]
    return [status, *shown, *[live_figure.drawn()] * PANELS, *[""] * 3]


def _buttons(state: str, exported: bool) -> list:
    return [
        gr.Button(interactive=state in ("queued", *AT_WORK)),
        gr.Button(interactive=state in RESUMABLE),
        gr.Button(interactive=exported),
    ]


def _curves(runs: list[Run], smoothing: float, log: bool, x: str) -> list:
    figures = curves.figures(runs, smoothing=smoothing, log=log, x=x)
    drawn = [live_figure.drawn(title, figure, curves.description(title, figure)) for title, figure in figures]
    return [curves.key(runs), *drawn, *[live_figure.drawn()] * (PANELS - len(drawn))]


def _stamp(*files: Path) -> tuple:
    """Times and sizes of files, which change with their content."""
    found = []
    for file in files:
        with suppress(OSError):
            about = file.stat()
            found.append((about.st_mtime_ns, about.st_size))
    return tuple(found)


def _with(choices: list[tuple[str, str]], run: Run) -> list[tuple[str, str]]:
    """The choices with the run, which a public page does not list."""
    return choices if str(run.folder) in dict(choices).values() else [*choices, (run.name, str(run.folder))]


def _resolution(run: Run) -> str:
    """About twice the training resolution, which shows more detail, and at least 224 px."""
    return str(nearest_resolution(max(224, 2 * run.config.get("global_size", 0))))
