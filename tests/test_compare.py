"""Comparing two models: rotations do not matter, the figures are the textbook's, and grids may differ."""

import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from scipy.stats import ortho_group

from dinoviz import attention, compare, pca
from dinoviz.compare import density, iou, joint_colours, layer_at, linear_cka, on_grid, patch_cka
from dinoviz.errors import DinovizError
from dinoviz.features import Features
from dinoviz.grid import PatchGrid
from tests.test_pca import disc_on_plain, made_of, noise


def seen(patches: np.ndarray, patch: int, picture: tuple[int, int] = (560, 420)) -> Features:
    """Patches (h, w, D) float64 of one picture, as a model with such a patch size has them."""
    h, w, _ = patches.shape
    grid = PatchGrid(picture, (patch * w, patch * h), patch)
    return replace(made_of(patches), grid=grid, patches=patches)


def rotated(features: Features, seed: int = 0, scale: float = 1.0) -> Features:
    turn = ortho_group.rvs(features.patches.shape[-1], random_state=seed)
    return replace(features, patches=scale * (features.patches @ turn), weights_id="b", weights="model b")


@pytest.fixture(scope="module")
def disc() -> Features:
    return seen(disc_on_plain()[0], 14)


# Two models in one space of colours


@pytest.mark.parametrize("method", compare.METHODS)
@pytest.mark.parametrize("foreground", [True, False])
def test_a_rotated_copy_has_the_same_colours(disc, method, foreground):
    a, b, agreement = joint_colours(disc, rotated(disc), method=method, foreground=foreground)
    np.testing.assert_allclose(a, b, atol=1e-5)
    assert a.std() > 0.05
    assert agreement.shared == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(agreement.correlations, 1, atol=1e-6)
    assert patch_cka(disc, rotated(disc)) == (pytest.approx(1, abs=1e-9), 30 * 40)


@pytest.mark.parametrize("method", compare.METHODS)
def test_scale_does_not_matter(disc, method):
    a, b, _ = joint_colours(disc, rotated(disc, scale=30), method=method)
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("method", compare.METHODS)
def test_other_grids_and_channels_are_compared_place_by_place(method):
    """The same scene seen by patches of half the side, with more channels: corresponding places look alike."""
    coarse = disc_on_plain(15, 20)[0]
    fine = np.concatenate([coarse, np.zeros((15, 20, 40))], axis=-1).repeat(2, axis=0).repeat(2, axis=1)
    fine += 0.01 * np.random.default_rng(1).normal(size=fine.shape)
    a, b, agreement = joint_colours(seen(coarse, 28), rotated(seen(fine, 14)), method=method, foreground=False)
    assert (a.shape, b.shape) == ((15, 20, 3), (30, 40, 3))
    assert np.abs(b.reshape(15, 2, 20, 2, 3).mean((1, 3)) - a).mean() < 0.02
    assert agreement.shared > 0.99
    assert agreement.compared == 300


@pytest.mark.parametrize("method", compare.METHODS)
def test_models_that_have_nothing_in_common_do_not_agree(method):
    a, b = seen(noise(30, 40, seed=2), 14), replace(seen(noise(30, 40, seed=3), 14), weights_id="b")
    agreement = joint_colours(a, b, method=method, foreground=False)[2]
    # "joint" looks for what is common, and finds a little of it in any two.
    assert agreement.shared < {"aligned": 0.05, "joint": 0.2}[method]
    assert abs(patch_cka(a, b)[0]) < 0.05


def test_aligned_is_procrustes_of_standardised_components(disc):
    """Against scipy in float64; the rotation is over the places that are foreground to both."""
    other = seen(disc_on_plain()[0] + 0.5 * noise(30, 40, seed=5), 14)
    fits = [pca.fit([f], components=3) for f in (disc, other)]
    both = fits[0].foreground[0] & fits[1].foreground[0]
    z = [(c := fit.coordinates[0].astype(np.float64)) / c[fit.foreground[0]].std(axis=0) for fit in fits]
    x, y = (c[both] - c[both].mean(axis=0) for c in z)
    rotation, singular = orthogonal_procrustes(y, x)
    agreement = joint_colours(disc, other)[2]
    assert agreement.shared == pytest.approx((singular / np.linalg.norm(x) / np.linalg.norm(y)) ** 2, abs=1e-6)
    expected = [np.corrcoef(x[:, i], (y @ rotation)[:, i])[0, 1] for i in range(3)]
    np.testing.assert_allclose(agreement.correlations, expected, atol=1e-6)
    assert agreement.compared == both.sum()


