"""The Patch PCA tab: what differs between the patches of one picture, or of several together."""

from __future__ import annotations

import html
import io
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass

import gradio as gr
import numpy as np
import plotly.graph_objects as go
from PIL import Image

from dinoviz import figures, pca, render
from dinoviz.errors import DinovizError
from dinoviz.ui.image_bar import Bar
from dinoviz.ui.shared import (
    DRAWING,
    EMPTY,
    ONCE,
    PRIVATE,
    WAITING,
    api_only,
    bundle,
    colour_bar,
    download,
    encoded,
    follow,
    jpeg_file,
    note,
    stop_shown,
    through,
    told,
    view_image,
)
from dinoviz.ui.workbench import Look, Workbench

RGB, SCORE = "three components as RGB", "foreground evidence"
COMPONENTS = 10
MAX_PICTURES = 24
SCATTER_POINTS = 3000  # more make turning the figure slow
NOTHING_YET = None, 12, None, None


def build(bench: Workbench, bar: Bar, here: gr.State) -> None:
    """Lay out the tab and wire it. here: whether it is open."""
    with gr.Row():
        main = view_image("The same colour, the same kind of patch", "pca-map")
        with gr.Column(min_width=300):
            gr.HTML('<div class="dv-title-of">Every patch in the three components: turn it</div>', padding=False)
            scatter = gr.Plot(show_label=False, elem_id="pca-scatter")
    caption = gr.HTML(note("Waiting for the picture …"), label="caption", elem_id="pca-caption")
    with gr.Row():
        with gr.Column(min_width=260):
            layer = gr.Slider(1, 12, value=12, step=1, label="Layer", elem_id="pca-layer")
            shown = gr.Dropdown(_choices(), value=RGB, label="Map", elem_id="pca-shown")
        with gr.Column(min_width=260):
            with gr.Row():
                red, green, blue = (
                    gr.Dropdown(
                        [str(number) for number in range(1, COMPONENTS + 1)],
                        value=str(i + 1),
                        label=name,
                        elem_id=f"pca-{name}",
                        min_width=70,
                    )
                    for i, name in enumerate(("red", "green", "blue"))
                )
            steady = gr.Checkbox(
                True,
                label="Steady colours",
                info="the three components are turned to follow the picture; off: exactly red, green, blue",
                elem_id="pca-steady",
            )
            with gr.Row():
                raw = gr.Checkbox(False, label="Raw patch grid", elem_id="pca-raw", min_width=130)
                opacity = gr.Slider(0, 1, value=1, step=0.05, label="Opacity", elem_id="pca-opacity", min_width=140)
        with gr.Column(min_width=260):
            with gr.Row():
                foreground = gr.Checkbox(True, label="Foreground only", elem_id="pca-foreground", min_width=130)
                by_itself = gr.Checkbox(True, label="Find the threshold", elem_id="pca-auto", min_width=130)
            threshold = gr.Slider(
                0, 1, value=0.5, step=0.01, label="Foreground threshold", elem_id="pca-threshold", interactive=False
            )
    with gr.Row():
        with gr.Column(min_width=260):
            others = gr.File(
                label="More pictures, in one joint basis with the first", file_count="multiple", height=150, value=[],
                elem_id="pca-others",
            )  # fmt: skip
            with gr.Row():
                keep = gr.Button("Keep the picture above", size="sm", elem_id="pca-keep")
                stop_button = gr.Button("Stop", size="sm", elem_id="pca-stop", visible=False)
        variance = gr.Plot(show_label=False, elem_id="pca-variance")
    joint = gr.Gallery(
        label="All pictures, the same colours for the same features", elem_id="pca-joint", columns=4,
        height="auto", object_fit="contain", visible=False, buttons=["fullscreen"],
    )  # fmt: skip
    file_button, file, press = download("pca-file")
    with bar.unseen:
        seen = gr.State(NOTHING_YET)  # what is drawn: look, number of its layers, what decides the figures, the rest
        lacking = gr.State(None)  # which pictures have to be encoded before the joint basis can be drawn
        tried = gr.State(None)  # the last of these that were: what is missing now is not to be had
        prepared = gr.State(None)  # changes when they are encoded

    options = [layer, shown, red, green, blue, steady, foreground, by_itself, threshold, opacity, raw]
    outputs = [main, joint, scatter, variance, threshold, caption]
    inputs = [*bar.inputs, others, *options]

    def show_pca(
        image: str, model: str, resolution: str, others: list[str] | None, layer: int, shown: str, red: str, green: str,
        blue: str, steady: bool, foreground: bool, by_itself: bool, threshold: float, opacity: float, raw: bool,
    ) -> tuple[Image.Image, list, go.Figure, go.Figure, float, str]:  # fmt: skip
        """See the principal components of the patches, of one picture or of several in one joint basis.

        Args:
            image: the picture
            model: a name from the list
            resolution: the short side in model pixels
            others: more pictures for the joint basis
            layer: from 1
            shown: 'three components as RGB', 'component 1' to 'component 10', or 'foreground evidence'
            red: the component shown as red, from 1
            green: the component shown as green
            blue: the component shown as blue
            steady: turn the three components among themselves so that colours stay put; else exactly red, green, blue
            foreground: fit and colour foreground patches only
            by_itself: decide the foreground threshold from the data
            threshold: the foreground threshold otherwise, 0 to 1
            opacity: of the map over the picture, 0 to 1
            raw: one flat square a patch instead of interpolation
        Returns:
            the map of the picture, those of all pictures, the patches in three components, the explained variance,
            the threshold, and what one looks through
        """
        with told():
            looks, refused, _ = _looks(bench, bench.look, [image, *(others or [])], model, resolution)
            choice = _Choice(layer, shown, red, green, blue, steady, foreground, by_itself, threshold, opacity, raw)
            return _draw(bench, looks, refused, choice)

    def download_pca(
        image: str, model: str, resolution: str, others: list[str] | None, layer: int, shown: str, red: str, green: str,
        blue: str, steady: bool, foreground: bool, by_itself: bool, threshold: float, opacity: float, raw: bool,
    ) -> str:  # fmt: skip
        """Get the patch PCA as a zip: pictures at full size, the coordinates as .npz, and what they mean as JSON.

        Args: as for the patch_pca endpoint.
        Returns:
            the zip
        """
        with told():
            looks, *_ = _looks(bench, bench.look, [image, *(others or [])], model, resolution)
            choice = _Choice(layer, shown, red, green, blue, steady, foreground, by_itself, threshold, opacity, raw)
            return _file(bench, looks, choice)

    def prepare(lacking: tuple | None, request: gr.Request) -> Iterator[tuple]:
        """Encode the pictures of the joint basis with progress, so that drawing them is instant."""
        owner = (request.session_hash, "pca")
        if lacking is None:
            bench.stop(owner, superseded=True)
            yield gr.skip(), stop_shown(False), gr.skip(), gr.skip()
            return
        others, model, resolution = lacking
        job = bench.start_encode(owner, others, model, resolution, skip_bad=True)  # drawing names the bad ones
        for sentence in follow(bench, owner, job):
            yield note(html.escape(sentence), "caption dv-busy"), stop_shown(True), gr.skip(), gr.skip()
        if job.superseded:
            return
        if job.stopped:
            yield note("Stopped. Change the pictures to begin again."), stop_shown(False), lacking, gr.skip()
            return
        with told():
            job.result()
        yield gr.skip(), stop_shown(False), lacking, time.monotonic()

    def draw_all(
        here: bool, ready: Hashable, seen: tuple, tried: tuple | None, request: gr.Request, image, model, resolution,
        others, layer, *rest,
    ):  # fmt: skip
        """What the controls say. All of them come here, one after the other: an older answer never comes last."""
        if not here and seen[0] in (None, ready):
            return gr.skip()
        if not here or ready is None:
            empty = note(EMPTY if here else DRAWING)
            return (None, seen[1], None, None), None, gr.skip(), None, None, None, None, gr.skip(), empty
        look = encoded(bench, image, model, resolution, request)
        if look is None:
            return gr.skip()
        with told():
            looks, refused, missing = _looks(bench, bench.peek, [image, *(others or [])], model, resolution)
            wanted = tuple(others or []), model, resolution
            if missing and tried != wanted:
                return (*seen[:3], None), wanted, *[gr.skip()] * 7  # the caption will say how far that is
            layers = look.backbone.layers
            layer = layer if seen[1] == layers else layers
            choice = _Choice(layer, *rest)
            now = look.key, layers, (tuple(each.key for each in looks), choice.basis), (refused, choice.style)
            if now == seen:
                return gr.skip()
            slider = gr.skip() if seen[1] == layers else gr.Slider(maximum=layers, value=layer)
            picture, gallery, *figures, threshold, said = _draw(bench, looks, refused, choice)
            gallery = gr.Gallery(gallery, visible=bool(others))
            if now[2] == seen[2]:
                figures = [gr.skip()] * len(figures)
            threshold = threshold if choice.by_itself else gr.skip()  # it may be on the move
            return now, None, slider, picture, gallery, *figures, threshold, said

    def lock_threshold(foreground: bool, by_itself: bool):
        return gr.Slider(interactive=foreground and not by_itself)

    def keep_picture(image: str | None, others: list[str] | None) -> list[str] | None:
        return [*(others or []), image] if image and image not in (others or []) else others

    def stop(request: gr.Request) -> None:
        bench.stop((request.session_hash, "pca"))

    changes = [part.change for part in (bar.ended, here, others, prepared)]
    gr.on(
        [*changes, *(option.input for option in options)], draw_all, [here, bar.ready, seen, tried, *inputs],
        [seen, lacking, layer, *outputs], **PRIVATE,
    )  # fmt: skip
    lacking.change(prepare, lacking, [caption, stop_button, tried, prepared], **WAITING)
    api_only().click(show_pca, inputs, outputs, api_name="patch_pca", concurrency_limit=2)
    gr.on([foreground.input, by_itself.input], lock_threshold, [foreground, by_itself], threshold, **PRIVATE)
    keep.click(keep_picture, [bar.image, others], others, **PRIVATE)
    stop_button.click(stop, queue=False, **ONCE)
    file_button.click(
        download_pca, inputs, file, api_name="pca_download", concurrency_limit=2,
        show_progress="full", show_progress_on=caption,
    ).success(None, js=press)  # fmt: skip


