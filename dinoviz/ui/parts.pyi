"""Small parts that every tab uses."""

from __future__ import annotations

import base64
import binascii
import html
import json
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
import numpy as np
from gradio.processing_utils import save_bytes_to_cache

from dinoviz import __version__, render
from dinoviz.errors import DinovizError, Stopped
from dinoviz.ui.workbench import Look

from gradio.events import Dependency

class UploadImage(gr.Image):
    """An image input that hands on the file as it was uploaded; decoding and checking is `open_image`'s work."""

    def get_block_name(self) -> str:
        return "image"

    def preprocess(self, payload) -> str | None:
        if payload is None:
            return None
        if payload.url and payload.url.startswith("data:"):
            try:
                content = base64.b64decode(payload.url.partition(",")[2], validate=True)
            except binascii.Error:
                raise gr.Error("The picture's data URL is damaged.", print_exception=False) from None
            return save_bytes_to_cache(content, payload.orig_name or "picture", self.GRADIO_CACHE)
        return payload.path
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component

def view_image(label: str, elem_id: str, *, height: int = 430) -> gr.Image:
    """A picture that changes at each click: JPEG, because that repaints fastest."""
    return gr.Image(
        label=label,
        elem_id=elem_id,
        interactive=False,
        format="jpeg",
        height=height,
        show_label=True,
        buttons=["fullscreen"],
    )

def through(look: Look, layer: int | None = None) -> str:
    """What one is looking through, for captions: weights, layer, resolution."""
    grid = look.features.grid
    layers = "" if layer is None else f" · layer {layer} of {look.backbone.layers}"
    return (
        f"<b>{html.escape(look.backbone.name)}</b>{layers} · {grid.shape[0]} x {grid.shape[1]} patches of "
        f"{grid.patch_size} px at {min(grid.model_size)} px"
    )

def colour_bar(scale: tuple[float, float], colormap: str, meaning: str) -> str:
    """A colour map as a strip between its two ends."""
    stops = render.colormap_table(colormap)[::17]
    gradient = ", ".join("#{:02x}{:02x}{:02x}".format(*stop) for stop in stops)
    low, high = (f"{end:.3g}" for end in scale)
    return (
        f'<span class="dv-scale">{low}<i style="background:linear-gradient(90deg,{gradient})"></i>{high} '
        f"{html.escape(meaning)}</span>"
    )

def note(text: str, kind: str = "caption") -> str:
    """HTML of a caption, a status or an error; `text` is HTML already."""
    return f'<div class="dv-note dv-{kind}">{text}</div>'

@contextmanager
def told() -> Iterator[None]:
    """What the user can mend becomes a message on the page, and an error for a client; no stack trace."""
    try:
        yield
    except DinovizError as error:
        raise gr.Error(str(error), print_exception=False) from None
    except Stopped:
        raise gr.Error("Stopped.", print_exception=False) from None

def picture_point(look: Look, index: Sequence[float]) -> np.ndarray:
    """The centre of the pixel of the shown copy that was clicked, in pixels of the uploaded picture, x first."""
    return (np.asarray(index, dtype=float) + 0.5) * np.divide(look.picture.image.size, look.picture.shown.size)

def bundle(name: str, files: Mapping[str, bytes], about: Mapping) -> str:
    """A zip of files with an about.json that says what they are -> its path, in a folder of its own."""
    path = Path(tempfile.mkdtemp(prefix="dinoviz-")) / f"{name}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file, content in files.items():
            archive.writestr(file, content)
        archive.writestr("about.json", json.dumps({"dinoviz": __version__, **about}, indent=2))
    return str(path)

def download(elem_id: str) -> tuple[gr.Button, gr.DownloadButton, str]:
    """A button, the hidden download behind it, and the JavaScript that presses it once the file is made.

    Gradio's own DownloadButton sends the file that was there before the click.
    """
    button = gr.Button("Download at full size", size="sm", elem_id=f"{elem_id}-button")
    hidden = gr.DownloadButton("file", elem_id=elem_id, elem_classes="dv-hidden")
    return button, hidden, f"() => document.getElementById('{elem_id}').click()"

class ViewImage(gr.Image):
    """A picture made here: JPEG, because that repaints fastest."""

    def get_block_name(self) -> str:
        return "image"

    def postprocess(self, value: Image.Image | None):
        return super().postprocess(value and jpeg_file(value, self.GRADIO_CACHE))
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component

    