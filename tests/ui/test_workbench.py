import io
import json
import os
import threading
import time
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import Queue
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image

from dinoviz import __version__, models
from dinoviz.backbone import Backbone
from dinoviz.cache import image_digest
from dinoviz.errors import DinovizError, Stopped
from dinoviz.grid import PatchGrid
from dinoviz.images import ImageError
from dinoviz.ui import image_bar as bar
from dinoviz.ui import pca_views, workbench
from dinoviz.ui import shared as parts
from dinoviz.ui.access import Settings
from dinoviz.ui.jobs import Job
from dinoviz.ui.segment.targets import Targets
from dinoviz.ui.workbench import Picture, Workbench

PATIENCE = 20  # seconds after which a thread that should have ended counts as hanging
ROOMY = 1 << 30


class Stepwise:
    """The work of a job that tells what the test wants, when the test wants it."""

    def __init__(self, result="done"):
        self.result = result
        self.begun, self.ended, self.told = threading.Event(), threading.Event(), threading.Semaphore(0)
        self._steps: Queue = Queue()

    def __call__(self, job: Job):
        self.begun.set()
        try:
            while step := self._steps.get(timeout=PATIENCE):
                job.tell(*step)
                self.told.release()
            return self.result
        finally:
            self.ended.set()

    def tell(self, *step) -> None:
        self._steps.put(step)
        assert self.told.acquire(timeout=PATIENCE)

    def tell_in_vain(self) -> None:
        """The next word of a work whose job was stopped: it ends there."""
        self._steps.put(("Going on",))
        assert self.ended.wait(PATIENCE)
        assert not self.told.acquire(blocking=False)

    def end(self) -> None:
        self._steps.put(None)


@pytest.fixture
def work():
    steps = Stepwise()
    yield steps
    steps.end()


@pytest.fixture
def other_work():
    steps = Stepwise("the other's")
    yield steps
    steps.end()


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when the test says so."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(workbench, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


@pytest.fixture
def bench(monkeypatch) -> Workbench:
    monkeypatch.setenv("DINOVIZ_DEVICE", "cpu")
    return Workbench(Settings(cache_bytes=ROOMY))


@pytest.fixture
def public(monkeypatch) -> Workbench:
    monkeypatch.setenv("DINOVIZ_DEVICE", "cpu")
    return Workbench(Settings(public=True, cache_bytes=ROOMY))


@pytest.fixture
def model(tiny_folders) -> str:
    return str(tiny_folders["dinov2_with_registers"])


@pytest.fixture
def cat(tmp_path, chelsea) -> str:
    chelsea.save(tmp_path / "cat.png")
    return str(tmp_path / "cat.png")


@pytest.fixture
def cup(tmp_path, coffee) -> str:
    coffee.save(tmp_path / "cup.png")
    return str(tmp_path / "cup.png")


@pytest.fixture
def encodes(monkeypatch) -> list[int]:
    """The resolution of each forward pass."""
    passes: list[int] = []
    encode = Backbone.encode

    def counted(self, image, resolution=518, *args, **kwargs):
        passes.append(resolution)
        return encode(self, image, resolution, *args, **kwargs)

    monkeypatch.setattr(Backbone, "encode", counted)
    return passes


def sentence_now(job: Job) -> str:
    """What the page shows; a watch that were closed here would stop the job."""
    return job._sentence()


# Jobs


def test_a_job_says_what_it_does(work):
    job = Job(work, "request")
    work.tell("Loading the model")
    assert next(job.watch(every=0.01)) == "Loading the model …"


def test_a_job_says_how_far_it_is_and_how_long_it_takes(work, clock):
    job = Job(work, "request")
    work.tell("Loading")
    clock.seconds += 60  # says nothing about the speed of the encode
    work.tell("Encoding", 0.1)
    assert sentence_now(job) == "Encoding, 10%"
    clock.seconds += 10
    work.tell("Encoding", 0.3)
    # A fifth in 10 s: the seven tenths that are left take 35 s.
    assert sentence_now(job) == "Encoding, 30%, about 35 s left"


