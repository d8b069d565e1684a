"""The Attention tab: click a patch and see where it looks, in every head and layer."""

from __future__ import annotations

import html
import io
import time
from collections.abc import Hashable, Iterator

import gradio as gr
import numpy as np
from PIL import Image

from dinoviz import attention, figures, models, render
from dinoviz.attention import MEAN, NORMS, ROLLOUT, map_names
from dinoviz.errors import DinovizError
from dinoviz.ui.image_bar import Bar
from dinoviz.ui.jobs import Job
from dinoviz.ui.shared import (
    DRAWING,
    EMPTY,
    EVERY,
    ONCE,
    PRIVATE,
    WAITING,
    api_only,
    bundle,
    colour_bar,
    download,
    encoded,
    follow,
    note,
    picture_point,
    stop_shown,
    through,
    told,
    view_image,
)
from dinoviz.ui.stale_answers import Overlap
from dinoviz.ui.workbench import Look, Workbench

MEANINGS = {
    MEAN: "attention, softmax over all tokens, mean of the heads",
    ROLLOUT: "attention rollout from CLS through all layers",
    NORMS: "length of the patch's token before the final norm",
}
CLS = "CLS"
NOTHING_YET = None, None, 12, 12
# Arrow keys, while the focus is on one of the two pictures, say to the server which way to go.
ARROW_KEYS = """() => document.addEventListener('keydown', event => {
    const step = {ArrowLeft: '-1,0', ArrowRight: '1,0', ArrowUp: '0,-1', ArrowDown: '0,1'}[event.key]
    if (!step || !document.activeElement?.closest('#attention-photo, #attention-map')) return
    event.preventDefault()
    const field = document.querySelector('#attention-nudge textarea, #attention-nudge input')
    field.value = `${step},${Date.now()}`
    field.dispatchEvent(new Event('input', {bubbles: true}))
})"""


