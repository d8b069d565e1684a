"""`python -m dinoviz depth`, with a random head on tiny random weights."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import ExifTags, Image

import dinoviz
from dinoviz import depth, render
from dinoviz.depth import dpt as published_depth
from dinoviz.depth import geometry as surfaces
from dinoviz.depth import heads as depth_heads
from dinoviz.depth.camera import Camera
from dinoviz.images import open_image
from tests import tiny_dpt
from tests.commands.test_attention_pca import names, refused, run

SIZE = (150, 100)
QUICK = ["--resolution", "112", "--device", "cpu"]


@pytest.fixture(scope="module")
def backbone(tiny_folders):
    return dinoviz.load(tiny_folders["dinov2"], device="cpu", dtype=torch.float32)


@pytest.fixture
def about(backbone) -> dict:
    return {
        "version": 1, "backbone": backbone.name, "weights_id": backbone.weights_id, "head": "linear", "cls": True,
        "layers": [0, 2], "channels": 2 * backbone.dim, "resolution": 112, "depth": [0.5, 8.0], "bins": 16,
        "upsample": 4, "familiar_limit": 0.5, "data": {"folder": "rooms", "train": 40},
        "metrics": {"test": {"rmse": 0.654, "delta1": 0.7}},
    }  # fmt: skip


@pytest.fixture
def write(tmp_path, about, backbone, photo):
    """A function that writes a probe of a random head, familiar with the photo, and gives its file."""

    def write(familiar=None, **changes) -> Path:
        torch.manual_seed(0)
        head = depth_heads.make(about | changes).eval()
        known = depth.descriptor(backbone.encode(photo, 112, (0, 2)), (0, 2))[None] if familiar is None else familiar
        depth.save_probe(tmp_path / "probe.safetensors", head, about | changes, known)
        return tmp_path / "probe.safetensors"

    return write


@pytest.fixture
def probe(write) -> Path:
    return write()


@pytest.fixture
def photo(tmp_path, chelsea) -> Path:
    """A cat, with what its camera says."""
    exif = Image.Exif()
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.FocalLengthIn35mmFilm: 35}
    chelsea.resize(SIZE).save(tmp_path / "cat.jpg", exif=exif)
    return tmp_path / "cat.jpg"


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def through(tiny_folders) -> list:
    return ["--model", tiny_folders["dinov2"], *QUICK]


@pytest.fixture
def expected(backbone, probe, photo) -> depth.Depth:
    return depth.look(backbone.encode(open_image(photo), 112, (0, 2)), depth.open_probe(probe))


def test_the_files_agree_with_the_library(backbone, probe, photo, out, through, expected):
    assert run("depth", photo, "--probe", probe, "--out", out, *through) == 0
    assert names(out) == ["cat-depth-mm.png", "cat-depth.npz", "cat-depth.png"]
    opened = depth.open_probe(probe)
    metres = depth.predict(backbone.encode(open_image(photo), 112, (0, 2)), opened)
    with np.load(out / "cat-depth.npz") as arrays:
        np.testing.assert_array_equal(arrays["metres"], metres)
        np.testing.assert_array_equal(arrays["patches"], expected.patches)
        np.testing.assert_array_equal(arrays["spread"], expected.grid.resize(expected.spread, "image"))
        assert arrays["unfamiliarity"] == pytest.approx(0, abs=1e-3)
        assert str(arrays["weights_id"]) == backbone.weights_id
        assert arrays["layer"].tolist() == [1, 3]
        assert str(arrays["probe"]) == "probe.safetensors"
        focal = 35 / np.hypot(36, 24) * np.hypot(*SIZE)
        np.testing.assert_allclose(arrays["camera"], (focal, focal, 75, 50))
        assert str(arrays["camera_source"]) == "from the picture's EXIF data: 35 mm (35 mm equivalent)"
    stored = np.asarray(Image.open(out / "cat-depth-mm.png"))
    np.testing.assert_allclose(stored / 1000, metres, atol=0.0005001)
    colours = render.colourise(metres, (float(metres.min()), float(metres.max())), "viridis")
    np.testing.assert_array_equal(np.asarray(Image.open(out / "cat-depth.png")), colours)


def test_it_says_what_tells_the_depth_and_what_the_colours_mean(probe, photo, out, through, capsys, expected):
    run("depth", photo, "--probe", probe, "--out", out, *through, "--near", "1", "--far", "6")
    said = capsys.readouterr().out
    assert (
        "depth by probe.safetensors, a linear probe on layers 1, 3, trained on 40 pictures of rooms at 112 px, "
        "on those held out 0.65 m off (RMSE); it tells 0.5 to 8 m"
    ) in said
    assert "cat-depth.png: 1.00 to 6.00 m in viridis; focal length" in said
    with np.load(out / "cat-depth.npz") as arrays:
        assert arrays["scale"].tolist() == [1, 6]
    metres = expected.grid.resize(expected.metres, "image")
    np.testing.assert_array_equal(
        np.asarray(Image.open(out / "cat-depth.png")), render.colourise(metres, (1, 6), "viridis")
    )


def test_only_the_layers_of_the_probe_are_kept(probe, photo, out, through, monkeypatch, backbone):
    asked = []
    encode = type(backbone).encode
    monkeypatch.setattr(type(backbone), "encode", lambda self, *rest: asked.append(rest[2]) or encode(self, *rest))
    assert run("depth", photo, "--probe", probe, "--out", out, *through) == 0
    assert asked == [(0, 2)]


def test_raw_and_sharp(probe, photo, out, through, expected):
    picture = open_image(photo)
    wanted = {
        "--raw": expected.grid.resize(expected.patches, "image", "nearest"),
        "--sharp": surfaces.sharpened(expected.metres, picture, expected.grid),
    }
    for option, metres in wanted.items():
        assert run("depth", photo, "--probe", probe, "--out", out, *through, option) == 0
        with np.load(out / "cat-depth.npz") as arrays:
            np.testing.assert_array_equal(arrays["metres"], metres)


def test_the_cloud_opens_elsewhere_and_ends_at_far(probe, photo, out, through, expected):
    metres = expected.grid.resize(expected.metres, "image")
    far = float(np.median(metres))
    assert run("depth", photo, "--probe", probe, "--out", out, *through, "--ply", "--far", far, "--focal", "200") == 0
    points = surfaces.points(metres, Camera.of(SIZE, 200))
    kept = (metres <= far) & ~surfaces.jumps(points)
    cloud = trimesh.load(io.BytesIO((out / "cat-points.ply").read_bytes()), file_type="ply")
    np.testing.assert_allclose(cloud.vertices, points[kept])
    np.testing.assert_array_equal(np.asarray(cloud.colors)[:, :3], np.asarray(open_image(photo))[kept])


def test_a_picture_unlike_the_training_data_is_warned_of(write, photo, out, through, capsys, backbone):
    far = -depth.descriptor(backbone.encode(open_image(photo), 112, (0, 2)), (0, 2))[None]
    assert run("depth", photo, "--probe", write(familiar=far), "--out", out, *through) == 0
    warning = capsys.readouterr().err
    assert "cat-depth.png: the picture is unlike all that the probe was trained on (4.0 times the limit)" in warning


def test_a_run_is_a_probe_too(probe, tmp_path, photo, out, through):
    (tmp_path / "run" / "export").mkdir(parents=True)
    probe.rename(tmp_path / "run" / "export" / "probe.safetensors")
    (tmp_path / "run" / "config.json").write_text("{}")  # as a published head's folder has one
    assert run("depth", photo, "--probe", tmp_path / "run", "--out", out, *through) == 0


def test_a_published_head_looks_by_itself(tmp_path, photo, out, capsys):
    folder = tiny_dpt.save(tmp_path / "tiny-nyu")
    assert run("depth", photo, "--probe", folder, "--out", out, *QUICK) == 0
    assert "depth by tiny-nyu, the folder" in capsys.readouterr().out
    metres = published_depth.load(folder, device="cpu").predict(photo, 112)
    with np.load(out / "cat-depth.npz") as arrays:
        np.testing.assert_allclose(arrays["metres"], metres, atol=1e-5)
        assert "spread" not in arrays


def test_a_published_head_looks_at_the_size_that_it_was_trained_at(tmp_path, photo, out):
    folder = tiny_dpt.save(tmp_path / "tiny-kitti")
    assert run("depth", photo, "--probe", folder, "--out", out, "--device", "cpu") == 0
    with np.load(out / "cat-depth.npz") as arrays:
        assert arrays["model_size"][1] == 378  # of 375, in whole patches
        np.testing.assert_allclose(
            arrays["metres"], published_depth.load(folder, device="cpu").predict(photo, 375), atol=1e-5
        )


def test_the_shipped_probe_is_for_the_embedded_weights(embedded_backbone, photo, out, capsys):
    if not depth.SHIPPED.is_file():
        pytest.skip("the shipped probe is not there yet")
    assert run("depth", photo, "--out", out, *QUICK) == 0
    assert "looking through embedded" in capsys.readouterr().out
    with np.load(out / "cat-depth.npz") as arrays:
        assert str(arrays["weights_id"]) == embedded_backbone.weights_id
        assert 0.3 < np.median(arrays["metres"]) < 10


def test_weights_without_a_probe_are_told_what_to_do(photo, out, through, capsys):
    if not depth.SHIPPED.is_file():
        pytest.skip("the shipped probe is not there yet")
    said = refused(capsys, "depth", photo, "--out", out, *through)
    assert "There is no depth probe for dinov2 here: train one" in said
    assert "--model dinov2) and name it with --probe." in said


def test_what_cannot_be_is_refused_in_one_line(write, probe, photo, out, through, capsys, tmp_path):
    def said(*options, images=photo, model=through):
        return refused(capsys, "depth", images, "--out", out, *model, *options)

    assert "nowhere.safetensors: there is no such file" in said("--probe", tmp_path / "nowhere.safetensors")
    assert "probe.safetensors reads the features of dinov2: say with --model" in said("--probe", probe, model=QUICK)
    assert "neither below 0" in said("--probe", probe, "--near", "5", "--far", "2")
    assert "take one of them" in said("--probe", probe, "--raw", "--sharp")
    assert "no colour map 'rainbow'" in said("--probe", probe, "--colormap", "rainbow")
    assert "there is no such file or folder" in said("--probe", probe, images=tmp_path / "absent.jpg")
    assert "is a network of its own" in said("--probe", next(iter(published_depth.PUBLISHED)))
    assert "The focal length of this picture lies between" in said("--probe", probe, "--focal", "1")
    other = write(weights_id="0" * 64, backbone="dinov2-small")
    assert "was trained on the features of dinov2-small" in said("--probe", other)
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(other.read_bytes()[:-200])
    assert "truncated.safetensors holds no depth probe" in said("--probe", truncated)


def test_a_picture_that_cannot_be_read_leaves_the_others(probe, photo, out, through, capsys):
    (photo.parent / "broken.jpg").write_bytes(photo.read_bytes()[:300])
    broken = photo.parent / "broken.jpg"
    assert run("depth", broken, photo, "--probe", probe, "--out", out, *through) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "dinoviz" in line]
    assert len(errors) == 1
    assert "broken.jpg: " in errors[0]
    assert names(out) == ["cat-depth-mm.png", "cat-depth.npz", "cat-depth.png"]
