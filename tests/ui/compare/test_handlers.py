"""The Compare tab: what it draws when, what the API refuses, and its progress."""

import json
from dataclasses import astuple, replace
from functools import partial

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from dinoviz import compare, render
from dinoviz.ui.access import Settings
from dinoviz.ui.compare import knn
from dinoviz.ui.compare.controls import layout
from dinoviz.ui.compare.handlers import Handlers
from dinoviz.ui.compare.state import AS_A, Inputs, ViewSettings
from dinoviz.ui.workbench import Workbench
from tests.ui.tab_handlers import ME, blocks, held, is_skipped, parameters

NAMES = "image model_a resolution_a model_b resolution_b view layer heads scale colours foreground raw opacity marks"
VIEW = ViewSettings()


@pytest.fixture
def handlers(monkeypatch, inputs) -> Handlers:
    monkeypatch.setenv("DINOVIZ_DEVICE", "cpu")
    bench = Workbench(Settings())
    with blocks(bench, inputs.image) as bar:
        return Handlers(bench, layout(bench, bar))


@pytest.fixture
def inputs(tmp_path, chelsea, tiny_folders) -> Inputs:
    """A picture, 8 x 12 patches of 14 px for A, 4 x 6 of 16 px for B."""
    chelsea.save(tmp_path / "cat.png")
    return Inputs(str(tmp_path / "cat.png"), str(tiny_folders["dinov2"]), "112", str(tiny_folders["vit"]), "64")


def test_the_api_has_these_parameters(handlers):
    assert parameters(handlers.compare) == NAMES


def test_b_may_have_the_resolution_of_a(inputs):
    assert [resolution for _, resolution in inputs.sides] == ["112", "64"]
    assert [resolution for _, resolution in replace(inputs, resolution_b=AS_A).sides] == ["112", "112"]
    assert inputs.complete
    assert not replace(inputs, model_b=None).complete


def test_both_sides_are_encoded_and_drawn(handlers, inputs):
    c = handlers.controls
    waiting = handlers.draw_all(True, None, {}, *astuple(inputs), "{}", *astuple(VIEW))
    assert waiting == {c.pending: astuple(inputs)}
    *_, last = handlers.prepare(waiting[c.pending], ME)
    assert last[c.errors] == {}
    assert last[c.prepared] > 0
    drawn = handlers.draw_all(True, None, {}, *astuple(inputs), "{}", *astuple(VIEW))
    assert drawn[c.picture_a].size == drawn[c.picture_b].size
    assert "8 x 12 patches" in drawn[c.caption_a]
    assert "4 x 6 patches" in drawn[c.caption_b]
    assert is_skipped(handlers.draw_all(False, drawn[c.drawn], {}, *astuple(inputs), "{}", *astuple(VIEW)))
    again = handlers.draw_all(True, drawn[c.drawn], {}, *astuple(inputs), "{}", *astuple(replace(VIEW, raw=True)))
    assert c.heads not in again, "the lists are those of these models"


def test_a_side_that_fails_leaves_the_other(handlers, inputs):
    c, inputs = handlers.controls, replace(inputs, model_b="dinov9")
    *_, last = handlers.prepare(astuple(inputs), ME)
    drawn = handlers.draw_all(True, None, last[c.errors], *astuple(inputs), "{}", *astuple(VIEW))
    assert drawn[c.picture_a] is not None
    assert drawn[c.picture_b] is drawn[c.slider] is None
    assert "dinov9" in drawn[c.caption_b]


def test_without_two_models_there_is_nothing_to_draw(handlers, inputs):
    c = handlers.controls
    empty = handlers.draw_all(True, None, {}, *astuple(replace(inputs, model_b=None)), "{}", *astuple(VIEW))
    assert not empty[c.results].visible
    assert empty[c.drawn] is empty[c.pending] is None


def test_encoding_can_be_stopped(handlers, inputs, monkeypatch):
    c = handlers.controls
    with held() as work:
        monkeypatch.setattr(handlers.bench, "look", lambda path, model, resolution, job, part: work(partial(tell, job)))
        updates = handlers.prepare(astuple(inputs), ME)
        assert next(updates)[c.stop].visible
        handlers.stop(ME)
        *_, last = updates
    assert not last[c.stop].visible
    assert len(last[c.errors]) == 2
    assert all("Stopped" in error for error in last[c.errors].values())


def tell(job, done: int, total: int) -> None:
    job.report("Encoding", done / total)


def test_the_knn_accuracy_can_be_stopped(handlers, inputs, monkeypatch):
    with held() as work:
        monkeypatch.setattr(knn, "measure", lambda bench, cache, names, job: work(partial(tell, job)))
        updates = handlers.measure_knn(inputs.model_a, inputs.model_b, ME)
        assert next(updates)[1].visible
        handlers.stop_knn(ME)
        *_, (text, stop) = updates
    assert "Stopped" in text
    assert not stop.visible


@pytest.mark.parametrize("view", ["attention", "patch PCA", "segmentation"])
def test_the_endpoint_draws_every_view(handlers, inputs, view):
    marks = json.dumps([{"kind": "point", "x": 225, "y": 150, "label": 1}])
    a, b, caption_a, caption_b, agreement = handlers.compare(
        *astuple(inputs), *astuple(replace(VIEW, view=view)), marks
    )
    assert a.size == b.size
    assert "8 x 12 patches" in caption_a
    assert "4 x 6 patches" in caption_b
    assert {"attention": "CKA", "patch PCA": "variance", "segmentation": "IoU"}[view] in agreement


def test_the_endpoint_draws_what_the_library_draws(handlers, inputs):
    settings = replace(VIEW, view="patch PCA", layer="2/3", colours="joint", foreground=False, opacity=1)
    drawn = handlers.compare(*astuple(inputs), *astuple(settings))[1]
    looks = [handlers.bench.look(inputs.image, *side) for side in inputs.sides]
    _, colours, _ = compare.joint_colours(*[look.features for look in looks], method="joint",
                                          layers=(1, 0), foreground=False)  # fmt: skip
    expected = render.map_picture(looks[1].picture.shown, looks[1].features.grid, colours, opacity=1)
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(expected))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"model_b": "dinov9"}, "dinov9"),
        ({"model_b": None}, "two models"),
        ({"image": None}, "picture"),
        ({"marks": "{"}, "JSON"),
        ({"view": "depth"}, "depth"),
        ({"opacity": 2}, "2"),
        ({"image": "long.png"}, "long.png"),
    ],
)
def test_a_wrong_argument_is_refused(handlers, inputs, tmp_path, changes, name):
    Image.new("RGB", (60_000, 8)).save(tmp_path / "long.png")
    if changes.get("image"):
        changes = {"image": str(tmp_path / changes["image"])}
    arguments = dict(zip(NAMES.split(), (*astuple(inputs), *astuple(VIEW), "[]"), strict=True))
    with pytest.raises(gr.Error, match=name):
        handlers.compare(**arguments | changes)


@pytest.mark.parametrize(("name", "value"), [("layer", "first"), ("heads", "head 99")])
def test_what_one_side_cannot_draw_is_in_its_caption(handlers, inputs, name, value):
    assert value in handlers.compare(*astuple(inputs), *astuple(replace(VIEW, **{name: value})))[2]
