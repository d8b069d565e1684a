"""The Patch PCA tab's maps, figures, captions and files."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import plotly.graph_objects as go

from dinoviz import figures, pca, render
from dinoviz.errors import DinovizError
from dinoviz.ui.shared import bundle, colour_bar, jpeg_file, model_caption, note
from dinoviz.ui.workbench import Look, Workbench

COMPONENTS = 10
RGB, SCORE = "three components as RGB", "foreground evidence"  # as the API calls them
MAPS = (RGB, *(f"component {i + 1}" for i in range(COMPONENTS)), SCORE)
MAX_PICTURES = 24
SCATTER_POINTS = 3000  # more make turning the figure slow


@dataclass(frozen=True)
class ViewSettings:
    """The values of the tab's controls, in the order of the API's parameters; layer and components from 1.

    shown: one of `MAPS`. steady: rotate the three components so that colours are stable across pictures. foreground:
    fit and colour foreground patches only. by_itself: compute the foreground threshold from the data.
    """

    layer: int
    shown: str
    red: str
    green: str
    blue: str
    steady: bool
    foreground: bool
    by_itself: bool
    threshold: float
    opacity: float
    raw: bool

    @property
    def components(self) -> list[int]:
        """Of the three channels, from 0 as in `pca`."""
        return [int(number) - 1 for number in (self.red, self.green, self.blue)]

    @property
    def fit(self) -> dict:
        """Options for `pca.fit`."""
        return {"foreground": self.foreground, "threshold": None if self.by_itself else self.threshold}

    @property
    def figures_key(self) -> tuple:
        """What the figures depend on."""
        return self.layer, *self.components, self.steady, *self.fit.values()

    @property
    def maps_key(self) -> tuple:
        """What the maps depend on, beside `figures_key`."""
        return self.shown, self.opacity, self.raw

    @property
    def style(self) -> dict:
        """Options for `render.map_picture`."""
        return {"opacity": self.opacity, "raw": self.raw, "colormap": "viridis", "scale": (0, 1)}


@dataclass(frozen=True, eq=False)
class Looks:
    """The pictures of a joint basis. errors: one message for each left out. missing: files not yet encoded."""

    looks: list[Look]
    errors: list[str]
    missing: list[str]


def open_looks(
    bench: Workbench,
    open_look: Callable[[str, str, str], Look | None],
    paths: Sequence[str],
    model: str,
    resolution: str,
) -> Looks:
    """The looks at several pictures.

    Args:
        open_look: `Workbench.look`, which encodes what is not encoded yet, or `Workbench.peek`, which does not
        paths: the first picture must be encoded already if `peek` is to open it
    Raises:
        DinovizError: for too many pictures, or more than fit into memory together
    """
    if len(paths) > MAX_PICTURES:
        raise DinovizError(f"{len(paths)} pictures: a joint basis takes at most {MAX_PICTURES}.")
    found = Looks([open_look(paths[0], model, resolution)], [], [])
    needed, allowed = len(paths) * found.looks[0].features.nbytes, bench.settings.cache_bytes
    if len(paths) > 1 and needed > allowed:  # all are needed at once
        raise DinovizError(
            f"{len(paths)} pictures at {resolution} px take about {needed / 2**30:.1f} GB of memory, more than the "
            f"{allowed / 2**30:.1f} GB that the feature cache holds: choose fewer, or a lower resolution."
        )
    for path in paths[1:]:
        try:
            look = open_look(path, model, resolution)
            if look:
                found.looks.append(look)
            else:
                found.errors.append(f"{bench.picture(path).name} is not encoded yet.")
                found.missing.append(path)
        except DinovizError as error:
            found.errors.append(str(error))
    return found


def draw(bench: Workbench, looks: list[Look], errors: list[str], settings: ViewSettings) -> tuple:
    """Map of the first picture, gallery of all, scatter plot, explained variance, threshold, caption."""
    fitted = _fit(bench, looks, settings)
    pictures = [
        render.map_picture(look.picture.shown, look.features.grid, values, **settings.style)
        for look, values in zip(looks, _maps(fitted, settings), strict=True)
    ]
    gallery = [(jpeg_file(picture), look.picture.name) for picture, look in zip(pictures, looks, strict=True)]
    left_out = "".join(f'<br><span class="dv-error">{html.escape(error)}</span>' for error in errors)
    return (
        pictures[0],
        gallery,
        _scatter(looks, fitted, settings),
        figures.variance_figure(fitted.explained),
        round(fitted.threshold, 2),
        note(_caption(looks, fitted, settings) + left_out),
    )


def file(bench: Workbench, looks: list[Look], settings: ViewSettings) -> str:
    """A zip of the maps at the pictures' own size, the arrays and about.json -> its path."""
    fitted = _fit(bench, looks, settings)
    files, arrays = {}, {"explained": fitted.explained}
    for i, (look, values) in enumerate(zip(looks, _maps(fitted, settings), strict=True)):
        number = f"{i + 1:02d}"
        picture = render.map_picture(look.picture.image, look.features.grid, values, **settings.style)
        files[f"{number}-pca.png"] = render.to_png(picture)
        arrays[f"coordinates_{number}"] = fitted.coordinates[i]
        arrays[f"foreground_{number}"] = fitted.foreground[i]
        arrays[f"score_{number}"] = fitted.score[i]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    about = {
        "view": "patch PCA",
        "pictures": [look.about() for look in looks],
        **asdict(settings),
        "foreground_threshold": fitted.threshold,
        "arrays": {
            "coordinates_NN": "(h, w, components) of picture NN",
            "foreground_NN": "(h, w) bool, the patches that the basis was fitted on",
            "score_NN": "(h, w), foreground score in [0, 1]",
            "explained": "(components,) share of variance",
        },
    }
    return bundle("patch-pca", {**files, "pca.npz": buffer.getvalue()}, about)


