"""What the page shows of multi-crop is what a run does: boxes, contents, who sees what, masks."""

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from dinoviz.errors import DinovizError
from training.config.pretrain import PretrainConfig, pretrain_preset
from training.dino.crop_preview import crops, drawn

NO_COLOURS = {"jitter": 0.0, "grey": 0.0, "blur": (0.0, 0.0, 0.0), "solarise": 0.0}
CONFIG = PretrainConfig(patch=8, global_size=64, local_size=32, local_crops=5, **NO_COLOURS)


@pytest.fixture(scope="module")
def picture(chelsea) -> Image.Image:
    """451 x 300, without detail that would depend on how it is made smaller."""
    return chelsea.filter(ImageFilter.GaussianBlur(6))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_crop_is_its_box_of_the_picture(picture, flip, seed):
    made = crops(picture, dataclasses.replace(CONFIG, flip=flip), seed)
    for crop in made.globals + made.locals:
        size = crop.pixels.shape[:2]
        part = picture.resize(size, Image.Resampling.BILINEAR, box=crop.box)
        expected = ImageOps.mirror(part) if crop.mirrored else part
        assert crop.mirrored == (flip == 1.0)
        # A box that is a pixel of the store off would differ by more.
        assert np.abs(crop.pixels.astype(float) - np.asarray(expected)).mean() < 1.0


def test_the_teacher_sees_two_and_the_student_all(picture):
    made = crops(picture, CONFIG)
    assert [(c.pixels.shape, c.pixels.dtype.name, c.teacher) for c in made.globals] == [
        ((64, 64, 3), "uint8", True)
    ] * 2
    assert [(c.pixels.shape, c.teacher) for c in made.locals] == [((32, 32, 3), False)] * 5
    assert crops(picture, dataclasses.replace(CONFIG, local_crops=0)).locals == ()


def test_boxes_cover_the_configured_share(picture):
    config = dataclasses.replace(CONFIG, global_scale=(0.4, 0.6), local_scale=(0.05, 0.1))
    for seed in range(5):
        made = crops(picture, config, seed)
        for several, (low, high) in ((made.globals, (0.4, 0.6)), (made.locals, (0.05, 0.1))):
            for left, top, right, bottom in (crop.box for crop in several):
                assert 0 <= left < right <= picture.width
                assert 0 <= top < bottom <= picture.height
                assert low - 1e-5 < (right - left) * (bottom - top) / picture.width / picture.height < high + 1e-5


def test_pixels_are_the_student_s_input(picture):
    config = dataclasses.replace(CONFIG, grey=1.0)
    for crop in crops(picture, config).globals:
        assert (np.ptp(crop.pixels, axis=2) == 0).all()


def test_the_same_seed_makes_the_same_crops_and_another_makes_others(picture):
    config = PretrainConfig(ibot_weight=1.0, **pretrain_preset("micro"))
    one, same, other = (crops(picture, config, seed) for seed in (3, 3, 4))
    for a, b in zip(one.globals + one.locals, same.globals + same.locals, strict=True):
        assert a.box == b.box
        np.testing.assert_array_equal(a.pixels, b.pixels)
        np.testing.assert_array_equal(a.mask, b.mask)
    assert one.globals[0].box != other.globals[0].box


def test_masks_hide_their_share_of_the_global_crops_from_the_student(picture):
    config = dataclasses.replace(CONFIG, ibot_weight=1.0, mask_ratio=(0.2, 0.4))
    for probability, masked in ((0.1, 1), (0.5, 1), (1.0, 2)):
        for seed in range(6):
            made = crops(picture, dataclasses.replace(config, mask_probability=probability), seed)
            assert all(crop.mask is None for crop in made.locals)
            assert all(crop.mask.shape == (8, 8) and crop.mask.dtype == bool for crop in made.globals)
            shares = [crop.mask.mean() for crop in made.globals if crop.mask.any()]
            assert len(shares) == masked
            assert all(0.2 - 3 / 64 < share <= 0.4 for share in shares)  # the last block may not fit
    for none in (CONFIG, dataclasses.replace(config, mask_probability=0.0)):
        assert all(crop.mask is None for crop in crops(picture, none).globals)


def test_the_patches_of_a_model_to_start_from_are_masked(picture, tiny_folders):
    config = PretrainConfig(start=str(tiny_folders["dinov2"]), global_size=56, local_size=28, ibot_weight=1.0)
    assert [crop.mask.shape for crop in crops(picture, config).globals] == [(4, 4)] * 2  # of 14 px
    with pytest.raises(DinovizError, match="14 px"):
        crops(picture, dataclasses.replace(config, global_size=64))


def test_boxes_have_the_colours_of_global_and_local_crops(picture):
    made = crops(picture, CONFIG)
    shown = np.asarray(drawn(picture, made)).astype(int)
    assert shown.shape == np.asarray(picture).shape
    for several, colour in ((made.globals, (230, 159, 0)), (made.locals, (86, 180, 233))):
        for crop in several[-1:]:  # which no other of its kind covers
            left, top, right, bottom = (round(v) for v in crop.box)
            edge = [*shown[top:bottom, left], *shown[top, left:right]]
            assert np.mean([tuple(pixel) == colour for pixel in edge]) > 0.5
    assert np.asarray(picture).tolist() != shown.tolist()
