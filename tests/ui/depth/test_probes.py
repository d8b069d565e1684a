"""What is offered to tell depth, to whom, and what is refused."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import safetensors
import safetensors.torch

from dinoviz import depth
from dinoviz.depth import dpt as published_depth
from dinoviz.depth import heads as depth_heads
from dinoviz.depth.probe import ProbeError
from dinoviz.ui.access import Settings
from dinoviz.ui.depth import probes as depth_probes
from dinoviz.ui.workbench import Workbench
from tests import tiny_dpt
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


def write_probe(path, weights_id: str, resolution: int = 112) -> str:
    about = {
        "version": 1, "backbone": "tiny", "weights_id": weights_id, "head": "linear", "layers": [0, 2], "channels": 96,
        "resolution": resolution, "depth": [0.5, 8.0], "bins": 16, "upsample": 2, "metrics": {"test": {"rmse": 0.7}},
        "data": {"folder": "<rooms>"},
    }  # fmt: skip
    depth.save_probe(path, depth_heads.make(about), about)
    return str(path)


def make_run(name: str, weights_id: str) -> str:
    run = Run.create(name, "probe", {})
    run.export_folder.mkdir()
    return write_probe(depth.probe_file(run.folder), weights_id)


def test_probes_of_these_weights_are_on_offer_and_no_others(bench, look):
    mine = make_run("mine", look.backbone.weights_id)
    make_run("of-others", "other weights")
    damaged = Run.create("damaged", "probe", {})
    damaged.export_folder.mkdir()
    depth.probe_file(damaged.folder).write_bytes(b"nonsense")
    Run.create("unfinished", "probe", {})
    assert depth_probes.offers(bench, look) == [("mine (trained here)", mine)]
    public = Workbench(Settings(public=True))
    assert depth_probes.offers(public, look) == []


def test_a_reading_is_the_probes_depth_and_says_whose(bench, look, tmp_path):
    path = write_probe(tmp_path / "a.safetensors", look.backbone.weights_id)
    reading = depth_probes.read(bench, look, path)
    np.testing.assert_array_equal(reading.depth.metres, depth.look(look.features, depth.open_probe(path)).metres)
    assert reading.range == (0.5, 8.0)
    assert "linear probe</b> on layers 1, 3 of" in reading.source
    assert "off by 0.70 m (RMSE)" in reading.source
    assert "&lt;rooms&gt;" in reading.source, "a header says what it likes, and is no HTML"
    assert depth_probes.read(bench, look, path) is reading
    assert depth_probes.is_ready(bench, look, path)


def test_the_network_runs_at_the_probes_resolution_once_unless_one_wants_the_other(bench, look, tmp_path, monkeypatch):
    path = write_probe(tmp_path / "a.safetensors", look.backbone.weights_id, resolution=224)
    assert not depth_probes.is_ready(bench, look, path)
    assert depth_probes.is_ready(bench, look, path, above=True)
    trained = depth_probes.read(bench, look, path)
    expected = depth.look(look.backbone.encode(look.picture.image, 224, (0, 2)), depth.open_probe(path))
    np.testing.assert_allclose(trained.depth.metres, expected.metres, atol=1e-5)
    assert trained.depth.grid.model_size[1] == 224
    assert depth_probes.is_ready(bench, look, path)
    monkeypatch.setattr(look.backbone, "encode", None)
    assert depth_probes.read(bench, look, path) is trained
    above = depth_probes.read(bench, look, path, above=True)
    np.testing.assert_array_equal(above.depth.metres, depth.look(look.features, depth.open_probe(path)).metres)


def test_a_file_that_was_written_anew_is_read_anew(bench, look, tmp_path):
    path = write_probe(tmp_path / "a.safetensors", look.backbone.weights_id)
    before = depth_probes.read(bench, look, path)
    write_probe(tmp_path / "a.safetensors", look.backbone.weights_id)  # other random weights
    assert np.abs(depth_probes.read(bench, look, path).depth.metres - before.depth.metres).max() > 0


def test_what_cannot_tell_depth_is_refused_in_a_sentence(bench, look, tmp_path):
    other = write_probe(tmp_path / "other.safetensors", "other weights")
    with pytest.raises(ProbeError, match="was trained on the features of tiny"):
        depth_probes.read(bench, look, other)
    with pytest.raises(ProbeError, match="was trained on the features of tiny"):
        depth_probes.is_ready(bench, look, other)
    assert not depth_probes.fits(bench, look, other)
    for path in (tmp_path / "nothing.safetensors", tmp_path):
        with pytest.raises(ProbeError, match="holds no depth probe"):
            depth_probes.read(bench, look, str(path))
        assert not depth_probes.fits(bench, look, str(path))


def test_on_a_public_page_no_file_is_opened_that_is_not_on_offer(look, tmp_path, monkeypatch):
    path = write_probe(tmp_path / "a.safetensors", look.backbone.weights_id)
    public = Workbench(Settings(public=True))
    opened, open_probe = [], depth.open_probe
    monkeypatch.setattr(depth, "open_probe", lambda path: opened.append(str(path)) or open_probe(path))
    for chosen in (path, "/etc/hostname", "facebook/dpt-dinov2-giant-nyu"):
        with pytest.raises(ProbeError, match="no such probe here"):
            depth_probes.read(public, look, chosen)
    assert set(opened) <= {str(depth.SHIPPED)}


def test_a_published_network_waits_to_be_asked(bench, look):
    name = "facebook/dpt-dinov2-small-nyu"
    assert depth_probes.is_published(name)
    assert depth_probes.fits(bench, look, name)
    assert not depth_probes.is_ready(bench, look, name)
    assert "Train one in the Train tab" in depth_probes.none_here(look)


def test_a_published_network_predicts_depth_of_its_own(bench, look, monkeypatch, tmp_path):
    name = "facebook/dpt-dinov2-small-kitti"  # trained on pictures whose short side has 375 pixels
    tiny_dpt.in_the_hubs_cache(monkeypatch, tiny_dpt.save(tmp_path / "tiny"), name, tmp_path / "hub")
    reading = depth_probes.read(bench, look, name)
    metres = published_depth.load(name).predict(look.picture.shown, 375)
    np.testing.assert_allclose(reading.depth.metres, metres, atol=1e-5)
    assert metres.std() > 0.1  # it depends on the picture
    assert reading.depth.patches.shape == look.features.grid.shape
    assert reading.depth.spread is None
    assert reading.range == (0.001, 80.0)
    assert "375 px" in reading.source
    assert depth_probes.is_ready(bench, look, name)


def test_what_a_published_network_says_of_itself_is_no_html(bench, look, monkeypatch, tmp_path):
    network = published_depth.load(tiny_dpt.save(tmp_path / "tiny-nyu"))
    monkeypatch.setattr(published_depth, "load", lambda name: replace(network, source="published <somewhere>"))
    assert "&lt;somewhere&gt;" in depth_probes.read(bench, look, "facebook/dpt-dinov2-small-nyu").source


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
def test_a_bad_probe_takes_no_other_from_the_list(values, bench, look):
    spoil(make_run("bad", look.backbone.weights_id), **values)
    mine = make_run("mine", look.backbone.weights_id)
    assert depth_probes.offers(bench, look) == [("mine (trained here)", mine)]
    assert depth_probes.read(bench, look, mine).range == (0.5, 8.0)
    with pytest.raises(ProbeError):
        depth_probes.read(bench, look, mine.replace("mine", "bad"))


@pytest.mark.parametrize("values", [{"metrics": [1]}, {"metrics": {"test": {"rmse": "<b>"}}}, {"data": "rooms"}])
def test_what_a_header_says_of_its_training_may_be_anything(values, bench, look, tmp_path):
    path = write_probe(tmp_path / "a.safetensors", look.backbone.weights_id)
    spoil(path, **values)
    try:
        source = depth_probes.read(bench, look, path).source
    except ProbeError:  # the file may be refused as a whole, too
        return
    assert "linear probe</b> on layers" in source
    assert "<b>," not in source


@pytest.mark.timeout(10)
def test_what_is_no_file_is_not_read(bench, look, tmp_path):
    """A FIFO would wait for ever, a device has no end, and 2 GB are no probe."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2 * 10**9)
    for path in ("/dev/zero", tmp_path / "fifo", tmp_path / "loop", tmp_path / "large", tmp_path, "a\0b"):
        for ask in (depth_probes.read, depth_probes.is_ready, lambda *asked: depth_probes.key(*asked[1:])):
            with pytest.raises(ProbeError):
                ask(bench, look, str(path))
        assert not depth_probes.fits(bench, look, str(path))
    public = Workbench(Settings(public=True))
    with pytest.raises(ProbeError, match="no such probe here"):
        depth_probes.is_ready(public, look, write_probe(tmp_path / "a.safetensors", look.backbone.weights_id))
