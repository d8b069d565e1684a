"""Marks as a page or a client sends them: JSON that is deep, huge, infinite, or of the wrong types."""

from __future__ import annotations

import json

from tests.hostile.generate import Corpus, deep


def write(corpus: Corpus) -> None:
    for name, value, expected in _values():
        corpus.add("marks", f"{name}.json", json.dumps(value).encode(), expected)
    for name, text in _texts().items():
        corpus.add("marks", f"text-{name}.json", text.encode(), "sentence")
    with corpus.add("marks", "text-long.json", b"", "sentence").open("wb") as file:
        file.truncate(8_100_000)
    corpus.add("marks", "text-spaces.json", b"   ")
    corpus.add("marks", "text-none.json", b"", "right")


def _point(**changed) -> dict:
    return {"kind": "point", "x": 20, "y": 30, "label": 1, **changed}


def _stroke(**changed) -> dict:
    return {"kind": "stroke", "points": [[10, 10], [40, 30]], "radius": 5, "erase": False, **changed}


def _values() -> tuple[tuple[str, object, str], ...]:
    """A name, the marks, and what is expected of them."""
    infinite, nan = float("inf"), float("nan")
    zigzag = [[i * 37 % 7000, i * 91 % 7000] for i in range(6000)]
    return (
        ("good", [_point(), _stroke(), _point(label=0)], "right"),
        ("empty", [], "right"),
        ("eraser", [_stroke(erase=True)], "right"),
        ("one-point", [_stroke(points=[[5, 5]])], "right"),
        ("half", [_point(x=0.5, y=71.99)], "right"),
        ("outside", [_point(x=1e6)], "sentence"),
        ("negative", [_point(x=-1)], "sentence"),
        ("nan", [_point(x=nan)], "sentence"),
        ("infinite", [_point(y=infinite)], "sentence"),
        ("1e308", [_point(x=1e308)], "sentence"),
        ("digits", [_point(x=10**400)], "sentence"),
        ("text-number", [_point(x="20")], "sentence"),
        ("boolean", [_point(x=True)], "sentence"),
        ("null", [_point(x=None)], "sentence"),
        ("list-number", [_point(x=[20])], "sentence"),
        ("label-2", [_point(label=2)], "sentence"),
        ("label-list", [_point(label=[1])], "sentence"),
        ("label-text", [_point(label="1")], "sentence"),
        ("label-nan", [_point(label=nan)], "sentence"),
        ("label-dict", [_point(label={})], "sentence"),
        ("label-true", [_point(label=True)], "either"),
        ("kind", [{"kind": "evil"}], "sentence"),
        ("kind-list", [{"kind": []}], "sentence"),
        ("kind-long", [{"kind": "x" * 100_000}], "sentence"),
        ("no-kind", [{}], "sentence"),
        ("numbers", [1, 2, 3], "sentence"),
        ("nulls", [None], "sentence"),
        ("lists", [[[]]], "sentence"),
        ("dict", {"kind": "point"}, "sentence"),
        ("text", "marks", "sentence"),
        ("number", 7, "sentence"),
        ("true", True, "sentence"),
        ("nothing", None, "either"),
        ("too-many", [_point()] * 1001, "sentence"),
        ("most", [_point()] * 1000, "right"),
        ("radius-7071", [_stroke(radius=7071)], "either"),
        ("radius-96", [_stroke(radius=96)], "right"),
        ("radius-0", [_stroke(radius=0)], "sentence"),
        ("radius-nan", [_stroke(radius=nan)], "sentence"),
        ("radius-1e308", [_stroke(radius=1e308)], "sentence"),
        ("radius-tiny", [_stroke(radius=1e-300)], "either"),
        ("points-none", [_stroke(points=[])], "sentence"),
        ("points-three", [_stroke(points=[[1, 2, 3]])], "sentence"),
        ("points-ragged", [_stroke(points=[[1, 2], [3]])], "sentence"),
        ("points-text", [_stroke(points="12")], "sentence"),
        ("points-dict", [_stroke(points={"0": 1})], "sentence"),
        ("points-nan", [_stroke(points=[[nan, 1]])], "sentence"),
        ("points-far", [_stroke(points=[[1e300, 1]])], "sentence"),
        ("points-digits", [_stroke(points=[[10**400, 1]])], "sentence"),
        ("points-texts", [_stroke(points=[["1", "2"]])], "either"),
        ("points-nulls", [_stroke(points=[[None, None]])], "sentence"),
        ("points-200000", [_stroke(points=[[i % 96, i % 72] for i in range(200_000)])], "either"),
        ("points-200001", [_stroke(points=[[1, 1]] * 200_001)], "sentence"),
        ("points-6000-wide", [_stroke(points=zigzag, radius=7071)], "either"),
        ("strokes-1000", [_stroke(points=[[i % 96, i % 72] for i in range(40)], radius=70)] * 1000, "either"),
        ("erase-list", [_stroke(erase=[0])], "either"),
        ("more", [{**_point(), "evil": "<script>"}], "either"),
        ("points-booleans", [_stroke(points=[[True, False]])], "either"),
    )


def _texts() -> dict[str, str]:
    return {
        "deep": deep(),
        "deep-dicts": '{"a":' * 50_000 + "1" + "}" * 50_000,
        "deep-point": '[{"kind": "point", "x": ' + deep() + "}]",
        "deep-points": '[{"kind": "stroke", "radius": 1, "points": ' + deep() + "}]",
        "no-json": "points",
        "cut": '[{"kind": "point", "x": 2',
        "twice": "[][]",
        "digits-5000": '[{"kind": "point", "x": ' + "9" * 5000 + ', "y": 1, "label": 1}]',
        "surrogate": '[{"kind": "\\ud800"}]',
    }
