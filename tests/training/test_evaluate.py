"""k-NN and linear evaluation say what their plain definitions say, of the pictures they were given."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dinoviz.errors import DinovizError
from tests.training.tiny_runs import write_classes
from training import evaluate as ev
from training.config.base import ConfigError
from training.config.tasks import EvaluateConfig
from training.data.demo import demo
from training.data.sources import find
from training.data.transforms import centre_of, centre_square, centre_squares, random_crops
from training.evaluation import embed
from training.evaluation import knn_linear as protocols
from training.evaluation.metrics import scores, wilson_interval


def clouds(n: int, dim: int = 12, classes: int = 4, seed: int = 0, spread: float = 1.0):
    """Features around one centre a class, and their labels."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    labels = rng.integers(classes, size=n)
    return (centres[labels] + spread * rng.normal(size=(n, dim))).astype(np.float32), labels


def plain_votes(train, labels, queries, k, temperature, classes, leave_out=False):
    """DINO's weighted k-NN, one number at a time, in Python's float64."""
    table = []
    for row, one in enumerate(queries):
        similar = []
        for column, other in enumerate(train):
            if leave_out and row == column:
                continue
            dot = sum(float(a) * float(b) for a, b in zip(one, other, strict=True))
            lengths = math.sqrt(sum(float(a) ** 2 for a in one)) * math.sqrt(sum(float(b) ** 2 for b in other))
            similar.append((dot / lengths, int(labels[column])))
        votes = [0.0] * classes
        for cosine, label in sorted(similar, reverse=True)[:k]:
            votes[label] += math.exp(cosine / temperature)
        table.append(votes)
    return np.array(table)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (10, 0.07), (20, 0.5), (500, 0.07)])
def test_votes_are_those_of_the_plain_definition(k, temperature):
    train, labels = clouds(60)
    queries, truth = clouds(25, seed=1)
    plain = plain_votes(train, labels, queries, k, temperature, 4)
    votes = protocols.knn_votes(train, labels, queries, k=k, temperature=temperature, classes=4, chunk=7)
    np.testing.assert_allclose(votes, plain, rtol=2e-5)  # cosines in float32, divided by 0.07
    assert ev.knn(train, labels, queries, truth, k=k, temperature=temperature) == (plain.argmax(1) == truth).mean()


def test_leave_one_out_asks_all_others_and_never_oneself():
    features, labels = clouds(40)
    plain = plain_votes(features, labels, features, 5, 0.07, 4, leave_out=True)
    np.testing.assert_allclose(protocols.knn_votes(features, labels, k=5, classes=4, chunk=16), plain, rtol=2e-5)
    assert ev.knn_leave_one_out(features, np.arange(40), k=5) == 0  # every other one has another class


def test_features_and_labels_must_belong_together():
    features, labels = clouds(10)
    with pytest.raises(DinovizError, match="10 features but 9 labels"):
        ev.knn(features, labels[:9], features, labels)
    with pytest.raises(DinovizError, match="12 and of 3 channels"):
        ev.knn(features, labels, features[:, :3], labels)
    with pytest.raises(DinovizError, match="neighbour"):
        ev.knn_leave_one_out(features[:1], labels[:1])


