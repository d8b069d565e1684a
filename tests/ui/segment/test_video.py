"""The video part of the Segment tab: from marks on the first frame to masks of all frames, and bad videos."""

import json
import zipfile
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from dinoviz.backbone import Backbone
from dinoviz.errors import DinovizError
from dinoviz.ui.segment.state import Choice, Search
from dinoviz.ui.segment.targets import Targets
from dinoviz.ui.segment.tracking import check_first, first_frame, track, turns
from dinoviz.video import io as clips

MODEL = "embedded"


@pytest.fixture(scope="module")
def odd_clip(tmp_path_factory, flower) -> str:
    """Three frames of 161 x 107 pixels."""
    frame = flower.resize((161, 107))
    with clips.VideoWriter(tmp_path_factory.mktemp("clips") / "odd", frame.size, Fraction(5)) as writer:
        for shift in (0, 2, 4):
            writer.add(np.roll(np.asarray(frame), shift, axis=1))
    return str(writer.path)


def marked(bench, clip: str) -> Search:
    look = bench.look(first_frame(clip), MODEL, 224)
    width, height = look.picture.image.size
    points = [(0.5, 0.47, 1), (0.17, 0.77, 0)]
    raw = [{"kind": "point", "x": width * x, "y": height * y, "label": label} for x, y, label in points]
    return Search(Targets(bench).derived, look, raw, Choice())


def test_an_odd_sized_video_is_tracked_to_the_end(bench, odd_clip):
    shares = []
    tracked = track(marked(bench, odd_clip), odd_clip, report=lambda what, share: shares.append(share))
    assert tracked.problem == ""
    assert len(tracked.areas) == 3
    assert all(0.05 < area < 0.6 for area in tracked.areas)
    assert shares == sorted(shares)
    size = clips.open_clip(odd_clip).size
    assert clips.open_clip(tracked.overlay).size == size
    with zipfile.ZipFile(tracked.archive) as archive:
        mask = np.asarray(Image.open(archive.open("masks/000002.png")))
        assert mask.shape == size[::-1]
        assert (mask > 0).mean() == pytest.approx(tracked.areas[2])
        assert json.loads(archive.read("about.json"))["clip"]["name"] == "odd.mp4"
        assert any(name.startswith("overlay.") for name in archive.namelist())


def test_every_frame_takes_a_turn_of_its_own(bench, odd_clip, monkeypatch):
    search = marked(bench, odd_clip)
    running, forward = [], Backbone._forward

    def watched(self, *args):
        running.append(tuple(bench._passes._running))
        return forward(self, *args)

    monkeypatch.setattr(Backbone, "_forward", watched)
    track(search, odd_clip, every=2, turn=turns(bench, search.look))
    assert [len(turns) for turns in running] == [1, 1]
    assert len(set(running)) == 2
    assert not bench._passes._running


def test_only_every_second_frame(bench, odd_clip):
    tracked = track(marked(bench, odd_clip), odd_clip, every=2)
    assert len(tracked.areas) == 2
    assert tracked.rate == 2.5


def test_the_marks_must_be_on_the_first_frame_of_this_clip(bench, odd_clip, tmp_path, flower):
    flower.save(tmp_path / "flower.png")
    check_first(odd_clip, marked(bench, odd_clip))
    look = bench.look(str(tmp_path / "flower.png"), MODEL, 224)
    other = Search(Targets(bench).derived, look, [], Choice())
    unmarked = replace(marked(bench, odd_clip), marks=[])
    for clip, search in ((odd_clip, other), (odd_clip, unmarked), (None, marked(bench, odd_clip))):
        with pytest.raises(DinovizError):
            check_first(clip, search)


@pytest.mark.parametrize("content", [b"", b"no video", b"\0\0\0\x18ftypmp42" + bytes(100)])
def test_a_file_that_is_not_a_video_is_refused(tmp_path, content):
    (tmp_path / "bad.mp4").write_bytes(content)
    with pytest.raises(DinovizError, match=r"bad\.mp4"):
        first_frame(str(tmp_path / "bad.mp4"))
