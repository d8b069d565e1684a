"""The Train tab over HTTP, as a page asks for it and as somebody may who is up to no good."""

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
CHOOSE = "Choose a run first."
HEAD = "facebook/dpt-dinov2-small-nyu"


class Error(Exception):
    """What a person is told."""


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
        """Call a function as the page does. first: of its inputs; values: of the others by what ends their elem_id.

        Returns what it sends. Raises Error with the message for the person, which there must be.
        """
        # A state of its own for each call, but an upload is the session's that used it first.
        fn, session = self.function(name), self.session if "files" in values else secrets.token_hex(8)
        data = [getattr(block, "value", None) for block in fn.inputs]
        data[: len(first)] = first
        for key, value in values.items():
            (i,) = [i for i, b in enumerate(fn.inputs) if b.elem_id in (key, f"train-{key.replace('_', '-')}")]
            data[i] = value
        asked = {"data": data, "fn_index": fn._id, "session_hash": session}
        self.client.post(f"{self.url}/queue/join", json=asked).raise_for_status()
        with self.client.stream("GET", f"{self.url}/queue/data", params={"session_hash": session}) as stream:
            messages = (json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: "))
            done = next(message for message in messages if message["msg"] == "process_completed")
        if not done["success"]:
            raise Error(done["output"]["error"])
        return done["output"]["data"]

    def refusal(self, name: str, /, *first, **values) -> str:
        """What the person is told: one sentence."""
        with pytest.raises(Error) as refused:
            self.ask(name, *first, **values)
        text = str(refused.value)
        assert text not in ("", "None")
        assert "\n" not in text
        return text

    def upload(self, name: str, content: bytes) -> dict:
        """A file as the page has it, once it was uploaded."""
        (path,) = self.client.post(f"{self.url}/upload", files={"files": (name, content)}).json()
        return file_data(path)


def _of_training(page: gr.Blocks) -> list:
    return [fn for fn in page.fns.values() if ".ui.train" in (getattr(fn.fn, "__module__", None) or "")]


def file_data(path: str | Path) -> dict:
    return {"path": str(path), "orig_name": Path(path).name, "meta": {"_type": "gradio.FileData"}}


def pictures(broken: int = 0, beside: int = 0) -> bytes:
    """A zip file of 40 small pictures, of which some are none, and so many bytes that are no picture."""
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
        patch.setattr(Workbench, "warm_up", lambda *_: None)  # nobody looks through a model here
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
    """Strangers share it; nothing waits before a test, nor after it."""
    environment(monkeypatch, public_page.home)  # two pages live in this process
    yield public_page
    for token in (ME, YOU):
        for run in visible(True, token):
            if run.status()["state"] == "queued":
                public_page.ask("ask_to_stop", token, str(run.folder))


@pytest.fixture
def private(private_page, monkeypatch) -> Served:
    environment(monkeypatch, private_page.home)
    return private_page


def newest() -> Run:
    return list_runs()[0]


# Whether there is training at all


def test_a_public_page_without_training_has_none_of_its_functions():
    page = build(Settings(public=True, train=False))
    assert _of_training(page) == []
    assert any("Training is off on this page" in str(getattr(block, "value", "")) for block in page.blocks.values())


def test_all_functions_belong_to_the_page_alone(public_page, private_page):
    for served in (public_page, private_page):
        found = _of_training(served.page)
        assert len(found) > 10
        assert {fn.api_visibility for fn in found} == {"private"}


# Starting


def test_a_run_is_made_of_what_the_page_says(private):
    sent = private.ask("start", ME, name="first", pretrain_epochs=2.5, pretrain_patch="4", pretrain_seed=7)
    run = newest()
    assert (run.name, run.kind, run.status()["state"]) == ("first", "pretrain", "queued")
    config = PretrainConfig.from_dict(run.config)
    assert (config.epochs, config.patch, config.seed, config.data, config.dim) == (2.5, 4, 7, (), 96)
    assert sent[1]["value"] == str(run.folder)


@pytest.mark.parametrize("name", ["a/b", "../up", ".hidden", "x" * 81, "two words", "a\\b", "ü", "a\nb", "<img src=x>"])
def test_a_name_that_cannot_be_a_folder_is_refused(name, private):
    before = {run.name for run in list_runs()}
    assert "1 to 80 letters" in private.refusal("start", ME, name=name)
    assert {run.name for run in list_runs()} == before
    assert not (private.home / "up").exists()


def test_a_second_run_of_the_same_name_is_refused(private):
    private.ask("start", ME, name="twice", pretrain_epochs=3)
    told = private.refusal("start", ME, name="twice", pretrain_epochs=4)
    assert told.startswith("There is already a run twice")
    assert newest().config["epochs"] == 3


def test_without_a_name_each_run_gets_one(private):
    before = len(list_runs())
    for _ in range(3):
        private.ask("start", ME, name="")
    assert len({run.name for run in list_runs()}) == before + 3


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"pretrain_lr": -1}, "at least 0, not -1"),
        ({"pretrain_lr": "abc"}, "lr"),
        ({"pretrain_lr": "NaN"}, "lr"),
        ({"pretrain_lr": "x" * 100_000}, "lr"),
        ({"pretrain_batch": 1e9}, "at least 1 and at most 65536"),
        ({"pretrain_epochs": 1e9}, "at most 1e+06"),
        ({"pretrain_checkpoint_minutes": 1e300}, "at most 1e+10"),
        ({"pretrain_seed": -1}, "seed"),
        ({"pretrain_centring": "x" * 100_000}, "centring"),
        ({"task": "probe", "teacher": HEAD, "probe_batch": 1e9}, "at least 1 and at most 65536"),
        ({"pretrain_epochs": None}, "epochs is empty: it needs a number."),
        ({"pretrain_blur": "1 2"}, "blur"),
        ({"pretrain_patch": "5"}, "5"),
        ({"pretrain_dim": 100}, "dim (100) must be a multiple of heads (3)."),
        ({"where": "upload", "files": []}, "There are no pictures yet: drop a zip file or many images."),
        ({"where": "folder", "path": "nothing"}, "nothing: there is no such file or folder below "),
        ({"where": "folder", "path": "../runs"}, "../runs is not below "),
        ({"where": "folder", "path": "/etc"}, "/etc is not below "),
        ({"where": "folder", "path": None}, "Name a folder, a zip file or a list below "),
        ({"task": "probe"}, "These pictures have no depth: choose who tells it, or take a zip file or folder with"),
        ({"task": "probe", "where": "folder", "path": "photos"}, "RGB-D folder"),
        ({"task": "probe", "teacher": "nonsense"}, "nonsense: there is no such file or folder below "),
        ({"task": "probe", "teacher": "/etc"}, "/etc is not below "),
        ({"task": "probe", "teacher": HEAD, "where": "folder", "path": "../runs"}, "../runs is not below "),
        ({"task": "finetune", "finetune_epochs": -3}, "at least 0 and at most 1e+06, not -3"),
    ],
)
def test_what_cannot_be_is_a_sentence_and_no_run(values, told, private):
    before = len(list_runs())
    assert told in private.refusal("start", ME, name="cannot", **values)
    assert len(list_runs()) == before


