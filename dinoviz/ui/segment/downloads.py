"""The Segment tab's files: one zip of everything, and the endpoints that clients call."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import gradio as gr
from PIL import Image

from dinoviz import render, segment
from dinoviz.errors import DinovizError
from dinoviz.segment import coco
from dinoviz.segment import prompts as marking
from dinoviz.segment.segmentation import Segmentation
from dinoviz.ui.image_bar import Bar
from dinoviz.ui.segment.state import Choice, Search, mark
from dinoviz.ui.segment.targets import Refused, Target, Targets, checked
from dinoviz.ui.shared import api_only, bundle, download, follow, note, told
from dinoviz.ui.temporary_files import fresh_folder
from dinoviz.ui.workbench import Workbench

MASKS, CUTOUTS, OVERLAYS, COCO = "masks", "cut-outs", "overlays", "COCO JSON"
CONTENTS = (MASKS, CUTOUTS, OVERLAYS, COCO)
Tell = Callable[[str, float], None]


@dataclass(frozen=True)
class Download:
    """The parts of the page that give the zip. press: the JavaScript that hands it to the browser."""

    contents: gr.CheckboxGroup
    button: gr.Button
    file: gr.DownloadButton
    said: gr.HTML
    press: str


def lay_out() -> Download:
    """The downloads, to be wired when all else is there."""
    with gr.Row():
        contents = gr.CheckboxGroup(
            list(CONTENTS), value=list(CONTENTS), label="Into the zip", elem_id="segment-contents", scale=3,
            min_width=220,
        )  # fmt: skip
        with gr.Column(scale=2, min_width=160):
            button, file, press = download("segment-file")
            said = gr.HTML(label="download", elem_id="segment-file-note")
    return Download(contents, button, file, said, press)


def wire(
    bench: Workbench, bar: Bar, store: Targets, controls, parts: Download, search_of: Callable[..., Search | None]
) -> None:
    """Wire the downloads, and the endpoints."""
    contents, file = parts.contents, parts.file
    marks = gr.Textbox("[]", label="marks", visible=False)
    corrections = gr.Textbox("{}", label="corrections", visible=False)
    masks = gr.File(label="masks", visible=False, file_count="multiple")
    scores = gr.JSON(label="scores", visible=False)
    inputs = [*bar.inputs, *controls.inputs, contents]

    def write(request: gr.Request, image, model, resolution, marks, files, corrections, *rest) -> Iterator[tuple]:
        """Write what the page shows, at full size, with progress."""
        *chosen, contents = rest
        owner = (request.session_hash, "segment-file")
        with told():
            search = search_of(image, model, resolution, marks, files, corrections, *chosen)
            if search is None:
                raise DinovizError("The picture is not encoded yet.")
            refused = [
                one for one in (store.peek(path, model, resolution) for path in files or []) if isinstance(one, Refused)
            ]
        job = bench.start(owner, object(), lambda job: zipped(search, refused, contents, job.tell))
        for sentence in follow(bench, owner, job):
            yield note(html.escape(sentence), "caption dv-busy"), gr.skip()
        if job.stopped:
            return
        with told():
            path = job.result()
        yield note(""), path

    def segment_pictures(
        image: str, model: str, resolution: str, marks: str, targets: list[str] | None, corrections: str, auto: bool,
        threshold: float, refine: bool, smallest: float, instances: str, method: str, view: str, opacity: float,
    ) -> tuple[list[str], dict]:  # fmt: skip
        """Point at a thing in one picture, and get masks of it, there and in others.

        Args:
            image: the picture with the thing
            model: a name from the list
            resolution: the short side in model pixels
            marks: JSON, in pixels of the picture: a list of {"kind": "point", "x": 10, "y": 20, "label": 1} (0: beside
                the thing) and {"kind": "stroke", "points": [[10, 20], [30, 40]], "radius": 8, "erase": false}
            targets: pictures to look for the thing in
            corrections: JSON, marks in the targets by their number from 0: {"0": [...]}
            auto: decide the threshold by calibration
            threshold: of the score otherwise, 0 to 1
            refine: let the masks follow the edges in the pictures
            smallest: drop parts below this percentage of the picture
            instances: 'what was clicked' or 'all instances'
            method: 'evidence' or 'mean'
            view: not used here
            opacity: not used here
        Returns:
            the masks as PNG files of the pictures' sizes, the first picture's first; and presence and scores
        """
        with told():
            chosen = auto, threshold, refine, smallest, instances, method, view, opacity
            search, refused = asked(
                bench, store, image, model, resolution, marks, targets, corrections, Choice(*chosen)
            )
            return written_masks(search, refused)

    def download_pictures(
        image: str, model: str, resolution: str, marks: str, targets: list[str] | None, corrections: str, auto: bool,
        threshold: float, refine: bool, smallest: float, instances: str, method: str, view: str, opacity: float,
        contents: list[str],
    ) -> str:  # fmt: skip
        """Get the same as a zip: masks, cut-outs with alpha, overlays, COCO JSON with RLE, and about.json.

        Args: as for the segment endpoint, and
            opacity: of the overlays, 0 to 1
            contents: any of 'masks', 'cut-outs', 'overlays', 'COCO JSON'
        Returns:
            the zip
        """
        with told():
            chosen = auto, threshold, refine, smallest, instances, method, view, opacity
            search, refused = asked(
                bench, store, image, model, resolution, marks, targets, corrections, Choice(*chosen)
            )
            return zipped(search, refused, contents)

    asked_inputs = [*bar.inputs, marks, controls.files, corrections, *controls.options]
    api_only().click(segment_pictures, asked_inputs, [masks, scores], api_name="segment", concurrency_limit=2)
    api_only().click(
        download_pictures, [*asked_inputs, contents], file, api_name="segment_download", concurrency_limit=2
    )
    parts.button.click(
        write, inputs, [parts.said, file], api_visibility="private", concurrency_limit=4, show_progress="hidden"
    ).success(None, js=parts.press)


def asked(
    bench: Workbench, store: Targets, image: str, model: str, resolution: str, marks: str, paths: Sequence[str] | None,
    corrections: str, choice: Choice,
) -> tuple[Search, list[Refused]]:  # fmt: skip
    """What a client asks for, encoded now: marks as a list, corrections by number of the target from 0."""
    look = bench.look(image, model, int(resolution))
    search = Search(store.derived, look, marking.listed(marks), choice)
    if not len(search.parsed):
        raise DinovizError("Nothing is marked: give at least one point on the thing, or a stroke over it.")
    given = marking.by_picture(corrections)
    found = [store.get(path, model, resolution) for path in checked(paths)]
    by_digest = {}
    for number, raw in given.items():
        if not number.isdecimal() or int(number) >= len(found):
            raise DinovizError(f"There is no target {number[:20]!r} to correct: they are 0 to {len(found) - 1}.")
        if isinstance(found[int(number)], Target):
            by_digest[found[int(number)].digest] = raw
    targets = [one for one in found if isinstance(one, Target)]
    search = Search(store.derived, look, search.marks, choice, targets, by_digest)
    return search, [one for one in found if isinstance(one, Refused)]


def results(search: Search, tell: Tell = lambda *_: None) -> Iterator[tuple[str, Image.Image, Segmentation]]:
    """Every picture at full size: a name of its own, the picture, what was found; the reference first, as 0000."""
    look = search.look
    reference = mark(look.features, look.picture.image, search.parsed, search.choice)
    if reference is None:
        raise DinovizError("Nothing is marked as the thing: click on it, or draw over it.")
    count = 1 + len(search.targets)
    tell(f"Writing picture 1 of {count}", 0.5 / count)
    yield f"0000-{Path(look.picture.name).stem}", look.picture.image, reference
    for i, target in enumerate(search.targets, start=1):
        tell(f"Writing picture {i + 1} of {count}", i / count)
        picture = target.full
        yield f"{i:04d}-{Path(target.name).stem}", picture, search.result(target, picture)


def written_masks(search: Search, refused: Sequence[Refused]) -> tuple[list[str], dict]:
    """Mask files, and what is to be said of each picture."""
    folder = fresh_folder()
    files, said = [], []
    for name, _, found in results(search):
        path = folder / f"{name}.png"
        path.write_bytes(render.to_png(kept(found)))
        files.append(str(path))
        said.append({"mask": path.name, **facts(found)})
    return files, {"pictures": said, "refused": [one.sentence for one in refused], **made_with(search)}


def zipped(search: Search, refused: Sequence[Refused], contents: Sequence[str], tell: Tell = lambda *_: None) -> str:
    """The zip, written picture by picture -> its path."""
    unknown = [name for name in contents if name not in CONTENTS]
    if unknown or not contents:
        raise DinovizError(f"Into the zip go any of {', '.join(CONTENTS)}{f', not {unknown[0]!r}' if unknown else ''}.")
    about = {"view": "segment", **made_with(search), "refused": [one.sentence for one in refused], "pictures": []}
    entries: list[dict] = []

    def files() -> Iterator[tuple[str, bytes]]:
        for name, picture, found in results(search, tell):
            mask = kept(found) > 0
            about["pictures"].append({"name": name, **facts(found)})
            annotations = [{"number": 1, "annotation": coco.annotation(mask, found.presence)}] if mask.any() else []
            size = {"width": picture.width, "height": picture.height}
            entries.append({"name": f"{name}.png", **size, "classes": annotations})
            if MASKS in contents:
                yield f"masks/{name}.png", render.to_png(kept(found))
            if found.present and CUTOUTS in contents:
                yield f"cut-outs/{name}.png", render.to_png(render.cutout(picture, mask))
            if found.present and OVERLAYS in contents:
                yield f"overlays/{name}.jpg", render.to_jpeg(render.overlay(picture, mask, search.choice.opacity))
        if COCO in contents:
            file = io.StringIO()
            coco.write(file, {1: "object"}, lambda: entries)
            yield "coco.json", file.getvalue().encode()

    return bundle("segments", files(), about)


def kept(found: Segmentation):
    """The mask as a picture, 255 on the thing; empty where the thing is not in the picture."""
    return (found.mask & found.present).astype("uint8") * 255


def facts(found: Segmentation) -> dict:
    """What is known of one picture."""
    return {
        "present": bool(found.present),
        "presence": round(float(found.presence), 4),
        "threshold": round(float(found.threshold), 4),
        "area": int((found.mask & found.present).sum()),
    }


def made_with(search: Search) -> dict:
    """What the masks were made with."""
    layers = [layer + 1 for layer in segment.layers_of(search.look.backbone.layers)]
    return {
        **search.look.about(),
        "layers": layers,
        "marks": search.marks,
        "corrections": {target.name: search.corrections[target.digest] for target in search.corrected},
        "options": {k: v for k, v in asdict(search.choice).items() if k != "view"},
    }
