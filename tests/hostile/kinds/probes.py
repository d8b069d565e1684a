"""Depth probes whose header asks for too much, whose numbers are none, or that are no probes."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import safetensors.numpy
import torch

from tests.hostile.generate import Corpus, cuts, deep
from tests.hostile.kinds.models import evil_pickle, lying_header


def about(model: Path) -> dict:
    """What the header of a sound probe for the tiny model says."""
    import dinoviz

    backbone = dinoviz.load(model, device="cpu", dtype=torch.float32)
    return {
        "weights_id": backbone.weights_id,
        "backbone": backbone.name,
        "head": "linear",
        "layers": [0, 1],
        "depth": [0.5, 10.0],
        "resolution": 56,
        "channels": 2 * backbone.dim,
        "bins": 16,
        "upsample": 2,
        "cls": True,
        "data": {},
        "metrics": {},
    }


def write_good(path: Path, model: Path, **changed) -> None:
    """A probe with random weights that reads the tiny model."""
    from dinoviz import depth
    from dinoviz.depth import heads as depth_heads

    torch.manual_seed(0)
    header = {**about(model), **changed}
    depth.save_probe(path, depth_heads.make(header), header)


def write(corpus: Corpus) -> None:
    good = (corpus.root / "good" / "probe.safetensors").read_bytes()
    arrays, header = safetensors.numpy.load(good), about(corpus.model)

    def probe(
        name: str, header: object = None, expected="either", changed: dict | None = None, text: str | None = None
    ) -> None:
        text = json.dumps(header) if text is None else text
        content = safetensors.numpy.save({**arrays, **(changed or {})}, {"probe": text})
        corpus.add("probe", f"{name}.safetensors", content, expected)

    probe("good", header, "right")
    for head in ("mlp", "conv"):
        path = corpus.add("probe", f"good-{head}.safetensors", None, "right")
        write_good(path, corpus.model, head=head, members=2)
    _headers(corpus, partial(probe, expected="either"), header)
    for name, text in {
        "text": "no JSON",
        "list": "[]",
        "null": "null",
        "deep": deep(),
        "digits": json.dumps(header).replace("56", "9" * 5000),
        "empty": "",
        "deep-inside": json.dumps(header)[:-1] + ', "more": ' + deep() + "}",
    }.items():
        probe(f"header-{name}", text=text)
    weights = [name for name, value in arrays.items() if value.ndim == 2]
    for name, changed in {
        "nan": {key: arrays[key] * float("nan") for key in weights},
        "shape": {key: arrays[key][:-1] for key in weights},
        "whole": {key: arrays[key].astype("int64") for key in weights},
        "more": {"evil": arrays[weights[0]]},
        "familiar-shape": {"familiar": arrays[weights[0]]},
        "familiar-deep": {"familiar": arrays[weights[0]][None]},
        "infinite": {key: arrays[key] * float("inf") for key in weights},
    }.items():
        probe(f"weights-{name}", {**header, "familiar_limit": 0.1}, changed=changed)
    _files(corpus, good)


def _headers(corpus: Corpus, probe, header: dict) -> None:
    infinite, nan = float("inf"), float("nan")
    for key, values in {
        "upsample": [1000, 0, -1, 10**9, True, "2", 1.5, infinite, nan, None, [2]],
        "members": [10**9, 0, -1, infinite, "2", 1.5],
        "resolution": [infinite, nan, "56", 10**400, 56.5, None, [56], -1],
        "depth": [[0, infinite], [nan, 10], [10, 0.5], ["a", "b"], [1], 7, [0.5, 1e308], [-5, 10]],
        "bins": [10**9, 0, -1, infinite, "16", 15],
        "channels": [10**12, 0, -1, infinite, 47],
        "layers": [[], [-1], [10**9], [0] * 100_000, 7, ["0", "1"], [0.5, 1], [0, infinite], [1]],
        "head": ["unknown", ["linear"], None, {"a": 1}],
        "cls": ["no", None, False],
        "weights_id": ["other", 7, None, ""],
        "backbone": [None, 7, "<b>\n"],
        "familiar_limit": [infinite, nan, 0, "a"],
    }.items():
        for number, value in enumerate(values):
            changed = {**header, key: value, **({"head": "conv"} if key == "members" else {})}
            probe(f"{key}-{number}", changed)
        probe(f"{key}-missing", {k: v for k, v in header.items() if k != key})


def _files(corpus: Corpus, good: bytes) -> None:
    for name, part in cuts(good, (0.01, 0.3, 0.8)).items():
        corpus.add("probe", f"{name}.safetensors", part, "sentence")
    tensor = {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}
    for name, content in {
        "empty": b"",
        "text": b"no probe",
        "pickle": evil_pickle(corpus),
        "claims": lying_header({"a": tensor}),
        "length": lying_header({}, length=2**63),
        "no-metadata": lying_header({}),
        "metadata": lying_header({"__metadata__": {"probe": "{}"}}),
    }.items():
        corpus.add("probe", f"none-{name}.safetensors", content, "sentence")
    corpus.folder("probe", "folder", "sentence")
    os.mkfifo(corpus.add("probe", "fifo.safetensors", None, "sentence"))
    corpus.add("probe", "link-zero.safetensors", None, "sentence").symlink_to("/dev/zero")
    corpus.add("probe", "link-none.safetensors", None, "sentence").symlink_to("nothing")
    with corpus.add("probe", "sparse.safetensors", b"", "sentence").open("wb") as file:
        file.truncate(2**33)
