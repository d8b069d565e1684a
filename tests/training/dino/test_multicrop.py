"""Multi-crop: each box where it should be, each colour operation against PIL and colorsys, each probability kept."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats
from scipy.ndimage import gaussian_filter

from tests.training import reference
from training.config.pretrain import PretrainConfig
from training.data.demo import demo_picture
from training.data.transforms import cut
from training.dino.multicrop import Draws, MultiCrop

PLAIN = {"flip": 0.0, "jitter": 0.0, "grey": 0.0, "blur": (0.0, 0.0, 0.0), "solarise": 0.0, "local_crops": 0}
AS_IT_IS = {"global_scale": (1.0, 1.0), "global_size": 48}  # the box is the whole image, as large as it is stored
SQUARE = torch.ones(1)


def multi_crop(**changes) -> MultiCrop:
    """Crops that are not normalised, so that values are those of the image, 0 to 1."""
    config = PretrainConfig(patch=4, **{"global_size": 32, "local_size": 16} | changes)
    return MultiCrop(config, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def stored(picture: Image.Image, side: int = 48) -> torch.Tensor:
    """(1, 3, side, side) uint8."""
    return torch.from_numpy(np.asarray(picture.resize((side, side))).copy()).permute(2, 0, 1)[None]


def to_array(crop: torch.Tensor) -> np.ndarray:
    return crop.permute(1, 2, 0).double().numpy()


@pytest.fixture(scope="module")
def cat(chelsea) -> torch.Tensor:
    return stored(chelsea)


@pytest.fixture(scope="module")
def ramp() -> torch.Tensor:
    """(4, 3, 96, 96): red tells x, green tells y, blue which image."""
    centres = np.rint((np.arange(96) + 0.5) / 96 * 255)
    x, y = np.meshgrid(centres, centres)
    images = [np.stack([x, y, np.full_like(x, 50 * i)]) for i in range(4)]
    return torch.from_numpy(np.stack(images).astype(np.uint8))


@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
def test_each_pixel_of_a_crop_comes_from_its_place_in_the_box(ramp, flip):
    crop = multi_crop(**PLAIN | {"flip": flip, "local_crops": 3})
    draws = crop.draw(4, rng())
    aspects = torch.tensor([1.0, 2.5, 0.4, 1.5])
    boxes = crop.boxes(draws, aspects).double().numpy()
    batches = crop(ramp, aspects, draws)
    assert [tuple(batch.shape) for batch in batches] == [(8, 3, 32, 32), (12, 3, 16, 16)]
    for at, view in enumerate([*batches[0], *batches[1]]):
        crop_index, image = divmod(at, 4)  # crop by crop
        left, top, width, height = boxes[image, crop_index]
        steps = (np.arange(view.shape[-1]) + 0.5) / view.shape[-1]
        x = left + width * (steps[::-1] if draws.flip[image, crop_index] else steps)
        for channel, where, length in (
            (view[0].double(), x, width),
            (view[1].T.double(), top + height * steps, height),
        ):
            reach = 2 * max(1 / 96, length / len(where))  # of the kernel, which is cut off at the image's border
            inside = (where >= reach) & (where <= 1 - reach)
            assert inside.sum() >= len(where) - 6
            # Half a grey level of rounding in the ramp, and no more: half a pixel of the image would be 0.005.
            np.testing.assert_allclose(channel[:, inside], channel[:1, inside].expand(len(channel), -1), atol=1e-5)
            np.testing.assert_allclose(channel[0, inside], where[inside], atol=0.5 / 255 + 5e-4)
            np.testing.assert_allclose(channel[0, ~inside], where[~inside], atol=0.5 / 96)
        np.testing.assert_allclose(view[2], 50 * image / 255, atol=1e-5)
    assert draws.flip.float().mean().item() == pytest.approx(flip, abs=0.3)


@pytest.fixture(scope="module")
def textures() -> list[Image.Image]:
    """Photos and textures, (192, 192)."""
    files = ("astronaut.png", "brick.png", "grass.png", "gravel.png", "chelsea.png", "coffee.png")
    return [demo_picture(file).resize((192, 192), Image.Resampling.BICUBIC) for file in files]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("reductions", [(0.7, 0.7), (1, 1), (1.5, 1.5), (2, 2), (2.95, 2.95), (4, 4), (1.2, 3.4)])
def test_a_crop_is_pils_antialiased_bicubic_resize_of_its_box(textures, reductions, mirrored):
    """Also where width and height are made smaller by different factors, as they are of squeezed images."""
    size, side = 48, 192
    shares = torch.tensor(reductions) * size / side
    box = torch.cat([torch.tensor([0.37, 0.61]) * (1 - shares), shares])
    corners = [*(box[:2] * side).tolist(), *((box[:2] + box[2:]) * side).clamp(max=side).tolist()]
    wanted = np.stack([t.resize((size, size), Image.Resampling.BICUBIC, box=corners) for t in textures]) / 255
    wanted = wanted[:, :, ::-1] if mirrored else wanted
    pixels = torch.cat([stored(texture, side) for texture in textures]) / 255
    found = cut(pixels, box.expand(len(pixels), 4), torch.tensor([mirrored] * len(pixels)), size)
    found = found.permute(0, 2, 3, 1).numpy()
    assert psnr(found, wanted) > 50  # what is left is PIL's rounding to 8 bits, twice
    assert high_frequencies(found) == pytest.approx(high_frequencies(wanted), rel=0.02)


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    return -10 * np.log10(((found - wanted) ** 2).mean())


def high_frequencies(images: np.ndarray) -> float:
    """The power above half of what the pixels of images (B, H, W, 3) can hold."""
    power = np.abs(np.fft.fft2(images, axes=(1, 2))) ** 2
    frequency = np.abs(np.fft.fftfreq(images.shape[1]))
    return power[:, np.maximum.outer(frequency, frequency) > 0.25].sum()


def test_no_crop_of_a_run_is_aliased(textures):
    """Every local crop of DINO's own settings, which make them smaller by up to 2.95, against the same box by PIL."""
    config = PretrainConfig(**PLAIN | {"local_crops": 8})
    crop = MultiCrop(config, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    side = 2 * config.global_size
    draws, aspects = crop.draw(len(textures), rng(3)), torch.tensor([1.0, 1.5, 0.7, 1.0, 1.2, 2.0])
    boxes = crop.boxes(draws, aspects).double() * side
    batches = crop(torch.cat([stored(texture, side) for texture in textures]), aspects, draws)
    reductions = []
    for view, (at, image) in zip(batches[1], np.ndindex(8, len(textures)), strict=True):
        left, top, width, height = boxes[image, 2 + at].tolist()
        reductions += [width / config.local_size, height / config.local_size]
        corners = left, top, min(left + width, side), min(top + height, side)
        wanted = textures[image].resize((config.local_size,) * 2, Image.Resampling.BICUBIC, box=corners)
        assert psnr(to_array(view), np.asarray(wanted) / 255) > 45
    assert max(reductions) > 2.5


@pytest.mark.parametrize("aspect", [1.0, 1.6, 0.5, 3.0, 0.2])
def test_boxes_are_distributed_as_those_of_torchvision(aspect):
    """Area, ratio and place, also where the scale asks for more than fits; Kolmogorov-Smirnov on 2,000 boxes."""
    crop, images = multi_crop(**PLAIN | {"global_scale": (0.3, 1.0)}), 1000
    boxes = crop.boxes(crop.draw(images, rng(1)), torch.full((images,), aspect)).reshape(-1, 4).double().numpy()
    height = 1000  # pixels enough that torchvision's rounding to them does not show
    width = round(height * aspect)
    generator = rng(2)
    theirs = [reference.resized_crop_box(width, height, (0.3, 1.0), generator) for _ in range(2 * images)]
    theirs = np.array(theirs) / [width, height, width, height]
    for what in (
        lambda b: b[:, 2] * b[:, 3],
        lambda b: np.log(b[:, 2] / b[:, 3] * aspect),
        lambda b: b[:, 0] + b[:, 2] / 2,
        lambda b: b[:, 1] + b[:, 3] / 2,
    ):
        ours, wanted = np.round(what(boxes), 2), np.round(what(theirs), 2)  # ties where both take the middle
        assert stats.ks_2samp(ours, wanted).statistic < 0.06  # 5 % would be above 0.043 by chance


@pytest.mark.parametrize("aspect", [1.0, 2.5, 0.3])
def test_boxes_keep_to_the_scale_the_ratio_and_the_image(aspect):
    crop = multi_crop(local_crops=4, global_scale=(0.4, 0.7), local_scale=(0.05, 0.2))
    left, top, width, height = crop.boxes(crop.draw(500, rng()), torch.full((500,), aspect)).double().unbind(-1)
    assert min(left.min(), top.min()) >= 0
    assert max((left + width).max(), (top + height).max()) <= 1 + 1e-6
    ratio = width / height * aspect
    assert ratio.min() >= 3 / 4 - 1e-5
    assert ratio.max() <= 4 / 3 + 1e-5
    area = width * height
    assert area[:, 2:].min() >= 0.05 - 1e-6
    assert area[:, 2:].max() <= 0.2 + 1e-6
    assert area[:, :2].max() <= 0.7 + 1e-6
    if aspect == 1:  # of a long picture, less may be all that fits
        assert area[:, :2].min() >= 0.4 - 1e-6


def changed(cat: torch.Tensor, *, order=(0, 1, 2, 3), **values) -> np.ndarray:
    """The cat, not cropped, after the operations that `values` turns on in its first crop alone."""
    crop = multi_crop(**PLAIN | AS_IT_IS)
    draws = crop.draw(1, rng())
    turned_on = {name: getattr(draws, name).clone() for name in values}
    for name, value in values.items():
        turned_on[name][:, 0] = torch.as_tensor(value)
    draws = dataclasses.replace(draws, order=order, **turned_on)
    first, second = crop(cat, SQUARE, draws)[0]
    np.testing.assert_allclose(to_array(second), to_array(cat[0]) / 255, atol=1e-5)
    return to_array(first)


def picture_of(cat: torch.Tensor) -> Image.Image:
    return Image.fromarray(cat[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4])
@pytest.mark.parametrize(
    ("at", "enhance"), [(0, ImageEnhance.Brightness), (1, ImageEnhance.Contrast), (2, ImageEnhance.Color)]
)
def test_brightness_contrast_and_saturation_are_pils(cat, at, enhance, factor):
    factors = torch.tensor([1.0, 1.0, 1.0, 0.0])
    factors[at] = factor
    wanted = np.asarray(enhance(picture_of(cat)).enhance(factor)) / 255
    # PIL rounds the result, and before it the grey that it mixes in, to 8 bits.
    np.testing.assert_allclose(changed(cat, jitter=True, factors=factors), wanted, atol=2.01 / 255)


@pytest.mark.parametrize("turn", [-0.3, 0.1, 0.5, 1.0])
def test_hue_is_colorsys(cat, turn):
    found = changed(cat, jitter=True, factors=torch.tensor([1.0, 1.0, 1.0, turn]))
    np.testing.assert_allclose(found, reference.hue_shifted(to_array(cat[0]) / 255, turn), atol=1e-4)


@pytest.mark.parametrize("turn", [-0.9, 0.0, 0.25])
def test_hue_of_greys_corners_and_edges_of_the_cube(turn):
    """Where channels are equal, hues are a matter of cases."""
    levels = np.stack(np.meshgrid([0, 128, 255], [0, 128, 255], [0, 128, 255]), axis=-1).reshape(27, 3)
    colours = levels[np.arange(48 * 48) % 27].reshape(48, 48, 3).astype(np.uint8)
    palette = torch.from_numpy(colours).permute(2, 0, 1)[None]
    found = changed(palette, jitter=True, factors=torch.tensor([1.0, 1.0, 1.0, turn]))
    np.testing.assert_allclose(found, reference.hue_shifted(colours / 255, turn), atol=1e-4)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)])
