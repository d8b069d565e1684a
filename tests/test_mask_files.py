"""Masks as image files: written for one and several objects, read from files of any kind."""

import numpy as np
import pytest
from PIL import Image

from dinoviz import mask_files
from dinoviz.images import ImageError
from dinoviz.render import label_colours


def test_one_object_is_written_as_black_and_white(tmp_path):
    mask = np.zeros((16, 20), np.uint8)
    mask[3:9, 4:11] = 1
    mask_files.write_mask(tmp_path / "mask.png", mask, 1)
    image = Image.open(tmp_path / "mask.png")
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), mask * 255)
    np.testing.assert_array_equal(mask_files.read_labels(tmp_path / "mask.png"), mask)
    np.testing.assert_array_equal(mask_files.read_mask(tmp_path / "mask.png"), mask)
    assert [path.name for path in tmp_path.iterdir()] == ["mask.png"]


def test_several_objects_are_written_with_a_palette(tmp_path):
    mask = np.zeros((16, 20), np.uint8)
    mask[3:9, 4:11], mask[10:, 10:] = 3, 2  # the first has left
    mask_files.write_mask(tmp_path / "mask.png", mask, 3)
    image = Image.open(tmp_path / "mask.png")
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), label_colours()[mask])
    np.testing.assert_array_equal(mask_files.read_labels(tmp_path / "mask.png"), mask)


def stripes(*values: int | tuple) -> np.ndarray:
    """A vertical stripe of 10 pixels for each value or colour."""
    return np.concatenate(
        [np.tile(np.array(value, np.uint8), (12, 10, *([1] if np.ndim(value) else []))) for value in values], 1
    )


@pytest.mark.parametrize(
    ("pixels", "labels"),
    [
        (stripes(0, 255), (0, 1)),
        (stripes(0, 7), (0, 1)),  # anything but 0
        (stripes(0, 1, 2, 3), (0, 1, 2, 3)),
        (stripes(0, 50, 100, 200), (0, 1, 2, 3)),
        (stripes(0, 9, 120, 140, 255), (0, 0, 0, 1, 1)),  # soft edges, cut at half
        (stripes((0, 0, 0), (128, 0, 0), (0, 128, 0)), (0, 2, 1)),
        (stripes((0, 0, 0), (255, 255, 255), (250, 252, 254)), (0, 1, 1)),
        (stripes((9, 9, 9, 0), (9, 9, 9, 100), (9, 9, 9, 255)), (0, 0, 1)),
    ],
    ids=["black and white", "one value", "labels", "grey labels", "soft", "colours", "jpeg", "alpha"],
)
def test_common_kinds_of_masks_are_read(tmp_path, pixels, labels):
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(mask_files.read_mask(tmp_path / "mask.png")[0, ::10], labels)


def test_the_indices_of_a_palette_are_the_objects(tmp_path):
    image = Image.fromarray(stripes(0, 2, 5))
    image.putpalette(label_colours().tobytes())
    image.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(mask_files.read_mask(tmp_path / "mask.png")[0, ::10], (0, 1, 2))


def test_a_photograph_is_not_a_mask(tmp_path, coffee):
    coffee.save(tmp_path / "photo.png")
    with pytest.raises(ImageError, match=r"photo\.png.* 64 "):
        mask_files.read_mask(tmp_path / "photo.png")


def test_a_mask_with_negative_values_is_refused(tmp_path):
    Image.fromarray(np.array([[0, 1], [-5, 2]] * 8, np.int32).repeat(8, 1)).save(tmp_path / "negative.tif")
    with pytest.raises(ImageError, match="-5"):
        mask_files.read_mask(tmp_path / "negative.tif")
