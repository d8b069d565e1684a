"""What was marked: read from JSON with limits, and made pixels."""

import json
import time
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinoviz.errors import DinovizError
from dinoviz.segment import prompts as marking
from dinoviz.segment.prompts import MAX_ACTIONS, MAX_PICTURES, MAX_STROKE_POINTS, by_picture, listed, parse

SIZE = (200, 120)


def point(x=10, y=20, label=1) -> dict:
    return {"kind": "point", "x": x, "y": y, "label": label}


def stroke(points=((10, 10), (100, 60)), radius=8, erase=False) -> dict:
    return {"kind": "stroke", "points": [list(p) for p in points], "radius": radius, "erase": erase}


def distances(points, size) -> np.ndarray:
    """(H, W) of each pixel's centre to the line: an independent, slow way to say what a stroke covers."""
    points = np.asarray(points, dtype=float)
    centres = np.stack(np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5), axis=-1)
    nearest = np.hypot(*np.moveaxis(centres - points[0], -1, 0))
    for start, end in pairwise(points):
        along = end - start
        share = np.clip((centres - start) @ along / max(along @ along, 1e-12), 0, 1)
        nearest = np.minimum(nearest, np.hypot(*np.moveaxis(centres - start - share[..., None] * along, -1, 0)))
    return nearest


def empty(size=SIZE) -> np.ndarray:
    return np.zeros(size[::-1], dtype=bool)


# Points


def test_points_keep_their_order_and_labels():
    marks = parse(json.dumps([point(1, 2, 1), stroke(), point(3.5, 4, 0)]), SIZE)
    assert marks.points.tolist() == [[1, 2], [3.5, 4]]
    assert marks.labels.tolist() == [1, 0]
    assert len(marks) == 3


def test_nothing_is_no_marks():
    for nothing in ("", "[]", None, []):
        marks = parse(nothing, SIZE)
        assert len(marks) == 0
        assert marks.points.shape == (0, 2)
        assert not marks.paint(empty()).any()


def test_a_hundred_points_are_fine():
    assert len(parse([point(i, i, i % 2) for i in range(100)], SIZE).points) == 100


def test_the_far_edge_belongs_to_the_picture():
    assert parse([point(200, 120)], SIZE).points.tolist() == [[200, 120]]


# Strokes


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-30, 230), st.floats(-30, 150)), min_size=1, max_size=6),
    st.floats(0.5, 60),
)
def test_a_stroke_covers_what_lies_within_its_radius(points, radius):
    drawn = parse([stroke(points, radius)], SIZE).paint(empty())
    away = distances(points, SIZE)
    # At most one pixel of error, along the border.
    assert drawn[away <= radius - 1].all()
    assert not drawn[away >= radius + 1].any()


def test_a_single_touch_is_a_disc():
    drawn = parse([stroke([(50.5, 60.5)], 10)], SIZE).paint(empty())
    assert drawn.sum() == pytest.approx(np.pi * 10**2, rel=0.05)


def test_strokes_are_applied_in_order():
    line, across = [(20, 60), (180, 60)], [(100, 20), (100, 100)]
    gap = parse([stroke(line), stroke(across, erase=True)], SIZE).paint(empty())
    assert gap[60, 30]
    assert not gap[60, 100]
    whole = parse([stroke(across, erase=True), stroke(line)], SIZE).paint(empty())
    assert whole[60, 100]


def test_strokes_lie_over_the_mask_that_was_there():
    erased = parse([stroke([(100, 60)], 20, erase=True)], SIZE).paint(~empty())
    assert not erased[60, 100]
    assert erased[10, 10]


@pytest.mark.parametrize("factor", [0.25, 1.7, 4])
def test_marks_follow_the_picture_to_another_size(factor):
    size = (round(200 * factor), round(120 * factor))
    marks = parse([point(50, 30), stroke([(20, 20), (150, 90)], 12)], SIZE).scaled(SIZE, size)
    assert marks.points == pytest.approx(np.array([[50, 30]]) * factor, rel=0.01)
    away = distances(np.array([(20, 20), (150, 90)]) * np.divide(size, SIZE), size)
    drawn = marks.paint(empty(size))
    assert drawn[away <= 12 * factor - 1].all()
    assert not drawn[away >= 12 * factor + 1].any()


def test_the_largest_picture_does_not_overflow():
    size = (50_000, 1000)
    drawn = parse([stroke([(-199_000, 500), (199_000, 500)], 10)], size).paint(np.zeros(size[::-1], dtype=bool))
    assert drawn[500].all()
    assert drawn.sum() == pytest.approx(20 * 50_000, rel=0.1)


def test_a_stroke_of_huge_discs_costs_no_more_than_a_page_allows():
    """As drawn on a picture of 50 million pixels, where it took 22 seconds."""
    size = (7071, 7071)
    points = np.random.default_rng(0).uniform(0, 7071, (6000, 2)).tolist()
    marks = parse([stroke(points, 7071), stroke([(3000, 3000)], 500, erase=True)], size)
    mask = np.zeros(size[::-1], dtype=bool)
    began = time.process_time()
    drawn = marks.paint(mask)
    assert time.process_time() - began < 3
    assert not drawn[2700:3300, 2700:3300].any()
    assert drawn[:2000].all()


def test_what_is_drawn_smaller_lies_where_it_would_lie(monkeypatch):
    marks = parse([stroke([(40, 60), (160, 70)], 25), stroke([(100, 60)], 10, erase=True)], SIZE)
    exact = marks.paint(empty())
    monkeypatch.setattr(marking, "MAX_FILLED", 3000)
    smaller = marks.paint(empty())
    outline = cv2.morphologyEx(exact.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((9, 9), np.uint8)).astype(bool)
    assert (smaller != exact).any()
    assert (smaller == exact)[~outline].all()
    assert marks.paint(~empty())[110, 190], "what no stroke went over stays"


