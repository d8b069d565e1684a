"""The bar above the tabs: picture, model, resolution, and the status of the encoding."""

from __future__ import annotations

import html
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from gradio.processing_utils import save_pil_to_cache

from dinoviz.demo_pictures import demo_path
from dinoviz.errors import DinovizError, Stopped
from dinoviz.ui.page import Page
from dinoviz.ui.shared import ONCE, PRIVATE, UploadImage, bar_owner, follow, note
from dinoviz.ui.temporary_files import session_folder
from dinoviz.ui.workbench import Look, Workbench

logger = logging.getLogger(__name__)

RESOLUTIONS = (32, 48, 64, 96, 128, 160, 196, 224, 280, 336, 392, 448, 518, 616, 672, 784, 896, 1036, 1232, 1400, 1792)
DEFAULT_RESOLUTION = 518
# Formats that every browser displays; others go back as PNG, so that the preview is not a broken picture.
SHOWN_BY_BROWSERS = (".png", ".jpg", ".jpeg", ".jfif", ".gif", ".webp", ".avif", ".bmp")


@dataclass(frozen=True)
class Bar:
    """The bar's components, of which the tabs read some.

    ready: the key of the look that is encoded, or None. ended: changes with each encode that ended, which is when the
    tabs draw: the same picture from another file has the same key.
    unseen: holds the states of all tabs. In a tab that was never opened, gradio fires `change` of a state at the first
    answer, even where that skips the state.
    """

    image: gr.Image
    model: gr.Dropdown
    resolution: gr.Dropdown
    status: gr.HTML
    encode: gr.Button
    stop: gr.Button
    ready: gr.State
    ended: gr.State
    unseen: gr.Column

    @property
    def inputs(self) -> list:
        """What selects a look: picture, model, resolution."""
        return [self.image, self.model, self.resolution]


def nearest_resolution(wanted: int) -> int:
    """The offered resolution that is nearest to the wanted one."""
    return min(RESOLUTIONS, key=lambda size: abs(size - wanted))


def example_files() -> list[str]:
    """Pictures that may be shown anywhere: they come with scikit-image and scikit-learn."""
    names = (
        *("chelsea.png", "astronaut.png", "coffee.png", "rocket.jpg", "flower.jpg", "china.jpg"),
        *("motorcycle_left.png", "retina.jpg", "ihc.png", "hubble_deep_field.jpg"),
    )
    return [str(path) for name in names if (path := demo_path(name))]


def build(page: Page, bench: Workbench) -> Bar:
    """Build the bar."""
    bar = layout(bench, [page.files.share(file) for file in example_files()])
    wire(bar, Handlers(bench), page)
    return bar


def layout(bench: Workbench, examples: list[str]) -> Bar:
    """Create the bar's components. examples: files of pictures, of which the first is shown."""
    with gr.Row(elem_id="bar"):
        with gr.Column(scale=3, min_width=220):
            image = UploadImage(
                value=examples[0],
                label="Picture",
                sources=["upload", "webcam", "clipboard"],
                height=230,
                elem_id="picture",
                buttons=[],
            )
        with gr.Column(scale=4, min_width=280):
            gr.Examples(
                [[file] for file in examples],
                [image],
                examples_per_page=len(examples),
                elem_id="examples",
                api_visibility="private",
            )
        with gr.Column(scale=4, min_width=300):
            with gr.Row():
                model, resolution = _layout_model(bench)
            status = gr.HTML(note("Starting …", "status"), label="status", elem_id="status")
            with gr.Row():
                encode = gr.Button("Encode", size="sm", elem_id="encode")
                stop = gr.Button("Stop", size="sm", elem_id="stop", interactive=False)
    with gr.Column(elem_classes="dv-hidden") as unseen:
        ready, ended = gr.State(None), gr.State(None)
    return Bar(image, model, resolution, status, encode, stop, ready, ended, unseen)


def _layout_model(bench: Workbench) -> tuple[gr.Dropdown, gr.Dropdown]:
    """Create the controls for the model and for the resolution."""
    model = gr.Dropdown(
        bench.model_choices(),
        value=bench.default_model,
        label="Model",
        info="from the list" if bench.settings.public else "name, Hub id or folder",
        allow_custom_value=not bench.settings.public,
        elem_id="model",
        min_width=150,
    )
    resolution = gr.Dropdown(
        [(f"{size} px", str(size)) for size in RESOLUTIONS],
        value=str(DEFAULT_RESOLUTION),
        label="Resolution",
        info="short side of the input",
        elem_id="resolution",
        min_width=130,
    )
    return model, resolution


