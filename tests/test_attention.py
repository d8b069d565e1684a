import itertools
import statistics
import time

import numpy as np
import pytest

from dinoviz import attention
from dinoviz.errors import DinovizError

# Softmax of float32 products against transformers' eager attention: the largest difference seen is 1e-6.
PARITY = 1e-5


@pytest.fixture(scope="module")
def seen(tiny, chelsea):
    """A tiny model's features of a picture that is not square, and what transformers itself says of it."""
    features = tiny.backbone.encode(chelsea, 224, "all")
    return features, tiny.plain(chelsea, features.grid.model_size)


@pytest.fixture(scope="module")
def features(tiny_backbone, chelsea):
    return tiny_backbone.encode(chelsea, 224, "all")


@pytest.fixture(scope="module")
def portrait(embedded_backbone, astronaut):
    """The astronaut through real weights, at the app's default resolution."""
    return embedded_backbone.encode(astronaut, 518, "all")


def test_random_weights_have_something_to_compare(seen):
    # Uniform attention would make every parity test below pass for any query and key.
    for layer in seen[1].attentions:
        assert layer.max(axis=-1).mean() > 10 / layer.shape[-1]


def test_cls_attention_is_the_eager_attention(seen):
    features, plain = seen
    first = 1 + len(features.registers)
    for layer, expected in enumerate(plain.attentions):
        maps = attention.cls_attention(features, layer)
        assert maps.shape == (len(expected), *features.grid.shape)
        np.testing.assert_allclose(maps.reshape(len(expected), -1), expected[:, 0, first:], atol=PARITY)


