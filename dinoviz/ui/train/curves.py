"""The curves of runs: plotly figures of their metrics, as plain dictionaries."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from scipy.signal import lfilter

from dinoviz.errors import DinovizError
from dinoviz.ui.train.metrics_log import Column, columns, number
from training.runs.run import Run, RunError

HEIGHT = 220  # pixels of a panel
MOST_POINTS = 1500  # of a curve: a panel has fewer pixels
FEW_POINTS = 40  # up to which points are drawn as dots too: a single one makes no line
GREY = "#808890"
# Distinct for colour-blind readers (Okabe & Ito 2008, the blue lighter for dark pages); repeated from the seventh run.
COLOURS = ("#1F83C9", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")


@dataclass(frozen=True)
class Series:
    """One number of a run's records. meaning: lines of the hover text. dash: of the line."""

    key: str
    name: str
    meaning: str
    dash: str = "solid"


@dataclass(frozen=True)
class Panel:
    """The curves over one vertical axis.

    unit: of the axis. scale: a factor for the numbers. noisy: whether the curves are smoothed. positive: whether the
    axis may be logarithmic. reference: the setting of the run for which a reference line is drawn.
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
        Series("loss", "loss", "the total: all terms<br>with their weights"),
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
        Series("teacher_information", "information", "how much a target depends on its image:<br>0 if it is the same "
               "for all images", "dot"),
    ), reference="prototypes"),
    Panel("Spread and prototypes", "share", (
        Series("embedding_spread", "spread", "of the CLS tokens: 1 as far apart as<br>random directions, 0 all "
               "equal"),
        Series("prototypes_used", "prototypes used", "that were the strongest of some target<br>in the last "
               "epoch", "dash"),
    )),
    Panel("Gradient", "norm", (
        Series("gradient_norm", "gradient", "norm of all gradients together,<br>before it is clipped"),
    ), positive=True, reference="clip"),
    Panel("Learning rate", "learning rate", (Series("lr", "learning rate", "of the step just made"),),
          noisy=False, positive=True),
    Panel("Speed", "images per second", (Series("speed", "speed", "over the last 50 steps"),)),
)  # fmt: skip


def smoothed(values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential moving average of (n,) values, debiased as TensorBoard does; NaN stays NaN and has no weight.

    weight: of the past, from 0 (the values themselves) to below 1.
    """
    known = np.isfinite(values)
    result = np.full(len(values), np.nan)
    count = np.arange(1, known.sum() + 1)
    result[known] = lfilter([1 - weight], [1, -weight], values[known]) / (1 - weight**count)
    return result


def thinned(values: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """Indices, in order, of at most `most` of (n,) values whose curve looks like that of all.

    Both ends, and of each stretch the least, the greatest and a gap (NaN).
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
    """(title, {data, layout}) of each panel for which some run has numbers, in the order of PANELS.

    Args:
        runs: each has one colour in all panels, see `key`.
        smoothing: weight of the past, from 0 to 0.999; the measured curve is drawn pale behind the smoothed one.
        log: a logarithmic axis for positive panels, where other numbers are gaps.
        x: "step" or "epoch".

    Raises:
        DinovizError: for another smoothing or x.
    """
    if not 0 <= smoothing <= 0.999:
        raise DinovizError(f"Smoothing is a number from 0 to 0.999, not {smoothing}.")
    if x not in ("step", "epoch"):
        raise DinovizError(f"Curves are drawn against step or epoch, not {x!r}.")
    known = [(run, colour, columns(run)) for run, colour in _coloured(runs)]
    drawn = ((panel.title, _figure(panel, known, smoothing if panel.noisy else 0, log, x)) for panel in PANELS)
    return [(title, figure) for title, figure in drawn if figure["data"]]


def key(runs: Sequence[Run]) -> str:
    """HTML of the legend: the names of the runs with their colours."""
    parts = (f'<span><i style="background:{c}"></i>{html.escape(run.name)}</span>' for run, c in _coloured(runs))
    return f'<div class="dv-runs">{"".join(parts)}</div>'


def description(title: str, figure: dict) -> str:
    """A figure in words, a sentence a curve, for screen readers."""
    sentences = [f"{title} against the {figure['layout']['xaxis']['title']['text']}."]
    for trace in figure["data"]:
        values = [value for value in trace["y"] if value is not None]
        if trace.get("meta") and values:
            sentences.append(f"{trace['meta']}: {values[0]:.4g} at first, {values[-1]:.4g} at last.")
    return " ".join(sentences)


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
            # LiveFigure keeps groups hidden.
            "legend": {
                "orientation": "h",
                "x": 0,
                "y": 1.02,
                "yanchor": "bottom",
                "font": {"size": 10},
                "uirevision": False,
            },
            "shapes": lines,
            # The zoom stays as long as the axes mean the same.
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
            continue  # a loss with one term equals that term: do not draw it twice
        first = ys if first is None else first
        yield series, xs, ys


def _traces(run: str, series: Series, colour: str, xs, ys, smoothing: float, x: str) -> list[dict]:
    """The curve; with smoothing, the measured one and the smoothed one over it."""
    known = np.isfinite(ys).sum()
    common = {"type": "scatter", "legendgroup": series.key, "showlegend": False}
    line = {"color": colour, "dash": series.dash, "width": 2}
    position = "%{x:.2f}" if x == "epoch" else "%{x}"
    name = html.escape(run)
    main = {
        **common,
        "meta": f"{name}, {series.name}",
        "mode": "lines+markers" if known <= FEW_POINTS else "lines",
        "marker": {"color": colour, "size": 5},
        "line": line,
        "hovertemplate": f"<b>{name}</b>, {x} {position}<br>{series.name}{', smoothed' if smoothing else ''}: "
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
    """The legend's entry for this number of all runs."""
    return {
        "type": "scatter", "x": [None], "y": [None], "mode": "lines", "name": series.name,
        "legendgroup": series.key, "line": {"color": colour, "dash": series.dash, "width": 2}, "hoverinfo": "skip",
    }  # fmt: skip


def _references(panel: Panel, runs: Sequence[Run]) -> list[dict]:
    """Reference lines, one for each value of the panel's setting among the runs."""
    settings = set()
    for run in runs if panel.reference else ():
        with suppress(RunError):
            settings.add(number(run.config.get(panel.reference)))
    lines = []
    for setting in sorted(value for value in settings if value > 0):
        entropy = panel.reference == "prototypes"
        value = math.log(setting) if entropy else setting
        text = f"log K = {value:.2f}: uniform" if entropy else f"clipped to {value:g}"
        side = "bottom" if entropy else "top"  # the entropy is below its line
        lines.append({
            "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value, "layer": "below",
            "line": {"color": GREY, "width": 1, "dash": "dot"},
            "label": {"text": text, "textposition": "end", "yanchor": side, "font": {"size": 10, "color": GREY}},
        })  # fmt: skip
    return lines


def _short(value: float) -> float | int | None:
    """The value with six digits, as an integer where it is whole; None for a gap."""
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 else float(f"{value:.6g}")
