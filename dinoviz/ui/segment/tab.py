"""The Segment tab: point at a thing or draw over it, and find it in other pictures and in a video."""

from __future__ import annotations

import html
import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import gradio as gr

from dinoviz.errors import DinovizError
from dinoviz.segment import prompts as marking
from dinoviz.segment.few_shot import METHODS
from dinoviz.ui.components.mark_canvas import MarkCanvas
from dinoviz.ui.image_bar import Bar
from dinoviz.ui.jobs import Job
from dinoviz.ui.segment import downloads as segment_files
from dinoviz.ui.segment import examples as segment_examples
from dinoviz.ui.segment import video as segment_video
from dinoviz.ui.segment.state import ALL, CLICKED, OVERLAY, VIEWS, Choice, Search
from dinoviz.ui.segment.target_gallery import TargetGallery
from dinoviz.ui.segment.targets import Target, Targets, checked
from dinoviz.ui.segment.views import card, draw, gallery_caption, reference_caption, target_caption
from dinoviz.ui.shared import (
    DRAWING,
    EMPTY,
    ONCE,
    PRIVATE,
    WAITING,
    file_name,
    follow,
    jpeg_file,
    note,
    stop_shown,
    told,
)
from dinoviz.ui.workbench import Look, Workbench

REPAINT_EVERY = 0.4  # seconds between two states of a gallery that is being filled


@dataclass(frozen=True)
class Controls:
    """The parts of the tab that the downloads, the examples and the endpoints read."""

    canvas: MarkCanvas
    caption: gr.HTML
    files: gr.File
    target: MarkCanvas
    options: list

    @property
    def inputs(self) -> list:
        """What says, beside the bar, what is looked for and where."""
        return [self.canvas, self.files, self.target, *self.options]


