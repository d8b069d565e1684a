"""The Depth tab: what it draws when, what the API refuses, and its progress."""

from dataclasses import asdict

import gradio as gr
import pytest

from dinoviz.ui.access import Settings
from dinoviz.ui.depth import probes
from dinoviz.ui.depth.controls import Drawn, layout
from dinoviz.ui.depth.handlers import Handlers
from dinoviz.ui.depth.state import ViewSettings
from dinoviz.ui.stale_answers import Requests
from dinoviz.ui.workbench import Workbench
from tests.ui.depth.tiny_probe import write_probe
from tests.ui.tab_handlers import ME, blocks, held, is_skipped, parameters

NAMES = "image model resolution points probe shown colours opacity raw sharp by_itself near far focal anyway above"
NO_POINTS = ("", [])


@pytest.fixture
def handlers(monkeypatch, tmp_path, cat) -> Handlers:
    monkeypatch.setenv("DINOVIZ_DEVICE", "cpu")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("DINOVIZ_RUNS", str(tmp_path / "runs"))
    bench = Workbench(Settings())
    with blocks(bench, cat) as bar:
        controls = layout(bench, bar)
        return Handlers(bench, controls, Requests(controls.redraw, controls.stamp))


@pytest.fixture
def probe(look, tmp_path) -> str:
    return write_probe(tmp_path / "probe.safetensors", look.backbone.weights_id)


@pytest.fixture
def redraw(handlers, inputs, look):
    """`draw_all` of the open tab. drawn, tried: states. settings: others than the defaults."""

    def call(probe, drawn=None, tried=None, points=NO_POINTS, **settings):
        state = [True, look.key, drawn or Drawn(), tried, ME]
        return handlers.draw_all("", *state, *inputs, points, probe, *values(**settings))

    return call


def values(**settings) -> list:
    return list((asdict(ViewSettings()) | settings).values())


@pytest.mark.parametrize("endpoint", ["depth", "depth_download"])
def test_the_api_has_these_parameters(handlers, endpoint):
    assert parameters(getattr(handlers, endpoint)) == NAMES


def test_what_has_not_changed_is_not_drawn_again(handlers, redraw, probe, inputs, look):
    c = handlers.controls
    first = redraw(probe)
    assert first[c.probe]["value"] == probe
    near, far = first[c.drawn].limits
    drawn = redraw(probe, first[c.drawn], near=near, far=far)[c.drawn]  # with the sliders as the app has set them
    assert is_skipped(redraw(probe, drawn, near=near, far=far))
    coloured = redraw(probe, drawn, near=near, far=far, colours="turbo")
    assert coloured[c.view] is not None
    assert c.cloud not in coloured, "the points do not depend on it"
    cut = redraw(probe, drawn, near=near, far=far - 0.5)
    assert cut[c.by_itself] is False
    assert c.cloud in cut
    assert is_skipped(handlers.draw_all("", False, look.key, drawn, None, ME, *inputs, NO_POINTS, probe, *values()))
    emptied = handlers.draw_all("", False, "another", drawn, None, ME, *inputs, NO_POINTS, probe, *values())
    assert emptied[c.view] is emptied[c.drawn].look is None


def test_a_model_without_a_probe_is_named(handlers, redraw, look):
    c = handlers.controls
    empty = redraw(None)
    assert look.backbone.name in empty[c.caption]
    assert empty[c.view] is None
    assert not empty[c.anyway].visible


def test_points_are_measured_and_belong_to_a_picture(handlers, redraw, probe, inputs, look):
    c = handlers.controls
    drawn = redraw(probe)[c.drawn]

    def click(points, x, y):
        event = gr.SelectData(None, {"index": [x, y], "value": None})
        return handlers.click_point("", event, ME, drawn, *inputs, points, probe, *values())[c.points]

    one = click(NO_POINTS, 10, 10)
    two = click(one, 50, 60)
    assert (len(one[1]), len(two[1])) == (1, 2)
    assert len(click(two, 5, 5)[1]) == 1, "a third one begins anew"
    assert len(click(("another picture", [[1, 1]]), 5, 5)[1]) == 1
    cleared = handlers.clear_points("", ME, drawn, *inputs, two, probe, *values())
    assert cleared[c.points] == (look.picture.digest, [])
    assert cleared[c.drawn].map is None, "another handler wrote"
    assert redraw(probe, points=("another picture", [[1, 1]]))[c.points] == (look.picture.digest, [])


def test_a_pass_has_progress_and_can_be_stopped(handlers, redraw, inputs, look, tmp_path, monkeypatch):
    c = handlers.controls
    probe = write_probe(tmp_path / "large.safetensors", look.backbone.weights_id, resolution=224)
    pending = redraw(probe)[c.pending]
    assert pending == probes.key(look, probe)
    encode = handlers.bench.features
    with held() as work:
        monkeypatch.setattr(handlers.bench, "features", lambda *_, **__: work(_[-1]))
        updates = handlers.prepare(pending, *inputs, probe, False, ME)
        busy = next(updates)
        assert busy[c.stop].visible
        assert "224 px" in busy[c.caption]
        handlers.stop(ME)
        *_, last = updates
    assert not last[c.stop].visible
    assert "Stopped" in last[c.caption]
    assert is_skipped(redraw(probe, tried=last[c.tried])[c.pending]), "it waits until the probe is selected again"
    monkeypatch.setattr(handlers.bench, "features", encode)
    *_, last = handlers.prepare(pending, *inputs, probe, False, ME)
    assert last[c.prepared] > 0
    assert redraw(probe)[c.view] is not None


def test_a_prediction_that_fails_leaves_the_map(handlers, inputs, look):
    c, name = handlers.controls, "facebook/dpt-dinov2-small-nyu"  # cannot be downloaded here
    *_, last = handlers.prepare(probes.key(look, name), *inputs, name, False, ME)
    assert name in last[c.caption]
    assert last[c.tried] == probes.key(look, name)
    assert c.view not in last


def test_a_download_of_the_page_runs_no_network(handlers, inputs, look, tmp_path):
    probe = write_probe(tmp_path / "large.safetensors", look.backbone.weights_id, resolution=224)
    assert is_skipped(handlers.save(*inputs, NO_POINTS, probe, *values()))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"points": "[[1, 2, 3]]"}, "two"),
        ({"points": "[[9999, 5]]"}, "outside"),
        ({"by_itself": False, "near": 5, "far": 2}, "near 5"),
        ({"focal": 2, "shown": "surface normals"}, "2"),
        ({"shown": "height"}, "height"),
        ({"probe": "/etc/hostname"}, "hostname"),
        ({"probe": ""}, "probe"),
    ],
)
def test_a_wrong_argument_is_refused(handlers, inputs, probe, changes, name):
    arguments = [*inputs, changes.get("points", "[]"), changes.get("probe", probe)]
    settings = {key: value for key, value in changes.items() if key not in ("points", "probe")}
    with pytest.raises(gr.Error, match=name):
        handlers.depth(*arguments, *values(**settings))


def test_the_endpoint_measures(handlers, inputs, probe):
    picture, caption, readout = handlers.depth(*inputs, "[[100, 200], [400, 280]]", probe, *values(focal=None))
    assert picture.size == handlers.bench.picture(inputs[0]).shown.size
    assert "layers 1, 3" in caption
    assert "from A to B" in readout
