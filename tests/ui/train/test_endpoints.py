"""The Train tab over HTTP: as its page uses it, and with values that no page sends."""

import io
import json
import secrets
import shlex
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import gradio as gr
import httpx
import numpy as np
import pytest
from PIL import Image

from dinoviz.depth.probe import SHIPPED
from dinoviz.ui import build, door, launch_options
from dinoviz.ui.access import Settings, visible
from dinoviz.ui.workbench import Workbench
from tests.conftest import ROOT
from tests.training.tiny_runs import fill, small_disk, write_images
from training.__main__ import _parser
from training.config.cli import settings_of
from training.config.pretrain import PretrainConfig
from training.config.tasks import ProbeConfig
from training.depth.rgbd import find_pairs
from training.runs.paths import absolute
from training.runs.run import Run, list_runs

ME, YOU = "0123456789abcdef" * 2, "fedcba9876543210" * 2
HEAD = "facebook/dpt-dinov2-small-nyu"
ON_A_RUN = ("stop", "resume", "inspect", "download_run")


class Refused(Exception):
    """The error that a handler sends to its page."""


class Served:
    """A page on a port of its own, and a session of it."""

    def __init__(self, page: gr.Blocks, url: str, home: Path):
        self.page, self.url, self.home = page, f"{url.rstrip('/')}/gradio_api", home
        self.client = httpx.Client(timeout=60)
        self.session = secrets.token_hex(8)  # whose the uploads are

    def function(self, name: str):
        """One of the Train tab's."""
        return next(fn for fn in _of_training(self.page) if fn.name == name)

    def ask(self, name: str, /, *first, **values) -> list:
        """Call a handler as the page does, and return what it sends. Raises Refused.

        first: the first inputs. values: of the others, by the end of their elem_id.
        """
        # Each call has a session of its own, except with uploads, which belong to the session that uses them first.
        fn, session = self.function(name), self.session if "files" in values else secrets.token_hex(8)
        data = [getattr(block, "value", None) for block in fn.inputs]
        data[: len(first)] = first
        for key, value in values.items():
            (i,) = [i for i, b in enumerate(fn.inputs) if b.elem_id in (key, f"train-{key.replace('_', '-')}")]
            data[i] = value
        body = {"data": data, "fn_index": fn._id, "session_hash": session}
        self.client.post(f"{self.url}/queue/join", json=body).raise_for_status()
        with self.client.stream("GET", f"{self.url}/queue/data", params={"session_hash": session}) as stream:
            messages = (json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: "))
            done = next(message for message in messages if message["msg"] == "process_completed")
        if not done["success"]:
            raise Refused(done["output"]["error"])
        return done["output"]["data"]

    def refusal(self, name: str, /, *first, **values) -> str:
        """The error of a call that has to be refused: one sentence, without a stack trace."""
        with pytest.raises(Refused) as error:
            self.ask(name, *first, **values)
        text = str(error.value)
        assert text not in ("", "None")
        assert "\n" not in text
        return text

    def upload(self, name: str, content: bytes) -> dict:
        """An uploaded file, as the page sends it."""
        (path,) = self.client.post(f"{self.url}/upload", files={"files": (name, content)}).json()
        return file_data(path)


def _of_training(page: gr.Blocks) -> list:
    return [fn for fn in page.fns.values() if ".ui.train" in (getattr(fn.fn, "__module__", None) or "")]


def file_data(path: str | Path) -> dict:
    return {"path": str(path), "orig_name": Path(path).name, "meta": {"_type": "gradio.FileData"}}


def pictures(broken: int = 0, beside: int = 0) -> bytes:
    """A zip file of 40 small pictures, `broken` of them unreadable, and `beside` bytes of another file."""
    content, picture = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (24, 16), "red").save(picture, "PNG")
    with zipfile.ZipFile(content, "w") as archive:
        for i in range(40):
            archive.writestr(f"{i:02}.png", picture.getvalue() if i >= broken else b"no picture")
        archive.writestr("beside.bin", bytes(beside))
    return content.getvalue()


