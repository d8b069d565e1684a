"""The measured depth of scikit-image's motorcycle."""

import io

import numpy as np
import pytest
from PIL import Image
from skimage import data

from dinoviz.depth import geometry, middlebury


@pytest.fixture(scope="module")
def motorcycle() -> Image.Image:
    picture = middlebury.picture()
    if picture is None:
        pytest.skip("this scikit-image comes without the motorcycle")
    return picture


def test_depth_follows_from_the_disparity(motorcycle):
    left, _, disparity = data.stereo_motorcycle()
    np.testing.assert_array_equal(np.asarray(motorcycle), left)
    metres = middlebury.measured(left)
    assert metres.shape == (500, 741)
    assert metres.dtype == np.float32
    there = np.isfinite(disparity)
    np.testing.assert_array_equal(np.isfinite(metres), there)
    np.testing.assert_allclose(metres[there], 0.193001 * 994.978 / (disparity[there] + 31.086), rtol=1e-5)


def test_the_motorcycle_has_the_shape_of_one(motorcycle):
    """Where its wheels stand is 2.2 wheels apart: 1.40 m, the wheel 0.64 m. Its size is not, see the module."""
    cloud = geometry.points(middlebury.measured(motorcycle), middlebury.CAMERA)
    wheel = geometry.between(cloud, (194.5, 245.5), (210.5, 396.5))
    assert geometry.between(cloud, (210.5, 396.5), (560.5, 430.5)) / wheel == pytest.approx(1.40 / 0.64, rel=0.05)
    assert wheel == pytest.approx(0.41, rel=0.05)


def test_it_is_recognised_by_its_pixels(motorcycle):
    buffer = io.BytesIO()
    motorcycle.save(buffer, "JPEG", quality=75)
    again = middlebury.measured(Image.open(buffer))
    np.testing.assert_array_equal(again, middlebury.measured(motorcycle))
    again[:] = 0  # a copy
    assert np.nanmin(middlebury.measured(np.asarray(motorcycle))) > 2


def test_other_pictures_have_no_measured_depth(motorcycle, chelsea):
    right = Image.fromarray(data.stereo_motorcycle()[1])
    mirrored = motorcycle.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for other in (right, mirrored, motorcycle.resize((370, 250)), chelsea.resize((741, 500)), chelsea):
        assert middlebury.measured(other) is None
