"""The workbench: jobs of pages, pictures and features in bounded memory, turns of the network, models."""

import os
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image

from dinoviz import models
from dinoviz.backbone import Backbone
from dinoviz.cache import image_digest
from dinoviz.errors import DinovizError, Stopped
from dinoviz.grid import PatchGrid
from dinoviz.images import ImageError
from dinoviz.ui import access, pca_views, shared, workbench
from dinoviz.ui import image_bar as bar
from dinoviz.ui.access import Settings
from dinoviz.ui.jobs import Job
from dinoviz.ui.pictures import Picture
from dinoviz.ui.segment.targets import Targets
from dinoviz.ui.workbench import Workbench
from tests.ui.conftest import PATIENCE

ROOMY = 1 << 30


@pytest.fixture
def bench(monkeypatch) -> Workbench:
    monkeypatch.setenv("DINOVIZ_DEVICE", "cpu")
    return Workbench(Settings(cache_bytes=ROOMY))


@pytest.fixture
def public(monkeypatch) -> Workbench:
    monkeypatch.setenv("DINOVIZ_DEVICE", "cpu")
    return Workbench(Settings(public=True, cache_bytes=ROOMY))


def finish(job: Job):
    """Wait for a job; returns its result."""
    for _ in job.watch(every=0.01):
        pass
    return job.result()


# Jobs of a page


def test_equal_requests_of_a_page_are_one_job(bench, work, other_work):
    job = bench.start("page", ("encode", "cat"), work)
    assert bench.start("page", ("encode", "cat"), other_work) is job
    assert not job.stopped
    assert not other_work.begun.is_set()


def test_another_request_stops_the_job_before(bench, work, other_work):
    first = bench.start("page", ("encode", "cat"), work)
    second = bench.start("page", ("encode", "cup"), other_work)
    assert (first.superseded, first.stopped) == (True, True)
    assert (second.superseded, second.stopped) == (False, False)
    other_work.end()
    assert finish(second) == "the other's"


def test_a_stopped_job_is_not_returned_again(bench, work, other_work):
    first = bench.start("page", "cat", work)
    bench.stop("page")
    assert bench.start("page", "cat", other_work) is not first


def test_another_page_is_not_disturbed(bench, work, other_work):
    mine = bench.start("my page", "cat", work)
    yours = bench.start("your page", "cup", other_work)
    bench.stop("your page")
    assert (mine.stopped, yours.stopped) == (False, True)


def test_a_superseded_job_is_stopped_and_forgotten(bench, work):
    job = bench.start("page", "cat", work)
    assert bench.is_busy("page")
    bench.stop("page", superseded=True)
    assert (job.superseded, job.stopped) == (True, True)
    bench.finish("page", job)
    assert not bench.is_busy("page")


def test_a_message_for_a_picture_that_is_neither_encoded_nor_being_encoded(bench, work, model, cat, monkeypatch):
    messages = []
    monkeypatch.setattr(shared.gr, "Info", messages.append)
    me = SimpleNamespace(session_hash="me")
    assert shared.encoded(bench, cat, model, "224", me) is None
    assert len(messages) == 1
    bench.start(shared.bar_owner(me), "cat", work)
    assert shared.encoded(bench, cat, model, "224", me) is None
    assert len(messages) == 1, "it is drawn when it is encoded"
    assert shared.encoded(bench, cat, model, "224") is None
    assert len(messages) == 2, "a click is not repeated"
    bench.look(cat, model, "224")
    assert shared.encoded(bench, cat, model, "224") is not None
    assert len(messages) == 2


def test_a_finished_job_is_forgotten(bench, work, other_work):
    first = bench.start("page", "cat", work)
    bench.finish("page", first)
    second = bench.start("page", "cat", other_work)
    assert second is not first
    assert not first.superseded


def test_finishing_an_older_job_keeps_the_newer_one(bench, work, other_work):
    first = bench.start("page", "cat", work)
    second = bench.start("page", "cup", other_work)
    bench.finish("page", first)
    assert bench.start("page", "cup", other_work) is second


def test_a_closed_page_stops_its_job(bench, work, other_work):
    job = bench.start("page", "cat", work)
    sentences = shared.follow(bench, "page", job)
    next(sentences)
    sentences.close()
    assert job.stopped
    assert bench.start("page", "cat", other_work) is not job


# Encoding


def test_a_picture_under_two_names_is_encoded_once(bench, model, cat, chelsea, tmp_path, encodes):
    chelsea.save(tmp_path / "again.bmp")
    first = bench.look(cat, model, 224)
    second = bench.look(str(tmp_path / "again.bmp"), model, 224)
    assert len(encodes) == 1
    assert second.features is first.features
    assert (first.picture.name, second.picture.name) == ("cat.png", "again.bmp")
    assert first.key == second.key