def environment(patch, home: Path) -> None:
    patch.setenv("DINOVIZ_RUNS", str(home / "runs"))
    patch.setenv("GRADIO_TEMP_DIR", str(home.with_name(f"{home.name} cache")))


@contextmanager
def serving(home: Path, settings: Settings) -> Iterator[Served]:
    """Runs are queued and never started."""
    with pytest.MonkeyPatch.context() as patch:
        environment(patch, home)
        patch.setattr(Workbench, "warm_up", lambda *_: None)  # no model is needed
        page = build(settings)
        allowed = door.hosts("127.0.0.1", on_space=False, shared=lambda: None)
        _, url, _ = page.launch(
            prevent_thread_lock=True, quiet=True, share=False,
            app_kwargs={"middleware": door.middleware(page, allowed)}, **launch_options(),
        )  # fmt: skip
        served = Served(page, url, home)
        with closing(served.client):
            yield served
        page.close(verbose=False)


@pytest.fixture(scope="module")
def public_page(tmp_path_factory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("public"), Settings(public=True, train=True, runs_at_once=0)) as served:
        yield served


@pytest.fixture(scope="module")
def private_page(tmp_path_factory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("private")
    write_images(home / "open" / "photos", 8)
    with serving(home, Settings(runs_at_once=0, data_roots=(home / "open",))) as served:
        yield served


@pytest.fixture
def public(public_page, monkeypatch) -> Iterator[Served]:
    """A public page; its queue is empty before and after a test."""
    environment(monkeypatch, public_page.home)  # two pages live in this process
    yield public_page
    for token in (ME, YOU):
        for run in visible(True, token):
            if run.status()["state"] == "queued":
                public_page.ask("stop", token, run.name)


@pytest.fixture
def private(private_page, monkeypatch) -> Served:
    environment(monkeypatch, private_page.home)
    return private_page


def newest() -> Run:
    return list_runs()[0]


# What the page offers


def test_a_public_page_without_training_has_no_handler_of_it():
    page = build(Settings(public=True, train=False))
    assert _of_training(page) == []
    assert any("DINOVIZ_TRAIN" in str(getattr(block, "value", "")) for block in page.blocks.values())


def test_all_handlers_are_private(public_page, private_page):
    for served in (public_page, private_page):
        found = _of_training(served.page)
        assert len(found) > 10
        assert {fn.api_visibility for fn in found} == {"private"}
    assert "upload" not in {fn.name for fn in _of_training(public_page.page)}, "strangers' Hub tokens are not taken"


# Starting


def test_a_run_has_the_settings_of_the_page(private):
    sent = private.ask("start", ME, name="first", pretrain_epochs=2.5, pretrain_patch="4", pretrain_seed=7)
    run = newest()
    assert (run.name, run.kind, run.status()["state"]) == ("first", "pretrain", "queued")
    config = PretrainConfig.from_dict(run.config)
    assert (config.epochs, config.patch, config.seed, config.data, config.dim) == (2.5, 4, 7, (), 96)
    assert sent[1]["value"] == str(run.folder)


def test_names_of_runs_are_unique(private):
    private.ask("start", ME, name="twice", pretrain_epochs=3)
    assert "twice" in private.refusal("start", ME, name="twice", pretrain_epochs=4)
    assert newest().config["epochs"] == 3
    before = len(list_runs())
    for _ in range(2):
        private.ask("start", ME, name="")
    assert len({run.name for run in list_runs()}) == before + 2


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"name": "../up"}, "name"),
        ({"name": "<img src=x>"}, "&lt;img"),
        ({"pretrain_lr": -1}, "lr"),
        ({"pretrain_lr": "x" * 100_000}, "lr"),
        ({"pretrain_epochs": None}, "epochs"),
        ({"pretrain_patch": "5"}, "5"),
        ({"pretrain_dim": 100}, "dim"),
        ({"task": "finetune", "finetune_epochs": -3}, "epochs"),
        ({"where": "upload", "files": []}, ""),
        ({"where": "folder", "path": "../runs"}, "runs"),
        ({"where": "folder", "path": None}, "folder"),
        ({"task": "probe"}, "depth"),
        ({"task": "probe", "teacher": "/etc"}, "/etc"),
        ({"task": "probe", "teacher": HEAD, "where": "folder", "path": "../runs"}, "runs"),
    ],
)
def test_wrong_values_make_no_run(values, named, private):
    before = len(list_runs())
    assert named in private.refusal("start", ME, **{"name": "wrong", **values})
    assert len(list_runs()) == before
    assert not (private.home / "up").exists()


