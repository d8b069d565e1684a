"""Statistics of collapse equal their definitions; alarms are raised for collapsed and diverged runs only."""

import math

import numpy as np
import pytest
import torch

from tests.training.tiny_runs import PLAIN, begin, losses, settings, write_images
from training.config.pretrain import PretrainConfig
from training.dino.collapse import DivergedError, Monitor, check_finite, statistics
from training.pretrain import pretrain

K, B, G, D = 32, 16, 2, 8
# 8 images, varied crops, and as many steps as a collapse takes.
SHORT = PLAIN | {
    "global_scale": (0.3, 1.0), "local_crops": 2, "flip": 0.5, "jitter": 0.8, "grey": 0.2, "batch": 8, "lr": 0.01,
    "lr_end": 1e-4, "epochs": 60.0, "warmup_epochs": 5.0, "teacher_momentum": 0.95, "teacher_temperature_epochs": 0.0,
    "log_every": 10, "checkpoint_minutes": 60.0, "weight_decay_end": 0.04,
}  # fmt: skip


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("eight"), 8)


def alarms(eight, root, **values) -> list[str | None]:
    config = settings(eight, **{**SHORT, **values})
    run = begin(config, root)
    pretrain(config, run)
    assert run.status()["state"] == "finished"
    return [record["alarm"] for record in losses(run)]


def test_statistics_equal_their_definitions():
    rng = np.random.default_rng(0)
    targets = rng.dirichlet(np.full(K, 0.2), (G, B))
    tokens = rng.normal(size=(G, B, D))
    found = statistics(torch.from_numpy(targets), torch.from_numpy(tokens))
    entropies, mean = [], np.zeros(K)
    for row in targets.reshape(-1, K):
        entropies.append(-sum(p * math.log(p) for p in row if p > 0))
        mean += row / (G * B)
    entropy = sum(entropies) / len(entropies)
    unit = [row / math.sqrt(sum(x * x for x in row)) for row in tokens.reshape(-1, D)]
    spread = sum(np.std([row[d] for row in unit]) for d in range(D)) / D * math.sqrt(D)
    wanted = {
        "teacher_entropy": entropy,
        "teacher_kl": sum(sum(p * math.log(p * K) for p in row if p > 0) for row in targets.reshape(-1, K)) / (G * B),
        "teacher_information": -sum(p * math.log(p) for p in mean) - entropy,
        "embedding_spread": spread,
    }
    assert found == pytest.approx(wanted, abs=1e-9)


def test_statistics_at_the_extremes():
    """Targets with zeros; one prototype for each image is log(images) nats of information."""
    own = torch.eye(K)[torch.arange(B)].expand(G, B, K)
    random = torch.from_numpy(np.random.default_rng(0).normal(size=(G, 4096, 64))).float()
    found = statistics(own, random)
    assert (found["teacher_entropy"], found["teacher_kl"]) == pytest.approx((0, math.log(K)), abs=1e-9)
    assert found["teacher_information"] == pytest.approx(math.log(B))
    assert found["embedding_spread"] == pytest.approx(1, abs=0.01)
    uniform = statistics(torch.full((G, B, K), 1 / K), torch.ones(G, B, D))
    assert uniform == pytest.approx(
        {"teacher_entropy": math.log(K), "teacher_kl": 0, "teacher_information": 0, "embedding_spread": 0}, abs=1e-6
    )


def record(step: int, **values) -> dict:
    well = {"loss": 3.0, "loss_dino": 3.0, "gradient_norm": 1.0, "teacher_entropy": 1.0, "teacher_information": 1.0}
    return {"step": step, **well, "embedding_spread": 0.8, **values}