def test_less_than_a_second_is_not_worth_a_word(work, clock):
    job = Job(work, "request")
    work.tell("Encoding", 0.1)
    clock.seconds += 0.5
    work.tell("Encoding", 0.9)
    assert sentence_now(job) == "Encoding, 90%"


def test_what_a_job_does_may_change_between_two_words(work):
    job = Job(work, "request")
    megabytes = iter((12, 40))
    work.tell(lambda: f"Loading: {next(megabytes)} of 88 MB")
    watch = job.watch(every=0.01)
    assert [next(watch), next(watch)] == ["Loading: 12 of 88 MB …", "Loading: 40 of 88 MB …"]
    watch.close()


def test_watch_ends_with_the_result(work):
    job = Job(work, "request")
    watch = job.watch(every=0.01)
    next(watch)
    work.end()
    for _ in watch:
        pass
    assert job.result() == "done"
    assert not job.stopped


def test_stop_ends_the_watch_at_once_and_the_work_at_its_next_word(work):
    job = Job(work, "request")
    watch = job.watch(every=0.01)
    next(watch)
    job.stop()
    assert list(watch) == []
    with pytest.raises(Stopped):
        job.result()
    assert not work.ended.is_set()  # a download cannot be interrupted; nobody waits for it
    work.tell_in_vain()
    with pytest.raises(Stopped):
        job.result()


def test_who_leaves_the_watch_early_stops_the_job(work):
    job = Job(work, "request")
    watch = job.watch(every=0.01)
    next(watch)
    watch.close()  # what Gradio does to a handler whose page was closed
    assert job.stopped
    work.tell_in_vain()


@pytest.mark.parametrize("error", [DinovizError("no such model"), MemoryError("full")])
def test_an_error_of_the_work_reaches_who_asks_for_the_result(error):
    def fail(job):
        raise error

    job = Job(fail, "request")
    for _ in job.watch(every=0.01):
        pass
    with pytest.raises(type(error), match=str(error)):
        job.result()


# Jobs of a page


def test_the_same_asked_twice_is_one_job(bench, work, other_work):
    job = bench.start("page", ("encode", "cat"), work)
    assert bench.start("page", ("encode", "cat"), other_work) is job
    assert not job.stopped
    assert not other_work.begun.is_set()


def test_something_else_asked_stops_what_was_asked_before(bench, work, other_work):
    first = bench.start("page", ("encode", "cat"), work)
    second = bench.start("page", ("encode", "cup"), other_work)
    assert (first.superseded, first.stopped) == (True, True)
    assert (second.superseded, second.stopped) == (False, False)
    other_work.end()
    for _ in second.watch(every=0.01):
        pass
    assert second.result() == "the other's"


def test_a_stopped_job_is_not_joined(bench, work, other_work):
    first = bench.start("page", "cat", work)
    bench.stop("page")
    assert bench.start("page", "cat", other_work) is not first


def test_another_page_is_not_disturbed(bench, work, other_work):
    mine = bench.start("my page", "cat", work)
    yours = bench.start("your page", "cup", other_work)
    bench.stop("your page")
    assert (mine.stopped, yours.stopped) == (False, True)


def test_what_nobody_waits_for_any_more_is_stopped_as_superseded(bench, work):
    job = bench.start("page", "cat", work)
    assert bench.is_busy("page")
    bench.stop("page", superseded=True)
    assert (job.superseded, job.stopped) == (True, True)
    bench.finish("page", job)
    assert not bench.is_busy("page")


def test_who_looks_at_what_is_not_encoded_is_told_unless_that_is_under_way(bench, work, model, cat, monkeypatch):
    told = []
    monkeypatch.setattr(parts.gr, "Info", told.append)
    me = SimpleNamespace(session_hash="me")
    assert parts.encoded(bench, cat, model, "224", me) is None
    assert len(told) == 1
    assert "press Encode" in told[0]
    bench.start(parts.bar_owner(me), "cat", work)
    assert parts.encoded(bench, cat, model, "224", me) is None
    assert len(told) == 1, "it is drawn when it is encoded"
    assert parts.encoded(bench, cat, model, "224") is None
    assert len(told) == 2, "a click is not, and so is told"
    bench.look(cat, model, "224")
    assert parts.encoded(bench, cat, model, "224") is not None
    assert len(told) == 2


