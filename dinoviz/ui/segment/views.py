"""The Segment tab's canvases, gallery cards and captions: the results of a search, drawn and in words."""

from __future__ import annotations

import html
from collections.abc import Sequence

import gradio as gr
from PIL import Image

from dinoviz.errors import DinovizError
from dinoviz.segment.prompts import Marks
from dinoviz.segment.segmentation import Segmentation
from dinoviz.ui.mask_views import RAW, SCORE, SCORE_MEANING, draw, layers_in_words
from dinoviz.ui.segment.state import Choice, Search
from dinoviz.ui.segment.targets import Refused, Target
from dinoviz.ui.shared import colour_bar, file_name, jpeg_file, model_caption, note

START = "Click on the object, or choose Draw and paint over it."
ONLY_BACKGROUND = "So far only background is marked: click on the object itself."


def reference_update(search: Search) -> tuple[dict, str]:
    """The reference's canvas with the mask, and its caption."""
    look, found = search.look, search.reference
    picture = draw(look.picture.shown, look.features, found, search.choice.view, search.choice.opacity)
    canvas = _canvas(picture, look.picture.digest, look.picture.size, len(search.marks))
    return canvas, note(reference_caption(search, found))


def target_update(search: Search, target: Target) -> tuple[dict, str]:
    """The same for a target."""
    shown = target.shown
    try:
        found = search.result(target, shown)
    except DinovizError as error:
        return gr.skip(), note(html.escape(str(error)), "caption dv-error")
    mask = found if found and found.present else None
    picture = draw(shown, target.halved, mask, search.choice.view, search.choice.opacity)
    canvas = _canvas(picture, target.digest, target.size, len(search.corrections.get(target.digest, [])))
    return canvas, note(target_caption(search, target, found))


def _canvas(picture: Image.Image, digest: str, size: tuple[int, int], drawn_marks: int) -> dict:
    return gr.update(image=jpeg_file(picture), picture=digest, size=list(size), drawn_marks=drawn_marks)


def card(path: str, target: Target | Refused | None, search: Search | None) -> dict:
    """One picture as an item of `TargetGallery`."""
    if target is None:
        return {"key": path, "name": file_name(path), "image": "", "state": "waiting", "caption": "not encoded yet"}
    if isinstance(target, Refused):
        return {"key": path, "name": target.name, "image": "", "state": "bad", "caption": target.reason}
    found = search and search.result(target, target.thumb)
    if found is None:
        state, caption, picture = "plain", "", target.thumb
    elif found.present:
        state, caption = "present", f"found · {found.presence:.2f}"
        picture = draw(target.thumb, target.halved, found, search.choice.view, search.choice.opacity)
    else:
        state, caption, picture = "absent", f"not found · {found.presence:.2f}", target.thumb
    return {"key": path, "name": target.name, "image": jpeg_file(picture), "state": state, "caption": caption}


def reference_caption(search: Search, found: Segmentation | None) -> str:
    """The model, the marks, the mask and the threshold."""
    layers = layers_in_words(search.look.backbone.layers)
    text = f"{model_caption(search.look)} · {layers} · method: {search.choice.method}<br>"
    if found is None:
        return text + (ONLY_BACKGROUND if len(search.marks) else START)
    text += f"{marks_in_words(search.parsed)}: the mask covers {found.mask.mean():.1%} of the picture"
    return text + _threshold(search.choice, found)


def target_caption(search: Search, target: Target, found: Segmentation | None) -> str:
    """The same for the target that is open."""
    text = f"<b>{html.escape(target.name)}</b> · "
    if found is None:
        return text + "mark the object in the picture on the left first"
    marks = search.parsed_for(target)
    if found.present:
        text += f"found, presence score {found.presence:.2f}: the mask covers {found.mask.mean():.1%} of the picture"
    else:
        text += f"not found, presence score {found.presence:.2f} (found from 0.5)"
    text += f" · corrected here: {marks_in_words(marks)}" if len(marks) else " · wrong? Click here to correct it"
    return text + _threshold(search.choice, found)


def gallery_caption(cards: Sequence[dict], search: Search | None) -> str:
    """In how many pictures the object is found."""
    if not cards:
        return "Drop pictures above, any number: the object is searched in each."
    counts = {state: sum(card["state"] == state for card in cards) for state in ("present", "absent", "bad", "waiting")}
    pictures = _counted(len(cards), "picture")
    if not counts["present"] + counts["absent"]:
        return f"{pictures}: mark the object on the left, and it is searched in each."
    parts = [f"found in {counts['present']}", f"not found in {counts['absent']}"]
    parts += [f"{counts['bad']} cannot be read"] * bool(counts["bad"])
    parts += [f"{counts['waiting']} not encoded yet"] * bool(counts["waiting"])
    text = f"{pictures}: {', '.join(parts)}. The number is the presence score; the object counts as found from 0.5."
    if search and search.corrected:
        text += f" Fitted to the reference and {_counted(len(search.corrected), 'corrected picture')}."
    return text


def marks_in_words(marks: Marks) -> str:
    """How much is marked: "2 clicks, 1 click on background, 3 strokes"."""
    positive = int(marks.labels.sum())
    background = len(marks.clicks) - positive
    counts = (
        (positive, _counted(positive, "click")),
        (background, f"{_counted(background, 'click')} on background"),
        (len(marks.strokes), _counted(len(marks.strokes), "stroke")),
    )
    return ", ".join(words for count, words in counts if count)


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _threshold(choice: Choice, found: Segmentation) -> str:
    threshold = f"threshold {found.threshold:.2f}{' (calibrated)' if choice.auto else ''}"
    if choice.view in (SCORE, RAW):
        return f"<br>{colour_bar((0, 1), 'viridis', f'{SCORE_MEANING}; {threshold}')}"
    return f" · {threshold}"
