"""A teacher tells the depth of pictures that have none, and a probe learns it from there."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dinoviz
from dinoviz import depth
from dinoviz.depth import dpt as published_depth
from dinoviz.depth import heads as depth_heads
from dinoviz.errors import DinovizError, Stopped
from tests import tiny_dpt
from tests.training.tiny_runs import refused
from training import probe
from training.config.tasks import ProbeConfig
from training.depth import pseudo_labels as distil
from training.depth.rgbd import find_pairs
from training.runs.run import Run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Sixteen pictures of soft blotches, in two folders with one name in both; one is larger than is kept."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(16):
        small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        size = (756, 567) if i == 3 else (224, 168)
        path = root / ("one" if i < 8 else "two") / (f"{i}.png" if i != 9 else "1.png")
        path.parent.mkdir(exist_ok=True)
        small.resize(size, Image.Resampling.BICUBIC).save(path)
    return root


@pytest.fixture(scope="module")
def dpt_folder(tmp_path_factory) -> Path:
    return tiny_dpt.save(tmp_path_factory.mktemp("dpt") / "tiny-nyu")


@pytest.fixture
def teacher() -> distil.Teacher:
    """Who takes what is bright for far: quicker than a network."""
    return distil.Teacher(
        "bright", "far", (1, 9), lambda picture: 1 + np.asarray(picture.convert("L")) / np.float32(32)
    )


def images(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


def save_probe(path: Path, backbone_folder: Path, **about) -> depth.Probe:
    """A probe on a tiny model, with random weights."""
    backbone = dinoviz.load(backbone_folder, device="cpu")
    about = {
        "backbone": backbone.name, "weights_id": backbone.weights_id, "head": "linear", "layers": [0, 1],
        "channels": 2 * backbone.dim, "cls": True, "bins": 32, "depth": [0.5, 8.0], "upsample": 2, "resolution": 112,
        "data": {"folder": "nyu"}, **about,
    }  # fmt: skip
    torch.manual_seed(0)
    head = depth_heads.make(about)
    depth.save_probe(path, head, about)
    return depth.open_probe(path)


def test_pictures_become_an_ordinary_folder_with_depth(pictures, teacher, tmp_path):
    heard = []
    pairs = distil.pairs_from_teacher(images(pictures), teacher, tmp_path, lambda *said: heard.append(said))
    assert heard[0] == (1, 16, "asking the teacher")
    assert heard[-1] == (16, 16, "asking the teacher")
    assert len({pair.image for pair in pairs}) == len({pair.depth for pair in pairs}) == 16
    assert set(pairs) == set(find_pairs(tmp_path))
    for source, pair in zip(images(pictures), pairs, strict=True):
        picture, metres = pair.open()
        assert pair.image.stem.endswith(source.stem)  # with its number, which tells what belongs together
        if source.stem == "3":
            assert picture.size == (691, 518)
        else:
            assert np.array_equal(picture, Image.open(source))
        np.testing.assert_allclose(metres, teacher.predict(picture), rtol=6e-4)
    assert json.loads((tmp_path / "meta.json").read_text()) == {"teacher": "bright, far"}


def test_a_published_head_teaches_at_the_size_that_it_was_trained_at(pictures, dpt_folder):
    teacher = distil.open_teacher(str(dpt_folder), "cpu")
    assert str(teacher) == "tiny-nyu, a DPT head on DINOv2, trained on NYU Depth v2 (indoor, to 10 m)"
    assert teacher.range == (0.001, 10)
    picture = Image.open(images(pictures)[0])
    expected = published_depth.load(dpt_folder, "cpu").predict(picture, 480)
    np.testing.assert_array_equal(teacher.predict(picture), expected)


def test_what_is_there_is_not_asked_for_again(pictures, teacher, tmp_path):
    def stop(done, of, what):
        if done == 5:
            raise Stopped

    with pytest.raises(Stopped):
        distil.pairs_from_teacher(images(pictures), teacher, tmp_path, stop)
    assert len(find_pairs(tmp_path)) == 5
    asked = []
    counting = replace(teacher, predict=lambda picture: asked.append(picture) or teacher.predict(picture))
    pairs = distil.pairs_from_teacher(images(pictures), counting, tmp_path)
    assert (len(pairs), len(asked)) == (16, 11)
    other = replace(teacher, name="another")
    assert refused(DinovizError, distil.pairs_from_teacher, images(pictures), other, tmp_path) == (
        f"The depth in {tmp_path} is from another teacher, {teacher}."
    )


def test_one_picture_may_be_unreadable_and_no_more(pictures, teacher, tmp_path):
    some = shutil.copytree(pictures, tmp_path / "some")
    (some / "one" / "2.png").write_text("no picture")
    pairs = distil.pairs_from_teacher(images(some), teacher, tmp_path / "a")
    assert [pair.image.stem for pair in pairs] == [p.stem for p in images(some / "one") if p.stem != "2"] + [
        "2-1" if p.stem == "1" else p.stem for p in images(some / "two")
    ]
    (some / "two" / "1.png").write_text("no picture")
    text = refused(DinovizError, distil.pairs_from_teacher, images(some), teacher, tmp_path / "b")
    assert text.startswith("Of the first 9 of 16 images 2 cannot be read, which is too many; 2.png: this is not")
    text = refused(DinovizError, distil.pairs_from_teacher, [some / "two" / "1.png"], teacher, tmp_path / "c")
    assert text.startswith("Of the first 1 of 1 images 1 cannot be read")


def test_a_probe_teaches_by_its_file(pictures, tiny_folders, tmp_path, monkeypatch):
    monkeypatch.setenv("DINOVIZ_RUNS", str(tmp_path / "runs"))
    # The header names the backbone as its run in `runs` is named.
    folder = tmp_path / "runs" / "mine"
    shutil.copytree(tiny_folders["vit"], folder / "export")
    saved = save_probe(tmp_path / "p.safetensors", folder)
    assert saved.about["backbone"] == "mine"
    teacher = distil.open_teacher(str(tmp_path / "p.safetensors"), "cpu")
    assert str(teacher) == "p.safetensors, a depth probe on mine, trained on nyu"
    assert teacher.range == (0.5, 8)
    picture = Image.open(images(pictures)[0])
    features = dinoviz.load(folder, device="cpu").encode(picture, 112, (0, 1))
    np.testing.assert_array_equal(teacher.predict(picture), depth.predict(features, saved))
    assert teacher.predict(picture).std() > 0.01


def test_a_probe_teaches_by_its_run(tiny_folders, tmp_path, monkeypatch):
    monkeypatch.setenv("DINOVIZ_RUNS", str(tmp_path / "runs"))
    run = Run.create("probe-1", "probe", {"model": str(tiny_folders["dinov2"])})
    text = refused(DinovizError, distil.open_teacher, "probe-1", "cpu")
    assert text == "The run probe-1 holds no finished depth probe."
    save_probe(run.export_folder / "probe.safetensors", tiny_folders["dinov2"], data={"folder": "me", "teacher": "you"})
    for name in ("probe-1", str(run.folder)):
        teacher = distil.open_teacher(name, "cpu")
        assert str(teacher) == "probe-1, a depth probe on dinov2, trained on me, itself taught by you"


def test_a_teacher_whose_backbone_cannot_be_had(tiny_folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "p.safetensors"
    save_probe(file, tiny_folders["dinov2"])
    text = refused(DinovizError, distil.open_teacher, str(file), "cpu")
    assert text.startswith(
        "The teacher p.safetensors reads the features of dinov2, which cannot be had: There is no model 'dinov2'. "
    )
    shutil.copytree(tiny_folders["vit"], tmp_path / "dinov2")
    assert refused(DinovizError, distil.open_teacher, str(file), "cpu") == (
        "The teacher p.safetensors reads the features of dinov2, which cannot be had: dinov2 has other weights."
    )


def test_what_is_no_teacher_is_said_in_a_sentence(tiny_folders, dpt_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def says(name: str) -> str:
        return refused(DinovizError, distil.open_teacher, name, "cpu")

    assert says("dpt").startswith("There is no teacher 'dpt'. A teacher is a published head, facebook/dpt-dinov2-small")
    for name in ("", "a/b/c", "x" * 500):
        assert says(name).startswith("There is no teacher ")
    assert "the Hugging Face Hub does not answer" in says("facebook/dpt-dinov2-small-nyu")
    assert "the Hugging Face Hub does not answer" in says("some/body")
    assert says(str(tiny_folders["vit"])) == (
        "vit is a 'vit' model; a published depth head is a DPT on a DINOv2 backbone."
    )
    (tmp_path / "photo.jpg").write_text("no probe")
    assert says("photo.jpg").startswith("photo.jpg ")
    pickled = shutil.copytree(dpt_folder, tmp_path / "pickled-nyu")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    assert "safetensors" in says("pickled-nyu")


def test_a_disk_that_refuses(pictures, teacher, tmp_path):
    (tmp_path / "file").write_text("")
    text = refused(DinovizError, distil.pairs_from_teacher, images(pictures), teacher, tmp_path / "file")
    assert text == f"{tmp_path / 'file'} cannot be written: Not a directory." or "cannot be written" in text


@pytest.fixture
def config(pictures, tiny_folders, dpt_folder) -> ProbeConfig:
    """A student on a tiny model that is not its teacher's, of the first twelve pictures."""
    return ProbeConfig(
        data=str(pictures), teacher=str(dpt_folder), model=str(tiny_folders["dinov2"]), device="cpu", resolution=112,
        head="linear", epochs=16, lr=3e-3, bins=64, batch=4, upsample=2, limit=12, gradient=0.0,
    )  # fmt: skip


