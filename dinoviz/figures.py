"""Plotly figures of attention heads, principal components and object areas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from dinoviz.attention import HeadStatistics

# Distinguishable on light and dark pages and by colour-blind users (Okabe & Ito 2008).
ACCENT, QUIET = "#E69F00", "#56B4E9"


def _figure(height: int, **layout) -> go.Figure:
    import plotly.graph_objects as go

    # Transparent, to show the page's light or dark background; mid-grey text is readable on both.
    return go.Figure(
        layout={
            "height": height,
            "margin": {"l": 50, "r": 10, "t": 30, "b": 42},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "system-ui, sans-serif", "color": "#808890"},
            "showlegend": False,
            **layout,
        }
    )


def heads_figure(statistics: Sequence[HeadStatistics], layer: int) -> go.Figure:
    """Mean attention distance and entropy of every head by layer; one layer (from 0) is highlighted."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(cols=2, rows=1, figure=_figure(280), horizontal_spacing=0.16)
    for column, (field, unit) in enumerate((("distance", "patches"), ("entropy", "bits")), start=1):
        values = np.array([getattr(s, field) for s in statistics])  # (layers, heads)
        layers, heads = values.shape
        x, head = np.divmod(np.arange(layers * heads), heads)
        highlighted = x == layer
        for chosen, colour, size in ((~highlighted, QUIET, 6), (highlighted, ACCENT, 10)):
            figure.add_trace(
                go.Scatter(
                    x=x[chosen] + 1,
                    y=values.ravel()[chosen],
                    customdata=head[chosen] + 1,
                    mode="markers",
                    marker={"color": colour, "size": size, "opacity": 0.85},
                    hovertemplate=f"layer %{{x}}, head %{{customdata}}<br>{field} %{{y:.2f}} {unit}<extra></extra>",
                ),
                row=1,
                col=column,
            )
        grid = {"gridcolor": "rgba(128,128,128,.25)", "zeroline": False}
        figure.update_xaxes(title="layer", row=1, col=column, **grid)
        figure.update_yaxes(title=f"{'mean ' if column == 1 else ''}{field} ({unit})", row=1, col=column, **grid)
    return figure


def variance_figure(explained: np.ndarray) -> go.Figure:
    """Bar chart of the explained variance of each component, with the cumulative sum on hover."""
    import plotly.graph_objects as go

    figure = _figure(280, bargap=0.25)
    figure.add_trace(
        go.Bar(
            x=np.arange(1, len(explained) + 1),
            y=explained * 100,
            customdata=np.cumsum(explained) * 100,
            marker={"color": [ACCENT if i < 3 else QUIET for i in range(len(explained))]},
            hovertemplate="component %{x}: %{y:.1f} %<br>cumulative: %{customdata:.1f} %<extra></extra>",
        )
    )
    figure.update_xaxes(title="component", dtick=1)
    figure.update_yaxes(title="explained variance (%)", gridcolor="rgba(128,128,128,.25)")
    return figure


def areas_figure(seconds: np.ndarray, percent: np.ndarray) -> go.Figure:
    """Share of each frame that an object covers, over the time of a video."""
    import plotly.graph_objects as go

    figure = _figure(200)
    figure.add_trace(
        go.Scatter(
            x=seconds,
            y=percent,
            mode="lines",
            line={"color": ACCENT, "width": 2},
            hovertemplate="%{x:.2f} s: %{y:.1f} % of the frame<extra></extra>",
        )
    )
    figure.update_xaxes(title="seconds", gridcolor="rgba(128,128,128,.25)", zeroline=False)
    figure.update_yaxes(title="area (% of the frame)", gridcolor="rgba(128,128,128,.25)", rangemode="tozero")
    return figure


def scatter_figure(points: np.ndarray, colours: np.ndarray, axes: Sequence[int], hover: Sequence[str]) -> go.Figure:
    """3D scatter plot of patches (n, 3), in their colours (n, 3) in [0, 1].

    axes: the three components, from 0. hover: text of each patch.
    """
    import plotly.graph_objects as go

    figure = _figure(420, margin={"l": 0, "r": 0, "t": 0, "b": 0})
    figure.add_trace(
        go.Scatter3d(
            x=points[:, 0],
            y=points[:, 1],
            z=points[:, 2],
            text=hover,
            mode="markers",
            marker={"size": 3, "color": ["rgb({},{},{})".format(*c) for c in (colours * 255).round().astype(int)]},
            hovertemplate="%{text}<extra></extra>",
        )
    )
    titles = [f"component {i + 1}" for i in axes]
    # uirevision keeps the user's camera position when the points change.
    figure.update_layout(
        scene={
            f"{axis}axis": {"title": title, "backgroundcolor": "rgba(0,0,0,0)", "gridcolor": "rgba(128,128,128,.3)"}
            for axis, title in zip("xyz", titles, strict=True)
        },
        scene_camera={"eye": {"x": 1.7, "y": 1.7, "z": 1.0}, "center": {"x": 0, "y": 0, "z": -0.15}},
        uirevision="patches",
    )
    return figure
