"""Files of settings for `python -m training pretrain --config`."""

from __future__ import annotations

import json

from tests.hostile.generate import Corpus, deep


def write(corpus: Corpus) -> None:
    infinite, nan = float("inf"), float("nan")
    for name, value, expected in (
        ("good", {"epochs": 2.0, "dim": 96, "heads": 3}, "right"),
        ("list", [], "sentence"),
        ("number", 7, "sentence"),
        ("null", None, "sentence"),
        ("unknown", {"evil": 1}, "sentence"),
        ("epochs-infinite", {"epochs": infinite}, "sentence"),
        ("epochs-nan", {"epochs": nan}, "sentence"),
        ("epochs-text", {"epochs": "many"}, "sentence"),
        ("epochs-digits", {"epochs": 10**400}, "sentence"),
        ("epochs-list", {"epochs": [1]}, "sentence"),
        ("dim-real", {"dim": 96.5}, "sentence"),
        ("dim-true", {"dim": True}, "either"),
        ("dim-most", {"dim": 2**70}, "sentence"),
        ("seed-negative", {"seed": -1}, "sentence"),
        ("scale-long", {"global_scale": [0.1] * 10_000}, "sentence"),
        ("scale-texts", {"global_scale": ["a", "b"]}, "sentence"),
        ("scale-nan", {"global_scale": [nan, 1]}, "sentence"),
        ("lr-infinite", {"lr": infinite}, "sentence"),
        ("centring-list", {"centring": ["ema"]}, "sentence"),
        ("patch-list", {"patch": [8]}, "sentence"),
        ("data-number", {"data": 7}, "sentence"),
        ("data-null", {"data": [None]}, "sentence"),
        ("heads-0", {"heads": 0}, "sentence"),
        ("start-number", {"start": 7}, "sentence"),
        ("compile-text", {"compile": "yes"}, "either"),
        ("key-empty", {"": 1}, "sentence"),
    ):
        corpus.add("settings", f"{name}.json", json.dumps(value).encode(), expected)
    for name, text in {
        "deep": deep().encode(),
        "deep-inside": b'{"epochs": ' + deep().encode() + b"}",
        "no-json": b"epochs: 2",
        "empty": b"",
        "binary": b"\xff\xfe\0",
        "digits-5000": b'{"dim": ' + b"9" * 5000 + b"}",
    }.items():
        corpus.add("settings", f"text-{name}.json", text, "sentence")
    corpus.add("settings", "zero.json", None, "sentence").symlink_to("/dev/zero")
    corpus.folder("settings", "folder.json", "sentence")
