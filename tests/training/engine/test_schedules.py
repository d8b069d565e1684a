"""The schedules against DINO's published arrays, value for value."""

import numpy as np
import pytest
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training import reference
from tests.training.tiny_runs import SHAPE
from training.config.base import ConfigError
from training.config.pretrain import PRESETS, PretrainConfig, pretrain_preset
from training.dino.distillation import Distillation
from training.engine.schedules import cosine, linear, scaled_lr
from training.pretrain import schedules_in_words


@pytest.mark.parametrize("warmup_epochs", [0, 1, 4, 10])
@pytest.mark.parametrize(("base", "final"), [(5e-4, 1e-6), (0.04, 0.4), (0.996, 1.0)])
def test_cosine_is_dinos_scheduler(base, final, warmup_epochs):
    """Learning rate, weight decay and momentum; a warm-up as long as the run leaves no cosine."""
    theirs = reference.cosine_scheduler(base, final, 10, 7, warmup_epochs)
    ours = [cosine(step, 70, base, final, 7 * warmup_epochs) for step in range(70)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)


def test_the_warm_up_starts_and_ends_where_linspace_does():
    ours = [cosine(step, 30, 1.0, 0.0, 6, warmup_start=0.4) for step in range(6)]
    np.testing.assert_allclose(ours, np.linspace(0.4, 1.0, 6), rtol=1e-12)
    assert cosine(6, 30, 1.0, 0.0, 6) == 1.0  # the cosine's own first value


def test_the_teacher_temperature_is_dinos():
    """Published by epoch: linspace over the warm-up's epochs, then constant."""
    theirs = np.concatenate([np.linspace(0.04, 0.07, 30), np.full(70, 0.07)])
    np.testing.assert_allclose([linear(epoch, 29, 0.04, 0.07) for epoch in range(100)], theirs, rtol=1e-12)


def test_runs_of_no_length_and_of_one_step_have_values():
    assert cosine(0, 0, 2.0, 1.0) == 2.0
    assert cosine(0, 1, 2.0, 1.0) == reference.cosine_scheduler(2.0, 1.0, 1, 1)[0]
    assert cosine(0, 1, 2.0, 1.0, warmup=1) == reference.cosine_scheduler(2.0, 1.0, 1, 1, 1)[0]
    assert cosine(0, 1, 2.0, 1.0, warmup=5) == 0.0
    assert linear(0, 0, 2.0, 1.0) == 2.0
    assert linear(1, 0, 2.0, 1.0) == linear(5, 3, 2.0, 1.0) == 1.0


def test_after_the_last_step_the_end_holds():
    assert cosine(10, 10, 2.0, 1.0, 3) == pytest.approx(1.0)
    assert cosine(99, 10, 2.0, 1.0, 3) == pytest.approx(1.0)


@settings(deadline=None)  # the machine may be busy
@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300), st.floats(0, 1), st.floats(0, 1))
def test_no_value_leaves_the_range(step, steps, warmup, start, end):
    """For all lengths, the learning rate is between 0 and the peak."""
    value = cosine(step, steps, start, end, warmup)
    assert -1e-12 <= value <= max(start, end) + 1e-12
    assert min(start, end) - 1e-12 <= linear(step, steps, start, end) <= max(start, end) + 1e-12


def test_the_learning_rate_grows_with_the_batch():
    assert scaled_lr(5e-4, 256) == 5e-4
    assert scaled_lr(5e-4, 64) == pytest.approx(1.25e-4)


@pytest.mark.parametrize("epochs", [1, 5, 10, 20, 100])
def test_a_run_of_any_length_comes_to_the_end_of_its_schedules(epochs):
    """From a learning rate that was reached to its end, the teacher's last temperature, prototypes that learn."""
    of_an_epoch = 32
    steps = epochs * of_an_epoch
    config = PretrainConfig(**{**SHAPE, "epochs": epochs})
    dino = Distillation(config, Accelerator(cpu=True), steps, of_an_epoch)
    rates = []
    for step in range(steps + 1):
        dino.set_schedules(step)
        rates.append(dino.lr)
    peak = scaled_lr(config.lr, config.batch)
    assert max(rates) == pytest.approx(peak)
    assert rates.index(max(rates)) <= steps / 8
    assert rates[-1] == config.lr_end
    assert rates[-2] < config.lr_end + 0.004 * peak  # the last step, one of a cosine of 29 or more before its end
    assert dino.temperature(steps - 1) == config.teacher_temperature
    assert dino.temperature(steps // 2) == config.teacher_temperature
    assert dino.config.freeze_last_layer <= epochs / 10


def test_schedules_of_runs_as_long_as_the_published_are_the_published():
    found = PretrainConfig(epochs=100.0).resolved()
    assert (found.warmup_epochs, found.teacher_temperature_epochs, found.freeze_last_layer) == (10.0, 30.0, 1.0)
    assert PretrainConfig(epochs=800.0).resolved().warmup_epochs == 10.0
    assert PretrainConfig(epochs=5.0, warmup_epochs=2.0).resolved().warmup_epochs == 2.0
    for name, epochs in (("micro", 2.0), ("quarter-hour", 3.0), ("adapt", 1.0)):  # as they were measured
        assert PretrainConfig(**pretrain_preset(name)).resolved().warmup_epochs == epochs


def test_shortened_schedules_are_reported_with_their_usual_epochs():
    words = schedules_in_words(PretrainConfig(epochs=5.0, freeze_last_layer=0.25))
    for figures in ("0.5 (usually 10)", "1.5 (usually 30)", "0.25"):
        assert figures in words
    assert "usual" not in schedules_in_words(PretrainConfig(epochs=100.0))


@pytest.mark.parametrize("name", ["warmup_epochs", "teacher_temperature_epochs", "freeze_last_layer"])
def test_epochs_that_do_not_fit_are_refused_with_the_figures(name):
    PretrainConfig(epochs=8.0, **{name: 4.0}).check_new()
    with pytest.raises(ConfigError, match=rf"{name} \(4.5\) .* 8 epochs: at most 4"):
        PretrainConfig(epochs=8.0, **{name: 4.5}).check_new()


def test_a_temperature_that_stays_may_take_any_time_to_do_so():
    PretrainConfig(epochs=8.0, teacher_temperature=0.04, teacher_temperature_epochs=30.0).check_new()


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("epochs", [0.5, 1.0, 5.0])
def test_a_preset_of_other_epochs_fits_them(name, epochs):
    PretrainConfig(**{**pretrain_preset(name, epochs), "epochs": epochs}).check_new()
