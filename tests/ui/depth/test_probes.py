"""Which depth probes are listed for a look, what they predict, and what is refused."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import safetensors
import safetensors.torch

from dinoviz import depth
from dinoviz.depth import dpt
from dinoviz.depth.probe import ProbeError
from dinoviz.ui.access import Settings
from dinoviz.ui.depth import probes
from dinoviz.ui.workbench import Workbench
from tests import tiny_dpt
from tests.ui.depth.tiny_probe import make_run, write_probe
from training.runs.run import Run


@pytest.fixture
def bench(monkeypatch, tmp_path) -> Workbench:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("DINOVIZ_RUNS", str(tmp_path / "runs"))
    return Workbench(Settings())


@pytest.fixture
def look(bench, tiny_folders, tmp_path, chelsea):
    chelsea.save(tmp_path / "cat.png")
    return bench.look(str(tmp_path / "cat.png"), str(tiny_folders["dinov2"]), 112)


def test_probes_of_these_weights_are_listed_and_no_others(bench, look):
    mine = make_run("mine", look.backbone.weights_id)
    make_run("of-others", "other weights")
    damaged = Run.create("damaged", "probe", {})
    damaged.export_folder.mkdir()
    depth.probe_file(damaged.folder).write_bytes(b"nonsense")
    Run.create("unfinished", "probe", {})
    assert probes.choices(bench, look) == [("mine (trained here)", mine)]
    public = Workbench(Settings(public=True))
    assert probes.choices(public, look) == []


def test_a_prediction_is_the_probes_depth_with_its_source(bench, look, tmp_path):
    path = write_probe(tmp_path / "a.safetensors", look.backbone.weights_id)
    prediction = probes.predict(bench, look, path)
    np.testing.assert_array_equal(prediction.depth.metres, depth.look(look.features, depth.open_probe(path)).metres)
    assert prediction.range == (0.5, 8.0)
    for part in ("linear probe", "layers 1, 3 of", "0.70 m"):
        assert part in prediction.source
    assert "&lt;rooms&gt;" in prediction.source, "a header may hold anything, and is escaped"
    assert probes.predict(bench, look, path) is prediction
    assert probes.is_ready(bench, look, path)


def test_the_network_runs_once_at_the_probes_training_resolution(bench, look, tmp_path, monkeypatch):
    path = write_probe(tmp_path / "a.safetensors", look.backbone.weights_id, resolution=224)
    assert not probes.is_ready(bench, look, path)
    assert probes.is_ready(bench, look, path, above=True)
    trained = probes.predict(bench, look, path)
    expected = depth.look(look.backbone.encode(look.picture.image, 224, (0, 2)), depth.open_probe(path))
    np.testing.assert_allclose(trained.depth.metres, expected.metres, atol=1e-5)
    assert trained.depth.grid.model_size[1] == 224
    assert probes.is_ready(bench, look, path)
    monkeypatch.setattr(look.backbone, "encode", None)
    assert probes.predict(bench, look, path) is trained
    above = probes.predict(bench, look, path, above=True)
    np.testing.assert_array_equal(above.depth.metres, depth.look(look.features, depth.open_probe(path)).metres)


def test_a_file_that_was_rewritten_is_read_again(bench, look, tmp_path):
    path = write_probe(tmp_path / "a.safetensors", look.backbone.weights_id)
    before = probes.predict(bench, look, path)
    write_probe(tmp_path / "a.safetensors", look.backbone.weights_id)  # other random weights
    assert np.abs(probes.predict(bench, look, path).depth.metres - before.depth.metres).max() > 0


@pytest.mark.parametrize(
    ("name", "cause"), [("other.safetensors", "tiny"), ("nothing.safetensors", "nothing.safetensors"), (".", "probe")]
)
def test_what_is_no_probe_of_these_weights_is_refused(bench, look, tmp_path, name, cause):
    write_probe(tmp_path / "other.safetensors", "other weights")
    for ask in (probes.predict, probes.is_ready):
        with pytest.raises(ProbeError, match=cause):
            ask(bench, look, str(tmp_path / name))
    assert not probes.is_compatible(bench, look, str(tmp_path / name))


def test_on_a_public_page_no_file_is_opened_that_is_not_listed(look, tmp_path, monkeypatch):
    path = write_probe(tmp_path / "a.safetensors", look.backbone.weights_id)
    public = Workbench(Settings(public=True))
    opened, open_probe = [], depth.open_probe
    monkeypatch.setattr(depth, "open_probe", lambda path: opened.append(str(path)) or open_probe(path))
    for chosen in (path, "/etc/hostname", "facebook/dpt-dinov2-giant-nyu"):
        with pytest.raises(ProbeError):
            probes.predict(public, look, chosen)
    assert set(opened) <= {str(depth.SHIPPED)}


def test_a_published_network_is_used_only_where_it_was_selected(bench, look):
    name = "facebook/dpt-dinov2-small-nyu"
    assert probes.is_published(name)
    assert probes.is_compatible(bench, look, name)
    assert not probes.is_ready(bench, look, name)
    assert probes.selected(bench, look, None) is None
    assert probes.selected(bench, look, name) == name
    assert look.backbone.name in probes.no_probe(look)


def test_the_first_probe_is_selected_where_the_last_one_does_not_fit(bench, look, tmp_path):
    with pytest.raises(ProbeError, match=look.backbone.name):
        probes.first(bench, look)
    mine = make_run("mine", look.backbone.weights_id)
    other = write_probe(tmp_path / "other.safetensors", "other weights")
    assert probes.first(bench, look) == mine
    assert probes.selected(bench, look, None) == probes.selected(bench, look, other) == mine
    typed = write_probe(tmp_path / "typed.safetensors", look.backbone.weights_id)
    assert probes.selected(bench, look, typed) == typed
    assert probes.selected(Workbench(Settings(public=True)), look, typed) is None


def test_a_published_network_predicts_depth_without_the_looks_features(bench, look, monkeypatch, tmp_path):
    name = "facebook/dpt-dinov2-small-kitti"  # trained on pictures whose short side has 375 pixels
    tiny_dpt.in_the_hubs_cache(monkeypatch, tiny_dpt.save(tmp_path / "tiny"), name, tmp_path / "hub")
    prediction = probes.predict(bench, look, name)
    metres = dpt.load(name).predict(look.picture.shown, 375)
    np.testing.assert_allclose(prediction.depth.metres, metres, atol=1e-5)
    assert metres.std() > 0.1  # it depends on the picture
    assert prediction.depth.patches.shape == look.features.grid.shape
    assert prediction.depth.spread is None
    assert prediction.range == (0.001, 80.0)
    assert "375 px" in prediction.source
    assert probes.is_ready(bench, look, name)


def test_the_source_of_a_published_network_is_escaped(bench, look, monkeypatch, tmp_path):
    network = dpt.load(tiny_dpt.save(tmp_path / "tiny-nyu"))
    monkeypatch.setattr(dpt, "load", lambda name: replace(network, source="published <somewhere>"))
    assert "&lt;somewhere&gt;" in probes.predict(bench, look, "facebook/dpt-dinov2-small-nyu").source


def spoil(path, **values) -> None:
    """Write other values into the header of a probe's file."""
    with safetensors.safe_open(path, "pt") as opened:
        weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, it is no dictionary
        about = json.loads(opened.metadata()["probe"])
    safetensors.torch.save_file(weights, path, metadata={"probe": json.dumps(about | values)})


