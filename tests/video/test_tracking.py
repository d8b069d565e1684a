import io
import tracemalloc
import zipfile
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from dinoviz import video
from dinoviz.errors import DinovizError, Stopped
from dinoviz.features import Features, part_layer
from dinoviz.grid import PatchGrid
from dinoviz.images import ImageError
from dinoviz.video.label_propagation import propagate_labels
from tests import published
from tests.benchmarks import video as benchmark

SIDE = 224


def features_of(patches: np.ndarray, weights_id: str = "a", patch_size: int = 14) -> Features:
    """Features with nothing but the patches (h, w, D), as the only layer."""
    h, w, d = patches.shape
    grid = PatchGrid((w * 10, h * 10), (w * patch_size, h * patch_size), patch_size)
    return Features(np.zeros(d), patches.astype(np.float32), np.zeros((0, d)), grid, 1, {}, 1.0, "random", weights_id)


def random_patches(frames: int, h: int, w: int, d: int = 16, seed: int = 0) -> np.ndarray:
    """(frames, h, w, D): one frame that changes a little from frame to frame."""
    random = np.random.default_rng(seed)
    first = random.normal(size=(1, h, w, d))
    return (first + np.cumsum(0.2 * random.normal(size=(frames, h, w, d)), axis=0)).astype(np.float32)


def box(shape: tuple[int, int], left: int, top: int, width: int, height: int, label: int = 1) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[top : top + height, left : left + width] = label
    return mask


def shifted(picture: Image.Image, patch: Image.Image, count: int) -> Iterator[tuple[Image.Image, np.ndarray]]:
    """A piece of another picture that moves 8 pixels right and 4 down a frame, with its mask."""
    for i in range(count):
        at = (30 + 8 * i, 40 + 4 * i)
        frame = picture.copy()
        frame.paste(patch, at)
        yield frame, box(picture.size[::-1], *at, *patch.size)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.fixture
def scene(china, coffee) -> list[tuple[Image.Image, np.ndarray]]:
    """Five frames: a cup slides over a temple."""
    return list(shifted(china.resize((400, 280)), coffee.crop((150, 50, 470, 370)).resize((110, 110)), 5))


# Parity with the published algorithm


