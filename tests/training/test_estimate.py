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
    """Whether what is said and what it took agree, all pairs of them, in one of a few tries."""
    return any(all(1 / ABOUT < said / took < ABOUT for said, took in try_once(i)) for i in range(TRIES))


class Course:
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
def test_a_pretraining_takes_as_long_as_foretold(pretraining, tmp_path):
    def once(i: int) -> list[tuple[float, float]]:
        said, run = estimate(pretraining, IMAGES), begin(pretraining, tmp_path, str(i))
        times, records = [], []
        pretrain(pretraining, run, lambda record: (times.append(time.perf_counter()), records.append(record)))
        assert said.steps == run.status()["steps"] == 24
        assert said.seconds > said.steps * said.step
        assert said.how.startswith("24 steps of ")
        assert " 5 snapshots of " in said.how
        assert " 5 times k-NN of " in said.how
        return [(said.step, pretraining.batch / records[-2]["speed"]), (said.seconds, times[-1] - times[0])]

    assert agree(once)


def test_with_0_one_knn_evaluation_and_two_snapshots_are_foretold(pretraining):
    said = estimate(dataclasses.replace(pretraining, knn_every=0.0, snapshot_every=0.0), IMAGES)
    assert " 1 times k-NN of " in said.how
    assert " 2 snapshots of " in said.how


@pytest.mark.slow
@pytest.mark.parametrize("method", ["linear", "lora", "full"])
def test_a_fine_tuning_takes_as_long_as_foretold(method, finetuning, tmp_path):
    config = dataclasses.replace(finetuning, method=method)

    def once(i: int) -> list[tuple[float, float]]:
        said, course = estimate(config, 40), Course()
        run = Run.create(str(i), "finetune", config.to_dict(), root=tmp_path)
        finetune(config, run, course)
        assert said.steps == run.status()["steps"] == 30
        assert said.seconds > said.steps * said.step
        return [(said.step, course.step)]

    assert agree(once)


def test_a_head_that_comes_first_takes_its_time_too(finetuning):
    config = dataclasses.replace(finetuning, method="lora")
    said = estimate(dataclasses.replace(config, linear_first=True), 10_000)
    assert "10,640 steps of the head" in said.how  # 40 epochs of 8,500 images by 32
    assert "then 6,378 steps" in said.how


@pytest.mark.slow  # it compares times, and a busy machine spoils them
def test_a_probe_takes_as_long_as_foretold(probing, tmp_path):
    def once(i: int) -> list[tuple[float, float]]:
        said, course = estimate(probing, 6), Course()
        probe(probing, Run.create(str(i), "probe", probing.to_dict(), root=tmp_path), course)
        assert said.steps == len(course.ends) == 15
        return [(said.step, course.step)]

    assert agree(once)
    assert estimate(dataclasses.replace(probing, limit=4), 6).steps == 10


@pytest.mark.parametrize("kind", ["pretraining", "finetuning", "probing"])
def test_it_stops_at_each_moment_that_it_tells(kind, request):
    config = dataclasses.replace(request.getfixturevalue(kind), **({"method": "lora"} if kind == "finetuning" else {}))
    told: list[float] = []
    estimate(config, IMAGES, progress=lambda what, share: told.append(share))
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0.0, 1.0)
    for moment in (0.0, 0.4):  # not by their number: what is measured is as often as time allows

        def stop(what: str, share: float, moment=moment) -> None:
            if share >= moment:
                raise Stopped

        with pytest.raises(Stopped):
            estimate(config, IMAGES, progress=stop)


def test_it_leaves_nothing_behind(pretraining, tmp_path, monkeypatch):
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


def test_what_the_run_would_refuse_is_refused_in_its_words(pretraining, finetuning, probing, tmp_path):
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