def test_a_look_has_the_features_of_the_backbone(bench, model, cat, chelsea, tiny_backbone):
    look = bench.look(cat, model, 224)
    np.testing.assert_array_equal(look.features.patches, tiny_backbone.encode(chelsea, 224).patches)
    assert sorted(look.features.captured) == [0, 1, 2]
    about = look.about()
    assert about["picture"] == {"name": "cat.png", "size": (451, 300), "sha256_of_pixels": image_digest(chelsea)}
    assert about["weights"]["id"] == tiny_backbone.weights_id


def test_another_resolution_is_another_look(bench, model, cat, encodes):
    assert bench.look(cat, model, 224).key != bench.look(cat, model, 280).key
    assert encodes == [224, 280]


def test_a_picture_changed_on_disk_is_encoded_again(bench, model, cat, coffee):
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


def test_a_look_reports_its_part_of_the_job(bench, model, cup, monkeypatch):
    shares, report = [], Job.report
    monkeypatch.setattr(Job, "report", lambda job, what, share=0.0: shares.append(share) or report(job, what, share))
    finish(bench.start("page", "cup", lambda job: bench.look(cup, model, 224, job, (1, 2))))
    # Half is done by the first picture; three blocks share the other half.
    assert shares == pytest.approx([0.5, 0.5, 0.5 + 1 / 6, 0.5 + 2 / 6, 1])


def test_a_stopped_encode_leaves_nothing_behind(bench, model, cat, monkeypatch):
    report = Job.report

    def report_and_stop(job, what, share=0.0):
        if share > 0.5:
            job.stop()
        report(job, what, share)

    monkeypatch.setattr(Job, "report", report_and_stop)
    job = bench.start("page", "cat", lambda job: bench.look(cat, model, 224, job))
    with pytest.raises(Stopped):
        job._result.result(PATIENCE)
    monkeypatch.undo()
    assert bench.features_cache.nbytes == 0
    assert bench.look(cat, model, 224).features.grid.shape == (16, 24)


def test_without_a_picture_nothing_is_encoded(bench, model):
    with pytest.raises(DinovizError):
        bench.look(None, model, 224)


def picture_of(size: tuple[int, int]) -> Picture:
    image = Image.new("RGB", size)
    return Picture(size, image, image_digest(image), "strip.png", lambda: image)


@pytest.mark.parametrize("size", [(3000, 1000), (1000, 3000), (2000, 200)])
def test_the_resolution_of_a_long_picture_is_lowered_to_what_the_grid_allows(tiny_backbone, size):
    lowered = Workbench.resolution(picture_of(size), tiny_backbone, 1792)
    assert lowered < 1792
    PatchGrid.fit(size, lowered, 14)
    with pytest.raises(DinovizError, match=str(lowered)):
        PatchGrid.fit(size, lowered + 14, 14)


def test_a_resolution_that_fits_is_left_alone(tiny_backbone):
    assert Workbench.resolution(picture_of((3000, 1000)), tiny_backbone, 518) == 518


def test_a_look_encodes_at_the_lowered_resolution(bench, model, tiny_backbone, coffee, tmp_path, monkeypatch):
    small = tiny_backbone.encode(coffee, 224, "all")  # in place of 16,000 patches, which would take seconds
    resolutions = []
    monkeypatch.setattr(
        Backbone, "encode", lambda self, image, resolution, *_, **__: resolutions.append(resolution) or small
    )
    Image.new("RGB", (3000, 1000)).save(tmp_path / "panorama.png")
    look = bench.look(str(tmp_path / "panorama.png"), model, 1792)
    assert resolutions == [look.resolution] == [1022]  # 73 x 219 patches; 74 x 222 are more than 128 x 128


def test_a_picture_too_long_and_narrow_is_refused(bench, model, tmp_path, encodes):
    Image.new("RGB", (60_000, 8)).save(tmp_path / "thread.png")
    with pytest.raises(DinovizError, match=r"thread\.png"):
        bench.look(str(tmp_path / "thread.png"), model, 224)
    assert encodes == []