def _fit(bench: Workbench, looks: list[Look], settings: ViewSettings) -> pca.PatchPCA:
    def make() -> pca.PatchPCA:
        features = [look.features for look in looks]
        return pca.fit(features, components=COMPONENTS, layer=settings.layer - 1, **settings.fit)

    return bench.derived(("pca", tuple(look.key for look in looks), settings.layer, *settings.fit.values()), make)


def _maps(fitted: pca.PatchPCA, settings: ViewSettings) -> list[np.ndarray]:
    """Per picture (h, w, 3) colours, or (h, w) numbers in [0, 1]."""
    if settings.shown == SCORE:
        return fitted.score
    if settings.shown == RGB:
        return fitted.colours(settings.components, turned=settings.steady)
    if settings.shown not in MAPS:
        raise DinovizError(f"map {settings.shown!r}: choose {', '.join(MAPS)}.")
    return fitted.component(int(settings.shown.removeprefix("component ")) - 1)


def _scatter(looks: list[Look], fitted: pca.PatchPCA, settings: ViewSettings) -> go.Figure:
    axes, kept = settings.components, fitted.foreground
    points = np.concatenate([c[k][:, axes] for c, k in zip(fitted.coordinates, kept, strict=True)])
    colours = fitted.colours(axes, turned=settings.steady)
    colours = np.concatenate([c[k] for c, k in zip(colours, kept, strict=True)])
    where = [(i, row, column) for i, k in enumerate(kept) for row, column in np.argwhere(k)]
    drawn = np.linspace(0, len(points) - 1, min(SCATTER_POINTS, len(points))).round().astype(int)
    hover = [
        f"{html.escape(looks[i].picture.name)}, row {row + 1}, column {column + 1}"
        for i, row, column in (where[n] for n in drawn)
    ]
    return figures.scatter_figure(points[drawn], colours[drawn], axes, hover)


def _caption(looks: list[Look], fitted: pca.PatchPCA, settings: ViewSettings) -> str:
    basis = f"joint basis of {len(looks)} pictures" if len(looks) > 1 else "basis of this picture"
    text = f"{model_caption(looks[0], settings.layer)} · {basis}"
    if settings.foreground:
        kept = np.concatenate([k.ravel() for k in fitted.foreground])
        text += f", fitted on the foreground: {kept.sum():,} patches ({kept.mean():.0%}) "
        text += f"with a score of at least {fitted.threshold:.2f}"
    if settings.shown != RGB:
        meaning = "foreground score"
        if settings.shown != SCORE:
            meaning = f"{settings.shown}: sigmoid of its z-score over the foreground, 0.5 is the mean"
        return f"{text}<br>{colour_bar((0, 1), 'viridis', meaning)}"
    rgb = settings.red, settings.green, settings.blue
    variance = sum(fitted.explained[c] for c in set(settings.components) if c < len(fitted.explained))
    if settings.steady:
        parts = "components {}, {} and {}, rotated so that colours are stable across pictures".format(*rgb)
    else:
        parts = "red component {}, green component {}, blue component {}".format(*rgb)
    black = "; black is background" if settings.foreground else ""
    return f"{text}<br>{parts}: {variance:.0%} of the variance{black}"