def test_a_folder_of_the_machine_is_not_copied(private):
    private.ask("start", ME, where="folder", path="photos", name="local", pretrain_batch=8)
    run = newest()
    assert run.config["data"] == [str(private.home / "open" / "photos")]
    assert not (run.folder / "data").exists()


def test_uploads_stay_with_the_run(private):
    file = private.upload("photos.zip", pictures())
    private.ask("start", ME, where="upload", files=[file], name="uploaded")
    Path(file["path"]).unlink()
    run = newest()
    assert run.config["data"] == [str(run.folder / "data" / "photos.zip")]
    assert zipfile.ZipFile(run.config["data"][0]).testzip() is None
    private.refusal("start", ME, where="upload", files=[file], name="later")


def test_too_many_unreadable_pictures_after_a_preview(private):
    values = {"where": "upload", "files": [private.upload("broken.zip", pictures(broken=2))]}
    found, _ = private.ask("preview_data", **values)
    assert "2 cannot be read" in found
    assert "00.png" in private.refusal("start", ME, name="broken", **values)
    private.ask("start", ME, name="broken", **values, pretrain_max_broken=0.1)


def test_an_upload_that_cannot_be_read_in_the_preview(private):
    found, shown = private.ask("preview_data", where="upload", files=[private.upload("<b>.pdf", b"%PDF")])
    assert "dv-error" in found
    assert "<b>.pdf" not in found
    assert shown == ""


def test_a_full_disk_leaves_no_run(tmp_path, monkeypatch):
    environment(monkeypatch, tmp_path / "disk")
    with small_disk(tmp_path / "disk", 1) as disk, serving(disk, Settings(runs_at_once=0)) as served:
        file = served.upload("photos.zip", pictures(beside=2_000_000))
        assert "space" in served.refusal("start", ME, where="upload", files=[file], name="full")
        fill(disk)
        assert "space" in served.refusal("start", ME, name="full")
        assert list((disk / "runs").iterdir()) == []


# Depth probes


def rooms() -> bytes:
    """A zip file with two pictures and their depth."""
    content, picture, depth = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.new("RGB", (24, 16), "red").save(picture, "PNG")
    np.save(depth, np.ones((16, 24), np.float32))
    with zipfile.ZipFile(content, "w") as archive:
        for i in range(2):
            archive.writestr(f"rooms/rgb/{i}.png", picture.getvalue())
            archive.writestr(f"rooms/depth/{i}.npy", depth.getvalue())
    return content.getvalue()


def test_an_rgbd_upload_becomes_a_folder_of_the_run(public):
    values = {"task": "probe", "where": "upload", "files": [public.upload("rooms.zip", rooms())]}
    found, shown = public.ask("preview_data", **values)
    assert ("2 pictures" in found, shown) == (True, "")
    command, _ = public.ask("show_command", **values)
    assert command == "python -m training probe rooms.zip"
    public.ask("start", ME, **values)
    run = newest()
    config = ProbeConfig.from_dict(run.config)
    assert config.data == str(run.folder / "data" / "rooms")
    assert len(find_pairs(config.data)) == 2


def test_a_teacher_labels_an_upload(private):
    values = {"task": "probe", "where": "upload", "files": [private.upload("photos.zip", pictures())], "teacher": HEAD}
    found, shown = private.ask("preview_data", **values)
    assert "<b>40 pictures</b>" in found
    assert HEAD in found
    assert "classes" not in found
    assert "<img" in shown
    command, _ = private.ask("show_command", **values, probe_epochs=3)
    assert command == f"python -m training probe photos.zip --teacher {HEAD} --epochs 3"
    private.ask("start", ME, **values, name="labelled")
    config = ProbeConfig.from_dict(newest().config)
    assert (config.teacher, config.data) == (HEAD, str(newest().folder / "data" / "photos"))
    assert len(list(Path(config.data).iterdir())) == 40