def test_a_folder_of_the_machine_is_learnt_from_where_it_is(private):
    private.ask("start", ME, where="folder", path="photos", name="local", pretrain_batch=8)  # of 8
    run = newest()
    assert run.config["data"] == [str(private.home / "open" / "photos")]
    assert not (run.folder / "data").exists()


def test_what_is_uploaded_stays_with_the_run(private):
    file = private.upload("photos.zip", pictures())
    private.ask("start", ME, where="upload", files=[file], name="uploaded")
    Path(file["path"]).unlink()
    run = newest()
    assert run.config["data"] == [str(run.folder / "data" / "photos.zip")]
    assert zipfile.ZipFile(run.config["data"][0]).testzip() is None
    told = private.refusal("start", ME, where="upload", files=[file], name="later")
    assert "no longer here" in told


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


def test_depth_that_is_uploaded_becomes_a_folder_of_the_run(public):
    values = {"task": "probe", "where": "upload", "files": [public.upload("rooms.zip", rooms())]}
    found, shown = public.ask("look_at_data", **values)
    assert ("2 pictures with their depth." in found, shown) == (True, "")
    command, _ = public.ask("say_command", **values)
    assert command == "python -m training probe rooms.zip"
    public.ask("start", ME, **values)
    run = newest()
    config = ProbeConfig.from_dict(run.config)
    assert config.data == str(run.folder / "data" / "rooms")
    assert len(find_pairs(config.data)) == 2


