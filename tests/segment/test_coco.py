"""Masks on their way out: run lengths as COCO's own code makes them, overlays, cut-outs."""

import json

import numpy as np
import pytest
from PIL import Image

from dinoviz import render
from dinoviz.segment import coco as export


def disc(size=(90, 60), centre=(40, 30), radius=20) -> np.ndarray:
    y, x = np.mgrid[: size[1], : size[0]]
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2


def masks() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    made = [np.zeros((5, 7), bool), np.ones((5, 7), bool), disc(), ~disc(), np.eye(40, dtype=bool)]
    made += [random.random((h, w)) < share for h, w, share in ((1, 1, 1), (1, 50, 0.5), (50, 1, 0.5), (33, 47, 0.1))]
    made += [disc((4000, 1000), (2000, 500), 400)]  # runs of more than one group of five bits
    return made


@pytest.mark.parametrize("mask", masks(), ids=lambda mask: f"{mask.shape}")
def test_run_lengths_are_those_of_pycocotools(mask):
    coco = pytest.importorskip("pycocotools.mask")
    mine = export.rle(mask)
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert mine["counts"].encode() == theirs["counts"]
    assert mine["size"] == list(theirs["size"])
    assert np.array_equal(coco.decode({**mine, "counts": mine["counts"].encode()}), mask)


def test_a_data_set_is_one_that_coco_reads(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    data = export.Coco("flower")
    data.add("a.png", disc(), 0.9)
    data.add("b.png", np.zeros((60, 90), bool), 0.1)
    data.add("c.png", disc(radius=10), 0.7)
    (tmp_path / "coco.json").write_text(json.dumps(data.as_dict()))
    read = coco.COCO(tmp_path / "coco.json")
    assert [image["file_name"] for image in read.loadImgs(read.getImgIds())] == ["a.png", "b.png", "c.png"]
    assert read.getAnnIds(imgIds=[2]) == []
    annotation = read.loadAnns(read.getAnnIds(imgIds=[3]))[0]
    assert np.array_equal(read.annToMask(annotation), disc(radius=10))
    assert annotation["area"] == disc(radius=10).sum()
    assert annotation["bbox"] == [30, 20, 21, 21]
    assert annotation["score"] == 0.7


def test_a_cut_out_keeps_the_pixels_and_hides_the_rest(coffee):
    mask = disc(coffee.size, (300, 200), 120)
    cut = np.asarray(render.cutout(coffee, mask))
    assert np.array_equal(cut[..., :3], np.asarray(coffee))
    assert np.array_equal(cut[..., 3] == 255, mask)
    assert set(np.unique(cut[..., 3])) == {0, 255}


def test_an_overlay_leaves_what_is_far_outside_alone(coffee):
    mask = disc(coffee.size, (300, 200), 120)
    overlay, photo = np.asarray(render.overlay(coffee, mask, 0.5)), np.asarray(coffee)
    outside, inside = ~disc(coffee.size, (300, 200), 125), disc(coffee.size, (300, 200), 115)
    assert np.array_equal(overlay[outside], photo[outside])
    assert np.allclose(overlay[inside], (photo[inside] + np.array(render.TINT, float)) / 2, atol=1)


def test_the_outline_shows_a_full_and_an_empty_mask(coffee):
    for mask in (np.ones(coffee.size[::-1], bool), np.zeros(coffee.size[::-1], bool)):
        assert render.overlay(coffee, mask).size == coffee.size
        assert render.outline(coffee, mask).size == coffee.size


def test_the_board_is_behind_the_thing(coffee):
    mask = disc(coffee.size, (300, 200), 120)
    shown, photo = np.asarray(render.on_checkers(coffee, mask)), np.asarray(coffee)
    assert np.array_equal(shown[mask], photo[mask])
    assert set(np.unique(shown[~mask])) == {200, 228}


def test_jpeg_keeps_flat_colours_sharp():
    picture = Image.new("RGB", (64, 64), (255, 0, 0))
    picture.paste((0, 0, 255), (32, 0, 64, 64))
    import io

    read = np.asarray(Image.open(io.BytesIO(render.to_jpeg(picture)))).astype(int)
    assert np.abs(read[:, 31] - (255, 0, 0)).max() < 30
    assert np.abs(read[:, 32] - (0, 0, 255)).max() < 30