def test_linear_layers_trained_at_once_are_those_that_autograd_and_sgd_train():
    features, labels = clouds(70)
    x, y = torch.from_numpy(features), torch.from_numpy(labels)
    rates, epochs, batch = [0.03, 1.0], 4, 32
    weight, bias = protocols._train_linear(x, y, 4, rates, epochs, batch, 5, None, "")
    for i, rate in enumerate(rates):
        generator = torch.Generator().manual_seed(5)
        layer = torch.nn.Linear(12, 4)
        with torch.no_grad():
            layer.weight.copy_((0.01 * torch.randn(1, 12, 4, generator=generator))[0].T)
            layer.bias.zero_()
        optimizer = torch.optim.SGD(layer.parameters(), rate * batch / 256, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=0)
        for _ in range(epochs):
            for part in torch.randperm(70, generator=generator).split(batch):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(layer(x[part]), y[part]).backward()
                optimizer.step()
            schedule.step()
        torch.testing.assert_close(weight[i].T, layer.weight.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(bias[i, 0], layer.bias.detach(), atol=1e-5, rtol=1e-5)


def test_linear_evaluation_is_as_good_as_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    train, labels = clouds(400, spread=1.3)
    test, truth = clouds(400, seed=1, spread=1.3)
    found = ev.linear(train, labels, test, classes=4, epochs=60)
    top1 = (found.logits.argmax(1) == truth).mean()
    reference = LogisticRegression().fit(train, labels).score(test, truth)
    assert top1 > reference - 0.02  # eight of 400, less than one standard error
    again = ev.linear(train, labels, test, classes=4, epochs=60)
    np.testing.assert_array_equal(again.logits, found.logits)


def test_a_rate_that_diverges_is_not_chosen():
    train, labels = clouds(100)
    assert ev.linear(1e3 * train, labels, train, classes=4, epochs=20, rates=(1e-6, 1e38)).lr == 1e-6


def test_the_centre_crop_is_that_of_dino():
    picture = Image.fromarray(np.random.default_rng(0).integers(256, size=(300, 451, 3), dtype=np.uint8))
    resized = picture.resize((int(256 * 451 / 300), 256), Image.Resampling.BICUBIC)
    left = round((resized.width - 224) / 2)
    assert centre_square(picture, 224).tobytes() == resized.crop((left, 16, left + 224, 240)).tobytes()
    assert centre_square(picture.resize((20, 5000)), 98).size == (98, 98)
    assert centre_square(picture, 98, share=1).size == (98, 98)


def test_squares_in_memory_are_cropped_alike(chelsea):
    square = chelsea.resize((300, 300))
    images = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None]
    ours = centre_of(images, 98)[0]
    theirs = torch.from_numpy(np.array(centre_square(square, 98))).permute(2, 0, 1) / 255
    assert (ours - theirs).abs().mean() < 0.01  # whole pixels are cut off before one resizes, fractions after
    torch.testing.assert_close(centre_of(images, 300, share=1)[0], images[0] / 255)


def test_random_crops_of_the_whole_are_the_picture_or_its_mirror_image(chelsea):
    images = torch.from_numpy(np.array(chelsea.resize((64, 64)))).permute(2, 0, 1)[None].repeat(8, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    wide = random_crops(images, torch.full((8,), 1000.0), 64, generator, scale=(1, 1), flip=0)
    assert wide.shape == (8, 3, 64, 64)
    for flip in (0, 1):
        # An aspect within 3/4 to 4/3 leaves no room where the area is all of the picture.
        crops = random_crops(images, torch.ones(8), 64, generator, scale=(16 / 9, 16 / 9), flip=flip)
        expected = images.flip(-1) if flip else images
        torch.testing.assert_close(crops, expected / 255, atol=2e-3, rtol=0)


def test_crops_come_in_order_without_the_broken_ones(tmp_path, chelsea):
    for i in range(7):
        chelsea.resize((40 + i, 40)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_text("no picture")
    broken = []
    found = list(centre_squares(find(tmp_path), 16, 2, broken))
    assert [indices for indices, _ in found] == [[0, 1], [2, 4], [5, 6]]
    assert [name for name, _ in broken] == ["3.png"]
    assert all(images.shape[1:] == (3, 16, 16) and images.dtype == torch.uint8 for _, images in found)


def test_features_are_those_of_encode_and_the_broken_are_named(tiny, tmp_path, chelsea, coffee):
    for i, picture in enumerate((chelsea, coffee, chelsea)):
        centre_square(picture, 224).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"")
    found = embed.embed(tiny.backbone, find(tmp_path), size=224, share=1, layer=(0, -1), tokens="cls+mean")
    features = tiny.backbone.encode(tmp_path / "0.png", 224, (0, -1))
    dim = tiny.backbone.dim
    np.testing.assert_allclose(found.features[0, dim : 2 * dim], features.cls, atol=1e-5)
    np.testing.assert_allclose(found.features[1, 2 * dim :], features.patches.mean((0, 1)), atol=1e-5)
    assert found.features.shape == (2, 3 * dim)
    assert found.pictures.names == ("0.png", "2.png")
    assert [name for name, _ in found.broken] == ["1.png"]


def test_tensors_in_memory_give_the_features_of_their_files(tiny_backbone, tmp_path, chelsea):
    chelsea.resize((224, 224)).save(tmp_path / "0.png")
    images = torch.from_numpy(np.array(Image.open(tmp_path / "0.png"))).permute(2, 0, 1)[None]
    one = embed.embed(tiny_backbone, find(tmp_path), size=224, share=1).features
    np.testing.assert_allclose(embed.embed_tensor(tiny_backbone, images, 224, share=1), one, atol=1e-5)
    means = embed.embed_tensor(lambda pixels: pixels.mean((2, 3)), images, 56)
    assert means.shape == (1, 3)
    assert 0 < means.mean() < 1


def test_size_suits_the_patches(tiny_backbone):
    # Patches of 14 px, trained at 70: small networks are shown what they know.
    assert embed.evaluation_size(tiny_backbone) == 70
    assert embed.evaluation_size(tiny_backbone, 98) == 98
    with pytest.raises(DinovizError, match=r"100 .*14.*98 or 112"):
        embed.evaluation_size(tiny_backbone, 100)


def test_scores_count_by_class():
    logits = np.eye(6)[[0, 1, 1, 5, 5]]
    found = scores(logits, np.array([0, 1, 2, 5, 5]), list("abcdef"))
    assert found["top1"] == 0.8
    assert found["per_class"] == {"a": 1, "b": 1, "c": 0, "d": None, "e": None, "f": 1}
    assert np.array(found["confusion"])[2, 1] == 1
    assert np.array(found["confusion"]).sum() == found["n"] == 5
    assert scores(logits[:, :5], np.array([0, 1, 2, 0, 0]), list("abcde"))["top5"] is None
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 9)), rng.integers(9, size=50)
    plain = np.mean([label in np.argsort(-row)[:5] for row, label in zip(logits, labels, strict=True)])
    assert scores(logits, labels, list("abcdefghi"))["top5"] == plain


