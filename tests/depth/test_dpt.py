"""Published depth heads, tested with a tiny random DPT: tests do not use the Hub."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import DPTForDepthEstimation

from dinoviz import hub, models
from dinoviz.depth import dpt as published_depth
from dinoviz.depth.dpt import PUBLISHED, names_for
from dinoviz.errors import DinovizError, Stopped
from dinoviz.grid import PatchGrid
from tests import tiny_dpt


@pytest.fixture(scope="session")
def dpt_folder(tmp_path_factory) -> Path:
    return tiny_dpt.save(tmp_path_factory.mktemp("dpt") / "tiny-nyu")


@pytest.fixture
def folder(dpt_folder, tmp_path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(dpt_folder, tmp_path / "tiny-nyu"))


@pytest.fixture(scope="session")
def published(dpt_folder):
    return published_depth.load(dpt_folder, device="cpu")


def refused(name_or_folder, **kwargs) -> str:
    with pytest.raises(DinovizError) as refusal:
        published_depth.load(name_or_folder, **kwargs)
    text = str(refusal.value)
    assert "\n" not in text
    return text


def change(folder: Path, file: str = "config.json", **values) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | values))


def test_the_heads_of_a_backbone():
    heads = ("facebook/dpt-dinov2-small-nyu", "facebook/dpt-dinov2-small-kitti")
    assert names_for("dinov2-small") == names_for("facebook/dinov2-small") == heads
    assert [names_for(f"dinov2-{size}")[0] for size in ("base", "large", "giant")] == [
        "facebook/dpt-dinov2-base-nyu",
        "facebook/dpt-dinov2-large-nyu",
        "facebook/dpt-dinov2-giant-nyu",
    ]
    for none in ("embedded", "dinov2-with-registers-small", "dino-vits16", "dinov3-vits16", "a run of mine", ""):
        assert names_for(none) == ()
    assert len(PUBLISHED) == 8
    assert str(PUBLISHED[heads[0]]) == "trained on NYU Depth v2 (indoor, to 10 m)"
    assert str(PUBLISHED[heads[1]]) == "trained on KITTI (street, to 80 m)"


@pytest.mark.parametrize("side", ["own size", "resolution"])
def test_depth_equals_that_of_transformers(side, dpt_folder, published, chelsea):
    processor, network = tiny_dpt.processor(), DPTForDepthEstimation.from_pretrained(dpt_folder).eval()
    if side == "own size":  # 451 x 300: a border on all sides, uneven ones
        seen, resolution, target = chelsea, None, (308, 462)
    else:
        seen, resolution, target = chelsea.resize((336, 224), Image.Resampling.BICUBIC), 224, (300, 451)
    inputs = processor(seen, return_tensors="pt")
    pixels, _ = published.preprocess(chelsea, resolution)
    torch.testing.assert_close(pixels, inputs["pixel_values"], atol=2e-6, rtol=0)
    with torch.no_grad():
        outputs = network(**inputs)
    expected = processor.post_process_depth_estimation(outputs, [target])[0]["predicted_depth"].numpy()
    if side == "own size":
        expected = expected[4:304, 5:456]
    found = published.predict(chelsea, resolution)
    assert found.dtype == np.float32
    assert expected.std() > 0.1  # it depends on the picture
    np.testing.assert_allclose(found, expected.clip(*published.range), atol=2e-5)


def test_saved_weights_have_the_names_of_the_published_ones(dpt_folder):
    # As convert_dinov2_depth_to_hf.py lists them: what loads this folder loads those.
    names = set(load_file(dpt_folder / "model.safetensors"))
    assert {
        "backbone.embeddings.cls_token",
        "backbone.embeddings.patch_embeddings.projection.weight",
        "backbone.encoder.layer.3.attention.attention.query.weight",
        "backbone.encoder.layer.3.layer_scale1.lambda1",
        "backbone.encoder.layer.3.mlp.fc1.bias",
        "backbone.layernorm.weight",
        "neck.reassemble_stage.readout_projects.0.0.weight",
        "neck.reassemble_stage.layers.3.resize.weight",
        "neck.fusion_stage.layers.3.residual_layer1.convolution2.weight",
        "neck.convs.3.weight",
        "head.head.4.bias",
    } <= names


def test_pixels_are_normalised_by_the_preprocessor_config(folder, chelsea):
    change(folder, "preprocessor_config.json", do_rescale=True, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    pixels, _ = published_depth.load(folder, device="cpu").preprocess(chelsea, 224)
    expected = (np.asarray(chelsea.resize((336, 224), Image.Resampling.BICUBIC)) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(pixels[0], expected.transpose(2, 0, 1), atol=1e-5)
    (folder / "preprocessor_config.json").write_text("{")
    assert published_depth.load(folder, device="cpu").mean == published_depth.MEAN


def test_the_range_follows_from_the_name_or_the_config(folder):
    network = published_depth.load(folder, device="cpu")
    assert network.range == (0.001, 10)
    assert network.trained.short_side == 480
    assert network.source == f"the folder {folder}, trained on NYU Depth v2 (indoor, to 10 m)"
    street = folder.rename(folder.with_name("tiny-kitti"))
    network = published_depth.load(street, device="cpu")
    assert network.range == (0.001, 80)
    assert network.trained.short_side == 375
    mine = street.rename(folder.with_name("mine"))
    assert "max_depth" in refused(mine)
    change(mine, max_depth=20)
    network = published_depth.load(mine, device="cpu")
    assert network.range == (0.001, 20)
    assert network.source == f"the folder {mine}, trained on unknown data (as its config.json says, to 20 m)"


def test_predictions_are_clipped_to_the_range(folder, chelsea):
    change(folder, max_depth=4)
    found = published_depth.load(folder, device="cpu").predict(chelsea, 224)
    assert found.max() == 4
    assert (found == 4).mean() > 0.1


def test_a_pass_reports_progress_and_can_be_stopped(published, chelsea):
    progress = []
    plain = published.predict(chelsea, 112)
    assert (published.predict(chelsea, 112, on_block=lambda *done: progress.append(done)) == plain).all()
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def stop(done, of):
        raise Stopped

    with pytest.raises(Stopped):
        published.predict(chelsea, 112, on_block=stop)
    assert (published.predict(chelsea, 112) == plain).all()


def test_pictures_and_resolutions_that_cannot_be(published, chelsea):
    for picture, resolution, named in (
        (chelsea, 8, "1792"), (Image.new("RGB", (2000, 2000)), None, "16,384 patches"), ("no.jpg", None, "no.jpg"),
    ):  # fmt: skip
        with pytest.raises(DinovizError, match=named):
            published.predict(picture, resolution)


def test_an_unknown_name_is_answered_with_the_known_ones():
    text = refused("dpt-small")
    assert all(name in text for name in ("dpt-small", *PUBLISHED))
    for name in ("", "a/b/c", "x" * 500):
        refused(name)


@pytest.mark.parametrize("name", ["facebook/dpt-dinov2-small-nyu", "somebody/no-such-head"])
def test_without_the_hub_and_its_cache_a_head_is_refused_at_once(name, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert not hub.is_cached(name)
    start = time.monotonic()
    text = refused(name)
    assert name in text
    assert "HF_HUB_OFFLINE" in text
    assert time.monotonic() - start < 1


def test_a_cached_head_needs_no_hub(monkeypatch, tmp_path, folder, chelsea, published):
    name = "facebook/dpt-dinov2-small-kitti"
    snapshot = tiny_dpt.in_the_hubs_cache(monkeypatch, folder, name, tmp_path / "hub")
    assert hub.is_cached(name)
    network = published_depth.load(name, device="cpu")
    assert network.name == name
    assert network.source == "published by Meta with DINOv2, trained on KITTI (street, to 80 m)"
    np.testing.assert_array_equal(network.predict(chelsea, 224), published.predict(chelsea, 224))
    weights = snapshot / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    assert not hub.is_cached(name)
    assert "HF_HUB_OFFLINE" in refused(name)  # the pickle does not count


def test_folders_that_are_not_depth_heads_are_refused(folder, tiny_folders, tmp_path):
    assert "'dinov2'" in refused(tiny_folders["dinov2"])
    assert "config.json" in refused(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"backbone_config": None}))
    assert "tiny-nyu is a DPT without DINOv2" in refused(folder)
    (folder / "config.json").write_text("{")
    assert "tiny-nyu" in refused(folder)
    (folder / "config.json").write_text(json.dumps(config | {"fusion_hidden_size": "many"}))
    assert refused(folder).startswith("tiny-nyu: ")


def test_invalid_weights_are_refused(folder):
    file = folder / "model.safetensors"
    weights = load_file(file)
    unused = [name for name in weights if "mask_token" in name or "fusion_stage.layers.0.residual_layer1" in name]
    assert len(unused) == 3
    save_file({n: t for n, t in weights.items() if n not in unused}, file, {"format": "pt"})
    published_depth.load(folder, device="cpu")
    save_file({n: t for n, t in weights.items() if "head.head.4" not in n}, file, {"format": "pt"})
    assert "head.head.4.bias" in refused(folder)
    file.write_bytes(b"")
    assert "tiny-nyu: its weights" in refused(folder)
    file.unlink()
    assert "model.safetensors" in refused(folder)
    torch.save(weights, folder / "pytorch_model.bin")
    assert "pytorch_model.bin" in refused(folder)


def test_a_device_that_is_not_available(dpt_folder):
    assert "'quantum'" in refused(dpt_folder, device="quantum")
    assert models.pick_device("cpu") == published_depth.load(dpt_folder, device="cpu").device


def test_threads_share_a_head(published, chelsea):
    from concurrent.futures import ThreadPoolExecutor

    sizes = [112, 224, 112, 224]
    expected = {size: published.predict(chelsea, size) for size in set(sizes)}
    progress = {size: [] for size in range(len(sizes))}
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(
                lambda i: published.predict(chelsea, sizes[i], on_block=lambda done, _: progress[i].append(done)),
                range(len(sizes)),
            )
        )
    assert all((f == expected[size]).all() for f, size in zip(found, sizes, strict=True))
    assert all(done == [1, 2, 3, 4] for done in progress.values())


def test_the_border_is_as_wide_as_it_must_be(published):
    for size in ((28, 28), (29, 41), (41, 29)):
        pixels, (left, top) = published.preprocess(Image.new("RGB", size), None)
        grid = PatchGrid(size, (pixels.shape[3], pixels.shape[2]), 14)
        inside = pixels[0, 0, top : top + size[1], left : left + size[0]]
        assert (inside == inside[0, 0]).all()
        assert inside[0, 0] < -2
        assert (pixels[0, 0] == 0).sum() == grid.patches * 14**2 - size[0] * size[1]
