"""What the Segment tab's controls do: encode the targets, draw the reference, the gallery and the open target."""

from __future__ import annotations

import html
import time
from collections.abc import Hashable, Iterator, Sequence

import gradio as gr

from dinoviz.segment import prompts
from dinoviz.ui.jobs import Job
from dinoviz.ui.segment.state import Query, Search
from dinoviz.ui.segment.targets import Refused, Target, Targets, checked
from dinoviz.ui.segment.views import card, gallery_caption, reference_update, target_update
from dinoviz.ui.shared import DRAWING, EMPTY, file_name, follow, note, stop_shown, user_errors
from dinoviz.ui.workbench import Workbench

REPAINT_EVERY = 0.4  # seconds between two updates of a gallery that is being filled


class Handlers:
    """The tab's event handlers. `values` are those of `Query.of`: of the bar, then of `Controls.inputs`."""

    def __init__(self, bench: Workbench, store: Targets):
        self.bench, self.store = bench, store

    def search(self, query: Query) -> Search | None:
        """The search of the page; None while the picture is not encoded. Raises DinovizError."""
        look = self.bench.peek(query.image, query.model, query.resolution)
        if look is None:
            return None
        targets = [self._peek(query, path) for path in checked(query.targets)]
        return Search(
            self.store.derived,
            look,
            prompts.by_picture(query.marks).get(look.picture.digest, []),
            query.choice,
            [target for target in targets if isinstance(target, Target)],
            prompts.by_picture(query.corrections),
        )

    def refused(self, query: Query) -> list[Refused]:
        """The targets that cannot be read or encoded."""
        targets = [self._peek(query, path) for path in query.targets or []]
        return [target for target in targets if isinstance(target, Refused)]

    def _peek(self, query: Query, path: str) -> Target | Refused | None:
        return self.store.peek(path, query.model, query.resolution)

    def draw_reference(self, is_open: bool, ready: Hashable, drawn: tuple | None, *values):
        """Draw the reference. All controls come here, one after the other, so that no older result comes last."""
        nothing = gr.update(picture="", image="")
        if not is_open:
            outdated = drawn is not None and drawn[0] != ready
            return (nothing, note(DRAWING), gr.skip()) if outdated else gr.skip()
        if ready is None:
            return nothing, note(EMPTY), gr.skip()
        with user_errors():
            search = self.search(Query.of(*values))
            if search is None:  # it is being encoded, and drawn when that ends
                return gr.skip()
            return *reference_update(search), (search.look.key, search.marks, search.corrections, search.choice)

    def encode_targets(
        self, ready: Hashable, encoded: tuple | None, image, model, resolution, files, request: gr.Request
    ) -> Iterator[tuple]:
        """Encode the targets with progress, so that every search in them is instant."""
        if ready is None:
            return
        owner = (request.session_hash, "targets")
        with user_errors():
            paths = checked(files)
        if not paths and not (encoded and encoded[1]):
            return

        def state() -> tuple:
            return ready, tuple(paths), tuple(path for path in paths if self.store.peek(path, model, resolution))

        if len(state()[-1]) < len(paths):
            running = gr.Row(visible=True), stop_shown(True), gr.Button(visible=False)
            job = self.store.start(owner, paths, model, resolution)
            for progress in follow(self.bench, owner, job):
                yield note(html.escape(progress), "caption dv-busy"), *running, state()
            if job.superseded:
                return
            if job.stopped:
                stopped = note(f"Stopped after {len(state()[-1])} of {len(paths)} pictures.")
                yield stopped, gr.skip(), stop_shown(False), gr.Button("Resume", visible=True), state()
                return
            with user_errors():
                job.result()
        missing = len(paths) - len(state()[-1])
        left_out = f"{missing} did not fit into the memory: take fewer pictures, or a lower resolution."
        idle = gr.Row(visible=missing > 0), stop_shown(False), gr.Button(visible=False)
        yield note(left_out, "caption dv-error"), *idle, state()

    def draw_gallery(self, request: gr.Request, *values) -> Iterator[tuple]:
        """Search every target; a newer call stops an older one."""
        owner = (request.session_hash, "gallery")
        with user_errors():
            query = Query.of(*values)
            paths = checked(query.targets)
        cards = [{"key": path, "name": file_name(path), "state": "pending"} for path in paths]

        def work(job: Job) -> str:
            with self.store.turn(request.session_hash):
                return self._search_targets(job, query, paths, cards)

        job = self.bench.start(owner, time.monotonic(), work)
        shown = time.monotonic()
        for _ in follow(self.bench, owner, job):
            if time.monotonic() - shown > REPAINT_EVERY:
                shown = time.monotonic()
                yield gr.update(items=list(cards)), gr.skip()
        if job.stopped:
            return
        with user_errors():
            yield gr.update(items=cards), job.result()

    def _search_targets(self, job: Job, query: Query, paths: Sequence[str], cards: list[dict]) -> str:
        """Replace the cards by their results one by one; returns the caption."""
        job.report("Searching")  # ends here for all but the last of several quick clicks
        if not paths:
            return note(gallery_caption([], None))
        search = self.search(query)
        problem = search.problem if search else ""
        for i, path in enumerate(paths):
            job.report("Searching", i / len(paths))
            cards[i] = card(path, self._peek(query, path), None if problem else search)
        if problem:
            return note(html.escape(problem), "caption dv-error")
        return note(gallery_caption(cards, search))

    def open_target(self, chosen: str, *values):
        """Show a target large, where it can be corrected."""
        hidden = gr.Column(visible=False), gr.update(picture="", image=""), ""
        with user_errors():
            query = Query.of(*values)
            target = self._peek(query, chosen) if chosen in (query.targets or []) else None
            search = self.search(query)
            if search is None or not isinstance(target, Target):
                return hidden
            return gr.Column(visible=True), *target_update(search, target)

    def stop(self, request: gr.Request) -> None:
        """Stop encoding the targets."""
        self.bench.stop((request.session_hash, "targets"))

    def unlock_threshold(self, auto: bool):
        """The threshold can be set where it is not calibrated."""
        return gr.Slider(interactive=not auto)