def test_stopping_where_nothing_is_under_way_is_no_error(bench):
    bench.stop("page")


def test_a_finished_job_is_forgotten(bench, work, other_work):
    first = bench.start("page", "cat", work)
    bench.finish("page", first)
    second = bench.start("page", "cat", other_work)
    assert second is not first
    assert not first.superseded


def test_who_finishes_late_does_not_forget_the_newer_job(bench, work, other_work):
    first = bench.start("page", "cat", work)
    second = bench.start("page", "cup", other_work)
    bench.finish("page", first)
    assert bench.start("page", "cup", other_work) is second


def test_a_page_that_goes_away_stops_its_job_and_leaves_nothing(bench, work, other_work):
    job = bench.start("page", "cat", work)
    sentences = parts.follow(bench, "page", job)
    next(sentences)
    sentences.close()
    assert job.stopped
    assert bench.start("page", "cat", other_work) is not job


# Looking at a picture


def test_a_picture_under_two_names_is_encoded_once(bench, model, cat, chelsea, tmp_path, encodes):
    chelsea.save(tmp_path / "again.bmp")
    first = bench.look(cat, model, 224)
    second = bench.look(str(tmp_path / "again.bmp"), model, 224)
    assert len(encodes) == 1
    assert second.features is first.features
    assert (first.picture.name, second.picture.name) == ("cat.png", "again.bmp")
    assert first.key == second.key


def test_a_look_is_what_the_backbone_says(bench, model, cat, chelsea, tiny_backbone):
    look = bench.look(cat, model, 224)
    np.testing.assert_array_equal(look.features.patches, tiny_backbone.encode(chelsea, 224).patches)
    assert sorted(look.features.captured) == [0, 1, 2]
    about = look.about()
    assert about["picture"] == {"name": "cat.png", "size": (451, 300), "sha256_of_pixels": image_digest(chelsea)}
    assert about["weights"]["id"] == tiny_backbone.weights_id


def test_another_resolution_is_another_look(bench, model, cat, encodes):
    assert bench.look(cat, model, 224).key != bench.look(cat, model, 280).key
    assert encodes == [224, 280]


def test_a_picture_changed_on_disk_is_seen_anew(bench, model, cat, coffee):
    before = bench.look(cat, model, 224)
    coffee.save(cat)
    after = bench.look(cat, model, 224)
    assert after.picture.digest == image_digest(coffee)
    assert after.features is not before.features


def test_the_same_picture_uploaded_again_is_the_same_look(bench, model, cat):
    look = bench.look(cat, model, 224)
    Path(cat).write_bytes(Path(cat).read_bytes())
    os.utime(cat, (1, 1))
    assert bench.peek(cat, model, 224).key == look.key


def test_a_look_tells_its_part_of_the_job(bench, model, cup):
    told = []
    job = SimpleNamespace(tell=lambda what, share=0.0: told.append((what if isinstance(what, str) else what(), share)))
    bench.look(cup, model, 224, job, (1, 2))
    assert told[0] == (f"Loading {model}", 0.5)
    assert all(what == "Encoding picture 2 of 2" for what, _ in told[1:])
    # Half is done by the first picture; three blocks share the other half.
    assert [share for _, share in told[1:]] == pytest.approx([0.5, 0.5 + 1 / 6, 0.5 + 2 / 6, 1])


def test_a_stopped_encode_leaves_nothing_behind(bench, model, cat):
    def tell(what, share=0.0):
        if share > 0.5:
            raise Stopped

    with pytest.raises(Stopped):
        bench.look(cat, model, 224, SimpleNamespace(tell=tell))
    assert bench.features_cache.nbytes == 0
    assert bench.look(cat, model, 224).features.grid.shape == (16, 24)


