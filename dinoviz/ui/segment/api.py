"""The Segment tab's endpoints for clients: masks, a zip of them, and the masks of a video."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from dinoviz.errors import DinovizError
from dinoviz.segment import prompts
from dinoviz.ui.endpoints import takes_settings
from dinoviz.ui.image_bar import Bar
from dinoviz.ui.segment import video
from dinoviz.ui.segment.exports import written_masks, zipped
from dinoviz.ui.segment.layout import Controls
from dinoviz.ui.segment.state import Choice, Query, Search
from dinoviz.ui.segment.targets import Refused, Target, Targets, checked
from dinoviz.ui.segment.tracking import first_frame, track, turns
from dinoviz.ui.shared import api_only, user_errors
from dinoviz.ui.workbench import Workbench


@dataclass(frozen=True)
class Contents:
    """What the zip holds."""

    contents: list[str]


def add_pictures(bench: Workbench, store: Targets, bar: Bar, controls: Controls) -> None:
    """Add the endpoints `segment` and `segment_download`."""
    marks = gr.Textbox("[]", label="marks", visible=False)
    corrections = gr.Textbox("{}", label="corrections", visible=False)
    masks = gr.File(label="masks", visible=False, file_count="multiple")
    scores = gr.JSON(label="scores", visible=False)
    inputs = [*bar.inputs, marks, controls.files, corrections, *controls.options]

    @takes_settings(Choice)
    def segment_pictures(
        image: str, model: str, resolution: str, marks: str, targets: list[str] | None, corrections: str, *options
    ) -> tuple[list[str], dict]:
        """Segment an object that is marked in one picture, there and in other pictures.

        Args:
            image: the picture with the object
            model: a name from the list
            resolution: the short side in model pixels
            marks: JSON, in pixels of the picture: a list of {"kind": "point", "x": 10, "y": 20, "label": 1} (0:
                background) and {"kind": "stroke", "points": [[10, 20], [30, 40]], "radius": 8, "erase": false}
            targets: pictures in which the object is searched
            corrections: JSON, marks in the targets by their number from 0: {"0": [...]}
            auto: calibrate the threshold
            threshold: of the score, 0 to 1, where it is not calibrated
            refine: let the masks follow the edges in the pictures
            smallest: drop parts below this percentage of the picture
            instances: 'what was clicked' or 'all instances'
            method: 'evidence' or 'mean'
            view: not used here
            opacity: not used here
        Returns:
            the masks as PNG files of the pictures' sizes, the first picture's first; and presence and scores
        """
        with user_errors():
            query = Query.of(image, model, resolution, marks, targets, corrections, *options)
            return written_masks(*encoded_search(bench, store, query))

    @takes_settings(Choice, Contents)
    def download_pictures(
        image: str, model: str, resolution: str, marks: str, targets: list[str] | None, corrections: str, *options
    ) -> str:
        """Segment as the segment endpoint does, into a zip: masks, cut-outs, overlays, COCO JSON and about.json.

        Args: as for the segment endpoint, and
            opacity: of the overlays, 0 to 1
            contents: any of 'masks', 'cut-outs', 'overlays', 'COCO JSON'
        Returns:
            the zip
        """
        *options, contents = options
        with user_errors():
            query = Query.of(image, model, resolution, marks, targets, corrections, *options)
            return zipped(*encoded_search(bench, store, query), contents)

    api_only().click(segment_pictures, inputs, [masks, scores], api_name="segment", concurrency_limit=2)
    api_only().click(
        download_pictures, [*inputs, controls.download.contents], controls.download.file, api_name="segment_download",
        concurrency_limit=2,
    )  # fmt: skip


def add_video(bench: Workbench, store: Targets, bar: Bar, controls: video.Controls, options: list) -> None:
    """Add the endpoint `segment_video`."""
    marks = gr.Textbox("[]", label="marks", visible=False)
    areas = gr.JSON(label="areas", visible=False)

    @takes_settings(Choice)
    def segment_video(
        model: str, resolution: str, clip: str | None, marks: str, every: int, *options
    ) -> tuple[str, dict, str]:
        """Segment an object that is marked in the first frame of a video, in every frame.

        Args:
            model: a name from the list
            resolution: the short side in model pixels
            clip: the video
            marks: JSON as for the segment endpoint, in pixels of the first frame
            every: only every n-th frame
            auto: as for the segment endpoint, for the first frame; and so are the next five
            view: not used here
            opacity: of the mask in the overlay video, 0 to 1
        Returns:
            the overlay video, the areas as shares of the frame, and a zip of the masks
        """
        with user_errors():
            choice = Choice(*options)
            look = bench.look(first_frame(clip), model, int(resolution))
            search = Search(store.derived, look, prompts.listed(marks), choice)
            tracked = track(search, clip, int(every), turn=turns(bench, look))
            numbers = {"areas": tracked.areas, "frames_a_second": tracked.rate, "trouble": tracked.problem}
            return tracked.overlay, numbers, tracked.archive

    api_only().click(
        segment_video, [bar.model, bar.resolution, controls.clip, marks, controls.every, *options],
        [controls.overlay, areas, controls.archive], api_name="segment_video", concurrency_limit=1,
    )  # fmt: skip


def encoded_search(bench: Workbench, store: Targets, query: Query) -> tuple[Search, list[Refused]]:
    """The search of a client, encoded now: marks as a list, corrections by number of the target from 0.

    Returns the search, and the targets that cannot be read. Raises DinovizError.
    """
    look = bench.look(query.image, query.model, int(query.resolution))
    search = Search(store.derived, look, prompts.listed(query.marks), query.choice)
    if not len(search.parsed):
        raise DinovizError("Nothing is marked: give at least one point on the object, or a stroke over it.")
    corrections = prompts.by_picture(query.corrections)
    found = [store.get(path, query.model, query.resolution) for path in checked(query.targets)]
    by_digest = {}
    for number, marks in corrections.items():
        if not number.isdecimal() or int(number) >= len(found):
            raise DinovizError(
                f"There is no target {number[:20]!r} to correct: there are {len(found)}, numbered from 0."
            )
        if isinstance(found[int(number)], Target):
            by_digest[found[int(number)].digest] = marks
    targets = [target for target in found if isinstance(target, Target)]
    search = Search(store.derived, look, search.marks, query.choice, targets, by_digest)
    return search, [target for target in found if isinstance(target, Refused)]