def build(bench: Workbench, bar: Bar, here: gr.State) -> None:
    """Lay out the tab and wire it. here: whether it is open."""
    overlap = Overlap()
    with gr.Row():
        photo = view_image("Click a patch to ask where it looks; arrow keys move on", "attention-photo")
        heat = view_image("Where it looks; a click here asks as well", "attention-map")
    with gr.Row():
        caption = gr.HTML(note("Waiting for the picture …"), label="caption", elem_id="attention-caption")
        stop_button = gr.Button("Stop", size="sm", visible=False, scale=0, elem_id="attention-stop")
    with gr.Row():
        with gr.Column(min_width=260):
            layer = gr.Slider(1, 12, value=12, step=1, label="Layer", elem_id="attention-layer")
            shown = gr.Dropdown(map_names(6), value=MEAN, label="Map", elem_id="attention-shown")
        with gr.Column(min_width=260):
            query = gr.Textbox(
                CLS, label="Query", info="CLS, or x, y in pixels of the picture", elem_id="attention-query"
            )
            with gr.Row():
                cls = gr.Button("CLS token", size="sm", elem_id="attention-cls")
                raw = gr.Checkbox(False, label="Raw patch grid", elem_id="attention-raw", min_width=130)
        with gr.Column(min_width=260):
            mass = gr.Slider(
                0.05, 1, value=1, step=0.05, label="Keep this share of the mass (1: all; DINO's figures: 0.6)",
                elem_id="attention-mass",
            )  # fmt: skip
            with gr.Row():
                opacity = gr.Slider(
                    0, 1, value=0.7, step=0.05, label="Opacity", elem_id="attention-opacity", min_width=140
                )
                colormap = gr.Dropdown(
                    list(render.COLORMAPS), value="inferno", label="Colours", elem_id="attention-colours", min_width=110
                )
    with gr.Row():
        file_button, file, press = download("attention-file")
        registers = gr.Button("Look through the register model", size="sm", elem_id="attention-registers")
    sheet = view_image("All heads, each on its own scale: click one to enlarge it", "attention-heads", height=480)
    figure = gr.Plot(show_label=False, elem_id="attention-figure")
    gr.HTML(
        note(
            "Every dot is a head. Left: how far from itself a patch looks, on average. Right: over how many tokens its "
            "attention is spread, as log2 of their number. The chosen layer stands out."
        )
    )
    nudge = gr.Textbox(visible="hidden", elem_id="attention-nudge")
    with bar.unseen:
        seen = gr.State(NOTHING_YET)  # what was drawn last: look, picture, number of layers, layer
        again = gr.State(None)  # changes when the tab has to be drawn once more, see `Overlap`
        lacking = gr.State(None)  # what takes a while and must be there before the chosen map can be drawn
        prepared = gr.State(None)  # changes when that is there

    look_options = [layer, shown, query]
    style_options = [colormap, opacity, raw, mass]
    options = look_options + style_options
    pictures = [photo, heat, sheet, caption]

    def show_attention(
        image: str, model: str, resolution: str, layer: int, shown: str, query: str, colormap: str, opacity: float,
        raw: bool, mass: float,
    ) -> tuple[Image.Image, Image.Image, Image.Image, str]:  # fmt: skip
        """See where the CLS token or one patch looks.

        Args:
            image: the picture
            model: a name from the list
            resolution: the short side in model pixels
            layer: from 1
            shown: 'mean of heads', 'head 1' and so on, 'rollout of all layers', or 'patch norms'
            query: 'CLS', or 'x, y' in pixels of the picture
            colormap: the colours of the map
            opacity: of the map over the picture, 0 to 1
            raw: one flat square a patch instead of interpolation
            mass: keep the fewest patches that hold this share of the map's sum
        Returns:
            the picture with the query, the map over it, all heads on a sheet, and what the numbers mean
        """
        with told():
            look = bench.look(image, model, resolution)
            return draw(bench, look, layer, shown, query, colormap, opacity, raw, mass)

    def download_attention(
        image: str, model: str, resolution: str, layer: int, shown: str, query: str, colormap: str, opacity: float,
        raw: bool, mass: float,
    ) -> str:  # fmt: skip
        """Get the attention maps as a zip: pictures at full size, the numbers as .npz, and what they mean as JSON.

        Args: as for the attention endpoint.
        Returns:
            the zip
        """
        with told():
            look = bench.look(image, model, resolution)
            return _file(bench, look, layer, shown, query, colormap, opacity, raw, mass)

    def answer(session: str, look: Look, layer: int, shown: str, query: str, *style) -> tuple:
        """What a click says: query, map, and what is seen then."""
        with told(), overlap.click(session) as once_more:
            pictures = draw(bench, look, layer, shown, query, *style)
            return query, shown, once_more(), *pictures

    def ask(session: str, look: Look, layer: int, shown: str, query: str, *style) -> tuple:
        shown = MEAN if shown in (ROLLOUT, NORMS) else shown  # those have no query
        return answer(session, look, layer, shown, query, *style)

    def click_patch(event: gr.SelectData, request: gr.Request, image, model, resolution, layer, shown, query, *style):
        look = encoded(bench, image, model, resolution)
        if look is None:
            return gr.skip()
        x, y = np.floor(picture_point(look, event.index))
        return ask(request.session_hash, look, layer, shown, f"{x:.0f}, {y:.0f}", *style)

    def click_head(event: gr.SelectData, request: gr.Request, image, model, resolution, layer, shown, *rest):
        look = encoded(bench, image, model, resolution)
        if look is None:
            return gr.skip()
        head = render.Sheet.fit(look.backbone.heads, look.picture.shown.size).tile_at(event.index)
        return answer(request.session_hash, look, layer, shown if head is None else f"head {head + 1}", *rest)

    def ask_cls(request: gr.Request, image, model, resolution, layer, shown, query, *style):
        look = encoded(bench, image, model, resolution)
        return gr.skip() if look is None else ask(request.session_hash, look, layer, shown, CLS, *style)

    def move_query(nudge: str, request: gr.Request, image, model, resolution, layer, shown, query, *style):
        look = bench.peek(image, model, resolution)
        if look is None or shown in (ROLLOUT, NORMS):
            return gr.skip()
        with told():
            query = moved_query(look, query, nudge)
        return answer(request.session_hash, look, layer, shown, query, *style)

    def draw_all(
        here: bool, ready: Hashable, seen: tuple, request: gr.Request, image, model, resolution, layer, shown, query,
        *style,
    ):  # fmt: skip
        """What the controls say. All but clicks come here, one after the other: an older answer never comes last."""
        if not here and seen[0] in (None, ready):
            return gr.skip()
        if not here or ready is None:
            return (None, *seen[1:]), None, *[gr.skip()] * 5, None, None, None, note(EMPTY if here else DRAWING)
        look = encoded(bench, image, model, resolution, request)
        if look is None:
            return gr.skip()
        with told(), overlap.controls(request.session_hash) as once_more:
            digest, layers, choices = look.picture.digest, look.backbone.layers, map_names(look.backbone.heads)
            controls = [gr.skip()] * 4
            if seen[0] != look.key:
                query = query if seen[1] == digest else CLS
                layer = layer if seen[2] == layers else layers
                shown = shown if shown in choices else MEAN
                choice = gr.Dropdown(choices=choices, value=shown)
                button = _register_button(bench, look.backbone.name)
                controls = gr.Slider(maximum=layers, value=layer), choice, query, button
            if shown == ROLLOUT and not bench.is_derived(_rollout_key(look)):
                return gr.skip(), _rollout_key(look), *[gr.skip()] * 9
            drawn = draw(bench, look, layer, shown, query, *style)
            return (look.key, digest, layers, layer), None, *controls, once_more(), *drawn

    def prepare(lacking: Hashable, image, model, resolution, request: gr.Request) -> Iterator[tuple]:
        """The rollout needs every row of every layer: do it once, with progress, and drawing it is instant."""
        owner = (request.session_hash, "attention")
        look = bench.peek(image, model, resolution) if lacking else None
        if look is None or lacking != _rollout_key(look):
            bench.stop(owner, superseded=True)
            yield gr.skip(), stop_shown(False), gr.skip()
            return
        job = bench.start(owner, lacking, lambda job: _rollout(bench, look, job))
        for sentence in follow(bench, owner, job):
            yield note(sentence, "caption dv-busy"), stop_shown(True), gr.skip()
        if job.superseded:
            return
        if job.stopped:
            yield note("Stopped. Choose another map."), stop_shown(False), gr.skip()
            return
        with told():
            job.result()
        yield gr.skip(), stop_shown(False), time.monotonic()

    def stop(request: gr.Request) -> None:
        bench.stop((request.session_hash, "attention"))

    def draw_figure(seen: tuple, image, model, resolution):
        if seen[0] is None:
            return None
        with told():
            look = bench.peek(image, model, resolution)
            return _figure(bench, look, seen[3]) if look and look.key == seen[0] else gr.skip()

    def use_registers(model: str) -> str:
        return _register_sibling(model) or model

    inputs = bar.inputs + options
    changes = [part.change for part in (bar.ended, here, again, prepared)]
    changes += [layer.input, shown.input, query.submit, colormap.input, opacity.input, raw.input, mass.input]
    gr.on(
        changes, draw_all, [here, bar.ready, seen, *inputs],
        [seen, lacking, *look_options, registers, again, *pictures], **PRIVATE,
    )  # fmt: skip
    lacking.change(prepare, [lacking, *bar.inputs], [caption, stop_button, prepared], **WAITING)
    seen.change(draw_figure, [seen, *bar.inputs], figure, **PRIVATE)  # by itself: the map need not wait for it
    api_only().click(show_attention, inputs, pictures, api_name="attention", concurrency_limit=2)
    answered = [query, shown, again, *pictures]
    for view in (photo, heat):
        view.select(click_patch, inputs, answered, **EVERY)
    sheet.select(click_head, inputs, answered, **EVERY)
    cls.click(ask_cls, inputs, answered, **EVERY)
    nudge.change(move_query, [nudge, *inputs], answered, **EVERY)
    stop_button.click(stop, queue=False, **ONCE)
    file_button.click(
        download_attention, inputs, file, api_name="attention_download", concurrency_limit=2,
        show_progress="full", show_progress_on=caption,
    ).success(None, js=press)  # fmt: skip
    # The model's own input event does not fire when it is set from here, so the bar's button is pressed.
    registers.click(use_registers, bar.model, bar.model, **ONCE).then(
        None, js="() => document.getElementById('encode').click()"
    )