def test_bad_pictures_are_skipped_only_on_request(bench, model, cat, cup, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    paths = [cat, str(tmp_path / "bad.png"), cup]

    def encode(**kwargs) -> list[str]:
        job = bench.start_encode(f"page {kwargs}", paths, model, 224, **kwargs)
        return [look.picture.name for look in finish(job)]

    assert encode(skip_bad=True) == ["cat.png", "cup.png"]
    with pytest.raises(DinovizError, match=r"bad\.png"):
        encode()


# Memory while pictures are decoded and encoded


def place(job: Job, number: int) -> bool:
    """Whether the job gets this place in the queue; without a watch, whose end would stop it."""
    until = time.monotonic() + PATIENCE
    while f"place {number}" not in job.progress() and time.monotonic() < until:
        time.sleep(0.01)
    return f"place {number}" in job.progress()


def test_waiting_jobs_report_their_place(bench, model, cat, cup, encodes):
    with bench.turn(1):
        first = bench.start_encode(("a page", "bar"), [cat], model, 224)
        assert place(first, 1)
        second = bench.start_encode(("another", "bar"), [cup], model, 280)
        assert place(second, 2)
        assert encodes == []
    for job in (first, second):
        finish(job)
    assert encodes == [224, 280]


@pytest.mark.parametrize("leave", ["stop", "superseded"])
def test_a_job_that_is_stopped_while_waiting_leaves_the_queue(bench, model, cat, cup, encodes, work, leave):
    with bench.turn(1):
        first = bench.start_encode("a page", [cat], model, 224)
        assert place(first, 1)
        second = bench.start_encode("another", [cup], model, 280)
        assert place(second, 2)
        if leave == "stop":
            bench.stop("a page")
        else:
            bench.start("a page", "something else", work)
        assert place(second, 1)
    finish(second)
    assert encodes == [280]


def test_equal_encodes_take_one_place(bench, model, cat, encodes):
    with bench.turn(1):
        first = bench.start_encode("a page", [cat], model, 224)
        assert place(first, 1)
        same = bench.start_encode("another", [cat], model, 224)
        third = bench.start_encode("a third", [cat], model, 280)
        assert place(third, 2)
    for job in (first, same, third):
        finish(job)
    assert sorted(encodes) == [224, 280]


def test_a_client_without_a_page_waits_its_turn(bench, model, cat):
    look: Future = Future()
    with bench.turn(1):
        threading.Thread(target=lambda: look.set_result(bench.look(cat, model, 224)), daemon=True).start()
        with pytest.raises(TimeoutError):
            look.result(0.3)
    assert look.result(PATIENCE).features.grid.shape == (16, 24)


def encoded_in_a_job(bench: Workbench, path: str, model: str) -> None:
    finish(bench.start_encode("page", [path], model, 224))


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


def test_a_pass_beyond_the_memory_is_refused(monkeypatch, model, cat, encodes):
    monkeypatch.setenv("DINOVIZ_DEVICE", "cpu")
    bench = Workbench(Settings(cache_bytes=ROOMY, job_bytes=40 * 2**20))
    bench.look(cat, model, 224)
    with pytest.raises(DinovizError, match="GB"):
        bench.look(cat, model, 784)
    assert encodes == [224]


def test_a_joint_basis_beyond_the_cache_is_refused_before_encoding(monkeypatch, bench, model, cat, cup, encodes):
    one = bench.look(cat, model, 224).features.nbytes
    small = Workbench(Settings(cache_bytes=int(1.5 * one)))
    with pytest.raises(DinovizError, match="224"):
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


def test_the_full_pixels_of_a_large_picture_are_decoded_again(monkeypatch, tmp_path, chelsea):
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


def test_a_file_changed_since_is_not_used_for_the_picture(monkeypatch, cat, coffee):
    bench = Workbench(Settings(cache_bytes=1))
    picture = bench.picture(cat)
    coffee.save(cat)
    with pytest.raises(ImageError, match=r"cat\.png"):
        picture.image  # noqa: B018


def test_a_pipe_in_place_of_a_picture_does_not_block(bench, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    answer: Future = Future()

    def open_pipe() -> None:
        try:
            answer.set_result(bench.picture(str(tmp_path / "pipe.png")))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=open_pipe, daemon=True).start()
    with pytest.raises(ImageError, match=r"pipe\.png"):
        answer.result(PATIENCE)


# Models


@pytest.mark.parametrize("name", ["dinov2-giant", "someone/their-model", "dinov9"])
def test_a_public_page_refuses_models_that_it_does_not_list(public, name, monkeypatch):
    monkeypatch.setattr(models, "load", lambda name: pytest.fail(f"{name} was loaded"))
    with pytest.raises(models.ModelError, match=name):
        public.backbone(name)


def test_a_public_page_refuses_folders(public, model):
    with pytest.raises(models.ModelError):
        public.backbone(model)


def test_a_public_page_does_not_list_large_models(public):
    left_out = set(models.KNOWN) - set(public.model_names())
    assert left_out == {"dinov2-giant", "dinov2-with-registers-giant", "dinov3-vith16plus"}


def test_a_private_page_has_all_models_and_folders(bench, model, tiny_backbone):
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
    default = access.psutil.virtual_memory().total // 8
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
