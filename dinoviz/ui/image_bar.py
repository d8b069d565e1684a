"""The bar on top of every tab: the picture, the model, the resolution, and what the encode says."""

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
# What every browser shows by itself; other formats go back as PNG, so that the preview is not a broken picture.
SHOWN_BY_BROWSERS = (".png", ".jpg", ".jpeg", ".jfif", ".gif", ".webp", ".avif", ".bmp")


@dataclass(frozen=True)
class Bar:
    """The parts of the bar that the tabs read and listen to.

    ready: the key of the look that is encoded, or None. ended: changes with each encode that ended, which is the moment
    for the tabs to draw: the same picture from another file has the same key.
    unseen: where the states of all tabs are. In a tab that was not opened yet, gradio takes the first answer that comes
    by a state for its change, even where it is left as it was.
    """

    image: gr.Image
    model: gr.Dropdown
    resolution: gr.Dropdown
    ready: gr.State
    ended: gr.State
    unseen: gr.Column

    @property
    def inputs(self) -> list:
        """What says which look: picture, model, resolution."""
        return [self.image, self.model, self.resolution]


def nearest_resolution(wanted: int) -> int:
    """The one on offer that is nearest to what is wanted."""
    return min(RESOLUTIONS, key=lambda size: abs(size - wanted))


def example_files() -> list[str]:
    """Pictures that may be shown anywhere: they come with scikit-image and scikit-learn."""
    names = (
        *("chelsea.png", "astronaut.png", "coffee.png", "rocket.jpg", "flower.jpg", "china.jpg"),
        *("motorcycle_left.png", "retina.jpg", "ihc.png", "hubble_deep_field.jpg"),
    )
    return [str(path) for name in names if (path := demo_path(name))]


def build(page: Page, bench: Workbench) -> Bar:
    """Lay out the bar and wire it."""
    examples = [page.files.share(file) for file in example_files()]
    with gr.Row(elem_id="bar"):
        with gr.Column(scale=3, min_width=220):
            upload = UploadImage(
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
                [upload],
                examples_per_page=len(examples),
                elem_id="examples",
                api_visibility="private",
            )
        with gr.Column(scale=4, min_width=300):
            with gr.Row():
                model = gr.Dropdown(
                    bench.model_choices(),
                    value=bench.default_model,
                    label="Model",
                    info="a known name" if bench.settings.public else "name, Hub id or folder",
                    allow_custom_value=not bench.settings.public,
                    elem_id="model",
                    min_width=150,
                )
                resolution = gr.Dropdown(
                    [(f"{size} px", str(size)) for size in RESOLUTIONS],
                    value=str(DEFAULT_RESOLUTION),
                    label="Resolution",
                    info="short side, as the model sees it",
                    elem_id="resolution",
                    min_width=130,
                )
            status = gr.HTML(note("Starting …", "status"), label="status", elem_id="status")
            with gr.Row():
                encode_button = gr.Button("Encode", size="sm", elem_id="encode")
                stop_button = gr.Button("Stop", size="sm", elem_id="stop", interactive=False)
    with gr.Column(elem_classes="dv-hidden") as unseen:
        ready, ended = gr.State(None), gr.State(None)

    def encode(image: str | None, model: str, resolution: str, request: gr.Request) -> Iterator[tuple]:
        """Run a model over a picture once; every view of it is instant afterwards.

        Args:
            image: the picture, in any common format, up to 50 million pixels
            model: a name from the list; on a local app also a Hub id or a folder
            resolution: the short side in model pixels
        Returns:
            in words, what one looks through: weights, device, patches, time
        """
        yield from _encode(bench, bar_owner(request), image, model, resolution)

    def preview(image: str | None) -> object:
        return _preview(bench, image)

    def clear(request: gr.Request) -> tuple:
        bench.stop(bar_owner(request))
        return note("Give it a picture: drop one, paste one, or click an example.", "status"), None, time.monotonic()

    def stop(request: gr.Request) -> None:
        bench.stop(bar_owner(request))

    gr.on(
        [page.load, upload.change, model.input, resolution.input, encode_button.click],
        encode,
        [upload, model, resolution],
        [status, stop_button, ready, ended],
        api_name="encode",
        show_progress="hidden",
        trigger_mode="multiple",
        concurrency_limit=None,
    )
    upload.upload(preview, upload, upload, **PRIVATE)
    upload.clear(clear, None, [status, ready, ended], **PRIVATE)
    stop_button.click(stop, queue=False, **ONCE)
    return Bar(upload, model, resolution, ready, ended, unseen)


def _encode(bench: Workbench, owner: tuple, image: str | None, model: str, resolution: str) -> Iterator[tuple]:
    """What `encode` sends to the page: (status, stop button, ready, ended)."""
    if not image:  # `clear` speaks
        yield gr.skip(), gr.skip(), gr.skip(), gr.skip()
        return
    off = gr.Button(interactive=False)
    began = time.monotonic()
    job = bench.start_encode(owner, [image], model, resolution)
    for sentence in follow(bench, owner, job):
        yield note(html.escape(sentence), "status dv-busy"), gr.Button(interactive=True), gr.skip(), gr.skip()
    try:
        look = job.result()[0]
        yield (
            note(_told(bench, look, int(resolution), time.monotonic() - began), "status"),
            off,
            look.key,
            time.monotonic(),
        )
    except Stopped:
        if not job.superseded:
            yield note("Stopped. Press Encode to begin again.", "status"), off, None, time.monotonic()
    except DinovizError as error:
        yield note(html.escape(str(error)), "status dv-error"), off, None, time.monotonic()
    except Exception as error:  # a defect, or memory: say it, and let no older map pass for this picture's
        logger.exception("encode failed")
        said = f"It failed: {html.escape(str(error).splitlines()[0] if str(error) else type(error).__name__)}"
        advice = " A lower resolution or a smaller model needs less memory." if "memory" in said.lower() else ""
        yield note(said + advice, "status dv-error"), off, None, time.monotonic()


def _preview(bench: Workbench, image: str | None) -> object:
    """The upload itself, or a PNG of it where browsers show nothing; a file that cannot be read is told by `encode`."""
    if not image or Path(image).suffix.lower() in SHOWN_BY_BROWSERS:
        return gr.skip()
    try:
        return save_pil_to_cache(bench.picture(image).image, str(session_folder()), name="picture", format="png")
    except DinovizError:
        return gr.skip()


def _told(bench: Workbench, look: Look, wanted: int, seconds: float) -> str:
    grid, backbone = look.features.grid, look.backbone
    h, w = grid.shape
    took = f"encoded in {seconds:.1f} s" if seconds >= 0.1 else "from the cache"
    lines = [
        f"<b>{html.escape(backbone.name)}</b>: {html.escape(backbone.source)}.",
        f"Seen at {grid.model_size[0]} x {grid.model_size[1]} px: {h} x {w} = {h * w:,} patches of {grid.patch_size} px"
        f"{f' and {backbone.registers} registers' if backbone.registers else ''}. "
        f"{str(backbone.device).upper()}, {str(backbone.dtype).removeprefix('torch.')}, {took}.",
    ]
    if look.resolution < wanted:
        lines.append(f"Lowered from {wanted} px: attention over more patches than this is not attempted.")
    if backbone.name == "embedded" and bench.default_reason:
        lines.append(bench.default_reason)
    return "<br>".join(lines)
