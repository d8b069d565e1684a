"""Depth from features and a probe: heads against their formulas, files that can be trusted, and what cannot be used."""

import json
import math
import os
import time

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import dinoviz
from dinoviz import depth
from dinoviz.depth import heads as depth_heads
from dinoviz.depth.probe import ProbeError

ABOUT = {
    "version": 1, "backbone": "tiny", "weights_id": "?", "head": "linear", "cls": True, "layers": [0, 2],
    "channels": 96, "resolution": 112, "depth": [0.5, 8.0], "bins": 16, "upsample": 4, "familiar_limit": 0.1,
}  # fmt: skip
HEADS = tuple(depth_heads.HEADS)


def made(head: str, **changes) -> depth_heads.Head:
    torch.manual_seed(0)
    found = depth_heads.make({**ABOUT, "head": head, **changes}).eval()
    channels = {**ABOUT, **changes}["channels"]
    found.prepare(torch.randn(channels), torch.rand(channels) + 0.5, 0.0)
    return found.requires_grad_(False)


@pytest.fixture(scope="module")
def backbone(tiny_folders):
    return dinoviz.load(tiny_folders["dinov2"], device="cpu")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(256, size=(90, 130, 3), dtype=np.uint8))


@pytest.fixture
def about(backbone) -> dict:
    return {**ABOUT, "weights_id": backbone.weights_id}


def test_the_linear_head_is_one_layer_on_upsampled_patches_joined_with_cls():
    head = made("linear", channels=6).double()
    patches, cls = torch.randn(2, 3, 5, 6).double(), torch.randn(2, 6).double()
    # As DINOv2's decode head has it: resize, concatenate, normalise, 1 x 1 convolution, ReLU, 0.1, expectation.
    joined = torch.cat([patches, cls[:, None, None].expand_as(patches)], 3).permute(0, 3, 1, 2)
    joined = torch.nn.functional.interpolate(joined, scale_factor=4, mode="bilinear", align_corners=False)
    mean, deviation = (torch.cat([each, each]).view(1, -1, 1, 1) for each in (head.joined.mean, head.joined.deviation))
    weight = torch.cat([head.joined.patch.weight, head.joined.cls.weight], 1)[..., None, None]
    logits = torch.nn.functional.conv2d((joined - mean) / deviation, weight, head.joined.patch.bias).relu() + 0.1
    share = logits / logits.sum(1, keepdim=True)
    depths = torch.linspace(0.5, 8.0, 16).double().view(1, -1, 1, 1)
    expected = (share * depths).sum(1)
    spread = (share * (depths - expected[:, None]) ** 2).sum(1).sqrt()
    found, found_spread = head(patches, cls)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)  # the depths are float32 numbers
    torch.testing.assert_close(found_spread, spread, atol=1e-6, rtol=0)


def test_the_mlp_is_the_textbooks():
    head = made("mlp", channels=6)
    patches, cls = torch.randn(2, 3, 5, 6), torch.randn(2, 6)
    found, spread = head(patches, cls, upsample=1)
    assert spread is None
    for b, y, x in ((0, 0, 0), (1, 2, 4)):
        patch, token = ((each - head.joined.mean) / head.joined.deviation for each in (patches[b, y, x], cls[b]))
        hidden = head.joined.patch.weight @ patch + head.joined.patch.bias + head.joined.cls.weight @ token
        out = head.out.weight.flatten() @ torch.nn.functional.gelu(hidden) + head.out.bias
        assert len(hidden) == 256
        assert float(found[b, y, x]) == pytest.approx(float(8.0 * torch.sigmoid(out)), abs=1e-5)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("grid", [(1, 1), (2, 7), (9, 3)])