@pytest.fixture
def demo_folders(tmp_path):
    return write_classes(tmp_path, 6, 3)


def test_an_evaluation_describes_itself(tiny_folders, demo_folders):
    import json

    config = EvaluateConfig(
        model=str(tiny_folders["dinov2"]), data=(str(demo_folders / "train"),), test=str(demo_folders / "held-out"),
        device="cpu", epochs=10, layers=(-2, -1),
    )  # fmt: skip
    stages = []
    result = ev.evaluate(config, progress=lambda done, of, what: stages.append(what))
    assert (result["train"], result["test"], result["size"], result["layers"]) == (18, 9, 70, [2, 3])
    assert set(result["knn"]) == {"10", "20"}
    for found in (result["knn"]["10"], result["linear"]):
        assert found["n"] == 9
        assert len(found["per_class"]) == 3
    assert result["linear"]["lr"] in protocols.LEARNING_RATES
    assert "encoding" in stages
    assert json.loads(json.dumps(result)) == result
    split = ev.evaluate(replace(config, test="", linear=False))
    assert (split["train"], split["test"]) == (15, 3)
    assert "linear" not in split


def test_refuses_data_that_cannot_be_evaluated(tiny_folders, demo_folders):
    model, train = str(tiny_folders["dinov2"]), demo_folders / "train"

    def evaluate(data, **settings):
        return ev.evaluate(EvaluateConfig(model=model, data=(str(data),), device="cpu", **settings))

    with pytest.raises(DinovizError, match="6 images"):
        evaluate(train / "brick")
    (demo_folders / "one").mkdir()
    (train / "brick").rename(demo_folders / "one" / "brick")
    with pytest.raises(DinovizError, match="'brick'"):
        evaluate(demo_folders / "one")
    with pytest.raises(DinovizError, match=r"brick.*astronaut, camera"):
        evaluate(train, test=str(demo_folders / "held-out"))
    single = train / "single"
    single.mkdir()
    demo("held-out").open(0).save(single / "a.png")
    with pytest.raises(DinovizError, match="for sing"):
        evaluate(train)
    with pytest.raises(ConfigError, match="temperature"):
        EvaluateConfig(temperature=0.0)


@pytest.mark.parametrize(("right", "count"), [(0, 12), (11, 12), (12, 12), (500, 1000)])
def test_the_interval_of_an_accuracy_is_wilson_s(right, count):
    from scipy.stats import binomtest

    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(right, count) == pytest.approx((expected.low, expected.high), abs=1e-5)
    labels = (np.arange(count) >= right).astype(int)
    found = scores(np.tile([1.0, 0.0], (count, 1)), labels, ("a", "b"))
    assert found["top1_interval"] == pytest.approx([expected.low, expected.high], abs=1e-5)
