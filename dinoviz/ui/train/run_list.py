"""Runs as the page speaks of them: whose they are, and how they go, in words."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from dinoviz.ui.shared import note
from dinoviz.ui.train.curves import records
from training.runs.files import tail
from training.runs.run import AT_WORK, Run

RESUMABLE = ("stopped", "failed", "died")
LAST_LINES = 8
LOG, OUTPUT = "log.txt", "output.txt"
# The folders of an absolute path; not the middle of a relative one or of an address.
PATH = re.compile(r"(?<![\w.:/\\-])(?:/|[A-Za-z]:\\)(?:[^\s/\\:'\"<>]+[/\\])+")
MOST_TEXT = 200_000  # bytes of a log that are read, from its end
WORDS = {
    "queued": "waits for its turn", "starting": "is starting", "running": "is learning", "stopped": "was stopped",
    "finished": "is finished", "failed": "failed", "died": "failed", "unknown": "cannot be read",
}  # fmt: skip
MARKS = {"queued": "…", "starting": "●", "running": "●", "stopped": "◼", "finished": "✓"}


def label(run: Run) -> str:
    """For the list of runs."""
    if problem := run.problem():  # one damaged run must not take the others from the page
        return f"✗ {run.name} (cannot be read: {problem.removesuffix('.')})"
    state = run.status()["state"]
    return f"{MARKS.get(state, '✗')} {run.name} ({run.kind}, {'failed' if state == 'died' else state})"


def said(run: Run, queue: Sequence[str], public: bool = False) -> str:
    """How a run goes, as HTML: state, progress, the last figures, alarms, and why it failed or cannot be read.

    public: strangers read it, whom no path concerns.
    """
    if problem := run.problem():
        return note(f"<b>{html.escape(run.name)}</b> cannot be read: {html.escape(problem)}", "caption dv-error")
    status = run.status()
    state, step, steps = status["state"], status.get("step") or 0, status.get("steps") or 0
    words = WORDS.get(state, WORDS["unknown"])
    if run.name in queue:
        place = queue.index(run.name)
        words += f", {place} before it in the queue" if place else ", next"
    if run.stop_requested() and state in AT_WORK:
        words += " and will stop at its next step"
    lines = [f"<b>{html.escape(run.name)}</b> {words}{_progress(state, step, steps, status.get('eta'))}"]
    if steps:
        done = steps if state == "finished" else step
        lines.append(f'<progress value="{done}" max="{steps}" aria-label="progress"></progress>')
    lines += _figures(run)
    message = pathless(status.get("message") or "", public)
    if state in ("failed", "died"):
        gone = "Its process is gone: it was killed, or the machine was."
        message = message if state == "failed" and message else gone
        lines.append(f'<span class="dv-error">{html.escape(message)}</span>')
        lines.append(f"<pre>{html.escape(last_lines(run, LAST_LINES, LOG, public=public))}</pre>")
        lines.append("Resume goes on from the last checkpoint, or from the start if there is none.")
    elif message:
        # While it learns, the only message is an alarm.
        alarm = state == "running" and step > 0
        lines.append(f'<span class="{"dv-error" if alarm else ""}">{html.escape(message)}</span>')
    return note("<br>".join(lines), "caption dv-run" + (" dv-busy" if state in AT_WORK else ""))


def last_lines(run: Run, count: int, *names: str, public: bool = False) -> str:
    """Of these files of the run, by default its log and what its process said beside it. public: see `said`."""
    lines = []
    for name in names or (LOG, OUTPUT):
        lines += tail(run.folder / name, MOST_TEXT).decode(errors="replace").splitlines()[-count:]
    return pathless("\n".join(lines), public)


def pathless(text: str, public: bool = True) -> str:
    """The text, on a public page with the last part alone of each path of the machine."""
    return PATH.sub("", text) if public else text


def _progress(state: str, step: int, steps: int, eta: float | None) -> str:
    if not steps:
        return "."
    text = f": step {step:,} of {steps:,}"
    if state in AT_WORK and eta:
        text += f", about {duration(eta)} left"
    if state == "finished" and step < steps:
        text += ": more would not have helped, said the validation"
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
    """In words, no finer than one would trust."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
