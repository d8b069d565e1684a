"""Patch PCA: the components are scikit-learn's; the foreground does not flip and colours stay put."""

from dataclasses import replace
from itertools import combinations

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from skimage import data
from sklearn.decomposition import PCA

from dinoviz import pca
from dinoviz.errors import DinovizError
from dinoviz.features import Features
from dinoviz.grid import PatchGrid


def made_of(patches: np.ndarray, weights_id: str = "a", weights: str = "model a") -> Features:
    """Features that hold given patches (h, w, D) and nothing else, as where no layer was captured."""
    h, w, channels = patches.shape
    return Features(
        cls=np.zeros(channels, np.float32),
        patches=patches.astype(np.float32),
        registers=np.zeros((0, channels), np.float32),
        grid=PatchGrid((14 * w, 14 * h), (14 * w, 14 * h), 14),
        layers=12,
        captured={},
        scaling=1.0,
        weights=weights,
        weights_id=weights_id,
    )


def noise(h: int, w: int, channels: int = 24, seed: int = 0) -> np.ndarray:
    """Patches whose variance falls from channel to channel, around a mean that is not zero."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(h, w, channels)) * 0.8 ** np.arange(channels) + rng.normal(size=channels)


def disc_on_plain(h: int = 30, w: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """(patches, where the disc is): two kinds of patches with some noise; the disc off centre, not at the border."""
    y, x = np.mgrid[:h, :w]
    disc = (y - 0.4 * h) ** 2 + (x - 0.6 * w) ** 2 < (0.3 * h) ** 2
    patches = noise(h, w, seed=1) * 0.1
    patches[disc, 0] += 3
    patches[~disc, 1] += 3
    return patches, disc


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.fixture(scope="module")
def photographs(astronaut, coffee, flower, china) -> dict[str, Image.Image]:
    return {"astronaut": astronaut, "coffee": coffee, "flower": flower, "china": china}


@pytest.fixture(scope="module")
def seen(embedded_backbone, photographs) -> dict[str, list[Features]]:
    """Each photograph at 392 px, at 518 px, and mirrored at 392 px."""
    return {
        name: [
            embedded_backbone.encode(image, 392),
            embedded_backbone.encode(image, 518),
            embedded_backbone.encode(ImageOps.mirror(image), 392),
        ]
        for name, image in photographs.items()
    }


def comparable(maps: list[np.ndarray]) -> list[np.ndarray]:
    """Maps of the three views of `seen`, on the first one's grid."""
    first, large, mirrored = (np.asarray(m, np.float32) for m in maps)
    return [first, cv2.resize(large, first.shape[1::-1]), mirrored[:, ::-1]]


# The components


@pytest.mark.parametrize("images", [1, 3])
def test_components_are_those_of_sklearn(images):
    patches = [noise(9 + i, 12, seed=i) for i in range(images)]
    found = pca.fit([made_of(p) for p in patches], components=5, foreground=False)
    flat = [p.astype(np.float32).reshape(-1, 24).astype(np.float64) for p in patches]
    reference = PCA(5, svd_solver="full").fit(np.concatenate(flat))
    np.testing.assert_allclose(found.explained, reference.explained_variance_ratio_, rtol=1e-9)
    for coordinates, values in zip(found.coordinates, flat, strict=True):
        expected = reference.transform(values)
        ours = coordinates.reshape(-1, 5)
        signs = np.sign((ours * expected).sum(axis=0))
        np.testing.assert_allclose(ours, expected * signs, atol=1e-5)  # coordinates are float32


def test_foreground_is_what_the_basis_is_fitted_on():
    patches, disc = disc_on_plain()
    found = pca.fit([made_of(patches)], components=4)
    assert (found.foreground[0] == (found.score[0] >= found.threshold)).all()
    reference = PCA(4, svd_solver="full").fit(patches.astype(np.float32)[found.foreground[0]].astype(np.float64))
    np.testing.assert_allclose(found.explained, reference.explained_variance_ratio_, rtol=1e-9)
    np.testing.assert_allclose(found.coordinates[0][found.foreground[0]].mean(axis=0), 0, atol=1e-6)
    assert iou(found.foreground[0], disc) > 0.9


def test_shapes_ranges_and_black_background():
    sizes = [(30, 40), (20, 26)]
    found = pca.fit([made_of(disc_on_plain(*size)[0]) for size in sizes])
    assert found.explained.shape == (10,)
    assert (np.diff(found.explained) <= 0).all()
    assert found.explained.sum() <= 1 + 1e-12
    for i, size in enumerate(sizes):
        colours, component, kept = found.colours()[i], found.component(3)[i], found.foreground[i]
        assert found.coordinates[i].shape == (*size, 10)
        assert colours.shape == (*size, 3)
        assert component.shape == found.score[i].shape == size
        assert {m.dtype for m in (colours, component, found.score[i])} == {np.dtype(np.float32)}
        assert all(m.min() >= 0 and m.max() <= 1 for m in (colours, component, found.score[i]))
        assert (colours[~kept] == 0).all()
        assert (colours[kept] >= np.float32(pca.DARKEST)).all()  # told from the background, however dark
        assert component[~kept].std() > 0  # the heat map keeps its background


