"""`python -m dinoviz depth`, with a random head on tiny random weights."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import ExifTags, Image

import dinoviz
from dinoviz import depth, render
from dinoviz.depth import dpt, geometry
from dinoviz.depth import heads as depth_heads
from dinoviz.depth.camera import Camera
from dinoviz.images import open_image
from tests import tiny_dpt
from tests.commands.running import names, refused, run

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
    """A function that writes a probe with a random head and the photo as training picture, and returns its path."""

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
    """A cat, with the EXIF data of a camera."""
    exif = Image.Exif()
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.FocalLengthIn35mmFilm: 35}
    chelsea.resize(SIZE).save(tmp_path / "cat.jpg", exif=exif)
    return tmp_path / "cat.jpg"


@pytest.fixture
def model(tiny_folders) -> list:
    return ["--model", tiny_folders["dinov2"], *QUICK]


@pytest.fixture
def expected(backbone, probe, photo) -> depth.Depth:
    return depth.look(backbone.encode(open_image(photo), 112, (0, 2)), depth.open_probe(probe))


def test_the_files_agree_with_the_library(backbone, probe, photo, out, model, expected):
    assert run("depth", photo, "--probe", probe, "--out", out, *model) == 0
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
        assert "EXIF" in str(arrays["camera_source"])
    stored = np.asarray(Image.open(out / "cat-depth-mm.png"))
    np.testing.assert_allclose(stored / 1000, metres, atol=0.0005001)
    colours = render.colourise(metres, (float(metres.min()), float(metres.max())), "viridis")
    np.testing.assert_array_equal(np.asarray(Image.open(out / "cat-depth.png")), colours)


def test_the_probe_and_the_scale_of_the_colours_are_printed(probe, photo, out, model, capsys, expected):
    run("depth", photo, "--probe", probe, "--out", out, *model, "--near", "1", "--far", "6")
    printed = capsys.readouterr().out
    for words in (
        "probe.safetensors",
        "linear",
        "layers 1, 3",
        "40 pictures of rooms",
        "112 px",
        "0.65 m",
        "0.5 to 8 m",
    ):
        assert words in printed
    assert "cat-depth.png: 1.00 to 6.00 m in viridis" in printed
    with np.load(out / "cat-depth.npz") as arrays:
        assert arrays["scale"].tolist() == [1, 6]
    metres = expected.grid.resize(expected.metres, "image")
    np.testing.assert_array_equal(
        np.asarray(Image.open(out / "cat-depth.png")), render.colourise(metres, (1, 6), "viridis")
    )


def test_only_the_layers_of_the_probe_are_kept(probe, photo, out, model, monkeypatch, backbone):
    layers = []
    encode = type(backbone).encode
    monkeypatch.setattr(type(backbone), "encode", lambda self, *rest: layers.append(rest[2]) or encode(self, *rest))
    assert run("depth", photo, "--probe", probe, "--out", out, *model) == 0
    assert layers == [(0, 2)]


def test_raw_and_sharp(probe, photo, out, model, expected):
    picture = open_image(photo)
    wanted = {
        "--raw": expected.grid.resize(expected.patches, "image", "nearest"),
        "--sharp": geometry.sharpened(expected.metres, picture, expected.grid),
    }
    for option, metres in wanted.items():
        assert run("depth", photo, "--probe", probe, "--out", out, *model, option) == 0
        with np.load(out / "cat-depth.npz") as arrays:
            np.testing.assert_array_equal(arrays["metres"], metres)


def test_the_cloud_opens_elsewhere_and_ends_at_far(probe, photo, out, model, expected):
    metres = expected.grid.resize(expected.metres, "image")
    far = float(np.median(metres))
    assert run("depth", photo, "--probe", probe, "--out", out, *model, "--ply", "--far", far, "--focal", "200") == 0
    points = geometry.points(metres, Camera.of(SIZE, 200))
    kept = (metres <= far) & ~geometry.jumps(points)
    cloud = trimesh.load(io.BytesIO((out / "cat-points.ply").read_bytes()), file_type="ply")
    np.testing.assert_allclose(cloud.vertices, points[kept])
    np.testing.assert_array_equal(np.asarray(cloud.colors)[:, :3], np.asarray(open_image(photo))[kept])


def test_a_picture_unlike_the_training_data_gives_a_warning(write, photo, out, model, capsys, backbone):
    far = -depth.descriptor(backbone.encode(open_image(photo), 112, (0, 2)), (0, 2))[None]
    assert run("depth", photo, "--probe", write(familiar=far), "--out", out, *model) == 0
    assert re.search(r"cat-depth\.png: .*4\.0 times the limit", capsys.readouterr().err)


def test_a_run_is_a_probe_too(probe, tmp_path, photo, out, model):
    (tmp_path / "run" / "export").mkdir(parents=True)
    probe.rename(tmp_path / "run" / "export" / "probe.safetensors")
    (tmp_path / "run" / "config.json").write_text("{}")  # as a published head's folder has one
    assert run("depth", photo, "--probe", tmp_path / "run", "--out", out, *model) == 0


def test_a_published_head_needs_no_backbone(tmp_path, photo, out, capsys):
    folder = tiny_dpt.save(tmp_path / "tiny-nyu")
    assert run("depth", photo, "--probe", folder, "--out", out, *QUICK) == 0
    assert "depth by tiny-nyu, the folder" in capsys.readouterr().out
    metres = dpt.load(folder, device="cpu").predict(photo, 112)
    with np.load(out / "cat-depth.npz") as arrays:
        np.testing.assert_allclose(arrays["metres"], metres, atol=1e-5)
        assert "spread" not in arrays


def test_a_published_head_uses_the_resolution_of_its_training(tmp_path, photo, out):
    folder = tiny_dpt.save(tmp_path / "tiny-kitti")
    assert run("depth", photo, "--probe", folder, "--out", out, "--device", "cpu") == 0
    with np.load(out / "cat-depth.npz") as arrays:
        assert arrays["model_size"][1] == 378  # of 375, in whole patches
        np.testing.assert_allclose(arrays["metres"], dpt.load(folder, device="cpu").predict(photo, 375), atol=1e-5)


def test_the_shipped_probe_is_for_the_embedded_weights(embedded_backbone, photo, out, capsys):
    if not depth.SHIPPED.is_file():
        pytest.skip("the shipped probe is not there yet")
    assert run("depth", photo, "--out", out, *QUICK) == 0
    assert "using embedded" in capsys.readouterr().out
    with np.load(out / "cat-depth.npz") as arrays:
        assert str(arrays["weights_id"]) == embedded_backbone.weights_id
        assert 0.3 < np.median(arrays["metres"]) < 10


def test_without_a_probe_the_message_says_how_to_train_one(photo, out, model, capsys):
    if not depth.SHIPPED.is_file():
        pytest.skip("the shipped probe is not there yet")
    line = refused(capsys, "depth", photo, "--out", out, *model)
    assert re.search("dinov2: .*python -m training probe DATA --model dinov2.* --probe", line)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--probe", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--near", "5", "--far", "2"], "5 and 2 m"),
        (["--raw", "--sharp"], "--raw .*--sharp"),
        (["--colormap", "rainbow"], "'rainbow'"),
        (["--probe", next(iter(dpt.PUBLISHED))], "--model"),
        (["--focal", "1"], "not 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_option_is_refused_in_one_line(options, named, probe, photo, out, model, capsys):
    assert re.search(named, refused(capsys, "depth", photo, "--out", out, "--probe", probe, *model, *options))


def test_probes_that_cannot_be_used_are_refused(write, probe, photo, out, model, capsys, tmp_path):
    def line(file, *options):
        return refused(capsys, "depth", photo, "--out", out, "--probe", file, *options)

    assert re.search("probe.safetensors .* dinov2: .*--model", line(probe, *QUICK))
    other = write(weights_id="0" * 64, backbone="dinov2-small")
    assert "dinov2-small" in line(other, *model)
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(other.read_bytes()[:-200])
    assert "truncated.safetensors" in line(truncated, *model)


def test_a_broken_file_is_reported_and_the_others_are_processed(probe, photo, out, model, capsys):
    (photo.parent / "broken.jpg").write_bytes(photo.read_bytes()[:300])
    broken = photo.parent / "broken.jpg"
    assert run("depth", broken, photo, "--probe", probe, "--out", out, *model) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "dinoviz" in line]
    assert len(errors) == 1
    assert "broken.jpg: " in errors[0]
    assert names(out) == ["cat-depth-mm.png", "cat-depth.npz", "cat-depth.png"]
