"""The Patch PCA tab: what it draws when, which pictures it takes, and its progress."""

from functools import partial

import pytest

from dinoviz.errors import DinovizError
from dinoviz.ui.access import Settings
from dinoviz.ui.pca_controls import Drawn, layout
from dinoviz.ui.pca_tab import Handlers, keep_picture
from dinoviz.ui.pca_views import MAX_PICTURES, RGB, ViewSettings, draw, open_looks
from dinoviz.ui.workbench import Workbench
from tests.ui.tab_handlers import ME, blocks, held, is_skipped, parameters

NAMES = "image model resolution others layer shown red green blue steady foreground by_itself threshold opacity raw"


@pytest.fixture
def handlers(monkeypatch, cat) -> Handlers:
    monkeypatch.setenv("DINOVIZ_DEVICE", "cpu")
    bench = Workbench(Settings())
    with blocks(bench, cat) as bar:
        return Handlers(bench, layout(bar))


@pytest.fixture
def redraw(handlers, inputs, look):
    """`draw_all` of the open tab. drawn, tried: states. others: more pictures. values: other settings."""

    def call(drawn=None, tried=None, others=(), **values):
        return handlers.draw_all(
            True, look.key, drawn or Drawn(), tried, ME, *inputs, list(others), *settings(**values).__dict__.values()
        )

    return call


def settings(**values) -> ViewSettings:
    start = {
        "layer": 3, "shown": RGB, "red": "1", "green": "2", "blue": "3", "steady": True, "foreground": True,
        "by_itself": True, "threshold": 0.5, "opacity": 1.0, "raw": False,
    }  # fmt: skip
    return ViewSettings(**start | values)


@pytest.mark.parametrize("endpoint", ["patch_pca", "pca_download"])
def test_the_api_has_these_parameters(handlers, endpoint):
    assert parameters(getattr(handlers, endpoint)) == NAMES


def test_what_has_not_changed_is_not_drawn_again(handlers, redraw, inputs, look):
    c = handlers.controls
    first = redraw()
    drawn = first[c.drawn]
    assert drawn.layers == first[c.layer].maximum == look.backbone.layers
    layer = look.backbone.layers
    assert is_skipped(redraw(drawn, layer=layer))
    raw = redraw(drawn, layer=layer, raw=True)
    assert raw[c.main] is not None
    assert c.scatter not in raw, "the figures do not depend on it"
    assert c.scatter in redraw(drawn, layer=layer, foreground=False)
    assert c.threshold not in redraw(drawn, layer=layer, by_itself=False), "the user may be moving it"
    assert is_skipped(handlers.draw_all(False, look.key, drawn, None, ME, *inputs, [], *settings().__dict__.values()))
    emptied = handlers.draw_all(True, None, drawn, None, ME, *inputs, [], *settings().__dict__.values())
    assert emptied[c.main] is emptied[c.drawn].look is None


def test_a_joint_basis_is_drawn_once_its_pictures_are_encoded(handlers, redraw, inputs, cup, tmp_path):
    c = handlers.controls
    (tmp_path / "corrupt.png").write_text("no picture")
    others = [cup, str(tmp_path / "corrupt.png")]
    waiting = redraw(others=others)
    assert waiting[c.pending] == (tuple(others), *inputs[1:])
    *_, last = handlers.prepare(waiting[c.pending], ME)
    assert last[c.prepared] > 0
    drawn = redraw(tried=last[c.tried], others=others)
    assert len(drawn[c.joint].value) == 2
    assert "joint basis of 2" in drawn[c.caption]
    assert "corrupt.png" in drawn[c.caption]


def test_encoding_more_pictures_can_be_stopped(handlers, inputs, cup, monkeypatch):
    c = handlers.controls
    with held() as work:
        monkeypatch.setattr(handlers.bench, "look", lambda path, model, resolution, job, part: work(partial(tell, job)))
        updates = handlers.prepare(((cup,), *inputs[1:]), ME)
        busy = next(updates)
        assert busy[c.stop].visible
        assert "dv-busy" in busy[c.caption]
        handlers.stop(ME)
        *_, last = updates
    assert not last[c.stop].visible
    assert "Stopped" in last[c.caption]
    assert c.prepared not in last


def tell(job, done: int, total: int) -> None:
    job.report("Encoding", done / total)


def test_too_many_pictures_are_refused(handlers, inputs, look, cat):
    with pytest.raises(DinovizError, match=str(MAX_PICTURES)):
        open_looks(handlers.bench, handlers.bench.look, [cat] * (MAX_PICTURES + 1), *inputs[1:])


@pytest.mark.parametrize("shown", ["component 11", "head 99", ""])
def test_a_map_that_does_not_exist_is_refused(handlers, look, shown):
    with pytest.raises(DinovizError, match="component 10"):
        draw(handlers.bench, [look], [], settings(shown=shown))


def test_the_current_picture_is_added_once():
    assert keep_picture("a", None) == ["a"]
    assert keep_picture("b", ["a"]) == ["a", "b"]
    assert keep_picture("a", ["a"]) == ["a"]
    assert keep_picture(None, None) is None