def test_patch_attention_is_the_eager_attention(seen):
    features, plain = seen
    first, (h, w) = 1 + len(features.registers), features.grid.shape
    for layer, expected in enumerate(plain.attentions):
        for y, x in [(0, 0), (0, w - 1), (h - 1, 0), (h - 1, w - 1), (h // 2, w // 3)]:
            maps = attention.patch_attention(features, (y, x), layer)
            assert maps.shape == (len(expected), h, w)
            row = expected[:, first + y * w + x, first:]
            np.testing.assert_allclose(maps.reshape(len(expected), -1), row, atol=PARITY)


def test_every_row_is_the_eager_attention(seen):
    features, plain = seen
    for layer, expected in enumerate(plain.attentions):
        rows = attention.attention_rows(features, range(expected.shape[-1]), layer)
        np.testing.assert_allclose(rows, expected, atol=PARITY)


def test_rows_sum_to_one(seen):
    features, plain = seen
    n = plain.last.shape[0]
    for layer in range(features.layers):
        rows = attention.attention_rows(features, range(n), layer)
        assert rows.min() >= 0
        # Float32 sums of some 300 numbers
        np.testing.assert_allclose(rows.sum(axis=-1), 1, atol=1e-5)


def test_maps_and_prefix_tokens_sum_to_one(features):
    rows = attention.attention_rows(features, [0])[:, 0]
    prefix = rows[:, : 1 + len(features.registers)].sum(axis=-1)
    np.testing.assert_allclose(attention.cls_attention(features).sum(axis=(1, 2)) + prefix, 1, atol=1e-5)


def test_rollout_is_the_product_of_the_papers_equation_1(seen):
    features, plain = seen
    n = plain.last.shape[0]
    product = np.eye(n)
    for layer in plain.attentions:
        with_residual = (layer.astype(np.float64).mean(axis=0) + np.eye(n)) / 2
        product = with_residual @ product
    expected = product[0, 1 + len(features.registers) :].reshape(features.grid.shape)
    # Relative: an entry is about 1 / N.
    np.testing.assert_allclose(attention.rollout(features), expected, rtol=1e-3, atol=1e-8)


def test_rollout_needs_all_layers(tiny_backbone, chelsea):
    with pytest.raises(DinovizError, match=r"Layer 1 .* \[2\]"):
        attention.rollout(tiny_backbone.encode(chelsea, 224))


def plain_mass_mask(values: np.ndarray, mass: float) -> np.ndarray:
    """The rule of DINO's figures, one patch at a time.

    From the weakest patch to the strongest the shares are added up; those are kept where the sum so far, the patch
    itself included, is over 1 - mass.
    """
    total = sum(values.ravel().tolist())
    kept, so_far = np.zeros(values.size, dtype=bool), 0.0
    for index in sorted(range(values.size), key=values.ravel().tolist().__getitem__):
        so_far += float(values.ravel()[index]) / total
        kept[index] = so_far > 1 - mass
    return kept.reshape(values.shape)


@pytest.mark.parametrize("mass", [0.1, 0.6, 0.95])
def test_mass_mask_is_the_rule_of_dino_s_figures(mass, features):
    maps = attention.cls_attention(features)
    masks = attention.mass_mask(maps, mass)
    for values, mask in zip(maps, masks, strict=True):
        np.testing.assert_array_equal(mask, plain_mass_mask(values.astype(np.float64), mass))


def test_mass_mask_holds_its_share_with_the_fewest_patches(features):
    values = attention.cls_attention(features)[0].astype(np.float64)
    mask = attention.mass_mask(values, 0.6)
    share = values[mask].sum() / values.sum()
    weakest = values[mask].min() / values.sum()
    assert share - weakest <= 0.6 <= share + 1e-12
    assert values[mask].min() >= values[~mask].max()


def test_all_of_the_mass_is_all_patches(features):
    assert attention.mass_mask(attention.cls_attention(features), 1).all()


def test_more_mass_is_never_fewer_patches(features):
    values = attention.cls_attention(features)
    masks = [attention.mass_mask(values, mass) for mass in (0.2, 0.4, 0.6, 0.8, 1)]
    for smaller, larger in itertools.pairwise(masks):
        assert (larger | ~smaller).all()


@pytest.mark.parametrize("mass", [0, -0.1, 1.1, float("nan")])
def test_a_mass_out_of_range_is_refused(mass):
    with pytest.raises(DinovizError, match=f"not {mass}"):
        attention.mass_mask(np.ones((3, 3)), mass)


def test_head_statistics_are_those_of_the_definition(seen):
    features, plain = seen
    (h, w), first = features.grid.shape, 1 + len(features.registers)
    places = [(y, x) for y in range(h) for x in range(w)]
    distances = np.array([[np.hypot(y - v, x - u) for v, u in places] for y, x in places])
    for layer, heads in enumerate(plain.attentions):
        found = attention.head_statistics(features, layer, queries=h * w)
        for head, matrix in enumerate(heads.astype(np.float64)):
            entropies, means, prefixes = [], [], []
            for patch in range(h * w):
                row = matrix[first + patch]
                entropies.append(-sum(p * np.log2(p) for p in row if p > 0))
                prefixes.append(sum(row[:first]))
                on_patches = row[first:]
                means.append(sum(on_patches * distances[patch]) / sum(on_patches))
            # Float32 over some 300 tokens.
            assert found.entropy[head] == pytest.approx(np.mean(entropies), rel=1e-4)
            assert found.distance[head] == pytest.approx(np.mean(means), rel=1e-4)
            assert found.prefix[head] == pytest.approx(np.mean(prefixes), rel=1e-4, abs=1e-6)


def test_head_statistics_of_some_queries_are_near_those_of_all(portrait):
    every = attention.head_statistics(portrait, queries=10_000)
    some = attention.head_statistics(portrait)
    # 256 of 1369 patches, evenly spread: over four pictures at most 1 % off for the entropy, 1.5 % for the distance.
    np.testing.assert_allclose(some.entropy, every.entropy, rtol=0.03)
    np.testing.assert_allclose(some.distance, every.distance, rtol=0.04)


def test_entropy_is_within_its_bounds(portrait):
    n = portrait.tokens(-1).key.shape[1]
    for layer in range(portrait.layers):
        entropy = attention.head_statistics(portrait, layer).entropy
        assert (entropy > 0).all()
        assert (entropy < np.log2(n)).all()


@pytest.mark.parametrize("yx", [(-1, 0), (0, -1), (16, 0), (0, 24)])
def test_a_patch_outside_the_grid_is_refused(yx, features):
    assert features.grid.shape == (16, 24)
    with pytest.raises(DinovizError) as refusal:
        attention.patch_attention(features, yx)
    assert str(refusal.value) == f"There is no patch in row {yx[0]} and column {yx[1]}: the grid is 16 x 24."


@pytest.mark.parametrize("look", [attention.cls_attention, attention.head_statistics])
def test_a_layer_that_was_not_captured_is_refused(look, tiny_backbone, chelsea):
    features = tiny_backbone.encode(chelsea, 224)
    with pytest.raises(DinovizError, match="Layer 0"):
        look(features, layer=0)


def test_numpy_integers_are_patches_too(features):
    yx = features.grid.patch_at((100, 100))
    np.testing.assert_array_equal(
        attention.patch_attention(features, yx), attention.patch_attention(features, tuple(yx.tolist()))
    )


# Parts of scikit-image's astronaut, 512 x 512: left, top, right, bottom.
PARTS = {
    "face": (170, 60, 270, 170),
    "suit": (130, 240, 380, 480),
    "flag": (0, 0, 110, 220),
    "shuttle": (330, 0, 470, 200),
}


def density(features, values: np.ndarray, box: tuple[int, int, int, int]) -> float:
    """Attention per patch inside a box of the picture, in units of the mean over all patches."""
    left, top, right, bottom = box
    mask = np.zeros(features.grid.image_size[::-1])
    mask[top:bottom, left:right] = 1
    inside = features.grid.to_patches(mask)
    return float((values * inside).sum() / inside.sum() / values.mean())


@pytest.mark.parametrize(
    ("part", "click"), [("face", (225, 120)), ("suit", (260, 350)), ("flag", (60, 120)), ("shuttle", (400, 120))]
)
def test_a_query_patch_attends_to_its_own_object(part, click, portrait):
    # The last block but one: there the ratio to the second best part was 2.6 (flag) to 490 (face).
    values = attention.patch_attention(portrait, portrait.grid.patch_at(click), layer=-2).mean(axis=0)
    found = {name: density(portrait, values, box) for name, box in PARTS.items()}
    own = found.pop(part)
    assert own > 2
    assert own > 2 * max(found.values())


def test_the_cls_token_attends_to_the_subject_more_than_to_the_border(embedded_backbone, coffee):
    features = embedded_backbone.encode(coffee, 518)
    mask = attention.mass_mask(attention.cls_attention(features).mean(axis=0), 0.6)
    # The cup in the middle: 16 % of the patches hold the mass, none of them at the border.
    assert mask.mean() < 1 / 3
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    assert border.mean() < 0.05


def test_some_heads_of_an_early_block_look_near_and_none_of_the_last_do(portrait):
    # As Dosovitskiy et al. found (appendix D.7): 3.6 patches for the nearest head of the fourth block, 8.7 of the last.
    early, last = (attention.head_statistics(portrait, layer).distance for layer in (3, -1))
    assert early.min() < last.min() / 1.5


def test_a_click_answers_within_50_ms_and_without_a_forward_pass(portrait, embedded_backbone):
    passes = []
    hook = embedded_backbone.model.register_forward_pre_hook(lambda *_: passes.append(1))
    times = []
    try:
        for i in range(15):
            start = time.perf_counter()
            attention.patch_attention(portrait, (2 * i, i))
            times.append(time.perf_counter() - start)
    finally:
        hook.remove()
    assert passes == []
    # Measured: 2 to 16 ms for 6 heads over 1369 patches on two cores. The median, since the machine may be shared.
    assert statistics.median(times) < 0.05
