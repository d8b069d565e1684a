"""The curves of runs while they go on: records of metrics in, figures of plotly out, as plain dictionaries."""

from __future__ import annotations

import html
import math
import os
import sys
import threading
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from scipy.signal import lfilter

from dinoviz.errors import DinovizError
from training.runs import files as run_files
from training.runs.run import Run, RunError

HEIGHT = 220  # pixels of a panel
MOST_POINTS = 1500  # of a curve: more than a panel has pixels
FEW_POINTS = 40  # are drawn as dots too: a line through a single one is none
RUNS_FOLLOWED = 64  # files whose records are kept
MOST_NAMES = 256  # of different numbers in one run's records
GREY = "#808890"
# Told apart by colour-blind eyes (Okabe & Ito 2008, the blue lighter for dark pages); the seventh run has the first's.
COLOURS = ("#1F83C9", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")


@dataclass(frozen=True)
class Series:
    """One number of a run's records: its key, what it is called, what it means in lines of a hover text, its dash."""

    key: str
    name: str
    meaning: str
    dash: str = "solid"


@dataclass(frozen=True)
class Panel:
    """What is drawn over one vertical axis.

    unit: of the axis. scale: what the numbers are multiplied with. noisy: smoothing makes it easier to read.
    positive: may be drawn on a logarithmic axis. reference: the setting of the run that a line is drawn for.
    """

    title: str
    unit: str
    series: tuple[Series, ...]
    scale: float = 1.0
    noisy: bool = True
    positive: bool = False
    reference: str = ""


PANELS = (
    Panel("Loss", "loss", (
        Series("loss", "loss", "what is minimised: all terms<br>with their weights"),
        Series("loss_dino", "DINO", "cross-entropy of the student and the<br>teacher on CLS tokens, in nats", "dash"),
        Series("loss_ibot", "iBOT", "the same on masked patches, in nats", "dot"),
        Series("loss_koleo", "KoLeo", "the lower, the further apart are the<br>CLS tokens of a batch", "dashdot"),
        Series("validation_loss", "validation", "of images held out: where it rises<br>the network overfits", "dash"),
    ), positive=True),
    Panel("Accuracy", "accuracy (%)", (
        Series("knn", "k-NN", "images held out whose nearest neighbours<br>are of their class: no training needed"),
        Series("validation_top1", "validation", "images held out whose class is right", "dash"),
    ), scale=100, noisy=False),
    Panel("Depth error", "RMSE (m)", (
        Series("validation_rmse", "validation", "root of the mean squared error of depth,<br>of images held out"),
    ), noisy=False),
    Panel("Teacher", "nats", (
        Series("teacher_entropy", "entropy", "how many prototypes a target is spread<br>over: log K for all of them, "
               "0 for one"),
        Series("teacher_kl", "KL", "how far a target is from uniform,<br>log K - entropy: near 0 is collapse", "dash"),
        Series("teacher_information", "information", "how much a target tells about its image:<br>0 if all images "
               "get the same", "dot"),
    ), reference="prototypes"),
    Panel("Spread and prototypes", "share", (
        Series("embedding_spread", "spread", "of the CLS tokens: 1 as far apart as<br>random directions, 0 all the "
               "same"),
        Series("prototypes_used", "prototypes used", "that were the strongest of some target<br>within the last "
               "epoch", "dash"),
    )),
    Panel("Gradient", "norm", (
        Series("gradient_norm", "gradient", "norm of all gradients together,<br>before it is clipped"),
    ), positive=True, reference="clip"),
    Panel("Learning rate", "learning rate", (Series("lr", "learning rate", "of the step just made"),),
          noisy=False, positive=True),
    Panel("Speed", "images per second", (Series("speed", "speed", "over the last 50 steps"),)),
)  # fmt: skip


@dataclass
class Column:
    """One number of a run over time: step, epoch and value, each (n,) float64; NaN where it is none."""

    step: np.ndarray
    epoch: np.ndarray
    value: np.ndarray


class _Followed:
    """A metrics.jsonl that grows: what was read once is not read again."""

    def __init__(self, path: Path):
        self._path, self._lock = path, threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._records: list[dict] = []
        # By key; as arrays, because a long run would keep a second busy with looking into its records.
        self._columns: defaultdict[str, tuple[array, array, array]] = defaultdict(
            lambda: (array("d"), array("d"), array("d"))
        )
        self._seen, self._read, self._last = None, 0, b""

    def records(self) -> list[dict]:
        with self._lock:
            self._follow()
            return list(self._records)

    def columns(self) -> dict[str, Column]:
        with self._lock:
            self._follow()
            return {key: Column(*map(np.array, column)) for key, column in self._columns.items()}

    def _follow(self) -> None:
        try:
            with run_files.opened(self._path) as file:
                status = os.fstat(file.fileno())
                if self._seen != (status.st_mtime_ns, status.st_size):
                    self._read_on(file)
                    self._seen = status.st_mtime_ns, status.st_size
        except OSError:  # no record yet, or none any more
            self._forget()

    def _read_on(self, file: BinaryIO) -> None:
        # A run that is resumed drops its last records, and another run may have taken the folder: then the line
        # that was read last is not where it was.
        file.seek(self._read - len(self._last))
        if file.read(len(self._last)) != self._last:
            self._forget()
            file.seek(0)
        for line in run_files.lines(file, run_files.MOST_METRICS - self._read):
            whole = line.endswith(b"\n")
            if not whole and len(line) < run_files.LONGEST_LINE:  # it waits for its end
                return
            if whole and (record := run_files.record(line)) and len(self._records) < run_files.MOST_RECORDS:
                self._add(record)
            self._read += len(line)
            self._last = line

    def _add(self, record: dict) -> None:
        self._records.append({sys.intern(key): value for key, value in record.items()})
        step, epoch = _number(record.get("step")), _number(record.get("epoch"))
        for key, value in record.items():
            if key not in self._columns and len(self._columns) >= MOST_NAMES:
                continue
            for values, number in zip(self._columns[key], (step, epoch, _number(value)), strict=True):
                values.append(number)


@lru_cache(maxsize=RUNS_FOLLOWED)
def _followed(path: Path) -> _Followed:
    return _Followed(path)


def _following(run: Run) -> _Followed:
    return _followed((run.folder / "metrics.jsonl").absolute())


def records(run: Run) -> list[dict]:
    """All whole records of a run, as `Run.metrics`; only what was added since the last call is read."""
    return _following(run).records()


def columns(run: Run) -> dict[str, Column]:
    """The same by key; a key's column has the records in which it is."""
    return _following(run).columns()


def smoothed(values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential moving average of (n,) values, debiased as TensorBoard does; NaN stays NaN and counts for nothing.

    weight: of what came before, from 0 (the values themselves) to below 1.
    """
    known = np.isfinite(values)
    result = np.full(len(values), np.nan)
    count = np.arange(1, known.sum() + 1)
    result[known] = lfilter([1 - weight], [1, -weight], values[known]) / (1 - weight**count)
    return result


def thinned(values: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """The places, in order, of at most `most` of (n,) values that look like all of them.

    Of each stretch those of the least, the greatest and a gap (NaN) are kept, and so are both ends.
    """
    n = len(values)
    if n <= most:
        return np.arange(n)
    size = -(-n // ((most - 2) // 3))
    rows = np.pad(values, (0, -n % size), constant_values=np.nan).reshape(-1, size)
    gap = np.isnan(rows)
    places = [np.where(gap, np.inf, rows).argmin(1), np.where(gap, -np.inf, rows).argmax(1), gap.argmax(1)]
    places = (np.stack(places) + size * np.arange(len(rows))).ravel()
    return np.unique(np.concatenate([[0, n - 1], places[places < n]]))


def figures(runs: Sequence[Run], *, smoothing: float = 0, log: bool = False, x: str = "step") -> list[tuple[str, dict]]:
    """A figure for each panel that some run has numbers for -> (title, {data, layout}), in the order of PANELS.

    smoothing: weight of the past, from 0 to 0.999; the curve as measured stays behind, pale. log: a logarithmic axis
    for what is positive, where numbers that are not are gaps. x: "step" or "epoch". A run has the same colour
    in all panels, see `key`.

    Raises DinovizError for a smoothing and an x that cannot be.
    """
    if not 0 <= smoothing <= 0.999:
        raise DinovizError(f"Smoothing is a number from 0 to 0.999, not {smoothing}.")
    if x not in ("step", "epoch"):
        raise DinovizError(f"Curves are drawn against step or epoch, not {x!r}.")
    known = [(run, colour, columns(run)) for run, colour in _coloured(runs)]
    drawn = ((panel.title, _figure(panel, known, smoothing if panel.noisy else 0, log, x)) for panel in PANELS)
    return [(title, figure) for title, figure in drawn if figure["data"]]


def key(runs: Sequence[Run]) -> str:
    """HTML of the names of runs, each beside its colour."""
    parts = (f'<span><i style="background:{c}"></i>{html.escape(run.name)}</span>' for run, c in _coloured(runs))
    return f'<div class="dv-runs">{"".join(parts)}</div>'


def said(title: str, figure: dict) -> str:
    """What a figure shows in a sentence a curve, for those who do not see it."""
    told = [f"{title} against the {figure['layout']['xaxis']['title']['text']}."]
    for trace in figure["data"]:
        values = [value for value in trace["y"] if value is not None]
        if trace.get("meta") and values:
            told.append(f"{trace['meta']}: {values[0]:.4g} at first, {values[-1]:.4g} at last.")
    return " ".join(told)


def _coloured(runs: Sequence[Run]) -> Iterator[tuple[Run, str]]:
    return ((run, COLOURS[i % len(COLOURS)]) for i, run in enumerate(runs))


def _figure(panel: Panel, runs: list[tuple[Run, str, dict[str, Column]]], smoothing: float, log: bool, x: str) -> dict:
    curves, shown = [], {}
    for run, colour, found in runs:
        for series, xs, ys in _curves(panel, found, x):
            shown[series.key] = series
            curves += _traces(run.name, series, colour, xs, ys, smoothing, x)
    logarithmic = log and panel.positive
    named = [_legend(series, runs[0][1] if len(runs) == 1 else GREY) for series in shown.values()]
    lines = _references(panel, [run for run, *_ in runs]) if curves else []
    grid = {"gridcolor": "rgba(128,128,128,.22)", "zeroline": False, "automargin": True}
    return {
        "data": curves + (named if len(named) > 1 else []),
        "layout": {
            "height": HEIGHT,
            "margin": {"l": 46, "r": 10, "t": 8, "b": 34},
            "font": {"family": "system-ui, sans-serif", "size": 11},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "hovermode": "closest",
            "showlegend": len(named) > 1,
            # What is hidden stays so by group, which LiveFigure sees to.
            "legend": {
                "orientation": "h",
                "x": 0,
                "y": 1.02,
                "yanchor": "bottom",
                "font": {"size": 10},
                "uirevision": False,
            },
            "shapes": lines,
            # The part that one zoomed in to stays as long as the axes mean the same.
            "uirevision": x,
            "xaxis": {"title": {"text": x, "standoff": 4}, "uirevision": x, **grid},
            "yaxis": {
                "title": {"text": panel.unit, "standoff": 4},
                "type": "log" if logarithmic else "linear",
                "uirevision": "log" if logarithmic else "linear",
                "autorangeoptions": {
                    "include": [1.12 * line["y0"] for line in lines if line["label"]["yanchor"] == "bottom"]
                },
                **grid,
                "exponentformat": "e",
            },
        },
    }


def _curves(panel: Panel, found: dict[str, Column], x: str) -> Iterator[tuple[Series, np.ndarray, np.ndarray]]:
    first = None
    for series in panel.series:
        if series.key not in found:
            continue
        column = found[series.key]
        xs, ys = getattr(column, x), column.value * panel.scale
        xs, ys = xs[np.isfinite(xs)], ys[np.isfinite(xs)]
        if not np.isfinite(ys).any() or (first is not None and np.array_equal(first, ys, equal_nan=True)):
            continue  # a loss of one term is that term: one line upon the other tells nothing
        first = ys if first is None else first
        yield series, xs, ys


def _traces(run: str, series: Series, colour: str, xs, ys, smoothing: float, x: str) -> list[dict]:
    """One curve, or the smooth one and behind it the one that was measured."""
    known = np.isfinite(ys).sum()
    common = {"type": "scatter", "legendgroup": series.key, "showlegend": False}
    line = {"color": colour, "dash": series.dash, "width": 2}
    number = "%{x:.2f}" if x == "epoch" else "%{x}"
    name = html.escape(run)
    main = {
        **common,
        "meta": f"{name}, {series.name}",
        "mode": "lines+markers" if known <= FEW_POINTS else "lines",
        "marker": {"color": colour, "size": 5},
        "line": line,
        "hovertemplate": f"<b>{name}</b>, {x} {number}<br>{series.name}{', smoothed' if smoothing else ''}: "
        f"<b>%{{y:.4g}}</b><br><i>{series.meaning}</i><extra></extra>",
        **_points(xs, smoothed(ys, smoothing) if smoothing else ys),
    }
    if not smoothing:
        return [main]
    behind = {**common, "mode": "lines", "opacity": 0.45, "hoverinfo": "skip"}
    return [{**behind, "line": {**line, "dash": "solid", "width": 1}, **_points(xs, ys)}, main]


def _points(xs: np.ndarray, ys: np.ndarray) -> dict:
    places = thinned(ys)
    return {name: [_short(value) for value in values[places].tolist()] for name, values in (("x", xs), ("y", ys))}


def _legend(series: Series, colour: str) -> dict:
    """An entry of the legend that stands for this number of all runs."""
    return {
        "type": "scatter", "x": [None], "y": [None], "mode": "lines", "name": series.name,
        "legendgroup": series.key, "line": {"color": colour, "dash": series.dash, "width": 2}, "hoverinfo": "skip",
    }  # fmt: skip


def _references(panel: Panel, runs: Sequence[Run]) -> list[dict]:
    """Lines that say what the numbers are to be compared with, one for each setting among the runs."""
    settings = set()
    for run in runs if panel.reference else ():
        with suppress(RunError):
            settings.add(_number(run.config.get(panel.reference)))
    lines = []
    for setting in sorted(value for value in settings if value > 0):
        entropy = panel.reference == "prototypes"
        value = math.log(setting) if entropy else setting
        text = f"log K = {value:.2f}: uniform" if entropy else f"clipped to {value:g}"
        side = "bottom" if entropy else "top"  # no entropy is above its line
        lines.append({
            "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value, "layer": "below",
            "line": {"color": GREY, "width": 1, "dash": "dot"},
            "label": {"text": text, "textposition": "end", "yanchor": side, "font": {"size": 10, "color": GREY}},
        })  # fmt: skip
    return lines


def _number(value) -> float:
    """NaN for whatever is none."""
    return float(value) if isinstance(value, int | float) else math.nan


def _short(value: float) -> float | int | None:
    """Six digits, which is more than one sees, and None for a gap; steps stay whole."""
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 else float(f"{value:.6g}")