@pytest.mark.parametrize("shape", [(9, 14), (30, 37), (40, 13), (1, 40)], ids=str)
def test_a_step_equals_the_comparison_of_all_patches_with_all(shape):
    # In float64, for in float32 the fifth and sixth best of some patch may be as good as equal.
    h, w = shape
    patches = torch.from_numpy(random_patches(5, h, w)).double()
    patches = torch.nn.functional.normalize(patches, dim=-1)
    labels = torch.rand(4, h, w, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = propagate_labels(patches[4], patches[:4], labels, radius=12, top=5, temperature=0.1)
    near = published.allowed(h, w).double()
    plain = published.step(patches[4].flatten(0, 1), patches[:4].flatten(1, 2), labels.flatten(1, 2), near)
    torch.testing.assert_close(ours.flatten(0, 1), plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("radius", "top", "temperature"), [(0, 5, 0.1), (2, 1, 0.1), (3, 20, 0.02), (50, 5, 1.0)])
def test_parity_holds_for_other_settings(radius, top, temperature):
    patches = torch.nn.functional.normalize(torch.from_numpy(random_patches(4, 11, 17)).double(), dim=-1)
    labels = torch.rand(3, 11, 17, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = propagate_labels(patches[3], patches[:3], labels, radius=radius, top=top, temperature=temperature)
    plain = published.step(
        patches[3].flatten(0, 1), patches[:3].flatten(1, 2), labels.flatten(1, 2),
        published.allowed(11, 17, radius).double(), nearest=top, temperature=temperature,
    )  # fmt: skip
    torch.testing.assert_close(ours.flatten(0, 1), plain, rtol=0, atol=1e-12)


def test_a_whole_video_in_float32_equals_the_published_algorithm():
    patches = random_patches(12, 16, 21)
    mask = box((160, 210), 40, 30, 90, 70)
    state = video.Propagator(features_of(patches[0]), mask, video.PUBLISHED)
    ours = [state.soft, *(state.step(features_of(frame)) for frame in patches[1:])]
    plain = published.propagate([torch.from_numpy(frame) for frame in patches], published.first_labels(mask, 16, 21))
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("context", [0, 1, 3])
def test_only_the_first_frame_and_the_last_few_are_sources(context):
    patches = random_patches(7, 9, 8)
    state = video.Propagator(features_of(patches[0]), box((90, 80), 20, 20, 30, 40), video.Settings(context=context))
    units = torch.nn.functional.normalize(torch.from_numpy(patches), dim=-1)
    labels = [torch.from_numpy(state.soft)]
    for t in range(1, 7):
        used = [0, *range(max(1, t - context), t)]
        known = torch.stack([labels[i] for i in used])
        labels.append(propagate_labels(units[t], units[used], known, radius=12, top=5, temperature=0.1))
        np.testing.assert_array_equal(state.step(features_of(patches[t])), labels[t])
        np.testing.assert_array_equal(state.soft, labels[t])


def test_labels_of_a_pixel_sum_to_one():
    patches = random_patches(6, 12, 15)
    state = video.Propagator(features_of(patches[0]), box((120, 150), 33, 27, 51, 64))
    for frame in patches[1:]:
        np.testing.assert_allclose(state.step(features_of(frame)).sum(axis=-1), 1, atol=1e-6)


def test_a_frame_that_does_not_change_keeps_its_labels():
    patches = random_patches(1, 12, 15, d=64)[0] * 100
    state = video.Propagator(features_of(patches), box((120, 150), 30, 20, 60, 50), video.Settings(temperature=0.01))
    before = state.soft
    np.testing.assert_allclose(state.step(features_of(patches)), before, atol=1e-6)


# What it sees


def test_a_moving_square_is_recovered(embedded_backbone, scene):
    frames, masks = zip(*scene, strict=True)
    tracked = list(video.propagate(frames, masks[0], embedded_backbone, resolution=SIDE))
    assert [t.index for t in tracked] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(tracked[0].mask, masks[0])
    for t, mask in zip(tracked, masks, strict=True):
        assert t.mask.shape == (280, 400)
        assert t.mask.dtype == np.uint8
        assert iou(t.mask > 0, mask > 0) > 0.8  # patches of 17 pixels; the square has 110
        assert t.area.tolist() == [(t.mask == 1).sum()]
        assert t.score(1).shape == (280, 400)


def test_several_objects_keep_their_labels(embedded_backbone, scene, astronaut):
    face = astronaut.crop((170, 60, 280, 200)).resize((80, 100))
    frames, masks = [], []
    for i, (frame, mask) in enumerate(scene):
        frame.paste(face, (280 - 6 * i, 150))
        frames.append(frame)
        masks.append(np.where(box(mask.shape, 280 - 6 * i, 150, 80, 100) > 0, 2, mask).astype(np.uint8))
    for t, mask in zip(video.propagate(frames, masks[0], embedded_backbone, resolution=SIDE), masks, strict=True):
        assert t.soft.shape[2] == 3
        for label in (1, 2):
            assert iou(t.mask == label, mask == label) > 0.75
        assert t.area.tolist() == [(t.mask == 1).sum(), (t.mask == 2).sum()]


@pytest.mark.slow
def test_a_real_dog_is_followed(embedded_backbone, data_folder):
    frames = sorted((data_folder / "davis" / "images" / "dog").iterdir())[:12]
    masks = [np.asarray(Image.open(data_folder / "davis" / "masks" / "dog" / f"{f.stem}.png")) > 0 for f in frames]
    tracked = video.propagate(frames, masks[0], embedded_backbone, resolution=336)
    found = [iou(t.mask > 0, mask) for t, mask in zip(tracked, masks, strict=True)]
    assert np.mean(found[1:]) > 0.8


# The measures of the benchmark


def test_the_region_measure_is_the_share_of_the_union():
    a, b = box((40, 60), 10, 10, 20, 10) > 0, box((40, 60), 20, 10, 20, 10) > 0
    assert benchmark.region(a, b) == pytest.approx(100 / 300)
    assert benchmark.region(a, a) == benchmark.region(a & ~a, b & ~b) == 1


def test_the_boundary_measure_forgives_what_lies_within_its_reach():
    # The diagonal is 500 pixels, so contours match up to 4 pixels away.
    true = box((300, 400), 100, 100, 80, 80) > 0
    assert benchmark.boundary(true, true) == 1
    assert benchmark.boundary(box((300, 400), 104, 100, 80, 80) > 0, true) == 1
    assert benchmark.boundary(box((300, 400), 250, 100, 80, 80) > 0, true) == 0
    assert benchmark.boundary(np.zeros_like(true), true) == 0
    assert benchmark.boundary(np.zeros_like(true), np.zeros_like(true)) == 1
    # A box of twice the width has three of four sides right, and half as much again of them.
    assert 0.6 < benchmark.boundary(box((300, 400), 100, 100, 160, 80) > 0, true) < 0.8


# One frame after the other


def test_frames_are_read_only_when_they_are_needed(tiny_backbone, scene):
    read = []

    def frames():
        for i, (frame, _) in enumerate(scene):
            read.append(i)
            yield frame

    for t in video.propagate(frames(), scene[0][1], tiny_backbone, resolution=SIDE):
        assert len(read) == t.index + 1


def test_memory_does_not_grow_with_the_video(tiny_backbone, tmp_path, scene):
    sizes = []
    for t in video.propagate((scene[i % 5][0] for i in range(24)), scene[0][1], tiny_backbone, resolution=SIDE):
        t.state.save(tmp_path / "state.npz")
        sizes.append((tmp_path / "state.npz").stat().st_size)
    assert sizes[0] < sizes[6]
    assert max(sizes[7:]) - min(sizes[7:]) < 100  # the index gets a digit


def test_what_was_saved_goes_on_as_if_nothing_had_happened(tiny_backbone, tmp_path, scene):
    frames, mask = [scene[i % 5][0] for i in range(12)], scene[0][1]
    whole = list(video.propagate(frames, mask, tiny_backbone, resolution=SIDE))
    for t in video.propagate(frames[:9], mask, tiny_backbone, resolution=SIDE):
        t.state.note = "mine"
        t.state.save(tmp_path / "state.npz")
    state = video.Propagator.load(tmp_path / "state.npz")
    assert (state.index, state.note, state.settings) == (9, "mine", video.Settings())
    rest = list(video.propagate(frames[9:], None, tiny_backbone, resolution=SIDE, state=state))
    assert [t.index for t in rest] == [9, 10, 11]
    for a, b in zip(rest, whole[9:], strict=True):
        np.testing.assert_array_equal(a.soft, b.soft)
        np.testing.assert_array_equal(a.mask, b.mask)


def test_batches_change_nothing_but_the_speed(tiny_backbone, scene):
    frames, mask = [frame for frame, _ in scene], scene[0][1]
    single = list(video.propagate(frames, mask, tiny_backbone, resolution=SIDE, batch=1))
    batched = list(video.propagate(frames, mask, tiny_backbone, resolution=SIDE, batch=3))
    for a, b in zip(single, batched, strict=True):
        np.testing.assert_allclose(a.soft, b.soft, atol=1e-4)


def test_progress_is_reported_in_fractions_and_can_stop(tiny_backbone, scene):
    progress = []

    def on_progress(done: float) -> None:
        progress.append(done)
        if done > 1.5:
            raise Stopped

    frames = (frame for frame, _ in scene)
    tracked = video.propagate(frames, scene[0][1], tiny_backbone, resolution=SIDE, on_progress=on_progress)
    assert next(tracked).index == 0
    with pytest.raises(Stopped):
        list(tracked)
    np.testing.assert_allclose(progress, [1 / 3, 2 / 3, 1, 4 / 3, 5 / 3])
    assert len(list(frames)) == 3  # the rest was not read


def test_only_the_layers_that_are_compared_are_kept(tiny_backbone, scene, monkeypatch):
    layers_of_calls = []
    encode = tiny_backbone.encode_batch
    monkeypatch.setattr(tiny_backbone, "encode_batch", lambda *a, **k: layers_of_calls.append(a[2]) or encode(*a, **k))
    frames, mask = [scene[0][0]], scene[0][1]
    for layers in (None, (-1,), (0, -1)):
        list(video.propagate(frames, mask, tiny_backbone, resolution=SIDE, settings=video.Settings(layers=layers)))
    assert layers_of_calls == [(1,), (), (0,)]


def test_the_default_layer_lies_at_two_thirds():
    assert [part_layer(n) for n in (1, 2, 3, 12, 24, 40)] == [0, 0, 1, 7, 15, 26]


# Refusals


@pytest.mark.parametrize(
    ("mask", "named"),
    [
        (None, "mask of the first frame"),
        (np.zeros((280, 400), bool), "empty"),
        (np.ones((280, 400), bool), "whole frame"),
        (np.eye(10, dtype=bool), "10 x 10 .* 400 x 280"),
        (np.zeros((280, 400, 3), np.uint8), "400 x 280"),
        (np.full((280, 400), 0.5), "whole numbers"),
        (np.full((280, 400), 300), "1 to 255"),
        (np.full((280, 400), -1), "whole numbers"),
    ],
    ids=["none", "empty", "full", "size", "colours", "floats", "300", "-1"],
)
def test_a_mask_that_cannot_be_used_is_refused(tiny_backbone, scene, mask, named):
    with pytest.raises(DinovizError, match=named):
        list(video.propagate([scene[0][0]], mask, tiny_backbone, resolution=SIDE))


def test_no_frames_are_refused(tiny_backbone):
    with pytest.raises(DinovizError, match="frames"):
        list(video.propagate([], np.eye(50, dtype=bool), tiny_backbone))


def test_a_black_and_white_mask_is_one_object():
    mask = box((28, 40), 3, 4, 10, 12)
    np.testing.assert_array_equal(video.check_mask(mask * np.uint8(255), (40, 28)), mask)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_frame_of_another_size_is_refused_after_those_before_it(tiny_backbone, scene, batch):
    frames = [scene[0][0], scene[1][0], scene[2][0].resize((300, 280)), scene[3][0]]
    tracked = video.propagate(frames, scene[0][1], tiny_backbone, resolution=SIDE, batch=batch)
    assert [next(tracked).index, next(tracked).index] == [0, 1]
    with pytest.raises(DinovizError, match=r"Frame 2 .* 300 x 280 .* 400 x 280"):
        next(tracked)


def test_a_frame_that_is_not_a_picture_is_named(tiny_backbone, scene, tmp_path):
    (tmp_path / "two.jpg").write_text("no picture")
    tracked = video.propagate([scene[0][0], tmp_path / "two.jpg"], scene[0][1], tiny_backbone, resolution=SIDE)
    next(tracked)
    with pytest.raises(ImageError, match=r"two\.jpg"):
        next(tracked)


@pytest.mark.parametrize(
    "settings",
    [{"context": -1}, {"radius": 1.5}, {"top": 0}, {"temperature": 0}, {"temperature": float("nan")}, {"layers": ()}],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(DinovizError, match=r"propagation"):
        video.Settings(**settings)


def test_a_layer_that_does_not_exist_is_refused(tiny_backbone, scene):
    with pytest.raises(DinovizError, match="3 layers"):
        list(video.propagate([scene[0][0]], scene[0][1], tiny_backbone, settings=video.Settings(layers=(7,))))


def test_a_state_of_other_weights_is_refused():
    patches = random_patches(2, 5, 6)
    state = video.Propagator(features_of(patches[0]), box((50, 60), 9, 9, 20, 20))
    with pytest.raises(DinovizError, match="random"):
        state.step(features_of(patches[1], weights_id="b"))


def test_files_that_are_not_states_are_refused(tmp_path):
    (tmp_path / "text.npz").write_bytes(b"no state")
    (tmp_path / "empty.npz").touch()
    for name in ("text.npz", "empty.npz", "missing.npz"):
        with pytest.raises(DinovizError, match=name):
            video.Propagator.load(tmp_path / name)


@pytest.mark.parametrize("false", ["shape", "packed", "deep"])
def test_a_state_with_a_false_size_is_refused_before_memory_is_allocated(false, tiny_backbone, tmp_path, scene):
    file = tmp_path / "state.npz"
    for tracked in video.propagate([scene[0][0]], scene[0][1], tiny_backbone, resolution=SIDE):
        tracked.state.save(file)
    video.Propagator.load(file)
    with np.load(file) as arrays:
        content = dict(arrays)
    if false == "packed":
        np.savez_compressed(file, **content)
    elif false == "deep":
        np.savez(file, **{**content, "about": "[" * 100_000})
    else:
        member = io.BytesIO()
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)}
        np.lib.format.write_array_header_1_0(member, header)
        np.savez(file, **{name: value for name, value in content.items() if name != "soft"})
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr("soft.npy", member.getvalue())
    tracemalloc.start()
    with pytest.raises(DinovizError, match=r"state\.npz"):
        video.Propagator.load(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


def test_an_unknown_object_has_no_score(tiny_backbone, scene):
    (tracked,) = video.propagate([scene[0][0]], scene[0][1], tiny_backbone, resolution=SIDE)
    with pytest.raises(DinovizError, match="no object 2"):
        tracked.score(2)