def _choices() -> list[str]:
    return [RGB, *(f"component {i + 1}" for i in range(COMPONENTS)), SCORE]


@dataclass(frozen=True)
class _Choice:
    """What the controls say, in their order; layer and components from 1."""

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
        """From 0, as `pca` counts."""
        return [int(number) - 1 for number in (self.red, self.green, self.blue)]

    @property
    def basis(self) -> tuple:
        """What decides the figures."""
        return self.layer, *self.components, self.steady, *self.cut.values()

    @property
    def cut(self) -> dict:
        """What is foreground, for `pca.fit`."""
        return {"foreground": self.foreground, "threshold": None if self.by_itself else self.threshold}

    @property
    def style(self) -> tuple:
        """What decides how the map is shown."""
        return self.shown, self.opacity, self.raw

    @property
    def drawing(self) -> dict:
        """For `render.map_picture`."""
        return {"opacity": self.opacity, "raw": self.raw, "colormap": "viridis", "scale": (0, 1)}


def _looks(
    bench: Workbench,
    look_at: Callable[[str, str, str], Look | None],
    paths: Sequence[str],
    model: str,
    resolution: str,
) -> tuple[list[Look], list[str], list[str]]:
    """Looks at all pictures that can be looked at, sentences on those that cannot, files that are not encoded.

    The first picture must be there. look_at: `Workbench.look`, which encodes what is not encoded yet, or
    `Workbench.peek`, which does not.
    """
    if len(paths) > MAX_PICTURES:
        raise DinovizError(f"One joint basis takes at most {MAX_PICTURES} pictures, not {len(paths)}.")
    looks, refused, missing = [look_at(paths[0], model, resolution)], [], []
    held, most = len(paths) * looks[0].features.nbytes, bench.settings.cache_bytes
    if len(paths) > 1 and held > most:  # all are needed at once
        raise DinovizError(
            f"{len(paths)} pictures at {resolution} px take about {held / 2**30:.1f} GB of memory, more than the "
            f"{most / 2**30:.1f} GB that features may take here: choose fewer, or a lower resolution."
        )
    for path in paths[1:]:
        try:
            look = look_at(path, model, resolution)
            if look:
                looks.append(look)
            else:
                refused.append(f"{bench.picture(path).name} is not encoded yet.")
                missing.append(path)
        except DinovizError as error:
            refused.append(str(error))
    return looks, refused, missing