# What is refused


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('"point"', "a list of points and strokes"),
        ("5", "a list of points and strokes"),
        ("[5]", "a point or a stroke, not 5"),
        ('[{"kind": "circle"}]', "not 'circle'"),
        ('[{"kind": "point", "x": 1, "y": 2}]', "label of a point .* 1 or 0, not None"),
        ('[{"kind": "point", "x": 1, "label": 1}]', "y of a point "),
        ('[{"kind": "point", "x": true, "y": 2, "label": 1}]', "x of a point "),
        ('[{"kind": "point", "x": NaN, "y": 2, "label": 1}]', "x of a point "),
        ('[{"kind": "point", "x": 1e999, "y": 2, "label": 1}]', "x of a point "),
        ('[{"kind": "point", "x": 1, "y": 2, "label": 7}]', "1 or 0, not 7"),
        ('[{"kind": "stroke", "points": [[1, 2]], "radius": 0}]', "radius of a stroke"),
        ('[{"kind": "stroke", "points": [[1, 2]], "radius": 1e9}]', "radius of a stroke"),
        ('[{"kind": "stroke", "points": [], "radius": 5}]', "list of x, y"),
        ('[{"kind": "stroke", "points": [[1, 2, 3]], "radius": 5}]', "list of x, y"),
        ('[{"kind": "stroke", "points": [[1, "a"]], "radius": 5}]', "list of x, y"),
        ('[{"kind": "stroke", "points": [[1], [2, 3]], "radius": 5}]', "list of x, y"),
        ('[{"kind": "stroke", "points": [[1, NaN]], "radius": 5}]', "list of x, y"),
        ('[{"kind": "stroke", "points": 7, "radius": 5}]', "list of x, y"),
        ('[{"kind": "stroke", "points": [[1e7, 2]], "radius": 5}]', "list of x, y"),
        ('[{"kind": "stroke", "points": [["1", "2"]], "radius": 5}]', "list of x, y"),
        ('[{"kind": "stroke", "points": [[true, 2]], "radius": 5}]', "list of x, y"),
        ('[{"kind": "stroke", "points": [[null, 2]], "radius": 5}]', "list of x, y"),
        ('[{"kind": "stroke", "points": [[[1], 2]], "radius": 5}]', "list of x, y"),
        (f'[{{"kind": "stroke", "points": [[{10**400}, 2]], "radius": 5}}]', "list of x, y"),
        ('[{"kind": "stroke", "points": [[1, 2]], "radius": 5, "erase": "false"}]', "true or false"),
        (f'[{{"kind": "point", "x": {10**400}, "y": 2, "label": 1}}]', "x of a point "),
        ('[{"kind": "point", "x": 1, "y": 2, "label": true}]', "1 or 0, not True"),
        ('[{"kind": "point", "x": 1e308, "y": 2, "label": 1}]', "outside the picture"),
        (f'[{{"kind": "point", "x": {"9" * 5000}, "y": 2, "label": 1}}]', "not valid JSON"),
    ],
)
def test_invalid_marks_are_refused_in_one_line(text, named):
    with pytest.raises(DinovizError, match=named) as caught:
        parse(text, SIZE)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("x", "y"), [(-1, 5), (201, 5), (5, -0.1), (5, 121)])
def test_a_click_outside_is_refused(x, y):
    with pytest.raises(DinovizError, match="outside the picture of 200 x 120"):
        parse([point(x, y)], SIZE)


def test_deep_nesting_is_refused_in_fields_that_are_not_read():
    """Marks are encoded as JSON again later, where deep nesting would fail."""
    unread = json.dumps({**point(), "more": 0})[:-2] + "[" * 100 + "]" * 100 + "}"
    with pytest.raises(DinovizError, match="8 levels"):
        listed(f"[{unread}]")
    with pytest.raises(DinovizError, match="8 levels"):
        by_picture(f'{{"a": [{unread}]}}')


def test_too_many_marks_are_refused(monkeypatch):
    with pytest.raises(DinovizError, match="at most 1,000"):
        parse([point()] * (MAX_ACTIONS + 1), SIZE)
    with pytest.raises(DinovizError, match=f"at most {MAX_STROKE_POINTS:,}"):
        parse([stroke([(1, 1)] * (MAX_STROKE_POINTS + 1))], SIZE)
    with pytest.raises(DinovizError, match=f"at most {MAX_STROKE_POINTS:,}"):
        parse([stroke([(1, 1)] * (MAX_STROKE_POINTS // 2))] * 3, SIZE)
    monkeypatch.setattr(marking, "MAX_TEXT", 10)
    with pytest.raises(DinovizError, match="characters long"):
        parse(json.dumps([point()]), SIZE)


# JSON from the app and from clients


def test_marks_come_by_picture():
    assert by_picture('{"a": [1], "b": []}') == {"a": [1], "b": []}
    assert by_picture("") == by_picture(None) == {}


@pytest.mark.parametrize("text", ["[]", '{"a": 5}', "{", '"a"', 5, ["a"]])
def test_json_that_is_not_by_picture_is_refused(text):
    with pytest.raises(DinovizError):
        by_picture(text)


def test_marks_of_too_many_pictures_are_refused():
    with pytest.raises(DinovizError, match="at most 1,000"):
        by_picture(json.dumps({str(i): [] for i in range(MAX_PICTURES + 1)}))


def test_a_client_sends_a_list():
    assert listed("[1]") == [1]
    assert listed("") == []
    with pytest.raises(DinovizError, match="a list of points and strokes"):
        listed("{}")