def test_a_teacher_tells_the_depth_of_what_is_uploaded(private):
    values = {"task": "probe", "where": "upload", "files": [private.upload("photos.zip", pictures())], "teacher": HEAD}
    found, shown = private.ask("look_at_data", **values)
    assert "<b>40 pictures</b>" in found
    assert f"Their depth will be told by {HEAD} first." in found
    assert "classes" not in found
    assert "<img" in shown
    command, _ = private.ask("say_command", **values, probe_epochs=3)
    assert command == f"python -m training probe photos.zip --teacher {HEAD} --epochs 3"
    private.ask("start", ME, **values, name="taught")
    config = ProbeConfig.from_dict(newest().config)
    assert (config.teacher, config.data) == (HEAD, str(newest().folder / "data" / "photos"))
    assert len(list(Path(config.data).iterdir())) == 40
    told = private.refusal("start", ME, **values | {"files": [private.upload("rooms.zip", rooms())]}, name="no")
    assert told == "rooms.zip has depth: remove the teacher, or the folder depth."
    broken = values | {"files": [private.upload("broken.zip", pictures(broken=2))]}
    private.ask("look_at_data", **broken)
    told = private.refusal("start", ME, **broken, name="no")
    assert told.startswith("2 of 40 pictures cannot be read, more than the 3% that this run may leave out: ")


def test_the_demo_and_a_folder_can_be_taught(private):
    found, _ = private.ask("look_at_data", task="probe")
    assert "choose who tells it" in found
    assert "dv-error" not in found  # nobody did anything wrong yet
    found, _ = private.ask("look_at_data", task="probe", teacher=HEAD)
    assert "18 pictures" in found
    assert f"told by {HEAD} first" in found
    assert private.ask("say_command", task="probe", teacher=HEAD)[0] == (
        f"python -m training probe --demo --teacher {HEAD}"
    )
    private.ask("start", ME, task="probe", teacher=HEAD, name="demo-depth")
    assert len(list(Path(newest().config["data"]).iterdir())) == 18
    private.ask("start", ME, task="probe", teacher=HEAD, where="folder", path="photos", name="folder-depth")
    assert newest().config["data"] == str(private.home / "open" / "photos")


@pytest.mark.skipif(not SHIPPED.is_file(), reason="the shipped probe is not there")
def test_the_shipped_probe_teaches_other_models_and_is_called_by_its_place(private, monkeypatch):
    values = {"task": "probe", "teacher": "shipped", "model": "dinov2-small"}
    command, _ = private.ask("say_command", **values)
    options = _parser().parse_args(shlex.split(command)[3:])
    monkeypatch.chdir(ROOT)
    typed = absolute(settings_of(options, ProbeConfig))
    private.ask("start", ME, **values, name="shipped")
    run = newest().config
    assert typed.teacher == run["teacher"] == str(SHIPPED)
    assert typed.to_dict() == {**run, "data": ""}
    for model, offered in (("dinov2-small", True), ("embedded", False)):
        (sent,) = private.ask("offer_teachers", model, "shipped")
        assert ("shipped" in str(sent["choices"])) == offered
        assert sent.get("value") == (None if offered else "own")


def test_no_teacher_of_this_machine_is_a_strangers(public, private):
    private.ask("start", ME, name="mine", task="probe", teacher=HEAD)
    before = len(list_runs())
    for teacher in ("/etc", "mine", str(newest().folder), str(SHIPPED), "facebook/dpt-dinov2-giant-nyu", "a\0b"):
        refused = public.refusal("start", YOU, task="probe", teacher=teacher)
        (found, _), (command, _) = (
            public.ask(name, task="probe", teacher=teacher) for name in ("look_at_data", "say_command")
        )
        for told in (refused, found, command):
            assert "There is no such teacher here: choose one of the list." in told
        assert "dv-error" in found
    assert len(list_runs()) == before


def test_how_long_a_probe_takes(private, tiny_folders):
    """With depth in a zip file and in a folder, and with a teacher, whose time is left out."""
    zipped = private.home / "open" / "rooms.zip"
    zipped.write_bytes(rooms())
    with zipfile.ZipFile(zipped) as archive:
        archive.extractall(private.home / "open")
    for values in ({"path": "rooms.zip"}, {"path": "rooms"}, {"path": "photos", "teacher": HEAD}):
        values |= {"task": "probe", "where": "folder", "model": str(tiny_folders["dinov2"]), "probe_resolution": 56}
        (said,) = private.ask("say_estimate", **values)
        assert "<b>About " in said
        assert ("without reading the images and the teacher" in said) == ("teacher" in values)