def test_the_student_s_depth_follows_its_teacher_s(config, pictures, tmp_path):
    run = Run.create("student", "probe", config.to_dict(), root=tmp_path)
    heard = []
    about = probe.probe(config, run, lambda done, of, what: heard.append(what))
    assert heard[0] == "asking the teacher"
    assert run.status()["state"] == "finished"
    assert about["data"]["folder"] == pictures.name
    assert about["data"]["teacher"] == "tiny-nyu, a DPT head on DINOv2, trained on NYU Depth v2 (indoor, to 10 m)"
    assert about["data"]["left_out"] == 0
    assert str(config.teacher) not in json.dumps(about)  # nor any other folder of this machine
    student = distil.open_teacher(str(run.folder), "cpu")
    assert student.range == (0.001, 10)
    teacher, some = distil.open_teacher(config.teacher, "cpu"), images(pictures)[12:]  # never seen
    told, said = ([each.predict(Image.open(path)).ravel() for path in some] for each in (teacher, student))
    assert np.corrcoef(np.concatenate(told), np.concatenate(said))[0, 1] > 0.4


def test_a_run_that_ended_while_it_asked_goes_on(config, tmp_path):
    run = Run.create("student", "probe", replace(config, limit=8).to_dict(), root=tmp_path)

    def stop(done, of, what):
        if done == 4:
            run.request_stop()

    assert probe.probe(ProbeConfig.from_dict(run.config), run, stop) is None
    assert run.status()["state"] == "stopped"
    there = {file: file.stat().st_mtime_ns for file in (run.folder / "teacher" / "depth").iterdir()}
    assert 4 <= len(there) < 8
    assert probe.resume(run) is not None
    assert all(file.stat().st_mtime_ns == time for file, time in there.items())
    assert len(find_pairs(run.folder / "teacher")) == 8