def test_a_head_works_on_any_grid_and_stays_in_its_range(head, grid):
    found = made(head)
    for scale in (1, 100):
        metres, spread = found(scale * torch.randn(2, *grid, 96), torch.randn(2, 96))
        assert metres.shape == (2, 4 * grid[0], 4 * grid[1])
        assert (metres >= 0.5).all()
        assert (metres <= 8.0).all()
        assert spread is None or ((spread >= 0).all() and spread.shape == metres.shape)
        assert found(torch.randn(1, *grid, 96), torch.randn(1, 96), upsample=1)[0].shape == (1, *grid)


@pytest.mark.parametrize("head", HEADS)
def test_cls_counts_only_where_it_is_joined(head):
    patches = torch.randn(1, 4, 4, 96)
    for cls in (True, False):
        found = made(head, cls=cls)
        first, other = (found(patches, token)[0] for token in (torch.zeros(1, 96), 9 * torch.randn(1, 96)))
        assert torch.equal(first, other) is not cls


def test_members_are_averaged_and_their_disagreement_is_spread():
    both = made("conv", members=2)
    given = torch.randn(1, 4, 6, 96), torch.randn(1, 96)
    metres, spread = both(*given)
    alone = [both.metres(scores, both.upsample) for scores in both.scores(*given).chunk(2, 1)]
    torch.testing.assert_close(metres, (alone[0][0] + alone[1][0]) / 2)
    variance = sum(s**2 for _, s in alone) / 2 + ((alone[0][0] - alone[1][0]) / 2) ** 2
    torch.testing.assert_close(spread, variance.sqrt(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("head", HEADS)
def test_channels_are_hidden_in_training_only(head):
    found = made(head)
    found.prepare(torch.zeros(96), torch.ones(96), 0.5)
    given = torch.randn(1, 4, 4, 96), torch.randn(1, 96)
    assert torch.equal(found(*given)[0], found(*given)[0])
    found.train()
    assert not torch.equal(found(*given)[0], found(*given)[0])


@pytest.mark.parametrize("head", HEADS)
def test_a_saved_probe_predicts_the_same(head, backbone, picture, about, tmp_path):
    about, trained = {**about, "head": head}, made(head)
    features = backbone.encode(picture, 112, (0, 2))
    familiar = depth.descriptor(features, (0, 2))[None]
    file = tmp_path / "new" / "probe.safetensors"
    depth.save_probe(file, trained, about, familiar)
    probe = depth.open_probe(file)
    assert probe.about == about
    assert (probe.name, probe.layers, probe.range) == ("probe.safetensors", (0, 2), (0.5, 8.0))
    found = depth.look(features, probe)
    metres, spread = trained(*depth.joined(features, (0, 2)))
    np.testing.assert_allclose(found.metres, metres[0], atol=0.02)  # weights are kept in half precision
    assert (found.spread is None) == (spread is None)
    h, w = features.grid.shape
    assert found.metres.shape == (4 * h, 4 * w)
    assert found.patches.shape == (h, w)
    assert found.unfamiliarity == pytest.approx(0, abs=0.01)
    np.testing.assert_allclose(
        found.patches, probe.head(*depth.joined(features, (0, 2)), upsample=1)[0][0], atol=1e-5
    )  # fmt: skip
    predicted = depth.predict(features, probe)
    assert predicted.shape == (90, 130)
    assert predicted.dtype == np.float32


def test_finer_features_are_read_at_the_size_that_was_trained(backbone, picture, about, tmp_path):
    trained = made("conv")
    depth.save_probe(tmp_path / "a.safetensors", trained, {**about, "head": "conv"})
    probe = depth.open_probe(tmp_path / "a.safetensors")
    h, w = backbone.encode(picture, 112, (0, 2)).grid.shape
    fine = backbone.encode(picture, 224, (0, 2))
    assert fine.grid.shape == (2 * h, 2 * w - 1)
    found = depth.look(fine, probe)
    patches, cls = depth.joined(fine, (0, 2))
    means = torch.stack([  # of the patches that a coarse one covers, whole or in part
        torch.stack([patches[0, 2 * i : 2 * i + 2, j * (2 * w - 1) // w : -(-(j + 1) * (2 * w - 1) // w)].mean((0, 1))
                     for j in range(w)])
        for i in range(h)
    ])[None]  # fmt: skip
    np.testing.assert_allclose(found.metres, probe.head(means, cls)[0][0], atol=1e-4)
    assert found.patches.shape == (h, w)
    assert depth.predict(fine, probe).shape == (90, 130)
    coarse = backbone.encode(picture, 56, (0, 2))
    assert depth.look(coarse, probe).patches.shape == coarse.grid.shape


def test_a_probe_that_remembers_no_pictures_does_not_judge_them(backbone, picture, about, tmp_path):
    depth.save_probe(tmp_path / "a.safetensors", made("linear"), about)
    probe = depth.open_probe(tmp_path / "a.safetensors")
    assert depth.look(backbone.encode(picture, 112, (0, 2)), probe).unfamiliarity is None


def test_another_backbones_features_are_refused(backbone, picture, about, tmp_path, tiny_folders):
    depth.save_probe(tmp_path / "a.safetensors", made("linear"), about)
    probe = depth.open_probe(tmp_path / "a.safetensors")
    features = dinoviz.load(tiny_folders["dinov3_vit"], device="cpu").encode(picture, 112, (0, 2))
    with pytest.raises(ProbeError, match=r"a\.safetensors .* tiny .* dinov3_vit"):
        depth.predict(features, probe)
    with pytest.raises(dinoviz.errors.DinovizError, match="Layer 0"):
        depth.predict(backbone.encode(picture, 112), probe)


@pytest.fixture
def file(about, tmp_path):
    path = tmp_path / "probe.safetensors"
    depth.save_probe(path, made("conv"), {**about, "head": "conv"}, np.eye(3, 48, dtype=np.float32))
    return path


def test_half_a_file_is_refused(file):
    whole = file.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ProbeError, match=r"probe\.safetensors cannot be opened"):
            depth.open_probe(file)


@pytest.mark.parametrize(
    "false",
    [
        {"head": "none"}, {"channels": 10**12}, {"bins": 10**12}, {"bins": 17}, {"depth": [8.0, 0.5]}, {"depth": "far"},
        {"layers": []}, {"layers": ["a"]}, {"layers": 3}, {"upsample": None}, {"upsample": 0}, {"resolution": "a"},
        {"weights_id": None},
        {"familiar_limit": 0}, {"familiar_limit": "a"}, {"cls": False},
        {"members": 10**9}, {"members": 0}, {"upsample": 1000}, {"upsample": 10**400}, {"upsample": True},
        {"resolution": math.inf}, {"resolution": math.nan}, {"resolution": 10**9}, {"depth": [0.5, math.inf]},
        {"depth": [math.nan, 8.0]}, {"depth": [0.5, 10**400]}, {"depth": [-1, 8.0]}, {"layers": [math.inf]},
        {"layers": list(range(10**4))}, {"layers": [0, 1, 10**9]}, {"familiar_limit": math.nan},
        {"channels": -1}, {"data": [1]}, {"metrics": 3}, {"metrics": {"test": 3}}, {"metrics": {"test": {"rmse": "x"}}},
    ],
)  # fmt: skip
def test_a_header_with_false_values_is_refused(false, file):
    with safetensors.safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["probe"])
    safetensors.torch.save_file(
        safetensors.torch.load_file(file), file, metadata={"probe": json.dumps({**about, **false})}
    )  # fmt: skip
    start = time.monotonic()
    with pytest.raises(ProbeError, match="cannot be opened") as refused:
        depth.open_probe(file)
    assert time.monotonic() - start < 5
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("false", "named"),
    [({"upsample": 1000}, "upsample"), ({"members": 10**9}, "members"), ({"resolution": math.inf}, "resolution")],
)
def test_a_false_value_in_a_header_is_named(false, named, file):
    with safetensors.safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["probe"])
    weights = safetensors.torch.load_file(file)
    safetensors.torch.save_file(weights, file, metadata={"probe": json.dumps({**about, **false})})
    with pytest.raises(ProbeError, match=named):
        depth.open_probe(file)


