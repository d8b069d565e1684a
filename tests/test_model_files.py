"""Model folders that anybody may have written: hostile indices, links, settings and weights."""

import json
import os
import shutil
import struct
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import dinoviz
from dinoviz.depth import dpt as published_depth
from dinoviz.errors import DinovizError
from tests import tiny_dpt
from training.classifier.model import open_classifier

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(tiny_folders, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_folders["dinov2"], tmp_path / "model"))


@pytest.fixture(scope="session")
def dpt(tmp_path_factory) -> Path:
    return tiny_dpt.save(tmp_path_factory.mktemp("dpt") / "tiny-nyu")


@pytest.fixture(scope="session")
def classifier(tmp_path_factory) -> Path:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=16
    )
    path = tmp_path_factory.mktemp("classifier") / "cats"
    ViTForImageClassification(config).save_pretrained(path)
    sizes = {"crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 36}}
    (path / "preprocessor_config.json").write_text(json.dumps(sizes))
    return path


def refused(path, open_it=dinoviz.load) -> str:
    start = time.monotonic()
    with pytest.raises(DinovizError) as refusal:
        open_it(path, device="cpu")
    assert time.monotonic() - start < 20
    text = str(refusal.value)
    assert "\n" not in text
    return text


def change(folder: Path, file: str = "config.json", **values) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | values))


def shard(folder: Path, names: tuple[str, str] = ("model-1.safetensors", "model-2.safetensors")) -> dict[str, str]:
    """Put the weights of a folder into two files, and return the index' weight_map."""
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    where = {name: names[i % 2] for i, name in enumerate(weights)}
    for file in names:
        part = {name: weights[name] for name in weights if where[name] == file}
        if file.endswith(".bin"):
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, {"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return where


def test_weights_in_several_files_are_those_in_one(folder):
    expected = dinoviz.load(folder, device="cpu").weights_id
    shard(folder)
    assert dinoviz.load(folder, device="cpu").weights_id == expected


@pytest.mark.parametrize(
    "bad",
    ["model-2.bin", "../model/model-2.safetensors", "sub/model-2.safetensors", "{folder}/m.safetensors", "..\\m", 7],
)
def test_an_index_names_only_safetensors_inside_the_folder(bad, folder):
    where = shard(folder, ("model-1.safetensors", bad if bad == "model-2.bin" else "model-2.safetensors"))
    bad = bad.format(folder=folder) if isinstance(bad, str) else bad
    named = {name: bad if file != "model-1.safetensors" else file for name, file in where.items()}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": named}))
    assert ".safetensors files inside the folder" in refused(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000])
def test_an_index_that_is_none(content, folder):
    shard(folder)
    (folder / INDEX).write_text(content)
    assert INDEX in refused(folder)


def test_an_index_of_pickles_is_refused(folder):
    where = shard(folder, ("a.bin", "b.bin"))
    (folder / INDEX).rename(folder / "pytorch_model.bin.index.json")
    assert where
    assert "pickle" in refused(folder)


@pytest.mark.parametrize("file", [WEIGHTS, "config.json", INDEX, "model-2.safetensors"])
def test_links_out_of_the_folder_are_not_followed(file, folder, tmp_path):
    if file in (INDEX, "model-2.safetensors"):
        shard(folder)
    (folder / file).rename(tmp_path / "elsewhere")
    (folder / file).symlink_to(tmp_path / "elsewhere")
    assert "link" in refused(folder)


