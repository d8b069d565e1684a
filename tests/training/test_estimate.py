"""The time that is foretold is the time that a run then takes; asking for it leaves nothing behind."""

import dataclasses
import gc
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from dinoviz.errors import DinovizError, Stopped
from tests.training.tiny_runs import begin, settings, write_images
from training.config.tasks import FinetuneConfig, ProbeConfig
from training.estimate import estimate
from training.finetune import finetune
from training.pretrain import pretrain
from training.probe import probe
from training.runs.run import Run

ABOUT = 2.0  # what the two are allowed to differ by
TRIES = 3  # for other work on the machine comes and goes
IMAGES = 48


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), IMAGES, classes=True)


@pytest.fixture(scope="module")
def pretraining(images):
    """Steps of some 20 ms, so that what surrounds them does not count."""
    config = settings(images, dim=64, depth=4, global_size=32, local_size=16, validation=str(images))
    return dataclasses.replace(config, epochs=8.0, knn_every=2.0, snapshot_every=2.0)


@pytest.fixture(scope="module")
def finetuning(tmp_path_factory, tiny_folders):
    """40 images, 34 of them to learn from."""
    root = tmp_path_factory.mktemp("classes")
    for name in ("a", "b"):
        write_images(root / name, 20)
    return FinetuneConfig(data=(str(root),), model=str(tiny_folders["dinov2"]), device="cpu", size=56, batch=8,
                          epochs=6, patience=6, linear_first=False)  # fmt: skip


@pytest.fixture(scope="module")
def probing(tiny_folders, tmp_path_factory):
    root = tmp_path_factory.mktemp("rooms")
    rng = np.random.default_rng(0)
    for folder in ("rgb", "depth"):
        (root / folder).mkdir()
    for i in range(6):
        Image.fromarray(rng.integers(256, size=(240, 320, 3), dtype=np.uint8)).save(root / "rgb" / f"{i}.png")
        Image.fromarray(rng.integers(1, 9000, size=(240, 320), dtype=np.uint16)).save(root / "depth" / f"{i}.png")
    return ProbeConfig(data=str(root), model=str(tiny_folders["dinov2"]), device="cpu", resolution=224, batch=2,
                       epochs=5, patience=5, crop="none")  # fmt: skip


def agree(try_once: Callable[[int], list[tuple[float, float]]]) -> bool:
    """Whether estimated and measured seconds agree, in all pairs of one of a few tries."""
    return any(all(1 / ABOUT < estimated / took < ABOUT for estimated, took in try_once(i)) for i in range(TRIES))


class Steps:
    """What a run's own progress tells: when each step ended."""

    def __init__(self):
        self.ends: list[float] = []

    def __call__(self, done: int, of: int, what: str) -> None:
        if what.startswith("epoch"):
            self.ends.append(time.perf_counter())

    @property
    def step(self) -> float:
        return float(np.median(np.diff(self.ends)))


@pytest.mark.slow  # it compares times, and a busy machine spoils them
def test_the_estimate_of_a_pretraining(pretraining, tmp_path):
    def once(i: int) -> list[tuple[float, float]]:
        estimated, run = estimate(pretraining, IMAGES), begin(pretraining, tmp_path, str(i))
        times, records = [], []
        pretrain(pretraining, run, lambda record: (times.append(time.perf_counter()), records.append(record)))
        assert estimated.steps == run.status()["steps"] == 24
        assert estimated.seconds > estimated.steps * estimated.step
        assert estimated.how.startswith("24 steps of ")
        assert " 5 snapshots of " in estimated.how
        assert " 5 times k-NN of " in estimated.how
        return [(estimated.step, pretraining.batch / records[-2]["speed"]), (estimated.seconds, times[-1] - times[0])]

    assert agree(once)


def test_the_estimate_without_periodic_evaluations(pretraining):
    estimated = estimate(dataclasses.replace(pretraining, knn_every=0.0, snapshot_every=0.0), IMAGES)
    assert " 1 times k-NN of " in estimated.how
    assert " 2 snapshots of " in estimated.how


