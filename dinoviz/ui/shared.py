"""What every tab uses: options of events, pictures as files, captions, errors, downloads."""

from __future__ import annotations

import base64
import binascii
import hashlib
import html
import json
import os
import tempfile
import zipfile
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
import numpy as np
from gradio.processing_utils import save_bytes_to_cache
from PIL import Image
from safetensors import SafetensorError

from dinoviz import __version__, render
from dinoviz.errors import DinovizError, Stopped, disk_error
from dinoviz.grid import PatchGrid
from dinoviz.ui.guard import Live
from dinoviz.ui.jobs import Job
from dinoviz.ui.temporary_files import fresh_folder, session_folder
from dinoviz.ui.workbench import Look, Workbench

# Options of an event whose handler only the page calls, and which answers at once. An event that comes meanwhile is
# handled afterwards with the newest inputs; by default, Gradio drops it for all but changes and also within a chain.
PRIVATE = {
    "show_progress": "hidden", "concurrency_limit": 8, "api_visibility": "private", "trigger_mode": "always_last"
}  # fmt: skip
# Where each event has data of its own, as a click has its place.
EVERY = {**PRIVATE, "trigger_mode": "multiple"}
# Of a handler that runs a network; the next call stops the work of the one before.
WAITING = {**EVERY, "concurrency_limit": None}
# Of what a double click must not start twice, and of timers that are faster than the answer.
ONCE = {**PRIVATE, "trigger_mode": "once"}

# Captions of a tab without a picture, and of one that is still to be drawn.
EMPTY, DRAWING = "No picture is encoded yet.", "Drawing …"


class UploadImage(gr.Image):
    """An image input whose value is the uploaded file; `open_image` decodes and checks it."""

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
            return save_bytes_to_cache(content, payload.orig_name or "picture", str(session_folder()))
        return payload.path


class LiveRadio(Live, gr.Radio):
    """A radio whose choices change while an event is under way, which Gradio would refuse; handlers check the value."""

    def get_block_name(self) -> str:
        return "radio"

    def preprocess(self, payload: str | None) -> str | None:
        return payload


class LiveDropdown(Live, gr.Dropdown):
    """The same for a dropdown; with `multiselect` the value is a list, which may be empty."""

    def get_block_name(self) -> str:
        return "dropdown"

    def preprocess(self, payload: str | list[str] | None) -> str | list[str] | None:
        return payload or ([] if self.multiselect else None)


class ViewImage(gr.Image):
    """A picture made by the app: JPEG, because that repaints fastest."""

    def get_block_name(self) -> str:
        return "image"

    def postprocess(self, value: Image.Image | None):
        return super().postprocess(value and jpeg_file(value))


def jpeg_file(picture: Image.Image) -> str:
    """Write the picture to a file of the session, named by its content; returns the path.

    Gradio's own function writes the file again each time, even while a browser is reading it; this one never does.
    """
    content = render.to_jpeg(picture)
    path = session_folder() / hashlib.sha256(content).hexdigest() / "image.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        path.touch()  # files are removed by age
    else:
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(temporary).replace(path)
        except OSError:  # a full disk
            Path(temporary).unlink(missing_ok=True)
            raise
    return str(path)


def view_image(title: str, elem_id: str, *, height: int | None = 430) -> gr.Image:
    """A picture that changes at each click, with its title above it."""
    with gr.Column(min_width=300):
        gr.HTML(f'<div class="dv-title-of">{html.escape(title)}</div>', padding=False)
        return ViewImage(
            label=title,
            elem_id=elem_id,
            elem_classes="dv-view",
            interactive=False,
            height=height,
            show_label=False,
            buttons=["fullscreen"],
        )


def file_name(path: str) -> str:
    """The last part of a path, of any operating system."""
    return path.replace("\\", "/").rsplit("/", 1)[-1]


def model_caption(look: Look, layer: int | None = None, grid: PatchGrid | None = None) -> str:
    """HTML of weights, layer, patches and resolution, for captions; grid: where it is not the look's own."""
    grid = grid or look.features.grid
    layers = "" if layer is None else f" · layer {layer} of {look.backbone.layers}"
    return (
        f"<b>{html.escape(look.backbone.name)}</b>{layers} · {grid.shape[0]} x {grid.shape[1]} patches of "
        f"{grid.patch_size} px at {min(grid.model_size)} px"
    )


