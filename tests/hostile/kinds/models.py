"""Model folders: pickles, indexes that lead elsewhere, configurations and weights that cannot be."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch

from tests.hostile.generate import Corpus, cuts, deep, spoilt

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class Touch:
    """Unpickled, it makes a file: who finds that one has run what was in a pickle."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def evil_pickle(corpus: Corpus) -> bytes:
    """A pickle that leaves corpus.root / "pickle-was-run" behind."""
    return pickle.dumps(Touch(corpus.root / "pickle-was-run"), protocol=2)


def write_good(folder: Path) -> None:
    """A tiny DINOv2 with random weights."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, mlp_ratio=2, patch_size=14, image_size=28
    )
    Dinov2Model(config).save_pretrained(folder)


def lying_header(claims: dict, content: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file whose header says this."""
    header = json.dumps(claims).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + content


def write(corpus: Corpus) -> None:
    good = corpus.model
    config = json.loads((good / "config.json").read_text())
    weights = (good / WEIGHTS).read_bytes()

    def model(
        name: str, expected="either", *, settings: dict | str | bytes | None = None, content: bytes | None = weights
    ) -> Path:
        folder = corpus.folder("model", name, expected)
        text = settings if isinstance(settings, str | bytes) else json.dumps({**config, **(settings or {})})
        (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        if content is weights:
            os.link(good / WEIGHTS, folder / WEIGHTS)
        elif content is not None:
            (folder / WEIGHTS).write_bytes(content)
        return folder

    model("good", "right")
    _configs(model)
    _pickles(corpus, model, config)
    _indexes(corpus, model, weights)
    _weights(corpus, model, weights)
    _files(corpus, model, good)


def _configs(model) -> None:
    for name, settings in {
        "empty": b"",
        "text": "no JSON",
        "list": "[]",
        "number": "7",
        "null": "null",
        "deep": deep(),
        "binary": b"\xff\xfe\0\x01",
        "deep-inside": '{"model_type": "dinov2", "a": ' + deep() + "}",
        "digits": '{"model_type": "dinov2", "hidden_size": ' + "9" * 5000 + "}",
        "no-type": '{"hidden_size": 24}',
        "type-list": '{"model_type": ["dinov2"]}',
        "type-number": '{"model_type": 7}',
        "type-path": '{"model_type": "../../x"}',
    }.items():
        model(f"config-{name}", "sentence", settings=settings)
    for name, settings in {
        "layers-1e9": {"num_hidden_layers": 10**9},
        "layers-0": {"num_hidden_layers": 0},
        "layers-negative": {"num_hidden_layers": -3},
        "layers-text": {"num_hidden_layers": "three"},
        "layers-infinite": {"num_hidden_layers": float("inf")},
        "layers-fewer": {"num_hidden_layers": 1},
        "heads-0": {"num_attention_heads": 0},
        "heads-5": {"num_attention_heads": 5},
        "heads-negative": {"num_attention_heads": -3},
        "heads-1e9": {"num_attention_heads": 10**9},
        "hidden-1e12": {"hidden_size": 10**12},
        "hidden-0": {"hidden_size": 0},
        "hidden-negative": {"hidden_size": -24},
        "hidden-nan": {"hidden_size": float("nan")},
        "mlp-1e9": {"mlp_ratio": 10**9},
        "mlp-0": {"mlp_ratio": 0},
        "patch-0": {"patch_size": 0},
        "patch-1e6": {"patch_size": 10**6},
        "patch-text": {"patch_size": "14"},
        "patch-pair": {"patch_size": [14, 7]},
        "size-1e9": {"image_size": 10**9},
        "size-0": {"image_size": 0},
        "size-pair": {"image_size": [28, 56]},
        "channels-4": {"num_channels": 4},
        "channels-1e9": {"num_channels": 10**9},
        "activation": {"hidden_act": "unknown"},
        "activation-list": {"hidden_act": ["gelu"]},
        "eps-nan": {"layer_norm_eps": float("nan")},
        "eps-text": {"layer_norm_eps": "x"},
        "dropout-2": {"hidden_dropout_prob": 2},
        "scale-text": {"layerscale_value": "x"},
        "type-other": {"model_type": "bert"},
        "type-large": {"model_type": "gpt2"},
        "code": {"auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}},
        "code-hub": {"auto_map": {"AutoModel": "someone/else--evil.Evil"}, "model_type": "evil"},
        "quantised": {"quantization_config": {"quant_method": "nothing"}},
        "quantised-list": {"quantization_config": []},
        "dtype": {"dtype": "float99"},
        "attention": {"_attn_implementation": "evil/kernel"},
        "swiglu": {"use_swiglu_ffn": True},
        "drop-path-nan": {"drop_path_rate": float("nan")},
        "version": {"transformers_version": "<b>99"},
        "outputs": {"output_attentions": True, "return_dict": False},
        "registers-1e9": {"model_type": "dinov2_with_registers", "num_register_tokens": 10**9},
        "bias": {"qkv_bias": "no"},
    }.items():
        folder = model(f"config-{name}", settings=settings)
        if name.startswith("code"):
            (folder / "evil.py").write_text("raise SystemExit('code of a model folder was run')\n")


def _pickles(corpus: Corpus, model, config: dict) -> None:
    evil = evil_pickle(corpus)
    for name in ("pytorch_model.bin", "model.pt", "weights.pth", "tf_model.h5"):
        (model(f"pickle-{name}", "sentence", content=None) / name).write_bytes(evil)
    model("pickle-as-safetensors", "sentence", content=evil)
    # Beside sound weights nobody needs to open it.
    (model("pickle-beside", "right") / "pytorch_model.bin").write_bytes(evil)
    (model("pickle-empty-safetensors", "sentence", content=b"") / "pytorch_model.bin").write_bytes(evil)


def _indexes(corpus: Corpus, model, weights: bytes) -> None:
    names = list(safetensors.numpy.load(weights))
    elsewhere = corpus.path("elsewhere.safetensors")
    elsewhere.write_bytes(weights)

    def index(name: str, text: str | dict, files: dict[str, bytes], expected="sentence") -> None:
        folder = model(f"index-{name}", expected, content=None)
        (folder / INDEX).write_text(text if isinstance(text, str) else json.dumps(text))
        for file, content in files.items():
            (folder / file).write_bytes(content)

    def all_in(file: str) -> dict:
        return {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, file)}

    shard = "model-00001-of-00001.safetensors"
    index("good", all_in(shard), {shard: weights}, "right")
    index("bin", all_in("pytorch_model.bin"), {"pytorch_model.bin": evil_pickle(corpus), "other.safetensors": weights})
    index("above", all_in("../elsewhere.safetensors"), {"other.safetensors": weights})
    index("absolute", all_in(str(elsewhere)), {"other.safetensors": weights})
    index("zero", all_in("/dev/zero"), {"other.safetensors": weights})
    index("missing", all_in("none.safetensors"), {"other.safetensors": weights})
    for name, text in {
        "list": "[]",
        "text": "no JSON",
        "deep": deep(),
        "empty": "",
        "map-list": '{"weight_map": []}',
        "map-numbers": '{"weight_map": {"a": 1}}',
        "no-map": "{}",
    }.items():
        index(name, text, {"other.safetensors": weights})


def _weights(corpus: Corpus, model, weights: bytes) -> None:
    arrays = safetensors.numpy.load(weights)
    first = next(name for name, value in arrays.items() if value.ndim == 2 and "query" in name)
    for name, part in cuts(weights, (0.001, 0.1, 0.7)).items():
        model(f"weights-{name}", "sentence", content=part)
    model("weights-spoilt-header", "sentence", content=spoilt(weights[:1000], corpus.random, 60) + weights[1000:])
    for name, changed in {
        "nan": {key: value * np.nan for key, value in arrays.items()},
        "one-nan": {**arrays, first: np.where(np.eye(24), np.nan, arrays[first]).astype(np.float32)},
        "infinite": {**arrays, first: np.full_like(arrays[first], np.inf)},
        "1e38": {**arrays, first: np.full_like(arrays[first], 3e38)},
        "missing": {k: v for k, v in arrays.items() if k != first},
        "none": {},
        "other": {"a": np.zeros(3, np.float32)},
        "shape": {**arrays, first: arrays[first][:-1]},
        "flat": {**arrays, first: arrays[first].ravel()},
        "whole": {key: value.astype(np.int64) for key, value in arrays.items()},
        "half": {key: value.astype(np.float16) for key, value in arrays.items()},
        "bool": {key: value > 0 for key, value in arrays.items()},
        "more": {**arrays, "evil.weight": np.zeros((3, 3), np.float32)},
    }.items():
        with np.errstate(all="ignore"):
            model(f"weights-{name}", content=safetensors.numpy.save(changed, {"format": "pt"}))
    tensor = {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}
    for name, content in {
        "claims": lying_header({first: tensor}),
        "length-most": lying_header({}, length=2**63),
        "length-all": lying_header({}, length=2**64 - 1),
        "overlap": lying_header(
            {
                first: {**tensor, "shape": [1], "data_offsets": [0, 4]},
                "b": {**tensor, "shape": [1], "data_offsets": [0, 4]},
            },
            bytes(4),
        ),
        "negative": lying_header({first: {**tensor, "shape": [-1]}}),
        "dtype": lying_header({first: {**tensor, "dtype": "X99"}}),
        "text": b"no weights",
        "empty": b"",
        "zeros": bytes(500),
        "deep": struct.pack("<Q", 200_000) + deep().encode(),
    }.items():
        model(f"weights-{name}", "sentence", content=content)


def _files(corpus: Corpus, model, good: Path) -> None:
    corpus.folder("model", "folder-empty", "sentence")
    for name, text in {
        "nan": '{"image_mean": [NaN, 0, 0], "image_std": [1, 1, 1]}',
        "infinite": '{"image_mean": [0, 0, 0], "image_std": [Infinity, 1, 1]}',
        "text": '{"image_mean": ["a", "b", "c"], "image_std": [1, 1, 1]}',
        "list": "[]",
        "deep": deep(),
        "tiny": '{"image_mean": [0, 0, 0], "image_std": [1e-300, 1, 1]}',
        "number": '{"image_mean": 1, "image_std": 2}',
        "lists": '{"image_mean": [[0], [0], [0]], "image_std": [1, 1, 1]}',
    }.items():
        (model(f"preprocessor-{name}") / "preprocessor_config.json").write_text(text)
    for name in ("config.json", WEIGHTS):
        for kind in ("fifo", "zero", "folder"):
            folder = corpus.folder("model", f"{kind}-{name}", "sentence")
            shutil.copytree(good, folder, dirs_exist_ok=True)
            (folder / name).unlink()
            if kind == "fifo":
                os.mkfifo(folder / name)
            elif kind == "zero":
                (folder / name).symlink_to("/dev/zero")
            else:
                (folder / name).mkdir()
    corpus.add("model", "file", b"a file, no folder", "sentence")