def build(bench: Workbench, bar: Bar, here: gr.State) -> None:
    """Lay out the tab and wire it. here: whether it is open."""
    store = Targets(bench)
    with gr.Row():
        with gr.Column(min_width=320):
            canvas = MarkCanvas(title="What you want: click on it, or draw over it", elem_id="segment-reference")
            caption = gr.HTML(note("Waiting for the picture …"), label="caption", elem_id="segment-caption")
            options = _options()
            downloads = segment_files.lay_out()
        with gr.Column(min_width=320), gr.Tabs():
            with gr.Tab("In other pictures", id="segment-pictures"):
                with gr.Row():
                    files = gr.File(
                        label="Drop pictures", file_count="multiple", height=130, value=[], elem_id="segment-files",
                        scale=3, min_width=200,
                    )  # fmt: skip
                    example = gr.Button("Try an example", size="sm", elem_id="segment-example", scale=1, min_width=110)
                with gr.Row(visible=False, elem_id="segment-progress") as progress_row:
                    progress = gr.HTML(label="progress", elem_id="segment-encoding")
                    stop_button = gr.Button("Stop", size="sm", scale=0, min_width=90, elem_id="segment-stop")
                    resume = gr.Button(
                        "Go on", size="sm", scale=0, min_width=90, elem_id="segment-resume", visible=False
                    )
                found = gr.HTML(note(gallery_caption([], None)), label="found", elem_id="segment-found")
                gallery = TargetGallery(elem_id="segment-gallery")
                with gr.Column(visible=False, elem_id="segment-open") as opened:
                    target = MarkCanvas(title="Correct it here: all results follow", elem_id="segment-target")
                    target_note = gr.HTML(label="target", elem_id="segment-target-caption")
            with gr.Tab("In a video", id="segment-clips"):
                segment_video.build(bench, bar, store, canvas, options)
    controls = Controls(canvas, caption, files, target, options)
    inputs = [*bar.inputs, *controls.inputs]
    with bar.unseen:
        arrived = gr.State(None)  # which targets are encoded; its change is the moment to show them
        question = gr.State(None)  # what is looked for, as it is drawn: look, marks, corrections, options

    def search_of(image, model, resolution, marks, files, corrections, *chosen) -> Search | None:
        """What the page asks for; None while the picture is not encoded. Raises DinovizError."""
        look = bench.peek(image, model, resolution)
        if look is None:
            return None
        targets = [store.peek(path, model, resolution) for path in checked(files)]
        return Search(
            store.derived,
            look,
            marking.by_picture(marks).get(look.picture.digest, []),
            Choice(*chosen),
            [one for one in targets if isinstance(one, Target)],
            marking.by_picture(corrections),
        )

    def draw_reference(here: bool, ready: Hashable, question: tuple | None, *values):
        """What the controls say. All of them come here, one after the other: an older answer never comes last."""
        nothing = gr.update(picture="", image="")
        if not here:
            gone = question is not None and question[0] != ready
            return (nothing, note(DRAWING), gr.skip()) if gone else gr.skip()
        if ready is None:
            return nothing, note(EMPTY), gr.skip()
        with told():
            search = search_of(*values)
            if search is None:  # it is being encoded, and drawn when that is done
                return gr.skip()
            return *_reference(search), (search.look.key, search.marks, search.corrections, search.choice)

    def encode_targets(
        ready: Hashable, arrived: tuple | None, image, model, resolution, files, request: gr.Request
    ) -> Iterator[tuple]:
        """Encode the targets with progress, so that looking for anything in them is instant."""
        if ready is None:
            return
        owner = (request.session_hash, "targets")
        with told():
            paths = checked(files)
        if not paths and not (arrived and arrived[1]):
            return

        def state() -> tuple:
            return ready, tuple(paths), tuple(path for path in paths if store.peek(path, model, resolution))

        running = gr.Row(visible=True), stop_shown(True), gr.Button(visible=False)
        if len(state()[-1]) < len(paths):
            job = store.start(owner, paths, model, resolution)
            for sentence in follow(bench, owner, job):
                yield note(html.escape(sentence), "caption dv-busy"), *running, state()
            if job.superseded:
                return
            if job.stopped:
                said = f"Stopped after {len(state()[-1])} of {len(paths)} pictures."
                yield note(said), gr.skip(), stop_shown(False), gr.Button("Go on", visible=True), state()
                return
            with told():
                job.result()
        missing = len(paths) - len(state()[-1])
        fewer = f"{missing} did not fit into the memory: take fewer pictures, or a lower resolution."
        idle = gr.Row(visible=missing > 0), stop_shown(False), gr.Button(visible=False)
        yield note(fewer, "caption dv-error"), *idle, state()

    def paint_gallery(request: gr.Request, image, model, resolution, marks, files, *rest) -> Iterator[tuple]:
        """Look for the thing in every target; a newer question ends an older one."""
        owner = (request.session_hash, "gallery")
        with told():
            paths = checked(files)
        cards = [{"key": path, "name": file_name(path), "state": "pending"} for path in paths]

        def work(job: Job) -> str:
            with store.turn(request.session_hash):
                return look_everywhere(job)

        def look_everywhere(job: Job) -> str:
            job.tell("Looking")  # or end here: quick clicks need not all be answered, only the last
            if not paths:
                return note(gallery_caption([], None))
            search = search_of(image, model, resolution, marks, files, *rest)
            trouble = search.trouble if search else ""
            for i, path in enumerate(paths):
                job.tell("Looking", i / len(paths))
                cards[i] = card(path, store.peek(path, model, resolution), None if trouble else search)
            if trouble:
                return note(html.escape(trouble), "caption dv-error")
            return note(gallery_caption(cards, search))

        job = bench.start(owner, time.monotonic(), work)
        shown = time.monotonic()
        for _ in follow(bench, owner, job):
            if time.monotonic() - shown > REPAINT_EVERY:
                shown = time.monotonic()
                yield gr.update(items=list(cards)), gr.skip()
        if job.stopped:
            return
        with told():
            yield gr.update(items=cards), job.result()

    def open_target(chosen: str, image, model, resolution, marks, files, *rest):
        """Show a target large, where it can be corrected."""
        hidden = gr.Column(visible=False), gr.update(picture="", image=""), ""
        one = store.peek(chosen, model, resolution) if chosen in (files or []) else None
        with told():
            search = search_of(image, model, resolution, marks, files, *rest)
            if search is None or not isinstance(one, Target):
                return hidden
            return gr.Column(visible=True), *_target(search, one)

    def stop(request: gr.Request) -> None:
        bench.stop((request.session_hash, "targets"))

    def unlock_threshold(auto: bool):
        return gr.Slider(interactive=not auto)

    changes = [canvas.input, target.input, *(option.input for option in options)]
    gr.on(
        [files.change, bar.ended.change, resume.click], encode_targets,
        [bar.ready, arrived, *bar.inputs, files],
        [progress, progress_row, stop_button, resume, arrived],
        **WAITING,
    )  # fmt: skip
    gr.on(
        [bar.ended.change, here.change, *changes], draw_reference, [here, bar.ready, question, *inputs],
        [canvas, caption, question], **PRIVATE,
    )  # fmt: skip
    # Behind the reference, and so not more often than that is drawn, however quickly a slider moves.
    gr.on([question.change, arrived.change], paint_gallery, inputs, [gallery, found], **WAITING)
    gr.on(
        [*changes, arrived.change, gallery.select], open_target, [gallery, *inputs], [opened, target, target_note],
        **PRIVATE,
    )  # fmt: skip
    auto, threshold = options[:2]
    auto.input(unlock_threshold, auto, threshold, **PRIVATE)
    stop_button.click(stop, queue=False, **ONCE)
    segment_files.wire(bench, bar, store, controls, downloads, search_of)
    example.click(segment_examples.pictures, None, [bar.image, canvas, files, *options[4:5]], **ONCE)


