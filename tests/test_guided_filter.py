import numpy as np
import pytest
from PIL import Image, ImageDraw

from dinoviz.grid import PatchGrid
from dinoviz.guided_filter import EdgeFilter


def disk(size: tuple[int, int], colours: tuple = ((40, 90, 60), (200, 120, 90))) -> tuple[Image.Image, np.ndarray]:
    """A disk on a ground, both noisy, with its mask."""
    width, height = size
    mask = Image.new("1", size)
    ImageDraw.Draw(mask).ellipse((width * 0.3, height * 0.25, width * 0.7, height * 0.8), fill=1)
    mask = np.asarray(mask)
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    pixels = np.where(mask[..., None], colours[1], colours[0]) + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), mask


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("size", [(320, 240), (241, 321), (1600, 1200)], ids=str)
@pytest.mark.parametrize(
    "colours", [((40, 90, 60), (200, 120, 90)), ((60, 60, 60), (160, 160, 160))], ids=["colours", "grey"]
)
def test_a_patch_score_gets_the_pictures_edges(size, colours):
    picture, mask = disk(size, colours)
    grid = PatchGrid.fit(size, 224, 14)
    rough = grid.resize(grid.to_patches(mask) > 0.5, "image")
    fine = EdgeFilter(picture, grid).apply(rough)
    assert fine.shape == mask.shape
    assert np.isfinite(fine).all()
    assert iou(rough > 0.5, mask) < 0.97
    assert iou(fine > 0.5, mask) > 0.98


def test_where_there_are_no_edges_the_score_stays_where_it_was():
    _, mask = disk((320, 240), ((90, 90, 90), (90, 90, 90)))
    grid = PatchGrid.fit((320, 240), 224, 14)
    rough = grid.resize(grid.to_patches(mask), "image")
    flat = EdgeFilter(Image.new("RGB", (320, 240), (90, 90, 90)), grid).apply(rough)
    assert iou(flat > 0.5, rough > 0.5) > 0.95
    np.testing.assert_allclose(flat.mean(), rough.mean(), atol=0.01)


def test_scores_that_sum_to_one_still_do():
    picture, mask = disk((320, 240))
    grid = PatchGrid.fit((320, 240), 224, 14)
    score = grid.resize(grid.to_patches(mask), "image")
    edges = EdgeFilter(picture, grid)
    np.testing.assert_allclose(edges.apply(score) + edges.apply(1 - score), 1, atol=1e-3)
