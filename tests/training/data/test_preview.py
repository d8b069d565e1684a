import numpy as np
import pytest
from PIL import Image

from dinoviz.errors import Stopped
from training.data.preview import THUMBNAIL, preview
from training.data.sources import find


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for i in range(30):
        label = "cats" if i % 3 else "dogs"
        (tmp_path / label).mkdir(exist_ok=True)
        pixels = random.integers(0, 255, (40 + i, 300, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / label / f"{i:02}.png")
    return tmp_path


def test_counts_sizes_classes_and_broken_images(folder):
    (folder / "dogs" / "00.png").write_text("no picture")
    found = preview(find(folder))
    assert (found.count, found.looked, found.classes) == (30, 30, {"cats": 20, "dogs": 10})
    assert sorted(found.sizes) == [(300, 40 + i) for i in range(1, 30)]
    assert found.side == 55
    ((name, reason),) = found.broken
    assert name == "dogs/00.png"
    assert "00.png" in reason
    assert 10 <= len(found.thumbnails) <= 24
    assert {label for _, label in found.thumbnails} == {"cats", "dogs"}
    assert all(max(picture.size) == THUMBNAIL for picture, _ in found.thumbnails)


def test_a_sample_of_many_is_evenly_spaced(folder):
    found = preview(find(folder), most=5)
    assert (found.count, found.looked) == (30, 5)
    assert found.sizes[0][1] < 45
    assert found.sizes[-1][1] > 64


def test_without_classes_thumbnails_have_file_names(folder):
    found = preview(find(folder / "dogs"))
    assert found.classes == {}
    assert found.thumbnails[0][1] == "00.png"


def test_it_can_be_stopped(folder):
    def stop(what, share):
        if share > 0.5:
            raise Stopped

    with pytest.raises(Stopped):
        preview(find(folder), progress=stop)