def wire(bar: Bar, handlers: Handlers, page: Page) -> None:
    """Connect the bar's events."""
    gr.on(
        [page.load, bar.image.change, bar.model.input, bar.resolution.input, bar.encode.click],
        handlers.encode,
        bar.inputs,
        [bar.status, bar.stop, bar.ready, bar.ended],
        api_name="encode",
        show_progress="hidden",
        trigger_mode="multiple",
        concurrency_limit=None,
    )
    bar.image.upload(handlers.preview, bar.image, bar.image, **PRIVATE)
    bar.image.clear(handlers.clear, None, [bar.status, bar.ready, bar.ended], **PRIVATE)
    bar.stop.click(handlers.stop, queue=False, **ONCE)


@dataclass(frozen=True, eq=False)
class Handlers:
    """The functions behind the bar's events, for all sessions."""

    bench: Workbench

    def encode(self, image: str | None, model: str, resolution: str, request: gr.Request) -> Iterator[tuple]:
        """Encode a picture with a model, once; all views of it are drawn from the cached features.

        Args:
            image: the picture, in any common format, up to 50 million pixels
            model: a name from the list; on a local app also a Hub id or a folder
            resolution: the short side in model pixels
        Returns:
            the weights, the device, the number of patches and the time, as text
        """
        yield from encode_updates(self.bench, bar_owner(request), image, model, resolution)

    def preview(self, image: str | None) -> object:
        """The upload itself, or a PNG where browsers cannot display it; `encode` reports a file that is no image."""
        if not image or Path(image).suffix.lower() in SHOWN_BY_BROWSERS:
            return gr.skip()
        try:
            decoded = self.bench.picture(image).image
        except DinovizError:
            return gr.skip()
        return save_pil_to_cache(decoded, str(session_folder()), name="picture", format="png")

    def clear(self, request: gr.Request) -> tuple:
        """Stop encoding, since there is no picture any more."""
        self.bench.stop(bar_owner(request))
        return note("No picture: drop one, paste one, or click an example.", "status"), None, time.monotonic()

    def stop(self, request: gr.Request) -> None:
        """Stop encoding."""
        self.bench.stop(bar_owner(request))


def encode_updates(bench: Workbench, owner: tuple, image: str | None, model: str, resolution: str) -> Iterator[tuple]:
    """The updates of status, Stop button, `Bar.ready` and `Bar.ended` while a picture is encoded."""
    if not image:  # `Handlers.clear` answers
        yield gr.skip(), gr.skip(), gr.skip(), gr.skip()
        return
    off = gr.Button(interactive=False)
    began = time.monotonic()
    job = bench.start_encode(owner, [image], model, resolution)
    for progress in follow(bench, owner, job):
        yield note(html.escape(progress), "status dv-busy"), gr.Button(interactive=True), gr.skip(), gr.skip()
    try:
        look = job.result()[0]
        text = status(bench, look, int(resolution), time.monotonic() - began)
        yield note(text, "status"), off, look.key, time.monotonic()
    except Stopped:
        if not job.superseded:
            yield note("Stopped. Press Encode to begin again.", "status"), off, None, time.monotonic()
    except DinovizError as error:
        yield note(html.escape(str(error)), "status dv-error"), off, None, time.monotonic()
    except Exception as error:  # a bug, or out of memory: report it, and clear the maps of an earlier picture
        logger.exception("encode failed")
        text = f"Encoding failed: {html.escape(str(error).splitlines()[0] if str(error) else type(error).__name__)}"
        hint = " A lower resolution or a smaller model needs less memory." if "memory" in text.lower() else ""
        yield note(text + hint, "status dv-error"), off, None, time.monotonic()


def status(bench: Workbench, look: Look, wanted: int, seconds: float) -> str:
    """The status line after an encode, as HTML. wanted: the resolution that was asked for."""
    grid, backbone = look.features.grid, look.backbone
    h, w = grid.shape
    took = f"encoded in {seconds:.1f} s" if seconds >= 0.1 else "from the cache"
    lines = [
        f"<b>{html.escape(backbone.name)}</b>: {html.escape(backbone.source)}.",
        f"Input {grid.model_size[0]} x {grid.model_size[1]} px: {h} x {w} = {h * w:,} patches of {grid.patch_size} px"
        f"{f' and {backbone.registers} registers' if backbone.registers else ''}. "
        f"{str(backbone.device).upper()}, {str(backbone.dtype).removeprefix('torch.')}, {took}.",
    ]
    if look.resolution < wanted:
        lines.append(f"Lowered from {wanted} px, which would give too many patches for attention.")
    if backbone.name == "embedded" and bench.default_reason:
        lines.append(bench.default_reason)
    return "<br>".join(lines)
