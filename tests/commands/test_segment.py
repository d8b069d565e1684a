"""`python -m dinoviz segment`, with the embedded weights on small pictures."""

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from dinoviz import mask_files, models, render, segment
from dinoviz.cache import image_digest
from dinoviz.commands import segment as command
from dinoviz.commands import segment_outputs
from dinoviz.images import open_image
from tests.commands.running import contents, names, refused, run

SIZE = (240, 160)
CENTRE, BESIDE = (129, 68), (10, 10)  # of the flower, and of the leaves
ARGUMENTS = ["--model", "embedded", "--resolution", "224", "--device", "cpu"]


@pytest.fixture(scope="module")
def encode_once(embedded_backbone):
    """`encode_batch`, which runs the network once for each picture of this file."""
    known, encode_batch = {}, embedded_backbone.encode_batch

    def encode(images, *arguments, **_):
        pictures = [open_image(image) for image in images]
        key = tuple(map(image_digest, pictures)), arguments
        if key not in known:
            known[key] = encode_batch(pictures, *arguments)
        return known[key]

    return encode


@pytest.fixture
def quick(embedded_backbone, encode_once, monkeypatch) -> None:
    monkeypatch.setattr(embedded_backbone, "encode_batch", encode_once)
    monkeypatch.setattr(models, "load", lambda *_, **__: embedded_backbone)
    monkeypatch.setattr(command, "batch_of", lambda _: 1)  # in larger batches the last digits differ


@pytest.fixture
def scene(quick, tmp_path, flower, chelsea, embedded_backbone) -> Path:
    """A flower and its mask, and a folder with the mirrored flower and, in a subfolder, a cat."""
    picture = flower.resize(SIZE)
    picture.save(tmp_path / "flower.png")
    features = embedded_backbone.encode(picture, 224, segment.layers_of(12))
    mask = segment.from_points(features, [CENTRE, BESIDE], [1, 0], picture).mask
    mask_files.write_mask(tmp_path / "flower-drawn.png", mask.astype(np.uint8), 1)
    (tmp_path / "t" / "home").mkdir(parents=True)
    ImageOps.mirror(picture).save(tmp_path / "t" / "mirrored.png")
    chelsea.resize(SIZE).save(tmp_path / "t" / "home" / "cat.png")
    return tmp_path


