"""Marks as a page or a client sends them: JSON that is deep, huge, infinite, or of the wrong types."""

from __future__ import annotations

import json

from tests.hostile.generate import Corpus, deep


def write(corpus: Corpus) -> None:
    def point(**changed) -> dict:
        return {"kind": "point", "x": 20, "y": 30, "label": 1, **changed}

    def stroke(**changed) -> dict:
        return {"kind": "stroke", "points": [[10, 10], [40, 30]], "radius": 5, "erase": False, **changed}

    infinite, nan = float("inf"), float("nan")
    zigzag = [[i * 37 % 7000, i * 91 % 7000] for i in range(6000)]
    for name, value, expected in (
        ("good", [point(), stroke(), point(label=0)], "right"),
        ("empty", [], "right"),
        ("eraser", [stroke(erase=True)], "right"),
        ("one-point", [stroke(points=[[5, 5]])], "right"),
        ("half", [point(x=0.5, y=71.99)], "right"),
        ("outside", [point(x=1e6)], "sentence"),
        ("negative", [point(x=-1)], "sentence"),
        ("nan", [point(x=nan)], "sentence"),
        ("infinite", [point(y=infinite)], "sentence"),
        ("1e308", [point(x=1e308)], "sentence"),
        ("digits", [point(x=10**400)], "sentence"),
        ("text-number", [point(x="20")], "sentence"),
        ("boolean", [point(x=True)], "sentence"),
        ("null", [point(x=None)], "sentence"),
        ("list-number", [point(x=[20])], "sentence"),
        ("label-2", [point(label=2)], "sentence"),
        ("label-list", [point(label=[1])], "sentence"),
        ("label-text", [point(label="1")], "sentence"),
        ("label-nan", [point(label=nan)], "sentence"),
        ("label-dict", [point(label={})], "sentence"),
        ("label-true", [point(label=True)], "either"),
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
        ("too-many", [point()] * 1001, "sentence"),
        ("most", [point()] * 1000, "right"),
        ("radius-7071", [stroke(radius=7071)], "either"),
        ("radius-96", [stroke(radius=96)], "right"),
        ("radius-0", [stroke(radius=0)], "sentence"),
        ("radius-nan", [stroke(radius=nan)], "sentence"),
        ("radius-1e308", [stroke(radius=1e308)], "sentence"),
        ("radius-tiny", [stroke(radius=1e-300)], "either"),
        ("points-none", [stroke(points=[])], "sentence"),
        ("points-three", [stroke(points=[[1, 2, 3]])], "sentence"),
        ("points-ragged", [stroke(points=[[1, 2], [3]])], "sentence"),
        ("points-text", [stroke(points="12")], "sentence"),
        ("points-dict", [stroke(points={"0": 1})], "sentence"),
        ("points-nan", [stroke(points=[[nan, 1]])], "sentence"),
        ("points-far", [stroke(points=[[1e300, 1]])], "sentence"),
        ("points-digits", [stroke(points=[[10**400, 1]])], "sentence"),
        ("points-texts", [stroke(points=[["1", "2"]])], "either"),
        ("points-nulls", [stroke(points=[[None, None]])], "sentence"),
        ("points-200000", [stroke(points=[[i % 96, i % 72] for i in range(200_000)])], "either"),
        ("points-200001", [stroke(points=[[1, 1]] * 200_001)], "sentence"),
        ("points-6000-wide", [stroke(points=zigzag, radius=7071)], "either"),
        ("strokes-1000", [stroke(points=[[i % 96, i % 72] for i in range(40)], radius=70)] * 1000, "either"),
        ("erase-list", [stroke(erase=[0])], "either"),
        ("more", [{**point(), "evil": "<script>"}], "either"),
        ("points-booleans", [stroke(points=[[True, False]])], "either"),
    ):
        corpus.add("marks", f"{name}.json", json.dumps(value).encode(), expected)
    for name, text in {
        "deep": deep(),
        "deep-dicts": '{"a":' * 50_000 + "1" + "}" * 50_000,
        "deep-point": '[{"kind": "point", "x": ' + deep() + "}]",
        "deep-points": '[{"kind": "stroke", "radius": 1, "points": ' + deep() + "}]",
        "no-json": "points",
        "cut": '[{"kind": "point", "x": 2',
        "twice": "[][]",
        "digits-5000": '[{"kind": "point", "x": ' + "9" * 5000 + ', "y": 1, "label": 1}]',
        "surrogate": '[{"kind": "\\ud800"}]',
    }.items():
        corpus.add("marks", f"text-{name}.json", text.encode(), "sentence")
    with corpus.add("marks", "text-long.json", b"", "sentence").open("wb") as file:
        file.truncate(8_100_000)
    corpus.add("marks", "text-spaces.json", b"   ")
    corpus.add("marks", "text-none.json", b"", "right")
