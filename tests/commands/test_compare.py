"""`python -m dinoviz compare`: files, options and refusals."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dinoviz
from dinoviz import compare, pca, render, segment
from dinoviz.compare import density, joint_colours
from tests.commands.running import names, refused, run


@pytest.fixture
def cat(tmp_path, chelsea) -> Path:
    (tmp_path / "photos").mkdir()
    chelsea.save(tmp_path / "photos" / "cat.png")
    return tmp_path / "photos" / "cat.png"


@pytest.fixture(scope="module")
def two(tiny_folders) -> list[str]:
    """Two families: 3 layers, 4 heads and 32 channels, and 2 layers, 2 heads and 32 channels."""
    folders = (str(tiny_folders[family]) for family in ("dinov2_with_registers", "vit"))
    return ["--models", *folders, "--resolution", "112", "64", "--device", "cpu"]


@pytest.fixture(scope="module")
def encoded(tiny_folders, chelsea):
    """The features of both models, all layers."""
    backbones = [dinoviz.load(tiny_folders[family], device="cpu") for family in ("dinov2_with_registers", "vit")]
    return [b.encode(chelsea, resolution, "all") for b, resolution in zip(backbones, (112, 64), strict=True)]


def drawn(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_both_are_drawn_and_written_as_the_library_gives_them(two, encoded, cat, out, chelsea):
    assert run("compare", cat, "--out", out, *two) == 0
    kinds = ("attention-a.png", "attention-b.png", "compare.json", "compare.npz", "pca-a.png", "pca-b.png")
    assert names(out) == [f"cat-{kind}" for kind in kinds]
    *colours, agreement = joint_colours(*encoded)
    densities = [density(f) for f in encoded]
    scale = render.scale_of(np.concatenate([d.ravel() for d in densities]))
    with np.load(out / "cat-compare.npz") as arrays:
        for side, f, colour, values in zip("ab", encoded, colours, densities, strict=True):
            np.testing.assert_allclose(arrays[f"colours_{side}"], colour, atol=1e-6)
            np.testing.assert_allclose(arrays[f"attention_{side}"], values, rtol=1e-5)
            assert str(arrays[f"weights_id_{side}"]) == f.weights_id
            expected = render.map_picture(chelsea, f.grid, values, scale=scale, opacity=0.7)
            np.testing.assert_array_equal(drawn(out / f"cat-attention-{side}.png"), np.asarray(expected))
            expected = render.map_picture(chelsea, f.grid, colour, opacity=1)
            np.testing.assert_array_equal(drawn(out / f"cat-pca-{side}.png"), np.asarray(expected))
    about = json.loads((out / "cat-compare.json").read_text())
    assert about["cka_debiased"] == pytest.approx(compare.patch_cka(*encoded)[0])
    assert about["colours_shared"] == pytest.approx(agreement.shared)
    assert (about["a"]["layer"], about["b"]["layer"]) == (3, 2)


def test_the_same_points_are_clicked_in_both(two, encoded, cat, out, chelsea):
    run("compare", cat, "--out", out, *two, "--point", "200,150", "--not-point", "10,10")
    found = [segment.from_points(f, [(200, 150), (10, 10)], [1, 0], chelsea) for f in encoded]
    for side, each in zip("ab", found, strict=True):
        expected = render.overlay(chelsea, each.mask)
        np.testing.assert_array_equal(drawn(out / f"cat-segment-{side}.png"), np.asarray(expected))
    about = json.loads((out / "cat-compare.json").read_text())
    assert about["segment_iou"] == compare.iou(found[0].mask, found[1].mask)


def test_layers_heads_scales_and_colours_can_be_chosen(two, encoded, cat, out, chelsea):
    chosen = ["--layer", "2/3", "1", "--map", "head 2", "--own-scale", "--colours", "own", "--background", "--raw"]
    run("compare", cat, "--out", out, *two, *chosen, "--opacity", "0.5")
    for side, f, layer in zip("ab", encoded, (1, 0), strict=True):
        style = {"opacity": 0.5, "raw": True}
        expected = render.map_picture(chelsea, f.grid, density(f, "head 2", layer), **style)
        np.testing.assert_array_equal(drawn(out / f"cat-attention-{side}.png"), np.asarray(expected))
        colours = pca.patch_pca([f], layer=layer, foreground=False)[0]
        expected = render.map_picture(chelsea, f.grid, colours, **style)
        np.testing.assert_array_equal(drawn(out / f"cat-pca-{side}.png"), np.asarray(expected))
    about = json.loads((out / "cat-compare.json").read_text())
    assert about["attention_scale"] == "own"
    assert "colours_shared" not in about


def test_a_model_beside_itself_agrees_with_itself(tiny_folders, cat, out):
    folder = str(tiny_folders["vit"])
    assert run("compare", cat.parent, "--out", out, "--models", folder, folder, "--resolution", "64") == 0
    about = json.loads((out / "cat-compare.json").read_text())
    assert about["cka_debiased"] == pytest.approx(1)
    assert about["colours_shared"] == pytest.approx(1)
    np.testing.assert_array_equal(drawn(out / "cat-pca-a.png"), drawn(out / "cat-pca-b.png"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--models", "embedded", "dinov9"], "'dinov9'"),
        (["--resolution", "64", "20"], "32 to 1792, not 20"),
        (["--resolution", "64", "64", "64"], "--resolution .* not 3"),
        (["--layer", "3"], "no layer 3: .* 1 to 2"),
        (["--layer", "first"], "'first'"),
        (["--map", "head 3"], "vit .* 'head 3'.* head 1, head 2"),
        (["--colours", "mixed"], "'mixed'.*aligned, joint or own"),
        (["--not-point", "1,1"], "--not-point .* --point"),
        (["--point", "here"], "'here'"),
        (["--opacity", "2"], "opacity .* 2.0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_option_is_refused_in_one_line(capsys, two, cat, out, options, named):
    assert re.search(named, refused(capsys, "compare", cat, "--out", out, *two, *options))
    assert not names(out) if out.exists() else True


def test_a_point_outside_names_the_picture(capsys, two, cat, out):
    line = refused(capsys, "compare", cat, "--out", out, *two, "--point", "452,10")
    assert f"{cat}: " in line
    assert "452" in line
    assert names(out) == []
