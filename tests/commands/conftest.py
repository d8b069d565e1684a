from pathlib import Path

import pytest


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def tiny_model(tiny_folders) -> list[str]:
    """Random weights: 3 layers, 4 heads, 32 channels."""
    return ["--model", str(tiny_folders["dinov2_with_registers"]), "--resolution", "224", "--device", "cpu"]
