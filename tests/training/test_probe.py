"""The depth probe learns depth, says how well in the published figures, goes on where it ended, and is one file."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import dinoviz
from dinoviz import depth as dp
from dinoviz.depth import heads as depth_heads
from dinoviz.errors import DinovizError
from dinoviz.grid import PatchGrid
from training import probe as pb
from training.config.tasks import ProbeConfig
from training.depth.cached_features import Encoded, View, views_of
from training.depth.fitting import DepthFitting
from training.depth.losses import gradient_loss, scale_invariant_loss
from training.depth.rgbd import counts, depth_errors, find_pairs
from training.runs.run import Run, RunError


def test_the_loss_is_the_published_one_and_forgives_scale():
    rng = np.random.default_rng(0)
    predicted, depth = rng.uniform(1, 9, (2, 4, 5)), rng.uniform(1, 9, (2, 4, 5))
    valid = rng.uniform(size=(2, 4, 5)) < 0.7
    g = [np.log(p + 0.001) - np.log(t + 0.001) for p, t in zip(predicted[valid], depth[valid], strict=True)]
    mean = sum(g) / len(g)
    variance = sum((each - mean) ** 2 for each in g) / (len(g) - 1)
    loss = scale_invariant_loss(*map(torch.from_numpy, (predicted, depth, valid)))
    assert float(loss) == pytest.approx((variance + 0.15 * mean**2) ** 0.5, abs=1e-12)
    twice = scale_invariant_loss(*map(torch.from_numpy, (2 * depth, depth, valid)))
    assert float(twice) == pytest.approx(0.15**0.5 * np.log(2), rel=1e-3)


def test_the_gradient_loss_agrees_with_plain_loops():
    rng = np.random.default_rng(1)
    predicted, depth = rng.uniform(1, 9, (2, 16, 15)), rng.uniform(1, 9, (2, 16, 15))
    valid = rng.uniform(size=(2, 16, 15)) < 0.8
    expected = 0.0
    for stride in (1, 2, 4, 6):
        rows, columns = range(0, 16, stride), range(0, 15, stride)
        total, known = 0.0, 0
        for b in range(2):
            at = {
                (i, j): np.log(predicted[b, y, x] + 0.001) - np.log(depth[b, y, x] + 0.001)
                for i, y in enumerate(rows)
                for j, x in enumerate(columns)
                if valid[b, y, x]
            }
            known += len(at)
            for (i, j), g in at.items():
                total += sum(abs(g - at[other]) for other in ((i + 2, j), (i, j + 2)) if other in at)
        expected += total / known
    found = gradient_loss(*map(torch.from_numpy, (predicted, depth, valid)))
    assert float(found) == pytest.approx(expected, abs=1e-12)
    assert float(gradient_loss(*map(torch.from_numpy, (2 * depth, depth, valid)))) < 0.01  # scale has no slope


def test_losses_of_a_perfect_or_an_empty_answer_have_gradients():
    depth = torch.full((1, 8, 8), 3.0)
    for valid in (depth > 0, depth < 0):
        predicted = depth.clone().requires_grad_()
        (scale_invariant_loss(predicted, depth, valid) + gradient_loss(predicted, depth, valid)).backward()
        assert torch.isfinite(predicted.grad).all()


def test_unknown_depth_adds_no_loss_and_no_error():
    config = ProbeConfig(gradient=0.5, metric=1.0, head="linear", bins=16, dropout=0.0)
    about = {"head": "linear", "channels": 6, "bins": 16, "depth": (0.001, 10.0), "upsample": 2}
    fitting = DepthFitting(depth_heads.make(about), config)
    patches, cls = torch.randn(2, 4, 4, 6), torch.randn(2, 6)
    depth = torch.nn.functional.interpolate(fitting.averaged(patches, cls)[0][:, None], (16, 16), mode="bilinear")[:, 0]
    depth[0, :8], depth[1, :, ::3] = 0, 0
    assert fitting.errors((patches, cls, depth)).max() < 0.05  # it may compute in bfloat16
    depth[1] = 0
    assert fitting.errors((patches, cls, depth)).shape == (1,)  # a picture without depth has no error
    assert fitting.step((patches, cls, depth), 0, 1)[0] < 0.05


def ramp(width: int = 64, height: int = 48) -> tuple[Image.Image, np.ndarray]:
    """A picture that is redder to the right, where it is farther; greener to the bottom."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    pixels = np.stack([255 * x / width, 255 * y / height, 0 * x], 2)
    return Image.fromarray(pixels.astype(np.uint8)), (1 + 4 * x / width).astype(np.float32)