def test_the_four_colour_operations_come_in_the_order_drawn_each_clipped(cat, order):
    factors = torch.tensor([1.4, 1.3, 0.8, 0.1])
    x = to_array(cat[0]) / 255

    def grey(x):
        return x @ [0.299, 0.587, 0.114]

    plain = (
        lambda x: np.clip(x * 1.4, 0, 1),
        lambda x: np.clip(1.3 * x + (1 - 1.3) * grey(x).mean(), 0, 1),
        lambda x: np.clip(0.8 * x + (1 - 0.8) * grey(x)[..., None], 0, 1),
        lambda x: reference.hue_shifted(x, 0.1),
    )
    for i in order:
        x = plain[i](x)
    np.testing.assert_allclose(changed(cat, order=order, jitter=True, factors=factors), x, atol=2e-4)


def test_grey_is_pils(cat):
    wanted = np.asarray(picture_of(cat).convert("L").convert("RGB")) / 255
    np.testing.assert_allclose(changed(cat, grey=True), wanted, atol=1.01 / 255)


def test_solarise_is_pils(cat):
    """Which inverts 8-bit values from 128 on."""
    wanted = np.asarray(ImageOps.solarize(picture_of(cat))) / 255
    np.testing.assert_allclose(changed(cat, solarise=True), wanted, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 2.0])