@pytest.mark.parametrize(
    "values",
    [
        {"resolution": float("inf")},
        {"resolution": 10**400},
        {"weights_id": []},
        {"depth": ["a", "b"]},
        {"upsample": 1e9},
    ],
)
def test_a_bad_probe_leaves_the_others_in_the_list(values, bench, look):
    spoil(make_run("bad", look.backbone.weights_id), **values)
    mine = make_run("mine", look.backbone.weights_id)
    assert probes.choices(bench, look) == [("mine (trained here)", mine)]
    assert probes.predict(bench, look, mine).range == (0.5, 8.0)
    with pytest.raises(ProbeError):
        probes.predict(bench, look, mine.replace("mine", "bad"))


@pytest.mark.parametrize("values", [{"metrics": [1]}, {"metrics": {"test": {"rmse": "<b>"}}}, {"data": "rooms"}])
def test_the_training_in_a_header_may_be_anything(values, bench, look, tmp_path):
    path = write_probe(tmp_path / "a.safetensors", look.backbone.weights_id)
    spoil(path, **values)
    try:
        source = probes.predict(bench, look, path).source
    except ProbeError:  # the file may be refused as a whole, too
        return
    assert "linear" in source
    assert "<b>," not in source


@pytest.mark.timeout(10)
def test_only_regular_files_of_a_probes_size_are_read(bench, look, tmp_path):
    """A FIFO would block, a device has no end, and 2 GB are no probe."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2 * 10**9)
    for path in ("/dev/zero", tmp_path / "fifo", tmp_path / "loop", tmp_path / "large", tmp_path, "a\0b"):
        for ask in (probes.predict, probes.is_ready, lambda *asked: probes.key(*asked[1:])):
            with pytest.raises(ProbeError):
                ask(bench, look, str(path))
        assert not probes.is_compatible(bench, look, str(path))
    public = Workbench(Settings(public=True))
    with pytest.raises(ProbeError):
        probes.is_ready(public, look, write_probe(tmp_path / "a.safetensors", look.backbone.weights_id))