def _fit(bench: Workbench, looks: list[Look], choice: _Choice) -> pca.PatchPCA:
    def make() -> pca.PatchPCA:
        features = [look.features for look in looks]
        return pca.fit(features, components=COMPONENTS, layer=choice.layer - 1, **choice.cut)

    return bench.derived(("pca", tuple(look.key for look in looks), choice.layer, *choice.cut.values()), make)


def _maps(fitted: pca.PatchPCA, choice: _Choice) -> list[np.ndarray]:
    """Per picture (h, w, 3) colours, or (h, w) numbers in [0, 1]."""
    if choice.shown == SCORE:
        return fitted.score
    if choice.shown == RGB:
        return fitted.colours(choice.components, turned=choice.steady)
    number = choice.shown.removeprefix("component ")
    if not number.isdigit():
        raise DinovizError(f"There is no map {choice.shown!r}; there are {', '.join(_choices())}.")
    return fitted.component(int(number) - 1)


def _draw(bench: Workbench, looks: list[Look], refused: list[str], choice: _Choice) -> tuple:
    """Map of the first picture, gallery of all, scatter, variance, threshold, caption."""
    fitted = _fit(bench, looks, choice)
    pictures = [
        render.map_picture(look.picture.shown, look.features.grid, values, **choice.drawing)
        for look, values in zip(looks, _maps(fitted, choice), strict=True)
    ]
    gallery = [(jpeg_file(picture), look.picture.name) for picture, look in zip(pictures, looks, strict=True)]
    bad = "".join(f'<br><span class="dv-error">{html.escape(sentence)}</span>' for sentence in refused)
    return (
        pictures[0],
        gallery,
        _scatter(looks, fitted, choice),
        figures.variance_figure(fitted.explained),
        round(fitted.threshold, 2),
        note(_caption(looks, fitted, choice) + bad),
    )


