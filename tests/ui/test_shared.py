"""What all tabs use: pictures as files, downloads, points, errors."""

import io
import json
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from dinoviz import __version__
from dinoviz.errors import DinovizError
from dinoviz.ui import shared
from dinoviz.ui.access import Settings
from dinoviz.ui.workbench import Workbench


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path, monkeypatch):
    """The folder for files of the page."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))


def test_a_shown_picture_is_a_file_named_by_its_content(astronaut, chelsea):
    path = shared.jpeg_file(astronaut)
    opened = Image.open(path)
    assert (opened.format, opened.size) == ("JPEG", astronaut.size)
    # JPEG at quality 90 is a few levels off at most places.
    assert np.abs(np.asarray(opened, float) - np.asarray(astronaut, float)).mean() < 3
    assert shared.jpeg_file(astronaut.copy()) == path
    assert shared.jpeg_file(chelsea) != path


def test_a_picture_file_is_written_once(astronaut):
    path = Path(shared.jpeg_file(astronaut))
    os.utime(path, (1000, 1000))
    before = path.stat()
    content = path.read_bytes()
    shared.jpeg_file(astronaut)
    after = path.stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
    assert path.read_bytes() == content
    assert after.st_mtime > 1000  # so that it is not removed by age


def test_threads_write_one_complete_file(tmp_path, astronaut):
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: shared.jpeg_file(astronaut), range(16)))
    assert len(set(paths)) == 1
    assert [str(path) for path in tmp_path.rglob("*") if path.is_file()] == paths[:1]
    Image.open(paths[0]).load()


def test_raw_patches_stay_sharp_in_colour():
    halves = np.zeros((64, 64, 3), dtype=np.uint8)
    halves[:, :33] = (200, 30, 30)  # the edge is inside a block of the coder
    halves[:, 33:] = (30, 30, 200)
    opened = np.asarray(Image.open(shared.jpeg_file(Image.fromarray(halves))), dtype=int)
    # Halved colour, JPEG's default, is off by 60 to 100 levels beside the edge.
    assert np.abs(opened - halves)[:, 32:34].max() < 30


def test_a_bundle_has_the_files_and_about(astronaut):
    buffer = io.BytesIO()
    astronaut.save(buffer, format="PNG")
    path = shared.bundle("attention", {"map.png": buffer.getvalue(), "map.npz": b"numbers"}, {"layer": 12})
    assert Path(path).name == "attention.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == ["about.json", "map.npz", "map.png"]
        assert archive.read("map.png") == buffer.getvalue()
        assert json.loads(archive.read("about.json")) == {"dinoviz": __version__, "layer": 12}


def test_bundles_of_one_name_are_two_files():
    first, second = (shared.bundle("pca", {"a": content}, {}) for content in (b"1", b"2"))
    assert first != second
    with zipfile.ZipFile(first) as archive:
        assert archive.read("a") == b"1"


def test_a_click_on_the_shown_copy_is_a_point_of_the_picture(model, cat):
    look = Workbench(Settings(cache_bytes=1 << 28)).look(cat, model, 224)
    shown = look.picture.shown.size
    assert shown == (768, 511)
    corner = shared.picture_point(look, (shown[0] - 1, shown[1] - 1))
    # The centre of the last shown pixel, which is half a shown pixel from the corner.
    np.testing.assert_allclose(corner, (451 - 0.5 * 451 / 768, 300 - 0.5 * 300 / 511))
    np.testing.assert_allclose(shared.picture_point(look, (383.5, 255)), (225.5, 150))


def test_user_errors_are_messages_without_markup():
    with pytest.raises(gr.Error) as message, shared.user_errors():
        raise DinovizError("<img src=x>.png: the file is empty.")
    assert str(message.value.message) == "&lt;img src=x&gt;.png: the file is empty."


def test_captions_of_a_picture_grid_are_escaped(astronaut):
    grid = shared.picture_grid([(astronaut.resize((8, 8)), '<b>"')])
    assert "<b>" not in grid
    assert "&lt;b&gt;&quot;" in grid