def test_a_teacher_labels_the_demo(private):
    found, _ = private.ask("preview_data", task="probe")
    assert "dv-error" not in found  # the user has not chosen anything yet
    found, _ = private.ask("preview_data", task="probe", teacher=HEAD)
    assert "18 pictures" in found
    assert HEAD in found
    private.ask("start", ME, task="probe", teacher=HEAD, name="demo-depth")
    assert len(list(Path(newest().config["data"]).iterdir())) == 18


@pytest.mark.skipif(not SHIPPED.is_file(), reason="the shipped probe is not there")
def test_the_shipped_probe_as_teacher(private, monkeypatch):
    """In the command by its place in the project; never for a probe on its own model."""
    values = {"task": "probe", "teacher": "shipped", "model": "dinov2-small"}
    command, _ = private.ask("show_command", **values)
    options = _parser().parse_args(shlex.split(command)[3:])
    monkeypatch.chdir(ROOT)
    typed = absolute(settings_of(options, ProbeConfig))
    private.ask("start", ME, **values, name="shipped")
    run = newest().config
    assert typed.teacher == run["teacher"] == str(SHIPPED)
    assert typed.to_dict() == {**run, "data": ""}
    for model, offered in (("dinov2-small", True), ("embedded", False)):
        (sent,) = private.ask("list_teachers", model, "shipped")
        assert ("shipped" in str(sent["choices"])) == offered
        assert sent.get("value") == (None if offered else "own")


def test_the_estimate_of_a_probe(private, tiny_folders):
    """With depth in a zip file and in a folder, and with a teacher, whose time is left out."""
    (private.home / "open" / "rooms.zip").write_bytes(rooms())
    with zipfile.ZipFile(private.home / "open" / "rooms.zip") as archive:
        archive.extractall(private.home / "open")
    for values in ({"path": "rooms.zip"}, {"path": "rooms"}, {"path": "photos", "teacher": HEAD}):
        values |= {"task": "probe", "where": "folder", "model": str(tiny_folders["dinov2"]), "probe_resolution": 56}
        (words,) = private.ask("show_estimate", **values)
        assert "<b>About " in words
        assert ("and the teacher" in words) == ("teacher" in values)


# Command, estimate, and what is done with a run


def test_command_and_estimate_of_wrong_settings(private):
    command, _ = private.ask("show_command", pretrain_lr=-1)
    assert command.startswith("# lr")
    (words,) = private.ask("show_estimate", pretrain_dim=100)
    assert "dim" in words
    command, estimate = private.ask("show_command", path="typed before", name="mine")
    assert "About" not in estimate  # that was of other settings
    assert command == "python -m training pretrain --demo --preset micro --name mine"


def test_a_run_is_stopped_before_its_first_step_and_resumed(private):
    private.ask("start", ME, name="early")
    run = newest()
    private.ask("stop", ME, str(run.folder))
    assert run.status()["state"] == "stopped"
    private.refusal("stop", ME, str(run.folder))
    private.ask("resume", ME, str(run.folder))
    assert run.status()["state"] == "queued"
    private.refusal("resume", ME, str(run.folder))


@pytest.mark.parametrize("name", ON_A_RUN)
def test_without_a_run_nothing_is_done(name, private):
    assert private.refusal(name, ME, None) == private.refusal(name, ME, "/etc")


def test_without_a_network_nothing_is_published(private):
    private.ask("start", ME, name="empty")
    assert "network" in private.refusal("download_run", ME, str(newest().folder))
    words, secret = private.ask("upload", ME, str(newest().folder), "<b>x", True, "hf_secret")
    assert ("owner/name" in words, "<b>" in words, secret) == (True, False, "")
    words, secret = private.ask("upload", ME, str(newest().folder), "someone/mini", True, "hf_secret")
    assert ("network" in words, secret) == (True, "")
    assert "hf_secret" not in words


