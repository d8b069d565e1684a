"""The depth probe learns depth, says how well in the published figures, and is one file that tells what it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dinoviz.errors import DinovizError
from training import probe as pb
from training.rgbd import Pair, counts, depth_errors, find_pairs
from training.runs import Run
from training.task_config import ProbeConfig


def test_the_head_is_one_layer_on_upsampled_patches_joined_with_cls():
    torch.manual_seed(0)
    head = pb.DepthHead(6, 16, 0.5, 8.0, 4).double()
    patches, cls = torch.randn(2, 3, 5, 6).double(), torch.randn(2, 6).double()
    # As DINOv2's decode head has it: resize, concatenate, 1 x 1 convolution, ReLU, 0.1, normalise, expectation.
    joined = torch.cat([patches, cls[:, None, None].expand_as(patches)], 3).permute(0, 3, 1, 2)
    joined = torch.nn.functional.interpolate(joined, scale_factor=4, mode="bilinear", align_corners=False)
    weight = torch.cat([head.patch.weight, head.cls.weight], 1)[..., None, None]
    logits = torch.nn.functional.conv2d(joined, weight, head.patch.bias).relu() + 0.1
    share = logits / logits.sum(1, keepdim=True)
    expected = (share * torch.linspace(0.5, 8.0, 16).double().view(1, -1, 1, 1)).sum(1)
    torch.testing.assert_close(head(patches, cls), expected, atol=1e-7, rtol=0)  # the depths are float32 numbers


def test_the_loss_is_the_published_one_and_forgives_scale():
    rng = np.random.default_rng(0)
    predicted, depth = rng.uniform(1, 9, (2, 4, 5)), rng.uniform(1, 9, (2, 4, 5))
    valid = rng.uniform(size=(2, 4, 5)) < 0.7
    g = [np.log(p + 0.001) - np.log(t + 0.001) for p, t in zip(predicted[valid], depth[valid], strict=True)]
    mean = sum(g) / len(g)
    variance = sum((each - mean) ** 2 for each in g) / (len(g) - 1)
    loss = pb.scale_invariant_loss(*map(torch.from_numpy, (predicted, depth, valid)))
    assert float(loss) == pytest.approx((variance + 0.15 * mean**2) ** 0.5, abs=1e-12)
    twice = pb.scale_invariant_loss(*map(torch.from_numpy, (2 * depth, depth, valid)))
    assert float(twice) == pytest.approx(0.15**0.5 * np.log(2), rel=1e-3)


def test_errors_are_those_of_eigen():
    depth = np.array([[1.0, 2.0], [4.0, 0.0]])
    predicted = np.array([[1.2, 2.0], [2.0, 9.0]])
    found = depth_errors(predicted, depth, depth > 0)
    assert found["rmse"] == pytest.approx(np.sqrt((0.04 + 0 + 4) / 3))
    assert found["abs_rel"] == pytest.approx((0.2 + 0 + 0.5) / 3)
    assert found["delta1"] == pytest.approx(2 / 3)
    valid = counts(np.full((480, 640), 5.0), "eigen", 10.0)
    assert valid[45:471, 41:601].all()
    assert valid.sum() == 426 * 560
    assert counts(np.array([[0.0, 3.0, 11.0]]), "none", 10.0).tolist() == [[False, True, False]]


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """Ten pictures whose depth can be seen: the brighter, the farther; 2 to 8 m, with a hole in each."""
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
        data=str(rooms), model=str(tiny_folders["dinov2"]), device="cpu", resolution=224, layers=(0, -1), epochs=20,
        batch=4, lr=1e-2, bins=64, patience=20, upsample=2,
    )  # fmt: skip


def test_a_probe_learns_depth_and_opens_again(config, rooms, tmp_path):
    import dinoviz

    run = Run.create("a", "probe", config.to_dict(), root=tmp_path)
    about = pb.probe(replace(config, test=str(rooms)), run)
    metrics = run.metrics()
    assert metrics[-1]["validation_rmse"] < metrics[0]["validation_rmse"]
    # The mean of all depths would be 1.7 m off.
    assert about["metrics"]["validation"]["rmse"] < 1.2
    assert set(about["metrics"]["test"]) == {"rmse", "abs_rel", "delta1"}
    assert about["layers"] == [0, 2]
    assert run.status()["state"] == "finished"
    head, header = pb.open_probe(run.folder)
    assert header == about
    backbone = dinoviz.load(config.model, device="cpu")
    assert header["weights_id"] == backbone.weights_id
    errors = []
    for pair in find_pairs(rooms):
        picture, depth = pair.open()
        predicted = pb.predict_depth(backbone, head, picture, header["resolution"], header["layers"])
        assert predicted.shape == depth.shape
        errors.append(depth_errors(predicted, depth, counts(depth, "eigen", 10.0))["rmse"])
    assert np.mean(errors) == pytest.approx(about["metrics"]["test"]["rmse"], abs=1e-6)


def test_a_probe_can_be_stopped(config, tmp_path):
    run = Run.create("a", "probe", config.to_dict(), root=tmp_path)
    assert pb.probe(config, run, lambda done, of, what: run.request_stop() if what == "epoch 2" else None) is None
    assert run.status()["state"] == "stopped"
    assert not run.export_folder.exists()


def test_what_cannot_be_probed_is_said_in_a_sentence(config, rooms, tmp_path):
    import shutil

    def refused(match, **settings):
        run = Run.create(f"r{len(list(tmp_path.iterdir()))}", "probe", {}, root=tmp_path)
        with pytest.raises(DinovizError, match=match):
            pb.probe(replace(config, **settings), run)
        assert run.status()["state"] == "failed"

    refused("is no RGB-D folder: it needs the folders rgb and depth", data=str(tmp_path))
    refused("needs at least two images, one of them to check on", limit=1)
    refused("take about 0.0 GB, more than the 0.0 GB allowed", memory_gb=1e-4)
    other = tmp_path / "other"
    shutil.copytree(rooms, other)
    (other / "depth" / "3.png").unlink()
    refused("1 of 10 pictures in .* lack their depth: 3.png", data=str(other))
    shutil.copy(other / "rgb" / "3.png", other / "depth" / "3.png")
    refused("3.png: depth is one channel of 16 bits", data=str(other))
    Image.fromarray(np.ones((10, 10), np.uint16)).save(other / "depth" / "3.png")
    with pytest.raises(DinovizError, match="has 10 x 10 pixels, its picture 256 x 192"):
        Pair(other / "rgb" / "3.png", other / "depth" / "3.png").open()
    with pytest.raises(DinovizError, match="holds no depth probe"):
        pb.open_probe(other)
