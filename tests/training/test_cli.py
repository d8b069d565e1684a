"""`python -m training`: what is typed becomes a run, and what cannot be is answered in one line."""

import argparse
import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinoviz.__main__ import main as dinoviz_main
from dinoviz.depth import probe_file
from dinoviz.errors import DinovizError
from tests.conftest import ROOT
from tests.training.tiny_runs import settings, write_images
from training import depth_course
from training.__main__ import EVALUATE_HELP, FINETUNE_HELP, PRETRAIN_HELP, PROBE_HELP, _parser, main
from training.config.cli import save
from training.config.pretrain import PRESETS, PretrainConfig
from training.config.tasks import EvaluateConfig, FinetuneConfig, ProbeConfig
from training.dino.distillation import Distillation
from training.finetune import predict
from training.runs.paths import absolute
from training.runs.run import Run, list_runs

SETTINGS = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "probe": ProbeConfig, "evaluate": EvaluateConfig}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 64, classes=True)


@pytest.fixture(scope="module")
def tiny(images, tmp_path_factory) -> str:
    """Settings of a run of half an epoch."""
    path = tmp_path_factory.mktemp("settings") / "tiny.json"
    save(settings(images, epochs=0.5), path)
    return str(path)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Where one works: runs are below it, and relative paths begin there."""
    monkeypatch.delenv("DINOVIZ_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(capsys, *arguments: object) -> str:
    """What is said of a mistake: one line, status 2."""
    capsys.readouterr()
    try:
        status = main([str(each) for each in arguments])
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if line and "%|" not in line]  # which is of a bar
    assert line.startswith("training: ")
    assert line.endswith(".")
    return line


def done(capsys, *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(each) for each in arguments]) == 0
    return capsys.readouterr().out


def write_rooms(folder: Path, count: int) -> None:
    """Pictures with depth that grows from 1 m at the top to 4 m."""
    write_images(folder / "rgb", count)
    (folder / "depth").mkdir()
    for path in (folder / "rgb").iterdir():
        np.save(folder / "depth" / f"{path.stem}.npy", np.linspace(1, 4, 96 * 96, dtype=np.float32).reshape(96, 96))


@pytest.mark.parametrize("command", SETTINGS)
def test_the_help_of_a_command_explains_every_setting(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(SETTINGS[command]):
        assert field.metadata["help"].split(";")[0] in text, field.name
        if field.name != "data":
            assert f"--{field.name.replace('_', '-')}" in text


def test_the_help_names_all_commands_and_presets(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for command in (*SETTINGS, "resume", "stop", "export", "list"):
        assert command in text
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in PRESETS)


def commands_of(text: str) -> list[str]:
    found = re.findall(r"^ *(?:\$ )?(?:python -m|accelerate launch .*?-m) training (.+)$", text, re.MULTILINE)
    return [re.split(r" {3,}| +#|`", line)[0].strip() for line in found]


@pytest.mark.parametrize(
    "text", [PRETRAIN_HELP, FINETUNE_HELP, PROBE_HELP, EVALUATE_HELP, (ROOT / "README.md").read_text()]
)
def test_the_commands_that_are_shown_can_be_typed(text):
    parser = _parser()
    assert text.startswith("# ") or commands_of(text)
    for command in commands_of(text):
        assert isinstance(parser.parse_args(shlex.split(command)), argparse.Namespace), command


def test_settings_are_saved_and_taken_back(home, capsys, tiny):
    done(capsys, "pretrain", "photos", "--preset", "micro", "--lr", "0.25", "--no-compile", "--save-config", "a.json")
    assert not (home / "runs").exists()
    kept = json.loads((home / "a.json").read_text())
    assert kept == {**PretrainConfig(**PRESETS["micro"].values).to_dict(), "data": ["photos"], "lr": 0.25}
    done(capsys, "pretrain", "--config", "a.json", "--save-config", "b.json")
    assert (home / "a.json").read_text() == (home / "b.json").read_text()


def test_options_win_over_the_file_and_the_file_over_the_preset(home, capsys):
    (home / "a.json").write_text(json.dumps({"lr": 0.25, "depth": 7}))
    done(
        capsys, "pretrain", "x", "--preset", "micro", "--config", "a.json", "--depth", "5", "--save-config", "b.json"
    )  # fmt: skip
    kept = json.loads((home / "b.json").read_text())
    assert (kept["depth"], kept["lr"], kept["dim"]) == (5, 0.25, PRESETS["micro"].values["dim"])


def test_a_run_is_made_and_can_be_used_everywhere(home, capsys, tiny, images, monkeypatch):
    """Pretrain, list, export, evaluate, fine-tune, and look at it with dinoviz."""
    said = done(capsys, "pretrain", "--config", tiny, "--name", "mine", "--validation", os.path.relpath(images))
    assert "training: mine is finished at step 2 of 2" in said
    run = Run.open("mine")
    kept = Path(run.config["validation"])
    assert kept.is_absolute()  # so that it can be resumed from anywhere
    assert kept.resolve() == images.resolve()
    capsys.readouterr()
    again = home / "again.json"
    done(capsys, "pretrain", "--config", "runs/mine/config.json", "--save-config", again)
    assert json.loads(again.read_text()) == run.config
    assert re.search(r"^mine +pretrain +finished +2 of 2 +loss .*, knn ", done(capsys, "list"), re.MULTILINE)
    assert "step 2 of mine is in student; dinoviz.load opens it" in done(
        capsys, "export", "mine", "--student", "--out", "student"
    )
    done(capsys, "export", "runs/mine", "--student", "--out", "student")  # an export may be replaced
    said = done(capsys, "evaluate", images, "--model", "runs/mine", "--no-linear", "--out", "figures.json")
    assert re.search(r"20-NN top-1 \d+\.\d%", said)
    assert json.loads((home / "figures.json").read_text())["test"] > 0
    said = done(
        capsys, "finetune", images, "--model", "student", "--way", "linear", "--epochs", 2, "--name", "tuned"
    )  # fmt: skip
    assert "training: tuned is finished" in said
    assert [each.name for each in list_runs()] == ["tuned", "mine"]
    picture = next(images.rglob("*.png"))
    assert dinoviz_main(["attention", str(picture), "--model", "runs/mine", "--resolution", "64", "--out", "maps"]) == 0
    made = list((home / "maps").glob("*.png"))
    assert made
    for path in made:
        with Image.open(path) as shown:
            assert np.asarray(shown.convert("RGB")).std() > 5


def test_a_run_can_start_from_a_run(home, capsys, tiny):
    done(capsys, "pretrain", "--config", tiny, "--name", "first")
    done(capsys, "pretrain", "--config", tiny, "--name", "second", "--start", "runs/first", "--freeze-layers", 1)
    first, second = (Run.open(name).checkpoint().tensors("teacher") for name in ("first", "second"))
    name = "backbone.embeddings.patch_embeddings.projection.weight"
    assert (first[name] == second[name]).all()
    assert Run.open("second").config["start"] == str(home / "runs" / "first")


def test_names_of_now_are_never_taken(home, capsys, tiny, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda *_: "20260101-000000")
    for _ in range(2):
        done(capsys, "pretrain", "--config", tiny, "--epochs", 0.25)
    assert {run.name for run in list_runs()} == {"pretrain-20260101-000000", "pretrain-20260101-000000-2"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Name the images to train on: a folder, a zip file or a list"),
        (["photos", "--demo"], "or --demo for the built-in ones; not both"),
        (["photos"], "photos: there is no such file or folder"),
        (["empty"], "empty is empty, there are no images in it"),
        (["texts"], "texts has 2 files, none of them an image"),
        (["texts/a.txt"], "a.txt: 1 of 1 files that it lists do not exist: hello"),
        (["no.zip"], "no.zip is damaged, or not a zip file"),
        (["one"], "There is one image, and training needs 2 at least"),
        (["two", "--batch", 64], "There are 2 images, fewer than the 64 of one batch: lower batch"),
        (["broken", "--batch", 2], "2 of 2 images cannot be read, too many to go on: "),
        (["two", "--batch", 2, "--validation", "two"], "The images for k-NN need classes"),
        (["two", "--batch", 2, "--validation", "nowhere"], "nowhere: there is no such file or folder"),
        (["two", "--preset", "huge"], f"There is no preset 'huge'. Known are {', '.join(PRESETS)}"),
        (["two", "--config", "none.json"], "none.json"),
        (["two", "--config", "damaged.json"], "damaged.json"),
        (["two", "--config", "list.json"], "list.json holds a list"),
        (["two", "--config", "unknown.json"], "There is no setting 'learning_rate'. Known are "),
        (["two", "--config", "wrong.json"], "lr is of type float, not 'high'"),
        (["two", "--lr", -1], "lr is at least 0, not -1"),
        (["two", "--lr", "high"], "argument --lr: invalid float value: 'high'"),
        (["two", "--patch", 7], "argument --patch: invalid choice: 7"),
        (["two", "--global-size", 50], "global_size (50) must be a multiple of patch (8)"),
        (["two", "--what"], "unrecognized arguments: --what"),
        (["two", "--name", "a/b"], "'a/b' cannot be a run's name"),
        (["two", "--batch", 2, "--name", "taken"], "already a run taken"),
        (["two", "--batch", 2, "--start", "nothing"], "There is no model 'nothing'. "),
        (["two", "--batch", 2, "--preset", "adapt"], "freeze_layers (6) would keep random weights as they are: name a"),
        (["two", "--batch", 2, "--probe-images", "gone.png"], "gone.png"),
        (["two", "--batch", 2, "--save-config", "nowhere/a.json"], "nowhere/a.json cannot be written"),
        (["two", "--epochs", 5, "--warmup-epochs", 10], "warmup_epochs (10) does not fit into a run of 5 epochs"),
    ],
)
def test_what_cannot_be_pretrained_is_answered_in_one_line(arguments, says, home, capsys):
    for name in ("empty", "texts", "broken"):
        (home / name).mkdir()
    for name in ("texts/a.txt", "texts/b.txt", "no.zip", "broken/a.png", "broken/b.png"):
        (home / name).write_text("hello")
    write_images(home / "one", 1)
    write_images(home / "two", 2)
    (home / "damaged.json").write_text('{"lr": ')
    (home / "list.json").write_text("[1]")
    (home / "unknown.json").write_text('{"learning_rate": 1}')
    (home / "wrong.json").write_text('{"lr": "high"}')
    Run.create("taken", "pretrain", {})
    assert says in refusal(capsys, "pretrain", *arguments)
    assert [run.name for run in list_runs()] == ["taken"]  # and the name is free for what was meant


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pretrain", "four", "--batch", 2, "--preset", "adapt"], "freeze_layers (6)"),
        (["pretrain", "four"], "There are 4 images, fewer than the 64 of one batch"),
        (["finetune", "four"], "Fine-tuning needs labelled images"),
        (["probe", "four"], "four is no RGB-D folder"),
    ],
)
def test_what_a_run_would_refuse_is_checked_before_anything_is_made(arguments, says, home, capsys):
    write_images(home / "four", 4)
    assert says in refusal(capsys, *arguments)
    assert [each.name for each in home.iterdir()] == ["four"]


def test_a_run_that_fails_before_its_first_step_leaves_no_folder(home, capsys, tiny, images, monkeypatch):
    refusal(capsys, "finetune", images, "--model", "nothing", "--name", "a")

    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Distillation, "step", full)
    assert "memory is full" in refusal(capsys, "pretrain", "--config", tiny, "--name", "a")
    assert list_runs() == []


def test_a_run_that_fails_later_is_kept_and_goes_on(home, capsys, tiny, monkeypatch):
    step = Distillation.step

    def full(self, images, aspects, number):
        if number == 1:
            raise torch.OutOfMemoryError
        return step(self, images, aspects, number)

    monkeypatch.setattr(Distillation, "step", full)
    refusal(capsys, "pretrain", "--config", tiny, "--name", "a")
    assert "memory is full" in Run.open("a").status()["message"]
    monkeypatch.undo()
    monkeypatch.chdir(home)
    assert "training: a is finished" in done(capsys, "resume", "a")


def test_what_was_encoded_is_kept_where_the_training_fails(home, capsys, tiny_folders, monkeypatch):
    write_rooms(home / "rooms", 8)

    def fail(self):
        raise DinovizError("The disk is full.")

    monkeypatch.setattr(depth_course.Course, "go", fail)
    options = ("--model", tiny_folders["dinov2"], "--resolution", 56, "--epochs", 1, "--bins", 8, "--crop", "none")
    refusal(capsys, "probe", "rooms", *options, "--name", "a")
    assert Run.open("a").status()["state"] == "failed"
    assert list((Run.open("a").folder / "features").glob("*.bin"))


def test_a_zip_file_and_a_list_will_do(home, capsys, tiny, images):
    with zipfile.ZipFile("a.zip", "w") as archive:
        for path in sorted(images.rglob("*.png"))[:20]:
            archive.write(path, path.relative_to(images))
    (home / "a.txt").write_text("\n".join(str(path) for path in sorted(images.rglob("*.png"))[:20]))
    for source in ("a.zip", "a.txt"):
        name = source.replace(".", "-")
        done(capsys, "pretrain", source, "--config", tiny, "--epochs", 1, "--name", name)
        assert Run.open(name).status()["state"] == "finished"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["resume", "none"], "There is no run none; the runs in runs are "),
        (["resume", "finished"], "finished is finished; a new run can start from it: pretrain --start"),
        (["resume", "tuned"], "tuned is finished."),
        (["resume", "busy"], "busy is at work already; `python -m training stop busy` ends it"),
        (["resume", "odd"], "odd is a run of kind 'odd', which cannot be resumed; start it again"),
        (["resume", "damaged"], "config.json"),
        (["resume", "edited"], "There is no setting 'epoch'. Known are "),
        (["stop", "none"], "There is no run none"),
        (["stop", "finished"], "finished is not at work (finished): there is nothing to stop"),
        (["export", "none"], "There is no run none"),
        (["export", "busy"], "busy has no checkpoint of a teacher yet"),
        (["export", "tuned"], "tuned has no export yet"),
        (["evaluate", "flat"], "Evaluation needs labelled images"),
        (["evaluate"], "Name the labelled images, or --demo"),
        (["finetune", "flat"], "Fine-tuning needs labelled images"),
        (["finetune", "flat", "--way", "magic"], "argument --way: invalid choice: 'magic'"),
        (["probe", "flat"], "flat is no RGB-D folder: it needs the folders rgb and depth"),
        (["probe", "nowhere"], "nowhere: there is no such file or folder"),
        (["probe", "--demo"], "The demo's pictures have no depth: name a --teacher that tells it"),
        (["probe", "flat", "--demo"], "or --demo for the built-in ones; not both"),
        (["probe"], "Name the images to train on: a folder, a zip file or a list"),
        (["probe", "flat.zip"], "flat.zip has no folders rgb and depth beside each other"),
        (["probe", "flat", "--teacher", "nobody"], "There is no teacher 'nobody'. A teacher is a published head, "),
        (["probe", "flat.zip", "--teacher", "finished"], "The run finished holds no finished depth probe"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_what_cannot_be_done_is_answered_in_one_line(arguments, says, home, capsys):
    write_images(home / "flat", 4)
    with zipfile.ZipFile(home / "flat.zip", "w") as archive:
        archive.write(home / "flat" / "000.png", "000.png")
    for name, kind, state, config in (
        ("finished", "pretrain", "finished", {}), ("tuned", "finetune", "finished", {}),
        ("busy", "pretrain", "running", {}), ("odd", "odd", "stopped", {}),
        ("damaged", "pretrain", "stopped", {}), ("edited", "pretrain", "stopped", {"epoch": 3}),
    ):  # fmt: skip
        Run.create(name, kind, config).set_status(state, pid=os.getppid())
    (home / "runs/damaged/config.json").write_text('{"kind": "pretrain", ')
    assert says in refusal(capsys, *arguments)


def test_a_fine_tuning_says_how_good_it_is_and_why_it_ended(home, capsys, images, tiny_folders):
    said = done(
        capsys, "finetune", images, "--model", tiny_folders["dinov2"], "--size", 42, "--way", "linear",
        "--lr", 1e-30, "--epochs", 50, "--patience", 1, "--name", "tuned", "--test", images,
    )  # fmt: skip
    shown = json.loads(re.search(r"^\{$.*^\}$", said, re.MULTILINE | re.DOTALL)[0])
    kept = json.loads((Run.open("tuned").folder / "result.json").read_text())
    for part in ("validation", "test"):
        assert shown[part] == {name: kept[part][name] for name in ("n", "top1", "top5")}
    assert shown["best"] == kept["best"]
    assert shown["weights_id"] == kept["weights_id"][:12]
    assert len(kept["weights_id"]) == 64
    assert "no better validation accuracy in 1 epoch; best" in said


def test_a_probe_learns_from_a_zip_file_and_teaches_another(home, capsys, tiny_folders):
    """Its run is named as the teacher, and found again wherever the other is resumed."""
    write_rooms(home / "rooms", 16)
    shutil.make_archive("rooms", "zip", home, "rooms")
    settings = ("--resolution", 56, "--epochs", 1, "--bins", 8, "--crop", "none")
    model = ("--model", tiny_folders["dinov2"])
    said = done(capsys, "probe", "rooms.zip", *model, *settings, "--name", "first")
    assert "training: first is finished" in said
    assert re.search(r'"rmse": \d+\.\d+', said)
    assert re.search(r'"weights_id": "[0-9a-f]{12}"', said)
    first = Run.open("first")
    assert first.config["data"] == str(home / "runs" / "first" / "data" / "rooms")
    assert json.loads((first.folder / "result.json").read_text())["data"]["folder"] == "rooms"
    assert "the depth probe of first is in copy" in done(capsys, "export", "first", "--out", "copy")
    assert (home / "copy" / "probe.safetensors").read_bytes() == probe_file(first.folder).read_bytes()
    said = done(capsys, "probe", "--demo", *model, *settings, "--teacher", "first", "--name", "second")
    assert "training: second is finished" in said
    second = Run.open("second")
    assert second.config["teacher"] == str(home / "runs" / "first")
    assert len(list((second.folder / "teacher" / "depth").iterdir())) == 18


def test_what_cannot_be_unpacked_leaves_no_run(home, capsys):
    write_images(home / "flat", 1)
    with zipfile.ZipFile("flat.zip", "w") as archive:
        archive.write(home / "flat" / "000.png", "000.png")
    refusal(capsys, "probe", "flat.zip", "--name", "none")
    assert list_runs() == []


def test_a_teacher_is_found_from_everywhere(home):
    Run.create("mine", "probe", {})
    (home / "mine").mkdir()  # as `open_teacher`, a run's name comes first
    (home / "p.safetensors").touch()
    (home / "facebook" / "dpt-dinov2-small-nyu").mkdir(parents=True)
    for typed, kept in (
        ("mine", str(home / "runs" / "mine")), ("runs/mine", str(home / "runs" / "mine")),
        ("p.safetensors", str(home / "p.safetensors")), ("./p.safetensors", str(home / "p.safetensors")),
        ("facebook/dpt-dinov2-small-nyu", "facebook/dpt-dinov2-small-nyu"), ("nothing", "nothing"), ("", ""),
        ("x" * 5000, "x" * 5000), ("~nobody-is-called-this", "~nobody-is-called-this"),
    ):  # fmt: skip
        assert absolute(ProbeConfig(teacher=typed)).teacher == kept


def test_an_export_replaces_nothing_but_an_export(home, capsys, tiny):
    done(capsys, "pretrain", "--config", tiny, "--name", "a")
    (home / "photos").mkdir()
    (home / "photos/mine.jpg").write_text("precious")
    said = refusal(capsys, "export", "a", "--out", "photos")
    assert "photos holds other files (mine.jpg), which an export would replace; name a new folder" in said
    assert (home / "photos/mine.jpg").read_text() == "precious"
    assert "holds other files" in refusal(capsys, "export", "a", "--out", ".")
    (home / "file").touch()
    assert "file cannot be written: Not a directory" in refusal(capsys, "export", "a", "--out", "file")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_runs_that_cannot_be_written(home, capsys, tiny):
    (home / "runs").mkdir(mode=0o500)
    assert "runs/a cannot be made: Permission denied" in refusal(capsys, "pretrain", "--config", tiny, "--name", "a")


def test_figures_that_cannot_be_written(home, capsys, tiny_folders):
    model = ["--model", str(tiny_folders["dinov2"]), "--size", "14", "--no-linear"]
    for name in "ab":
        write_images(home / "photos" / name, 2)
    assert main(["evaluate", "photos", *model, "--out", "nowhere/figures.json"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "training: nowhere/figures.json cannot be written: No such file or directory."


def test_the_export_of_a_classifier_run_is_its_classifier(home, capsys, images, tiny_folders):
    settings = ("--model", tiny_folders["dinov2"], "--size", 42, "--way", "linear", "--epochs", 1)
    done(capsys, "finetune", images, *settings, "--name", "tuned")
    picture = next(images.rglob("*.png"))
    expected = predict("runs/tuned", [picture], device="cpu")
    for _ in range(2):  # the second takes the place of the first
        assert "the classifier of tuned is in copy" in done(capsys, "export", "tuned", "--out", "copy")
        assert predict("copy", [picture], device="cpu") == expected
    assert "the classifier of tuned is in runs/tuned/export" in done(capsys, "export", "tuned")
    assert predict("runs/tuned", [picture], device="cpu") == expected
    assert "no student" in refusal(capsys, "export", "tuned", "--student")
    (home / "copy" / "mine.jpg").touch()
    assert "mine.jpg" in refusal(capsys, "export", "tuned", "--out", "copy")


def test_runs_where_there_is_a_file(home, capsys, tiny):
    (home / "runs").touch()
    assert "run a cannot be made: Not a directory" in refusal(capsys, "pretrain", "--config", tiny, "--name", "a")


def test_a_list_without_runs_and_of_a_run_that_died(home, capsys):
    assert done(capsys, "list") == "training: there are no runs in runs yet\n"
    gone = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    run = Run.create("gone", "pretrain", {})
    run.set_status("running", pid=gone.pid, step=3, steps=9)
    assert re.search(r"^gone +pretrain +running +3 of 9", done(capsys, "list"), re.MULTILINE)
    gone.communicate()
    assert re.search(r"^gone +pretrain +died +3 of 9", done(capsys, "list"), re.MULTILINE)


def test_the_list_shows_a_run_whose_figures_or_name_are_damaged(home, capsys):
    run = Run.create("odd", "finetune", {})
    run.add_metrics({"step": 3, "loss": "much", "validation_top1": 0.91})
    run.folder.rename(run.folder.with_name("odd-\udcff"))
    assert re.search(r"^odd-\\udcff +finetune .*top1 0.91", done(capsys, "list"), re.MULTILINE)


def test_the_command_line_speaks_from_a_terminal_too(tmp_path):
    """A process of its own: status 2 and one line."""
    done = subprocess.run(
        [sys.executable, "-m", "training", "resume", "none"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "training: There is no run none; there are none in runs yet.\n"
