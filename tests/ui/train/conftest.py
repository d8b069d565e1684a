"""Fixtures of the Train tab's tests."""

from pathlib import Path

import pytest

from dinoviz.ui.access import Settings
from dinoviz.ui.workbench import Workbench
from tests.training.tiny_runs import write_images
from tests.ui.train.data_files import png


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder that the page may read, with 4 pictures in `cats`, and a second one that it may not read."""
    write_images(tmp_path / "open" / "cats", 4)
    (tmp_path / "hidden.png").write_bytes(png())
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "hidden.png").write_bytes(png())
    return tmp_path / "open"


@pytest.fixture
def small_bench() -> Workbench:
    """A workbench without a model."""
    return Workbench(Settings(cache_bytes=2**24))
