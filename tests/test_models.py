"""Names, folders and devices of models, and what `dinoviz.load` refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import dinoviz
from dinoviz import models
from dinoviz.models import KNOWN, ModelError


def refused(name_or_path, **kwargs) -> str:
    """The message of the refusal, which is always one line."""
    with pytest.raises(ModelError) as refusal:
        dinoviz.load(name_or_path, **kwargs)
    text = str(refusal.value)
    assert "\n" not in text
    return text


@pytest.fixture
def folder(tiny_folders, tmp_path) -> Path:
    """A copy of a tiny model's folder, to be damaged."""
    return Path(shutil.copytree(tiny_folders["dinov2"], tmp_path / "model"))


def rewrite_weights(folder: Path, keep) -> list[str]:
    """Remove the weights whose names `keep` rejects, and return those names."""
    weights = load_file(folder / "model.safetensors")
    lost = [name for name in weights if not keep(name)]
    assert lost
    kept = {name: tensor for name, tensor in weights.items() if keep(name)}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return lost


def change_config(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


# Names and folders


def test_the_table_names_official_weights_and_the_embedded_ones():
    assert [name for name, known in KNOWN.items() if known.hub_id is None] == ["embedded"]
    assert all(known.hub_id.startswith("facebook/") for known in KNOWN.values() if known.hub_id)


def test_an_unknown_name_is_answered_with_the_known_ones():
    text = refused("dinov2-tiny")
    assert all(name in text for name in ("dinov2-tiny", *KNOWN))


@pytest.mark.parametrize("name", ["", "no such model", "a/b/c", "../elsewhere", "facebook/..", "x" * 500])
def test_text_that_cannot_be_a_name_is_refused(name):
    refused(name)


def test_a_folder_is_named_in_the_source(folder):
    backbone = dinoviz.load(folder, device="cpu")
    assert backbone.name == "model"
    assert str(folder) in backbone.source


def test_a_run_folder_gives_its_exported_teacher(folder, tmp_path):
    run = tmp_path / "run-7"
    run.mkdir()
    (run / "config.json").write_text('{"epochs": 3}')  # of the run, not of a model
    shutil.copytree(folder, run / "export")
    backbone = dinoviz.load(run, device="cpu")
    assert backbone.name == "run-7"
    assert str(run) in backbone.source
    assert backbone.weights_id == dinoviz.load(folder, device="cpu").weights_id


@pytest.mark.parametrize(
    ("name", "expected"), [("step-00000300", "run at step 300"), ("step-abc", "step-abc"), ("a", "a")]
)
def test_a_snapshot_is_called_by_its_run_and_step(name, expected, tmp_path):
    assert models.run_name(tmp_path / "run" / "snapshots" / name) == expected


@pytest.mark.parametrize("family", ["Dinov2", "Dinov2WithRegisters", "ViT"])
def test_the_folder_of_a_classifier_gives_its_base_model(family, tmp_path):
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    config = getattr(transformers, f"{family}Config")(**sizes)
    classifier = getattr(transformers, f"{family}ForImageClassification")(config)
    classifier.save_pretrained(tmp_path)
    backbone = dinoviz.load(tmp_path, device="cpu")
    base = {name: tensor for name, tensor in classifier.base_model.state_dict().items() if "pooler" not in name}
    found = backbone.model.state_dict()
    assert found.keys() == base.keys()
    for name, tensor in base.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("preprocessor", [{"image_mean": [0.5] * 3, "image_std": [0.25] * 3}, {}, {"image_mean": 0.5}])
def test_pixels_are_normalised_by_the_preprocessor_config(preprocessor, folder, astronaut):
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    mean = preprocessor.get("image_mean") if "image_std" in preprocessor else (0.485, 0.456, 0.406)
    std = preprocessor.get("image_std", (0.229, 0.224, 0.225))
    backbone = dinoviz.load(folder, device="cpu")
    given = []
    backbone.model.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    backbone.encode(astronaut, 224)
    pixels = np.asarray(astronaut.resize((224, 224), Image.Resampling.BICUBIC)) / 255
    expected = ((pixels - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(given[0][0].numpy(), expected, atol=1e-5)


def test_a_missing_mask_token_does_not_matter(folder):
    # Only masked training uses it, and exports often omit it.
    rewrite_weights(folder, lambda name: not name.endswith("mask_token"))
    assert dinoviz.load(folder, device="cpu").layers == 3


# Refusals of a folder


def only_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def truncate(folder: Path, share: float) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (only_a_pickle, "pytorch_model.bin"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        *((lambda f, text=text: (f / "config.json").write_text(text), "config.json") for text in ("", "{", "[]", "{}")),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "'bert'"),
        (lambda folder: change_config(folder, hidden_size="many"), "hidden_size"),
        (lambda folder: change_config(folder, hidden_size=96), "model: its weights"),  # other shapes than in the file
        *((lambda folder, share=share: truncate(folder, share), "model: its weights") for share in (0, 0.001, 0.5)),
        # Weight and bias in three blocks: they are counted, and one is named.
        (lambda folder: rewrite_weights(folder, lambda name: "norm2" not in name), "6 weights"),
        (lambda folder: rewrite_weights(folder, lambda name: "norm2" not in name), "norm2"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_loaded(damage, named, folder):
    damage(folder)
    assert named in refused(folder, device="cpu")


# Devices


@pytest.mark.parametrize("device", ["quantum", "cuda:99", "cpu:banana"])
def test_a_device_that_is_not_available(device, folder):
    assert repr(device) in refused(folder, device=device)


def test_the_device_can_be_set_by_the_environment(monkeypatch):
    monkeypatch.setenv("DINOVIZ_DEVICE", "quantum")
    with pytest.raises(ModelError, match="'quantum'"):
        models.pick_device()
    monkeypatch.setenv("DINOVIZ_DEVICE", "cpu")
    assert models.pick_device() == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_computation_is_in_float32(folder):
    assert dinoviz.load(folder).dtype == torch.float32
