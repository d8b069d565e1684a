"""The first half of the Train tab: the training data, the task with its settings, and how long the run takes."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from dinoviz.ui.image_bar import Bar
from dinoviz.ui.shared import PRIVATE, WAITING, LiveDropdown, note
from dinoviz.ui.train import crops, depth_data
from dinoviz.ui.train.form import Form
from dinoviz.ui.train.image_data import DEMO, FOLDER, UPLOAD, demo_words
from dinoviz.ui.train.run_request import ADAPT, FINETUNE, PROBE, SCRATCH, RequestReader
from dinoviz.ui.train.setup_handlers import FILES, FIRST_PRESET, Handlers, preset_values, presets
from dinoviz.ui.workbench import Workbench
from training.config.cli import KINDS
from training.config.pretrain import PRESETS

TASKS = (
    ("Pretrain from scratch", SCRATCH),
    ("Continue from the model above", ADAPT),
    ("Fine-tune a classifier", FINETUNE),
    ("Depth probe", PROBE),
)


@dataclass(frozen=True, eq=False)
class Controls:
    """The components. columns and forms: by kind of run."""

    where: gr.Radio
    files: gr.File
    folder_row: gr.Row
    path: gr.Textbox
    held_out: gr.Textbox
    found: gr.HTML
    thumbnails: gr.HTML
    crops: crops.Controls
    task: gr.Radio
    preset: gr.Dropdown
    name: gr.Textbox
    teacher: gr.Dropdown
    columns: dict[str, gr.Column]
    forms: dict[str, Form]
    command: gr.Code
    keep: gr.Checkbox
    estimate: gr.Button
    start: gr.Button
    estimated: gr.HTML

    @property
    def data(self) -> list:
        """Where the training data is."""
        return [self.where, self.files, self.path, self.held_out]

    @property
    def settings(self) -> list:
        """The settings of all forms."""
        return [part for form in self.forms.values() for part in form.parts]

    def inputs(self, bar: Bar) -> list:
        """The inputs of `run_request.Values`, in its order."""
        choice = [bar.model, self.task, self.teacher, self.preset, self.name, self.keep]
        return [*self.data, *choice, *self.settings]


def build(tab: gr.Tab, bench: Workbench, bar: Bar) -> tuple[Controls, RequestReader]:
    """Build the half, all but what the Train button does. tab: the Train tab."""
    controls = layout(bench)
    reader = RequestReader(bench, controls.forms)
    wire(controls, Handlers(bench, controls.forms, reader), tab, bar)
    crops.wire(controls.crops, bench, bar, controls.inputs(bar), reader)
    return controls, reader


def layout(bench: Workbench) -> Controls:
    """Create the components."""
    with gr.Row():
        with gr.Column(min_width=320):
            data = _layout_data(bench)
        with gr.Column(min_width=320):
            task = _layout_task(bench)
    return Controls(**data, **task, **_layout_start())


def _layout_data(bench: Workbench) -> dict:
    """The training data: fields of `Controls`."""
    roots = bench.settings.data_roots
    gr.HTML('<div class="dv-title-of">1 · Training data</div>', padding=False)
    places = [("The built-in demo", DEMO), ("Upload", UPLOAD), *([("On this machine", FOLDER)] if roots else [])]
    where = gr.Radio(places, value=DEMO, show_label=False, elem_id="train-where")
    files = gr.File(
        label=FILES, file_count="multiple", height=140, value=[], visible=False, elem_id="train-files",
    )  # fmt: skip
    with gr.Row(visible=False) as folder_row:
        path = gr.Textbox(
            label="Folder, zip file or list",
            info=f"below {' or '.join(map(str, roots))}; a list is .txt or .csv with one path per line",
            elem_id="train-path", min_width=200, max_lines=1,
        )  # fmt: skip
        held_out = gr.Textbox(
            label="Held-out images",
            info="labelled, or with depth; never trained on. Empty: a share of the data, or none",
            elem_id="train-held-out", min_width=200, max_lines=1,
        )  # fmt: skip
    return {
        "where": where, "files": files, "folder_row": folder_row, "path": path, "held_out": held_out,
        "found": gr.HTML(note(demo_words()), label="data", elem_id="train-found"),
        "thumbnails": gr.HTML("", label="pictures", elem_id="train-pictures", padding=False),
        "crops": crops.layout(),
    }  # fmt: skip


def _layout_task(bench: Workbench) -> dict:
    """The task and its settings: fields of `Controls`."""
    gr.HTML('<div class="dv-title-of">2 · Task</div>', padding=False)
    task = gr.Radio(list(TASKS), value=SCRATCH, show_label=False, elem_id="train-task")
    with gr.Row():
        preset = LiveDropdown(
            presets(SCRATCH), value=FIRST_PRESET[SCRATCH], label="Preset",
            info=PRESETS[FIRST_PRESET[SCRATCH]].about, elem_id="train-preset", min_width=200,
        )  # fmt: skip
        name = gr.Textbox(
            label="Name of the run", info="letters, digits, . _ -; empty: the start time", max_lines=1,
            elem_id="train-name", min_width=160,
        )  # fmt: skip
    forms, columns = {}, {}
    for kind, config in KINDS.items():
        with gr.Column(visible=kind == "pretrain") as columns[kind]:
            if kind == "probe":
                teacher = _layout_teacher(bench)
            forms[kind] = Form(config, preset_values("micro") if kind == "pretrain" else {}, f"train-{kind}")
    return {"task": task, "preset": preset, "name": name, "teacher": teacher, "columns": columns, "forms": forms}


def _layout_teacher(bench: Workbench) -> gr.Dropdown:
    info = "a teacher predicts depth for pictures that have none"
    if not bench.settings.public:
        info += "; or type a run's name, a probe's file or folder"
    return LiveDropdown(
        depth_data.teachers(bench, bench.default_model), value=depth_data.OWN, label="Depth labels", info=info,
        elem_id="train-teacher", allow_custom_value=not bench.settings.public,
    )  # fmt: skip


def _layout_start() -> dict:
    """The command, the estimate and the start: fields of `Controls`."""
    gr.HTML('<div class="dv-title-of">3 · Start</div>', padding=False)
    with gr.Row():
        with gr.Column(min_width=320, scale=3):
            command = gr.Code(
                "", language="shell", label="The same on the command line", interactive=False, elem_id="train-command",
                wrap_lines=True, lines=2, max_lines=6,
            )  # fmt: skip
        with gr.Column(min_width=260, scale=2):
            keep = gr.Checkbox(
                False, label="Continue when the app is closed", elem_id="train-keep",
                info="otherwise the run stops then, and Resume continues it",
            )  # fmt: skip
            with gr.Row():
                estimate = gr.Button("Estimate the duration", elem_id="train-estimate", min_width=160)
                start = gr.Button("Train", variant="primary", elem_id="train-start", min_width=120)
            estimated = gr.HTML(note(""), label="estimate", elem_id="train-estimated")
    return {"command": command, "keep": keep, "estimate": estimate, "start": start, "estimated": estimated}


def wire(controls: Controls, handlers: Handlers, tab: gr.Tab, bar: Bar) -> None:
    """Connect the events of all components but the Train button, from the moment that the tab is opened."""
    c, inputs = controls, controls.inputs(bar)
    command = {"fn": handlers.show_command, "inputs": inputs, "outputs": [c.command, c.estimated], **PRIVATE}
    pretrain = c.forms["pretrain"].parts
    gr.on([c.where.input], handlers.show_where, c.where, [c.files, c.folder_row], **PRIVATE)
    shown = [c.files, c.preset, c.crops.part, *c.columns.values(), *pretrain]
    c.task.input(handlers.show_task, c.task, shown, **PRIVATE).then(**command)
    gr.on(
        [tab.select, c.task.input, bar.model.change], handlers.list_teachers, [bar.model, c.teacher], c.teacher,
        **PRIVATE,
    ).then(**command)  # fmt: skip
    c.preset.input(handlers.use_preset, c.preset, [c.preset, *pretrain], **PRIVATE).then(**command)
    gr.on(
        [tab.select, c.where.input, c.files.change, c.path.submit, c.path.blur, c.held_out.submit, c.held_out.blur,
         c.task.input, c.teacher.input],
        handlers.preview_data, [*c.data, c.task, c.teacher], [c.found, c.thumbnails], **WAITING,
    )  # fmt: skip
    changes = [part.input for part in (c.where, c.path, c.held_out, c.teacher, c.name, *c.settings)]
    gr.on([*changes, c.files.change], **command)
    c.estimate.click(handlers.show_estimate, inputs, c.estimated, **WAITING)