def test_blur_is_a_gaussian_for_the_crops_size(cat, sigma):
    """Sigma is given for a crop of 224 pixels, so that each size is blurred alike."""
    x = to_array(cat[0]) / 255
    wanted = gaussian_filter(x, (sigma * 48 / 224,) * 2 + (0,), mode="mirror", truncate=6)
    np.testing.assert_allclose(changed(cat, blur=True, sigma=sigma), wanted, atol=5e-3)  # ours ends at 3 sigma


def test_grey_blur_and_solarise_come_after_the_colours(cat):
    """DINO's order: jitter, grey, blur, solarise."""
    factors = torch.tensor([1.3, 1.0, 1.0, 0.0])
    x = np.clip(to_array(cat[0]) / 255 * 1.3, 0, 1) @ [0.299, 0.587, 0.114]
    x = gaussian_filter(x, 2 * 48 / 224, mode="mirror", truncate=6)
    near_the_threshold = np.abs(x - 0.5) < 0.01
    x = np.where(x >= 0.5, 1 - x, x)
    found = changed(cat, jitter=True, factors=factors, grey=True, blur=True, sigma=2.0, solarise=True)
    np.testing.assert_allclose(found[~near_the_threshold], x[~near_the_threshold][:, None].repeat(3, 1), atol=5e-3)


