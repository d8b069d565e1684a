"""`python -m dinoviz attention`, `pca` and `models`, and what all commands share: files, folders, refusals."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinoviz import attention, models, pca, render
from dinoviz.grid import PatchGrid
from tests.commands.running import names, refused, run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def photos(tmp_path, chelsea, coffee) -> Path:
    """A folder with a cat, and a cup in a subfolder."""
    (tmp_path / "photos" / "kitchen").mkdir(parents=True)
    chelsea.save(tmp_path / "photos" / "cat.png")
    coffee.save(tmp_path / "photos" / "kitchen" / "cup.png")
    return tmp_path / "photos"


@pytest.fixture
def cat(photos) -> Path:
    return photos / "cat.png"


@pytest.fixture
def embedded_model(embedded_backbone) -> list[str]:
    return ["--model", "embedded", "--resolution", "224", "--device", "cpu"]


# attention


def test_attention_draws_at_the_pictures_size(tiny_model, cat, out, chelsea):
    assert run("attention", cat, "--out", out, *tiny_model) == 0
    assert names(out) == ["cat-attention.npz", "cat-attention.png", "cat-heads.png"]
    assert Image.open(out / "cat-attention.png").size == chelsea.size


def test_attention_writes_the_arrays_of_the_library(embedded_model, embedded_backbone, cat, out, chelsea):
    run("attention", cat, "--out", out, *embedded_model)
    features = embedded_backbone.encode(chelsea, 224)
    heads = attention.cls_attention(features)
    with np.load(out / "cat-attention.npz") as arrays:
        np.testing.assert_array_equal(arrays["heads"], heads)
        np.testing.assert_array_equal(arrays["map"], heads.mean(axis=0))
        np.testing.assert_array_equal(arrays["norms"], features.tokens(-1).norms)


def test_attention_draws_the_pictures_of_the_library(tiny_model, tiny_backbone, cat, out, chelsea):
    run("attention", cat, "--out", out, *tiny_model, "--opacity", "0.5", "--colormap", "viridis")
    features = tiny_backbone.encode(chelsea, 224)
    heads = attention.cls_attention(features)
    style = {"opacity": 0.5, "colormap": "viridis"}
    expected = render.map_picture(chelsea, features.grid, heads.mean(axis=0), **style)
    np.testing.assert_array_equal(np.asarray(Image.open(out / "cat-attention.png")), np.asarray(expected))
    sheet = render.heads_sheet(chelsea, features.grid, heads, **style)
    np.testing.assert_array_equal(np.asarray(Image.open(out / "cat-heads.png")), np.asarray(sheet))


def test_the_arrays_contain_their_origin(tiny_model, tiny_backbone, cat, out, chelsea):
    run("attention", cat, "--out", out, *tiny_model, "--layer", "2")
    with np.load(out / "cat-attention.npz") as arrays:
        assert str(arrays["weights_id"]) == tiny_backbone.weights_id
        assert int(arrays["layer"]) == 2
        assert tuple(arrays["image_size"]) == chelsea.size
        assert tuple(arrays["model_size"]) == PatchGrid.fit(chelsea.size, 224, 14).model_size


def test_layers_are_numbered_from_one(tiny_model, tiny_backbone, cat, out, chelsea):
    run("attention", cat, "--out", out, *tiny_model, "--layer", "1")
    features = tiny_backbone.encode(chelsea, 224, layers=(0,))
    with np.load(out / "cat-attention.npz") as arrays:
        np.testing.assert_array_equal(arrays["heads"], attention.cls_attention(features, 0))


def test_the_query_is_the_patch_at_a_pixel_and_is_marked(tiny_model, tiny_backbone, cat, out, chelsea):
    run("attention", cat, "--out", out, *tiny_model, "--query", "400,20", "--opacity", "0")
    features = tiny_backbone.encode(chelsea, 224)
    patch = tuple(features.grid.patch_at((400, 20)))
    with np.load(out / "cat-attention.npz") as arrays:
        np.testing.assert_array_equal(arrays["heads"], attention.patch_attention(features, patch))
    expected = render.mark_patch(chelsea, features.grid, patch)
    np.testing.assert_array_equal(np.asarray(Image.open(out / "cat-attention.png")), np.asarray(expected))


def test_the_second_head_is_the_second(tiny_model, tiny_backbone, cat, out, chelsea):
    run("attention", cat, "--out", out, *tiny_model, "--map", "head 2")
    with np.load(out / "cat-attention.npz") as arrays:
        np.testing.assert_array_equal(arrays["map"], attention.cls_attention(tiny_backbone.encode(chelsea, 224))[1])


def test_rollout_uses_all_layers(tiny_model, tiny_backbone, cat, out, chelsea):
    run("attention", cat, "--out", out, *tiny_model, "--map", attention.ROLLOUT)
    expected = attention.rollout(tiny_backbone.encode(chelsea, 224, "all"))
    with np.load(out / "cat-attention.npz") as arrays:
        np.testing.assert_array_equal(arrays["map"], expected)


def test_the_norm_map_shows_its_whole_range_and_is_not_cut(tiny_model, tiny_backbone, cat, out, chelsea):
    run("attention", cat, "--out", out, *tiny_model, "--map", attention.NORMS, "--mass", "0.3")
    features = tiny_backbone.encode(chelsea, 224)
    norms = features.tokens(-1).norms
    expected = render.map_picture(chelsea, features.grid, norms, opacity=0.7, scale=(norms.min(), norms.max()))
    np.testing.assert_array_equal(np.asarray(Image.open(out / "cat-attention.png")), np.asarray(expected))


def test_mass_dims_all_but_the_patches_that_hold_it(tiny_model, tiny_backbone, cat, out, chelsea):
    run("attention", cat, "--out", out, *tiny_model, "--mass", "0.6", "--opacity", "0.7")
    features = tiny_backbone.encode(chelsea, 224)
    heads = attention.cls_attention(features)
    mean = heads.mean(axis=0)
    drawn = render.map_picture(chelsea, features.grid, mean, opacity=0.7, mask=attention.mass_mask(mean, 0.6))
    np.testing.assert_array_equal(np.asarray(Image.open(out / "cat-attention.png")), np.asarray(drawn))
    sheet = render.heads_sheet(chelsea, features.grid, heads, attention.mass_mask(heads, 0.6), opacity=0.7)
    np.testing.assert_array_equal(np.asarray(Image.open(out / "cat-heads.png")), np.asarray(sheet))


def test_raw_draws_one_colour_per_patch(tiny_model, tiny_backbone, cat, out, chelsea):
    run("attention", cat, "--out", out, *tiny_model, "--raw", "--opacity", "1")
    features = tiny_backbone.encode(chelsea, 224)
    values = attention.cls_attention(features).mean(axis=0)
    patches = render.colourise(values, render.scale_of(values))
    drawn = np.asarray(Image.open(out / "cat-attention.png"))
    np.testing.assert_array_equal(drawn, features.grid.resize(patches, "image", "nearest"))


# pca


def test_pca_draws_and_writes_the_results_of_the_library(embedded_model, embedded_backbone, cat, out, chelsea):
    assert run("pca", cat, "--out", out, *embedded_model) == 0
    assert names(out) == ["cat-pca.npz", "cat-pca.png"]
    features = embedded_backbone.encode(chelsea, 224)
    fitted = pca.fit([features])
    with np.load(out / "cat-pca.npz") as arrays:
        np.testing.assert_array_equal(arrays["coordinates"], fitted.coordinates[0])
        np.testing.assert_array_equal(arrays["foreground"], fitted.foreground[0])
        np.testing.assert_array_equal(arrays["score"], fitted.score[0])
        np.testing.assert_array_equal(arrays["explained"], fitted.explained)
        assert float(arrays["threshold"]) == fitted.threshold
    expected = render.map_picture(chelsea, features.grid, fitted.colours()[0], opacity=1)
    np.testing.assert_array_equal(np.asarray(Image.open(out / "cat-pca.png")), np.asarray(expected))


def test_joint_pca_has_one_basis_for_all(embedded_model, embedded_backbone, photos, out, chelsea, coffee):
    assert run("pca", photos, "--joint", "--out", out, *embedded_model) == 0
    fitted = pca.fit([embedded_backbone.encode(picture, 224) for picture in (chelsea, coffee)])
    for i, name in enumerate(("cat", "kitchen/cup")):
        with np.load(out / f"{name}-pca.npz") as arrays:
            np.testing.assert_array_equal(arrays["coordinates"], fitted.coordinates[i])
            np.testing.assert_array_equal(arrays["explained"], fitted.explained)
        assert (out / f"{name}-pca.png").is_file()


def test_without_joint_each_picture_has_its_own_basis(tiny_model, tiny_backbone, photos, out, coffee):
    run("pca", photos, "--out", out, *tiny_model)
    fitted = pca.fit([tiny_backbone.encode(coffee, 224)])
    with np.load(out / "kitchen" / "cup-pca.npz") as arrays:
        np.testing.assert_array_equal(arrays["explained"], fitted.explained)


def test_other_components_can_be_the_colours(tiny_model, tiny_backbone, cat, out, chelsea):
    run("pca", cat, "--out", out, *tiny_model, "--components", "4,5,6", "--plain")
    features = tiny_backbone.encode(chelsea, 224)
    colours = pca.fit([features]).colours((3, 4, 5), turned=False)[0]
    expected = render.map_picture(chelsea, features.grid, colours, opacity=1)
    np.testing.assert_array_equal(np.asarray(Image.open(out / "cat-pca.png")), np.asarray(expected))


def test_one_component_is_a_heat_map(tiny_model, tiny_backbone, cat, out, chelsea):
    run("pca", cat, "--out", out, *tiny_model, "--components", "2", "--raw")
    features = tiny_backbone.encode(chelsea, 224)
    values = pca.fit([features]).component(1)[0]
    patches = render.colourise(values, (0, 1), "viridis")
    drawn = np.asarray(Image.open(out / "cat-pca.png"))
    np.testing.assert_array_equal(drawn, features.grid.resize(patches, "image", "nearest"))


def test_threshold_and_background_decide_what_is_fitted(tiny_model, cat, out):
    run("pca", cat, "--out", out, *tiny_model, "--threshold", "0.8")
    with np.load(out / "cat-pca.npz") as arrays:
        np.testing.assert_array_equal(arrays["foreground"], arrays["score"] >= 0.8)
        assert not arrays["foreground"].all()
    run("pca", cat, "--out", out, *tiny_model, "--threshold", "0.8", "--background")
    with np.load(out / "cat-pca.npz") as arrays:
        assert arrays["foreground"].all()


# Files and folders


def test_results_keep_the_subfolders(tiny_model, photos, out):
    assert run("pca", photos, "--out", out, *tiny_model) == 0
    assert names(out) == ["cat-pca.npz", "cat-pca.png", "kitchen/cup-pca.npz", "kitchen/cup-pca.png"]


def test_equal_names_do_not_overwrite_each_other(tiny_model, tmp_path, out, chelsea, coffee, rocket):
    files = [tmp_path / name for name in ("cat.jpg", "cat.png", "other/cat.jpg", "third/cat.jpg")]
    for file, picture in zip(files, (chelsea, coffee, rocket, rocket.rotate(90, expand=True)), strict=True):
        file.parent.mkdir(exist_ok=True)
        picture.save(file)
    assert run("pca", *files, "--out", out, *tiny_model) == 0
    sizes = {Image.open(path).size for path in out.glob("*.png")}
    assert sizes == {(451, 300), (600, 400), (640, 427), (427, 640)}


def test_a_picture_given_twice_is_processed_once(tiny_model, photos, cat, out, capsys):
    run("pca", cat, photos, cat, "--out", out, *tiny_model)
    assert "2 of 2 done" in capsys.readouterr().out
    assert names(out) == ["cat-pca.npz", "cat-pca.png", "kitchen/cup-pca.npz", "kitchen/cup-pca.png"]


def test_results_stay_inside_the_out_folder(tiny_model, tmp_path, photos, cat, monkeypatch):
    # As text, "../cat.png" would be below the folder ".".
    monkeypatch.chdir(photos / "kitchen")
    run("pca", ".", "../cat.png", "--out", tmp_path / "a" / "b", *tiny_model)
    assert names(tmp_path / "a") == [f"b/{name}-pca.{end}" for name in ("cat", "cup") for end in ("npz", "png")]


def test_results_of_an_earlier_run_are_not_processed(tiny_model, photos):
    for _ in range(2):
        assert run("pca", photos, "--out", photos / "maps", *tiny_model) == 0
    assert len(names(photos / "maps")) == 4


def test_a_broken_file_is_reported_and_the_others_are_processed(tiny_model, photos, out, capsys):
    (photos / "broken.png").write_text("no picture")
    assert run("pca", photos, "--out", out, *tiny_model) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("dinoviz:")]
    assert str(photos / "broken.png") in line
    assert "2 of 3 done" in captured.out
    assert names(out) == ["cat-pca.npz", "cat-pca.png", "kitchen/cup-pca.npz", "kitchen/cup-pca.png"]


def test_joint_pca_skips_a_broken_file(tiny_model, tiny_backbone, photos, out, chelsea, coffee):
    (photos / "broken.png").write_text("no picture")
    assert run("pca", photos, "--joint", "--out", out, *tiny_model) == 2
    fitted = pca.fit([tiny_backbone.encode(picture, 224) for picture in (chelsea, coffee)])
    with np.load(out / "kitchen" / "cup-pca.npz") as arrays:
        np.testing.assert_array_equal(arrays["coordinates"], fitted.coordinates[1])


# Refusals


@pytest.mark.parametrize(
    ("command", "options", "named"),
    [
        ("attention", ["--model", "dinov9"], "'dinov9'.*embedded"),
        ("attention", ["--device", "abacus"], "'abacus'"),
        ("attention", ["--resolution", "20"], "32 to 1792, not 20"),
        ("attention", ["--layer", "4"], "1 to 3, not 4"),
        ("attention", ["--layer", "0"], "1 to 3, not 0"),
        ("attention", ["--opacity", "2"], "opacity .* 2.0"),
        ("attention", ["--mass", "0"], "mass .* 0.0"),
        ("attention", ["--colormap", "rainbow"], "'rainbow'"),
        ("attention", ["--query", "here"], "2 numbers .* 'here'"),
        ("attention", ["--query", "1,2,3"], "2 numbers .* '1,2,3'"),
        ("attention", ["--map", "head 5"], "'head 5'.*mean of heads, head 1, head 2, head 3, head 4"),
        ("pca", ["--components", "1,2"], "--components .* not 2"),
        ("pca", ["--components", "red"], "'red'"),
        ("pca", ["--components", "0"], "no component 0: .* 1 to 32"),
        ("pca", ["--components", "1,2,33"], "no component 33: .* 1 to 32"),
        ("pca", ["--threshold", "1.5"], "threshold .* 1.5"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_option_is_refused_in_one_line(capsys, tiny_model, photos, out, command, options, named):
    # One line, not one for each of the two pictures.
    assert re.search(named, refused(capsys, command, photos, "--out", out, *tiny_model, *options))
    assert not names(out) if out.exists() else True


def test_a_query_outside_the_picture_names_the_picture(capsys, tiny_model, cat, out):
    line = refused(capsys, "attention", cat, "--out", out, *tiny_model, "--query", "452,10")
    assert f"{cat}: " in line
    assert "451 x 300" in line


def test_a_query_outside_of_one_picture_may_lie_inside_another(tiny_model, photos, out):
    assert run("attention", photos, "--out", out, *tiny_model, "--query", "590,390") == 2
    assert names(out) == [f"kitchen/cup-{end}" for end in ("attention.npz", "attention.png", "heads.png")]


def test_a_missing_file_and_an_empty_folder_are_refused(capsys, tiny_model, tmp_path, out):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "dog.png", tmp_path / "empty"):
        assert str(path) in refused(capsys, "pca", path, "--out", out, *tiny_model)


@pytest.mark.parametrize("command", [["attention"], ["pca"], ["pca", "--joint"]], ids=" ".join)
def test_an_out_folder_that_cannot_be_made_is_refused(capsys, tiny_model, photos, cat, command):
    assert str(cat / "maps") in refused(capsys, *command, photos, "--out", cat / "maps", *tiny_model)


def test_a_result_that_cannot_be_written_is_refused(capsys, tiny_model, cat, out):
    (out / "cat-pca.png").mkdir(parents=True)  # a folder with the name of the file
    assert "Is a directory" in refused(capsys, "pca", cat, "--joint", "--out", out, *tiny_model)


# The table of models, and the program as a process


def test_models_lists_every_known_name(capsys):
    assert run("models") == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(models.KNOWN)
    assert [line.split()[3] for line in lines] == ["yes" if models.is_cached(n) else "no" for n in models.KNOWN]


def test_help_names_the_commands():
    program = subprocess.run([sys.executable, "-m", "dinoviz", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert program.returncode == 0
    assert not program.stderr
    for command in ("attention", "compare", "depth", "models", "pca", "segment", "video"):
        assert f"  {command}" in program.stdout


def test_a_failing_program_ends_with_2_and_one_line(cat, out):
    command = [sys.executable, "-m", "dinoviz", "attention", str(cat), "--out", str(out), "--resolution", "20"]
    program = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert program.returncode == 2
    assert re.fullmatch(r"dinoviz: .* 32 to 1792, not 20\.\n", program.stderr)
