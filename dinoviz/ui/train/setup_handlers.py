"""What the first half of the Train tab does: show the task's settings, preview the data, the command, the estimate."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator
from dataclasses import replace

import gradio as gr

from dinoviz.depth.probe import ASSETS, SHIPPED
from dinoviz.errors import DinovizError
from dinoviz.ui.shared import follow, note, picture_grid, user_errors
from dinoviz.ui.train import depth_data
from dinoviz.ui.train.depth_data import DepthSource, teacher_of
from dinoviz.ui.train.form import Form
from dinoviz.ui.train.image_data import DEMO, FOLDER, UPLOAD, Source, cached_preview, demo_words, preview_words
from dinoviz.ui.train.run_list import duration
from dinoviz.ui.train.run_request import ADAPT, KIND, PROBE, SCRATCH, RequestReader, source_of
from dinoviz.ui.workbench import Workbench
from training.config.cli import command_line
from training.config.pretrain import PRESETS, pretrain_preset
from training.data.demo import demo
from training.estimate import estimate

FIRST_PRESET = {SCRATCH: "micro", ADAPT: "adapt"}
FILES = "A zip file (a folder for each class, if there are classes), or many images"
FILES_FOR_PROBE = "A zip file with rgb and depth in it; for a teacher, a zip file or many images"
HELD_OUT = 0.1  # of labelled pictures, for k-NN accuracy during training


def presets(task: str) -> list[str]:
    """The presets of a task, none for those without."""
    return {SCRATCH: [name for name in PRESETS if name != "adapt"], ADAPT: ["adapt"]}.get(task, [])


def preset_values(name: str) -> dict:
    """The settings of a preset, with a held-out share. Raises ConfigError for an unknown name."""
    return {**pretrain_preset(name), "validation_share": HELD_OUT}


class Handlers:
    """The event handlers. `values` are those of `run_request.Values.of`."""

    def __init__(self, bench: Workbench, forms: dict[str, Form], reader: RequestReader):
        self.bench, self.forms, self.reader = bench, forms, reader

    def show_where(self, where: str):
        """Show the upload, or the row for a folder."""
        return gr.File(visible=where == UPLOAD), gr.Row(visible=where == FOLDER)

    def show_task(self, task: str):
        """Show the presets and the settings of a task."""
        kind, form = KIND[task], self.forms["pretrain"]
        choices, first = presets(task), FIRST_PRESET.get(task)
        about = PRESETS[first].about if first else ""
        values = form.write(preset_values(first)) if first else [gr.skip()] * len(form.parts)
        files = gr.File(label=FILES_FOR_PROBE if task == PROBE else FILES)
        dropdown = gr.update(choices=choices, value=first, info=about, visible=bool(choices))
        columns = [gr.Column(visible=each == kind) for each in self.forms]
        return files, dropdown, gr.Accordion(visible=kind == "pretrain"), *columns, *values

    def use_preset(self, preset: str | None):
        """Fill the form with the settings of a preset."""
        with user_errors():
            values = preset_values(preset)  # raises for an unknown name
            return gr.update(info=PRESETS[preset].about), *self.forms["pretrain"].write(values)

    def list_teachers(self, model: str, teacher: str | None):
        """List the present teachers; the pictures' own depth replaces a chosen one that is not among them any more."""
        choices = depth_data.teachers(self.bench, model)
        gone = teacher == depth_data.SHIPPED and teacher not in dict(choices).values()
        return gr.update(choices=choices, **({"value": depth_data.OWN} if gone else {}))

    def preview_data(
        self, where, files, path, held_out, task, teacher, request: gr.Request
    ) -> Iterator[tuple[object, object]]:
        """Decode some of the pictures, with progress, and describe them."""
        source = source_of(self.bench, where, files, path, held_out)
        try:
            label_source = teacher_of(self.bench, source, teacher) if task == PROBE else ""
        except DinovizError as error:  # there is no such teacher
            yield note(html.escape(str(error)), "caption dv-error"), ""
            return
        try:
            yield from self._preview(source, task, label_source, (request.session_hash, "train-data"))
        except DinovizError as error:
            nothing_given = where == DEMO or (where == UPLOAD and not files) or (where == FOLDER and not path)
            yield note(html.escape(str(error)), "caption" if nothing_given else "caption dv-error"), ""

    def _preview(self, source: Source, task: str, teacher: str, owner: tuple) -> Iterator[tuple[object, object]]:
        pictures = DepthSource(source, teacher).find() if task == PROBE else source.find() or demo("train")
        if pictures is None:
            yield note(f"{DepthSource(source, teacher).count():,} pictures with depth."), ""
            return
        job = self.bench.start(owner, (source, teacher), lambda job: cached_preview(self.bench, pictures, job))
        for progress in follow(self.bench, owner, job):
            yield note(html.escape(progress), "caption dv-busy"), gr.skip()
        if job.superseded:
            return
        found = job.result()
        if teacher:
            words = depth_data.demo_words() if source.where == DEMO else preview_words(found, classes=False)
            words += f"<br>Their depth labels are predicted by {html.escape(depth_data.teacher_name(teacher))} first."
        else:
            words = demo_words() if source.where == DEMO else preview_words(found)
        yield note(words), picture_grid(found.thumbnails)

    def show_command(self, *values):
        """The command line of the run, and no estimate: the last one was of other settings."""
        try:
            request = self.reader.read(*values, checked=False)
        except DinovizError as error:
            return f"# {error}", note("")
        config, data = request.config, request.source.names()
        if request.kind == "probe" and config.teacher == str(SHIPPED):  # by its place in the project
            config = replace(config, teacher=SHIPPED.relative_to(ASSETS.parent).as_posix())
        command = command_line(request.kind, config, name=request.name, preset=request.preset, data=data)
        return command, note("")

    def show_estimate(self, request: gr.Request, *values) -> Iterator[str]:
        """How long the run takes, by timing some of its steps."""
        try:
            run = self.reader.read(*values, checked=False)
            config, count = run.config_to_time(), run.count()
            owner = (request.session_hash, "train-estimate")
            job = self.bench.start(owner, time.monotonic(), lambda job: estimate(config, count, progress=job.report))
            for progress in follow(self.bench, owner, job):
                yield note(html.escape(progress), "caption dv-busy")
            if job.superseded:
                return
            taken = job.result()
        except DinovizError as error:
            yield note(html.escape(str(error)), "caption dv-error")
            return
        yield note(f"<b>About {duration(taken.seconds)}</b>: {html.escape(taken.how)}")