@pytest.mark.parametrize("header", ["[" * 100_000, '{"a":' * 900 + "1" + "}" * 900, "[]", "null", "", "\x00"])
def test_a_header_that_is_not_an_object_is_refused(header, file):
    safetensors.torch.save_file(safetensors.torch.load_file(file), file, metadata={"probe": header})
    with pytest.raises(ProbeError, match="cannot be opened"):
        depth.open_probe(file)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("head.each.0.joined.patch.weight", lambda value: value.fill_(math.nan)),
        ("head.each.0.joined.deviation", lambda value: value.fill_(0)),
        ("head.depths", lambda value: value.neg_()),
        ("head.depths", lambda value: value.fill_(math.inf)),
        ("familiar", lambda value: value.fill_(math.nan)),
        ("familiar", lambda value: value[:, :7].contiguous()),
    ],
)
def test_weights_that_are_not_finite_are_refused(name, change, file):
    with safetensors.safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    weights = safetensors.torch.load_file(file)
    weights[name] = change(weights[name].clone())
    safetensors.torch.save_file(weights, file, metadata=metadata)
    with pytest.raises(ProbeError, match="cannot be opened"):
        depth.open_probe(file)


def test_devices_and_huge_files_are_not_opened(file):
    os.truncate(file, 10**12)
    with pytest.raises(ProbeError, match="500 MB"):
        depth.open_probe(file)
    with pytest.raises(ProbeError, match="no such file"):
        depth.open_probe("/dev/zero")