def _options() -> list:
    """The controls, in the order of `Choice`."""
    with gr.Row():
        view = gr.Radio(list(VIEWS), value=OVERLAY, label="Show", elem_id="segment-view", min_width=250)
        instances = gr.Radio([CLICKED, ALL], value=CLICKED, label="Keep", elem_id="segment-instances", min_width=200)
    with gr.Row():
        auto = gr.Checkbox(True, label="Calibrated threshold", elem_id="segment-auto", min_width=130)
        refine = gr.Checkbox(True, label="Follow edges", elem_id="segment-refine", min_width=110)
    with gr.Row():
        threshold = gr.Slider(
            0, 1, value=0.5, step=0.01, label="Threshold", elem_id="segment-threshold", interactive=False, min_width=140
        )
        smallest = gr.Slider(
            0, 5, value=0.1, step=0.05, label="Smallest area, %", elem_id="segment-smallest", min_width=140
        )
    with gr.Row():
        opacity = gr.Slider(0, 1, value=0.5, step=0.05, label="Opacity", elem_id="segment-opacity", min_width=140)
        method = gr.Dropdown(list(METHODS), value="evidence", label="Method", elem_id="segment-method", min_width=140)
    return [auto, threshold, refine, smallest, instances, method, view, opacity]


def _reference(search: Search) -> tuple:
    """The canvas with the mask, and the caption."""
    look, found = search.look, search.marked
    canvas = _canvas(look, draw(look.picture.shown, look.features, found, search.choice), len(search.marks))
    return canvas, note(reference_caption(search, found))


def _canvas(look: Look, picture, answered: int) -> dict:
    return gr.update(
        image=jpeg_file(picture),
        picture=look.picture.digest,
        size=list(look.picture.size),
        answered=answered,
    )


def _target(search: Search, target: Target) -> tuple:
    """The same for a target."""
    shown = target.shown
    try:
        found = search.result(target, shown)
    except DinovizError as error:
        return gr.skip(), note(html.escape(str(error)), "caption dv-error")
    picture = draw(shown, target.halved, found if found and found.present else None, search.choice)
    canvas = gr.update(
        image=jpeg_file(picture),
        picture=target.digest,
        size=list(target.size),
        answered=len(search.corrections.get(target.digest, [])),
    )
    return canvas, note(target_caption(search, target, found))
