"""The first half of the Train tab: what to train on, what to do with it, and how long that takes."""

from __future__ import annotations

import html
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import gradio as gr
import numpy as np

from dinoviz.depth.probe import ASSETS, SHIPPED
from dinoviz.errors import DinovizError
from dinoviz.ui.image_bar import Bar
from dinoviz.ui.shared import PRIVATE, WAITING, LiveDropdown, follow, note, picture_grid, told
from dinoviz.ui.train import crops as train_crops
from dinoviz.ui.train import depth_data as train_depth
from dinoviz.ui.train.depth_data import DepthSource, teacher_of
from dinoviz.ui.train.form import Form
from dinoviz.ui.train.image_data import DEMO, FOLDER, UPLOAD, Source, check_broken, demo_words, in_words, surveyed
from dinoviz.ui.train.run_list import duration
from dinoviz.ui.workbench import Workbench
from training.config.base import Config
from training.config.cli import KINDS, command_line
from training.config.pretrain import PRESETS, pretrain_preset
from training.data.demo import demo
from training.depth.pseudo_labels import MAX_BROKEN
from training.estimate import estimate
from training.runs.run import check_name

SCRATCH, ADAPT, FINETUNE, PROBE = "scratch", "adapt", "finetune", "probe"
TASKS = (
    ("Pretrain from scratch", SCRATCH),
    ("Go on from the model above", ADAPT),
    ("Fine-tune a classifier", FINETUNE),
    ("Depth probe", PROBE),
)
KIND = {SCRATCH: "pretrain", ADAPT: "pretrain", FINETUNE: "finetune", PROBE: "probe"}
FIRST_PRESET = {SCRATCH: "micro", ADAPT: "adapt"}
FILES = "A zip file (a folder for each class, if there are classes), or many images"
FILES_FOR_PROBE = "A zip file with rgb and depth in it; for a teacher, a zip file or many images"
HELD_OUT = 0.1  # of labelled pictures, for k-NN accuracy while one watches


@dataclass(frozen=True)
class Order:
    """What the page asks for: a run that can be made."""

    kind: str
    config: Config
    preset: str
    name: str
    source: Source | DepthSource
    keep: bool

    def config_on(self, folder: Path) -> Config:
        """The configuration with its data, of which uploads go into `folder`."""
        paths, held_out = self.source.paths(folder), self.source.held_out_path
        data = {"data": paths[0] if self.kind == "probe" else paths}
        return replace(self.config, **data, **{"validation" if self.kind == "pretrain" else "test": held_out})


@dataclass(frozen=True)
class Setup:
    """The parts that starting a run reads."""

    start: gr.Button
    name: gr.Textbox
    inputs: list
    order: Callable[..., Order]