def test_settings_are_the_teacher_s_where_it_knows_better(config, tmp_path, monkeypatch):
    config = replace(config, limit=2, depth=(0.1, 5.0))
    changed, said = distil.taught(config, tmp_path / "t")
    assert (changed.data, changed.crop, changed.depth) == (str(tmp_path / "t"), "none", (0.001, 10))
    assert replace(changed, data=config.data, crop=config.crop, depth=config.depth) == config
    monkeypatch.setattr(distil, "open_teacher", None)  # it is not even loaded where all is there
    assert distil.taught(config, tmp_path / "t") == (changed, said)
    with pytest.raises(TypeError):
        distil.taught(replace(config, limit=3), tmp_path / "t")


def test_data_that_needs_no_teacher_or_is_none(config, pictures, tmp_path):
    (tmp_path / "depth").mkdir()
    assert refused(DinovizError, distil.taught, replace(config, data=str(tmp_path)), tmp_path / "t") == (
        f"{tmp_path} has a folder depth of its own: leave the teacher out, or the folder."
    )
    empty = tmp_path / "depth"
    text = refused(DinovizError, distil.taught, replace(config, data=str(empty)), tmp_path / "t")
    assert text == f"There are no images in {empty}."
    run = Run.create("student", "probe", config.to_dict(), root=tmp_path)
    text = refused(DinovizError, probe.probe, replace(config, teacher="nobody"), run)
    assert text.startswith("There is no teacher 'nobody'.")
    assert run.status()["state"] == "failed"