@pytest.mark.parametrize("components", [(0, 1, 2), (3, 4, 5), (9, 0, 4), (6,), (2, 1)])
def test_any_components_give_colours(components):
    colours = pca.fit([made_of(disc_on_plain()[0])]).colours(components)[0]
    assert colours.shape == (30, 40, 3)
    assert colours[pca.fit([made_of(disc_on_plain()[0])]).foreground[0]].std(axis=0).min() > 0.1


def test_colours_not_turned_are_the_components():
    found = pca.fit([made_of(disc_on_plain()[0])])
    kept = found.foreground[0]
    colours = found.colours((4, 0, 2), turned=False)[0]
    for channel, index in enumerate((4, 0, 2)):
        expected = pca.DARKEST + (1 - pca.DARKEST) * found.component(index)[0][kept]
        np.testing.assert_allclose(colours[kept, channel], expected, atol=1e-6)


def test_turning_loses_nothing():
    """Undone the scaling, turned channels hold the distances between patches that the components hold."""
    found = pca.fit([made_of(noise(12, 15))], foreground=False)
    colours = found.colours()[0].reshape(-1, 3).astype(np.float64)
    channels = np.arctanh(2 * (colours - pca.DARKEST) / (1 - pca.DARKEST) - 1)
    coordinates = found.coordinates[0].reshape(-1, 10)[:, :3].astype(np.float64)
    back, residuals, _, _ = np.linalg.lstsq(channels, coordinates, rcond=None)
    assert residuals.max() < 1e-6 * (coordinates**2).sum()
    assert np.linalg.matrix_rank(back) == 3


def test_fewer_components_than_asked_for():
    assert len(pca.fit([made_of(noise(6, 6, channels=5))]).explained) == 5
    assert len(pca.fit([made_of(noise(2, 2))], foreground=False).explained) == 4
    assert pca.patch_pca([made_of(noise(1, 2))])[0].shape == (1, 2, 3)


def test_patch_pca_is_fit_and_colours():
    features = [made_of(disc_on_plain()[0])]
    np.testing.assert_array_equal(pca.patch_pca(features)[0], pca.fit(features).colours()[0])
    assert (pca.patch_pca(features, foreground=False)[0] > 0).all()


def test_same_input_same_output():
    features = [made_of(disc_on_plain()[0])]
    first, second = pca.fit(features), pca.fit(features)
    np.testing.assert_array_equal(first.coordinates[0], second.coordinates[0])
    np.testing.assert_array_equal(first.colours()[0], second.colours()[0])


# The foreground


def test_foreground_is_the_disc_whatever_the_sign():
    patches, disc = disc_on_plain()
    for some, where in ((patches, disc), (-patches, disc), (patches[:, ::-1], disc[:, ::-1]), (patches * 100, disc)):
        assert iou(pca.fit([made_of(some)]).foreground[0], where) > 0.9


def test_other_images_do_not_change_the_foreground():
    alone, other = made_of(disc_on_plain()[0]), made_of(noise(25, 25, seed=5))
    np.testing.assert_array_equal(pca.fit([alone]).score[0], pca.fit([other, alone]).score[1])


def test_without_two_parts_everything_is_foreground():
    assert pca.fit([made_of(noise(30, 30))]).foreground[0].all()


def test_threshold_overrules():
    features = [made_of(disc_on_plain()[0])]
    shares = [pca.fit(features, threshold=t).foreground[0].mean() for t in (0.0, 0.3, 0.6, 1.0)]
    assert shares[0] == 1
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] > 0  # the likeliest patch always is left, and is enough
    assert np.isfinite(pca.patch_pca(features, threshold=1.0)[0]).all()


@pytest.mark.parametrize("value", [0.0, 0.1, 3.0])
def test_constant_image(value):
    features = [made_of(np.full((16, 20, 24), value))]
    found = pca.fit(features)
    assert found.foreground[0].all()
    assert (found.explained == 0).all()
    assert np.unique(found.colours()[0]).size == 1
    assert (found.component(0)[0] == 0.5).all()


def test_constant_image_beside_another():
    found = pca.fit([made_of(np.full((16, 20, 24), 0.5)), made_of(disc_on_plain()[0])])
    assert all(np.isfinite(m).all() for m in (*found.colours(), *found.component(9), *found.score))


def test_random_weights(tiny_backbone, chelsea):
    found = pca.fit([tiny_backbone.encode(chelsea, 224)])
    assert all(np.isfinite(m).all() for m in (*found.colours(), *found.component(9), *found.score))


def test_separable_picture_without_captured_layers(seen):
    """All that is needed is in the patches."""
    bare = replace(seen["coffee"][0], captured={})
    np.testing.assert_array_equal(pca.fit([bare]).colours()[0], pca.fit(seen["coffee"][:1]).colours()[0])


