"""Segmentation from clicks and references, its formulas, and refusals."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import Ridge

from dinoviz import segment
from dinoviz.errors import DinovizError
from dinoviz.features import Features, LayerTokens
from dinoviz.grid import PatchGrid
from dinoviz.segment import few_shot
from dinoviz.segment.positional_bias import content_free, positional_bias, unit_patches
from dinoviz.segment.segmentation import Example

RESOLUTION = 336
COLOURS = ((220, 40, 40), (40, 200, 60), (40, 60, 220), (230, 220, 40), (20, 20, 20), (240, 240, 240))


def encode(backbone, image, resolution=RESOLUTION):
    return backbone.encode(image, resolution, segment.layers_of(backbone.layers))


def overlap(a, b):
    return (a & b).sum() / max(1, (a | b).sum())


def made_up(patches: np.ndarray, size: tuple[int, int]) -> Features:
    """Features of a two-layer model with the given patches (h, w, D)."""
    h, w, _ = patches.shape
    grid = PatchGrid(size, (w * 14, h * 14), 14)
    nothing = np.empty(0, np.float32)
    tokens = LayerTokens(patches.astype(np.float32), nothing, nothing, nothing, nothing)
    return Features(nothing, tokens.patches, nothing, grid, 2, {0: tokens, 1: tokens}, 1.0, "made up", "made up")


def two_kinds(shape=(12, 16), noise=0.05, box=(3, 9, 4, 11), seed=0):
    """Features of an object (a box of patches) on a background, and its mask at 14 pixels a patch."""
    rng = np.random.default_rng(seed)
    inside = np.zeros(shape, bool)
    inside[box[0] : box[1], box[2] : box[3]] = True
    patches = np.where(inside[..., None], np.eye(8)[0], np.eye(8)[1]) + noise * rng.normal(size=(*shape, 8))
    return made_up(patches, (shape[1] * 14, shape[0] * 14)), np.kron(inside, np.ones((14, 14), bool))


@pytest.fixture(scope="module")
def bloom(embedded_backbone, flower):
    """The flower, its features, and a mask of it from two clicks."""
    features = encode(embedded_backbone, flower)
    return flower, features, segment.from_points(features, [(320, 200), (120, 330)], [1, 0], flower).mask


# Clicks


@pytest.mark.parametrize(("size", "tiles"), [((600, 400), (3, 2)), ((300, 660), (2, 3)), ((900, 300), (3, 1))])
def test_a_click_selects_the_tile_it_is_on(embedded_backbone, size, tiles):
    columns, rows = tiles
    width, height = size[0] // columns, size[1] // rows
    collage = Image.new("RGB", size)
    boxes = [(i % columns * width, i // columns * height) for i in range(columns * rows)]
    for (left, top), colour in zip(boxes, COLOURS, strict=False):
        collage.paste(colour, (left, top, left + width, top + height))
    features = encode(embedded_backbone, collage, 518)
    for left, top in boxes:
        found = segment.from_points(features, [(left + 0.4 * width, top + 0.6 * height)], [1], collage)
        tile = np.zeros(size[::-1], bool)
        tile[top : top + height, left : left + width] = True
        assert overlap(found.mask, tile) > 0.85


def test_clicks_are_in_pixels_of_the_picture_whatever_its_size(embedded_backbone, chelsea):
    features = encode(embedded_backbone, chelsea)
    large = chelsea.resize((902, 600))
    same = replace(features, grid=features.grid.at(large.size))
    small_mask = segment.from_points(features, [(200, 120)], [1], chelsea).mask
    large_mask = segment.from_points(same, [(400, 240)], [1], large).mask
    assert large_mask.shape == (600, 902)
    assert overlap(large_mask[::2, ::2], small_mask) > 0.95


def test_a_background_click_removes_its_place(embedded_backbone, coffee):
    features = encode(embedded_backbone, coffee)
    first = segment.from_points(features, [(300, 200)], [1], coffee)
    y, x = np.argwhere(first.mask)[len(np.argwhere(first.mask)) // 5]
    second = segment.from_points(features, [(300, 200), (x, y)], [1, 0], coffee)
    assert first.mask[y, x]
    assert not second.mask[y, x]
    assert second.mask.sum() < first.mask.sum()


def test_the_scores_agree_with_every_click():
    features, _ = two_kinds(noise=0.6)
    rng = np.random.default_rng(1)
    points = rng.uniform((0, 0), features.grid.image_size, (20, 2))
    _, first = np.unique(features.grid.patch_at(points), axis=0, return_index=True)
    points, labels = points[first], np.arange(len(first)) % 2
    scores = segment.from_points(features, points, labels, refine=False).patch_score
    rows, columns = features.grid.patch_at(points).T
    assert ((scores[rows, columns] > 0.5) == (labels == 1)).all()


def test_a_hundred_points(bloom):
    image, features, _ = bloom
    points = np.random.default_rng(0).uniform((0, 0), image.size, (100, 2))
    assert segment.from_points(features, points, np.arange(100) % 2, image).mask.any()


def test_only_the_clicked_instance_or_all():
    features, mask = two_kinds()
    other, _ = two_kinds(box=(8, 11, 13, 15))
    both = made_up(np.where(other.patches[..., :1] > 0.5, other.patches, features.patches), features.grid.image_size)
    click = [(7 * 14, 5 * 14)]
    one = segment.from_points(both, click, [1], refine=False)
    every = segment.from_points(both, click, [1], refine=False, all_instances=True)
    assert overlap(one.mask, mask) > 0.8
    assert not one.mask[9 * 14, 14 * 14]
    assert every.mask[9 * 14, 14 * 14]


@pytest.mark.parametrize(
    ("points", "labels", "named"),
    [
        ([(-5, 10)], [1], "outside the picture"),
        ([(10, 1e6)], [1], "outside the picture"),
        ([(np.nan, 10)], [1], "outside the picture"),
        ([(10, 10)], [0], "background clicks"),
        ([], [], "background clicks"),
        ([(10, 10)], [1, 0], "1 points and 2 labels"),
        (np.ones((1001, 2)), np.ones(1001), "At most 1000"),
    ],
)
def test_wrong_clicks_are_refused(points, labels, named):
    features, _ = two_kinds()
    with pytest.raises(DinovizError, match=named):
        segment.from_points(features, points, labels)


# References


@pytest.mark.parametrize("method", ["evidence", "mean"])
def test_the_reference_itself_gives_its_mask_back(bloom, method):
    image, features, mask = bloom
    assert overlap(segment.from_reference(features, features, mask, image, method=method).mask, mask) > 0.99


def test_the_object_is_found_in_the_reference_without_its_mask(bloom):
    image, features, mask = bloom
    found = segment.from_reference(features, features, mask, image, threshold=segment.THRESHOLD)
    assert overlap(found.mask, mask) > 0.9


def test_the_object_is_found_in_a_changed_picture(embedded_backbone, bloom):
    image, features, mask = bloom
    box = (100, 0, 560, 400)
    changed = image.crop(box).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    expected = mask[box[1] : box[3], box[0] : box[2]][:, ::-1]
    target = encode(embedded_backbone, changed)
    found = segment.from_reference(target, features, mask, changed)
    assert found.present
    assert overlap(found.mask, expected) > 0.85


def test_the_object_is_not_found_in_other_pictures(embedded_backbone, bloom, rocket, coffee):
    _, features, mask = bloom
    concept = segment.fit([Example(features, mask)])
    for other in (rocket, coffee):
        found = segment.apply(concept, encode(embedded_backbone, other), other)
        assert not found.present
        assert found.presence < 0.5


def test_several_references_and_several_targets():
    first, mask = two_kinds(seed=1)
    second, other_mask = two_kinds(box=(1, 5, 1, 6), seed=2)
    target, expected = two_kinds(box=(6, 11, 8, 14), seed=3)
    found = segment.from_reference(target, [first, second], [mask, other_mask], refine=False)
    assert overlap(found.mask, expected) > 0.85


def test_a_correction_in_one_target_changes_the_others():
    reference, mask = two_kinds(seed=1)
    rng = np.random.default_rng(5)
    # A third kind of patch, half similar to the object, which a click adds to the object.
    patches = reference.patches.copy()
    patches[9:12, 12:16] = (np.eye(8)[0] + np.eye(8)[1] + 0.05 * rng.normal(size=(3, 4, 8))) / 2**0.5
    target, other = made_up(patches, reference.grid.image_size), made_up(patches[:, ::-1], reference.grid.image_size)
    plain = segment.fit([Example(reference, mask)])
    corrected = segment.fit([Example(reference, mask), Example(target, None, [(13 * 14, 10 * 14)], [1])])
    at = np.s_[9:12, 0:4]
    before = segment.apply(plain, other, refine=False).patch_score[at].mean()
    after = segment.apply(corrected, other, refine=False).patch_score[at].mean()
    assert after > before + 0.03
    here = segment.apply(corrected, target, refine=False, points=[(13 * 14, 10 * 14)], labels=[1])
    assert here.mask[10 * 14, 13 * 14]


def test_classes_have_disjoint_masks():
    features, mask = two_kinds()
    patches = features.patches.copy()
    patches[0:3, 12:16] = np.eye(8)[2]
    labels = mask.astype(np.uint8)
    labels[0 : 3 * 14, 12 * 14 :] = 7
    reference = made_up(patches, features.grid.image_size)
    target = made_up(patches[::-1, ::-1], features.grid.image_size)
    found = segment.classes_from_reference(target, reference, labels, refine=False)
    assert sorted(found) == [1, 7]
    assert not (found[1].mask & found[7].mask).any()
    for number, segmentation in found.items():
        assert overlap(segmentation.mask, labels[::-1, ::-1] == number) > 0.75
    with pytest.raises(DinovizError, match="empty"):
        segment.classes_from_reference(target, reference, np.zeros_like(labels))


@pytest.mark.parametrize("kind", [np.uint8, np.float32, bool, "255", "soft"])
def test_masks_of_any_kind(kind):
    features, mask = two_kinds()
    given = {"255": mask * np.uint8(255), "soft": mask * 0.8 + 0.1}.get(kind)
    given = mask.astype(kind) if given is None else given
    expected = segment.fit([Example(features, mask)]).find(features)[0]
    assert segment.fit([Example(features, given)]).find(features)[0] == pytest.approx(expected)


def test_an_object_smaller_than_a_patch_is_found():
    features, mask = two_kinds(box=(5, 6, 7, 8))
    speck = np.zeros_like(mask)
    speck[5 * 14 + 4 : 5 * 14 + 9, 7 * 14 + 4 : 7 * 14 + 9] = True
    scores, _, _ = segment.fit([Example(features, speck)]).find(features)
    assert np.unravel_index(scores.argmax(), scores.shape) == (5, 7)


@pytest.mark.parametrize(
    ("mask", "named"),
    [
        (np.zeros((168, 224), bool), "Nothing is marked"),
        (np.ones((168, 224), bool), "Everything is marked"),
        (np.ones((10, 10), bool), r"\(10, 10\)"),
    ],
)
@pytest.mark.parametrize("method", ["evidence", "mean"])
def test_wrong_masks_are_refused(mask, named, method):
    features, _ = two_kinds()
    with pytest.raises(DinovizError, match=named):
        segment.from_reference(features, features, mask, method=method)


def test_wrong_options_are_refused():
    features, mask = two_kinds()
    for options, named in (
        ({"method": "magic"}, "'magic'"),
        ({"threshold": 2}, "threshold"),
        ({"smallest": -1}, "smallest"),
        ({"image": np.zeros((5, 5, 3), np.uint8)}, "5 x 5 pixels"),
    ):
        with pytest.raises(DinovizError, match=named):
            segment.from_reference(features, features, mask, **options)
    with pytest.raises(DinovizError, match="1 references and 2 masks"):
        segment.from_reference(features, [features], [mask, mask])
    with pytest.raises(DinovizError, match="Nothing is marked"):
        segment.fit([])


def test_the_threshold_and_the_smallest_area(bloom):
    image, features, mask = bloom
    concept = segment.fit([Example(features, mask)])
    areas = [segment.apply(concept, features, image, threshold=t).mask.mean() for t in (0.2, 0.5, 0.8)]
    assert areas == sorted(areas, reverse=True)
    assert areas[0] > areas[2]
    assert not segment.apply(concept, features, image, threshold=0.5, smallest=0.99).mask.any()


def test_components():
    mask = np.zeros((20, 20), bool)
    mask[1:3, 1:3] = mask[10:18, 10:18] = True
    assert segment.components(mask).sum() == 68
    assert segment.components(mask, smallest=0.05).sum() == 64
    assert segment.components(mask, at=[(1.5, 1.5)]).sum() == 4
    assert segment.components(mask, at=[(5, 5)]).sum() == 0
    assert segment.components(mask, at=[(20, 20)]).sum() == 0


# Formulas


def test_both_forms_of_the_ridge_equal_scikit_learns():
    rng = np.random.default_rng(0)
    x, y, weight = rng.normal(size=(60, 7)), rng.choice([-1.0, 1.0], 60), rng.uniform(0.1, 1, 60)
    x, y, weight = (values.astype(np.float32) for values in (x, y, weight))
    expected = Ridge(alpha=0.3).fit(x, y, sample_weight=weight)
    half = np.arange(60) < 30
    summed = few_shot.moments(x[half], y[half], weight[half]) + few_shot.moments(x[~half], y[~half], weight[~half])
    for weights, bias in (summed.ridge(0.3), few_shot.ridge(x, y, weight, 0.3)):
        assert weights == pytest.approx(expected.coef_, abs=1e-5)
        assert bias == pytest.approx(expected.intercept_, abs=1e-5)


def test_object_and_background_weigh_the_same():
    share = np.array([1, 1, 0, 0, 0, 0.5], np.float32)
    weights = few_shot.balanced(share)
    assert weights.sum() == pytest.approx(1)
    assert (weights[:2].sum() + 0.5 / 2.5 * 0.5) == pytest.approx(0.5)


def test_the_mean_is_the_cosine_to_the_mean_patch():
    features, mask = two_kinds()
    scores, threshold, _ = segment.fit([Example(features, mask)], "mean").find(features)
    unit = features.patches / np.linalg.norm(features.patches, axis=-1, keepdims=True)
    inside = mask[7::14, 7::14]
    mean = unit[inside].mean(axis=0)
    assert scores == pytest.approx(unit @ (mean / np.linalg.norm(mean)), abs=1e-6)
    assert scores[~inside].max() < threshold < scores[inside].min()


def test_the_scores_stay_when_the_same_example_comes_twice():
    features, mask = two_kinds(noise=0.3)
    once, twice = (segment.fit([Example(features, mask)] * n).find(features)[0] for n in (1, 2))
    assert once == pytest.approx(twice, abs=1e-4)


def test_the_size_of_a_concept_does_not_grow_with_the_references():
    features, mask = two_kinds(shape=(60, 80), box=(5, 50, 5, 70))
    concepts = [segment.fit([Example(features, mask)] * n) for n in (1, 4)]
    sizes = [(len(c.bank), len(c.object_patches), c.moments.xx.shape) for c in concepts]
    assert sizes == [(2500, 500, (16, 16))] * 2


def test_positional_directions_are_found_and_removed():
    rows, columns = np.mgrid[:8, :10]
    place = np.zeros((8, 10, 6))
    place[..., 0], place[..., 1], place[..., 2] = 3, rows / 8, columns / 10
    blanks = [made_up(place + 0.01 * np.random.default_rng(i).normal(size=place.shape), (140, 112)) for i in range(3)]
    bias = positional_bias(blanks, directions=2)
    left = bias.removed(1, unit_patches(blanks[0], 1)).reshape(-1, 6)
    before = unit_patches(blanks[0], 1).reshape(-1, 6)
    assert left.std(axis=0).max() < before.std(axis=0).max() / 5
    for layer, directions in bias.directions.items():
        assert layer in (0, 1)
        assert directions @ directions.T == pytest.approx(np.eye(2), abs=1e-5)
    mask = np.zeros((112, 140), bool)
    mask[:56] = True
    assert segment.fit([Example(blanks[0], mask)], bias=bias).find(blanks[1])[0].shape == (8, 10)


def test_content_free_pictures_have_no_content():
    pictures = content_free((30, 20))
    assert len(pictures) == 8
    assert all(p.shape == (20, 30, 3) and p.std(axis=(0, 1)).max() == 0 for p in pictures)


@pytest.mark.parametrize(("count", "layers"), [(1, (0,)), (2, (0, 1)), (3, (1, 2)), (12, (7, 11)), (24, (15, 23))])
def test_the_layers_of_a_model(count, layers):
    assert segment.layers_of(count) == layers


def test_every_family(tiny, chelsea):
    features = encode(tiny.backbone, chelsea, 224)
    mask = np.zeros((300, 451), bool)
    mask[50:200, 100:300] = True
    found = segment.from_reference(features, features, mask, chelsea)
    assert found.score.shape == found.mask.shape == (300, 451)
    assert found.score.dtype == np.float32
    assert 0 <= found.score.min() <= found.score.max() <= 1


# Quality on real data


@pytest.mark.slow
def test_one_shot_and_absence_on_davis(embedded_backbone, data_folder):
    folder = data_folder / "davis"
    names = ("blackswan", "cows", "libby", "car-roundabout")

    def frame(name, number):
        image = Image.open(folder / "images" / name / f"{number:05d}.jpg").convert("RGB")
        mask = np.asarray(Image.open(folder / "masks" / name / f"{number:05d}.png").convert("L")) > 127
        return image, encode(embedded_backbone, image, 518), mask

    last = {name: frame(name, 29) for name in names}
    scores, present, absent = [], [], []
    for name in names:
        _, features, mask = frame(name, 0)
        concept = segment.fit([Example(features, mask)])
        for other, (image, target, truth) in last.items():
            found = segment.apply(concept, target, image)
            if name == other:
                scores.append(overlap(found.mask, truth))
                present.append(found.presence)
            else:
                absent.append(found.presence)
    assert np.mean(scores) > 0.8
    assert min(present) > 0.5
    assert np.mean(np.array(absent) >= 0.5) < 0.1