@pytest.mark.parametrize("view", [View(), View(True), View(zoom=1.5, at=(1.0, 0.3)), View(True, 1.3, (0.2, 0.9))])
def test_picture_and_depth_of_a_view_stay_together(view):
    picture, depth = ramp()
    grid = PatchGrid.fit(picture.size, 56, 14)
    pixels, target = view.show(picture, depth, depth > 0, grid)
    assert target.shape == (16, 4 * grid.shape[1])
    red = torch.nn.functional.adaptive_avg_pool2d(pixels, target.shape)[0].numpy()
    np.testing.assert_allclose(target * view.zoom, 1 + 4 * red, atol=0.12)  # as far as the picture's red says
    assert (np.diff(target[8]) < 0).all() == view.flip


def test_unknown_depth_is_not_averaged():
    picture, depth = ramp()
    depth[10:30, 20:40] = 0
    grid = PatchGrid.fit(picture.size, 56, 14)
    _, target = View().show(picture, depth, depth > 0, grid)
    assert (target == 0).sum() > 10
    assert target[target > 0].min() > 1


def test_views_are_a_matter_of_the_seed_and_the_picture():
    config = ProbeConfig(crops=3, zoom=1.4)
    assert views_of(config, 4) == views_of(config, 4)
    assert views_of(config, 4) != views_of(config, 5)
    assert views_of(config, 4)[2:] != views_of(replace(config, seed=1), 4)[2:]
    assert views_of(config, 4)[:2] == [View(), View(flip=True)]
    assert not any(view.flip for view in views_of(replace(config, flip=False), 4))
    assert all(1 <= view.zoom <= 1.4 for view in views_of(config, 4))


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """Ten pictures whose depth is visible: brighter is farther; 2 to 8 m, with a hole in each."""
    root = tmp_path_factory.mktemp("rooms")
    (root / "rgb").mkdir()
    (root / "depth").mkdir()
    rng = np.random.default_rng(0)
    for i in range(10):
        shade = np.kron(rng.uniform(0, 1, (6, 8)), np.ones((32, 32)))
        Image.fromarray(np.repeat((255 * shade)[..., None], 3, 2).astype(np.uint8)).save(root / "rgb" / f"{i}.png")
        depth = 2000 + 6000 * shade
        depth[90:100, 90:100] = 0
        Image.fromarray(depth.astype(np.uint16)).save(root / "depth" / f"{i}.png")
    return root


@pytest.fixture
def config(rooms, tiny_folders) -> ProbeConfig:
    return ProbeConfig(
        data=str(rooms), model=str(tiny_folders["dinov2"]), device="cpu", resolution=112, layers=(1, -1), epochs=12,
        batch=4, lr=1e-2, bins=64, patience=20, upsample=2, head="linear", average=0.5, members=1,
    )  # fmt: skip


def started(config: ProbeConfig, root, name: str = "a") -> Run:
    return Run.create(name, "probe", config.to_dict(), root=root)


