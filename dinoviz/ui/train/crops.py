"""The crops that a pretraining run would make of a picture, as an illustration of multi-crop and masking."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr
import numpy as np
from PIL import Image

from dinoviz.errors import DinovizError
from dinoviz.render import display_copy
from dinoviz.ui.image_bar import Bar
from dinoviz.ui.shared import PRIVATE, note, picture_grid, user_errors
from dinoviz.ui.train.run_request import RequestReader
from dinoviz.ui.workbench import Workbench
from training.config.pretrain import PretrainConfig
from training.dino import crop_preview

BOXES_SIZE = 400  # pixels of the picture with the boxes


@dataclass(frozen=True, eq=False)
class Controls:
    """The components."""

    part: gr.Accordion
    words: gr.HTML
    pictures: gr.HTML
    again: gr.Button


def layout() -> Controls:
    """Create the folded part of the page."""
    with gr.Accordion("Crops for student and teacher", open=False, elem_id="train-crops-part") as part:
        words = gr.HTML(note(""), label="crops", elem_id="train-crops-words")
        pictures = gr.HTML("", label="crops", elem_id="train-crops", padding=False)
        again = gr.Button("Draw new crops of the picture above", size="sm", elem_id="train-crops-again")
    return Controls(part, words, pictures, again)


def wire(controls: Controls, bench: Workbench, bar: Bar, inputs: list, reader: RequestReader) -> None:
    """Connect the events. inputs: those of `reader`."""
    draws = gr.State(0)

    def draw_crops(number: int, image: str | None, *values):
        with user_errors():
            if not image:
                raise DinovizError("There is no picture above to draw crops of.")
            request = reader.read(*values, checked=False)
            if not isinstance(request.config, PretrainConfig):
                raise DinovizError("Multi-crop belongs to pretraining: choose that task.")
            return number + 1, *_crops(bench, image, request.config, number)

    gr.on(
        [controls.part.expand, controls.again.click], draw_crops, [draws, bar.image, *inputs],
        [draws, controls.words, controls.pictures], **PRIVATE,
    )  # fmt: skip


def _crops(bench: Workbench, image: str, config: PretrainConfig, number: int) -> tuple[str, str]:
    """HTML of the explanation, and of the crops with their captions."""
    picture = bench.picture(image)
    crops = crop_preview.crops(picture.image, config, number)
    shown = []
    for crop in crops.globals:
        shown.append((Image.fromarray(crop.pixels), "teacher" if crop.mask is not None else "teacher and student"))
        if crop.mask is not None:
            share = f"{crop.mask.mean():.0%}" if crop.mask.any() else "nothing"
            shown.append((_masked(crop.pixels, crop.mask), f"student, {share} masked"))
    shown += [(Image.fromarray(crop.pixels), "student only") for crop in crops.locals]
    words = (
        f"The teacher gets the 2 global crops ({config.global_size} px, orange), the student these and the "
        f"{len(crops.locals)} local ones ({config.local_size} px, blue), each randomly flipped, colour-jittered and "
        "blurred. From each of its crops, the student predicts the teacher's output for the <i>other</i> global crops."
    )
    if config.ibot_weight:
        words += " With iBOT, it also predicts the teacher's output at the patches that are masked for it."
    boxes = display_copy(crop_preview.drawn(picture.image, crops), BOXES_SIZE, BOXES_SIZE)
    return note(words), picture_grid([(boxes, "places of the crops")]) + picture_grid(shown, pixelated=True)


def _masked(pixels: np.ndarray, mask: np.ndarray) -> Image.Image:
    """The crop with its masked patches in grey."""
    pixels = pixels.copy()
    pixels[np.kron(mask, np.ones(np.divide(pixels.shape[:2], mask.shape).astype(int), dtype=bool))] = 128
    return Image.fromarray(pixels)