def test_joint_is_consensus_pca(disc):
    """Against its definition: block scores X_b p_b with p_b = X_b' t of length 1, t the first components of [A B]."""
    other = rotated(seen(disc_on_plain()[0] + noise(30, 40, seed=5), 14))
    blocks = []
    for f in (disc, other):
        x = f.patches.reshape(-1, f.patches.shape[-1])
        x = x - x.mean(axis=0)
        blocks.append(x / np.linalg.norm(x))
    super_scores = np.linalg.svd(np.hstack(blocks), full_matrices=False)[0][:, :3]
    scores = []
    for x in blocks:
        loadings = x.T @ super_scores
        scores.append(x @ (loadings / np.linalg.norm(loadings, axis=0)))
    expected = [np.corrcoef(scores[0][:, i], scores[1][:, i])[0, 1] for i in range(3)]
    agreement = joint_colours(disc, other, method="joint", foreground=False)[2]
    np.testing.assert_allclose(agreement.correlations, expected, atol=1e-6)


def test_the_foreground_of_each_is_its_own(disc):
    flat = seen(noise(30, 40, seed=4), 14)
    a, b, _ = joint_colours(disc, flat)
    np.testing.assert_array_equal((a == 0).all(-1), ~pca.fit([disc]).foreground[0])
    np.testing.assert_array_equal((b == 0).all(-1), ~pca.fit([flat]).foreground[0])


@pytest.mark.parametrize("method", compare.METHODS)
@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (30, 40)], ids=str)
def test_pictures_without_content_and_tiny_grids_are_no_accident(method, shape):
    flat = seen(np.full((*shape, 24), 0.1), 14)
    for other in (seen(noise(30, 40), 14), flat):
        a, b, agreement = joint_colours(flat, other, method=method)
        assert np.isfinite(a).all()
        assert np.isfinite(b).all()
        assert patch_cka(flat, other)[0] == 0
        assert len(np.unique(a[a > 0])) <= 1
        assert 0 <= agreement.shared <= 1


@pytest.mark.parametrize("method", compare.METHODS)
def test_real_networks_of_several_families(tiny, embedded_backbone, chelsea, method):
    a, b = embedded_backbone.encode(chelsea, 112), tiny.backbone.encode(chelsea, 64)
    colours_a, colours_b, agreement = joint_colours(a, b, method=method)
    assert (colours_a.shape[:2], colours_b.shape[:2]) == (a.grid.shape, b.grid.shape)
    assert 0 <= agreement.shared < 0.95
    cka, places = patch_cka(a, b)
    assert places == min(a.grid.patches, b.grid.patches)
    assert -0.2 < cka < 0.95


def test_a_model_agrees_with_itself_at_another_resolution(embedded_backbone, chelsea):
    """Meaning, not shapes: random weights come to 0.2 at the most."""
    a, b = (embedded_backbone.encode(chelsea, resolution) for resolution in (168, 224))
    assert patch_cka(a, b)[0] > 0.6
    for method in compare.METHODS:
        assert joint_colours(a, b, method=method)[2].shared > 0.6


@pytest.mark.parametrize(
    ("options", "named"), [({"method": "mixed"}, "'mixed'.*aligned.*joint"), ({"layers": (-1, 3)}, "Layer 3")]
)
def test_arguments_that_do_not_exist_are_refused(disc, options, named):
    with pytest.raises(DinovizError, match=named):
        joint_colours(disc, rotated(disc), **options)


def test_two_pictures_are_refused(disc):
    with pytest.raises(DinovizError, match="559"):
        joint_colours(disc, seen(noise(30, 40), 14, picture=(559, 420)))


# The common grid


def test_means_over_patches_of_a_coarser_grid():
    values = np.random.default_rng(0).normal(size=(6, 8, 5))
    coarse = PatchGrid((560, 420), (4 * 28, 3 * 28), 28)
    expected = values.reshape(3, 2, 4, 2, 5).mean((1, 3))
    np.testing.assert_allclose(on_grid(values, coarse), expected, atol=1e-6)  # float32 on the way
    np.testing.assert_allclose(on_grid(values[..., 0], coarse), expected[..., 0], atol=1e-6)


