"""The Segment tab's computing: masks of marks, concepts, results, captions, files; targets stay small."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps

from dinoviz import segment
from dinoviz.errors import DinovizError, Stopped
from dinoviz.segment.prompts import parse
from dinoviz.ui.segment import state as segment_state
from dinoviz.ui.segment.api import encoded_search
from dinoviz.ui.segment.exports import results, written_masks, zipped
from dinoviz.ui.segment.state import ALL, Choice, Query, Search
from dinoviz.ui.segment.targets import MAX_TARGETS, Refused, Target, Targets, checked
from dinoviz.ui.segment.views import ONLY_BACKGROUND, START, gallery_caption, marks_in_words, reference_caption

MODEL, RESOLUTION = "embedded", "224"
ON = {"kind": "point", "x": 320, "y": 200, "label": 1}
BACKGROUND = {"kind": "point", "x": 110, "y": 330, "label": 0}
STROKE = {"kind": "stroke", "points": [[250, 200], [400, 200]], "radius": 40, "erase": False}
ERASER = {"kind": "stroke", "points": [[320, 100], [320, 300]], "radius": 20, "erase": True}


@pytest.fixture(scope="module")
def store(bench) -> Targets:
    return Targets(bench)


@pytest.fixture(scope="module")
def files(tmp_path_factory, flower, chelsea) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pictures")
    pictures = {"flower": flower, "mirrored": ImageOps.mirror(flower), "cat": chelsea}
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")
    (folder / "corrupt.png").write_text("no picture")
    return {name: str(folder / f"{name}.png") for name in (*pictures, "corrupt")}


@pytest.fixture(scope="module")
def look(bench, files):
    return bench.look(files["flower"], MODEL, int(RESOLUTION))


@pytest.fixture(scope="module")
def found(store, files) -> list[Target]:
    return [store.get(files[name], MODEL, RESOLUTION) for name in ("mirrored", "cat")]


def search(store, look, marks=(ON,), choice=None, **more) -> Search:
    return Search(store.derived, look, list(marks), choice or Choice(), **more)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / max((a | b).sum(), 1)


# The reference


def test_nothing_marked_is_no_mask(store, look):
    for marks in ([], [BACKGROUND], [ERASER]):
        query = search(store, look, marks)
        assert query.reference is None
        assert query.concept is None
    assert START in reference_caption(search(store, look, []), None)
    assert ONLY_BACKGROUND in reference_caption(search(store, look, [BACKGROUND]), None)


def test_clicks_make_a_mask_at_the_shown_size(store, look):
    found = search(store, look, [ON, BACKGROUND]).reference
    assert found.mask.shape == look.picture.shown.size[::-1]
    height, width = found.mask.shape
    assert found.mask[height * 200 // 427, width // 2]
    assert not found.mask[height * 330 // 427, width * 110 // 640]


def test_strokes_alone_are_the_mask(store, look):
    found = search(store, look, [STROKE, ERASER]).reference
    drawn = parse([STROKE, ERASER], look.picture.image.size).scaled(look.picture.image.size, look.picture.shown.size)
    assert np.array_equal(found.mask, drawn.paint(np.zeros(found.mask.shape, bool)))


def test_strokes_have_the_last_word_over_clicks(store, look):
    marks = parse([ON, ERASER], look.picture.image.size)
    found = segment_state.mark(look.features, look.picture.image, marks, Choice())
    assert not found.mask[200, 320]
    assert found.mask.any()


def test_the_mask_is_computed_once_for_the_handlers_of_a_click(store, look):
    assert search(store, look, [ON]).reference is search(store, look, [ON]).reference
    assert (
        search(store, look, [ON], Choice(auto=False, threshold=0.9)).reference
        is not search(store, look, [ON]).reference
    )


# Other pictures


def test_the_object_is_found_where_it_is(store, look, found):
    query = search(store, look, [ON, BACKGROUND], Choice(instances=ALL), targets=found)
    mirrored = query.result(found[0], found[0].full)
    reference = segment_state.mark(look.features, look.picture.image, query.parsed, query.choice)
    assert mirrored.present
    assert overlap(mirrored.mask, reference.mask[:, ::-1]) > 0.6
    assert mirrored.presence > query.result(found[1], found[1].thumb).presence


def test_a_correction_counts_in_all_pictures(store, look, found):
    plain = search(store, look, [ON, BACKGROUND], targets=found)
    click = {"kind": "point", "x": 200, "y": 150, "label": 1}
    corrected = search(store, look, [ON, BACKGROUND], targets=found, corrections={found[1].digest: [click]})
    assert corrected.concept is not plain.concept
    assert corrected.corrected == [found[1]]
    assert corrected.result(found[1], found[1].thumb).present
    assert not np.array_equal(
        corrected.result(found[0], found[0].thumb).patch_score, plain.result(found[0], found[0].thumb).patch_score
    )


def test_a_stroke_on_a_target_is_learnt_and_stays_as_drawn(store, look, found):
    stroke = {"kind": "stroke", "points": [[100, 100], [200, 100]], "radius": 15, "erase": False}
    corrected = search(store, look, [ON], targets=found, corrections={found[1].digest: [stroke]})
    example = segment_state.example(found[1].features, corrected.parsed_for(found[1]))
    assert len(example.points) >= 1
    assert set(example.labels.tolist()) == {1}
    assert corrected.result(found[1], found[1].full).mask[100, 100:200].all()


def test_corrections_of_removed_pictures_do_not_count(store, look, found):
    query = search(store, look, [ON], targets=found[:1], corrections={found[1].digest: [ON]})
    assert query.corrected == []
    assert query.concept is search(store, look, [ON]).concept


def test_a_full_mask_is_a_problem(store, look, found):
    full = {"kind": "stroke", "points": [[0, 0], [640, 427]], "radius": 640, "erase": False}
    query = search(store, look, [full], targets=found)
    assert query.reference.mask.all()
    assert query.problem
    assert not search(store, look, [ON]).problem


@pytest.mark.parametrize(
    "wrong",
    [{"instances": "some"}, {"method": "magic"}, {"view": "x"}, {"threshold": 2}, {"smallest": -1}, {"opacity": 9}],
)
def test_a_wrong_option_is_refused(wrong):
    with pytest.raises(DinovizError, match=str(next(iter(wrong)))):
        Choice(**wrong)


# Targets


def test_a_target_is_small_and_gives_the_same_mask(store, look, files):
    target = store.get(files["flower"], MODEL, RESOLUTION)
    assert target.nbytes < look.features.nbytes / 20
    for layer in segment.layers_of(look.backbone.layers):
        assert target.features.layer(layer).dtype == np.float32
        assert target.features.layer(layer) == pytest.approx(look.features.layer(layer), rel=2e-3, abs=2e-3)
    query = search(store, look, [ON, BACKGROUND])
    exact = segment_state.find(query.concept, look.features, look.picture.image, parse([], (640, 427)), Choice())
    assert overlap(query.result(target, target.full).mask, exact.mask) > 0.99


def test_a_file_that_cannot_be_read_is_cached_as_refused(store, files):
    refused = store.get(files["corrupt"], MODEL, RESOLUTION)
    assert isinstance(refused, Refused)
    assert refused.name in refused.reason
    assert store.peek(files["corrupt"], MODEL, RESOLUTION) is refused


def test_a_peek_never_encodes(store, files, tmp_path, chelsea):
    chelsea.save(tmp_path / "new.png")
    assert store.peek(str(tmp_path / "new.png"), MODEL, RESOLUTION) is None
    assert store.peek(files["cat"], "dinov2-large", RESOLUTION) is None


def test_targets_are_encoded_in_the_background_and_can_be_stopped(store, tmp_path, chelsea):
    paths = []
    for i in range(4):
        chelsea.rotate(i + 1).save(tmp_path / f"{i}.png")
        paths.append(str(tmp_path / f"{i}.png"))
    job = store.start("owner", paths, MODEL, RESOLUTION)
    sentences = []
    for sentence in job.watch(0.01):
        sentences.append(sentence)
        if store.peek(paths[0], MODEL, RESOLUTION):
            job.stop()
    assert any("of 4" in sentence for sentence in sentences)
    with pytest.raises(Stopped):
        job._result.result()
    assert store.peek(paths[-1], MODEL, RESOLUTION) is None


def test_each_file_once_and_not_too_many():
    assert checked(["a", "b", "a"]) == ["a", "b"]
    assert checked(None) == []
    with pytest.raises(DinovizError, match=str(MAX_TARGETS)):
        checked([str(i) for i in range(MAX_TARGETS + 1)])


def test_the_memory_of_targets_is_bounded(bench, files, monkeypatch):
    small = Targets(bench)
    monkeypatch.setattr(small._cache, "bound", 1)
    for name in ("flower", "cat"):
        small.get(files[name], MODEL, RESOLUTION)
    assert small.peek(files["flower"], MODEL, RESOLUTION) is None
    assert small.peek(files["cat"], MODEL, RESOLUTION) is not None


# Files


def test_files_hold_every_picture_at_full_size(store, look, found, tmp_path):
    query = search(store, look, [ON, BACKGROUND], targets=found)
    files, about = written_masks(query, [Refused("x", "x.png", "x.png: no.")])
    sizes = [Image.open(file).size for file in files]
    assert sizes == [(640, 427), (640, 427), (451, 300)]
    assert about["refused"] == ["x.png: no."]
    for picture, file in zip(about["pictures"], files, strict=True):
        assert picture["area"] == (np.asarray(Image.open(file)) > 0).sum()
        assert picture["present"] or picture["area"] == 0


@pytest.mark.parametrize(("contents", "named"), [([], "masks"), (["music"], "music")])
def test_unknown_contents_of_the_zip_are_refused(store, look, contents, named):
    with pytest.raises(DinovizError, match=named):
        zipped(search(store, look), [], contents)


@pytest.mark.parametrize(
    "wrong",
    [
        {"marks": "[]"},
        {"marks": "{"},
        {"marks": json.dumps([{**ON, "x": 9999}])},
        {"corrections": '{"3": []}'},
        {"image": None},
    ],
)
def test_a_wrong_argument_of_the_endpoint_is_refused(bench, store, files, wrong):
    arguments = {"image": files["flower"], "marks": json.dumps([ON]), "targets": [files["cat"]], "corrections": "{}"}
    query = Query(**{"model": MODEL, "resolution": RESOLUTION, "choice": Choice(), **arguments})
    search, refused = encoded_search(bench, store, query)
    assert (len(search.targets), refused) == (1, [])
    with pytest.raises(DinovizError):
        encoded_search(bench, store, replace(query, **wrong))


def test_nothing_marked_gives_no_files(store, look):
    with pytest.raises(DinovizError):
        list(results(search(store, look, [BACKGROUND])))


# Words


@pytest.mark.parametrize(
    ("marks", "words"),
    [
        ([ON], "1 click"),
        ([ON, ON, BACKGROUND], "2 clicks, 1 click on background"),
        ([BACKGROUND, BACKGROUND, STROKE], "2 clicks on background, 1 stroke"),
    ],
)
def test_marks_in_words(marks, words):
    assert marks_in_words(parse(marks, (640, 427))) == words


def test_the_gallery_in_words(store, look, found):
    cards = [{"state": state} for state in ("present", "present", "absent", "bad", "waiting")]
    words = gallery_caption(cards, search(store, look))
    assert "5 pictures: found in 2, not found in 1, 1 cannot be read, 1 not encoded yet." in words
    assert "1 picture: mark" in gallery_caption([{"state": "plain"}], None)
