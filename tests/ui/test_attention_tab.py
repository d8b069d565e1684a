"""The Attention tab: its queries, what it draws when, and its progress."""

import gradio as gr
import pytest

from dinoviz import attention
from dinoviz.attention import ROLLOUT, map_names
from dinoviz.errors import DinovizError
from dinoviz.ui.access import Settings
from dinoviz.ui.attention_controls import Drawn, layout
from dinoviz.ui.attention_tab import Handlers
from dinoviz.ui.attention_views import moved_query, parse_query, rollout_key
from dinoviz.ui.stale_answers import Requests
from dinoviz.ui.workbench import Workbench
from tests.ui.tab_handlers import ME, blocks, held, is_skipped, parameters

NAMES = "image model resolution layer shown query colormap opacity raw mass"


@pytest.fixture
def handlers(monkeypatch, cat) -> Handlers:
    monkeypatch.setenv("DINOVIZ_DEVICE", "cpu")
    bench = Workbench(Settings())
    with blocks(bench, cat) as bar:
        controls = layout(bar)
        return Handlers(bench, controls, Requests(controls.redraw, controls.stamp))


def values(shown="mean of heads", query="CLS", layer=3) -> list:
    return [layer, shown, query, "inferno", 0.7, False, 1.0]


@pytest.mark.parametrize("endpoint", ["attention", "attention_download"])
def test_the_api_has_these_parameters(handlers, endpoint):
    assert parameters(getattr(handlers, endpoint)) == NAMES


@pytest.mark.parametrize(
    ("text", "patch"), [("CLS", None), (" cls ", None), ("", None), ("0, 0", (0, 0)), ("450.5, 299", (7, 11))]
)
def test_a_query_is_cls_or_a_patch(look, text, patch):
    assert parse_query(look, text) == patch


@pytest.mark.parametrize("text", ["here", "1", "1, 2, 3", "9999, 1", "nan, 1"])
def test_a_query_that_is_no_place_in_the_picture_is_refused(look, text):
    with pytest.raises(DinovizError):
        parse_query(look, text)


@pytest.mark.parametrize(
    ("query", "step", "patch"),
    [("CLS", "1,0", (4, 6)), ("0, 0", "1,0", (0, 1)), ("0, 0", "-1,-1", (0, 0)), ("450, 299", "0,1", (7, 11))],
)
def test_arrow_keys_move_the_query_within_the_grid(look, query, step, patch):
    assert parse_query(look, moved_query(look, query, f"{step},123")) == patch


def test_only_the_open_tab_is_drawn(handlers, inputs, look):
    c = handlers.controls
    drawn = handlers.draw_all("", True, look.key, Drawn(), ME, *inputs, *values())
    assert drawn[c.drawn] == Drawn(look.key, look.picture.digest, look.backbone.layers, look.backbone.layers)
    assert drawn[c.heat].size == look.picture.shown.size
    assert is_skipped(handlers.draw_all("", False, look.key, drawn[c.drawn], ME, *inputs, *values()))
    emptied = handlers.draw_all("", False, "another", drawn[c.drawn], ME, *inputs, *values())
    assert emptied[c.drawn].look is emptied[c.heat] is None
    assert handlers.draw_all("", True, None, Drawn(), ME, *inputs, *values())[c.heat] is None


def test_the_controls_follow_the_model(handlers, inputs, look):
    c = handlers.controls
    drawn = handlers.draw_all("", True, look.key, Drawn(), ME, *inputs, *values("head 99", "9999, 1", layer=12))
    assert drawn[c.layer].maximum == drawn[c.layer].value == look.backbone.layers
    assert [name for name, _ in drawn[c.shown].choices] == map_names(look.backbone.heads)
    assert drawn[c.shown].value == "mean of heads"
    assert drawn[c.query] == "CLS"


def test_a_click_moves_the_query_and_leaves_a_map_without_one(handlers, inputs, look):
    c = handlers.controls
    click = gr.SelectData(None, {"index": [0, 0], "value": None})
    answer = handlers.click_patch("", click, ME, *inputs, *values("patch norms"))
    assert (answer[c.query], answer[c.shown]) == ("0, 0", "mean of heads")
    assert handlers.click_cls("", ME, *inputs, *values(query="0, 0"))[c.query] == "CLS"
    assert handlers.click_head("", click, ME, *inputs, *values())[c.shown] == "head 1"
    assert is_skipped(handlers.move_query("", "1,0,5", ME, *inputs, *values("patch norms")))
    assert "row 1, column 2" in handlers.move_query("", "1,0,5", ME, *inputs, *values(query="0, 0"))[c.caption]


def test_the_rollout_has_progress_and_can_be_stopped(handlers, inputs, look, monkeypatch):
    c = handlers.controls
    pending = handlers.draw_all("", True, look.key, Drawn(), ME, *inputs, *values(ROLLOUT))[c.pending]
    assert pending == rollout_key(look)
    with held() as work:
        monkeypatch.setattr(attention, "rollout", lambda features, progress: work(progress))
        updates = handlers.prepare(pending, *inputs, ME)
        busy = next(updates)
        assert busy[c.stop].visible
        assert "dv-busy" in busy[c.caption]
        handlers.stop(ME)
        *_, last = updates
        assert not last[c.stop].visible
        assert "Stopped" in last[c.caption]


def test_the_rollout_is_drawn_once_it_is_computed(handlers, inputs, look):
    c = handlers.controls
    *_, last = handlers.prepare(rollout_key(look), *inputs, ME)
    assert last[c.prepared] > 0
    drawn = handlers.draw_all("", True, look.key, Drawn(), ME, *inputs, *values(ROLLOUT))
    assert ROLLOUT in drawn[c.caption]


def test_another_map_ends_the_rollout(handlers, inputs, look, monkeypatch):
    c = handlers.controls
    with held() as work:
        monkeypatch.setattr(attention, "rollout", lambda features, progress: work(progress))
        updates = handlers.prepare(rollout_key(look), *inputs, ME)
        next(updates)
        (idle,) = handlers.prepare(None, *inputs, ME)
        assert not idle[c.stop].visible
        assert all(c.prepared not in update and "Stopped" not in str(update) for update in updates)