def test_no_picture_is_said_in_words(bench, model):
    with pytest.raises(DinovizError, match="There is no picture yet"):
        bench.look(None, model, 224)


def picture_of(size: tuple[int, int]) -> Picture:
    image = Image.new("RGB", size)
    return Picture(size, image, image_digest(image), "strip.png", lambda: image)


@pytest.mark.parametrize("size", [(3000, 1000), (1000, 3000), (2000, 200)])
def test_the_resolution_of_a_long_picture_is_lowered_to_what_the_grid_allows(tiny_backbone, size):
    lowered = Workbench.resolution(picture_of(size), tiny_backbone, 1792)
    assert lowered < 1792
    PatchGrid.fit(size, lowered, 14)
    with pytest.raises(DinovizError, match=f"choose {lowered} px or less"):
        PatchGrid.fit(size, lowered + 14, 14)


def test_a_resolution_that_fits_is_left_alone(tiny_backbone):
    assert Workbench.resolution(picture_of((3000, 1000)), tiny_backbone, 518) == 518


def test_a_look_encodes_at_the_lowered_resolution(bench, model, tiny_backbone, coffee, tmp_path, monkeypatch):
    small = tiny_backbone.encode(coffee, 224, "all")  # in place of 16,000 patches, which would take seconds
    asked = []
    monkeypatch.setattr(Backbone, "encode", lambda self, image, resolution, *_, **__: asked.append(resolution) or small)
    Image.new("RGB", (3000, 1000)).save(tmp_path / "panorama.png")
    look = bench.look(str(tmp_path / "panorama.png"), model, 1792)
    assert asked == [look.resolution] == [1022]  # 73 x 219 patches; 74 x 222 are more than 128 x 128


def test_a_picture_too_long_and_narrow_is_refused(bench, model, tmp_path, encodes):
    Image.new("RGB", (60_000, 8)).save(tmp_path / "thread.png")
    with pytest.raises(DinovizError) as refusal:
        bench.look(str(tmp_path / "thread.png"), model, 224)
    assert str(refusal.value) == "thread.png: the picture is too long and narrow to be looked at."
    assert encodes == []