def test_each_probability_is_kept_for_each_crop():
    """DINO's: blur 1, 0.1 and 0.5, solarise for the second global crop alone. 2,000 draws: 0.045 is four errors."""
    draws = multi_crop(local_crops=2).draw(2000, rng(5))
    wanted = {
        "flip": [0.5] * 4,
        "jitter": [0.8] * 4,
        "grey": [0.2] * 4,
        "blur": [1.0, 0.1, 0.5, 0.5],
        "solarise": [0.0, 0.2, 0.0, 0.0],
    }
    for name, probabilities in wanted.items():
        np.testing.assert_allclose(getattr(draws, name).float().mean(0), probabilities, atol=0.045, err_msg=name)
    assert not draws.solarise[:, [0, 2, 3]].any()
    assert draws.blur[:, 0].all()
    together = (draws.jitter & draws.grey).float().mean().item()
    assert together == pytest.approx(0.16, abs=0.02)  # independent of each other


def test_factors_and_sigmas_fill_their_ranges():
    draws = multi_crop(local_crops=1).draw(2000, rng(6))
    factors = draws.factors.reshape(-1, 4).numpy()
    centre, reach = np.array([1, 1, 1, 0]), np.array([0.4, 0.4, 0.2, 0.1])
    for at in range(4):
        uniform = (factors[:, at] - centre[at]) / reach[at]
        assert stats.kstest(uniform, "uniform", (-1, 2)).statistic < 0.03
    assert stats.kstest((draws.sigma.flatten().numpy() - 0.1) / 1.9, "uniform").statistic < 0.03
    orders = {multi_crop().draw(1, rng(seed)).order for seed in range(200)}
    assert len(orders) == 24


@pytest.mark.parametrize("changes", [{}, {"local_crops": 0}, {"global_size": 64, "blur_sigma": (0.1, 8.0)}])
def test_parts_of_a_batch_have_the_crops_of_the_whole(changes):
    """Two processes, or a batch in parts, see what one process sees."""
    noise = torch.from_numpy(rng().integers(0, 256, (4, 3, 96, 96), dtype=np.uint8))
    crop = multi_crop(**{"local_crops": 3, "blur": (1.0, 0.5, 0.5)} | changes)
    aspects = torch.tensor([1.0, 2.0, 0.5, 1.2])
    draws = crop.draw(4, rng(7))
    whole = [batch.unflatten(0, (-1, 4)) for batch in crop(noise, aspects, draws)]
    for part in (slice(0, 2), slice(2, 4), slice(3, 4)):
        found = crop(noise[part], aspects[part], draws.of(part))
        assert len(found) == len(whole)
        for mine, its in zip(found, whole, strict=True):
            torch.testing.assert_close(mine, its[:, part].flatten(0, 1), atol=1e-6, rtol=0)


def test_the_seed_decides(cat):
    crop = multi_crop(local_crops=2)
    first, again, other = (crop(cat, SQUARE, crop.draw(1, rng(seed))) for seed in (8, 8, 9))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_crops_are_normalised_and_the_images_are_left_alone(cat):
    config = PretrainConfig(patch=4, **PLAIN | AS_IT_IS)
    before = cat.clone()
    crop = MultiCrop(config, mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.25))
    (found,) = crop(cat, SQUARE, crop.draw(1, rng()))
    wanted = (to_array(cat[0]) / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.4, 0.25]
    np.testing.assert_allclose(to_array(found[0]), wanted, atol=1e-4)
    assert torch.equal(cat, before)


def test_draws_hold_one_row_for_each_image_and_crop():
    draws = multi_crop(local_crops=5).draw(3, rng())
    for field in dataclasses.fields(Draws):
        if field.name != "order":
            assert getattr(draws, field.name).shape[:2] == (3, 7), field.name
    assert sorted(draws.order) == [0, 1, 2, 3]
