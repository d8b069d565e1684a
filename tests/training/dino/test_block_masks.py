"""iBOT's masks: how many, how large, in blocks, and the same from the same seed."""

import numpy as np
import pytest
from scipy.ndimage import label

from training.dino.block_masks import block_mask, block_masks

GRIDS = [(12, 12), (6, 9), (2, 2), (1, 3), (1, 1), (16, 3)]


def masks_of(seed: int, images=16, shape=(12, 12), probability=0.5, ratio=(0.1, 0.5)) -> np.ndarray:
    return block_masks(images, shape, probability, ratio, np.random.default_rng(seed))


@pytest.mark.parametrize("shape", GRIDS)
def test_never_more_patches_than_requested(shape):
    rng = np.random.default_rng(0)
    for patches in range(shape[0] * shape[1] + 1):
        for _ in range(5):
            mask = block_mask(shape, patches, rng)
            assert mask.shape == shape
            assert mask.dtype == bool
            assert mask.sum() <= patches


@pytest.mark.parametrize("shape", [(12, 12), (6, 9), (14, 14)])
def test_nearly_as_many_patches_as_requested(shape):
    """A share of them; the published algorithm, too, gives up after ten tries that do not fit."""
    rng = np.random.default_rng(1)
    requested = rng.integers(4, shape[0] * shape[1] // 2, 300)
    found = np.array([block_mask(shape, int(n), rng).sum() for n in requested])
    assert (requested - found).mean() < 0.5
    assert (requested == found).mean() > 0.8


@pytest.mark.parametrize("probability", [0, 0.25, 0.5, 1])
def test_the_share_of_masked_images_is_the_probability(probability):
    for seed in range(5):
        masks = masks_of(seed, images=16, probability=probability)
        assert masks.shape == (16, 144)
        assert (masks.any(1)).sum() == 16 * probability


def test_the_ratios_are_spread_over_the_batch():
    """DINOv2's collate: the i-th of n masked images takes a ratio from the i-th n-th of the range."""
    for seed in range(5):
        counts = np.sort(masks_of(seed, images=40).sum(1))
        assert not counts[:20].any()
        edges = np.linspace(0.1, 0.5, 21) * 144
        assert (counts[20:] <= np.round(edges[1:])).all()
        assert (counts[20:] >= np.round(edges[:-1]) - 6).mean() > 0.9  # where the blocks did not fit, fewer


def test_which_image_gets_which_mask_is_random():
    masked = np.stack([masks_of(seed).any(1) for seed in range(200)])
    assert 0.3 < masked.mean(0).min() <= masked.mean(0).max() < 0.7
    assert masks_of(1, ratio=(0.3, 0.3)).sum(1).max() <= round(0.3 * 144)


def test_masks_are_blocks():
    """Far fewer and larger pieces than as many patches strewn at random, in the corners as in the middle."""
    rng = np.random.default_rng(2)
    blocks = [block_mask((12, 12), 40, rng) for _ in range(200)]
    strewn = [rng.permutation(144).reshape(12, 12) < 40 for _ in range(200)]
    pieces, of_strewn = (np.mean([label(mask)[1] for mask in masks]) for masks in (blocks, strewn))
    assert pieces < 4
    assert pieces < of_strewn / 3
    where = np.mean(blocks, axis=0)
    assert where.min() > 0.02
    assert where[4:8, 4:8].mean() > where.mean()  # a block that fits is in the middle more often


@pytest.mark.parametrize("shape", GRIDS)
def test_the_seed_decides(shape):
    assert np.array_equal(masks_of(3, shape=shape), masks_of(3, shape=shape))
    if shape == (12, 12):
        assert not np.array_equal(masks_of(3, shape=shape), masks_of(4, shape=shape))


def test_no_images_no_masks():
    assert masks_of(0, images=0).shape == (0, 144)
    assert masks_of(0, images=1, probability=1).shape == (1, 144)