@pytest.mark.parametrize("head", ["linear", "mlp", "conv"])
def test_a_probe_learns_depth_and_opens_again(head, config, rooms, tmp_path):
    config = replace(config, test=str(rooms), head=head)
    run = started(config, tmp_path)
    about = pb.probe(config, run)
    metrics = run.metrics()
    assert metrics[-1]["validation_rmse"] < metrics[0]["validation_rmse"]
    # The mean of all depths would be 1.7 m off.
    assert about["metrics"]["test"]["rmse"] < 1.3
    assert run.status()["state"] == "finished"
    assert not (run.folder / "features").exists()
    probe = dp.open_probe(run.folder)
    assert probe.about == about
    assert probe.layers == (0, 2)
    backbone = dinoviz.load(config.model, device="cpu")
    probe.check(backbone.weights_id, "dinov2")
    errors = {False: [], True: []}
    for pair in find_pairs(rooms):
        picture, depth = pair.open()
        predicted = dp.predict(backbone.encode(picture, 112, probe.layers), probe)
        assert predicted.shape == depth.shape
        for scaled, found in errors.items():
            valid = counts(depth, "eigen", 10.0)
            found.append(depth_errors(predicted, depth, valid, median_scaled=scaled)["rmse"])
    assert np.mean(errors[False]) == pytest.approx(about["metrics"]["test"]["rmse"], abs=1e-6)
    assert np.mean(errors[True]) == pytest.approx(about["metrics"]["test"]["median_scaled"]["rmse"], abs=1e-6)


def test_the_header_describes_the_probe(config, tmp_path):
    config = replace(config, epochs=1, held_out=1, seed=7)
    about = pb.probe(config, started(config, tmp_path))
    assert {key: about[key] for key in ("head", "layers", "channels", "resolution", "depth", "bins", "upsample")} == {
        "head": "linear", "layers": [0, 2], "channels": 96, "resolution": 112, "depth": [0.001, 10.0], "bins": 64,
        "upsample": 2,
    }  # fmt: skip
    assert (about["version"], about["seed"], about["epoch"], about["crop"]) == (1, 7, 1, "eigen")
    data = about["data"]
    assert (data["train"], data["validation"], data["held_out"]) == (8, 1, 1)
    assert "every 8th group" in data["rule"]
    assert about["metrics"]["test"]["images"] == 1
    assert about["command"].startswith(f"python -m training probe {Path(config.data).name} --held-out 1 ")
    assert str(tmp_path.parent) not in json.dumps(about)


def test_a_head_is_by_default_as_it_was_published_or_did_best():
    linear, conv, mlp = (ProbeConfig(head=head) for head in ("linear", "conv", "mlp"))
    assert [each.head_dropout for each in (linear, conv, mlp)] == [0.0, 0.5, 0.0]
    assert linear.architecture(6) | {"bins": 256, "upsample": 4, "members": 1, "channels": 6} == linear.architecture(6)
    assert conv.architecture(6) | {"bins": 64, "upsample": 2, "members": 3} == conv.architecture(6)
    chosen = ProbeConfig(head="linear", bins=16, upsample=1).architecture(6)
    assert (chosen["bins"], chosen["upsample"]) == (16, 1)
    with pytest.raises(DinovizError, match="bins"):
        ProbeConfig(bins=1)


def test_the_header_tells_camera_and_licence_where_the_data_do(config, rooms, tmp_path):
    folder = shutil.copytree(rooms, tmp_path / "rooms")
    camera = {"fx": 200.0, "fy": 201.0, "cx": 128.0, "cy": 96.0}
    (folder / "meta.json").write_text(json.dumps({"intrinsics": camera, "licence": "for everybody"}))
    config = replace(config, epochs=1, data=str(folder))
    about = pb.probe(config, started(config, tmp_path))
    assert about["camera"] == {**camera, "size": (256, 192)}
    assert about["data"]["licence"] == "for everybody"


def test_training_pictures_are_familiar_and_others_are_not(config, rooms, tmp_path):
    config = replace(config, epochs=1)
    run = started(config, tmp_path)
    pb.probe(config, run)
    probe = dp.open_probe(run.folder)
    backbone = dinoviz.load(config.model, device="cpu")
    picture, _ = find_pairs(rooms)[0].open()
    assert len(probe.familiar) == probe.about["data"]["train"]
    assert dp.unfamiliarity(backbone.encode(picture, 112, probe.layers), probe) < 0.1
    noise = Image.fromarray(np.random.default_rng(0).integers(256, size=(112, 112, 3), dtype=np.uint8))
    assert dp.unfamiliarity(backbone.encode(noise, 112, probe.layers), probe) > 1


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    return dp.open_probe(run.folder).head.state_dict()