def colour_bar(scale: tuple[float, float], colormap: str, meaning: str, clipped: bool = False) -> str:
    """HTML of a colour map between its two ends; clipped: the strongest patches lie beyond the upper one."""
    stops = render.colormap_table(colormap)[::17]
    gradient = ", ".join("#{:02x}{:02x}{:02x}".format(*stop) for stop in stops)
    low, high = (f"{end:.3g}" for end in scale)
    if clipped:
        high = f"≥ {high} ({render.CLIP_PERCENTILE} % of the patches are below)"
    return (
        f'<span class="dv-scale">{low}<i style="background:linear-gradient(90deg,{gradient})"></i>{high} '
        f"{html.escape(meaning)}</span>"
    )


def note(text: str, kind: str = "caption") -> str:
    """HTML of a caption, a status or an error; `text` is HTML already."""
    return f'<div class="dv-note dv-{kind}">{text}</div>'


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors that the user can fix into a message on the page, or an error for a client, without stack trace."""
    try:
        yield
    except DinovizError as error:
        # The page renders messages as HTML, and a message may quote a file's name.
        raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from None
    except Stopped:
        raise gr.Error("Stopped.", print_exception=False) from None
    except (OSError, SafetensorError) as error:
        if (refused := disk_error(error)) is None:
            raise
        raise gr.Error(str(refused), print_exception=False) from None


def bar_owner(request: gr.Request) -> Hashable:
    """The key of the job that encodes the picture in the bar, see `Workbench.start`."""
    return request.session_hash, "bar"


def encoded(
    bench: Workbench, image: str | None, model: str, resolution: str, drawn_for: gr.Request | None = None
) -> Look | None:
    """The look if it is encoded, else None with a message: only Encode runs the network, never a click or a control.

    drawn_for: the request of a handler that runs again once encoding ends, so that no message is needed meanwhile.
    """
    with user_errors():
        look = bench.peek(image, model, resolution)
    if look is None and not (drawn_for and bench.is_busy(bar_owner(drawn_for))):
        gr.Info("This picture is not encoded with this model and resolution: wait for it, or press Encode.")
    return look


def stop_shown(shown: bool) -> gr.Button:
    """Show or hide a Stop button. Sends its text too: Gradio draws a button that was hidden at first without it."""
    return gr.Button("Stop", visible=shown)


def follow(bench: Workbench, owner: Hashable, job: Job) -> Iterator[str]:
    """Yield the progress of a job in words until it ends; a page that is closed meanwhile stops it."""
    try:
        yield from job.watch()
    finally:
        bench.finish(owner, job)


def picture_point(look: Look, index: Sequence[float]) -> np.ndarray:
    """The centre of the pixel of the shown copy that was clicked, in pixels of the uploaded picture, x first."""
    return (np.asarray(index, dtype=float) + 0.5) * np.divide(look.picture.size, look.picture.shown.size)


def bundle(name: str, files: Mapping[str, bytes] | Iterable[tuple[str, bytes]], about: Mapping) -> str:
    """Write a zip of files with an about.json, in a folder of its own; returns its path.

    Args:
        name: of the zip, without suffix.
        files: content by name; an iterator may make them one by one, since each is written before the next.
        about: what the files are and how they were made; read after the last file.
    """
    path = fresh_folder() / f"{name}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file, content in files.items() if isinstance(files, Mapping) else files:
            archive.writestr(file, content)
        write_about(archive, about)
    return str(path)


def write_about(archive: zipfile.ZipFile, about: Mapping) -> None:
    """Add about.json to a zip: what it holds, how that was made, and by which version."""
    archive.writestr("about.json", json.dumps({"dinoviz": __version__, **about}, indent=2))


def api_only() -> gr.Button:
    """A hidden button whose click carries an endpoint for clients."""
    return gr.Button(visible=False)


def picture_grid(pictures: Iterable[tuple[Image.Image, str]], *, pixelated: bool = False) -> str:
    """HTML of small pictures with captions, as many in a row as fit; pixelated: enlarged without interpolation."""
    cells = []
    for picture, caption in pictures:
        content, kind = (render.to_png(picture), "png") if pixelated else (render.to_jpeg(picture), "jpeg")
        source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        text = html.escape(caption)
        cells.append(
            f'<figure><img src="{source}" alt="{text}"><figcaption title="{text}">{text}</figcaption></figure>'
        )
    return f'<div class="dv-grid{" dv-pixelated" if pixelated else ""}">{"".join(cells)}</div>' if cells else ""


def download(elem_id: str, label: str = "Download at full size") -> tuple[gr.Button, gr.DownloadButton, str]:
    """A button, the hidden download behind it, and the JavaScript that clicks that one once the file is made.

    Gradio's DownloadButton sends the file that was there before the click.
    """
    button = gr.Button(label, size="sm", elem_id=f"{elem_id}-button")
    hidden = gr.DownloadButton("file", elem_id=elem_id, elem_classes="dv-hidden")
    return button, hidden, f"() => document.getElementById('{elem_id}').click()"
