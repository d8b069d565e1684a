"""What the README shows works as it is written there."""

import re
import shlex
from pathlib import Path

import pytest

from dinoviz import depth
from dinoviz.__main__ import _parser
from dinoviz.commands import common
from tests.conftest import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PROBE = ROOT / "assets" / "depth-embedded.safetensors"


@pytest.mark.parametrize("line", re.findall(r"^python -m dinoviz (.*?)(?: *#.*)?$", TEXT, re.M))
def test_the_commands_can_be_parsed(line):
    assert callable(_parser().parse_args(common.join_negative(shlex.split(line))).command)


def test_the_example_in_python_runs(embedded_backbone, tmp_path, chelsea):
    chelsea.save(tmp_path / "photo.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    for name, here in (("dinov2-small", "embedded"), ("photo.jpg", tmp_path / "photo.jpg"), ("runs/rooms", PROBE)):
        assert name in code
        code = code.replace(name, str(here))
    found = {}
    exec(code, found)
    assert found["features"].patches.shape[-1] == 384
    height, width = chelsea.height, chelsea.width
    assert depth.predict(found["features"], depth.open_probe(PROBE)).shape == (height, width)


def test_it_is_short_and_its_links_lead_somewhere():
    assert len(TEXT.splitlines()) <= 170
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", TEXT):
        assert (ROOT / target).exists(), target
    assert len(re.findall(r"!\[", TEXT)) >= len(list(Path(ROOT / "assets").glob("*.jpg")))
