"""The crops that a run would make of a picture, so that multi-crop and masking explain themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gradio as gr
import numpy as np
from PIL import Image

from dinoviz.errors import DinovizError
from dinoviz.render import display_copy
from dinoviz.ui.image_bar import Bar
from dinoviz.ui.shared import PRIVATE, note, picture_grid, told
from dinoviz.ui.workbench import Workbench
from training.config.pretrain import PretrainConfig
from training.dino import crop_preview as crops_of

WHERE = 400  # pixels of the picture with the boxes


@dataclass(frozen=True)
class Parts:
    """What `wire` connects."""

    part: gr.Accordion
    words: gr.HTML
    drawn: gr.HTML
    again: gr.Button


def lay_out() -> Parts:
    """The folded part of the page, where it is called."""
    with gr.Accordion("What student and teacher see of a picture", open=False, elem_id="train-crops-part") as part:
        words = gr.HTML(note(""), label="crops", elem_id="train-crops-words")
        drawn = gr.HTML("", label="crops", elem_id="train-crops", padding=False)
        again = gr.Button("Draw again, of the picture above", size="sm", elem_id="train-crops-again")
    return Parts(part, words, drawn, again)


def wire(bench: Workbench, bar: Bar, parts: Parts, inputs: list, order: Callable) -> None:
    """order: reads what `inputs` say."""
    draws = gr.State(0)

    def draw(number: int, image: str | None, *values):
        with told():
            if not image:
                raise DinovizError("There is no picture above to draw crops of.")
            wanted = order(*values, checked=False)
            if not isinstance(wanted.config, PretrainConfig):
                raise DinovizError("Multi-crop belongs to pretraining: choose it beside.")
            return number + 1, *_crops(bench, image, wanted.config, number)

    gr.on(
        [parts.part.expand, parts.again.click], draw, [draws, bar.image, *inputs], [draws, parts.words, parts.drawn],
        **PRIVATE,
    )  # fmt: skip


def _crops(bench: Workbench, image: str, config: PretrainConfig, number: int) -> tuple[str, str]:
    """Words, and the pictures with their captions."""
    picture = bench.picture(image)
    made = crops_of.crops(picture.image, config, number)
    shown = []
    for crop in made.globals:
        shown.append((Image.fromarray(crop.pixels), "teacher" if crop.mask is not None else "teacher and student"))
        if crop.mask is not None:
            hidden = f"{crop.mask.mean():.0%}" if crop.mask.any() else "nothing"
            shown.append((_masked(crop.pixels, crop.mask), f"student, {hidden} hidden"))
    shown += [(Image.fromarray(crop.pixels), "student only") for crop in made.locals]
    words = (
        f"The teacher sees the 2 global crops ({config.global_size} px, orange), the student these and the "
        f"{len(made.locals)} local ones ({config.local_size} px, blue), each turned, coloured and blurred by chance. "
        "From each of its crops the student is to tell what the teacher says of the <i>other</i> global ones."
    )
    if config.ibot_weight:
        words += " With iBOT it is also to tell what the teacher sees at the patches that are hidden from it."
    where = picture_grid([(display_copy(crops_of.drawn(picture.image, made), WHERE, WHERE), "where they lie")])
    return note(words), where + picture_grid(shown, pixelated=True)


def _masked(pixels: np.ndarray, mask: np.ndarray) -> Image.Image:
    """A crop whose hidden patches are grey."""
    pixels = pixels.copy()
    pixels[np.kron(mask, np.ones(np.divide(pixels.shape[:2], mask.shape).astype(int), dtype=bool))] = 128
    return Image.fromarray(pixels)