def _scatter(looks: list[Look], fitted: pca.PatchPCA, choice: _Choice) -> go.Figure:
    axes, kept = choice.components, fitted.foreground
    points = np.concatenate([c[k][:, axes] for c, k in zip(fitted.coordinates, kept, strict=True)])
    colours = fitted.colours(axes, turned=choice.steady)
    colours = np.concatenate([c[k] for c, k in zip(colours, kept, strict=True)])
    where = [(i, row, column) for i, k in enumerate(kept) for row, column in np.argwhere(k)]
    drawn = np.linspace(0, len(points) - 1, min(SCATTER_POINTS, len(points))).round().astype(int)
    hover = [
        f"{html.escape(looks[i].picture.name)}, row {row + 1}, column {column + 1}"
        for i, row, column in (where[n] for n in drawn)
    ]
    return figures.scatter_figure(points[drawn], colours[drawn], axes, hover)


def _caption(looks: list[Look], fitted: pca.PatchPCA, choice: _Choice) -> str:
    basis = f"joint basis of {len(looks)} pictures" if len(looks) > 1 else "basis of this picture alone"
    text = f"{through(looks[0], choice.layer)} · {basis}"
    if choice.foreground:
        kept = np.concatenate([k.ravel() for k in fitted.foreground])
        text += f", fitted on the foreground: {kept.sum():,} patches ({kept.mean():.0%}), "
        text += f"evidence of {fitted.threshold:.2f} and more"
    if choice.shown != RGB:
        meaning = choice.shown
        if meaning != SCORE:
            meaning += ": its z-score on the foreground through a sigmoid, 0.5 is the mean"
        return f"{text}<br>{colour_bar((0, 1), 'viridis', meaning)}"
    rgb = choice.red, choice.green, choice.blue
    variance = sum(fitted.explained[c] for c in set(choice.components) if c < len(fitted.explained))
    if choice.steady:
        parts = "components {}, {} and {}, turned among themselves so that colours stay put".format(*rgb)
    else:
        parts = "red component {}, green component {}, blue component {}".format(*rgb)
    black = "; black is background" if choice.foreground else ""
    return f"{text}<br>{parts}: {variance:.0%} of the variance{black}"


def _file(bench: Workbench, looks: list[Look], choice: _Choice) -> str:
    fitted = _fit(bench, looks, choice)
    files, arrays = {}, {"explained": fitted.explained}
    for i, (look, values) in enumerate(zip(looks, _maps(fitted, choice), strict=True)):
        number = f"{i + 1:02d}"
        picture = render.map_picture(look.picture.image, look.features.grid, values, **choice.drawing)
        files[f"{number}-pca.png"] = render.to_png(picture)
        arrays[f"coordinates_{number}"] = fitted.coordinates[i]
        arrays[f"foreground_{number}"] = fitted.foreground[i]
        arrays[f"score_{number}"] = fitted.score[i]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    about = {
        "view": "patch PCA",
        "pictures": [look.about() for look in looks],
        **asdict(choice),
        "foreground_threshold": fitted.threshold,
        "arrays": {
            "coordinates_NN": "(h, w, components) of picture NN",
            "foreground_NN": "(h, w) bool, the patches that the basis was fitted on",
            "score_NN": "(h, w), evidence for foreground in [0, 1]",
            "explained": "(components,) share of variance",
        },
    }
    return bundle("patch-pca", {**files, "pca.npz": buffer.getvalue()}, about)
