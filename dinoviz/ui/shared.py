"""Small parts that every tab uses."""

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

# Of a handler that the page alone calls, and that answers at once. What is asked meanwhile is answered afterwards, with
# the newest inputs: gradio's own way, for all but changes and also within a chain, is to forget it.
PRIVATE = {
    "show_progress": "hidden", "concurrency_limit": 8, "api_visibility": "private", "trigger_mode": "always_last"
}  # fmt: skip
# Where each event says something of its own, as a click does where it was.
EVERY = {**PRIVATE, "trigger_mode": "multiple"}
# Of a handler that waits for a network; asked again, it ends what it began before.
WAITING = {**EVERY, "concurrency_limit": None}
# Of what a double click must not begin twice, and of timers that are quicker than the answer.
ONCE = {**PRIVATE, "trigger_mode": "once"}

# Captions of a tab without a picture, and of one that is drawn when it is opened.
EMPTY, DRAWING = "There is nothing to see until a picture is encoded.", "Drawing …"


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
            return save_bytes_to_cache(content, payload.orig_name or "picture", str(session_folder()))
        return payload.path


class LiveRadio(Live, gr.Radio):
    """A choice whose list changes while a choice is under way: gradio would refuse it, handlers check it themselves."""

    def get_block_name(self) -> str:
        return "radio"

    def preprocess(self, payload: str | None) -> str | None:
        return payload


class LiveDropdown(Live, gr.Dropdown):
    """The same; of several a list, which may be empty."""

    def get_block_name(self) -> str:
        return "dropdown"

    def preprocess(self, payload: str | list[str] | None) -> str | list[str] | None:
        return payload or ([] if self.multiselect else None)


class ViewImage(gr.Image):
    """A picture made here: JPEG, because that repaints fastest."""

    def get_block_name(self) -> str:
        return "image"

    def postprocess(self, value: Image.Image | None):
        return super().postprocess(value and jpeg_file(value))


def jpeg_file(picture: Image.Image) -> str:
    """The picture as a file of the session's, named by its content -> its path.

    Gradio's own saving writes the file anew each time, also while a browser is reading it; this one never does.
    """
    content = render.to_jpeg(picture)
    path = session_folder() / hashlib.sha256(content).hexdigest() / "image.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        path.touch()  # the app forgets files by their age
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
    """A picture that changes at each click; its title stands above it, not on it."""
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
    """The last part of a path, of any system."""
    return path.replace("\\", "/").rsplit("/", 1)[-1]


def through(look: Look, layer: int | None = None, grid: PatchGrid | None = None) -> str:
    """What one is looking through, for captions: weights, layer, resolution; grid: where it is not the look's own."""
    grid = grid or look.features.grid
    layers = "" if layer is None else f" · layer {layer} of {look.backbone.layers}"
    return (
        f"<b>{html.escape(look.backbone.name)}</b>{layers} · {grid.shape[0]} x {grid.shape[1]} patches of "
        f"{grid.patch_size} px at {min(grid.model_size)} px"
    )


def colour_bar(scale: tuple[float, float], colormap: str, meaning: str, clipped: bool = False) -> str:
    """A colour map as a strip between its two ends; clipped: the strongest patches lie beyond the upper one."""
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
def told() -> Iterator[None]:
    """What the user can mend becomes a message on the page, and an error for a client; no stack trace."""
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
    """Whose the encoding of the picture in the bar is."""
    return request.session_hash, "bar"


def encoded(
    bench: Workbench, image: str | None, model: str, resolution: str, drawn_for: gr.Request | None = None
) -> Look | None:
    """The look, if it is there: a click and a control never run the network, Encode does.

    drawn_for: whose page is drawn once it is encoded, and so need not be told while that is under way.
    """
    with told():
        look = bench.peek(image, model, resolution)
    if look is None and not (drawn_for and bench.is_busy(bar_owner(drawn_for))):
        gr.Info("This picture is not encoded with this model and resolution: wait for it, or press Encode.")
    return look


def stop_shown(shown: bool) -> gr.Button:
    """A Stop button, shown or not. Its text goes along: gradio draws a button that begins hidden without it."""
    return gr.Button("Stop", visible=shown)


def follow(bench: Workbench, owner: Hashable, job: Job) -> Iterator[str]:
    """Sentences on how far a job is, until it ends; a page that goes away meanwhile stops it."""
    try:
        yield from job.watch()
    finally:
        bench.finish(owner, job)


def picture_point(look: Look, index: Sequence[float]) -> np.ndarray:
    """The centre of the pixel of the shown copy that was clicked, in pixels of the uploaded picture, x first."""
    return (np.asarray(index, dtype=float) + 0.5) * np.divide(look.picture.size, look.picture.shown.size)


def bundle(name: str, files: Mapping[str, bytes] | Iterable[tuple[str, bytes]], about: Mapping) -> str:
    """A zip of files with an about.json that says what they are -> its path, in a folder of its own that ages away.

    files: may be made one by one, since each is on the disk before the next is asked for; about is read at the end.
    """
    path = fresh_folder() / f"{name}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file, content in files.items() if isinstance(files, Mapping) else files:
            archive.writestr(file, content)
        write_about(archive, about)
    return str(path)


def write_about(archive: zipfile.ZipFile, about: Mapping) -> None:
    """Say in a zip what it holds and what that was made with."""
    archive.writestr("about.json", json.dumps({"dinoviz": __version__, **about}, indent=2))


def api_only() -> gr.Button:
    """What an endpoint hangs on that clients call and the page does not."""
    return gr.Button(visible=False)


def picture_grid(pictures: Iterable[tuple[Image.Image, str]], *, pixelated: bool = False) -> str:
    """HTML of small pictures with their captions, as many beside each other as there is room for.

    pixelated: show their own pixels, enlarged.
    """
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
    """A button, the hidden download behind it, and the JavaScript that presses it once the file is made.

    Gradio's own DownloadButton sends the file that was there before the click.
    """
    button = gr.Button(label, size="sm", elem_id=f"{elem_id}-button")
    hidden = gr.DownloadButton("file", elem_id=elem_id, elem_classes="dv-hidden")
    return button, hidden, f"() => document.getElementById('{elem_id}').click()"
