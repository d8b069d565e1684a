"""The Segment tab's pictures, cards and captions: what a search found, drawn and put in words."""

from __future__ import annotations

import html
from collections.abc import Sequence

from PIL import Image

from dinoviz import render, segment
from dinoviz.features import Features
from dinoviz.segment.prompts import Marks
from dinoviz.segment.segmentation import Segmentation
from dinoviz.ui.segment.state import CUTOUT, OVERLAY, RAW, SCORE, Choice, Search
from dinoviz.ui.segment.targets import Refused, Target
from dinoviz.ui.shared import colour_bar, file_name, jpeg_file, through

START = "Click on the thing you want, or choose Draw and paint over it."
MEANING = "score: evidence for the thing; 0 is like the background that was marked, 1 like the thing itself"


def draw(picture: Image.Image, features: Features, found: Segmentation | None, choice: Choice) -> Image.Image:
    """The picture as the chosen view shows it, at its size."""
    if found is None:
        return picture
    if choice.view == OVERLAY:
        return render.overlay(picture, found.mask, choice.opacity)
    if choice.view == CUTOUT:
        return render.on_checkers(picture, found.mask)
    if choice.view == RAW:
        style = {"colormap": "viridis", "opacity": choice.opacity, "raw": True, "scale": (0, 1)}
        return render.map_picture(picture, features.grid, found.patch_score, **style)
    colours = Image.fromarray(render.colourise(found.score, (0, 1), "viridis"))
    return render.outline(Image.blend(picture, colours, choice.opacity), found.mask)


def card(path: str, target: Target | Refused | None, search: Search | None) -> dict:
    """What the gallery shows of one picture."""
    if target is None:
        return {"key": path, "name": file_name(path), "image": "", "state": "waiting", "said": "not encoded yet"}
    if isinstance(target, Refused):
        return {"key": path, "name": target.name, "image": "", "state": "bad", "said": target.sentence}
    found = search and search.result(target, target.thumb)
    if found is None:
        state, said, picture = "plain", "", target.thumb
    elif found.present:
        state, said = "present", f"present · {found.presence:.2f}"
        picture = draw(target.thumb, target.halved, found, search.choice)
    else:
        state, said = "absent", f"not here · {found.presence:.2f}"
        picture = target.thumb
    image = jpeg_file(picture)
    return {"key": path, "name": target.name, "image": image, "state": state, "said": said}


def reference_caption(search: Search, found: Segmentation | None) -> str:
    """What the reference shows, through what, and what the numbers mean."""
    text = _through(search)
    if found is None:
        beside = len(search.marks) and "So far everything marked is beside the thing: click on the thing itself."
        return text + (beside or START)
    text += f"{marks_in_words(search.parsed)}: the mask covers {found.mask.mean():.1%} of the picture"
    return text + _scale(search.choice, found)


def target_caption(search: Search, target: Target, found: Segmentation | None) -> str:
    """The same for the target that is open."""
    text = f"<b>{html.escape(target.name)}</b> · "
    if found is None:
        return text + "mark the thing in the picture on the left first"
    marks = search.parsed_for(target)
    if found.present:
        text += f"present, evidence {found.presence:.2f}: the mask covers {found.mask.mean():.1%} of the picture"
    else:
        text += f"not in this picture, evidence {found.presence:.2f} of the 0.5 that counts as present"
    text += f" · corrected here: {marks_in_words(marks)}" if len(marks) else " · wrong? Click here to correct it"
    return text + _scale(search.choice, found)


def gallery_caption(cards: Sequence[dict], search: Search | None) -> str:
    """How many pictures hold the thing."""
    if not cards:
        return "Drop pictures above, any number: the thing is looked for in each."
    counts = {state: sum(card["state"] == state for card in cards) for state in ("present", "absent", "bad", "waiting")}
    if not counts["present"] + counts["absent"]:
        return f"{_counted(len(cards), 'picture')}: mark the thing on the left, and it is looked for in each."
    parts = [f"present in {counts['present']}", f"not in {counts['absent']}"]
    parts += [f"{counts['bad']} cannot be read"] * bool(counts["bad"])
    parts += [f"{counts['waiting']} not encoded yet"] * bool(counts["waiting"])
    text = (
        f"{_counted(len(cards), 'picture')}: {', '.join(parts)}. The number is the evidence that the thing is there, "
    )
    text += "present from 0.5."
    if search and search.corrected:
        text += f" Learnt from the reference and {_counted(len(search.corrected), 'corrected picture')}."
    return text


def marks_in_words(marks: Marks) -> str:
    """How much is marked: "2 clicks, 1 click beside it, 3 strokes"."""
    positive = int(marks.labels.sum())
    counts = ((positive, "click"), (len(marks.clicks) - positive, "click beside it"), (len(marks.strokes), "stroke"))
    return ", ".join(_counted(n, word) for n, word in counts if n)


def layers_in_words(layers: int, chosen: Sequence[int] | None = None) -> str:
    """The layers that are read, counted from 1: "layers 9 and 12 of 12"."""
    chosen = segment.layers_of(layers) if chosen is None else chosen
    return f"layers {' and '.join(str(layer % layers + 1) for layer in chosen)} of {layers}"


def _counted(count: int, word: str) -> str:
    first, *rest = word.split(" ", 1) if word.startswith("click") else (word,)
    return " ".join([str(count), first if count == 1 else f"{first}s", *rest])


def _through(search: Search) -> str:
    layers = layers_in_words(search.look.backbone.layers)
    return f"{through(search.look)} · {layers} · method: {search.choice.method}<br>"


def _scale(choice: Choice, found: Segmentation) -> str:
    threshold = f"threshold {found.threshold:.2f}{' (calibrated)' if choice.auto else ''}"
    if choice.view in (SCORE, RAW):
        return f"<br>{colour_bar((0, 1), 'viridis', f'{MEANING}; {threshold}')}"
    return f" · {threshold}"