def monitor(steps: int, **values) -> Monitor:
    return Monitor(PretrainConfig(prototypes=K, batch=B, **values), steps)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"teacher_information": 0.0, "teacher_entropy": 3.4}, "uniform"),
        ({"teacher_information": 0.0}, "prototypes"),
        ({"teacher_information": 0.3, "teacher_entropy": 0.5}, "prototypes"),  # of 3.47 nats
        ({"embedding_spread": 0.01}, "CLS tokens"),
        ({"loss_koleo": 6.5}, "CLS tokens"),  # of two crops: 0.04 from the nearest
        ({"loss_dino": 5.0}, "DINO loss is above 3.66"),  # log 32, and 0.2 of a random head
        ({"loss_ibot": 2.3}, "iBOT loss is above 1.83"),  # half the crops are masked
    ],
)
def test_a_state_must_last_before_it_is_an_alarm(values, words):
    watched = monitor(300, ibot_weight=1.0)
    assert [watched.alarm(record(step, **values)) for step in (1, 11, 30)] == [None] * 3
    assert words in watched.alarm(record(31, **values))
    assert watched.alarm(record(32)) is None
    assert watched.alarm(record(33, **values)) is None  # it starts again


def test_the_first_steps_of_a_short_run_are_no_alarm():
    watched = monitor(30)
    assert [watched.alarm(record(step, teacher_information=0.0)) for step in range(1, 21)] == [None] * 20
    assert watched.alarm(record(21, teacher_information=0.0))


def test_a_term_without_weight_raises_no_alarm():
    """It is recorded but not minimised."""
    watched = monitor(30, ibot_weight=1.0, dino_weight=0.0)
    assert {watched.alarm(record(step, loss_dino=9.0, loss_ibot=1.5)) for step in range(1, 31)} == {None}


def test_a_large_sum_of_healthy_terms_raises_no_alarm():
    """DINO 3.3, iBOT 1.6 and KoLeo 1 of a healthy run: 5.0 is far above log 32 = 3.47."""
    watched = monitor(300, ibot_weight=1.0, koleo_weight=0.1)
    terms = {"loss": 5.0, "loss_dino": 3.3, "loss_ibot": 1.6, "loss_koleo": 1.0}
    assert {watched.alarm(record(step, **terms)) for step in range(1, 301)} == {None}


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run(name, value):
    with pytest.raises(DivergedError, match=r"step 7.*lower lr") as raised:
        monitor(100).alarm(record(7, **{name: value}))
    assert str(raised.value).count("\n") == 0
    check_finite(1e30, 7)


def test_a_healthy_run_raises_no_alarm(eight, tmp_path):
    assert set(alarms(eight, tmp_path)) == {None}


def test_without_centring_and_sharpening_the_output_becomes_uniform(eight, tmp_path):
    """A teacher with a higher temperature than the student pulls all outputs to uniform."""
    found = alarms(eight, tmp_path, centring="none", teacher_temperature=0.2)
    assert found[0] is None
    assert "uniform" in found[-1]
    assert "lower teacher_temperature" in found[-1]


@pytest.mark.slow
def test_without_centring_and_with_equal_temperatures_few_prototypes_are_left(eight, tmp_path):
    found = alarms(eight, tmp_path, centring="none", teacher_temperature=0.1, teacher_temperature_start=0.1)
    assert "few prototypes" in found[-1]


def test_without_centring_but_with_sharpening_few_prototypes_are_left(eight, tmp_path):
    found = alarms(eight, tmp_path, centring="none", teacher_temperature=0.04)
    assert "few prototypes" in found[-1]
    assert "centring ema or sinkhorn" in found[-1]

    assert found.count(found[-1]) > 1
    assert (tmp_path / "a" / "log.txt").read_text().count("Collapsed") == 1  # and not at each record


@pytest.mark.parametrize("clip", [0.0, 3.0])
def test_a_learning_rate_that_diverges_fails_the_run(clip, eight, tmp_path):
    config = settings(eight, **{**SHORT, "lr": 1e4, "clip": clip, "log_every": 1, "warmup_epochs": 0.0})
    run = begin(config, tmp_path)
    with pytest.raises(DivergedError) as raised:
        pretrain(config, run)
    status = run.status()
    assert (status["state"], status["message"]) == ("failed", str(raised.value))
    assert "lower lr" in status["message"]
    assert status["message"] in (run.folder / "log.txt").read_text()