@pytest.fixture
def reference(scene) -> list:
    """All arguments but --out."""
    return [
        "segment",
        scene / "t",
        "--reference",
        scene / "flower.png",
        "--mask",
        scene / "flower-drawn.png",
        *ARGUMENTS,
    ]


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def table(out: Path) -> list[dict]:
    with (out / "segments.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


# Results


def test_a_target_whose_name_is_not_utf8_is_in_the_table(reference, scene):
    (scene / "t" / "mirrored.png").rename(scene / "t" / os.fsdecode(b"\xff.png"))
    out = scene / "out"
    assert run(*reference, "--out", out) == 0
    assert {row["file"]: row["present"] for row in table(out)} == {"home/cat.png": "false", r"\udcff.png": "true"}


def test_a_mirrored_flower_is_found_and_a_cat_is_not(reference, scene, capsys):
    out = scene / "out"
    assert run(*reference, "--out", out) == 0
    assert names(out) == ["home/cat-mask.png", "mirrored-mask.png", "segments.csv"]
    found, drawn = read(out / "mirrored-mask.png"), read(scene / "flower-drawn.png")
    assert found.shape == SIZE[::-1]
    assert set(np.unique(found)) == {0, 255}
    assert iou(found > 0, drawn[:, ::-1] > 0) > 0.9
    assert not read(out / "home" / "cat-mask.png").any()
    cat, mirrored = table(out)
    assert (cat["file"], cat["present"], float(cat["area (share)"])) == ("home/cat.png", "false", 0)
    assert (mirrored["file"], mirrored["class"], mirrored["present"]) == ("mirrored.png", "object", "true")
    assert float(mirrored["area (share)"]) == pytest.approx((found > 0).mean(), abs=1e-6)
    assert "2 of 2 done" in capsys.readouterr().out


def test_masks_are_those_of_the_library(reference, scene, embedded_backbone):
    options = ["--threshold", "0.6", "--no-refine", "--smallest", "0.5", "--method", "mean", "--keep-absent"]
    run(*reference, "--out", scene / "out", *options)
    layers = segment.layers_of(12)
    reference = embedded_backbone.encode(scene / "flower.png", 224, layers)
    for name in ("mirrored", "home/cat"):
        picture = Image.open(scene / "t" / f"{name}.png")
        expected = segment.from_reference(
            embedded_backbone.encode(picture, 224, layers), reference, read(scene / "flower-drawn.png"), picture,
            method="mean", threshold=0.6, refine=False, smallest=0.005,
        )  # fmt: skip
        np.testing.assert_array_equal(read(scene / "out" / f"{name}-mask.png"), expected.mask * 255)


def test_points_are_clicked_on_each_target(scene, embedded_backbone):
    points = ["--point", "110,68", "--point", "100.5,60", "--negative", "10,10"]
    assert run("segment", scene / "t" / "mirrored.png", *points, "--out", scene / "out", *ARGUMENTS) == 0
    picture = Image.open(scene / "t" / "mirrored.png")
    features = embedded_backbone.encode(picture, 224, segment.layers_of(12))
    expected = segment.from_points(features, [(110, 68), (100.5, 60), (10, 10)], [1, 1, 0], picture).mask
    np.testing.assert_array_equal(read(scene / "out" / "mirrored-mask.png"), expected * 255)


def test_points_on_the_reference_make_its_mask(scene):
    marks = ["--reference", scene / "flower.png", "--point", "129,68", "--negative", "10,10"]
    assert run("segment", scene / "t", *marks, "--debias", "--out", scene / "out", *ARGUMENTS) == 0
    assert iou(read(scene / "out" / "mirrored-mask.png") > 0, read(scene / "flower-drawn.png")[:, ::-1] > 0) > 0.9
    assert [row["present"] for row in table(scene / "out")] == ["false", "true"]


@pytest.mark.parametrize("kind", ["ones", "alpha", "soft"])
def test_common_kinds_of_masks_are_accepted(reference, scene, kind):
    drawn = read(scene / "flower-drawn.png")
    run(*reference, "--out", scene / "plain")
    if kind == "alpha":
        image = Image.open(scene / "flower.png").convert("RGBA")
        image.putalpha(Image.fromarray(drawn))
    else:
        image = Image.fromarray(drawn // 255 if kind == "ones" else np.where(drawn, drawn, 90).astype(np.uint8))
    image.save(scene / "flower-drawn.png")
    run(*reference, "--out", scene / "other")
    assert contents(scene / "other") == contents(scene / "plain")


@pytest.fixture
def two_classes(scene) -> list:
    """Two references, each with one class of a label map: the flower is 3, what is left of it 7."""
    drawn = read(scene / "flower-drawn.png") > 0
    left = np.zeros(SIZE[::-1], bool)
    left[:, :50] = True
    mask_files.write_mask(scene / "three.png", np.where(drawn, 3, 0).astype(np.uint8), 2)
    mask_files.write_mask(scene / "seven.png", np.where(left, 7, 0).astype(np.uint8), 2)
    pairs = [
        part
        for name in ("three", "seven")
        for part in ("--reference", scene / "flower.png", "--mask", scene / f"{name}.png")
    ]
    return ["segment", scene / "t", *pairs, "--keep-absent", *ARGUMENTS]


def test_classes_keep_their_numbers_and_share_no_pixel(two_classes, scene, embedded_backbone):
    assert run(*two_classes, "--out", scene / "out") == 0
    written = Image.open(scene / "out" / "mirrored-mask.png")
    assert written.mode == "P"
    layers = segment.layers_of(12)
    reference = embedded_backbone.encode(scene / "flower.png", 224, layers)
    picture = Image.open(scene / "t" / "mirrored.png")
    masks = [mask_files.read_classes(scene / f"{name}.png") for name in ("three", "seven")]
    features = embedded_backbone.encode(picture, 224, layers)
    expected = segment.classes_from_reference(features, [reference] * 2, masks, picture)
    assert list(expected) == [3, 7]
    for number, found in expected.items():
        np.testing.assert_array_equal(np.asarray(written) == number, found.mask)
    assert [row["class"] for row in table(scene / "out")] == ["3", "7"] * 2


def test_coco_holds_the_same_masks(two_classes, scene):
    coco = pytest.importorskip("pycocotools.coco")
    run(*two_classes, "--out", scene / "png")
    run(*two_classes, "--out", scene / "coco", "--format", "coco")
    assert names(scene / "coco") == ["annotations.json", "segments.csv"]
    assert table(scene / "coco") == table(scene / "png")
    data = coco.COCO(scene / "coco" / "annotations.json")
    assert [c["name"] for c in data.loadCats(data.getCatIds())] == ["3", "7"]
    for image in data.loadImgs(data.getImgIds()):
        labels = np.zeros((image["height"], image["width"]), np.uint8)
        for annotation in data.loadAnns(data.getAnnIds(imgIds=[image["id"]])):
            labels[data.annToMask(annotation) > 0] = annotation["category_id"]
        stem = image["file_name"].removesuffix(".png")
        np.testing.assert_array_equal(labels, read(scene / "png" / f"{stem}-mask.png"))


def test_coco_has_no_annotation_if_the_object_is_not_found(reference, scene):
    run(*reference, "--out", scene / "out", "--format", "coco")
    data = json.loads((scene / "out" / "annotations.json").read_text())
    assert [image["file_name"] for image in data["images"]] == ["home/cat.png", "mirrored.png"]
    assert [annotation["image_id"] for annotation in data["annotations"]] == [2]
    assert 0.5 <= data["annotations"][0]["score"] <= 1


def test_overlays_and_cutouts_show_the_mask(reference, scene):
    run(*reference, "--out", scene / "out", "--overlays", "--cutouts")
    assert len(names(scene / "out")) == 7
    picture, mask = Image.open(scene / "t" / "mirrored.png"), read(scene / "out" / "mirrored-mask.png")
    np.testing.assert_array_equal(read(scene / "out" / "mirrored-cutout.png")[..., 3], mask)
    expected = render.to_jpeg(render.overlay(picture, mask > 0))
    assert (scene / "out" / "mirrored-overlay.jpg").read_bytes() == expected


# Interrupted


class Killed(BaseException):
    """Not caught by the program, like a kill -9."""


@pytest.mark.parametrize(("options", "batch"), [(["--overlays", "--cutouts"], 1), (["--format", "coco"], 2)])
def test_a_killed_run_resumes_and_ends_with_the_same_files(two_classes, scene, monkeypatch, capsys, options, batch):
    monkeypatch.setattr(command, "batch_of", lambda _: batch)
    (scene / "t" / "flower.png").write_bytes((scene / "flower.png").read_bytes())
    run(*two_classes, *options, "--out", scene / "whole")
    done = []

    def killed(target, *rest) -> None:
        if len(done) == 2:
            target("mask.png").with_suffix(".png.part").write_text("half a file") if "coco" not in options else None
            raise Killed
        done.append(target)
        write_all(target, *rest)

    write_all = segment_outputs.write_all
    with monkeypatch.context() as patch:
        patch.setattr(segment_outputs, "write_all", killed)
        with pytest.raises(Killed):
            run(*two_classes, *options, "--out", scene / "out")
    log = scene / "out" / segment_outputs.LOG
    log.write_bytes(log.read_bytes()[:-9])  # in the middle of a line
    assert not (scene / "out" / "segments.csv").exists()

    again = []
    monkeypatch.setattr(segment_outputs, "write_all", lambda *all_: again.append(all_) or write_all(*all_))
    assert run(*two_classes, *options, "--out", scene / "out") == 0
    done = 1 if batch == 1 else 0  # an unfinished batch is repeated as a whole
    assert f"resuming after {done} images" in capsys.readouterr().out
    assert len(again) == 3 - done
    assert contents(scene / "out") == contents(scene / "whole")


def test_a_run_with_other_arguments_starts_again(reference, scene, monkeypatch, capsys):
    def interrupted(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(segment_outputs, "write_all", interrupted)
        assert run(*reference, "--cutouts", "--out", scene / "out") == 130
    assert run(*reference, "--out", scene / "out") == 0
    output = capsys.readouterr().out
    assert "other arguments" in output
    assert "resuming" not in output
    run(*reference, "--out", scene / "whole")
    assert contents(scene / "out") == contents(scene / "whole")


def test_a_batch_finds_what_single_pictures_find(reference, scene, monkeypatch):
    run(*reference, "--out", scene / "single")
    monkeypatch.setattr(command, "batch_of", lambda _: 8)
    run(*reference, "--out", scene / "batch")
    for name in ("mirrored-mask.png", "home/cat-mask.png"):
        assert (read(scene / "single" / name) != read(scene / "batch" / name)).mean() < 1e-3  # rounding


# Refusals


def test_a_broken_file_is_reported_and_the_others_are_processed(reference, scene, capsys):
    (scene / "t" / "broken.png").write_text("no picture")
    assert run(*reference, "--out", scene / "out") == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("dinoviz:")]
    assert "broken.png: " in line
    assert "2 of 3 done" in captured.out
    assert names(scene / "out") == ["home/cat-mask.png", "mirrored-mask.png", "segments.csv"]


@pytest.mark.parametrize("point", ["-3,5", "500,10", "nan,4"])
def test_a_point_outside_names_the_picture(scene, capsys, point):
    cat = scene / "t" / "home" / "cat.png"
    line = refused(capsys, "segment", cat, "--point", point, "--out", scene / "out", *ARGUMENTS)
    assert re.search(f"{cat}: .* {point.replace(',', ', ')} .* 240 x 160", line)


@pytest.mark.parametrize(
    ("pixels", "named"),
    [
        (np.zeros(SIZE[::-1], np.uint8), "empty"),
        (np.full(SIZE[::-1], 255, np.uint8), "whole picture"),
        (np.eye(30, dtype=np.uint8), "30 x 30 .* 240 x 160"),
        (None, "flower-drawn.png: "),
    ],
    ids=["empty", "full", "size", "broken"],
)
def test_a_mask_that_cannot_be_used_is_refused(reference, scene, capsys, monkeypatch, pixels, named):
    if pixels is None:
        (scene / "flower-drawn.png").write_text("no picture")
    else:
        Image.fromarray(pixels).save(scene / "flower-drawn.png")
    monkeypatch.setattr(models, "load", None)  # refused before that
    assert re.search(named, refused(capsys, *reference, "--out", scene / "out"))
    assert not (scene / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--reference", "flower.png", "--mask", "m.png"], "no targets"),
        (["t"], "--reference and --mask, or with --point"),
        (["t", "--negative", "1,1"], "--negative .* --point"),
        (["t", "--point", "one"], "2 numbers .* 'one'"),
        (["t", "--point", "9,9", "--mask", "m.png"], "--mask or --point"),
        (["t", "--mask", "m.png"], "--mask needs a --reference"),
        (["t", "--reference", "flower.png"], "1 references and 0 masks"),
        (["t", "--reference", "no.png", "--mask", "m.png"], "no.png: "),
        (["t", "--reference", "flower.png", "--point", "241,9"], "241, 9 "),
        (["t", "--point", "9,9", "--method", "mean"], "--method need a --reference"),
        (["t", "--point", "9,9", "--format", "bmp"], "'bmp': choose png or coco"),
        (["t", "--point", "9,9", "--threshold", "2"], "threshold .* 2.0"),
        (["t", "--point", "9,9", "--smallest", "-1"], "--smallest .* not -1.0"),
        (["t", "--point", "9,9", "--resolution", "20"], "32 to 1792, not 20"),
        (["no", "--point", "9,9"], "no: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments_are_refused_before_the_weights_are_loaded(scene, capsys, monkeypatch, arguments, named):
    monkeypatch.chdir(scene)
    monkeypatch.setattr(models, "load", None)
    assert re.search(named, refused(capsys, "segment", "--out", "out", "--model", "embedded", *arguments))
    assert not Path("out").exists()


def test_files_of_the_user_are_not_overwritten(reference, scene, capsys):
    assert f"{scene / 't'} " in refused(capsys, *reference, "--out", scene / "t")
    (scene / "out").mkdir()
    (scene / "out" / "mirrored-mask.png").write_text("mine")
    assert "mirrored-mask.png" in refused(capsys, *reference, "--out", scene / "out")
    assert (scene / "out" / "mirrored-mask.png").read_text() == "mine"
