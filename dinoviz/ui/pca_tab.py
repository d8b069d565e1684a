"""The Patch PCA tab: what differs between the patches of one picture, or of several together."""

from __future__ import annotations

import html
import io
from collections.abc import Hashable, Iterator, Sequence

import gradio as gr
import numpy as np
import plotly.graph_objects as go
from PIL import Image

from dinoviz import pca, render
from dinoviz.errors import DinovizError, Stopped
from dinoviz.ui.bar import Bar
from dinoviz.ui.parts import bundle, colour_bar, download, follow, note, through, told, view_image
from dinoviz.ui.workbench import Look, Workbench

RGB, SCORE = "three components as RGB", "foreground evidence"
COMPONENTS = 10
MAX_PICTURES = 24
SCATTER_POINTS = 3000  # more make turning the figure slow


def build(bench: Workbench, bar: Bar) -> None:
    """Lay out the tab and wire it."""
    with gr.Row():
        main = view_image("The same colour, the same kind of patch", "pca-map")
        with gr.Column(min_width=300):
            gr.HTML('<div class="dv-title-of">Every patch in the three components: turn it</div>', padding=False)
            scatter = gr.Plot(show_label=False, elem_id="pca-scatter")
    caption = gr.HTML(note("Waiting for the picture …"), elem_id="pca-caption")
    with gr.Row():
        with gr.Column(min_width=260):
            layer = gr.Slider(1, 12, value=12, step=1, label="Layer", elem_id="pca-layer")
            shown = gr.Dropdown(_choices(), value=RGB, label="Map", elem_id="pca-shown")
        with gr.Column(min_width=260):
            with gr.Row():
                red, green, blue = (
                    gr.Dropdown(
                        list(range(1, COMPONENTS + 1)), value=i + 1, label=name, elem_id=f"pca-{name}", min_width=70
                    )
                    for i, name in enumerate(("red", "green", "blue"))
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
                label="More pictures, in one joint basis with the first", file_count="multiple", height=150,
                elem_id="pca-others",
            )  # fmt: skip
            with gr.Row():
                keep = gr.Button("Keep the picture above", size="sm", elem_id="pca-keep")
                stop_button = gr.Button("Stop", size="sm", elem_id="pca-stop", visible=False)
        variance = gr.Plot(show_label=False, elem_id="pca-variance")
    joint = gr.Gallery(
        label="All pictures, the same colours for the same features", elem_id="pca-joint", format="jpeg", columns=4,
        height="auto", object_fit="contain", visible=False, buttons=["fullscreen"],
    )  # fmt: skip
    file_button, file, press = download("pca-file")
    seen = gr.State(12)  # the number of layers that the slider was last set for

    style = [shown, opacity, raw]  # these leave the basis, and so the figures, alone
    options = [layer, shown, red, green, blue, foreground, by_itself, threshold, opacity, raw]
    outputs = [main, joint, scatter, variance, threshold, caption]
    inputs = [*bar.inputs, others, *options]

    def show_pca(
        image: str, model: str, resolution: int, others: list[str] | None, layer: int, shown: str, red: int, green: int,
        blue: int, foreground: bool, by_itself: bool, threshold: float, opacity: float, raw: bool,
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
            looks, refused = _looks(bench, [image, *(others or [])], model, resolution)
            return _draw(
                bench, looks, refused, layer, shown, (red, green, blue), foreground, by_itself, threshold, opacity, raw
            )

    def download_pca(
        image: str, model: str, resolution: int, others: list[str] | None, layer: int, shown: str, red: int, green: int,
        blue: int, foreground: bool, by_itself: bool, threshold: float, opacity: float, raw: bool,
    ) -> str:  # fmt: skip
        """Get the patch PCA as a zip: pictures at full size, the coordinates as .npz, and what they mean as JSON.

        Args: as for the patch_pca endpoint.
        Returns:
            the zip
        """
        with told():
            looks, _ = _looks(bench, [image, *(others or [])], model, resolution)
            return _file(bench, looks, layer, shown, (red, green, blue), foreground, by_itself, threshold, opacity, raw)

    def encode_others(ready: Hashable, image, model, resolution, others, request: gr.Request) -> Iterator[tuple]:
        """Encode the pictures of the joint basis with progress, so that drawing them is instant."""
        if ready is None or not others:
            return
        owner = (request.session_hash, "pca")
        readable = [path for path in others if _is_readable(bench, path)]
        job = bench.start_encode(owner, readable, model, resolution)
        for sentence in follow(bench, owner, job):
            yield note(html.escape(sentence), "caption dv-busy"), gr.Button(visible=True)
        try:
            job.result()
            yield gr.skip(), gr.Button(visible=False)
        except Stopped:
            if not job.superseded:
                yield note("Stopped. Change the pictures to begin again."), gr.Button(visible=False)
            raise gr.Error("Stopped.", print_exception=False, visible=False) from None
        except DinovizError as error:
            yield note(html.escape(str(error)), "error"), gr.Button(visible=False)
            raise gr.Error(str(error), print_exception=False, visible=False) from None

    def refresh(ready: Hashable, seen: int, image, model, resolution, others, layer, shown, red, green, blue, *rest):
        if ready is None:
            empty = note("There is nothing to see until a picture is encoded.")
            return gr.skip(), gr.skip(), None, None, None, None, gr.skip(), empty
        with told():
            looks, refused = _looks(bench, [image, *(others or [])], model, resolution)
            layers = looks[0].backbone.layers
            layer = layer if seen == layers else layers
            slider = gr.Slider(maximum=layers, value=layer)
            return layers, slider, *_draw(bench, looks, refused, layer, shown, (red, green, blue), *rest)

    def restyle(*values):
        main, joint, _, _, _, caption = show_pca(*values)
        return main, joint, caption

    def show_joint(others: list[str] | None):
        return gr.Gallery(visible=bool(others))

    def lock_threshold(foreground: bool, by_itself: bool):
        return gr.Slider(interactive=foreground and not by_itself)

    def keep_picture(image: str | None, others: list[str] | None) -> list[str] | None:
        return [*(others or []), image] if image and image not in (others or []) else others

    def stop(request: gr.Request) -> None:
        bench.stop((request.session_hash, "pca"))

    quiet = {"show_progress": "hidden", "concurrency_limit": 8}
    private = {**quiet, "api_visibility": "private"}
    gr.on([bar.ready.change, others.change], encode_others, [bar.ready, *bar.inputs, others], [caption, stop_button],
          trigger_mode="multiple", **{**private, "concurrency_limit": None}).success(
        refresh, [bar.ready, seen, *inputs], [seen, layer, *outputs], **private
    )  # fmt: skip
    gr.on(
        [option.input for option in options if option not in style], show_pca, inputs, outputs, api_name="patch_pca",
        trigger_mode="always_last", **quiet,
    )  # fmt: skip
    gr.on(
        [option.input for option in style], restyle, inputs, [main, joint, caption],
        trigger_mode="always_last", **private,
    )  # fmt: skip
    others.change(show_joint, others, joint, **private)
    gr.on([foreground.input, by_itself.input], lock_threshold, [foreground, by_itself], threshold, **private)
    keep.click(keep_picture, [bar.image, others], others, **private)
    stop_button.click(stop, api_visibility="private", queue=False, show_progress="hidden")
    file_button.click(download_pca, inputs, file, api_name="pca_download", concurrency_limit=2).success(None, js=press)


def _choices() -> list[str]:
    return [RGB, *(f"component {i + 1}" for i in range(COMPONENTS)), SCORE]


def _is_readable(bench: Workbench, path: str) -> bool:
    try:
        bench.picture(path)
    except DinovizError:
        return False
    return True


def _looks(bench: Workbench, paths: Sequence[str], model: str, resolution: int) -> tuple[list[Look], list[str]]:
    """Looks at all pictures that can be read, and sentences on those that cannot; the first one must be readable."""
    if len(paths) > MAX_PICTURES:
        raise DinovizError(f"One joint basis takes at most {MAX_PICTURES} pictures, not {len(paths)}.")
    looks, refused = [bench.look(paths[0], model, resolution)], []
    for path in paths[1:]:
        try:
            looks.append(bench.look(path, model, resolution))
        except DinovizError as error:
            refused.append(str(error))
    return looks, refused


def _fit(bench: Workbench, looks: list[Look], layer: int, foreground: bool, threshold: float | None) -> pca.PatchPCA:
    def make() -> pca.PatchPCA:
        features = [look.features for look in looks]
        return pca.fit(features, components=COMPONENTS, layer=layer - 1, foreground=foreground, threshold=threshold)

    key = ("pca", tuple(look.key for look in looks), layer, foreground, threshold if foreground else None)
    return bench.derived(key, make)


def _maps(fitted: pca.PatchPCA, shown: str, rgb: Sequence[int]) -> list[np.ndarray]:
    """Per picture (h, w, 3) colours, or (h, w) numbers in [0, 1]."""
    if shown == SCORE:
        return fitted.score
    if shown == RGB:
        return fitted.colours([component - 1 for component in rgb])
    number = shown.removeprefix("component ")
    if not number.isdigit():
        raise DinovizError(f"There is no map {shown!r}; there are {', '.join(_choices())}.")
    return fitted.component(int(number) - 1)


def _draw(bench, looks, refused, layer, shown, rgb, foreground, by_itself, threshold, opacity, raw) -> tuple:
    """Map of the first picture, gallery of all, scatter, variance, threshold, caption."""
    fitted = _fit(bench, looks, layer, foreground, None if by_itself else threshold)
    maps = _maps(fitted, shown, rgb)
    style = {"opacity": opacity, "raw": raw, "colormap": "viridis", "scale": (0, 1)}
    pictures = [
        render.map_picture(look.picture.shown, look.features.grid, values, **style)
        for look, values in zip(looks, maps, strict=True)
    ]
    gallery = [(picture, look.picture.name) for picture, look in zip(pictures, looks, strict=True)]
    text = _caption(looks, fitted, layer, shown, rgb, foreground) + "".join(
        f'<br><span class="dv-error">{html.escape(sentence)}</span>' for sentence in refused
    )
    return (
        pictures[0],
        gallery,
        _scatter(looks, fitted, rgb),
        render.variance_figure(fitted.explained),
        slider,
        note(text),
    )


def _scatter(looks: list[Look], fitted: pca.PatchPCA, rgb: Sequence[int]):
    axes = [component - 1 for component in rgb]
    kept = fitted.foreground
    points = np.concatenate([c[k][:, axes] for c, k in zip(fitted.coordinates, kept, strict=True)])
    colours = np.concatenate([c[k] for c, k in zip(fitted.colours(axes), kept, strict=True)])
    hover = [
        f"{html.escape(look.picture.name)}, row {row + 1}, column {column + 1}"
        for look, k in zip(looks, kept, strict=True)
        for row, column in np.argwhere(k)
    ]
    chosen = np.linspace(0, len(points) - 1, min(SCATTER_POINTS, len(points))).round().astype(int)
    return render.scatter_figure(points[chosen], colours[chosen], axes, [hover[i] for i in chosen])


def _caption(looks, fitted, layer, shown, rgb, foreground) -> str:
    share = np.concatenate([k.ravel() for k in fitted.foreground]).mean()
    basis = f"joint basis of {len(looks)} pictures" if len(looks) > 1 else "basis of this picture alone"
    what = f"{through(looks[0], layer)} · {basis}"
    if foreground:
        what += f", fitted on the foreground: {share:.0%} of the patches, evidence above {fitted.threshold:.2f}"
    if shown == RGB:
        parts = [f"{name} component {c}" for name, c in zip(("red", "green", "blue"), rgb, strict=True)]
        variance = sum(fitted.explained[c - 1] for c in set(rgb) if c <= len(fitted.explained))
        return f"{what}<br>{', '.join(parts)}: {variance:.0%} of the variance; black is background"
    return f"{what}<br>{colour_bar((0, 1), 'viridis', html.escape(shown))}"


def _file(bench, looks, layer, shown, rgb, foreground, by_itself, threshold, opacity, raw) -> str:
    fitted = _fit(bench, looks, layer, foreground, None if by_itself else threshold)
    style = {"opacity": opacity, "raw": raw, "colormap": "viridis", "scale": (0, 1)}
    files, arrays = {}, {"explained": fitted.explained}
    for i, (look, values) in enumerate(zip(looks, _maps(fitted, shown, rgb), strict=True)):
        picture = render.map_picture(look.picture.image, look.features.grid, values, **style)
        files[f"{i + 1:02d}-pca.png"] = render.to_png(picture)
        arrays |= {
            f"coordinates_{i + 1:02d}": fitted.coordinates[i],
            f"foreground_{i + 1:02d}": fitted.foreground[i],
            f"score_{i + 1:02d}": fitted.score[i],
        }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    about = {
        "view": "patch PCA",
        "pictures": [look.about() for look in looks],
        "layer": layer,
        "map": shown,
        "components_as_rgb": list(rgb),
        "foreground_only": foreground,
        "foreground_threshold": fitted.threshold,
        "arrays": {
            "coordinates_NN": "(h, w, components) of picture NN",
            "foreground_NN": "(h, w) bool, the patches that the basis was fitted on",
            "score_NN": "(h, w), evidence for foreground in [0, 1]",
            "explained": "(components,) share of variance",
        },
    }
    return bundle("patch-pca", {**files, "pca.npz": buffer.getvalue()}, about)