def assert_same(first: Run, second: Run) -> None:
    for (name, a), b in zip(weights_of(first).items(), weights_of(second).values(), strict=True):
        assert torch.equal(a, b), name
    for a, b in zip(first.metrics(), second.metrics(), strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


@pytest.mark.parametrize("moment", ["encoding", "epoch 3"])
def test_a_stopped_run_resumes_bit_for_bit(moment, config, tmp_path):
    config = replace(config, head="conv", members=2, dropout=0.2, crops=1, epochs=4, metric=0.3)
    straight, broken = started(config, tmp_path, "straight"), started(config, tmp_path, "broken")
    pb.probe(config, straight)
    stages = []

    def stop(done: int, of: int, what: str) -> None:
        stages.append(what)
        if stages.count(moment) == 2:
            broken.request_stop()

    assert pb.probe(config, broken, stop) is None
    assert broken.status()["state"] == "stopped"
    assert not broken.export_folder.exists()
    encoded = stages.count("encoding")
    if moment == "encoding":  # as if it was killed amid writing
        encoded += 1  # the picture in progress is in the file before the stop
        with (broken.folder / "features" / "train.bin").open("ab") as data:
            data.write(b"half a pict")
        with (broken.folder / "features" / "train.jsonl").open("a") as lines:
            lines.write('[{"at": 12, "gri')
    stages.clear()
    pb.resume(broken, lambda done, of, what: stages.append(what))
    assert encoded + stages.count("encoding") == 10  # nothing is encoded again
    assert_same(straight, broken)
    with pytest.raises(RunError, match="broken"):
        pb.resume(broken)


def test_a_killed_run_resumes_bit_for_bit(config, tmp_path):
    config = replace(config, epochs=3)
    straight, killed = started(config, tmp_path, "straight"), started(config, tmp_path, "killed")
    pb.probe(config, straight)
    code = (
        "import os, signal, sys\n"
        "from training import probe\nfrom training.runs import Run\nfrom training.config.tasks import ProbeConfig\n"
        "run = Run(sys.argv[1])\n"
        "def kill(done, of, what):\n"
        "    if what == 'epoch 2' and done == of // 2:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "probe.probe(ProbeConfig.from_dict(run.config), run, kill)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(killed.folder)], timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert killed.status()["state"] == "died"
    pb.resume(killed)
    assert_same(straight, killed)


def test_does_not_resume_with_other_images(config, rooms, tmp_path):
    folder = shutil.copytree(rooms, tmp_path / "rooms")
    config = replace(config, data=str(folder))
    run = started(config, tmp_path)
    pb.probe(config, run, lambda done, of, what: run.request_stop() if what == "epoch 2" else None)
    Image.new("RGB", (256, 192)).save(folder / "rgb" / "0.png")
    with pytest.raises(RunError, match="run "):
        pb.resume(run)


def test_features_larger_than_memory_are_read_from_disk(config, tmp_path):
    config = replace(config, epochs=2)
    runs = []
    for memory in (4.0, 0.0):
        runs.append(started(replace(config, memory_gb=memory), tmp_path, f"m{memory:g}"))
        pb.probe(replace(config, memory_gb=memory), runs[-1])
    assert_same(*runs)


def test_images_of_several_sizes_train_together(config, rooms, tmp_path):
    folder = shutil.copytree(rooms, tmp_path / "rooms")
    for i in (1, 4):
        for path in (folder / "rgb" / f"{i}.png", folder / "depth" / f"{i}.png"):
            Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    config = replace(config, data=str(folder), epochs=2, crop="none")
    assert pb.probe(config, started(config, tmp_path))["data"]["train"] == 9


def test_the_seed_determines_the_run(config, tmp_path):
    config = replace(config, epochs=2, crops=1, dropout=0.1)
    first, again, other = (started(config, tmp_path, name) for name in "abc")
    pb.probe(config, first)
    pb.probe(config, again)
    pb.probe(replace(config, seed=1), other)
    assert_same(first, again)
    assert not torch.equal(*(weights_of(run)["joined.patch.weight"] for run in (first, other)))


def test_stops_early_and_reports_the_best_epoch(config, tmp_path):
    config = replace(config, epochs=50, patience=2, lr=1e-8, average=0.0)
    run = started(config, tmp_path)
    about = pb.probe(config, run)
    assert len(run.metrics()) == about["epoch"] + 2 < 50
    best = min(record["validation_rmse"] for record in run.metrics())
    for text in ((run.folder / "log.txt").read_text(), run.status()["message"]):
        assert f"2 epochs; best {best:.3f} m at epoch {about['epoch']}" in text


def test_without_validation_images_all_epochs_are_trained(config, tmp_path):
    config = replace(config, validation=0.0, held_out=1, epochs=3, patience=1)
    run = started(config, tmp_path)
    about = pb.probe(config, run)
    assert (about["data"]["train"], about["data"]["validation"], about["epoch"]) == (9, 0, 3)
    assert list(about["metrics"]) == ["test"]
    assert "decides when to stop" not in about["data"]["rule"]
    alone = started(config, tmp_path, "alone")
    assert pb.probe(replace(config, held_out=0), alone)["metrics"] == {}
    assert "RMSE" not in alone.status()["message"]


def test_progress_and_time_left_are_reported(config, tmp_path, monkeypatch):
    monkeypatch.setattr(pb, "BEAT", 0.0)
    monkeypatch.setattr("training.engine.epochs.BEAT", 0.0)
    config = replace(config, epochs=2)
    run, reported = started(config, tmp_path), {}

    def note(done: int, of: int, what: str) -> None:
        reported.setdefault(what, []).append((done, of, run.status()))

    pb.probe(config, run, note)
    assert list(reported) == [
        "reading the images",
        "encoding",
        "epoch 1",
        "epoch 2",
        "measuring on the validation images",
    ]
    assert [done for done, _, _ in reported["encoding"]] == list(range(1, 11))
    last = reported["encoding"][-1][2]
    assert last["eta"] >= 0
    assert last["message"] == "encoding, 9 of 10"
    assert reported["epoch 2"][-1][2]["steps"] == reported["epoch 2"][-1][1]


def test_layers_count_from_one_or_from_the_end():
    assert ProbeConfig(layers=(3, 6, 9, 12)).blocks(12) == [2, 5, 8, 11]
    assert ProbeConfig(layers=(-1,)).blocks(12) == [11]
    assert ProbeConfig(layers=(0,)).blocks(12) == [5, 8, 11]
    assert ProbeConfig(layers=(0,)).blocks(24) == [11, 17, 23]
    assert ProbeConfig(layers=(0,)).blocks(1) == [0]
    assert ProbeConfig(layers=(-1, 12, 1)).blocks(12) == [0, 11]
    with pytest.raises(DinovizError, match=r"1 to 12 .*-12.* 13"):
        ProbeConfig(layers=(13,)).blocks(12)
    with pytest.raises(DinovizError, match="layers"):
        ProbeConfig(layers=(0, 3))


@pytest.mark.parametrize("layers", [("3,6,9,12",), ("3", "6", "9", "12"), ("3,6", "9,12")])
def test_layers_are_listed_with_commas_or_spaces(layers, tmp_path):
    from training.__main__ import main

    file = tmp_path / "settings.json"
    assert main(["probe", "rooms", "--head", "linear", "--layers", *layers, "--save-config", str(file)]) == 0
    assert ProbeConfig.read(file)["layers"] == [3, 6, 9, 12]


def test_an_invalid_layer_is_an_error_of_the_command_line(capsys):
    from training.__main__ import main

    with pytest.raises(SystemExit) as ended:
        main(["probe", "rooms", "--layers", "3,six"])
    assert ended.value.code == 2
    assert "argument --layers: invalid int value: '3,six'" in capsys.readouterr().err


def test_refuses_images_and_settings_that_cannot_be_used(config, rooms, tmp_path):
    dark = shutil.copytree(rooms, tmp_path / "dark")
    for i in range(10):
        Image.fromarray(np.zeros((192, 256), np.uint16)).save(dark / "depth" / f"{i}.png")
    for words, settings in (
        (str(tmp_path), {"data": str(tmp_path)}),
        ("; 1 ", {"limit": 1}),
        ("1 to 3 .* 9", {"layers": (9,)}),
        ("96 pixels", {"border": 96}),
        ("10 images .* 1 m", {"depth": (0.001, 1.0)}),
        ("held_out is 2", {"held_out": 2}),
        ("10 images", {"data": str(dark)}),
    ):
        run = Run.create(f"r{len(list(tmp_path.iterdir()))}", "probe", {}, root=tmp_path)
        with pytest.raises(DinovizError, match=words):
            pb.probe(replace(config, **settings), run)
        assert run.status()["state"] == "failed"


def test_images_without_depth_are_left_out_and_counted(config, rooms, tmp_path):
    folder = shutil.copytree(rooms, tmp_path / "rooms")
    Image.fromarray(np.zeros((192, 256), np.uint16)).save(folder / "depth" / "0.png")
    config = replace(config, data=str(folder), epochs=1)
    run = started(config, tmp_path)
    about = pb.probe(config, run)
    assert about["data"]["train"] + about["data"]["validation"] == 9
    assert "1 of 10 images" in (run.folder / "log.txt").read_text()


def test_refuses_features_that_do_not_fit_on_the_disk(config, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(DinovizError, match=r"0\.0 GB"):
        pb.probe(config, started(config, tmp_path))


def test_features_read_back_are_those_encoded(config, rooms, tmp_path):
    backbone, layers = dinoviz.load(config.model, device="cpu"), [0, 2]
    encoded = Encoded(tmp_path / "some.bin", 2 * backbone.dim)
    pairs = find_pairs(rooms)[:2]
    encoded.encode(pairs, lambda i: [View(), View(flip=True)], backbone, layers, config, "none", lambda done: None)
    encoded.open(np.inf)
    patches, cls, depth = encoded.get([(1, 0)])
    picture, truth = pairs[1].open()
    features = backbone.encode(picture, 112, layers)
    expected, expected_cls = dp.joined(features, layers)
    torch.testing.assert_close(patches, expected, atol=5e-3, rtol=1e-3)  # half precision
    torch.testing.assert_close(cls, expected_cls, atol=5e-3, rtol=1e-3)
    assert float(depth.max()) == pytest.approx(truth.max(), rel=1e-2)
    np.testing.assert_allclose(encoded.descriptors(2)[1], dp.descriptor(features, layers), atol=1e-3)
    assert len(encoded.batches(8)) == 1
    drawn = [pair for batch in encoded.batches(1, np.random.default_rng(0)) for pair in batch]
    assert sorted(i for i, _ in drawn) == [0, 1]


@pytest.mark.parametrize(
    "line",
    [
        "[", "null", "[]", "[1]", "[" * 100_000, '[{"at": 0}]', "\x00", '[{"at": 7, "grid": [8, 8], "depth": [9, 9]}]',
        '[{"at": NEXT, "grid": [1000000000, 1000000000], "depth": [9, 9]}]',
        '[{"at": NEXT, "grid": [8, 8, 8], "depth": [9]}]', '[{"at": NEXT, "grid": [1e300, 8], "depth": [9, 9]}]',
    ],
    ids=lambda line: line[:40],
)  # fmt: skip
def test_damaged_features_are_encoded_again(line, tmp_path):
    file, view = tmp_path / "some.bin", {"at": 0, "grid": [8, 8], "depth": [9, 9]}
    length = (8 * 8 + 1) * 10 + 9 * 9
    np.zeros(3 * length, np.float16).tofile(file)
    lines = [json.dumps([view]), line.replace("NEXT", str(length)), json.dumps([{**view, "at": length}]), ""]
    file.with_suffix(".jsonl").write_text("\n".join(lines))
    encoded = Encoded(file, 10)
    assert encoded.pictures == [[view]]
    assert encoded.end == length