def test_broken_pictures_are_told_when_they_were_seen(private):
    file = private.upload("broken.zip", pictures(broken=2))
    found, _ = private.ask("look_at_data", where="upload", files=[file])
    assert "2 cannot be read (5.0%), more than the 3% that a run leaves out" in json.dumps(found)
    told = private.refusal("start", ME, where="upload", files=[file], name="broken")
    assert told.startswith("2 of 40 pictures cannot be read, more than the 3%")
    assert "00.png" in told
    private.ask("start", ME, where="upload", files=[file], name="broken", pretrain_max_broken=0.1)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("empty.zip", b"PK\5\6" + bytes(18), "empty.zip is empty"),
        ("no.zip", b"no", "no.zip is damaged"),
        ("list.txt", b"/etc/hostname\n", "hostname is listed or linked, but lies outside of what this page may read."),
        ("<b>.pdf", b"%PDF", "is no zip file, list (.txt, .csv) or image."),
    ],
)
def test_uploads_that_cannot_be_learnt_from(name, content, told, private):
    file = private.upload(name, content)
    assert told in private.refusal("start", ME, where="upload", files=[file], name="bad")
    found, shown = private.ask("look_at_data", where="upload", files=[file])
    assert told in found
    assert shown == ""


def test_names_in_uploads_are_shown_as_text(private):
    with zipfile.ZipFile(content := io.BytesIO(pictures()), "a") as archive:
        for i in range(40):
            archive.writestr(f'<b>"/<i>{i}.png', archive.read(f"{i:02}.png"))
    shown = private.ask("look_at_data", where="upload", files=[private.upload("photos.zip", content.getvalue())])
    assert "<b>80 pictures</b>" in shown[0]
    assert "<i>" not in shown[1]
    assert "&lt;i&gt;" in shown[1]


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    environment(monkeypatch, tmp_path / "disk")
    with small_disk(tmp_path / "disk", 1) as disk, serving(disk, Settings(runs_at_once=0)) as served:
        file = served.upload("photos.zip", pictures(beside=2_000_000))
        told = served.refusal("start", ME, where="upload", files=[file], name="full")
        assert told.endswith("cannot be written: No space left on device.")
        fill(disk)
        assert "No space left on device" in served.refusal("start", ME, name="full")
        assert list((disk / "runs").iterdir()) == []


def test_stopped_before_its_first_step_and_resumed(private):
    private.ask("start", ME, name="early")
    run = newest()
    private.ask("ask_to_stop", ME, str(run.folder))
    assert run.status()["state"] == "stopped"
    assert "nothing to stop" in private.refusal("ask_to_stop", ME, str(run.folder))
    private.ask("go_on", ME, str(run.folder))
    assert run.status()["state"] == "queued"
    assert "early is queued already." in private.refusal("go_on", ME, str(run.folder))


@pytest.mark.parametrize("name", ["ask_to_stop", "go_on", "look_through", "download_run"])
def test_without_a_run_there_is_nothing_to_do(name, private):
    for folder in (None, "", "/etc", str(private.home / "runs" / "gone"), "x" * 5000, "a\0b"):
        assert private.refusal(name, ME, folder) == CHOOSE


def test_a_run_without_a_network_is_not_downloaded(private):
    private.ask("start", ME, name="empty")
    assert "no exported network yet" in private.refusal("download_run", ME, str(newest().folder))


def test_an_upload_to_the_hub_that_cannot_be_is_told_and_the_token_forgotten(private):
    private.ask("start", ME, name="hub")
    said, secret = private.ask("upload", ME, str(newest().folder), "<b>x", True, "hf_secret")
    assert "Name the repository as owner/name." in said
    said, secret = private.ask("upload", ME, str(newest().folder), "someone/mini", True, "hf_secret")
    assert "no exported network yet" in said
    assert secret == ""
    assert "hf_secret" not in said


def test_command_and_estimate_say_what_is_wrong(private):
    command, _ = private.ask("say_command", pretrain_lr=-1)
    assert command == "# lr must be at least 0, not -1."
    (said,) = private.ask("say_estimate", pretrain_dim=100)
    assert "dim (100) must be a multiple of heads (3)." in said
    command, estimate = private.ask("say_command", path="typed before", name="mine")
    assert "About" not in estimate  # that was of other settings
    assert command == "python -m training pretrain --demo --preset micro --name mine"


# On a public page


@pytest.fixture
def two(public) -> tuple[Run, Run]:
    """A run of mine and one of yours, of the same name."""
    made = []
    for token in (ME, YOU):
        public.ask("start", token, name="same")
        made.append(newest())
    return made[0], made[1]


def test_strangers_may_call_their_runs_the_same(two):
    mine, yours = two
    assert mine.name != yours.name
    assert {run.name.rsplit("-", 1)[0] for run in two} == {"same"}