@pytest.mark.slow
@pytest.mark.parametrize("method", ["linear", "lora", "full"])
def test_the_estimate_of_a_fine_tuning(method, finetuning, tmp_path):
    config = dataclasses.replace(finetuning, method=method)

    def once(i: int) -> list[tuple[float, float]]:
        estimated, steps_run = estimate(config, 40), Steps()
        run = Run.create(str(i), "finetune", config.to_dict(), root=tmp_path)
        finetune(config, run, steps_run)
        assert estimated.steps == run.status()["steps"] == 30
        assert estimated.seconds > estimated.steps * estimated.step
        return [(estimated.step, steps_run.step)]

    assert agree(once)


def test_the_estimate_includes_the_linear_head(finetuning):
    config = dataclasses.replace(finetuning, method="lora")
    estimated = estimate(dataclasses.replace(config, linear_first=True), 10_000)
    assert "10,640 steps of the head" in estimated.how  # 40 epochs of 8,500 images by 32
    assert "then 6,378 steps" in estimated.how


@pytest.mark.slow  # it compares times, and a busy machine spoils them
def test_the_estimate_of_a_probe(probing, tmp_path):
    def once(i: int) -> list[tuple[float, float]]:
        estimated, steps_run = estimate(probing, 6), Steps()
        probe(probing, Run.create(str(i), "probe", probing.to_dict(), root=tmp_path), steps_run)
        assert estimated.steps == len(steps_run.ends) == 15
        return [(estimated.step, steps_run.step)]

    assert agree(once)
    assert estimate(dataclasses.replace(probing, limit=4), 6).steps == 10


@pytest.mark.parametrize("kind", ["pretraining", "finetuning", "probing"])
def test_an_estimate_can_be_stopped_at_each_report(kind, request):
    config = dataclasses.replace(request.getfixturevalue(kind), **({"method": "lora"} if kind == "finetuning" else {}))
    shares: list[float] = []
    estimate(config, IMAGES, progress=lambda what, share: shares.append(share))
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    for moment in (0.0, 0.4):  # not by their number: what is measured is as often as time allows

        def stop(what: str, share: float, moment=moment) -> None:
            if share >= moment:
                raise Stopped

        with pytest.raises(Stopped):
            estimate(config, IMAGES, progress=stop)


def test_an_estimate_leaves_no_files(pretraining, tmp_path, monkeypatch):
    def held() -> int:
        gc.collect()
        # Not those of torch's compiler, which have no size.
        return sum(each.nbytes for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DINOVIZ_RUNS", str(tmp_path / "runs"))
    before, state = held(), torch.get_rng_state()
    estimate(pretraining, IMAGES)
    assert held() - before < 100_000  # the student alone has 800,000
    assert torch.equal(torch.get_rng_state(), state)
    assert list(tmp_path.iterdir()) == []


def test_the_estimate_refuses_what_the_run_refuses(pretraining, finetuning, probing, tmp_path):
    run = begin(dataclasses.replace(pretraining, batch=64), tmp_path)
    for config, count in (
        (dataclasses.replace(pretraining, batch=64), IMAGES),
        (dataclasses.replace(pretraining, freeze_layers=9), IMAGES),
        (dataclasses.replace(pretraining, start=str(tmp_path / "nothing")), IMAGES),
        (dataclasses.replace(pretraining, validation=str(tmp_path / "nothing")), IMAGES),
    ):
        with pytest.raises(DinovizError) as theirs:
            pretrain(config, run)
        with pytest.raises(DinovizError) as ours:
            estimate(config, count)
        assert str(ours.value) == str(theirs.value)
    for config in (finetuning, probing):
        with pytest.raises(DinovizError, match="2 images"):
            estimate(config, 1)
    with pytest.raises(DinovizError, match="patch size 14"):
        estimate(dataclasses.replace(finetuning, size=50), IMAGES)