def test_foreground_does_not_flip(seen):
    """Worst IoU with itself measured: 0.89 (astronaut). A flip would give about 0."""
    for name, views in seen.items():
        found = [m > 0.5 for m in comparable([pca.fit([f]).foreground[0] for f in views])]
        assert min(iou(a, b) for a, b in combinations(found, 2)) > 0.6, name


def test_foreground_is_the_object(seen):
    """The flower and the cup are where anybody sees them: middle in, corners out."""
    for name in ("flower", "coffee"):
        foreground = pca.fit(seen[name][:1]).foreground[0]
        h, w = foreground.shape
        middle = (h // 2, w // 2) if name == "coffee" else (h // 2, int(w * 0.45))
        assert foreground[middle]
        assert not foreground[[0, 0, -1, -1], [0, -1, 0, -1]].any()


@pytest.mark.parametrize("name", ["gravel", "hubble_deep_field"])
def test_texture_has_no_foreground(embedded_backbone, name):
    assert pca.fit([embedded_backbone.encode(getattr(data, name)(), 392)]).foreground[0].all()


def test_foreground_agrees_with_object_masks(embedded_backbone, data_folder):
    """IoU at patch level. One frame each of DAVIS 2016, where the object is what a person would call it."""
    found = []
    for sequence in ("cows", "car-roundabout", "paragliding-launch"):
        features = embedded_backbone.encode(data_folder / "davis" / "images" / sequence / "00014.jpg", 392)
        with Image.open(data_folder / "davis" / "masks" / sequence / "00014.png") as file:
            mask = np.asarray(file.convert("L")) > 0
        found.append(iou(pca.fit([features]).foreground[0], features.grid.to_patches(mask) > 0.5))
    assert np.mean(found) > 0.6


# Colours that stay


def plain(features: Features) -> np.ndarray:
    """What most notebooks do: PCA of all patches, each channel from its minimum to its maximum."""
    flat = features.patches.reshape(-1, features.patches.shape[-1]).astype(np.float64)
    coordinates = PCA(3, svd_solver="covariance_eigh").fit_transform(flat)
    low, high = coordinates.min(axis=0), coordinates.max(axis=0)
    return ((coordinates - low) / (high - low)).reshape(*features.patches.shape[:2], 3)


def unsteadiness(views: list[Features], colour) -> float:
    """Mean colour distance of corresponding foreground patches, by the mean distance of random ones."""
    kept = np.logical_and.reduce([m > 0.5 for m in comparable([pca.fit([f]).foreground[0] for f in views])])
    maps = comparable([colour(f) for f in views])
    distance = np.mean([np.linalg.norm(a[kept] - b[kept], axis=-1).mean() for a, b in combinations(maps, 2)])
    a, b = np.random.default_rng(0).integers(0, kept.sum(), (2, 2000))
    return float(distance / np.linalg.norm(maps[0][kept][a] - maps[0][kept][b], axis=-1).mean())


def test_colours_stay_when_resolution_and_side_change(seen):
    """tests/benchmarks/pca_stability.py has the figures over more pictures."""
    ours = np.mean([unsteadiness(views, lambda f: pca.patch_pca([f])[0]) for views in seen.values()])
    usual = np.mean([unsteadiness(views, plain) for views in seen.values()])
    assert ours < 0.6 * usual  # measured: 0.36 against 0.81


def test_one_patch_has_one_colour_in_whichever_image_it_lies(seen):
    """Two images of one basis with some patches in common."""
    first = seen["flower"][0]
    second = replace(first, patches=np.ascontiguousarray(first.patches[::-1, ::-1]))
    found = pca.fit([first, second, seen["china"][0]], foreground=False)
    for maps in (found.colours(), found.component(1)):
        np.testing.assert_allclose(maps[0], maps[1][::-1, ::-1], atol=1e-5)


# What is refused


def test_two_models_are_refused():
    features = [made_of(noise(5, 5)), made_of(noise(5, 5), "b", "model b")]
    with pytest.raises(DinovizError, match="model a, model b"):
        pca.fit(features)


def test_nothing_is_refused():
    with pytest.raises(DinovizError, match="at least one"):
        pca.patch_pca([])


@pytest.mark.parametrize("index", [-1, 10])
def test_missing_component_is_refused(index):
    found = pca.fit([made_of(noise(9, 9))])
    with pytest.raises(DinovizError, match=f"no component {index}.* 0 to 9"):
        found.component(index)
    with pytest.raises(DinovizError, match="no component"):
        found.colours((0, 1, index))


def test_four_colours_are_refused():
    with pytest.raises(DinovizError, match="not 4"):
        pca.fit([made_of(noise(9, 9))]).colours((0, 1, 2, 3))


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(DinovizError, match=f"not {threshold}"):
        pca.fit([made_of(noise(9, 9))], threshold=threshold)


def test_no_components_are_refused():
    with pytest.raises(DinovizError, match="not 0"):
        pca.fit([made_of(noise(9, 9))], components=0)


def test_layer_that_was_not_captured_is_refused():
    with pytest.raises(DinovizError, match="Layer 3"):
        pca.fit([made_of(noise(9, 9))], layer=3)