def build(tab: gr.Tab, bench: Workbench, bar: Bar) -> Setup:
    """Lay out the tab's first half and wire all but the start itself, from the moment that the tab is opened."""
    roots = bench.settings.data_roots
    with gr.Row():
        with gr.Column(min_width=320):
            gr.HTML('<div class="dv-title-of">1 · What to learn from</div>', padding=False)
            places = [("The built-in demo", DEMO), ("Upload", UPLOAD)]
            if roots:
                places.append(("On this machine", FOLDER))
            where = gr.Radio(places, value=DEMO, show_label=False, elem_id="train-where")
            files = gr.File(
                label=FILES, file_count="multiple", height=140, value=[], visible=False, elem_id="train-files",
            )  # fmt: skip
            with gr.Row(visible=False) as folder_row:
                path = gr.Textbox(
                    label="Folder, zip file or list",
                    info=f"below {' or '.join(map(str, roots))}; a list is .txt or .csv with a path a line",
                    elem_id="train-path", min_width=200, max_lines=1,
                )  # fmt: skip
                held_out = gr.Textbox(
                    label="Held-out images",
                    info="labelled, or with depth; never trained on. Empty: a share of the data, or none",
                    elem_id="train-held-out", min_width=200, max_lines=1,
                )  # fmt: skip
            found = gr.HTML(note(demo_words()), label="data", elem_id="train-found")
            thumbnails = gr.HTML("", label="pictures", elem_id="train-pictures", padding=False)
            crops = train_crops.lay_out()
        with gr.Column(min_width=320):
            gr.HTML('<div class="dv-title-of">2 · What to do</div>', padding=False)
            task = gr.Radio(list(TASKS), value=SCRATCH, show_label=False, elem_id="train-task")
            with gr.Row():
                preset = LiveDropdown(
                    _presets(SCRATCH), value=FIRST_PRESET[SCRATCH], label="Preset",
                    info=PRESETS[FIRST_PRESET[SCRATCH]].about, elem_id="train-preset", min_width=200,
                )  # fmt: skip
                name = gr.Textbox(
                    label="Name of the run", info="letters, digits, . _ -; empty: the time", max_lines=1,
                    elem_id="train-name", min_width=160,
                )  # fmt: skip
            forms, columns = {}, {}
            for kind, config in KINDS.items():
                with gr.Column(visible=kind == "pretrain") as columns[kind]:
                    if kind == "probe":
                        teacher = LiveDropdown(
                            train_depth.teachers(bench, bench.default_model), value=train_depth.OWN,
                            label="Who tells the depth", info=_teacher_info(bench), elem_id="train-teacher",
                            allow_custom_value=not bench.settings.public,
                        )  # fmt: skip
                    forms[kind] = Form(config, _preset_values("micro") if kind == "pretrain" else {}, f"train-{kind}")
    gr.HTML('<div class="dv-title-of">3 · Begin</div>', padding=False)
    with gr.Row():
        with gr.Column(min_width=320, scale=3):
            command = gr.Code(
                "", language="shell", label="The same on the command line", interactive=False, elem_id="train-command",
                wrap_lines=True, lines=2, max_lines=6,
            )  # fmt: skip
        with gr.Column(min_width=260, scale=2):
            keep = gr.Checkbox(
                False, label="Go on when the app is closed", elem_id="train-keep",
                info="else the run ends then, where Resume can take it up",
            )  # fmt: skip
            with gr.Row():
                how_long = gr.Button("How long will it take?", elem_id="train-estimate", min_width=160)
                start = gr.Button("Train", variant="primary", elem_id="train-start", min_width=120)
            estimated = gr.HTML(note(""), label="estimate", elem_id="train-estimated")
    data = [where, files, path, held_out]
    parts = [part for form in forms.values() for part in form.parts]
    inputs = [*data, bar.model, task, teacher, preset, name, keep, *parts]
    order = _reader(bench, forms)

    def show_where(where: str):
        return gr.File(visible=where == UPLOAD), gr.Row(visible=where == FOLDER)

    def show_task(task: str):
        choices = _presets(task)
        values = forms["pretrain"].write(_preset_values(FIRST_PRESET[task])) if choices else gr.skip()
        first = FIRST_PRESET.get(task)
        about = PRESETS[first].about if first else ""
        dropdown = gr.update(choices=choices, value=first, info=about, visible=bool(choices))
        shown = [gr.Column(visible=kind == KIND[task]) for kind in columns]
        crops_part = gr.Accordion(visible=KIND[task] == "pretrain")
        label = gr.File(label=FILES_FOR_PROBE if task == PROBE else FILES)
        return label, dropdown, crops_part, *shown, *(values if choices else [gr.skip()] * len(forms["pretrain"].parts))

    def use_preset(preset: str | None):
        with told():
            values = _preset_values(preset)  # raises for a name that is none
            return gr.update(info=PRESETS[preset].about), *forms["pretrain"].write(values)

    def offer_teachers(model: str, teacher: str | None):
        """Those of now; one that is no more, or that is this model's own, gives way to the pictures' depth."""
        offered = train_depth.teachers(bench, model)
        gone = teacher == train_depth.SHIPPED and teacher not in dict(offered).values()
        return gr.update(choices=offered, **({"value": train_depth.OWN} if gone else {}))

    def look_at_data(where, files, path, held_out, task, teacher, request: gr.Request) -> Iterator[tuple]:
        """Decode some of the pictures, with progress, and say what there is."""
        source, told_by = _source(bench, where, files, path, held_out), None
        try:
            told_by = teacher_of(bench, source, teacher) if task == PROBE else ""
            if task == PROBE:
                taught = DepthSource(source, told_by)
                pictures = taught.find()
                if pictures is None:
                    yield note(f"{taught.count():,} pictures with their depth."), ""
                    return
            else:
                pictures = source.find() or demo("train")
            owner = (request.session_hash, "train-data")
            job = bench.start(owner, source, lambda job: surveyed(bench, pictures, job))
            for sentence in follow(bench, owner, job):
                yield note(html.escape(sentence), "caption dv-busy"), gr.skip()
            if job.superseded:
                return
            seen = job.result()
        except DinovizError as error:
            empty = where == DEMO or (where == UPLOAD and not files) or (where == FOLDER and not path)
            empty = empty and told_by is not None  # there is no such teacher
            yield note(html.escape(str(error)), "caption" if empty else "caption dv-error"), ""
            return
        if told_by:
            words = train_depth.demo_words() if where == DEMO else in_words(seen, classes=False)
            words += f"<br>Their depth will be told by {html.escape(train_depth.teacher_name(told_by))} first."
        else:
            words = demo_words() if where == DEMO else in_words(seen)
        yield note(words), picture_grid(seen.thumbnails)

    def say_command(*values):
        try:
            wanted = order(*values, checked=False)
        except DinovizError as error:
            return f"# {error}", note("")
        config, data = wanted.config, wanted.source.names()
        if wanted.kind == "probe" and config.teacher == str(SHIPPED):  # as it is called where commands are typed
            config = replace(config, teacher=SHIPPED.relative_to(ASSETS.parent).as_posix())
        command = command_line(wanted.kind, config, name=wanted.name, preset=wanted.preset, data=data)
        return command, note("")  # an estimate was of something else

    def say_estimate(request: gr.Request, *values) -> Iterator[str]:
        try:
            wanted = order(*values, checked=False)
            config, count = _to_estimate(wanted), _count(wanted)
            owner = (request.session_hash, "train-estimate")
            job = bench.start(owner, time.monotonic(), lambda job: estimate(config, count, progress=job.tell))
            for sentence in follow(bench, owner, job):
                yield note(html.escape(sentence), "caption dv-busy")
            if job.superseded:
                return
            taken = job.result()
        except DinovizError as error:
            yield note(html.escape(str(error)), "caption dv-error")
            return
        yield note(f"<b>About {duration(taken.seconds)}</b>: {html.escape(taken.how)}")

    gr.on([where.input], show_where, where, [files, folder_row], **PRIVATE)
    after_task = [files, preset, crops.part, *columns.values(), *forms["pretrain"].parts]
    task.input(show_task, task, after_task, **PRIVATE).then(say_command, inputs, [command, estimated], **PRIVATE)
    gr.on([tab.select, task.input, bar.model.change], offer_teachers, [bar.model, teacher], teacher, **PRIVATE).then(
        say_command, inputs, [command, estimated], **PRIVATE
    )
    preset.input(use_preset, preset, [preset, *forms["pretrain"].parts], **PRIVATE).then(
        say_command, inputs, [command, estimated], **PRIVATE
    )
    gr.on(
        [tab.select, where.input, files.change, path.submit, path.blur, held_out.submit, held_out.blur, task.input,
         teacher.input],
        look_at_data, [*data, task, teacher], [found, thumbnails], **WAITING,
    )  # fmt: skip
    gr.on(
        [part.input for part in (where, path, held_out, teacher, name, *parts)] + [files.change],
        say_command, inputs, [command, estimated], **PRIVATE,
    )  # fmt: skip

    how_long.click(say_estimate, inputs, estimated, **WAITING)
    train_crops.wire(bench, bar, crops, inputs, order)
    return Setup(start, name, inputs, order)