def test_a_probe_of_other_channels_than_its_layers_have_is_refused(backbone, picture, about, tmp_path):
    depth.save_probe(tmp_path / "a.safetensors", made("linear", channels=7), {**about, "channels": 7})
    with pytest.raises(ProbeError, match="7 channels"):
        depth.look(backbone.encode(picture, 112, (0, 2)), depth.open_probe(tmp_path / "a.safetensors"))


def test_files_that_are_not_probes_are_refused(file, tmp_path):
    safetensors.torch.save_file({"a": torch.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    for path in (tmp_path / "other.safetensors", tmp_path / "text.safetensors", tmp_path / "gone", tmp_path):
        with pytest.raises(ProbeError, match="cannot be opened"):
            depth.open_probe(path)


def test_a_probe_that_cannot_be_written(about, tmp_path):
    (tmp_path / "a").write_text("a file, no folder")
    with pytest.raises(ProbeError, match="cannot be written"):
        depth.save_probe(tmp_path / "a" / "probe.safetensors", made("linear"), about)


@pytest.mark.slow
def test_the_shipped_probe_is_as_good_as_in_its_card(embedded_backbone, data_folder):
    from training.depth.rgbd import counts, depth_errors, find_pairs, split

    if not depth.SHIPPED.exists():
        pytest.skip(f"{depth.SHIPPED.name} is not there yet")
    if not (data_folder / "nyu").is_dir():
        pytest.skip(f"no NYU Depth in {data_folder}")
    probe = depth.open_probe(depth.SHIPPED)
    errors = []
    for pair in split(find_pairs(data_folder / "nyu"), 0.125, 100).held_out[::8]:
        picture, truth = pair.open(8)
        predicted = depth.predict(embedded_backbone.encode(picture, probe.about["resolution"], probe.layers), probe)
        errors.append(depth_errors(predicted, truth, counts(truth, "eigen", 10.0, 8)))
    assert np.mean([each["rmse"] for each in errors]) < 0.75  # a constant gives 1.35
    assert np.mean([each["delta1"] for each in errors]) > 0.65