def test_a_bad_picture_among_good_ones_is_left_out_only_where_asked(bench, model, cat, cup, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    paths = [cat, str(tmp_path / "bad.png"), cup]

    def encode(**kwargs) -> list[str]:
        job = bench.start_encode("page", paths, model, 224, **kwargs)
        for _ in parts.follow(bench, "page", job):
            pass
        return [look.picture.name for look in job.result()]

    assert encode(skip_bad=True) == ["cat.png", "cup.png"]
    with pytest.raises(DinovizError, match=r"bad\.png: this is not an image"):
        encode()


# Memory that pictures take while they are decoded and encoded


def heard(job: Job, sentence: str) -> bool:
    """Whether the job comes to say this; without a watch, whose end would stop it."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and sentence_now(job) != sentence:
        time.sleep(0.01)
    return sentence_now(job) == sentence


def test_who_waits_for_a_pass_is_told_the_place(bench, model, cat, cup, encodes):
    with bench.turn(1):
        first = bench.start_encode(("a page", "bar"), [cat], model, 224)
        assert heard(first, "Busy, place 1 …")
        second = bench.start_encode(("another", "bar"), [cup], model, 280)
        assert heard(second, "Busy, place 2 …")
        assert encodes == []
    for job in (first, second):
        for _ in job.watch(0.01):
            pass
        job.result()
    assert encodes == [224, 280]


@pytest.mark.parametrize("leave", ["stop", "superseded"])
def test_who_is_stopped_while_waiting_leaves_the_queue(bench, model, cat, cup, encodes, work, leave):
    with bench.turn(1):
        first = bench.start_encode("a page", [cat], model, 224)
        assert heard(first, "Busy, place 1 …")
        second = bench.start_encode("another", [cup], model, 280)
        assert heard(second, "Busy, place 2 …")
        if leave == "stop":
            bench.stop("a page")
        else:
            bench.start("a page", "something else", work)
        assert heard(second, "Busy, place 1 …")
    for _ in second.watch(0.01):
        pass
    assert encodes == [280]


def test_two_who_want_the_same_take_one_place(bench, model, cat, encodes):
    with bench.turn(1):
        first = bench.start_encode("a page", [cat], model, 224)
        assert heard(first, "Busy, place 1 …")
        same = bench.start_encode("another", [cat], model, 224)
        third = bench.start_encode("a third", [cat], model, 280)
        assert heard(third, "Busy, place 2 …")
    for job in (first, same, third):
        for _ in job.watch(0.01):
            pass
        job.result()
    assert sorted(encodes) == [224, 280]


def test_a_client_without_a_page_waits_its_turn(bench, model, cat):
    look: Future = Future()
    with bench.turn(1):
        threading.Thread(target=lambda: look.set_result(bench.look(cat, model, 224)), daemon=True).start()
        with pytest.raises(TimeoutError):
            look.result(0.3)
    assert look.result(PATIENCE).features.grid.shape == (16, 24)


def encoded_in_a_job(bench: Workbench, path: str, model: str) -> None:
    job = bench.start_encode("page", [path], model, 224)
    for _ in job.watch(0.01):
        pass
    job.result()


@pytest.mark.parametrize(
    "door",
    [
        lambda bench, path, model: bench.look(path, model, 224),
        lambda bench, path, model: Targets(bench).get(path, model, "224"),
        encoded_in_a_job,
    ],
    ids=["look", "target", "job"],
)
def test_every_pass_has_its_turn(bench, model, cat, monkeypatch, door):
    running, forward = [], Backbone._forward

    def watched(self, *args):
        running.append(len(bench._passes._running))
        return forward(self, *args)

    bench.backbone(model)  # loading tries the network on four patches
    monkeypatch.setattr(Backbone, "_forward", watched)
    door(bench, cat, model)
    assert running == [1]
    assert not bench._passes._running


def test_a_pass_that_needs_more_than_there_is_is_refused(monkeypatch, model, cat, encodes):
    monkeypatch.setenv("DINOVIZ_DEVICE", "cpu")
    bench = Workbench(Settings(cache_bytes=ROOMY, job_bytes=40 * 2**20))
    bench.look(cat, model, 224)
    with pytest.raises(DinovizError, match="GB of memory"):
        bench.look(cat, model, 784)
    assert encodes == [224]


def test_a_joint_basis_of_more_than_may_be_kept_is_refused_before_it_is_encoded(
    monkeypatch, bench, model, cat, cup, encodes
):
    one = bench.look(cat, model, 224).features.nbytes
    small = Workbench(Settings(cache_bytes=int(1.5 * one)))
    with pytest.raises(DinovizError, match="2 pictures at 224 px"):
        pca_views.open_looks(small, small.look, [cat, cup], model, "224")
    assert encodes == [224, 224]
    assert len(pca_views.open_looks(bench, bench.look, [cat, cup], model, "224").looks) == 2


def test_room_for_features_is_made_before_the_pass(bench, model, cat, cup, monkeypatch):
    one = bench.look(cat, model, 224).features.nbytes
    monkeypatch.setattr(bench.features_cache._cache, "bound", int(1.5 * one))
    kept, encode = [], Backbone.encode
    monkeypatch.setattr(
        Backbone, "encode", lambda *args, **kwargs: kept.append(bench.features_cache.nbytes) or encode(*args, **kwargs)
    )
    bench.look(cup, model, 224)
    assert kept == [0]
    assert bench.peek(cup, model, 224) is not None


def test_a_large_picture_keeps_only_what_is_shown_and_is_decoded_again(monkeypatch, tmp_path, chelsea):
    large = chelsea.resize((1500, 1000))
    large.save(tmp_path / "large.png")
    bench = Workbench(Settings(cache_bytes=8 * 2 * 2**20))  # of which an eighth is for pixels, and these are 6 MB
    picture = bench.picture(str(tmp_path / "large.png"))
    assert (picture.size, max(picture.shown.size)) == ((1500, 1000), 1024)
    assert bench._pixels.total == 0
    assert image_digest(picture.image) == picture.digest == image_digest(large)


def test_a_small_picture_is_decoded_once(bench, cat, monkeypatch):
    picture = bench.picture(cat)
    monkeypatch.setattr(workbench, "open_image", lambda path: pytest.fail("it is decoded again"))
    assert image_digest(picture.image) == picture.digest


def test_a_file_that_was_changed_since_is_not_taken_for_the_picture(monkeypatch, cat, coffee):
    bench = Workbench(Settings(cache_bytes=1))
    picture = bench.picture(cat)
    coffee.save(cat)
    with pytest.raises(ImageError, match=r"cat\.png.*changed"):
        picture.image  # noqa: B018


def test_a_pipe_in_place_of_a_picture_keeps_nobody_waiting(bench, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    asked: Future = Future()

    def ask() -> None:
        try:
            asked.set_result(bench.picture(str(tmp_path / "pipe.png")))
        except BaseException as error:
            asked.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(ImageError, match=r"pipe\.png"):
        asked.result(PATIENCE)


# Who may load what


@pytest.mark.parametrize("name", ["dinov2-giant", "someone/their-model", "dinov9"])
def test_a_public_page_refuses_what_it_does_not_list(public, name, monkeypatch):
    monkeypatch.setattr(models, "load", lambda name: pytest.fail(f"{name} was loaded"))
    with pytest.raises(models.ModelError) as refusal:
        public.backbone(name)
    text = str(refusal.value)
    assert text.startswith(f"There is no model {name!r} here; there are embedded, dinov2-small")
    assert "\n" not in text


def test_a_public_page_refuses_folders(public, model):
    with pytest.raises(models.ModelError, match="There is no model"):
        public.backbone(model)


def test_a_public_page_lists_what_a_shared_machine_can_hold(public):
    left_out = set(models.KNOWN) - set(public.model_names())
    assert left_out == {"dinov2-giant", "dinov2-with-registers-giant", "dinov3-vith16plus"}


def test_a_page_of_ones_own_has_all_models_and_folders(bench, model, tiny_backbone):
    assert bench.model_names() == list(models.KNOWN)
    assert bench.backbone(model).weights_id == tiny_backbone.weights_id


# Memory


def test_the_settings_bound_the_memory_of_the_features(monkeypatch, model, cat, chelsea, tmp_path, encodes):
    monkeypatch.setenv("DINOVIZ_DEVICE", "cpu")
    one = Workbench(Settings(cache_bytes=ROOMY)).look(cat, model, 224).features.nbytes
    bench = Workbench(Settings(cache_bytes=int(2.5 * one)))
    paths = []
    for angle in (0, 90, 180):
        paths.append(str(tmp_path / f"{angle}.png"))
        chelsea.rotate(angle, expand=True).save(paths[-1])
        bench.look(paths[-1], model, 224)
    assert bench.features_cache.nbytes == 2 * one
    encodes.clear()
    bench.look(paths[2], model, 224)
    assert encodes == []
    bench.look(paths[0], model, 224)
    assert encodes == [224]


def test_no_more_models_are_kept_than_the_settings_say(monkeypatch, tiny_folders):
    monkeypatch.setenv("DINOVIZ_DEVICE", "cpu")
    loaded, load = [], models.load
    monkeypatch.setattr(models, "load", lambda name: loaded.append(name) or load(name))
    bench = Workbench(Settings(cache_bytes=ROOMY, models_kept=2))
    a, b, c = (str(tiny_folders[family]) for family in ("dinov2", "vit", "dinov3_vit"))
    for name in (a, b, a, b, c, a):
        bench.backbone(name)
    assert loaded == [a, b, c, a]


@pytest.mark.parametrize(("text", "size"), [("64", 64 * 2**20), ("much", None), ("", None)])
def test_the_environment_can_set_the_memory(monkeypatch, text, size):
    monkeypatch.setenv("DINOVIZ_CACHE_MB", text)
    default = workbench.psutil.virtual_memory().total // 8
    assert Settings().cache_bytes == (size or default)


# Downloads


@pytest.fixture
def hub_folder(monkeypatch, tmp_path) -> Path:
    """An empty cache of the Hub, and where it would keep dinov2-small."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub" / "models--facebook--dinov2-small"


def test_a_download_says_how_much_is_there(hub_folder):
    assert models.download_progress("dinov2-small") == ": 0 of 88 MB"  # 22.1 million float32
    (hub_folder / "blobs").mkdir(parents=True)
    (hub_folder / "blobs" / "config").write_bytes(b"x" * 2_000_000)
    (hub_folder / "blobs" / "weights.incomplete").write_bytes(b"x" * 10_000_000)
    assert models.download_progress("dinov2-small") == ": 12 of 88 MB"


def test_what_is_there_is_not_downloaded(hub_folder):
    snapshot = hub_folder / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (hub_folder / "refs").mkdir()
    (hub_folder / "refs" / "main").write_text("0123")
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).write_text("{}")
    assert models.download_progress("dinov2-small") == ""