def test_nobody_sees_the_run_of_another(two, public):
    mine, yours = two
    for token, own, other in ((ME, mine, yours), (YOU, yours, mine), ("", None, mine), ("guess", None, yours)):
        for chosen in (None, str(other.folder), f"{mine.folder}/../{other.name}"):
            sent = json.dumps(public.ask("refresh", token, chosen, [str(mine.folder), str(yours.folder)]))
            assert other.name not in sent
            assert own is None or own.name in sent
        (notice,) = public.ask("say_what_goes_on", token)
        assert other.name not in notice


@pytest.mark.parametrize("name", ["ask_to_stop", "go_on", "look_through", "download_run"])
def test_nobody_touches_the_run_of_another(name, two, public):
    _, yours = two
    for token in (ME, "", None):
        assert public.refusal(name, token, str(yours.folder)) == CHOOSE
    assert yours.status()["state"] == "queued"
    assert not yours.stop_requested()


def test_nobody_asks_the_classifier_of_another(two, public):
    _, yours = two
    label, said = public.ask("classify", ME, str(yours.folder), None)
    assert label["visible"] is False
    assert CHOOSE in said


def test_who_has_no_token_starts_nothing(public):
    before = len(list_runs())
    for token in ("", None):
        assert "reload it" in public.refusal("start", token)
    assert len(list_runs()) == before
    (token,) = public.ask("give_token", "")
    (other,) = public.ask("give_token", "")
    assert len(token) == 32
    assert token != other
    assert public.ask("give_token", token) == [token]


@pytest.mark.parametrize("task", ["scratch", "finetune", "probe"])
@pytest.mark.parametrize("path", ["/etc", ".", "~"])
def test_no_folder_of_the_machine_is_open(path, task, public):
    before = len(list_runs())
    public.refusal("start", ME, where="folder", path=path, held_out=path, task=task)
    assert len(list_runs()) == before


def test_held_out_images_are_no_way_to_a_folder(public):
    public.ask("start", ME, held_out="/etc")
    assert newest().config["validation"] == ""


@pytest.mark.parametrize("task", ["adapt", "finetune"])
def test_a_model_to_start_from_is_of_the_list(task, public, tmp_path):
    for model in ("someone/else", str(tmp_path), "/etc", "../..", "dinov2-giant"):
        public.refusal("start", ME, task=task, model=model)


@pytest.mark.parametrize("path", ["/etc/hostname", __file__, "OTHERS", "CACHE/../../x.png"])
def test_files_that_were_not_uploaded_are_not_read(path, public, monkeypatch):
    public.ask("start", YOU, where="upload", files=[public.upload("mine.zip", pictures())])
    secret = next((newest().folder / "data").iterdir())
    before = len(list_runs())
    path = path.replace("OTHERS", str(secret)).replace("CACHE", str(public.home.with_name(f"{public.home.name} cache")))
    for name in ("start", "look_at_data"):
        first = (ME,) if name == "start" else ()
        with pytest.raises(Error):  # Gradio's own refusal, in its own words
            public.ask(name, *first, where="upload", files=[file_data(path)])
    assert len(list_runs()) == before


def test_what_a_run_holds_is_not_served(two, public):
    mine, _ = two
    for file in ("config.json", "owner.txt", "status.json"):
        answer = public.client.get(f"{public.url}/file={mine.folder / file}")
        assert answer.status_code in (403, 404), file


def test_an_uploaded_list_reads_nothing(public):
    for line in (b"/etc/hostname", b"/etc/nothing"):
        told = public.refusal("start", ME, where="upload", files=[public.upload("list.txt", line)])
        assert told == "list.txt lists files of this machine, which are not open to this page."


@pytest.mark.slow
def test_only_so_many_runs_wait(public):
    limits = Settings().limits
    try:
        for number in range(limits.waiting):
            public.ask("start", f"{number // limits.waiting_each:032x}")
        assert f"{limits.waiting} runs wait" in public.refusal("start", ME)
    finally:
        for number in range(limits.waiting // limits.waiting_each):
            for run in visible(True, token := f"{number:032x}"):
                public.ask("ask_to_stop", token, run.name)


def test_only_so_many_runs_of_one_wait(public):
    limits = Settings().limits
    for _ in range(limits.waiting_each):
        public.ask("start", YOU)
    waiting = newest()
    assert f"{limits.waiting_each} of your runs" in public.refusal("start", YOU)
    public.ask("ask_to_stop", YOU, waiting.name)
    public.ask("start", YOU)
    assert f"{limits.waiting_each} of your runs" in public.refusal("go_on", YOU, waiting.name)
    public.ask("start", ME)


def test_the_hub_takes_no_tokens_of_strangers(public):
    assert "upload" not in {fn.name for fn in _of_training(public.page)}