def parse_query(look: Look, text: str) -> tuple[int, int] | None:
    """The patch (row, column) that 'x, y' lies on, None for CLS. Raises DinovizError for anything else."""
    if text.strip().upper() in ("", CLS):
        return None
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise DinovizError(f"The query is CLS, or x, y in pixels of the picture, not {text!r}.") from None
    row, column = look.features.grid.patch_at((x, y))
    return int(row), int(column)


def moved_query(look: Look, text: str, nudge: str) -> str:
    """The query one patch further, for a nudge "dx,dy,..." of the arrow keys; from CLS it goes to the middle."""
    h, w = look.features.grid.shape
    dx, dy = (int(part) for part in nudge.split(",")[:2])
    patch = parse_query(look, text)
    y, x = (h // 2, w // 2) if patch is None else np.clip((patch[0] + dy, patch[1] + dx), 0, (h - 1, w - 1))
    left, top, right, bottom = look.features.grid.patch_box((y, x))
    return f"{(left + right) // 2:.0f}, {(top + bottom) // 2:.0f}"


def _selected(bench: Workbench, look: Look, layer: int, shown: str, patch) -> tuple[np.ndarray, tuple, str]:
    """The map to show large (h, w), its colour scale, and what its numbers mean."""
    made_once = shown == ROLLOUT
    values = _rollout(bench, look) if made_once else attention.named_map(look.features, shown, patch, layer - 1)
    # Artefacts are the very top of the norms: nothing of those is clipped.
    scale = (values.min(), values.max()) if shown == NORMS else render.scale_of(values)
    return values, tuple(map(float, scale)), MEANINGS.get(shown, "attention, softmax over all tokens")


def _rollout_key(look: Look) -> Hashable:
    return "rollout", look.key


def _rollout(bench: Workbench, look: Look, job: Job | None = None) -> np.ndarray:
    def tell(done: int, layers: int) -> None:
        if job:
            job.tell("Rolling out", done / layers)

    return bench.derived(_rollout_key(look), lambda: attention.rollout(look.features, tell))


def draw(bench, look, layer, shown, query, colormap, opacity, raw, mass) -> tuple:
    """Photo with the query, map, sheet of all heads, caption."""
    patch = parse_query(look, query)
    heads = attention.head_maps(look.features, patch, layer - 1)
    values, scale, meaning = _selected(bench, look, layer, shown, patch)
    marker = None if shown in (NORMS, ROLLOUT) else patch
    style = {"colormap": colormap, "raw": raw, "opacity": opacity}
    large = _map(look, look.picture.shown, values, mass, shown, marker=marker, scale=scale, **style)
    masks = attention.mass_mask(heads, mass) if mass < 1 else None
    sheet = render.heads_sheet(look.picture.shown, look.features.grid, heads, masks, **style)
    photo = render.mark_patch(look.picture.shown, look.features.grid, patch)
    return photo, large, sheet, note(_caption(look, layer, shown, patch, values, scale, colormap, meaning))


def _map(look: Look, picture: Image.Image, values: np.ndarray, mass: float, shown: str, **style) -> Image.Image:
    # The share of a sum means something for attention, not for norms.
    mask = attention.mass_mask(values, mass) if mass < 1 and shown != NORMS else None
    return render.map_picture(picture, look.features.grid, values, mask=mask, **style)


def _caption(look, layer, shown, patch, values, scale, colormap, meaning) -> str:
    asked = "" if shown in (NORMS, ROLLOUT) else " · query: CLS"
    if patch and asked:
        asked = f" · query: patch in row {patch[0] + 1}, column {patch[1] + 1}"
    text = f"{through(look, None if shown == ROLLOUT else layer)}{asked} · {html.escape(shown)}<br>"
    text += colour_bar(scale, colormap, meaning, clipped=values.max() > scale[1])
    if shown != NORMS:
        text += f" · the patches together {values.sum():.2f}, the strongest {values.max():.3g}"
    return text


def _figure(bench: Workbench, look: Look, layer: int):
    def measure() -> list[attention.HeadStatistics]:
        return [attention.head_statistics(look.features, i) for i in range(look.backbone.layers)]

    return figures.heads_figure(bench.derived(("heads", look.key), measure), layer - 1)


def _register_sibling(model: str) -> str | None:
    """The register model of the same size; the small one for the embedded weights, which are small too."""
    if "registers" in model or not model.startswith(("dinov2-", "embedded")):
        return None
    sibling = f"dinov2-with-registers-{model.removeprefix('dinov2-').replace('embedded', 'small')}"
    return sibling if sibling in models.KNOWN else None


def _register_button(bench: Workbench, model: str):
    sibling = _register_sibling(model)
    can_be_had = sibling is not None and (bench.hub_answers or models.is_cached(sibling))
    text = f"Artefacts? Look through {sibling}" + ("" if can_be_had else " (needs the Hugging Face Hub)")
    return gr.Button(visible=sibling is not None, interactive=can_be_had, value=text)


def _file(bench, look, layer, shown, query, colormap, opacity, raw, mass) -> str:
    patch = parse_query(look, query)
    heads = attention.head_maps(look.features, patch, layer - 1)
    values, scale, meaning = _selected(bench, look, layer, shown, patch)
    style = {"colormap": colormap, "raw": raw, "opacity": opacity}
    full = look.picture.image
    files = {"map.png": render.to_png(_map(look, full, values, mass, shown, scale=scale, **style))}
    for i, head in enumerate(heads):
        files[f"heads/head-{i + 1:02d}.png"] = render.to_png(_map(look, full, head, mass, MEAN, **style))
    arrays = io.BytesIO()
    np.savez_compressed(arrays, map=values, heads=heads, norms=look.features.tokens(layer - 1).norms)
    files["heads.png"] = render.to_png(render.heads_sheet(full, look.features.grid, heads, **style))
    files["attention.npz"] = arrays.getvalue()
    about = {
        "view": "attention",
        **look.about(),
        "layer": layer,
        "query": CLS if patch is None else {"row": patch[0], "column": patch[1], "counted_from": 0},
        "map": shown,
        "map_means": meaning,
        "arrays": {
            "map": "(h, w), as map.png",
            "heads": "(heads, h, w), softmax over all tokens",
            "norms": "(h, w), token lengths before the final norm",
        },
        "mass_kept": mass,
        "colour_map": colormap,
        "colour_scale": scale,
    }
    return bundle("attention", files, about)