@pytest.mark.parametrize("name", ["embedded", "someone/their-model", "a folder"])
def test_nothing_is_said_where_the_size_is_not_known(hub_folder, name):
    assert models.download_progress(name) == ""


# Files for the page


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path, monkeypatch):
    """Where what the page makes goes."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))


def test_a_shown_picture_is_a_file_named_by_its_content(astronaut, chelsea):
    path = parts.jpeg_file(astronaut)
    opened = Image.open(path)
    assert (opened.format, opened.size) == ("JPEG", astronaut.size)
    # JPEG at quality 90 is a few levels off at most places.
    assert np.abs(np.asarray(opened, float) - np.asarray(astronaut, float)).mean() < 3
    assert parts.jpeg_file(astronaut.copy()) == path
    assert parts.jpeg_file(chelsea) != path


def test_a_file_that_a_browser_may_be_reading_is_never_written_again(astronaut):
    path = Path(parts.jpeg_file(astronaut))
    os.utime(path, (1000, 1000))
    before = path.stat()
    content = path.read_bytes()
    parts.jpeg_file(astronaut)
    after = path.stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
    assert path.read_bytes() == content
    assert after.st_mtime > 1000  # but it counts as new, so that the app does not throw it away


def test_many_at_once_leave_one_whole_file(tmp_path, astronaut):
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: parts.jpeg_file(astronaut), range(16)))
    assert len(set(paths)) == 1
    assert [str(path) for path in tmp_path.rglob("*") if path.is_file()] == paths[:1]
    Image.open(paths[0]).load()


def test_raw_patches_stay_sharp_in_colour():
    halves = np.zeros((64, 64, 3), dtype=np.uint8)
    halves[:, :33] = (200, 30, 30)  # the edge is inside a block of the coder
    halves[:, 33:] = (30, 30, 200)
    opened = np.asarray(Image.open(parts.jpeg_file(Image.fromarray(halves))), dtype=int)
    # Halved colour, JPEG's default, is off by 60 to 100 levels beside the edge.
    assert np.abs(opened - halves)[:, 32:34].max() < 30


def test_a_bundle_holds_the_files_and_says_what_they_are(astronaut):
    buffer = io.BytesIO()
    astronaut.save(buffer, format="PNG")
    path = parts.bundle("attention", {"map.png": buffer.getvalue(), "map.npz": b"numbers"}, {"layer": 12})
    assert Path(path).name == "attention.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == ["about.json", "map.npz", "map.png"]
        assert archive.read("map.png") == buffer.getvalue()
        assert json.loads(archive.read("about.json")) == {"dinoviz": __version__, "layer": 12}


def test_two_bundles_of_one_name_do_not_meet():
    first, second = (parts.bundle("pca", {"a": content}, {}) for content in (b"1", b"2"))
    assert first != second
    with zipfile.ZipFile(first) as archive:
        assert archive.read("a") == b"1"


def test_a_click_on_the_shown_copy_is_a_point_of_the_picture(bench, model, cat):
    look = bench.look(cat, model, 224)
    shown = look.picture.shown.size
    assert shown == (768, 511)
    corner = parts.picture_point(look, (shown[0] - 1, shown[1] - 1))
    # The centre of the last shown pixel, which is half a shown pixel from the corner.
    np.testing.assert_allclose(corner, (451 - 0.5 * 451 / 768, 300 - 0.5 * 300 / 511))
    np.testing.assert_allclose(parts.picture_point(look, (383.5, 255)), (225.5, 150))


def test_what_the_user_can_mend_is_a_message_without_markup():
    with pytest.raises(gr.Error) as message, parts.told():
        raise DinovizError("<img src=x>.png: the file is empty.")
    assert str(message.value.message) == "&lt;img src=x&gt;.png: the file is empty."


# The status line


def test_the_status_says_what_one_is_looking_through(bench, model, cat):
    text = bar.status(bench, bench.look(cat, model, 224), 224, 1.26)
    assert text.splitlines() == [text]
    assert text == (
        f"<b>dinov2_with_registers</b>: the folder {model}.<br>"
        "Input 336 x 224 px: 16 x 24 = 384 patches of 14 px and 4 registers. CPU, float32, encoded in 1.3 s."
    )


def test_the_status_says_that_the_resolution_was_lowered(bench, model, cat):
    look = replace(bench.look(cat, model, 224), resolution=1022)
    assert "<br>Lowered from 1792 px" in bar.status(bench, look, 1792, 1)
    assert "Lowered" not in bar.status(bench, look, 1022, 1)


def test_the_status_of_the_embedded_weights_says_why_they_are_there(bench, model, cat, embedded_backbone):
    look = replace(bench.look(cat, model, 224), backbone=embedded_backbone)
    bench.default_reason = "The default, since the Hub does not answer."
    text = bar.status(bench, look, 224, 1)
    assert "not Meta&#x27;s release" in text
    assert text.endswith("<br>The default, since the Hub does not answer.")


def test_without_the_hub_the_default_is_embedded_and_the_reason_is_known(hub_folder):
    bench = Workbench(Settings(cache_bytes=ROOMY))
    assert bench.default_model == "embedded"
    assert "the Hugging Face Hub does not answer" in bench.default_reason


def test_an_encode_ends_with_the_key_that_the_tabs_wait_for(bench, model, cat):
    *_, (status, _, ready, ended) = bar.encode_updates(bench, ("page", "bar"), cat, model, 224)
    assert "384 patches" in status
    assert ready == bench.look(cat, model, 224).key
    *_, (*_, same, later) = bar.encode_updates(bench, ("page", "bar"), cat, model, 224)
    assert same == ready
    assert later > ended, "the same picture again, perhaps from another file, is told as well"


def test_an_encode_that_fails_says_why(bench, model, tmp_path):
    (tmp_path / "a<b.png").write_text("no picture")
    *_, (status, _, ready, ended) = bar.encode_updates(bench, ("page", "bar"), str(tmp_path / "a<b.png"), model, 224)
    assert "a&lt;b.png: this is not an image" in status
    assert "dv-error" in status
    assert (ready, type(ended)) == (None, float)


def test_an_encode_that_was_stopped_says_so(bench, work):
    bench.start(("page", "bar"), ("encode", "cat.png", "model", 224), work)
    steps = bar.encode_updates(bench, ("page", "bar"), "cat.png", "model", 224)
    next(steps)
    bench.stop(("page", "bar"))
    *_, (status, _, ready, ended) = steps
    assert "Stopped. Press Encode" in status
    assert (ready, type(ended)) == (None, float)


def test_an_encode_that_another_replaced_says_nothing(bench, work, other_work):
    bench.start(("page", "bar"), ("encode", "cat.png", "model", 224), work)
    steps = bar.encode_updates(bench, ("page", "bar"), "cat.png", "model", 224)
    next(steps)
    bench.start(("page", "bar"), "something else", other_work)
    assert list(steps) == []