def _reader(bench: Workbench, forms: dict[str, Form]) -> Callable[..., Order]:
    ends = np.cumsum([len(form.parts) for form in forms.values()])
    slices = {kind: slice(end - len(form.parts), end) for (kind, form), end in zip(forms.items(), ends, strict=True)}

    def order(
        where: str, files: list[str] | None, path: str, held_out: str, model: str, task: str, teacher: str | None,
        preset: str | None, name: str, keep: bool, *values, checked: bool = True,
    ) -> Order:  # fmt: skip
        """What the page asks for. Raises DinovizError; checked: also for pictures and names that cannot be."""
        kind = KIND[task]
        source = _source(bench, where, files, path, held_out)
        settings = forms[kind].read(list(values[slices[kind]]))
        if where == DEMO and kind == "pretrain":
            settings["validation_share"] = 0.0  # it has held-out images of its own
        if task != SCRATCH:
            bench.check_model(model)
        if task == ADAPT:
            settings["start"] = model
        elif task != SCRATCH:
            settings["model"] = model
        if task == PROBE:
            settings["teacher"] = teacher_of(bench, source, teacher)
            source = DepthSource(source, settings["teacher"])
        preset = (preset or "") if kind == "pretrain" else ""
        limits = bench.settings.limits if bench.settings.public else None
        wanted = Order(kind, KINDS[kind].from_dict(settings), preset, (name or "").strip(), source, bool(keep))
        if limits:
            limits.check(kind, wanted.config, 0)
        if not checked:
            return wanted
        pictures = source.find()
        if limits:
            limits.check(kind, wanted.config, _count(wanted))
        if pictures is not None:
            check_broken(bench, pictures, *((MAX_BROKEN, "") if task == PROBE else (wanted.config.max_broken,)))
        return replace(wanted, name=check_name(wanted.name or _name_of_now(wanted)))

    return order


def _source(bench: Workbench, where: str, files: list[str] | None, path: str | None, held_out: str | None) -> Source:
    """What the page says of the data; empty lines of text come as None."""
    roots = bench.settings.data_roots
    return Source(where, tuple(files or ()), (path or "").strip(), (held_out or "").strip(), roots)


def _name_of_now(wanted: Order) -> str:
    return f"{wanted.preset or wanted.kind}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(1)}"


def _presets(task: str) -> list[str]:
    return {SCRATCH: [name for name in PRESETS if name != "adapt"], ADAPT: ["adapt"]}.get(task, [])


def _preset_values(name: str) -> dict:
    return {**pretrain_preset(name), "validation_share": HELD_OUT}


def _count(wanted: Order) -> int:
    """How many pictures the run would learn from."""
    if wanted.kind == "probe":
        return wanted.source.count()
    pictures = wanted.source.find()
    return len(demo("train") if pictures is None else pictures)


def _to_estimate(wanted: Order) -> Config:
    """With its data, where a probe's lies in a folder already: how it is parted depends on its files' names."""
    if wanted.kind == "probe" and wanted.source.source.where == FOLDER:
        placed = wanted.config_on(Path())
        return placed if Path(placed.data).is_dir() else replace(placed, data="")
    return wanted.config


def _teacher_info(bench: Workbench) -> str:
    if bench.settings.public:
        return "a teacher, of pictures that have none"
    return "a teacher, of pictures that have none; or type a run's name, a probe's file or folder"