def test_the_same_grid_keeps_every_digit():
    values = np.random.default_rng(0).normal(size=(3, 4, 5))
    np.testing.assert_array_equal(on_grid(values, PatchGrid((560, 420), (112, 84), 28)), values)


# Centred kernel alignment


def naive_cka(x: np.ndarray, y: np.ndarray) -> float:
    """By n x n Gram matrices, as its definition says."""
    n = len(x)
    centre = np.eye(n) - 1 / n
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    return np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))


def naive_debiased_cka(x: np.ndarray, y: np.ndarray) -> float:
    """By Song et al. 2012, equation 5, on Gram matrices that nobody centred."""

    def hsic(k, m):
        n, ones = len(k), np.ones(len(k))
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        middle = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
        return (np.trace(k @ m) + middle - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


@pytest.mark.parametrize(("debiased", "naive"), [(False, naive_cka), (True, naive_debiased_cka)])
@pytest.mark.parametrize("channels", [7, 90])
def test_cka_is_the_definition(debiased, naive, channels):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 24)) + 3
    y = np.hstack([x[:, :5] + 0.3 * rng.normal(size=(40, 5)), rng.normal(size=(40, channels - 5))])
    assert linear_cka(x, y, debiased=debiased) == pytest.approx(naive(x, y), rel=1e-9)


@pytest.mark.parametrize("debiased", [False, True])
def test_cka_of_a_rotation_is_1(debiased):
    x = noise(6, 9).reshape(54, 24)
    turned = 5 * x @ ortho_group.rvs(24, random_state=1) - 2
    assert linear_cka(x, turned, debiased=debiased) == pytest.approx(1, abs=1e-12)


def test_only_the_debiased_one_sees_that_few_patches_with_many_channels_have_nothing_in_common():
    x, y = (np.random.default_rng(seed).normal(size=(50, 384)) for seed in (0, 1))
    assert linear_cka(x, y) > 0.8
    assert abs(linear_cka(x, y, debiased=True)) < 0.1


@pytest.mark.parametrize("debiased", [False, True])
def test_cka_of_what_does_not_vary_is_0(debiased):
    assert linear_cka(np.full((20, 5), 0.1), noise(4, 5).reshape(20, 24), debiased=debiased) == 0
    assert linear_cka(noise(1, 3)[0], noise(1, 3)[0], debiased=True) == 0


# Layers, attention, masks


@pytest.mark.parametrize(
    ("layer", "layers", "index"),
    [("last", 12, 11), ("last", 1, 0), ("2/3", 12, 7), ("2/3", 3, 1), ("1/12", 3, 0), ("1/1", 4, 3), ("3", 4, 2)],
)
def test_layers_by_number_and_by_share(layer, layers, index):
    assert layer_at(layer, layers) == index


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        *((text, re.escape(repr(text))) for text in ("first", "", "1/2/3", "-1")),
        *((text, f"above 0 and at most 1, not {text}") for text in ("3/2", "0/2", "1/0")),
        *((text, f"no layer {text}: .* 1 to 12") for text in ("13", "0")),
    ],
)
def test_layers_that_do_not_exist_are_refused(layer, named):
    with pytest.raises(DinovizError, match=named):
        layer_at(layer, 12)


def test_density_is_1_where_attention_is_even(tiny_backbone, chelsea):
    features = tiny_backbone.encode(chelsea, 56)
    expected = attention.cls_attention(features)[1] * features.grid.patches
    np.testing.assert_allclose(density(features, "head 2"), expected)
    none = replace(features.captured[2], query=np.zeros_like(features.captured[2].query))
    even = density(replace(features, captured={2: none}))
    tokens = 1 + len(features.registers) + features.grid.patches
    np.testing.assert_allclose(even, features.grid.patches / tokens, rtol=1e-5)


def test_iou():
    a, b = np.zeros((2, 4, 4), bool)
    assert iou(a, b) == 1
    a[:2], b[1:3] = True, True
    assert iou(a, b) == pytest.approx(1 / 3)