def test_the_links_of_the_hub_s_cache_are_followed(folder, tmp_path):
    repository = tmp_path / "hub" / "models--facebook--dinov2-small"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for file in folder.iterdir():
        file.rename(repository / "blobs" / f"hash-of-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/hash-of-{file.name}")
    assert dinoviz.load(snapshot, device="cpu").layers == 3
    (snapshot / WEIGHTS).unlink()
    shutil.copy(repository / "blobs" / f"hash-of-{WEIGHTS}", tmp_path / "elsewhere")
    (snapshot / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    assert "link" in refused(snapshot)


def test_a_model_of_the_hub_in_several_files_is_checked_alike(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    expected = dinoviz.load(folder, device="cpu").weights_id
    where = shard(folder)
    repository = tmp_path / "hub" / "models--somebody--large"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(folder, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    backbone = dinoviz.load("somebody/large", device="cpu")
    assert backbone.weights_id == expected
    assert (backbone.name, backbone.source) == ("somebody/large", "the Hugging Face Hub, somebody/large")
    evil = {name: file.replace("model-2.safetensors", "model-2.bin") for name, file in where.items()}
    (snapshot / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": evil}))
    assert "model-2.bin" in refused("somebody/large")


def test_an_adapter_is_not_loaded_with_what_it_names(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "/etc"}))
    torch.save({}, folder / "adapter_model.bin")
    assert "adapter" in refused(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no FIFOs")
def test_weights_that_are_no_file_are_not_opened(folder):
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
    assert WEIGHTS in refused(folder)


@pytest.mark.parametrize(
    ("family", "values", "named"),
    [
        ("dinov2", {"num_hidden_layers": 10**9}, "1000000000"),
        ("dinov2", {"num_hidden_layers": 0}, "num_hidden_layers"),
        ("dinov2", {"num_hidden_layers": -3}, "-3"),
        ("dinov2", {"num_hidden_layers": 10**400}, "401"),
        ("dinov2", {"num_attention_heads": 0}, "num_attention_heads"),
        ("dinov2", {"num_attention_heads": 5}, "num_attention_heads 5"),
        ("dinov2", {"hidden_size": 10**7}, "10000000"),
        ("dinov2", {"hidden_size": True}, "True"),
        ("dinov2", {"hidden_size": 8190, "num_hidden_layers": 100}, "million"),
        ("dinov2", {"image_size": 10**6}, "1000000"),
        ("dinov2", {"image_size": 4088}, "million|shape|size"),
        ("dinov2", {"patch_size": 0}, "patch_size"),
        ("dinov2", {"patch_size": [14] * 100}, "100"),
        ("dinov2", {"num_channels": 10**6}, "num_channels"),
        ("dinov2", {"hidden_act": "no_such_activation"}, "no_such_activation"),
        ("dinov2", {"layer_norm_eps": -1}, "layer_norm_eps"),
        ("dinov2", {"layer_norm_eps": float("inf")}, "Infinity"),
        ("dinov2", {"mlp_ratio": 10**6}, "mlp_ratio"),
        ("dinov2", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized"),
        ("dinov2", {"drop_path_rate": {"a": {"b": 1}}}, "drop_path_rate"),
        ("dinov2_with_registers", {"num_register_tokens": 10**9}, "num_register_tokens"),
        ("vit", {"intermediate_size": 10**9}, "intermediate_size"),
        ("dinov3_vit", {"num_attention_heads": 48}, "cannot encode|weights"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_config_that_lies_is_refused_before_anything_is_made_of_it(family, values, named, tiny_folders, tmp_path):
    folder = Path(shutil.copytree(tiny_folders[family], tmp_path / "model"))
    change(folder, **values)
    with pytest.raises(DinovizError, match=named):
        dinoviz.load(folder, device="cpu")
    refused(folder)


def test_a_config_names_no_other_file_and_no_code(folder, tiny_folders):
    expected = dinoviz.load(folder, device="cpu").weights_id
    shutil.copy(tiny_folders["vit"] / "config.json", folder / "config.4.0.0.json")
    save_file({"a": torch.zeros(1)}, folder / "other.safetensors", {"format": "pt"})
    change(
        folder,
        transformers_weights="other.safetensors",
        configuration_files=["config.4.0.0.json"],
        auto_map={"AutoModel": "../evil.Model"},
        attn_implementation="somebody/kernel",
        output_attentions=True,
        return_dict=False,
        num_labels=10**6,
    )
    assert dinoviz.load(folder, device="cpu").weights_id == expected


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e38])
def test_weights_that_are_no_numbers_are_refused(bad, folder):
    weights = load_file(folder / WEIGHTS)
    name = next(name for name in weights if "norm1.weight" in name)
    weights[name][-1] = bad
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    assert "NaN" in refused(folder)


def test_a_file_that_is_larger_than_the_memory_is_not_loaded(folder):
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    with (folder / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        try:
            file.truncate(8 + len(header) + 4 * 10**12)  # 4 TB on paper
        except OSError:
            pytest.skip("this file system has no files of 4 TB")
    assert "4,000.0 GB" in refused(folder)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"backbone_config": {"model_type": "dinov2", "num_hidden_layers": 10**9}}, "num_hidden_layers"),
        ({"neck_hidden_sizes": [10**6] * 4}, "neck_hidden_sizes"),
        ({"fusion_hidden_size": 0}, "fusion_hidden_size"),
        ({"reassemble_factors": [10**6, 2, 1, 0.5]}, "reassemble_factors"),
        ({"head_in_index": 99}, "cannot encode"),
        ({"max_depth": 10**12}, "max_depth"),
        ({"backbone": "timm/anything", "use_timm_backbone": True, "backbone_config": None}, "DPT without DINOv2"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_published_depth_head_is_checked_alike(values, named, dpt, tmp_path):
    folder = Path(shutil.copytree(dpt, tmp_path / "tiny-nyu"))
    change(folder, **values)
    assert named in refused(folder, published_depth.load)


def test_a_published_depth_head_of_an_index_of_pickles_is_refused(dpt, tmp_path):
    folder = Path(shutil.copytree(dpt, tmp_path / "tiny-nyu"))
    shard(folder, ("model-1.safetensors", "model-2.bin"))
    assert "model-2.bin" in refused(folder, published_depth.load)


def test_a_classifier_is_checked_alike(classifier, tmp_path):
    folder = Path(shutil.copytree(classifier, tmp_path / "cats"))
    assert open_classifier(folder, "cpu").size == 32
    for file, values, named in (
        ("preprocessor_config.json", {"crop_size": {"height": 10**9}}, "1792"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 10**9}}, "1792"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 0}}, "shortest_edge"),
        ("config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("config.json", {"id2label": {"0": "cat", "7": "dog"}}, "id2label"),
        ("config.json", {"architectures": 7}, "without a classifier"),
    ):
        before = (folder / file).read_text()
        change(folder, file, **values)
        assert named in refused(folder, open_classifier)
        (folder / file).write_text(before)
    shard(folder, ("model-1.safetensors", "model-2.bin"))
    assert "model-2.bin" in refused(folder, open_classifier)
