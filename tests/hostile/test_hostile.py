"""No hostile file makes a traceback, hangs or takes the memory; see `python -m tests.hostile`."""

from pathlib import Path

import pytest

from dinoviz import embedded_weights as embedded
from tests.hostile import load
from tests.hostile.app import feed as feed_app
from tests.hostile.generate import Case, generate, size_of
from tests.hostile.run import defects, feed, table

QUICK = {"images": 6, "masks": 2, "marks": 3}  # of how many files of a kind one is taken
QUICK_DOORS = ("open_image", "mask", "marks")


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("hostile") / "corpus")


def _some(cases: list[Case], kind: str, step: int) -> list[Case]:
    """Every so many of a kind, without pictures that are right and take seconds."""
    return [case for case in cases if case.kind == kind and "/large-" not in case.name][::step]


def test_a_part_of_the_files_at_the_doors_of_the_library(tmp_path):
    corpus = generate(tmp_path / "corpus", QUICK, models=False)
    corpus.cases = [case for kind, step in QUICK.items() for case in _some(corpus.cases, kind, step)]
    results = list(feed(corpus, QUICK_DOORS))
    assert len(results) > 60
    assert not defects(results), table(results)


def test_the_same_seed_gives_the_same_files(tmp_path):
    first, second = (generate(tmp_path / name, ["masks", "marks"], models=False) for name in "ab")
    for one, other in zip(first.cases, second.cases, strict=True):
        assert one.name == other.name
        if Path(one.path).is_file():
            assert Path(one.path).read_bytes() == Path(other.path).read_bytes(), one.name


@pytest.mark.slow
def test_the_files_are_many_and_small(everything):
    assert len(everything.cases) > 250
    assert size_of(everything.root) < 50_000_000


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_file_at_every_door_of_the_library_and_the_command_line(everything):
    results = list(feed(everything))
    assert not defects(results), table(results)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(embedded.onnx_path() is None, reason="needs the embedded weights")
def test_every_file_at_the_endpoints_of_the_app(everything, tmp_path):
    results = list(feed_app(everything, None, tmp_path / "app.log"))
    assert not defects(results), table(results)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(embedded.onnx_path() is None, reason="needs the embedded weights")
def test_good_requests_are_answered_among_hostile_ones(tmp_path):
    figures = load.run(60, 4, tmp_path)
    assert not figures["defects"]
    assert figures["tracebacks"] == 0
    assert load.bounded(figures)
