"""Runs in words: their entry in the list, and their status."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from dinoviz.ui.shared import note
from dinoviz.ui.train.metrics_log import records
from training.runs.files import tail
from training.runs.run import AT_WORK, Run

RESUMABLE = ("stopped", "failed", "died")
LAST_LINES = 8
LOG, OUTPUT = "log.txt", "output.txt"
# The folders of an absolute path; not the middle of a relative one or of an address.
PATH = re.compile(r"(?<![\w.:/\\-])(?:/|[A-Za-z]:\\)(?:[^\s/\\:'\"<>]+[/\\])+")
MOST_TEXT = 200_000  # bytes of a log that are read, from its end
WORDS = {
    "queued": "is queued", "starting": "is starting", "running": "is training", "stopped": "was stopped",
    "finished": "is finished", "failed": "failed", "died": "failed", "unknown": "cannot be read",
}  # fmt: skip
MARKS = {"queued": "…", "starting": "●", "running": "●", "stopped": "◼", "finished": "✓"}


def label(run: Run) -> str:
    """The run's entry in the list of runs."""
    if problem := run.problem():  # one damaged run must not hide the others
        return f"✗ {run.name} (cannot be read: {problem.removesuffix('.')})"
    state = run.status()["state"]
    return f"{MARKS.get(state, '✗')} {run.name} ({run.kind}, {'failed' if state == 'died' else state})"


def status_html(run: Run, queue: Sequence[str], public: bool = False) -> str:
    """HTML of a run's state, progress, last figures and alarms, and why it failed or cannot be read.

    Args:
        run: of any state.
        queue: names of the runs that wait, in order.
        public: leave out the folders of paths.
    """
    if problem := run.problem():
        return note(f"<b>{html.escape(run.name)}</b> cannot be read: {html.escape(problem)}", "caption dv-error")
    status = run.status()
    state, step, steps = status["state"], status.get("step") or 0, status.get("steps") or 0
    words = WORDS.get(state, WORDS["unknown"])
    if run.name in queue:
        place = queue.index(run.name)
        words += f", {place} before it" if place else ", next"
    if run.stop_requested() and state in AT_WORK:
        words += " and will stop at its next step"
    lines = [f"<b>{html.escape(run.name)}</b> {words}{_progress(state, step, steps, status.get('eta'))}"]
    if steps:
        done = steps if state == "finished" else step
        lines.append(f'<progress value="{done}" max="{steps}" aria-label="progress"></progress>')
    lines += _figures(run)
    message = pathless(status.get("message") or "", public)
    if state in ("failed", "died"):
        gone = "Its process ended without a message: it was killed, or the machine was restarted."
        message = message if state == "failed" and message else gone
        lines.append(f'<span class="dv-error">{html.escape(message)}</span>')
        lines.append(f"<pre>{html.escape(last_lines(run, LAST_LINES, LOG, public=public))}</pre>")
        lines.append("Resume continues from the last checkpoint, or from the start without one.")
    elif message:
        # During training, a message is an alarm.
        alarm = state == "running" and step > 0
        lines.append(f'<span class="{"dv-error" if alarm else ""}">{html.escape(message)}</span>')
    return note("<br>".join(lines), "caption dv-run" + (" dv-busy" if state in AT_WORK else ""))


def last_lines(run: Run, count: int, *names: str, public: bool = False) -> str:
    """The last lines of files of the run, by default its log and its process's output. public: see `status_html`."""
    lines = []
    for name in names or (LOG, OUTPUT):
        lines += tail(run.folder / name, MOST_TEXT).decode(errors="replace").splitlines()[-count:]
    return pathless("\n".join(lines), public)


def pathless(text: str, public: bool = True) -> str:
    """The text; on a public page each absolute path is cut to its last part."""
    return PATH.sub("", text) if public else text


def _progress(state: str, step: int, steps: int, eta: float | None) -> str:
    if not steps:
        return "."
    text = f": step {step:,} of {steps:,}"
    if state in AT_WORK and eta:
        text += f", about {duration(eta)} left"
    if state == "finished" and step < steps:
        text += ": stopped early, as the validation did not improve any more"
    return f"{text}."


def _figures(run: Run) -> list[str]:
    last: dict = {}
    for record in records(run)[-50:]:
        last |= {key: value for key, value in record.items() if value is not None}
    parts = [
        text.format(last[key])
        for key, text in (
            ("epoch", "epoch {:.3g}"), ("loss", "loss {:.3f}"), ("knn", "k-NN {:.1%}"),
            ("validation_top1", "validation {:.1%}"), ("validation_rmse", "validation RMSE {:.3f} m"),
            ("teacher_entropy", "teacher entropy {:.2f}"), ("speed", "{:.0f} images a second"),
            ("memory_mb", "{:,.0f} MB"),
        )
        if isinstance(last.get(key), int | float)
    ]  # fmt: skip
    return [" · ".join(parts)] if parts else []


def duration(seconds: float) -> str:
    """A time in words, rounded."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