# On a public page


@pytest.fixture
def two(public) -> tuple[Run, Run]:
    """A run of mine and one of yours, of the same name."""
    made = []
    for token in (ME, YOU):
        public.ask("start", token, name="same")
        made.append(newest())
    return made[0], made[1]


def test_browsers_see_only_their_own_runs(two, public):
    mine, yours = two
    assert {run.name.rsplit("-", 1)[0] for run in two} == {"same"}
    for token, own, other in ((ME, mine, yours), (YOU, yours, mine), ("", None, mine), ("guess", None, yours)):
        for chosen in (None, str(other.folder), f"{mine.folder}/../{other.name}"):
            sent = json.dumps(public.ask("refresh", token, chosen, [str(mine.folder), str(yours.folder)]))
            assert other.name not in sent
            assert own is None or own.name in sent
        (notice,) = public.ask("show_active", token)
        assert other.name not in notice


def test_browsers_cannot_use_the_runs_of_others(two, public):
    _, yours = two
    for name in ON_A_RUN:
        no_run = public.refusal(name, ME, None)
        for token in (ME, ""):
            assert public.refusal(name, token, yours.name) == no_run
    label, _ = public.ask("classify", ME, str(yours.folder), None)
    assert label["visible"] is False
    assert yours.status()["state"] == "queued"
    assert not yours.stop_requested()


def test_a_browser_without_a_token_starts_nothing(public):
    before = len(list_runs())
    for token in ("", None):
        public.refusal("start", token)
    assert len(list_runs()) == before
    (token,), (other,) = public.ask("make_token", ""), public.ask("make_token", "")
    assert len(token) == 32
    assert token != other
    assert public.ask("make_token", token) == [token]


@pytest.mark.parametrize(
    "values",
    [
        *({"task": task, "where": "folder", "path": "/etc", "held_out": "/etc"} for task in ("scratch", "probe")),
        *({"task": "probe", "teacher": teacher} for teacher in ("/etc", str(SHIPPED), "facebook/dpt-dinov2-giant-nyu")),
        *({"task": "adapt", "model": model} for model in ("someone/else", "/etc", "../..", "dinov2-giant")),
    ],
)
def test_a_public_page_uses_no_path_and_no_large_model(values, public):
    before = len(list_runs())
    public.refusal("start", ME, **values)
    assert len(list_runs()) == before


def test_a_public_page_ignores_a_typed_held_out_folder(public):
    public.ask("start", ME, held_out="/etc")
    assert newest().config["validation"] == ""


def test_uploads_of_others_are_not_read(public):
    public.ask("start", YOU, where="upload", files=[public.upload("mine.zip", pictures())])
    secret = next((newest().folder / "data").iterdir())
    before = len(list_runs())
    for name, first in (("start", (ME,)), ("preview_data", ())):
        public.refusal(name, *first, where="upload", files=[file_data(secret)])
    assert len(list_runs()) == before
    for file in (secret, newest().folder / "config.json", newest().folder / "owner.txt"):
        assert public.client.get(f"{public.url}/file={file}").status_code in (403, 404), file


@pytest.mark.slow
def test_the_queue_is_bounded(public):
    limits = Settings().limits
    try:
        for number in range(limits.waiting):
            public.ask("start", f"{number // limits.waiting_each:032x}")
        assert str(limits.waiting) in public.refusal("start", ME)
    finally:
        for number in range(limits.waiting // limits.waiting_each):
            for run in visible(True, token := f"{number:032x}"):
                public.ask("stop", token, run.name)


def test_the_queue_is_bounded_for_each_browser(public):
    limits = Settings().limits
    for _ in range(limits.waiting_each):
        public.ask("start", YOU)
    waiting = newest()
    assert str(limits.waiting_each) in public.refusal("start", YOU)
    public.ask("stop", YOU, waiting.name)
    public.ask("start", YOU)
    assert str(limits.waiting_each) in public.refusal("resume", YOU, waiting.name)
    public.ask("start", ME)
